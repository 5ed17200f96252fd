//! What a worker needs to paint a picture.

use pentimento_cache::{EntryId, NewPicture};
use serde::{Deserialize, Serialize};

use super::PictureSpec;

/// All that a worker needs to paint a picture, but the plan: that is the scheduler's.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct PaintTask {
    /// The request that asked for it first, as logs know it.
    pub request: String,
    /// What to paint.
    pub spec: PictureSpec,
    /// A stored state of another picture that it may start from. The scheduler says whether it does.
    #[serde(default)]
    pub start: Option<StartState>,
    /// What the cache keeps of it; `None`: nothing.
    #[serde(default)]
    pub keep: Option<Box<KeepOrder>>,
}

/// A stored state of another picture.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct StartState {
    /// The entry in the cache.
    pub entry: EntryId,
    /// The state's timestep.
    pub timestep: f64,
    /// Cosine of both prompts' embeddings.
    pub similarity: f32,
    /// The entry's prompt, to steer away from; `None` where it is not stored.
    #[serde(default)]
    pub source_prompt: Option<String>,
    /// Whether the resume takes noise of its own seed (DDIM with eta 1). Otherwise it is the same picture for every seed.
    #[serde(default)]
    pub varied: bool,
    /// Expected loss of quality, 0 to 1; kept with the picture.
    #[serde(default)]
    pub loss: f32,
    /// Whether the picture must start from it: where it cannot be had, the picture fails and is not painted from noise.
    #[serde(default)]
    pub required: bool,
}

/// What the cache is to keep of a picture.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct KeepOrder {
    /// What is known before it is painted. The worker adds plan, expected quality, file and states.
    pub picture: NewPicture,
    /// Shares of the plan, 0 to 1, after which states are kept.
    pub shares: Vec<f32>,
}
