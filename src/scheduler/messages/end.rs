//! How an attempt ended, and what the listeners are told.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Checkpoint;
use crate::scheduler::{OptionId, RequestId, TaskId};

/// The end of an attempt at a task. Sent again, it changes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "Picture: Deserialize<'de>"))]
pub struct TaskEnd<Picture> {
    /// The task.
    pub task: TaskId,
    /// Which attempt at it.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome<Picture>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome<Picture> {
    /// The picture is painted and stored. It counts from any attempt.
    Done {
        /// The option whose steps it took last.
        option: OptionId,
        /// Machine seconds that its rows took, if the worker knows.
        #[serde(default)]
        machine_seconds: Option<f64>,
        /// The picture; opaque to the scheduler.
        picture: Picture,
    },
    /// The picture cannot be painted. It counts from the current attempt alone.
    Failed {
        /// Why, for the log.
        why: String,
    },
    /// The stored state that the picture had to start from cannot be had. It counts from the current attempt alone.
    StateGone,
    /// The worker gives the task back, to be painted elsewhere. It counts from the current attempt alone.
    HandedBack {
        /// A checkpoint to go on from.
        #[serde(default)]
        checkpoint: Option<Checkpoint>,
    },
    /// An outcome of a later version: counted as handed back, so that the task is not lost.
    #[serde(other)]
    Unknown,
}

/// The answer to an end: the worker may forget it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct EndAnswer {
    /// Whether the end decided anything.
    pub counted: bool,
    /// The picture's expected quality, 0 to 1, over all plans that it had, where the end is a picture that counted.
    #[serde(default)]
    pub expected_quality: Option<f64>,
}

/// The end of one picture of a request. Each is told once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "Picture: Deserialize<'de>"))]
pub struct Notice<Picture> {
    /// The request.
    pub request: RequestId,
    /// Which of its pictures, from 0.
    pub index: u32,
    /// The task that painted it.
    pub task: TaskId,
    /// What became of it.
    pub result: PictureResult<Picture>,
}

/// What became of an accepted picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PictureResult<Picture> {
    /// It is painted.
    Done {
        /// The option whose steps it took last.
        option: OptionId,
        /// Its expected quality, 0 to 1, over all plans that it had.
        expected_quality: f64,
        /// The picture; opaque to the scheduler.
        picture: Picture,
    },
    /// It is not.
    Failed {
        /// Why.
        why: Failure,
    },
}

/// Why an accepted picture was not painted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Failure {
    /// The worker failed; the reason is for the log.
    #[error("{why}")]
    Engine {
        /// What the worker said.
        why: String,
    },
    /// The stored state that the picture had to start from cannot be had.
    #[error("the stored state that the picture had to start from is gone")]
    StateGone,
    /// The workers that had it were lost, several times.
    #[error("{losses} workers were lost while they painted it")]
    WorkersLost {
        /// How many.
        losses: u32,
    },
    /// The scheduler was stopped.
    #[error("the scheduler was stopped before the picture was finished")]
    Stopped,
}
