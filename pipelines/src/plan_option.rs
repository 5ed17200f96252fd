//! Plan options: an option is a template that becomes a step plan for a model's noise schedule.
//!
//! An option is plain data, so that it can be stored in a menu and sent to a worker. It is defined by noise levels, so that it
//! means the same from noise, after a resume and after a replan.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::{Denoiser, Guidance, MAX_STEPS, ResumeSteering, Steering, Step, StepPlan};
use crate::schedule::NoiseSchedule;

/// The longest id. Ids appear in messages, metrics and metadata, so they must be short.
const LONGEST_ID: usize = 64;

/// The rule by which a step goes from one timestep to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// DDIM (Song, Meng and Ermon, 2021), deterministic.
    #[default]
    Ddim,
}

/// A template of a step plan. When it is written, fields with default values are left out. When it is read, an unknown field
/// is an error, because ignoring it would give another plan.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PlanOption {
    /// The option's name: at most 64 letters, digits and `-._+`.
    pub id: String,
    /// The sampler of all steps.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sampler: Sampler,
    /// Steps from noise to picture, 1 to [`MAX_STEPS`].
    pub steps: usize,
    /// A noise level from 0 to 1 ([`NoiseSchedule::noise_level`]). Steps from noisier latents are guided; the other steps take
    /// the prompt's row only. 0 guides all steps, 1 none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub guided_until: f64,
    /// The denoiser of all steps. Only the model's own is implemented.
    #[serde(default, skip_serializing_if = "is_default")]
    pub denoiser: Denoiser,
    /// The share of the tokens merged in self-attention. Only 0 is implemented.
    #[serde(default, skip_serializing_if = "is_default")]
    pub token_merging: f32,
    /// Whether every second step reuses the deep features of the step before. Only `false` is implemented.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reuse_deep_features: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl PlanOption {
    /// The option `ddim-STEPS` of `steps` guided DDIM steps. A request that names a number of steps gets this option.
    pub fn guided(steps: usize) -> Self {
        Self {
            id: format!("ddim-{steps}"),
            sampler: Sampler::Ddim,
            steps,
            guided_until: 0.0,
            denoiser: Denoiser::default(),
            token_merging: 0.0,
            reuse_deep_features: false,
        }
    }

    /// The option of `steps` DDIM steps whose plan from noise guides the first `guided` steps. Its id is
    /// `ddim-STEPS-gGUIDED`, or `ddim-STEPS` if all steps are guided.
    ///
    /// `guided_until` is halfway between the noise levels of the last guided and the first unguided step. A step's own level
    /// would not do, because its last bits differ between machines.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `steps`, or `guided` if it is more than `steps`.
    pub fn ddim(schedule: &NoiseSchedule, steps: usize, guided: usize) -> Result<Self> {
        if guided > steps {
            return Err(invalid("guided", format!("must be at most the {steps} steps, not {guided}")));
        }
        let timesteps = schedule.timesteps(steps).map_err(|_| {
            let most = schedule.num_train_timesteps().min(MAX_STEPS);
            invalid("steps", format!("must be between 1 and {most}, not {steps}"))
        })?;
        let level = |i: usize| timesteps.get(i).map(|timestep| schedule.noise_level(*timestep));
        let (guided_until, id) = match (guided.checked_sub(1).and_then(level), level(guided)) {
            (_, None) => (0.0, format!("ddim-{steps}")),
            (Some(last), Some(next)) => (between(last, next), format!("ddim-{steps}-g{guided}")),
            (None, Some(_)) => (1.0, format!("ddim-{steps}-g0")),
        };
        Ok(Self { id, guided_until, ..Self::guided(steps) })
    }

    /// Checks that every field is within its bounds.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field.
    pub fn check(&self) -> Result<()> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
        if self.id.is_empty() || self.id.len() > LONGEST_ID || !self.id.chars().all(fits) {
            return Err(invalid("id", "must be 1 to 64 letters, digits and -._+".into()));
        }
        if !(1..=MAX_STEPS).contains(&self.steps) {
            return Err(invalid("steps", format!("must be between 1 and {MAX_STEPS}, not {}", self.steps)));
        }
        if !(0.0..=1.0).contains(&self.guided_until) {
            return Err(invalid("guided_until", format!("must be from 0 to 1, not {}", self.guided_until)));
        }
        if !(0.0..1.0).contains(&self.token_merging) {
            return Err(invalid(
                "token_merging",
                format!("must be at least 0 and below 1, not {}", self.token_merging),
            ));
        }
        Ok(())
    }

    /// The plan from noise. `guidance_scale` is the scale of the guided steps.
    ///
    /// # Errors
    /// Those of [`PlanOption::check`], and [`Error::Invalid`] naming `plan`, if the guidance scale is out of its bounds or a
    /// field is not implemented.
    pub fn plan(&self, schedule: &NoiseSchedule, guidance_scale: f32) -> Result<StepPlan> {
        self.guide(schedule, guidance_scale, self.all_steps(schedule, guidance_scale)?, 0)
    }

    /// The remaining steps for a latent at `timestep`, after any plan. The first one starts from `timestep`. Whether a step is
    /// guided depends on the noise level that it starts from.
    ///
    /// # Errors
    /// Those of [`PlanOption::plan`], and [`Error::Invalid`] naming `plan`, if `timestep` is not a timestep.
    pub fn rest(&self, schedule: &NoiseSchedule, guidance_scale: f32, timestep: f64) -> Result<StepPlan> {
        self.guide(schedule, guidance_scale, self.steps_from(schedule, guidance_scale, timestep)?, 0)
    }

    /// The remaining steps for another picture's state at `timestep`, of which the first ones are steered.
    ///
    /// The steered steps are guided even below `guided_until`, because the state shows another prompt, and steering was
    /// measured with guidance (docs/benchmarks/steering.md). The other steps are those of [`PlanOption::rest`].
    ///
    /// # Errors
    /// Those of [`PlanOption::rest`] and [`StepPlan::steered`].
    pub fn steered_rest(
        &self,
        schedule: &NoiseSchedule,
        guidance_scale: f32,
        timestep: f64,
        steering: &ResumeSteering,
    ) -> Result<StepPlan> {
        let rest = self.steps_from(schedule, guidance_scale, timestep)?;
        let steered = steering.steps(self.steps);
        let rest = self.guide(schedule, guidance_scale, rest, steered)?;
        rest.steered(steered, steering.steering, steering.guidance_factor)
    }

    fn all_steps(&self, schedule: &NoiseSchedule, guidance_scale: f32) -> Result<StepPlan> {
        self.check()?;
        match self.sampler {
            Sampler::Ddim => StepPlan::ddim(schedule, self.steps, guidance_scale),
        }
    }

    fn steps_from(&self, schedule: &NoiseSchedule, guidance_scale: f32, timestep: f64) -> Result<StepPlan> {
        let mut rest = self.all_steps(schedule, guidance_scale)?.after(timestep);
        rest.start_from(timestep);
        Ok(rest)
    }

    /// Sets each step's guidance by its noise level. The first `always` steps are guided at any level.
    fn guide(
        &self,
        schedule: &NoiseSchedule,
        guidance_scale: f32,
        plan: StepPlan,
        always: usize,
    ) -> Result<StepPlan> {
        let guided = |(i, step): (usize, &Step)| {
            let guided = i < always || schedule.noise_level(step.timestep) > self.guided_until;
            // At a scale of 1 and below the negative prompt takes no row.
            let scale = if guided { guidance_scale } else { guidance_scale.min(1.0) };
            Step {
                timestep: step.timestep,
                denoiser: self.denoiser,
                guidance: Guidance { scale, steering: Steering::Prompts },
                token_merging: self.token_merging,
                // The first step has no step before it.
                reuse_deep_features: self.reuse_deep_features && i % 2 == 1,
            }
        };
        StepPlan::new(plan.steps().iter().enumerate().map(guided).collect(), plan.eta())
    }
}

/// The middle of two noise levels, rounded to nine decimals, which JSON preserves exactly.
fn between(noisier: f64, cleaner: f64) -> f64 {
    (f64::midpoint(noisier, cleaner) * 1e9).round() / 1e9
}

fn invalid(field: &'static str, reason: String) -> Error {
    Error::invalid(field, reason)
}

#[cfg(test)]
mod tests;
