//! Step plans: a step plan is the explicit list of a trajectory's remaining steps.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::schedule::{FINISHED, NoiseSchedule};

/// The most steps of a plan. DDIM gains nothing beyond the number of training timesteps.
pub const MAX_STEPS: usize = 1000;

/// The denoiser of a step: 0 is the model's own, other numbers are its variants. Only 0 is implemented.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Denoiser(pub u8);

/// Classifier-free guidance of one step (Ho and Salimans, 2022).
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Guidance {
    /// The guidance scale: how far the prediction goes from the negative prompt's towards and beyond the prompt's. At 1 and
    /// below the negative prompt is not used, and the step takes one row less.
    pub scale: f32,
    /// How the prediction is steered.
    #[serde(default)]
    pub steering: Steering,
}

/// The largest guidance scale of a plan.
const MAX_GUIDANCE: f32 = 100.0;

/// The largest [`Steering`] strength of a plan. Pictures already break at much smaller strengths.
pub const MAX_STRENGTH: f32 = 8.0;

/// How a step's prediction is steered.
///
/// The first steps after a resume may be steered away from the *source*, which is the prompt of the picture whose state was
/// resumed ([`crate::Conditioning::with_source`]). This helps to paint over what the prompts differ in. λ is the strength, e a
/// prompt's token states and v the denoiser's prediction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Steering {
    /// By prompt and negative prompt only.
    #[default]
    Prompts,
    /// The prompt's row attends to e(prompt) + λ·(e(prompt) − e(source)). This takes no additional row.
    Extrapolated {
        /// λ, 0 to [`MAX_STRENGTH`].
        strength: f32,
    },
    /// λ·(v(prompt) − v(source)) is added to the guided prediction. This takes one additional row, the source's.
    Contrastive {
        /// λ, 0 to [`MAX_STRENGTH`].
        strength: f32,
    },
}

impl Steering {
    /// λ; 0 without steering.
    fn strength(self) -> f32 {
        match self {
            Self::Prompts => 0.0,
            Self::Extrapolated { strength } | Self::Contrastive { strength } => strength,
        }
    }
}

/// How the first steps after a resume are steered.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct ResumeSteering {
    /// The share of the full plan's steps that are steered, from 0 to 1.
    pub share: f32,
    /// How these steps are steered.
    pub steering: Steering,
    /// The factor of their guidance scale.
    pub guidance_factor: f32,
}

impl ResumeSteering {
    /// The setting that was best for the storybook model in docs/benchmarks/steering.md: 8 of 50 steps, without additional
    /// rows.
    pub const DEFAULT: Self =
        Self { share: 0.16, steering: Steering::Extrapolated { strength: 1.0 }, guidance_factor: 1.5 };

    /// The remaining steps of a full plan for another picture's state at `timestep`, with the first ones steered.
    ///
    /// # Errors
    /// Those of [`StepPlan::steered`].
    pub fn plan(&self, full: &StepPlan, timestep: f64) -> Result<StepPlan> {
        full.after(timestep).steered(self.steps(full.steps.len()), self.steering, self.guidance_factor)
    }

    /// The number of steered steps for a full plan of `full` steps.
    pub fn steps(&self, full: usize) -> usize {
        (self.share * full as f32).round() as usize
    }
}

impl Guidance {
    /// Whether the negative prompt is used and takes a row.
    pub fn has_negative(self) -> bool {
        self.scale > 1.0
    }

    /// The rows of a batch that this guidance takes, from 1 to 3.
    pub fn rows(self) -> usize {
        let source = matches!(self.steering, Steering::Contrastive { .. });
        1 + usize::from(self.has_negative()) + usize::from(source)
    }
}

/// One step, from its timestep to the next step's.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Step {
    /// The timestep at which the denoiser predicts, in training timesteps.
    pub timestep: f64,
    /// The denoiser.
    #[serde(default)]
    pub denoiser: Denoiser,
    /// The step's guidance.
    pub guidance: Guidance,
    /// The share of the tokens merged in self-attention (Bolya and Hoffman, 2023). Only 0 is implemented.
    #[serde(default)]
    pub token_merging: f32,
    /// Whether the step reuses the deep features of the step before (DeepCache, Ma et al., 2023). Only `false` is implemented.
    #[serde(default)]
    pub reuse_deep_features: bool,
}

/// The remaining steps, noisiest first, and the sampler's η.
///
/// Timesteps are finite, at least 0 and strictly decreasing; this is also checked when a plan is read from JSON. The plan of a
/// finished trajectory has no steps.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "UncheckedPlan")]
pub struct StepPlan {
    steps: Vec<Step>,
    eta: f32,
}

#[derive(Deserialize)]
struct UncheckedPlan {
    steps: Vec<Step>,
    #[serde(default)]
    eta: f32,
}

impl TryFrom<UncheckedPlan> for StepPlan {
    type Error = Error;
    fn try_from(plan: UncheckedPlan) -> Result<Self> {
        Self::new(plan.steps, plan.eta)
    }
}

impl StepPlan {
    /// A plan of explicit steps. `eta` is DDIM's η: 0 is deterministic, 1 has DDPM's variance.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `plan`, if timesteps do not decrease or a value is out of its bounds.
    pub fn new(steps: Vec<Step>, eta: f32) -> Result<Self> {
        let invalid = |reason: String| Err(Error::invalid("plan", reason));
        if steps.len() > MAX_STEPS {
            return invalid(format!("has {} steps, at most {MAX_STEPS} are allowed", steps.len()));
        }
        if !(0.0..=1.0).contains(&eta) {
            return invalid(format!("eta must be between 0 and 1, not {eta}"));
        }
        for step in &steps {
            if !step.timestep.is_finite() || step.timestep < 0.0 {
                return invalid(format!("timestep {} is not a timestep", step.timestep));
            }
            if !(0.0..=MAX_GUIDANCE).contains(&step.guidance.scale) {
                return invalid(format!(
                    "guidance scale must be between 0 and 100, not {}",
                    step.guidance.scale
                ));
            }
            let strength = step.guidance.steering.strength();
            if !(0.0..=MAX_STRENGTH).contains(&strength) {
                return invalid(format!(
                    "steering strength must be between 0 and {MAX_STRENGTH}, not {strength}"
                ));
            }
            if step.denoiser.0 != 0 || step.token_merging != 0.0 || step.reuse_deep_features {
                return invalid("variants, token merging and deep feature reuse are not built yet".into());
            }
        }
        if let Some(w) = steps.windows(2).find(|w| w[0].timestep <= w[1].timestep) {
            return invalid(format!("timesteps must decrease, {} follows {}", w[1].timestep, w[0].timestep));
        }
        Ok(Self { steps, eta })
    }

    /// The full DDIM plan of `steps` steps with the schedule's spacing and one guidance scale.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `num_inference_steps` or `plan`.
    pub fn ddim(schedule: &NoiseSchedule, steps: usize, guidance_scale: f32) -> Result<Self> {
        let step = |timestep| Step {
            timestep,
            denoiser: Denoiser::default(),
            guidance: Guidance { scale: guidance_scale, steering: Steering::default() },
            token_merging: 0.0,
            reuse_deep_features: false,
        };
        let mut timesteps = schedule.timesteps(steps)?;
        timesteps.dedup(); // with an offset, T steps would contain the last timestep twice
        Self::new(timesteps.into_iter().map(step).collect(), 0.0)
    }

    /// The same steps with another η.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `plan`, if `eta` is not between 0 and 1.
    pub fn with_eta(self, eta: f32) -> Result<Self> {
        Self::new(self.steps, eta)
    }

    /// The same plan with its first `steps` steps steered, for resuming another picture's state. The guidance scales of these
    /// steps are multiplied by `guidance_factor`, up to the largest allowed scale. A step without guidance stays without,
    /// because guidance would take an additional row.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `plan`, if the strength or the factor is out of its bounds.
    pub fn steered(mut self, steps: usize, steering: Steering, guidance_factor: f32) -> Result<Self> {
        if !(0.0..=MAX_GUIDANCE).contains(&guidance_factor) {
            let reason =
                format!("guidance factor must be between 0 and {MAX_GUIDANCE}, not {guidance_factor}");
            return Err(Error::invalid("plan", reason));
        }
        for step in self.steps.iter_mut().take(steps) {
            let Guidance { scale, .. } = step.guidance;
            let factor = if step.guidance.has_negative() { guidance_factor } else { 1.0 };
            step.guidance = Guidance { scale: (scale * factor).min(MAX_GUIDANCE), steering };
        }
        Self::new(self.steps, self.eta)
    }

    /// The steps, noisiest first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// DDIM's η.
    pub fn eta(&self) -> f32 {
        self.eta
    }

    /// The rows of all steps together ([`Guidance::rows`]), which are the plan's cost.
    pub fn rows(&self) -> usize {
        self.steps.iter().map(|step| step.guidance.rows()).sum()
    }

    /// The share of this plan's steps that lead to a latent at `timestep`, from 0 to 1. Between two of the plan's timesteps it
    /// is interpolated linearly.
    pub fn share_done(&self, timestep: f64) -> f64 {
        let count = self.steps.len();
        let taken = self.steps.partition_point(|step| step.timestep > timestep);
        let noisier = taken.checked_sub(1).and_then(|i| self.steps.get(i));
        let Some(noisier) = noisier.map(|step| step.timestep) else { return 0.0 };
        let cleaner = self.steps.get(taken).map_or(FINISHED, |step| step.timestep);
        let part = ((noisier - timestep) / (noisier - cleaner)).clamp(0.0, 1.0);
        ((taken - 1) as f64 + part) / count as f64
    }

    /// The remaining steps of this plan for a state at `timestep`. The steps before are the *skipped steps*. If the state is
    /// cleaner than the last step but not finished, the last step remains and starts from the state's timestep. For a finished
    /// state no step remains.
    pub fn after(&self, timestep: f64) -> Self {
        let later = self.steps.partition_point(|s| s.timestep > timestep);
        let finished = timestep < 0.0;
        let first = if finished { self.steps.len() } else { later.min(self.steps.len().saturating_sub(1)) };
        let mut rest = Self { steps: self.steps[first..].to_vec(), eta: self.eta };
        if later == self.steps.len() {
            rest.start_from(timestep);
        }
        rest
    }

    /// Removes the first step.
    pub(crate) fn pop(&mut self) {
        if !self.steps.is_empty() {
            self.steps.remove(0);
        }
    }

    /// Sets the timestep of the first step.
    pub(crate) fn start_from(&mut self, timestep: f64) {
        if let Some(first) = self.steps.first_mut() {
            first.timestep = timestep;
        }
    }
}

#[cfg(test)]
mod tests;
