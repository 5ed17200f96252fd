//! What is done while others take steps, where the steps leave a core free: prompts are encoded, pictures finished.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use pentimento_pipelines::Pipeline;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::finish::{Finisher, Unfinished};
use super::painting::Prompts;
use crate::queue::Job;

/// What may wait for each of the threads; with more of it the painting thread does it itself.
const WAITING: usize = 8;

/// Prompts to be encoded, and whom to tell.
struct Unencoded {
    model: Pipeline,
    job: Arc<Job>,
    answer: SyncSender<Prompts>,
}

/// The threads beside the painting thread.
pub(super) struct Aside {
    prompts: SyncSender<Unencoded>,
    pictures: SyncSender<Unfinished>,
    threads: [JoinHandle<()>; 2],
}

impl Aside {
    /// One thread that encodes, and one that finishes.
    ///
    /// # Errors
    /// Where none can be had.
    pub(super) fn start(finisher: Finisher) -> std::io::Result<Self> {
        let (prompts, to_encode): (_, Receiver<Unencoded>) = sync_channel(WAITING);
        let encode = move || {
            for Unencoded { model, job, answer } in to_encode {
                // Where it fails the painting thread hears nothing, tries itself and says why.
                if let Ok(Ok(prompts)) = catch_unwind(AssertUnwindSafe(|| Prompts::encode(&model, &job))) {
                    let _ = answer.send(prompts); // fails only where nobody waits any more
                }
            }
        };
        let (pictures, to_finish): (_, Receiver<Unfinished>) = sync_channel(WAITING);
        let finish = move || to_finish.iter().for_each(|unfinished| finisher.finish(unfinished));
        let threads = [thread("encoder", encode)?, thread("finisher", finish)?];
        Ok(Self { prompts, pictures, threads })
    }

    /// Has a job's prompts encoded; `None` where too many wait already.
    pub(super) fn encode(&self, model: &Pipeline, job: &Arc<Job>) -> Option<Prompting> {
        let (answer, receiver) = sync_channel(1);
        let unencoded = Unencoded { model: model.clone(), job: job.clone(), answer };
        let sent = self.prompts.try_send(unencoded);
        sent.is_ok().then_some(Prompting { receiver, prompts: None })
    }

    /// Takes a picture over; gives it back where too many wait already.
    pub(super) fn finish(&self, unfinished: Unfinished) -> Option<Unfinished> {
        match self.pictures.try_send(unfinished) {
            Ok(()) => None,
            Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => Some(back),
        }
    }

    /// Waits until all that were taken over are finished.
    pub(super) fn end(self) {
        drop((self.prompts, self.pictures));
        if self.threads.into_iter().any(|thread| thread.join().is_err()) {
            tracing::error!("a thread beside the painting thread panicked");
        }
    }
}

/// A thread of which the networks have no other thread to help: all others belong to the steps.
fn thread(name: &'static str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let alone = alone(name)?;
    std::thread::Builder::new().name(format!("{name}'s")).spawn(move || alone.install(run))
}

/// A pool of one thread: networks that run in it have no other to help.
pub(super) fn alone(name: &'static str) -> std::io::Result<ThreadPool> {
    let pool = ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| name.to_owned()).build();
    pool.map_err(std::io::Error::other)
}

/// Prompts on their way.
pub(super) struct Prompting {
    receiver: Receiver<Prompts>,
    prompts: Option<Prompts>,
}

impl Prompting {
    /// Whether they are there, or will not come; waits for them so long at most.
    pub(super) fn is_over(&mut self, wait: Duration) -> bool {
        if self.prompts.is_none() {
            match self.receiver.recv_timeout(wait) {
                Ok(prompts) => self.prompts = Some(prompts),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => {}
            }
        }
        true
    }

    /// Them, if they have come.
    pub(super) fn take(self) -> Option<Prompts> {
        self.prompts
    }
}
