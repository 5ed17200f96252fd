//! How long steps, encoding and decoding take: measured when the worker starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pentimento_pipelines::{NoiseSource, Pipeline, Result, Trajectory};

use crate::plan::Planner;

/// No more is measured once it has taken so long: a start must not wait minutes for a large model's profile.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often each number of rows is measured, where there is time.
const ROUNDS: usize = 3;

/// Takes steps of a model at its own size with more and more rows, which warms it up too: the first request finds weights
/// paged in and threads started. Tells the planner what it took.
pub fn profile(model: &Pipeline, planner: &Planner) -> Result<()> {
    let begun = Instant::now();
    let defaults = model.defaults();
    let plan = model.plan(1, defaults.guidance_scale)?;
    let rows = plan.steps().first().map_or(1, |step| step.guidance.rows());
    let start = |encoded| model.start(encoded, 0, NoiseSource::default(), defaults.size, plan.clone());
    // Once to warm up, once to measure.
    model.finish(&stepped(model, &mut [start(Arc::new(model.encode("", None, defaults.size)?))?])?)?;
    let started = Instant::now();
    let encoded = Arc::new(model.encode("a picture", None, defaults.size)?);
    let encode = started.elapsed();
    let mut samples = Vec::new();
    let mut last = start(encoded.clone())?;
    // Round by round, so that a moment in which the machine was slow does not speak for a number of rows.
    'rounds: for _ in 0..ROUNDS {
        let mut pictures = 1;
        while pictures * rows <= planner.max_rows().max(rows) {
            let mut batch: Vec<Trajectory> =
                (0..pictures).map(|_| start(encoded.clone())).collect::<Result<_>>()?;
            let stepping = Instant::now();
            last = stepped(model, &mut batch)?;
            samples.push((pictures * rows, stepping.elapsed().as_secs_f64()));
            if started.elapsed() > PATIENCE {
                break 'rounds;
            }
            pictures *= 2;
        }
    }
    let finishing = Instant::now();
    model.finish(&last)?;
    planner.profiled(model.id(), defaults.size, &samples, encode, finishing.elapsed());
    tracing::info!(model = model.id(), seconds = begun.elapsed().as_secs_f64(), ?samples, "profiled");
    Ok(())
}

/// All take a step; the first of them.
fn stepped(model: &Pipeline, batch: &mut [Trajectory]) -> Result<Trajectory> {
    let mut all: Vec<&mut Trajectory> = batch.iter_mut().collect();
    model.step(&mut all)?;
    Ok(batch[0].clone())
}
