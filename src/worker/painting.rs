//! A job on its way from prompt to image file.

use std::sync::Arc;
use std::time::Instant;

use pentimento_pipelines::{Conditioning, DenoisingState, Pipeline, ResumeSteering, StepPlan, Trajectory};

use super::encode::{EncodeError, encode};
use super::stored::Keeping;
use crate::queue::{Hit, Job, Painted, Reused, Timings};

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

/// Where a painting begins.
pub enum Beginning<'a> {
    /// The seed's noise.
    Noise,
    /// A latent in place of the seed's noise.
    Latent(&'a DenoisingState),
    /// A state of another picture.
    State(&'a Reused, &'a DenoisingState),
}

/// A job with its trajectory. Whoever holds it decides when the next step is taken, and whether.
pub struct Painting<'a> {
    model: &'a Pipeline,
    job: &'a Job,
    trajectory: Trajectory,
    reused: Option<Reused>,
    skipped_steps: usize,
    steps_taken: usize,
    keeping: Option<Keeping>,
    /// Where the time goes.
    pub timings: Timings,
}

impl<'a> Painting<'a> {
    /// Encodes the prompts, and starts.
    ///
    /// # Errors
    /// The engine's; where the state or the latent does not fit the job it names `state`.
    pub fn begin(model: &'a Pipeline, job: &'a Job, from: &Beginning<'_>) -> Result<Self, PaintError> {
        let started = Instant::now();
        let (trajectory, reused, keeping) = match from {
            Beginning::Noise => {
                let plan = job.plan.clone();
                let trajectory =
                    model.start(conditioning(model, job)?, job.seed, job.noise, job.size, plan)?;
                let keeping = job.keep.clone();
                (trajectory, None, keeping.map(|keep| Keeping::new(keep, job.plan.steps().len())))
            }
            Beginning::Latent(latent) => {
                (resume(model, job, latent, conditioning(model, job)?, job.plan.clone())?, None, None)
            }
            Beginning::State(reused, state) => {
                (resume_stored(model, job, reused, state)?, Some((*reused).clone()), None)
            }
        };
        let skipped_steps = job.plan.steps().len() - trajectory.plan().steps().len();
        let timings = Timings { encode: started.elapsed(), ..Timings::default() };
        Ok(Self {
            model,
            job,
            trajectory,
            reused,
            skipped_steps,
            steps_taken: skipped_steps,
            keeping,
            timings,
        })
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
        if let Some(keeping) = self.keeping.as_mut().filter(|keeping| keeping.wants(self.steps_taken)) {
            keeping.add(self.model, self.trajectory.snapshot()?, self.steps_taken);
        }
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

    /// How many steps of the job's plan the state that it began from spared.
    pub fn skipped_steps(&self) -> usize {
        self.skipped_steps
    }

    /// Where it is now.
    pub fn trajectory(&self) -> &Trajectory {
        &self.trajectory
    }

    /// Decodes the latent and encodes the file; beside it, what the cache keeps.
    ///
    /// # Errors
    /// The engine's, or the encoder's.
    pub fn finish(mut self) -> Result<(Painted, Option<Keeping>), PaintError> {
        let file = self.decode()?;
        let Self { timings, reused, skipped_steps, keeping, .. } = self;
        Ok((Painted { file, timings, reused, skipped_steps }, keeping))
    }

    fn decode(&mut self) -> Result<Vec<u8>, PaintError> {
        let started = Instant::now();
        let picture = self.model.finish(&self.trajectory)?;
        let file = encode(&picture, self.job, self.reused.as_ref(), self.skipped_steps)?;
        self.timings.decode += started.elapsed();
        Ok(file)
    }
}

fn conditioning(model: &Pipeline, job: &Job) -> Result<Arc<Conditioning>, PaintError> {
    let negative = Some(job.negative_prompt.as_str()).filter(|p| !p.is_empty());
    Ok(Arc::new(model.encode(&job.prompt, negative, job.size)?))
}

/// DDIM's η of a resume in which the seed must tell: DDPM's variance (Song et al., 2021, eq. 16).
const VARIED: f32 = 1.0;

/// Goes on from another picture's state: its first steps are steered away from that picture's prompt, where
/// that is known. What is finished is left as it is.
fn resume_stored(
    model: &Pipeline,
    job: &Job,
    reused: &Reused,
    state: &DenoisingState,
) -> Result<Trajectory, PaintError> {
    if reused.hit != Hit::State {
        // No step will ask for a prompt.
        let nothing = Arc::new(model.encode("", None, job.size)?);
        return resume(model, job, state, nothing, job.plan.after(state.timestep));
    }
    let mut conditioning = Arc::unwrap_or_clone(conditioning(model, job)?);
    let mut plan = job.plan.after(state.timestep);
    if let Some(source) = reused.source_prompt.as_ref().filter(|source| **source != job.prompt) {
        conditioning = conditioning.with_source(model.encode_prompt(source)?)?;
        plan = ResumeSteering::DEFAULT.plan(&job.plan, state.timestep)?;
    }
    if reused.varied {
        plan = plan.with_eta(VARIED)?;
    }
    resume(model, job, state, Arc::new(conditioning), plan)
}

fn resume(
    model: &Pipeline,
    job: &Job,
    state: &DenoisingState,
    conditioning: Arc<Conditioning>,
    plan: StepPlan,
) -> Result<Trajectory, PaintError> {
    let wanted = model.latent_shape(job.size)?;
    if wanted != state.shape {
        let reason =
            format!("the latent's shape is {:?}, a picture of {} takes {wanted:?}", state.shape, job.size);
        return Err(pentimento_pipelines::Error::Invalid { field: "state", reason }.into());
    }
    Ok(model.resume(state, conditioning, job.seed, plan)?)
}
