//! A job on its way from prompt to image file.

use std::sync::Arc;
use std::time::Instant;

use pentimento_pipelines::{DenoisingState, Pipeline, Trajectory};

use super::encode::{EncodeError, encode};
use crate::queue::{Job, Painted, Timings};

/// Why a job was not painted.
#[derive(Debug, thiserror::Error)]
pub enum PaintError {
    /// The engine's reason.
    #[error(transparent)]
    Engine(#[from] pentimento_pipelines::Error),
    /// The picture did not fit its file format.
    #[error("cannot encode the picture: {0}")]
    Encode(#[from] EncodeError),
}

/// A job with its trajectory. Whoever holds it decides when the next step is taken, and whether.
pub struct Painting<'a> {
    model: &'a Pipeline,
    job: &'a Job,
    trajectory: Trajectory,
    steps_taken: usize,
    /// Where the time goes.
    pub timings: Timings,
}

impl<'a> Painting<'a> {
    /// Encodes the prompts and starts from the seed's noise, or from a given state.
    ///
    /// # Errors
    /// The engine's.
    pub fn begin(
        model: &'a Pipeline,
        job: &'a Job,
        from: Option<&DenoisingState>,
    ) -> Result<Self, PaintError> {
        let started = Instant::now();
        let negative = Some(job.negative_prompt.as_str()).filter(|p| !p.is_empty());
        let conditioning = Arc::new(model.encode(&job.prompt, negative, job.size)?);
        let plan = job.plan.clone();
        let mut trajectory =
            model.start(conditioning.clone(), job.seed, job.noise, job.size, plan.clone())?;
        if let Some(state) = from {
            let wanted = trajectory.batch_key().map(|key| key.latent);
            if wanted != Some(state.shape) {
                let reason = format!(
                    "the latent's shape is {:?}, a picture of {} takes {wanted:?}",
                    state.shape, job.size
                );
                return Err(pentimento_pipelines::Error::Invalid { field: "state", reason }.into());
            }
            trajectory = model.resume(state, conditioning, job.seed, plan)?;
        }
        let timings = Timings { encode: started.elapsed(), ..Timings::default() };
        Ok(Self { model, job, trajectory, steps_taken: 0, timings })
    }

    /// Whether no step is left.
    pub fn is_finished(&self) -> bool {
        self.trajectory.is_finished()
    }

    /// Takes one step.
    ///
    /// # Errors
    /// The engine's.
    pub fn step(&mut self) -> Result<(), PaintError> {
        let started = Instant::now();
        self.model.step(&mut [&mut self.trajectory])?;
        self.steps_taken += 1;
        self.timings.denoise += started.elapsed();
        Ok(())
    }

    /// The preview that the job wants after the step just taken, if any: its number and its image file.
    ///
    /// # Errors
    /// The engine's, or the encoder's.
    pub fn due_preview(&mut self) -> Result<Option<(usize, Vec<u8>)>, PaintError> {
        let Some(index) = self.job.previews.iter().position(|&after| after == self.steps_taken) else {
            return Ok(None);
        };
        Ok(Some((index, self.decode()?)))
    }

    /// Where it is now.
    pub fn trajectory(&self) -> &Trajectory {
        &self.trajectory
    }

    /// Decodes the latent and encodes the file.
    ///
    /// # Errors
    /// The engine's, or the encoder's.
    pub fn finish(mut self) -> Result<Painted, PaintError> {
        let file = self.decode()?;
        Ok(Painted { file, timings: self.timings })
    }

    fn decode(&mut self) -> Result<Vec<u8>, PaintError> {
        let started = Instant::now();
        let picture = self.model.finish(&self.trajectory)?;
        let file = encode(&picture, self.job)?;
        self.timings.decode += started.elapsed();
        Ok(file)
    }
}
