//! Takes jobs from the queue and paints them, on a thread of its own: never on an async one.

mod encode;
mod painting;
mod stored;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pentimento_pipelines::{NoiseSource, Pipeline};
use tokio::sync::oneshot;

pub use encode::{EncodeError, parameters};
pub use painting::{Beginning, PaintError, Painting};
pub use stored::{Keeping, StateError, Stored};

use crate::queue::{Failure, Job, Lease, LocalQueue, Painted, Start};
use crate::telemetry;

/// The painting thread, from outside.
pub struct Worker {
    /// Hears once that every model took a warm-up step, or why one could not.
    pub warm: oneshot::Receiver<pentimento_pipelines::Result<()>>,
    /// Hears once that the queue is closed and everything accepted is painted.
    pub done: oneshot::Receiver<()>,
}

/// Starts the painting thread. It ends when `queue` is closed and empty. Without `stored` every picture starts
/// from noise.
///
/// # Errors
/// Where no thread can be had.
pub fn spawn(models: Vec<Pipeline>, queue: LocalQueue, stored: Option<Stored>) -> std::io::Result<Worker> {
    let (warm_sender, warm) = oneshot::channel();
    let (done_sender, done) = oneshot::channel();
    std::thread::Builder::new().name("painter".to_owned()).spawn(move || {
        let warmed = models.iter().try_for_each(warm_up);
        let works = warmed.is_ok();
        // Nobody listens where the server is already gone; so below.
        let _ = warm_sender.send(warmed);
        while let Some(lease) = works.then(|| queue.pull()).flatten() {
            serve(&models, lease, stored.as_ref());
        }
        let _ = done_sender.send(());
    })?;
    Ok(Worker { warm, done })
}

/// One step of one picture, so that the first request finds weights paged in and threads started.
fn warm_up(model: &Pipeline) -> pentimento_pipelines::Result<()> {
    let started = Instant::now();
    let defaults = model.defaults();
    let conditioning = Arc::new(model.encode("", None, defaults.size)?);
    let plan = model.plan(1, defaults.guidance_scale)?;
    let mut trajectory = model.start(conditioning, 0, NoiseSource::default(), defaults.size, plan)?;
    model.step(&mut [&mut trajectory])?;
    model.finish(&trajectory)?;
    tracing::info!(model = model.id(), seconds = started.elapsed().as_secs_f64(), "warmed up");
    Ok(())
}

/// What came of a lease.
enum Outcome {
    Painted(Painted, Option<Keeping>),
    Cancelled,
    StateGone,
}

/// Serves one lease. A panic in the engine costs that picture, not the thread.
fn serve(models: &[Pipeline], lease: Lease, stored: Option<&Stored>) {
    let job = &lease.job;
    let span =
        tracing::info_span!("picture", request_id = job.request_id, index = job.index, model = job.model);
    let _entered = span.enter();
    let Some(model) = models.iter().find(|m| m.id() == job.model) else {
        return fail(lease, "this worker does not have the job's model".to_owned());
    };
    let started = Instant::now();
    match catch_unwind(AssertUnwindSafe(|| paint(model, &lease, stored))) {
        Ok(Ok(Outcome::Painted(painted, keeping))) => {
            telemetry::picture(model.id(), lease.waited, started.elapsed());
            telemetry::reused(painted.reused.as_ref(), painted.skipped_steps, job.plan.steps().len());
            tracing::info!(waited = ?lease.waited, painted = ?started.elapsed(), skipped_steps = painted.skipped_steps, "painted");
            lease.complete(painted);
            if let (Some(keeping), Some(stored)) = (keeping, stored)
                && catch_unwind(AssertUnwindSafe(|| keeping.into_cache(&stored.cache))).is_err()
            {
                tracing::error!("the cache panicked; the picture is not kept");
            }
        }
        Ok(Ok(Outcome::Cancelled)) => {
            telemetry::cancelled(1);
            tracing::info!(after = ?started.elapsed(), "cancelled");
        }
        Ok(Ok(Outcome::StateGone)) => lease.fail(Failure::StateGone),
        Ok(Err(error)) => fail(lease, error.to_string()),
        Err(_) => fail(lease, "the engine panicked".to_owned()),
    }
}

/// Paints a lease's job, a step at a time.
fn paint(model: &Pipeline, lease: &Lease, stored: Option<&Stored>) -> Result<Outcome, PaintError> {
    let Some(mut painting) = begin(model, &lease.job, stored)? else { return Ok(Outcome::StateGone) };
    painting.timings.queue = lease.waited;
    while !painting.is_finished() {
        if lease.is_cancelled() {
            return Ok(Outcome::Cancelled);
        }
        let time = timed(|| painting.step())?;
        telemetry::step(model.id(), time);
        // A decode may cost more than a step: nobody waiting spares it too.
        if !lease.is_cancelled()
            && let Some((index, file)) = painting.due_preview()?
        {
            lease.preview(index, file);
        }
    }
    if lease.is_cancelled() {
        return Ok(Outcome::Cancelled);
    }
    let (painted, keeping) = painting.finish()?;
    Ok(Outcome::Painted(painted, keeping))
}

/// Begins with the job's stored state or, where that is not to be had or does not fit, with noise; `None` where the job
/// does not want that.
pub fn begin<'a>(
    model: &'a Pipeline,
    job: &'a Job,
    stored: Option<&Stored>,
) -> Result<Option<Painting<'a>>, PaintError> {
    let started = Instant::now();
    if let (Some(stored), Some(reused)) = (stored, job.start.reused()) {
        // Whatever the cache does, the picture is painted.
        let state = catch_unwind(AssertUnwindSafe(|| stored.fetch(reused)));
        let load = started.elapsed();
        let state = state
            .map_or_else(|_| Err("the cache panicked".to_owned()), |state| state.map_err(|e| e.to_string()));
        let begun = state.and_then(|state| {
            let beginning = Beginning::State(reused, &state);
            Painting::begin(model, job, &beginning).map_err(|error| error.to_string())
        });
        match begun {
            Ok(mut painting) => {
                painting.timings.load = load;
                return Ok(Some(painting));
            }
            Err(error) => tracing::warn!(error, source = reused.source.as_str(), "not resumed"),
        }
    }
    if matches!(job.start, Start::State(_)) {
        return Ok(None);
    }
    let load = started.elapsed();
    let mut painting = Painting::begin(model, job, &Beginning::Noise)?;
    painting.timings.load = load;
    Ok(Some(painting))
}

fn timed<E>(action: impl FnOnce() -> Result<(), E>) -> Result<Duration, E> {
    let started = Instant::now();
    action().map(|()| started.elapsed())
}

fn fail(lease: Lease, reason: String) {
    telemetry::failed();
    tracing::error!(reason, "the picture failed");
    lease.fail(Failure::Engine(reason));
}
