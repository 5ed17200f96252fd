//! What a calibration table says something of, and what not.

use serde::{Deserialize, Serialize};

use super::Query;
use crate::entry::{Entry, PaintedPlan};

/// A guidance scale this many times as large or as small is as good as the one measured.
const GUIDANCE_TOLERANCE: f32 = 1.1;

/// How a state of another picture is gone on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// Its first steps are steered away from the source's prompt, which must be known for that.
    Steered,
    /// With the new prompt alone.
    Plain,
}

impl Resume {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Steered, Self::Plain];

    /// How an entry's states are gone on from: only a prompt that was kept can be steered away from.
    pub fn of(entry: &Entry) -> Self {
        if entry.prompt.is_some() { Self::Steered } else { Self::Plain }
    }

    /// Its name in tables, and in their files' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steered => "steered",
            Self::Plain => "plain",
        }
    }
}

/// What a table was measured for; it says nothing of anything else.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationFor {
    /// Digest of what made the embeddings.
    pub embedder: String,
    /// Whose latents the states are.
    pub latent_space: String,
    /// The noise schedule's id.
    pub noise_schedule: String,
    /// The model that painted.
    pub model: String,
    /// Digest of that model's files. Entries do not carry it: whoever loads a table for a model compares it.
    pub weights: String,
    /// Sizes of the pictures measured, width and height in pixels.
    pub sizes: Vec<(u32, u32)>,
    /// Guidance scale of both pictures' plans.
    pub guidance_scale: f32,
    /// Steps of both pictures' full plans.
    pub steps: usize,
    /// How the states were gone on from.
    pub resume: Resume,
}

impl CalibrationFor {
    /// The full plan of both pictures. With a guidance scale of 1 no step is guided.
    pub(super) fn full_plan(&self) -> PaintedPlan {
        let steps = u32::try_from(self.steps).unwrap_or(u32::MAX);
        let guided_steps = if self.guidance_scale == 1.0 { 0 } else { steps };
        PaintedPlan { option: None, steps, guided_steps }
    }

    /// Whether this says something of a request that goes on from an entry's states. A plan of fewer steps than
    /// were measured leaves fewer to paint over the source's picture: of that nothing is known. The source's own plan is
    /// compared by [`Calibration::fits`](super::Calibration::fits).
    pub fn fits(&self, query: &Query<'_>, entry: &Entry) -> bool {
        let made_for = &entry.compatibility;
        let guidance = entry.guidance_scale.max(self.guidance_scale)
            / entry.guidance_scale.min(self.guidance_scale).max(f32::MIN_POSITIVE);
        self.embedder == made_for.embedder
            && self.latent_space == made_for.latent_space
            && self.noise_schedule == made_for.noise_schedule
            && self.sizes.contains(&(made_for.width, made_for.height))
            && self.model == entry.model
            && self.model == query.model
            && guidance <= GUIDANCE_TOLERANCE
            && query.timesteps.len() >= self.steps
            && self.resume == Resume::of(entry)
    }
}
