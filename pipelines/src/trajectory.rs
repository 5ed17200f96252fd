//! A trajectory: one picture on its way from noise to pixels.
//!
//! Everything the platform does is one of seven verbs on it. `snapshot`, `replan` and `fork` are here;
//! `start`, `resume`, `step` and `finish` need the model and are [`crate::Pipeline`]'s.

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::conditioning::Conditioning;
use crate::error::{Error, Result};
use crate::plan::{Denoiser, Step, StepPlan};
use crate::schedule::FINISHED;

/// A latent at one timestep: plain data that can be stored, sent and resumed from.
///
/// It is identified by its timestep, not by a step number: whoever resumes it goes on with the later
/// steps of his own plan.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct DenoisingState {
    /// The timestep whose noise level the latent has; [`FINISHED`] after the last step.
    pub timestep: f64,
    /// The latent's shape (C, H, W).
    pub shape: [usize; 3],
    /// The latent's values, C-order.
    pub latent: Vec<f32>,
}

/// Who may share a batch: trajectories with equal keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BatchKey {
    /// The model's id.
    pub model: Arc<str>,
    /// The denoiser of the next step.
    pub denoiser: Denoiser,
    /// The latent's shape (C, H, W).
    pub latent: [usize; 3],
    /// Tokens of the conditioning.
    pub tokens: usize,
}

/// One picture on its way from noise to pixels.
#[derive(Debug, Clone)]
pub struct Trajectory {
    /// The id of the model whose latent this is.
    pub(crate) model: Arc<str>,
    pub(crate) latent: Tensor,
    /// The finished latent as the last step predicted it.
    pub(crate) predicted: Option<Tensor>,
    pub(crate) timestep: f64,
    pub(crate) plan: StepPlan,
    pub(crate) conditioning: Arc<Conditioning>,
    pub(crate) seed: u64,
}

impl Trajectory {
    /// `snapshot`: the denoising state here. Copies the latent to the host.
    ///
    /// # Errors
    /// A tensor operation's.
    pub fn snapshot(&self) -> Result<DenoisingState> {
        let (c, h, w) = self.latent.dims3()?;
        Ok(DenoisingState {
            timestep: self.timestep,
            shape: [c, h, w],
            latent: self.latent.flatten_all()?.to_vec1()?,
        })
    }

    /// `replan`: replaces the steps still to be taken. The first of them is taken from where the
    /// trajectory is; a plan whose first step is noisier than that is refused, for noise is only added
    /// by `resume`, and so is an empty plan on the way.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `plan`, or `source` where a step is steered by one that the conditioning
    /// has not.
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

    /// `fork`: a second trajectory from here, with its own conditioning and its own seed for the noise
    /// still to come.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `source` where a step still to be taken is steered by one that the
    /// conditioning has not.
    pub fn fork(&self, conditioning: Arc<Conditioning>, seed: u64) -> Result<Self> {
        conditioning.check(&self.plan)?;
        Ok(Self { conditioning, seed, ..self.clone() })
    }

    /// Where the trajectory is: the next step's timestep, [`FINISHED`] after the last.
    pub fn timestep(&self) -> f64 {
        self.timestep
    }

    /// The steps still to be taken.
    pub fn plan(&self) -> &StepPlan {
        &self.plan
    }

    /// What steers it.
    pub fn conditioning(&self) -> &Arc<Conditioning> {
        &self.conditioning
    }

    /// Whether no step is left.
    pub fn is_finished(&self) -> bool {
        self.plan.steps().is_empty()
    }

    /// The step that `step` would take next.
    pub fn next_step(&self) -> Option<&Step> {
        self.plan.steps().first()
    }

    /// Who this trajectory's next step may share a batch with; `None` once finished.
    pub fn batch_key(&self) -> Option<BatchKey> {
        let step = self.next_step()?;
        let &[c, h, w] = self.latent.dims() else { return None };
        let tokens = self.conditioning.prompt.token_states.dim(0).ok()?;
        Some(BatchKey { model: self.model.clone(), denoiser: step.denoiser, latent: [c, h, w], tokens })
    }

    /// Rows of a batch that the next step takes ([`crate::Guidance::rows`]), 0 once finished.
    pub fn rows(&self) -> usize {
        self.next_step().map_or(0, |s| s.guidance.rows())
    }

    /// Where the next step leads.
    pub(crate) fn timestep_after_next(&self) -> f64 {
        self.plan.steps().get(1).map_or(FINISHED, |next| next.timestep)
    }

    /// The next step has been taken.
    pub(crate) fn advance(&mut self, latent: Tensor, predicted: Tensor) {
        self.timestep = self.timestep_after_next();
        self.plan.pop();
        self.latent = latent;
        self.predicted = Some(predicted);
    }
}
