//! What a calibration table was measured for.

use serde::{Deserialize, Serialize};

use super::Query;
use crate::entry::{Entry, PaintedPlan};

/// The largest ratio between the measured guidance scale and one that the table is used for.
const GUIDANCE_TOLERANCE: f32 = 1.1;

/// How another picture's state is resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// The first steps are steered away from the source's prompt, which must be stored.
    Steered,
    /// All steps use the new prompt alone.
    Plain,
}

impl Resume {
    /// All variants.
    pub const ALL: [Self; 2] = [Self::Steered, Self::Plain];

    /// How an entry's states are resumed. Steering needs the entry's prompt.
    pub fn of(entry: &Entry) -> Self {
        if entry.prompt.is_some() { Self::Steered } else { Self::Plain }
    }

    /// The name in tables and in their files' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steered => "steered",
            Self::Plain => "plain",
        }
    }
}

/// What a calibration table was measured for. The table is used for nothing else.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationFor {
    /// The digest of the network that made the embeddings.
    pub embedder: String,
    /// The id of the states' latent space.
    pub latent_space: String,
    /// The noise schedule's id.
    pub noise_schedule: String,
    /// The model that painted.
    pub model: String,
    /// The digest of that model's files. Entries do not have it, so it must be checked when a table is loaded.
    pub weights: String,
    /// The sizes of the measured pictures, width and height in pixels.
    pub sizes: Vec<(u32, u32)>,
    /// The guidance scale of both pictures' plans.
    pub guidance_scale: f32,
    /// The steps of both pictures' full plans.
    pub steps: usize,
    /// How the states were resumed.
    pub resume: Resume,
}

impl CalibrationFor {
    /// The full plan of both pictures. At a guidance scale of 1 no step is guided.
    pub(super) fn full_plan(&self) -> PaintedPlan {
        let steps = u32::try_from(self.steps).unwrap_or(u32::MAX);
        let guided_steps = if self.guidance_scale == 1.0 { 0 } else { steps };
        PaintedPlan { option: None, steps, guided_steps }
    }

    /// Whether the table applies to a request that resumes an entry's states. It does not apply to plans of fewer steps
    /// than were measured, which leave fewer steps to paint over the source's picture. The source's own plan is checked by
    /// [`Calibration::fits`](super::Calibration::fits).
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
