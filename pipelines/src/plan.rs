//! The step plan: the explicit list of the steps a trajectory still has to take.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::schedule::{FINISHED, NoiseSchedule};

/// The most steps a plan may have; DDIM gains nothing beyond the training timesteps.
pub const MAX_STEPS: usize = 1000;

/// Which of a model's denoisers takes a step: 0 is the model's own, others are its variants. Only 0 is
/// built yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Denoiser(pub u8);

/// Classifier-free guidance of one step (Ho and Salimans, 2022).
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Guidance {
    /// How far to go from the negative prompt's prediction towards (and past) the prompt's. At 1 and
    /// below, the negative prompt has no part and the step costs a row less.
    pub scale: f32,
    /// What the prediction is steered by.
    #[serde(default)]
    pub steering: Steering,
}

/// The largest guidance scale of a plan.
const MAX_GUIDANCE: f32 = 100.0;

/// The largest [`Steering`] strength of a plan; far below it pictures fall apart.
pub const MAX_STRENGTH: f32 = 8.0;

/// What a step's prediction is steered by.
///
/// The first steps after a resume may be steered away from the *source*, the prompt of the picture whose
/// state was resumed ([`crate::Conditioning::with_source`]), so that what the prompts differ in is painted
/// over. With λ the strength, e a prompt's token states and v the denoiser's prediction:
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Steering {
    /// Prompt against negative prompt, as the trajectory's conditioning has them.
    #[default]
    Prompts,
    /// The prompt's row attends to e(prompt) + λ·(e(prompt) − e(source)). No more rows.
    Extrapolated {
        /// λ, 0 to [`MAX_STRENGTH`].
        strength: f32,
    },
    /// λ·(v(prompt) − v(source)) is added to what guidance predicts. One more row, the source's.
    Contrastive {
        /// λ, 0 to [`MAX_STRENGTH`].
        strength: f32,
    },
}

impl Steering {
    /// λ; 0 without a source.
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
    /// How many steps, as a share of the full plan's.
    pub share: f32,
    /// What they are steered by.
    pub steering: Steering,
    /// Their guidance scale over the plan's.
    pub guidance_factor: f32,
}

impl ResumeSteering {
    /// What docs/benchmarks/steering.md measured to serve best on the storybook model: 8 of 50 steps, at no
    /// more rows than a plain resume.
    pub const DEFAULT: Self =
        Self { share: 0.16, steering: Steering::Extrapolated { strength: 1.0 }, guidance_factor: 1.5 };

    /// What a state of another picture, at `timestep`, leaves to do of a full plan, steered.
    ///
    /// # Errors
    /// As [`StepPlan::steered`].
    pub fn plan(&self, full: &StepPlan, timestep: f64) -> Result<StepPlan> {
        full.after(timestep).steered(self.steps(full.steps.len()), self.steering, self.guidance_factor)
    }

    /// How many steps are steered, of a full plan of `full` steps.
    pub fn steps(&self, full: usize) -> usize {
        (self.share * full as f32).round() as usize
    }
}

impl Guidance {
    /// Whether the negative prompt has a part, and so a row.
    pub fn has_negative(self) -> bool {
        self.scale > 1.0
    }

    /// Rows of a batch that this guidance takes, 1 to 3.
    pub fn rows(self) -> usize {
        let source = matches!(self.steering, Steering::Contrastive { .. });
        1 + usize::from(self.has_negative()) + usize::from(source)
    }
}

/// One step: from this timestep to the next step's.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Step {
    /// Where the denoiser is asked, in training timesteps.
    pub timestep: f64,
    /// The denoiser that is asked.
    #[serde(default)]
    pub denoiser: Denoiser,
    /// The step's guidance.
    pub guidance: Guidance,
    /// Share of the tokens merged in self-attention (Bolya and Hoffman, 2023). Only 0 is built yet.
    #[serde(default)]
    pub token_merging: f32,
    /// Take the deep features of the step before (DeepCache, Ma et al., 2023). Only `false` is built yet.
    #[serde(default)]
    pub reuse_deep_features: bool,
}

/// Steps still to be taken, noisiest first, and the sampler's η for them.
///
/// Never empty of meaning: timesteps are finite, at least 0 and strictly decreasing, also when a plan
/// comes out of JSON. A plan without steps is that of a finished trajectory.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "Unchecked")]
pub struct StepPlan {
    steps: Vec<Step>,
    eta: f32,
}

#[derive(Deserialize)]
struct Unchecked {
    steps: Vec<Step>,
    #[serde(default)]
    eta: f32,
}

impl TryFrom<Unchecked> for StepPlan {
    type Error = Error;
    fn try_from(plan: Unchecked) -> Result<Self> {
        Self::new(plan.steps, plan.eta)
    }
}

impl StepPlan {
    /// A plan of explicit steps. `eta` is DDIM's η: 0 is deterministic, 1 is DDPM's variance.
    ///
    /// # Errors
    /// [`Error::Invalid`] where timesteps do not decrease, or a value is out of its bounds.
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

    /// The full DDIM plan of `steps` steps under a schedule's own spacing, with one guidance scale.
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
        timesteps.dedup(); // T steps with an offset name the last timestep twice
        Self::new(timesteps.into_iter().map(step).collect(), 0.0)
    }

    /// The same steps with another η.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `eta` is not between 0 and 1.
    pub fn with_eta(self, eta: f32) -> Result<Self> {
        Self::new(self.steps, eta)
    }

    /// The same plan, its first `steps` steps steered by `steering` and with their guidance scales
    /// `guidance_factor` times as large, up to the largest allowed: for what [`StepPlan::after`] leaves to do of
    /// a state of another picture. A step without guidance gets none, for that would be another row.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `plan` where a strength, or the factor, is out of its bounds.
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

    /// Rows of a batch that all its steps take together ([`Guidance::rows`]): what the plan costs.
    pub fn rows(&self) -> usize {
        self.steps.iter().map(|step| step.guidance.rows()).sum()
    }

    /// The share of this plan's steps that lie behind a latent at `timestep`, 0 to 1; between two of its timesteps
    /// the share rises linearly.
    pub fn share_done(&self, timestep: f64) -> f64 {
        let count = self.steps.len();
        let taken = self.steps.partition_point(|step| step.timestep > timestep);
        let noisier = taken.checked_sub(1).and_then(|i| self.steps.get(i));
        let Some(noisier) = noisier.map(|step| step.timestep) else { return 0.0 };
        let cleaner = self.steps.get(taken).map_or(FINISHED, |step| step.timestep);
        let part = ((noisier - timestep) / (noisier - cleaner)).clamp(0.0, 1.0);
        ((taken - 1) as f64 + part) / count as f64
    }

    /// The part of this plan that a state at `timestep` leaves to do: its later steps, those before it
    /// being the *skipped steps*. Of a state cleaner than the last step but not finished, that step is
    /// left, to be taken from the state's own timestep; of a finished one, nothing.
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

    /// Takes the first step out of the plan.
    pub(crate) fn pop(&mut self) {
        if !self.steps.is_empty() {
            self.steps.remove(0);
        }
    }

    /// Lets the first step be taken from another timestep.
    pub(crate) fn start_from(&mut self, timestep: f64) {
        if let Some(first) = self.steps.first_mut() {
            first.timestep = timestep;
        }
    }
}

#[cfg(test)]
mod tests;
