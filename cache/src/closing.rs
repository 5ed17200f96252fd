//! How a cache ends: by when, and on which thread.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Caches of this process that end on threads of their own, by directory.
static LEAVING: Mutex<Vec<(PathBuf, JoinHandle<()>)>> = Mutex::new(Vec::new());

/// When the cache stops writing, once it is being closed: what is not written by then is dropped.
pub(crate) struct Closing(watch::Sender<Option<Instant>>);

impl Closing {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// The first call fixes the moment.
    pub(crate) fn begin(&self, grace: Duration) {
        self.0.send_modify(|deadline| {
            deadline.get_or_insert_with(|| Instant::now() + grace);
        });
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    pub(crate) fn is_late(&self) -> bool {
        self.0.borrow().is_some_and(|deadline| Instant::now() > deadline)
    }

    /// Returns at that moment.
    pub(crate) async fn deadline(&self) {
        let mut news = self.0.subscribe();
        // Fails only where the sender is gone, which `self` holds.
        let deadline = news.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline);
        tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into()).await;
    }
}

/// Does the last work of the cache of a directory on a thread of its own, so that an async runtime's thread
/// need not.
pub(crate) fn leave(dir: PathBuf, last_work: impl FnOnce() + Send + 'static) {
    match std::thread::Builder::new().name("cache-closer".into()).spawn(last_work) {
        Ok(thread) => {
            let mut leaving = LEAVING.lock();
            leaving.retain(|(_, thread)| !thread.is_finished());
            leaving.push((dir, thread));
        }
        // The writer then ends by itself, and whoever opens the directory before is told that it is in use.
        Err(error) => tracing::warn!(%error, "nobody waits for the cache's writer"),
    }
}

/// Waits until the caches of a directory that are ending have released it.
pub(crate) fn wait_for_leaving(dir: &Path) {
    let threads: Vec<_> = LEAVING.lock().extract_if(.., |(of, _)| of == dir).collect();
    for (_, thread) in threads {
        let _ = thread.join();
    }
}
