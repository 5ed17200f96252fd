//! Takes jobs from the queue and paints them, or shows what is stored, on threads of their own: never on an async one.

mod aside;
mod batch;
mod encode;
mod finish;
mod in_hand;
mod painter;
mod painting;
mod profile;
mod report;
mod show;
mod stored;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use pentimento_pipelines::Pipeline;
use tokio::sync::oneshot;

pub use encode::{EncodeError, parameters};
pub use painting::{Beginning, PaintError, Painting, Prompts, step_together};
pub use stored::{Coming, Keeping, StateError, Stored};

use crate::plan::Planner;
use crate::queue::{Job, LocalQueue, Start};
use finish::Finisher;
use painter::Painter;
use show::Shower;

/// The threads, from outside.
pub struct Worker {
    /// Hears once that every model took its first steps, or why one could not.
    pub warm: oneshot::Receiver<pentimento_pipelines::Result<()>>,
    /// Hears once that the queue is closed and everything accepted is painted.
    pub done: oneshot::Receiver<()>,
}

/// Starts the painting thread, the one that shows stored pictures and, where steps leave a core free, those that encode
/// prompts and finish pictures meanwhile. They end when `queue` is closed and empty. Without `stored` every picture starts
/// from noise.
///
/// # Errors
/// Where no thread can be had.
pub fn spawn(
    models: Vec<Pipeline>,
    queue: LocalQueue,
    stored: Option<Stored>,
    planner: Arc<Planner>,
) -> std::io::Result<Worker> {
    let (warm_sender, warm) = oneshot::channel();
    let (done_sender, done) = oneshot::channel();
    // Steps have the threads of rayon's pool.
    let free = std::thread::available_parallelism()?.get() > rayon::current_num_threads();
    let finisher = Finisher { planner: Arc::clone(&planner), stored: stored.map(Arc::new) };
    let showing = Shower::start(models.clone(), queue.clone(), finisher.clone())?;
    let painter = Painter::new(models.clone(), queue, finisher, free)?;
    planner.set_works_aside(free);
    std::thread::Builder::new().name("painter".to_owned()).spawn(move || {
        let warmed = models.iter().try_for_each(|model| profile::profile(model, &planner));
        let works = warmed.is_ok();
        // Nobody listens where the server is already gone; so below.
        let _ = warm_sender.send(warmed);
        if works {
            let _ = showing.begin.send(());
            painter.run();
            if showing.thread.join().is_err() {
                tracing::error!("the thread that shows stored pictures panicked");
            }
        }
        let _ = done_sender.send(());
    })?;
    Ok(Worker { warm, done })
}

/// Begins a job with its stored state or, where that is not to be had or does not fit, with noise; `None` where the job
/// does not want that. Waits for the state.
///
/// # Errors
/// The engine's.
pub fn begin(
    model: &Pipeline,
    job: &Arc<Job>,
    stored: Option<&Stored>,
) -> Result<Option<Painting>, PaintError> {
    let started = Instant::now();
    let steps = job.plan.steps().len();
    if let (Some(stored), Some(reused)) = (stored, job.start.reused()) {
        // Whatever the cache does, the picture is painted.
        let state = catch_unwind(AssertUnwindSafe(|| stored.fetch(reused)));
        let load = started.elapsed();
        let state = state
            .map_or_else(|_| Err("the cache panicked".to_owned()), |state| state.map_err(|e| e.to_string()));
        let begun = state.and_then(|state| {
            let beginning = Beginning::State(reused, &state);
            Painting::begin(model, job, steps, &beginning, None).map_err(|error| error.to_string())
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
    let mut painting = Painting::begin(model, job, steps, &Beginning::Noise, None)?;
    painting.timings.load = load;
    Ok(Some(painting))
}
