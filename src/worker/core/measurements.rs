//! What steps and pictures took since the last report.

use std::collections::BTreeMap;

use crate::scheduler::ModelId;
use crate::scheduler::messages::{OverheadTime, Shape, StepTimes};
use crate::worker::Measured;

/// The most kinds of each that a report carries; further ones are dropped. The scheduler reads no more.
const MOST: usize = 64;

/// How often, and how many seconds in all.
type Sum = (u32, f64);

/// Sums by kind, so that a report stays small however many steps it is about.
#[derive(Debug, Default)]
pub(super) struct Measurements {
    steps: BTreeMap<(ModelId, Shape, u32), Sum>,
    overheads: BTreeMap<(ModelId, Shape), Sum>,
    /// Seconds of steps.
    pub step_seconds: f64,
}

impl Measurements {
    /// Adds what was measured before the first task.
    pub fn add(&mut self, measured: Measured) {
        for StepTimes { model, denoiser: _, shape, rows, steps, seconds } in measured.step_times {
            add(&mut self.steps, (model, shape, rows), (steps, seconds * f64::from(steps)));
        }
        for OverheadTime { model, shape, seconds } in measured.overhead_times {
            add(&mut self.overheads, (model, shape), (1, seconds));
        }
    }

    /// A step was taken.
    pub fn step(&mut self, model: ModelId, shape: Shape, rows: u32, seconds: f64) {
        add(&mut self.steps, (model, shape, rows), (1, seconds));
    }

    /// A picture was finished that took so many seconds beside its steps.
    pub fn picture(&mut self, model: ModelId, shape: Shape, seconds: f64) {
        add(&mut self.overheads, (model, shape), (1, seconds));
    }

    /// What is to be reported. It is forgotten: if the report is lost, so are its times.
    pub fn take(&mut self) -> Measured {
        self.step_seconds = 0.0;
        let steps = std::mem::take(&mut self.steps).into_iter();
        let step_times = steps.map(|((model, shape, rows), (steps, seconds))| StepTimes {
            model,
            denoiser: String::new(),
            shape,
            rows,
            steps,
            seconds: seconds / f64::from(steps.max(1)),
        });
        let overheads = std::mem::take(&mut self.overheads).into_iter();
        let overhead_times = overheads.map(|((model, shape), (count, seconds))| OverheadTime {
            model,
            shape,
            seconds: seconds / f64::from(count.max(1)),
        });
        Measured { step_times: step_times.collect(), overhead_times: overhead_times.collect() }
    }
}

fn add<K: Ord>(sums: &mut BTreeMap<K, Sum>, key: K, (count, seconds): Sum) {
    if sums.len() < MOST || sums.contains_key(&key) {
        let sum = sums.entry(key).or_default();
        *sum = (sum.0.saturating_add(count), sum.1 + seconds);
    }
}
