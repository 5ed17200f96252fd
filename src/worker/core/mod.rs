//! The worker's state machine: what a worker holds, and what it does next.
//!
//! It has no clock, thread, lock, channel or engine. A driver takes work from it (`next_…`), has an engine do the work, and
//! tells it what came of it; a simulation does the same with work that only takes time. Who shares a step is chosen by
//! [`Batcher`], everything else by the scheduler.
//!
//! | work | taken by | what came of it is told to |
//! |---|---|---|
//! | a report, and its answer | [`WorkerCore::poll`] | [`WorkerCore::answered`] |
//! | a model to load or to drop | [`WorkerCore::next_model`] | [`WorkerCore::model_loaded`] |
//! | a stored state to load | [`WorkerCore::next_load`] | [`WorkerCore::loaded`] |
//! | prompts to encode, and a painting to begin | [`WorkerCore::next_begin`] | [`WorkerCore::begun`] |
//! | a step of a batch | [`WorkerCore::next_batch`] | [`WorkerCore::stepped`] |
//! | a preview, or a picture to decode and write | [`WorkerCore::next_finish`] | [`WorkerCore::finished`] |
//! | ends to tell the scheduler | [`WorkerCore::take_ends`] | [`WorkerCore::acknowledge`] |
//!
//! Work that waits for a stage waits in here, where a cancelled task takes it along; so the stages' queues are bounded by
//! the tasks that a worker holds. What comes of a task that was cancelled meanwhile is dropped.

mod answers;
mod measurements;
mod stages;
mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use measurements::Measurements;
pub use stages::{Batch, Begin, Finish, Load, Member, ModelWork};
use task::{Phase, Task};

use super::{Engine, Measured, Painting};
use crate::scheduler::batch::Batcher;
use crate::scheduler::messages::{AttemptId, Outcome, Poll, Report, TaskEnd};
use crate::scheduler::{ModelId, WorkerId};

/// The share of a batch's rows that is prepared beyond it, so that prompts are encoded when a place is free.
const AHEAD: u32 = 4;
/// Rows that a picture with guidance takes.
const PICTURE_ROWS: u32 = 2;

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Its name.
    pub worker: WorkerId,
    /// Rises with each process of that name.
    pub incarnation: u64,
    /// Its pool.
    pub pool: String,
    /// Rows of its largest batch.
    pub rows: u32,
    /// Models that it could load, those in memory at the start included.
    pub loadable: Vec<ModelId>,
    /// How many models fit into memory; 0: all that are loadable.
    pub model_places: u32,
    /// A report is due after so many seconds of steps, so that plans follow the price while nothing begins or ends.
    pub report_seconds: f64,
}

/// A worker's tasks, by rising attempt id.
type Tasks<E> = BTreeMap<AttemptId, Task<E>>;
/// Paintings of one key share a step.
type Key<E> = (ModelId, <<E as Engine>::Painting as Painting>::Key);

/// A preview that waits to be made.
struct Waiting<E: Engine> {
    id: AttemptId,
    number: u32,
    of: u32,
    preview: <E::Painting as Painting>::Preview,
}

/// What a worker holds. See the module's documentation.
pub struct WorkerCore<E: Engine> {
    settings: Settings,
    draining: bool,
    resident: Vec<ModelId>,
    /// Models that are to be loaded or dropped, and those that are being loaded.
    models: VecDeque<ModelWork>,
    loading: Vec<ModelId>,
    tasks: Tasks<E>,
    previews: VecDeque<Waiting<E>>,
    /// Ends that were not acknowledged, and those that were not taken yet.
    ended: Vec<TaskEnd<E::Picture>>,
    untold: Vec<TaskEnd<E::Picture>>,
    batcher: Batcher<Key<E>>,
    stepping: bool,
    sequence: u64,
    /// The last poll whose answer was taken over.
    answered: u64,
    measurements: Measurements,
    news: bool,
}

/// Which stages have work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// A model is to be loaded or dropped.
    pub model: bool,
    /// A state is to be loaded.
    pub load: bool,
    /// A painting is to begin.
    pub begin: bool,
    /// A batch can step.
    pub step: bool,
    /// A preview or a picture is to be made.
    pub finish: bool,
}

impl<E: Engine> WorkerCore<E> {
    /// A worker with `resident` models in memory.
    pub fn new(settings: Settings, resident: Vec<ModelId>) -> Self {
        Self {
            settings,
            draining: false,
            resident,
            models: VecDeque::new(),
            loading: vec![],
            tasks: BTreeMap::new(),
            previews: VecDeque::new(),
            ended: vec![],
            untold: vec![],
            batcher: Batcher::default(),
            stepping: false,
            sequence: 0,
            answered: 0,
            measurements: Measurements::default(),
            news: true,
        }
    }

    /// Takes note of what was measured before the first task; the next report has it.
    pub fn measured(&mut self, measured: Measured) {
        self.measurements.add(measured);
    }

    /// Takes nothing new from here on.
    pub fn drain(&mut self) {
        self.draining = true;
        self.news = true;
    }

    /// Tasks that are held, and ends that were not acknowledged.
    pub fn held(&self) -> usize {
        self.tasks.len() + self.ended.len()
    }

    /// Whether the scheduler should hear of what happened since the last poll: rows became free, a task ended, or steps
    /// were taken for a while. Without news a poll is due after the answer to the last one.
    pub fn has_news(&self) -> bool {
        self.news
    }

    /// Which stages have work.
    pub fn ready(&self) -> Ready {
        let mut ready =
            Ready { model: !self.models.is_empty(), finish: !self.previews.is_empty(), ..Ready::default() };
        for task in self.tasks.values() {
            match &task.phase {
                Phase::ToLoad => ready.load = true,
                Phase::ToBegin(_) => ready.begin = true,
                Phase::ToStep(_) => ready.step |= !self.stepping && !task.assignment.paused,
                Phase::ToFinish(_) => ready.finish = true,
                Phase::Loading | Phase::Beginning | Phase::InBatch { .. } | Phase::Finishing => {}
            }
        }
        ready
    }

    /// The next report. The answer to any earlier one is void from here on.
    pub fn poll(&mut self) -> Poll<E::Picture> {
        self.sequence += 1;
        self.news = false;
        let Measured { step_times, overhead_times } = self.measurements.take();
        let Settings { worker, incarnation, pool, rows, loadable, model_places, .. } = self.settings.clone();
        let report = Report {
            pool,
            rows,
            ahead_rows: (rows / AHEAD).max(PICTURE_ROWS),
            loadable,
            resident: self.resident.clone(),
            model_places,
            adapters: vec![],
            held: self.tasks.values().map(Task::held).collect(),
            ended: self.ended.clone(),
            step_times,
            overhead_times,
            draining: self.draining,
        };
        Poll { worker, incarnation, sequence: self.sequence, report }
    }

    /// Ends that the scheduler was not told yet. Each stays in the reports until it is acknowledged, here or in an answer.
    pub fn take_ends(&mut self) -> Vec<TaskEnd<E::Picture>> {
        std::mem::take(&mut self.untold)
    }

    /// The scheduler has taken note of an end.
    pub fn acknowledge(&mut self, id: &AttemptId) {
        self.ended.retain(|end| end.task != id.task || end.attempt != id.attempt);
    }

    fn end(&mut self, id: AttemptId, outcome: Outcome<E::Picture>) {
        // The rows of a finished picture were free before it was decoded.
        self.news |= !matches!(outcome, Outcome::Done { .. });
        let end = TaskEnd { task: id.task, attempt: id.attempt, outcome };
        self.ended.push(end.clone());
        self.untold.push(end);
    }
}
