//! A model's first steps: they page weights in and start threads, and are measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pentimento_pipelines::{NoiseSource, Pipeline, Result, Trajectory};

use super::Measured;
use crate::scheduler::ModelId;
use crate::scheduler::messages::{OverheadTime, Shape, StepTimes};

/// Nothing more is measured once it has taken so long: a start must not wait minutes for a large model.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often each number of rows is measured, where there is time.
const ROUNDS: usize = 3;

/// Takes steps of a model at its own size with more and more rows, and measures steps, encoding and decoding.
///
/// # Errors
/// The engine's, such as a latent or picture that is not finite.
pub(super) fn warm_up(model: &Pipeline, most_rows: usize) -> Result<Measured> {
    let began = Instant::now();
    let defaults = model.defaults();
    let plan = model.plan(1, defaults.guidance_scale)?;
    let rows = plan.steps().first().map_or(1, |step| step.guidance.rows());
    let start = |encoded| model.start(encoded, 0, NoiseSource::default(), defaults.size, plan.clone());
    // Once to warm up, once to measure.
    model.finish(&stepped(model, &mut [start(Arc::new(model.encode("", None, defaults.size)?))?])?)?;
    let measuring = Instant::now();
    let encoded = Arc::new(model.encode("a picture", None, defaults.size)?);
    let encode = measuring.elapsed();
    let id = ModelId::from(model.id());
    let shape = Shape { width: defaults.size.width, height: defaults.size.height };
    let mut step_times = Vec::new();
    let mut last = start(Arc::clone(&encoded))?;
    // Round by round, so that a moment in which the machine was slow does not speak for a number of rows.
    'rounds: for _ in 0..ROUNDS {
        let mut pictures = 1;
        while pictures * rows <= most_rows.max(rows) {
            let mut batch: Vec<Trajectory> =
                (0..pictures).map(|_| start(Arc::clone(&encoded))).collect::<Result<_>>()?;
            let stepping = Instant::now();
            last = stepped(model, &mut batch)?;
            step_times.push(StepTimes {
                model: id.clone(),
                denoiser: String::new(),
                shape,
                rows: (pictures * rows) as u32,
                steps: 1,
                seconds: stepping.elapsed().as_secs_f64(),
            });
            if measuring.elapsed() > PATIENCE {
                break 'rounds;
            }
            pictures *= 2;
        }
    }
    let finishing = Instant::now();
    model.finish(&last)?;
    let seconds = (encode + finishing.elapsed()).as_secs_f64();
    tracing::info!(model = model.id(), seconds = began.elapsed().as_secs_f64(), ?step_times, "warm");
    Ok(Measured { step_times, overhead_times: vec![OverheadTime { model: id, shape, seconds }] })
}

/// All take a step; returns the first of them.
fn stepped(model: &Pipeline, batch: &mut [Trajectory]) -> Result<Trajectory> {
    let mut all: Vec<&mut Trajectory> = batch.iter_mut().collect();
    model.step(&mut all)?;
    Ok(batch[0].clone())
}
