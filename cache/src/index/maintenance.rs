//! The background thread that maintains partitions: it builds, extends and rebuilds their graphs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::RwLock;

use super::partition::{Maintenance, Partition};
use super::rebuild::{link_tail, rebuild};

pub(super) type SharedPartition = Arc<RwLock<Partition>>;

/// The maintenance thread. Searches and changes of the index never wait for its work.
pub(super) struct MaintenanceThread {
    queue: Option<mpsc::Sender<SharedPartition>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MaintenanceThread {
    pub(super) fn start() -> std::io::Result<Self> {
        let (queue, partitions) = mpsc::channel::<SharedPartition>();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            for partition in partitions {
                while let Some(maintenance) = next_maintenance(&partition) {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    match maintenance {
                        Maintenance::LinkTail => link_tail(&partition, &stopped),
                        Maintenance::Rebuild => rebuild(&partition, &stopped),
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("cache-graphs".into()).spawn(work)?;
        Ok(Self { queue: Some(queue), stop, thread: Some(thread) })
    }

    /// Queues the partition if it needs maintenance and is not queued yet.
    pub(super) fn schedule(&self, partition: SharedPartition) {
        let wanted = partition.write().begin_maintenance();
        if let (true, Some(queue)) = (wanted, &self.queue) {
            // The send fails only if the thread has ended. Searches of the partition then scan its rows.
            let _ = queue.send(partition);
        }
    }
}

/// The partition's next piece of maintenance. If there is none, the partition may be queued again.
fn next_maintenance(partition: &RwLock<Partition>) -> Option<Maintenance> {
    let mut partition = partition.write();
    let maintenance = partition.maintenance();
    if maintenance.is_none() {
        partition.end_maintenance();
    }
    maintenance
}

impl Drop for MaintenanceThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
