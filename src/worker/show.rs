//! Whole stored pictures: they take no step, and wait for none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pentimento_pipelines::{DenoisingState, Pipeline};
use rayon::ThreadPool;

use super::aside;
use super::finish::{Finisher, Unfinished};
use super::painting::{Beginning, Painting};
use super::report::{cancelled, span};
use super::stored::{Coming, StateError};
use crate::queue::{Failure, JobLease, JobQueue, Lease, Line, LocalQueue, Pulled, Start};

/// Of so many pictures the latents may be on their way at a time: a store takes its time for each.
const AT_ONCE: usize = 8;
/// How long it is waited for a latent before it is looked for others and for more to show.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The thread that shows stored pictures.
pub(super) struct Shower {
    models: Vec<Pipeline>,
    queue: LocalQueue,
    finisher: Finisher,
    /// While others take steps it decodes without help: it has its share of the cores, and they theirs.
    alone: ThreadPool,
}

/// The thread, from outside.
pub(super) struct Showing {
    /// Says that it may begin. Dropped unsaid, it ends.
    pub begin: SyncSender<()>,
    /// Ends when the queue is closed and nothing is left to be shown.
    pub thread: JoinHandle<()>,
}

/// A picture whose latent is on its way.
struct Awaited {
    lease: Lease,
    /// When its turn came.
    since: Instant,
    /// `None`: there is no cache, or it panicked.
    coming: Option<Coming>,
}

/// A latent, or why there is none.
type Latent = Result<DenoisingState, String>;

impl Shower {
    /// Starts the thread, which waits until it may begin.
    ///
    /// # Errors
    /// Where none can be had.
    pub(super) fn start(
        models: Vec<Pipeline>,
        queue: LocalQueue,
        finisher: Finisher,
    ) -> std::io::Result<Showing> {
        let shower = Self { models, queue, finisher, alone: aside::alone("shower")? };
        let (begin, told) = sync_channel(1);
        let run = move || {
            if told.recv().is_ok() {
                shower.run();
            }
        };
        Ok(Showing { begin, thread: std::thread::Builder::new().name("shower".to_owned()).spawn(run)? })
    }

    fn run(self) {
        let mut awaited = Vec::new();
        loop {
            while awaited.len() < AT_ONCE {
                let patience = if awaited.is_empty() { None } else { Some(Duration::ZERO) };
                match self.queue.pull(Line::Show, patience) {
                    Pulled::Lease(lease) => awaited.push(self.ask(lease)),
                    Pulled::Closed if awaited.is_empty() => return,
                    Pulled::Nothing | Pulled::Closed => break,
                }
            }
            if let Some((place, latent)) = self.arrived(&awaited) {
                let shown = awaited.remove(place);
                // Whoever panics costs the picture that it belongs to: its lease is dropped, which is heard.
                if catch_unwind(AssertUnwindSafe(|| self.show(shown, latent))).is_err() {
                    tracing::error!("a panic while a stored picture was shown");
                }
            }
        }
    }

    fn ask(&self, lease: Lease) -> Awaited {
        let stored = self.finisher.stored.as_ref().zip(lease.job().start.reused());
        let coming =
            stored.and_then(|(stored, reused)| catch_unwind(AssertUnwindSafe(|| stored.ask(reused))).ok());
        Awaited { coming, since: Instant::now(), lease }
    }

    /// The first whose latent has arrived, or will not, or that nobody waits for any more; waits a little where there is
    /// none.
    fn arrived(&self, awaited: &[Awaited]) -> Option<(usize, Latent)> {
        let now = |place: usize, wait| {
            let latent = if awaited[place].lease.is_cancelled() {
                Some(Err("nobody waits for it any more".to_owned()))
            } else {
                self.latent(&awaited[place], wait)
            };
            latent.map(|latent| (place, latent))
        };
        let arrived = (0..awaited.len()).find_map(|place| now(place, Duration::ZERO));
        arrived.or_else(|| if awaited.is_empty() { None } else { now(0, LOOK_AGAIN) })
    }

    fn latent(&self, awaited: &Awaited, wait: Duration) -> Option<Latent> {
        let (Some(stored), Some(coming)) = (&self.finisher.stored, &awaited.coming) else {
            return Some(Err("there is no cache, or it panicked".to_owned()));
        };
        match catch_unwind(AssertUnwindSafe(|| stored.arrived(coming, wait))) {
            Ok(arrived) => {
                let latent = arrived?;
                if latent.as_ref().is_err_and(StateError::is_outage) {
                    self.finisher.planner.store_failed();
                }
                Some(latent.map_err(|error| error.to_string()))
            }
            Err(_) => Some(Err("the cache panicked".to_owned())),
        }
    }

    fn show(&self, awaited: Awaited, latent: Latent) {
        let Awaited { lease, since, .. } = awaited;
        if lease.is_cancelled() {
            return cancelled(&lease, since.elapsed());
        }
        let load = since.elapsed();
        let begin = || latent.and_then(|latent| self.begin(&lease, &latent));
        let begun = catch_unwind(AssertUnwindSafe(begin));
        match begun.unwrap_or_else(|_| Err("the engine panicked".to_owned())) {
            Ok(mut painting) => {
                painting.timings.queue = lease.waited();
                painting.timings.load = load;
                let finish = || self.finisher.finish(Unfinished { lease, painting, since });
                if self.finisher.planner.seen().flying == 0 { finish() } else { self.alone.install(finish) }
            }
            Err(error) => {
                span(&lease).in_scope(|| tracing::warn!(error, "not shown"));
                match &lease.job().start {
                    Start::State(_) => lease.fail(Failure::StateGone),
                    _ => lease.paint_instead(),
                }
            }
        }
    }

    /// The picture, without a step to take.
    fn begin(&self, lease: &Lease, latent: &DenoisingState) -> Result<Painting, String> {
        let job = lease.job();
        let model = self.models.iter().find(|model| model.id() == job.model);
        let model = model.ok_or("this worker does not have the job's model")?;
        let reused = job.start.reused().ok_or("it is not stored")?;
        let steps = job.plan.steps().len();
        let painting = Painting::begin(model, job, steps, &Beginning::State(reused, latent), None);
        painting.map_err(|error| error.to_string())
    }
}
