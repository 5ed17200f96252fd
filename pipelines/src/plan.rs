//! The step plan: the explicit list of the steps a trajectory still has to take.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::schedule::NoiseSchedule;

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
        let steps = (self.share * full.steps.len() as f32).round() as usize;
        full.after(timestep).steered(steps, self.steering, self.guidance_factor)
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
mod tests {
    use super::*;
    use crate::schedule::ScheduleConfig;

    fn plan(n: usize) -> StepPlan {
        StepPlan::ddim(&NoiseSchedule::new(ScheduleConfig::default()).unwrap(), n, 3.0).unwrap()
    }

    #[test]
    fn a_state_of_one_plan_leaves_the_later_steps_of_another() {
        let rest = plan(20).after(655.0);
        assert_eq!(rest.steps()[0].timestep, 650.0);
        assert_eq!(rest.steps().len(), 14);
        assert_eq!(plan(20).after(650.0).steps().len(), 14);
        assert_eq!(plan(20).after(f64::INFINITY), plan(20));
        assert!(plan(20).after(-1.0).steps().is_empty());
    }

    #[test]
    fn a_state_cleaner_than_the_last_step_still_leaves_one() {
        let trailing =
            ScheduleConfig { timestep_spacing: crate::schedule::Spacing::Trailing, ..Default::default() };
        let plan = StepPlan::ddim(&NoiseSchedule::new(trailing).unwrap(), 4, 3.0).unwrap();
        assert_eq!(plan.steps()[3].timestep, 249.0);
        let rest = plan.after(98.0);
        assert_eq!(rest.steps().len(), 1);
        assert_eq!(rest.steps()[0].timestep, 98.0, "taken from where the state is");
        assert_eq!(plan.after(249.0).steps(), &plan.steps()[3..]);
    }

    #[test]
    fn steering_adds_no_row_and_fits_any_guidance() {
        let schedule = NoiseSchedule::new(ScheduleConfig::default()).unwrap();
        for (scale, steered) in [(0.8, 0.8), (1.0, 1.0), (4.0, 6.0), (90.0, 100.0), (100.0, 100.0)] {
            let full = StepPlan::ddim(&schedule, 50, scale).unwrap();
            let rest = ResumeSteering::DEFAULT.plan(&full, full.steps()[25].timestep).unwrap();
            assert_eq!(rest.steps()[0].guidance.scale, steered);
            assert_eq!(rest.steps()[0].guidance.rows(), full.steps()[0].guidance.rows());
            assert_eq!(rest.steps()[8..], full.steps()[33..]);
        }
    }

    #[test]
    fn json_cannot_smuggle_in_an_impossible_plan() {
        let good = serde_json::to_string(&plan(3)).unwrap();
        assert_eq!(serde_json::from_str::<StepPlan>(&good).unwrap(), plan(3));
        for bad in [
            r#"{"steps":[{"timestep":1,"guidance":{"scale":2}},{"timestep":5,"guidance":{"scale":2}}]}"#,
            r#"{"steps":[{"timestep":-3,"guidance":{"scale":2}}]}"#,
            r#"{"steps":[{"timestep":3,"guidance":{"scale":2000}}]}"#,
            r#"{"steps":[{"timestep":3,"guidance":{"scale":2,"steering":{"extrapolated":{"strength":9}}}}]}"#,
            r#"{"steps":[{"timestep":3,"guidance":{"scale":2,"steering":{"contrastive":{"strength":-1}}}}]}"#,
            r#"{"steps":[{"timestep":3,"guidance":{"scale":2},"reuse_deep_features":true}]}"#,
            r#"{"steps":[{"timestep":3,"guidance":{"scale":2},"denoiser":5}]}"#,
            r#"{"steps":[],"eta":1.5}"#,
        ] {
            assert!(serde_json::from_str::<StepPlan>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rows_are_the_prompts_that_are_asked_for() {
        let rows = |steering| [0.0, 1.0, 1.01, 7.5].map(|scale| Guidance { scale, steering }.rows());
        assert_eq!(rows(Steering::Prompts), [1, 1, 2, 2]);
        assert_eq!(rows(Steering::Extrapolated { strength: 1.0 }), [1, 1, 2, 2]);
        assert_eq!(rows(Steering::Contrastive { strength: 1.0 }), [2, 2, 3, 3]);
    }

    #[test]
    fn the_first_steps_are_steered_and_the_others_stay() {
        let steering = Steering::Extrapolated { strength: 1.0 };
        let steered = plan(6).steered(2, steering, 1.5).unwrap();
        assert_eq!(steered.steps()[1].guidance, Guidance { scale: 4.5, steering });
        assert_eq!(steered.steps()[2..], plan(6).steps()[2..]);
        assert_eq!(plan(6).steered(9, steering, 1.0).unwrap().steps().len(), 6);
        assert_eq!(plan(6).steered(2, Steering::Prompts, 1.0).unwrap(), plan(6));
        for strength in [f32::NAN, f32::INFINITY, -0.1, 8.1] {
            for steering in [Steering::Extrapolated { strength }, Steering::Contrastive { strength }] {
                let error = plan(6).steered(2, steering, 1.0).unwrap_err().to_string();
                assert!(error.starts_with("plan: steering strength"), "{error}");
            }
        }
        for factor in [f32::NAN, -1.0, 1e9] {
            assert!(plan(6).steered(2, steering, factor).is_err(), "{factor}");
        }
    }

    #[test]
    fn a_resume_is_steered_for_its_share_of_the_full_plan() {
        let ResumeSteering { steering, .. } = ResumeSteering::DEFAULT;
        let steered = |n: usize| {
            let rest = ResumeSteering::DEFAULT.plan(&plan(n), 700.0).unwrap();
            assert_eq!(rest.steps().len(), plan(n).after(700.0).steps().len());
            rest.steps().iter().filter(|s| s.guidance.steering == steering).count()
        };
        assert_eq!([50, 20, 2].map(steered), [8, 3, 0]);
    }

    #[test]
    fn plans_of_json_without_steering_still_read() {
        let step = |guidance: &str| format!(r#"{{"steps":[{{"timestep":3,"guidance":{{{guidance}}}}}]}}"#);
        let read = |guidance| serde_json::from_str::<StepPlan>(&step(guidance)).unwrap().steps()[0].guidance;
        let plain = Guidance { scale: 2.0, steering: Steering::Prompts };
        assert_eq!(read(r#""scale":2"#), plain);
        assert_eq!(read(r#""scale":2,"steering":"prompts""#), plain);
        assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"scale":2.0,"steering":"prompts"}"#);
        let steering = Steering::Contrastive { strength: 0.5 };
        assert_eq!(read(r#""scale":2,"steering":{"contrastive":{"strength":0.5}}"#).steering, steering);
    }
}
