//! What a scheduler has to do, for operators and metrics.

use serde::Serialize;

use super::Core;
use super::latency::Kind;
use crate::scheduler::ModelId;
use crate::scheduler::messages::Shape;

/// What a scheduler has to do.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Load {
    /// Tasks that wait or run.
    pub tasks: usize,
    /// Tasks that workers have.
    pub running: usize,
    /// Tasks that workers have and are to step no further for now.
    pub paused: usize,
    /// Pictures of requests that have not ended. Several may be one task.
    pub pictures: usize,
    /// Clients with tasks.
    pub clients: usize,
    /// Workers that poll.
    pub workers: usize,
    /// Buckets that prices are computed from.
    pub buckets: usize,
    /// Sets of interchangeable workers.
    pub sets: Vec<SetLoad>,
}

/// What a set of interchangeable workers has to do.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SetLoad {
    /// Models that its workers can load.
    pub models: Vec<ModelId>,
    /// Its workers.
    pub workers: usize,
    /// The published price: worth per machine second.
    pub price: f64,
    /// Seconds until its part of all tasks is done at their floors.
    pub backlog_seconds: f64,
    /// Predicted times of steps, of the kinds that were seen: alone with guidance, and in full batches.
    pub step_times: Vec<StepTime>,
}

/// What a step is predicted to take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTime {
    /// The model.
    pub model: ModelId,
    /// The pictures' size.
    pub shape: Shape,
    /// Rows of the batch.
    pub rows: u32,
    /// Seconds.
    pub seconds: f64,
}

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// What there is to do. Costs as much as there are workers and sets.
    pub fn load(&self) -> Load {
        let set = |set: &super::workers::Set| {
            let seconds = |model: &ModelId| {
                self.workers.share(model, set) * self.demand.of(model).map_or(0.0, |of| of.seconds)
            };
            let all: f64 = set.models.iter().map(seconds).sum();
            let full = set.full_rows().round().max(1.0) as u32;
            let rows = if full > 2 { vec![2, full] } else { vec![full] };
            let time = |kind: Kind<'_>, rows: u32| {
                let seconds = set.latency.step(kind, f64::from(rows))?;
                Some(StepTime { model: kind.model.clone(), shape: kind.shape, rows, seconds })
            };
            let kinds = set.latency.kinds();
            SetLoad {
                step_times: kinds
                    .flat_map(|kind| rows.iter().filter_map(move |rows| time(kind, *rows)))
                    .collect(),
                models: set.models.clone(),
                workers: set.workers,
                price: set.price.now(),
                backlog_seconds: all / set.workers.max(1) as f64,
            }
        };
        Load {
            tasks: self.tasks.len(),
            running: self.workers.tasks(),
            paused: self.paused.len(),
            pictures: self.requests.open(),
            clients: self.order.active(),
            workers: self.workers.len(),
            buckets: self.demand.buckets(),
            sets: self.workers.sets().map(|(_, of)| set(of)).collect(),
        }
    }

    /// The last published price of the workers that serve a model, worth per machine second: the lowest of their sets.
    /// `None` before there is one. What is answered without being painted compares itself with it.
    pub fn price(&self, model: &ModelId) -> Option<f64> {
        self.workers.serving(model).map(|(_, set)| set.price.now()).min_by(f64::total_cmp)
    }
}
