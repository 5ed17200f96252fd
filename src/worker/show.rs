//! Whole stored pictures: they take no step, and wait for none.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pentimento_pipelines::Pipeline;

use super::aside;
use super::finish::{Finisher, Unfinished};
use super::painting::{Beginning, Painting};
use super::report::{cancelled, span};
use super::stored::Coming;
use crate::queue::{Failure, JobLease, JobQueue, Lease, Line, LocalQueue, Pulled, Start};

/// Of so many pictures the latents may be on their way at a time: a store takes its time for each.
const AT_ONCE: usize = 8;
/// How long it is waited for a latent before it is looked whether anybody still wants it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The thread that shows stored pictures. Where all cores take steps it has its share of them, as any thread.
pub(super) struct Shower {
    models: Vec<Pipeline>,
    queue: LocalQueue,
    finisher: Finisher,
}

/// A picture whose latent is on its way.
struct Awaited {
    lease: Lease,
    /// When its turn came.
    since: Instant,
    /// `None`: there is no cache, or it panicked.
    latent: Option<Coming>,
}

impl Shower {
    /// Starts it. It ends when the queue is closed and nothing is left to be shown.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub(super) fn start(
        models: Vec<Pipeline>,
        queue: LocalQueue,
        finisher: Finisher,
    ) -> std::io::Result<JoinHandle<()>> {
        let shower = Self { models, queue, finisher };
        aside::thread("shower", move || shower.run())
    }

    fn run(self) {
        let mut awaited = VecDeque::new();
        loop {
            let patience = if awaited.is_empty() { None } else { Some(Duration::ZERO) };
            match self.queue.pull(Line::Show, patience) {
                Pulled::Lease(lease) => {
                    awaited.push_back(self.ask(lease));
                    if awaited.len() < AT_ONCE {
                        continue;
                    }
                }
                Pulled::Nothing => {}
                Pulled::Closed if awaited.is_empty() => return,
                Pulled::Closed => {}
            }
            if let Some(next) = awaited.pop_front() {
                self.show(next);
            }
        }
    }

    fn ask(&self, lease: Lease) -> Awaited {
        let stored = self.finisher.stored.as_ref().zip(lease.job().start.reused());
        let latent =
            stored.and_then(|(stored, reused)| catch_unwind(AssertUnwindSafe(|| stored.ask(reused))).ok());
        Awaited { latent, since: Instant::now(), lease }
    }

    fn show(&self, awaited: Awaited) {
        let Awaited { lease, since, latent } = awaited;
        let begun = loop {
            if lease.is_cancelled() {
                return cancelled(&lease, since.elapsed());
            }
            let begin = || self.begin(&lease, latent.as_ref());
            match catch_unwind(AssertUnwindSafe(begin)) {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(painting))) => break Ok(painting),
                Ok(Err(error)) => break Err(error),
                Err(_) => break Err("the engine or the cache panicked".to_owned()),
            }
        };
        match begun {
            Ok(mut painting) => {
                painting.timings.queue = lease.waited();
                painting.timings.load = since.elapsed().saturating_sub(painting.timings.encode);
                self.finisher.finish(Unfinished { lease, painting, since });
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

    /// The picture, without a step to take; `None` while its latent is on its way.
    fn begin(&self, lease: &Lease, latent: Option<&Coming>) -> Result<Option<Painting>, String> {
        let job = lease.job();
        let (Some(stored), Some(latent), Some(reused)) = (&self.finisher.stored, latent, job.start.reused())
        else {
            return Err("there is no cache, or it panicked".to_owned());
        };
        let Some(state) = stored.arrived(latent, LOOK_AGAIN) else { return Ok(None) };
        let state = state.map_err(|error| error.to_string())?;
        let model = self.models.iter().find(|model| model.id() == job.model);
        let model = model.ok_or("this worker does not have the job's model")?;
        let steps = job.plan.steps().len();
        let painting = Painting::begin(model, job, steps, &Beginning::State(reused, &state), None);
        painting.map(Some).map_err(|error| error.to_string())
    }
}
