//! Between worker and scheduler: what a worker has, and what it is to have.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{Shape, TaskEnd};
use crate::scheduler::{ModelId, OptionId, TaskId, WorkerId};

/// A worker's report, which asks for the next answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Poll<Picture> {
    /// The worker.
    pub worker: WorkerId,
    /// Rises with each process of that name.
    pub incarnation: u64,
    /// Rises with each poll of that process. Polls that arrive after a newer one are not answered.
    pub sequence: u64,
    /// What the worker has.
    pub report: Report<Picture>,
}

/// What a worker has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, bound(deserialize = "Picture: Deserialize<'de>"))]
pub struct Report<Picture> {
    /// The pool that the worker belongs to. Workers of one pool that can load the same models are interchangeable.
    pub pool: String,
    /// Rows of the largest batch that the worker steps. Rows that nothing it holds takes are free.
    pub rows: u32,
    /// Rows that the worker wants beyond these, so that prompts are encoded before a place is free.
    pub ahead_rows: u32,
    /// Models that the worker could load, the resident ones included.
    pub loadable: Vec<ModelId>,
    /// Models in memory.
    pub resident: Vec<ModelId>,
    /// How many models fit into memory; 0: all that are loadable.
    pub model_places: u32,
    /// Adapters in memory.
    pub adapters: Vec<String>,
    /// Tasks that the worker holds.
    pub held: Vec<Held>,
    /// Tasks that ended and whose end was not acknowledged yet.
    pub ended: Vec<TaskEnd<Picture>>,
    /// What steps took since the last report.
    pub step_times: Vec<StepTimes>,
    /// What a picture's time beside its steps was since the last report.
    pub overhead_times: Vec<OverheadTime>,
    /// Whether the worker shuts down: it gets nothing new.
    pub draining: bool,
}

impl<Picture> Default for Report<Picture> {
    fn default() -> Self {
        Self {
            pool: String::new(),
            rows: 0,
            ahead_rows: 0,
            loadable: vec![],
            resident: vec![],
            model_places: 0,
            adapters: vec![],
            held: vec![],
            ended: vec![],
            step_times: vec![],
            overhead_times: vec![],
            draining: false,
        }
    }
}

/// A task that a worker holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The task.
    pub task: TaskId,
    /// Which attempt at it.
    pub attempt: u32,
    /// The option whose steps it takes.
    pub option: OptionId,
    /// How far it is.
    #[serde(default)]
    pub place: Place,
    /// The rank that the worker knows.
    pub rank: Rank,
    /// Whether the worker knows it as paused.
    #[serde(default)]
    pub paused: bool,
    /// How many previews the worker makes of it.
    #[serde(default)]
    pub previews: u32,
    /// The last checkpoint that is stored.
    #[serde(default)]
    pub checkpoint: Option<Checkpoint>,
}

/// How far a held task is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Place {
    /// Its steps are being taken.
    Stepping {
        /// The noise level reached: 1 is pure noise, 0 the finished picture.
        noise_level: f64,
    },
    /// Its steps are done: it is decoded, encoded or uploaded, and takes no rows.
    Finishing,
    /// Its prompt is encoded, or its state is on its way.
    #[default]
    #[serde(other)]
    Preparing,
}

/// A stored state of a picture's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its noise level.
    pub noise_level: f64,
    /// Where it is stored.
    pub key: String,
}

/// A task's place in the order: the smallest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rank {
    /// Whether the task cannot be in time any more, and lets those go first that can.
    #[serde(default)]
    pub yields: bool,
    /// The machine seconds that its client had used when its turn came (start-time fair queueing).
    pub tag: f64,
}

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        self.yields.cmp(&other.yields).then(self.tag.total_cmp(&other.tag))
    }
}

/// What steps of one kind took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTimes {
    /// The model.
    pub model: ModelId,
    /// The denoiser.
    #[serde(default)]
    pub denoiser: String,
    /// The pictures' size.
    pub shape: Shape,
    /// Rows of the batch.
    pub rows: u32,
    /// How many steps were taken.
    pub steps: u32,
    /// Mean seconds of one.
    pub seconds: f64,
}

/// A picture's time beside its steps: encoding, decoding, its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverheadTime {
    /// The model.
    pub model: ModelId,
    /// The picture's size.
    pub shape: Shape,
    /// Mean seconds.
    pub seconds: f64,
}

/// What the scheduler wants of a worker, as the difference to its report. Workers ignore answers to any but their
/// newest poll, and assignments of what they hold or have ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "Spec: Deserialize<'de>"))]
pub struct PollAnswer<Spec> {
    /// The poll's sequence.
    pub sequence: u64,
    /// Tasks to begin.
    #[serde(default)]
    pub assignments: Vec<Assignment<Spec>>,
    /// What is to change.
    #[serde(default)]
    pub changes: Vec<Change>,
    /// Ends that need not be reported again.
    #[serde(default)]
    pub acknowledged: Vec<AttemptId>,
}

impl<Spec> PollAnswer<Spec> {
    /// An answer that changes nothing.
    pub fn go_on(sequence: u64) -> Self {
        Self { sequence, assignments: vec![], changes: vec![], acknowledged: vec![] }
    }

    /// Whether the answer changes nothing.
    pub fn is_empty(&self) -> bool {
        self.assignments.is_empty() && self.changes.is_empty() && self.acknowledged.is_empty()
    }
}

/// A task to begin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment<Spec> {
    /// The task.
    pub task: TaskId,
    /// Which attempt at it, from 1.
    pub attempt: u32,
    /// All that the worker needs.
    pub spec: Spec,
    /// The model that paints.
    pub model: ModelId,
    /// The option whose steps it takes.
    pub option: OptionId,
    /// Where it begins.
    pub beginning: Beginning,
    /// Its place in the order.
    pub rank: Rank,
    /// Whether it waits at the worker for a place.
    #[serde(default)]
    pub paused: bool,
    /// How many previews are wanted of it: the most that one of its listeners asked for. Preview n of k, from 1, is made
    /// after step ceil(n * steps / (k + 1)).
    #[serde(default)]
    pub previews: u32,
    /// Seconds to its deadline; negative after it.
    pub deadline_seconds: f64,
}

/// Where an attempt begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Beginning {
    /// With the seed's noise.
    Noise,
    /// With the stored state that its specification names.
    State,
    /// With a checkpoint of an earlier attempt.
    Checkpoint {
        /// Where it is stored.
        key: String,
    },
}

/// What is to change at a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// A held task takes the steps of another option from its own noise level on.
    Plan {
        /// The task.
        task: TaskId,
        /// Which attempt at it.
        attempt: u32,
        /// The option.
        option: OptionId,
    },
    /// A held task has another place in the order.
    Rank {
        /// The task.
        task: TaskId,
        /// Which attempt at it.
        attempt: u32,
        /// Its place.
        rank: Rank,
    },
    /// A held task takes no more steps, or goes on.
    Pause {
        /// The task.
        task: TaskId,
        /// Which attempt at it.
        attempt: u32,
        /// Whether it takes no more steps.
        paused: bool,
    },
    /// Another number of previews is wanted of a held task, of those that are still ahead of it.
    Previews {
        /// The task.
        task: TaskId,
        /// Which attempt at it.
        attempt: u32,
        /// How many, over all its steps.
        previews: u32,
    },
    /// An attempt is not wanted any more; it is dropped without an end.
    Cancel {
        /// The task.
        task: TaskId,
        /// Which attempt at it.
        attempt: u32,
    },
    /// A model is to be loaded.
    Load {
        /// The model.
        model: ModelId,
    },
    /// A model is to leave the memory.
    Unload {
        /// The model.
        model: ModelId,
    },
    /// A change of a later version, which is skipped.
    #[serde(other)]
    Unknown,
}

/// One attempt at a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The task.
    pub task: TaskId,
    /// Which attempt at it.
    pub attempt: u32,
}
