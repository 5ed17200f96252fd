//! A job on its way from prompt to image file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pentimento_cache::EntryId;
use pentimento_pipelines::{
    Conditioning, DenoisingState, EncodedPrompt, Picture, Pipeline, ResumeSteering, Steering, StepPlan,
    Trajectory,
};

use super::encode::{EncodeError, encode};
use super::stored::Keeping;
use crate::plan::Progress;
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

/// A job's prompts, encoded.
pub struct Prompts {
    conditioning: Conditioning,
    /// The prompt of the stored state's picture, to steer away from, where it is known and another.
    source: Option<EncodedPrompt>,
    took: Duration,
}

impl Prompts {
    /// Encodes them.
    ///
    /// # Errors
    /// The engine's.
    pub fn encode(model: &Pipeline, job: &Job) -> Result<Self, PaintError> {
        let started = Instant::now();
        let negative = Some(job.negative_prompt.as_str()).filter(|p| !p.is_empty());
        let conditioning = model.encode(&job.prompt, negative, job.size)?;
        let source =
            job.source().and_then(|reused| reused.source_prompt.as_ref()).filter(|s| **s != job.prompt);
        let source = source.map(|source| model.encode_prompt(source)).transpose()?;
        Ok(Self { conditioning, source, took: started.elapsed() })
    }

    /// How long that took.
    pub fn took(&self) -> Duration {
        self.took
    }
}

/// A job with its trajectory. Whoever holds it decides when the next step is taken, and whether.
pub struct Painting {
    model: Pipeline,
    job: Arc<Job>,
    trajectory: Trajectory,
    reused: Option<Reused>,
    /// Steps of the whole plan that it goes on with.
    planned: usize,
    /// Steps that it gets in all, skipped ones included: those taken of former plans and those left of this one.
    steps: usize,
    skipped_steps: usize,
    /// The share of the plan that these were.
    skipped: f64,
    steps_taken: usize,
    /// The share of the way from noise to picture that lies behind it: a step has an equal part of what was left before
    /// it.
    done: f64,
    /// After how many steps previews are still to be made, ascending, with their numbers.
    previews: Vec<(usize, usize)>,
    keeping: Option<Keeping>,
    /// Where the time goes.
    pub timings: Timings,
}

impl Painting {
    /// Starts, with a plan of `steps` steps at most those of the job's. Without `prompts` it encodes them now.
    ///
    /// # Errors
    /// The engine's; where the state or the latent does not fit the job it names `state`.
    pub fn begin(
        model: &Pipeline,
        job: &Arc<Job>,
        steps: usize,
        from: &Beginning<'_>,
        prompts: Option<Prompts>,
    ) -> Result<Self, PaintError> {
        let started = Instant::now();
        let before = prompts.as_ref().map_or(Duration::ZERO, Prompts::took);
        let prompts = || prompts.map_or_else(|| Prompts::encode(model, job), Ok);
        let plan = plan(model, job, steps)?;
        let whole = plan.steps().len();
        // Pictures of fewer steps than were asked for would serve all that come after them.
        let keep = job.keep.clone().filter(|_| whole == job.plan.steps().len());
        let (trajectory, reused, keeping) = match from {
            Beginning::Noise => {
                let conditioning = prompts()?.conditioning;
                let trajectory = model.start(Arc::new(conditioning), job.seed, job.noise, job.size, plan)?;
                (trajectory, None, keep.map(|keep| Keeping::new(keep, whole)))
            }
            Beginning::Latent(latent) => {
                (resume(model, job, latent, prompts()?.conditioning, plan)?, None, None)
            }
            Beginning::State(reused, state) => {
                let trajectory = if reused.hit == Hit::State {
                    resume_stored(model, job, reused, state, &plan, prompts()?)?
                } else {
                    // What is finished is left as it is: no step will ask for a prompt.
                    let nothing = model.encode("", None, job.size)?;
                    resume(model, job, state, nothing, plan.after(state.timestep))?
                };
                (trajectory, Some((*reused).clone()), None)
            }
        };
        let skipped_steps = whole - trajectory.plan().steps().len();
        let skipped = skipped_steps as f64 / whole.max(1) as f64;
        let mut painting = Self {
            model: model.clone(),
            job: job.clone(),
            trajectory,
            reused,
            planned: whole,
            steps: whole,
            skipped_steps,
            skipped,
            steps_taken: skipped_steps,
            done: skipped,
            previews: Vec::new(),
            keeping,
            timings: Timings { encode: before + started.elapsed(), ..Timings::default() },
        };
        painting.place_previews(0);
        Ok(painting)
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
        step_together(&mut [self])
    }

    /// How far it is. The steps still to be taken may not be replaced while they steer away from the source.
    pub fn progress(&self) -> Progress {
        let next = self.trajectory.next_step();
        Progress {
            done: if self.is_finished() { 1.0 } else { self.done },
            skipped: self.skipped,
            taken: self.steps_taken - self.skipped_steps,
            planned: Some(self.planned),
            replannable: next.is_some_and(|step| step.guidance.steering == Steering::Prompts),
        }
    }

    /// `replan`: goes on as in a plan of `steps` steps, with `left` steps at least as far as the job's own plan has them:
    /// former plans' timesteps lie between this one's, and each change of plans would otherwise lose a part of a step. The
    /// picture is then not kept.
    ///
    /// # Errors
    /// The engine's.
    pub fn replan(&mut self, steps: usize, left: usize) -> Result<(), PaintError> {
        let eta = self.trajectory.plan().eta();
        let mut finer = steps;
        let mut rest = plan(&self.model, &self.job, finer)?.after(self.trajectory.timestep());
        while rest.steps().len() < left && finer < self.job.plan.steps().len() {
            finer += 1;
            rest = plan(&self.model, &self.job, finer)?.after(self.trajectory.timestep());
        }
        let left = rest.steps().len();
        self.trajectory.replan(rest.with_eta(eta)?)?;
        self.planned = steps;
        self.steps = self.steps_taken + left;
        let made = self.job.previews.len() - self.previews.len();
        self.place_previews(made);
        self.keeping = None;
        Ok(())
    }

    /// Spreads the previews but the first `made` over the plan as the job spreads them over its own.
    fn place_previews(&mut self, made: usize) {
        let (own, now) = (self.job.plan.steps().len().max(1), self.steps);
        let wanted = self.job.previews.iter().enumerate().skip(made);
        let place = |(index, after): (usize, &usize)| ((after * now).div_ceil(own), index);
        // None of what is skipped, none after the last step.
        self.previews =
            wanted.map(place).filter(|(after, _)| (self.steps_taken + 1..now).contains(after)).collect();
    }

    /// The preview that the job wants after the step just taken, if any: its number and its image file.
    ///
    /// # Errors
    /// The engine's, or the encoder's.
    pub fn due_preview(&mut self) -> Result<Option<(usize, Vec<u8>)>, PaintError> {
        let Some(&(after, index)) = self.previews.first() else { return Ok(None) };
        if after > self.steps_taken || self.is_finished() {
            return Ok(None);
        }
        self.previews.remove(0);
        let picture = self.picture()?;
        Ok(Some((index, self.file(&picture)?)))
    }

    /// Steps of the whole plan that it goes on with.
    pub fn planned(&self) -> usize {
        self.planned
    }

    /// Steps that it gets in all, skipped ones included.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// How many steps of the plan the state that it began from spared.
    pub fn skipped_steps(&self) -> usize {
        self.skipped_steps
    }

    /// Where it is now.
    pub fn trajectory(&self) -> &Trajectory {
        &self.trajectory
    }

    /// The stored picture that it is, where nothing is painted.
    pub fn stored(&self) -> Option<&EntryId> {
        self.reused.as_ref().filter(|reused| reused.hit != Hit::State).map(|reused| &reused.source)
    }

    /// Decodes the latent.
    ///
    /// # Errors
    /// The engine's.
    pub fn picture(&mut self) -> Result<Picture, PaintError> {
        let started = Instant::now();
        let picture = self.model.finish(&self.trajectory)?;
        self.timings.decode += started.elapsed();
        Ok(picture)
    }

    /// The answer, with the file of its finished `picture`; beside it, what the cache keeps.
    ///
    /// # Errors
    /// The encoder's.
    pub fn finish(mut self, picture: &Picture) -> Result<(Painted, Option<Keeping>), PaintError> {
        let file = self.file(picture)?;
        let Self { timings, reused, skipped_steps, steps, keeping, .. } = self;
        Ok((Painted { file, timings, reused, skipped_steps, steps, expected_quality: None }, keeping))
    }

    fn file(&mut self, picture: &Picture) -> Result<Vec<u8>, PaintError> {
        let started = Instant::now();
        let file = encode(picture, &self.job, self.steps, self.reused.as_ref(), self.skipped_steps)?;
        self.timings.decode += started.elapsed();
        Ok(file)
    }
}

/// Takes the next step of every painting in one batch; they must be of one batch key.
///
/// # Errors
/// The engine's; none of them has then taken a step.
pub fn step_together(batch: &mut [&mut Painting]) -> Result<(), PaintError> {
    let Some(first) = batch.first() else { return Ok(()) };
    let started = Instant::now();
    let model = first.model.clone();
    let mut trajectories: Vec<&mut Trajectory> = batch.iter_mut().map(|p| &mut p.trajectory).collect();
    model.step(&mut trajectories)?;
    let time = started.elapsed();
    for painting in batch {
        painting.done += (1.0 - painting.done) / (painting.trajectory.plan().steps().len() + 1) as f64;
        painting.steps_taken += 1;
        painting.timings.denoise += time;
        let taken = painting.steps_taken;
        if let Some(keeping) = painting.keeping.as_mut().filter(|keeping| keeping.wants(taken)) {
            match painting.trajectory.snapshot() {
                Ok(state) => keeping.add(&model, state, taken),
                // The picture is painted all the same.
                Err(error) => {
                    tracing::warn!(%error, "not kept");
                    painting.keeping = None;
                }
            }
        }
    }
    Ok(())
}

/// The job's plan with so many steps; its own where that is what it has.
fn plan(model: &Pipeline, job: &Job, steps: usize) -> Result<StepPlan, PaintError> {
    if steps == job.plan.steps().len() {
        return Ok(job.plan.clone());
    }
    let scale = job.plan.steps().first().map_or(0.0, |step| step.guidance.scale);
    Ok(model.plan(steps.clamp(1, job.plan.steps().len().max(1)), scale)?)
}

/// DDIM's η of a resume in which the seed must tell: DDPM's variance (Song et al., 2021, eq. 16).
const VARIED: f32 = 1.0;

/// Goes on from another picture's state: its first steps are steered away from that picture's prompt, where
/// that is known.
fn resume_stored(
    model: &Pipeline,
    job: &Job,
    reused: &Reused,
    state: &DenoisingState,
    full: &StepPlan,
    prompts: Prompts,
) -> Result<Trajectory, PaintError> {
    let (mut conditioning, mut plan) = (prompts.conditioning, full.after(state.timestep));
    if let Some(source) = prompts.source {
        conditioning = conditioning.with_source(source)?;
        plan = ResumeSteering::DEFAULT.plan(full, state.timestep)?;
    }
    if reused.varied {
        plan = plan.with_eta(VARIED)?;
    }
    resume(model, job, state, conditioning, plan)
}

fn resume(
    model: &Pipeline,
    job: &Job,
    state: &DenoisingState,
    conditioning: Conditioning,
    plan: StepPlan,
) -> Result<Trajectory, PaintError> {
    let wanted = model.latent_shape(job.size)?;
    if wanted != state.shape {
        let reason =
            format!("the latent's shape is {:?}, a picture of {} takes {wanted:?}", state.shape, job.size);
        return Err(pentimento_pipelines::Error::Invalid { field: "state", reason }.into());
    }
    Ok(model.resume(state, Arc::new(conditioning), job.seed, plan)?)
}
