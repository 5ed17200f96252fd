//! Takes jobs from the queue and paints them, on a thread of its own: never on an async one.

mod encode;
mod painting;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pentimento_pipelines::{NoiseSource, Pipeline};
use tokio::sync::oneshot;

pub use encode::{EncodeError, parameters};
pub use painting::{PaintError, Painting};

use crate::queue::{Failure, Lease, LocalQueue, Painted};
use crate::telemetry;

/// The painting thread, from outside.
pub struct Worker {
    /// Hears once that every model took a warm-up step, or why one could not.
    pub warm: oneshot::Receiver<pentimento_pipelines::Result<()>>,
    /// Hears once that the queue is closed and everything accepted is painted.
    pub done: oneshot::Receiver<()>,
}

/// Starts the painting thread. It ends when `queue` is closed and empty.
///
/// # Errors
/// Where no thread can be had.
pub fn spawn(models: Vec<Pipeline>, queue: LocalQueue) -> std::io::Result<Worker> {
    let (warm_sender, warm) = oneshot::channel();
    let (done_sender, done) = oneshot::channel();
    std::thread::Builder::new().name("painter".to_owned()).spawn(move || {
        let warmed = models.iter().try_for_each(warm_up);
        let works = warmed.is_ok();
        // Nobody listens where the server is already gone; so below.
        let _ = warm_sender.send(warmed);
        while let Some(lease) = works.then(|| queue.pull()).flatten() {
            serve(&models, lease);
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

/// Serves one lease. A panic in the engine costs that picture, not the thread.
fn serve(models: &[Pipeline], lease: Lease) {
    let job = &lease.job;
    let span =
        tracing::info_span!("picture", request_id = job.request_id, index = job.index, model = job.model);
    let _entered = span.enter();
    let Some(model) = models.iter().find(|m| m.id() == job.model) else {
        return fail(lease, "this worker does not have the job's model".to_owned());
    };
    let started = Instant::now();
    match catch_unwind(AssertUnwindSafe(|| paint(model, &lease))) {
        Ok(Ok(Some(painted))) => {
            telemetry::picture(model.id(), lease.waited, started.elapsed());
            tracing::info!(waited = ?lease.waited, painted = ?started.elapsed(), "painted");
            lease.complete(painted);
        }
        Ok(Ok(None)) => {
            telemetry::cancelled(1);
            tracing::info!(after = ?started.elapsed(), "cancelled");
        }
        Ok(Err(error)) => fail(lease, error.to_string()),
        Err(_) => fail(lease, "the engine panicked".to_owned()),
    }
}

/// Paints a lease's job, a step at a time; `None` if it is cancelled meanwhile.
fn paint(model: &Pipeline, lease: &Lease) -> Result<Option<Painted>, PaintError> {
    let mut painting = Painting::begin(model, &lease.job, None)?;
    painting.timings.queue = lease.waited;
    while !painting.is_finished() {
        if lease.is_cancelled() {
            return Ok(None);
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
        return Ok(None);
    }
    painting.finish().map(Some)
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
