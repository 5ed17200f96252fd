//! From the gateway: pictures to be painted, and requests that are no longer wanted.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::scheduler::menu::MenuOption;
use crate::scheduler::{ClientId, ModelId, OptionId, RequestId, TaskId};

/// A request's pictures. All are accepted or none; sent again under the same name, it gets the same answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submit<Spec> {
    /// The request.
    pub request: RequestId,
    /// The client whose turn it uses.
    pub client: ClientId,
    /// Its pictures, in their order.
    pub tasks: Vec<NewTask<Spec>>,
}

/// One picture to be painted, with the facts that the scheduler needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewTask<Spec> {
    /// All that a worker needs; opaque to the scheduler.
    pub spec: Spec,
    /// The model that paints.
    pub model: ModelId,
    /// The picture's size.
    pub shape: Shape,
    /// What the picture is called. Pictures of one name are painted once.
    pub picture: PictureId,
    /// What was promised.
    pub terms: Terms,
    /// Which options it may get.
    #[serde(default)]
    pub menu: MenuChoice,
    /// A stored state of another picture that it may start from; `None`: noise.
    #[serde(default)]
    pub start: Option<StoredStart>,
    /// Early looks that the request wants of the picture, 0 to [`MOST_PREVIEWS`], evenly spread over its steps.
    #[serde(default)]
    pub previews: u32,
}

/// The most previews of a picture.
pub const MOST_PREVIEWS: u32 = 3;

/// A picture's size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

/// A picture's identity: the hash of its whole specification, within a scope.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PictureId {
    /// The tenant or the shared namespace within which equal pictures are painted once.
    pub scope: String,
    /// The hash of the specification.
    pub hash: [u8; 32],
}

/// What a picture was promised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// The tier, which names the worth of quality in the scheduler's configuration.
    #[serde(default)]
    pub tier: String,
    /// The least quality, 0 to 1 relative to the full plan.
    pub floor: f64,
    /// The quality beyond which more is worth nothing, 0 to 1.
    #[serde(default = "full")]
    pub best: f64,
    /// Seconds from `submit` to the finished picture.
    pub deadline_seconds: f64,
    /// Whether the client named the deadline itself. If even an idle machine cannot keep it, a firm deadline is refused;
    /// one that is not firm is accepted, and the picture is late.
    #[serde(default)]
    pub firm: bool,
}

fn full() -> f64 {
    1.0
}

/// The options that a picture may get.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MenuChoice {
    /// All of its model's menu.
    #[default]
    Whole,
    /// These of its model's menu: the client pinned the sampler, or a number of steps that the menu has.
    Only {
        /// Their names.
        options: Vec<OptionId>,
    },
    /// One that is not in the menu: the client pinned a number of steps.
    Own {
        /// The option, with its cost and expected quality.
        option: Box<MenuOption>,
    },
}

/// A stored state that a picture may start from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StoredStart {
    /// The state's noise level: 1 is pure noise, 0 the finished picture.
    pub noise_level: f64,
    /// The quality that starting from it is expected to cost, 0 to 1. It counts against the floor, and not against the state:
    /// the reuse policy has accepted it.
    pub loss: f64,
    /// The fewest steps, of a whole plan, that paint over what the other picture's prompt said. Options of fewer steps
    /// start from noise.
    #[serde(default)]
    pub least_steps: u32,
    /// Whether the picture must start from it. Otherwise it may start from noise, if that is worth more.
    #[serde(default)]
    pub required: bool,
}

/// The answer to [`Submit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SubmitAnswer {
    /// All pictures are accepted.
    Accepted {
        /// The task that paints each picture, in their order. Joined pictures share one.
        tasks: Vec<TaskId>,
    },
    /// There is no room now.
    Later {
        /// Predicted seconds until there is. No place is kept.
        after_seconds: f64,
        /// What is full.
        why: Busy,
    },
    /// No time is better.
    Never {
        /// Why.
        why: Refusal,
    },
}

/// Why a request is refused for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Error)]
#[serde(rename_all = "snake_case")]
pub enum Busy {
    /// The bound of pictures in all.
    #[error("too many pictures are waiting")]
    Full,
    /// The bound of one client's pictures.
    #[error("too many of your pictures are waiting")]
    ClientFull,
    /// The picture would be late, or make others late.
    #[error("the machine is too busy to finish in time")]
    Overloaded,
    /// The scheduler is shutting down.
    #[error("the server is shutting down")]
    Closing,
}

/// Why a request is refused for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Refusal {
    /// The request has no picture, or too many.
    #[error("a request has 1 to {most} pictures")]
    Pictures {
        /// The most pictures.
        most: usize,
    },
    /// No menu is known for the model.
    #[error("model {model:?} is unknown")]
    Model {
        /// The model.
        model: ModelId,
    },
    /// The options that were asked for cannot be had.
    #[error("no such plan: {reason}")]
    Menu {
        /// What is wrong.
        reason: String,
    },
    /// A term is out of its bounds.
    #[error("`{field}` is out of bounds")]
    Terms {
        /// The field.
        field: String,
    },
    /// Even an idle machine needs more time than the client's deadline leaves.
    #[error("the deadline is nearer than the fewest steps take")]
    Deadline,
}

/// A request that is no longer wanted. Sent again, it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The request.
    pub request: RequestId,
}
