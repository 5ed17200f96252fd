//! How a cache shuts down: until when its writer may work, and the threads that wait for the writer.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

/// The threads of this process that wait for a dropped cache's writer, by the cache's directory.
static WAITING: Mutex<Vec<(PathBuf, JoinHandle<()>)>> = Mutex::new(Vec::new());

/// The deadline of a cache's shutdown. Pictures that are not written by then are dropped.
pub(crate) struct Shutdown(watch::Sender<Option<Instant>>);

impl Shutdown {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Begins the shutdown, which ends after `grace`. Later calls change nothing.
    pub(crate) fn begin(&self, grace: Duration) {
        self.0.send_modify(|deadline| {
            deadline.get_or_insert_with(|| Instant::now() + grace);
        });
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.borrow().is_some_and(|deadline| Instant::now() > deadline)
    }

    /// Waits until the shutdown has begun and its deadline has passed.
    pub(crate) async fn over(&self) {
        let mut changes = self.0.subscribe();
        // Waiting fails only if the sender is dropped, but `self` holds it.
        let deadline = changes.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline);
        tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into()).await;
    }
}

/// Runs the last work of a cache on a thread of its own, so that dropping the cache does not block an async thread.
pub(crate) fn run_in_background(dir: PathBuf, last_work: impl FnOnce() + Send + 'static) {
    match std::thread::Builder::new().name("cache-closer".into()).spawn(last_work) {
        Ok(thread) => {
            let mut waiting = WAITING.lock();
            waiting.retain(|(_, thread)| !thread.is_finished());
            waiting.push((dir, thread));
        }
        // The writer still ends by itself. Until then, opening the directory fails with `IndexError::InUse`.
        Err(error) => tracing::warn!(%error, "no thread can be started to wait for the cache's writer"),
    }
}

/// Waits until the caches of `dir` that are shutting down have released it.
pub(crate) fn wait_for_background(dir: &Path) {
    let threads: Vec<_> = WAITING.lock().extract_if(.., |(of, _)| of == dir).collect();
    for (_, thread) in threads {
        let _ = thread.join();
    }
}
