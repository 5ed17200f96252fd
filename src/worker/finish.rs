//! From the last step to the answer: decoding, the file, what the cache keeps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use super::painting::{PaintError, Painting};
use super::report::{cancelled, fail, span};
use super::stored::{Keeping, Stored};
use crate::plan::Planner;
use crate::queue::{JobLease, Lease, Timings};
use crate::telemetry;

/// Pictures that wait for the finishing thread; with more of them the painting thread finishes, too.
const WAITING: usize = 8;

/// A picture that has taken its last step.
pub(super) struct Unfinished {
    pub(super) lease: Lease,
    pub(super) painting: Painting,
    pub(super) began: Instant,
}

/// What finishing needs.
#[derive(Clone)]
pub(super) struct Finisher {
    pub(super) planner: Arc<Planner>,
    pub(super) stored: Option<Arc<Stored>>,
}

impl Finisher {
    /// Answers with the picture.
    pub(super) fn finish(&self, unfinished: Unfinished) {
        let Unfinished { lease, mut painting, began } = unfinished;
        if lease.is_cancelled() {
            return cancelled(&lease, began.elapsed());
        }
        let span = span(&lease);
        let _entered = span.enter();
        let job = lease.job().clone();
        let Timings { encode, denoise, decode, .. } = painting.timings;
        painting.timings.wait = began.elapsed().saturating_sub(encode + denoise + decode);
        let finishing = Instant::now();
        let finished: Result<Result<_, PaintError>, _> = catch_unwind(AssertUnwindSafe(|| painting.finish()));
        let (mut painted, keeping) = match finished {
            Ok(Ok(finished)) => finished,
            Ok(Err(error)) => return fail(lease, &error.to_string()),
            Err(_) => return fail(lease, "the engine panicked"),
        };
        let took = finishing.elapsed();
        let share = painted.skipped_steps as f64 / painted.steps.max(1) as f64;
        painted.expected_quality = match painted.skipped_steps == painted.steps {
            true => None, // a stored picture: nothing of the plan was painted
            false => self.planner.expected_quality(&job.model, painted.steps, share),
        };
        let encode = Some(encode).filter(|_| !job.takes_no_step());
        self.planner.finished(&job.model, job.size, encode, took);
        telemetry::picture(&job.model, lease.waited(), began.elapsed(), painted.steps);
        telemetry::reused(painted.reused.as_ref(), painted.skipped_steps, painted.steps);
        tracing::info!(waited = ?lease.waited(), painted = ?began.elapsed(), steps = painted.steps, skipped_steps = painted.skipped_steps, "painted");
        lease.complete(painted);
        if let (Some(keeping), Some(stored)) = (keeping, &self.stored) {
            keep(keeping, stored);
        }
    }
}

fn keep(keeping: Keeping, stored: &Stored) {
    if catch_unwind(AssertUnwindSafe(|| keeping.into_cache(&stored.cache))).is_err() {
        tracing::error!("the cache panicked; the picture is not kept");
    }
}

/// Finishes pictures while others take steps: where the steps leave a core free.
pub(super) struct Aside {
    pictures: SyncSender<Unfinished>,
    thread: JoinHandle<()>,
}

impl Aside {
    /// A thread of its own.
    ///
    /// # Errors
    /// Where none can be had.
    pub(super) fn start(finisher: Finisher) -> std::io::Result<Self> {
        let (pictures, waiting): (_, Receiver<Unfinished>) = sync_channel(WAITING);
        let run = move || waiting.iter().for_each(|unfinished| finisher.finish(unfinished));
        let thread = std::thread::Builder::new().name("finisher".to_owned()).spawn(run)?;
        Ok(Self { pictures, thread })
    }

    /// Takes a picture over; gives it back where too many wait already.
    pub(super) fn take(&self, unfinished: Unfinished) -> Option<Unfinished> {
        match self.pictures.try_send(unfinished) {
            Ok(()) => None,
            Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => Some(back),
        }
    }

    /// Waits until all that were taken over are finished.
    pub(super) fn end(self) {
        drop(self.pictures);
        if self.thread.join().is_err() {
            tracing::error!("the finishing thread panicked");
        }
    }
}
