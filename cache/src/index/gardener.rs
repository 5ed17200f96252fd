//! Who looks after the shelves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::RwLock;

use super::shelf::{Chore, Shelf, tend};

pub(super) type SharedShelf = Arc<RwLock<Shelf>>;

/// The thread that builds and renews graphs, so that nobody else waits for it.
pub(super) struct Gardener {
    visits: Option<mpsc::Sender<SharedShelf>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Gardener {
    pub(super) fn start() -> std::io::Result<Self> {
        let (visits, calls) = mpsc::channel::<SharedShelf>();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            for shelf in calls {
                while let Some(chore) = next_chore(&shelf) {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    tend(&shelf, chore, &stopped);
                }
            }
        };
        let thread = std::thread::Builder::new().name("cache-graphs".into()).spawn(work)?;
        Ok(Self { visits: Some(visits), stop, thread: Some(thread) })
    }

    /// Has the shelf looked after, where it needs it and is not waiting already.
    pub(super) fn visit(&self, shelf: SharedShelf) {
        let wanted = shelf.write().call_gardener();
        if let (true, Some(visits)) = (wanted, &self.visits) {
            // Fails only where the thread is gone; a scan then goes on serving.
            let _ = visits.send(shelf);
        }
    }
}

/// What the shelf needs; where nothing, the next call is free again.
fn next_chore(shelf: &RwLock<Shelf>) -> Option<Chore> {
    let mut shelf = shelf.write();
    let chore = shelf.chore();
    if chore.is_none() {
        shelf.gardener_left();
    }
    chore
}

impl Drop for Gardener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.visits = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
