//! Trajectories: a trajectory is one picture between noise and pixels.
//!
//! Everything the platform does is one of seven verbs on it. `snapshot`, `replan` and `fork` are defined here. `start`,
//! `resume`, `step` and `finish` need the model and are methods of [`crate::Pipeline`].

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::conditioning::Conditioning;
use crate::error::{Error, Result};
use crate::plan::{Denoiser, Step, StepPlan};
use crate::schedule::FINISHED;

/// A latent at one timestep. It is plain data, which can be stored, sent and resumed.
///
/// It has a timestep instead of a step number, so that any plan can resume it with its own later steps.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct DenoisingState {
    /// The timestep whose noise level the latent has; [`FINISHED`] after the last step.
    pub timestep: f64,
    /// The latent's shape (C, H, W).
    pub shape: [usize; 3],
    /// The latent's values, C-order.
    pub latent: Vec<f32>,
}

/// What trajectories must have in common to be stepped in one batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BatchKey {
    /// The model's id.
    pub model: Arc<str>,
    /// The denoiser of the next step.
    pub denoiser: Denoiser,
    /// The latent's shape (C, H, W).
    pub latent: [usize; 3],
    /// The number of tokens of the conditioning.
    pub tokens: usize,
}

/// One picture between noise and pixels.
#[derive(Debug, Clone)]
pub struct Trajectory {
    /// The id of the model whose latent this is.
    pub(crate) model: Arc<str>,
    pub(crate) latent: Tensor,
    /// The finished latent that the last step predicted; `None` before the first step.
    pub(crate) predicted: Option<Tensor>,
    pub(crate) timestep: f64,
    pub(crate) plan: StepPlan,
    pub(crate) conditioning: Arc<Conditioning>,
    pub(crate) seed: u64,
}

impl Trajectory {
    /// `snapshot`: the present denoising state. Copies the latent to the host.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn snapshot(&self) -> Result<DenoisingState> {
        let (c, h, w) = self.latent.dims3()?;
        Ok(DenoisingState {
            timestep: self.timestep,
            shape: [c, h, w],
            latent: self.latent.flatten_all()?.to_vec1()?,
        })
    }

    /// `replan`: replaces the remaining steps. The first one starts from the trajectory's timestep.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `plan`, if its first step is noisier than the trajectory (only `resume` adds noise), or if it
    /// has no steps although the trajectory is not finished; or naming `source`, if a step is steered but the conditioning
    /// has no source.
    pub fn replan(&mut self, mut plan: StepPlan) -> Result<()> {
        self.conditioning.check(&plan)?;
        if let Some(first) = plan.steps().first() {
            if first.timestep > self.timestep {
                return Err(Error::invalid(
                    "plan",
                    format!(
                        "starts at timestep {}, but the trajectory is at {}",
                        first.timestep, self.timestep
                    ),
                ));
            }
            plan.start_from(self.timestep);
        } else if self.timestep != FINISHED {
            return Err(Error::invalid("plan", "has no step left for a latent that is not finished"));
        }
        self.plan = plan;
        Ok(())
    }

    /// `fork`: a second trajectory from the present state, with its own conditioning, and its own seed for later noise.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `source`, if a remaining step is steered but the conditioning has no source.
    pub fn fork(&self, conditioning: Arc<Conditioning>, seed: u64) -> Result<Self> {
        conditioning.check(&self.plan)?;
        Ok(Self { conditioning, seed, ..self.clone() })
    }

    /// The timestep of the latent, which is the next step's; [`FINISHED`] after the last step.
    pub fn timestep(&self) -> f64 {
        self.timestep
    }

    /// The remaining steps.
    pub fn plan(&self) -> &StepPlan {
        &self.plan
    }

    /// The trajectory's conditioning.
    pub fn conditioning(&self) -> &Arc<Conditioning> {
        &self.conditioning
    }

    /// Whether no step is left.
    pub fn is_finished(&self) -> bool {
        self.plan.steps().is_empty()
    }

    /// The next step; `None` once finished.
    pub fn next_step(&self) -> Option<&Step> {
        self.plan.steps().first()
    }

    /// The batch key of the next step; `None` once finished.
    pub fn batch_key(&self) -> Option<BatchKey> {
        let step = self.next_step()?;
        let &[c, h, w] = self.latent.dims() else { return None };
        let tokens = self.conditioning.prompt.token_states.dim(0).ok()?;
        Some(BatchKey { model: self.model.clone(), denoiser: step.denoiser, latent: [c, h, w], tokens })
    }

    /// The rows of a batch that the next step takes ([`crate::Guidance::rows`]); 0 once finished.
    pub fn rows(&self) -> usize {
        self.next_step().map_or(0, |s| s.guidance.rows())
    }

    /// The timestep after the next step.
    pub(crate) fn timestep_after_next(&self) -> f64 {
        self.plan.steps().get(1).map_or(FINISHED, |next| next.timestep)
    }

    /// Records that the next step was taken.
    pub(crate) fn advance(&mut self, latent: Tensor, predicted: Tensor) {
        self.timestep = self.timestep_after_next();
        self.plan.pop();
        self.latent = latent;
        self.predicted = Some(predicted);
    }
}
