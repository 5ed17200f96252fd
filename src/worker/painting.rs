//! A picture on its way, painted by a pipeline: its trajectory, what is counted of it, and what is kept of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pentimento_cache::{NewPicture, PaintedPlan, ResumedFrom, State};
use pentimento_pipelines::{
    Conditioning, DenoisingState, Error, Guidance, Pipeline, PlanOption, Result, ResumeSteering, Steering,
    StepPlan, Trajectory,
};

use super::Painting;
use crate::picture::{KeepOrder, PaintTask, PaintTimings, PictureSpec, StartState};
use crate::scheduler::OptionId;
use crate::scheduler::messages::Shape;
use crate::telemetry;

/// DDIM's η of a resume in which the seed must tell: DDPM's variance (Song et al., 2021, eq. 16).
const VARIED: f32 = 1.0;

/// A picture on its way.
pub struct PipelinePainting {
    pub(super) pipeline: Pipeline,
    pub(super) trajectory: Trajectory,
    pub(super) task: PaintTask,
    /// The model's menu.
    options: Arc<[PlanOption]>,
    /// The option whose steps it takes.
    option: PlanOption,
    /// The state that it began from.
    pub(super) started_from: Option<StartState>,
    /// Steps of the option that the state spared.
    skipped: usize,
    /// Steps taken, the skipped ones included, and how many of these were guided.
    taken: usize,
    guided: usize,
    /// Steered steps of the plan that it began with.
    steered: usize,
    /// The share of the way from noise to picture that lies behind it: a step has an equal part of what was left before
    /// it, so that the share goes on evenly under another plan.
    done: f64,
    /// Previews that are wanted, and the number of the last one whose place it passed.
    previews: usize,
    passed: usize,
    keeping: Option<Keeping>,
    pub(super) timings: PaintTimings,
    /// When its assignment arrived.
    since: Instant,
}

/// What the cache is to keep of it.
struct Keeping {
    order: Box<KeepOrder>,
    /// Shares after which states are still to be kept, rising.
    shares: Vec<f32>,
    states: Vec<(State, f32)>,
}

/// What a painting begins with.
pub(super) struct Beginning {
    pub task: PaintTask,
    pub options: Arc<[PlanOption]>,
    pub option: PlanOption,
    /// How long ago its assignment arrived.
    pub since: Duration,
}

impl PipelinePainting {
    /// Begins with the seed's noise.
    ///
    /// # Errors
    /// The engine's.
    pub(super) fn with_noise(pipeline: &Pipeline, beginning: Beginning) -> Result<Self> {
        let began = Instant::now();
        let spec = &beginning.task.spec;
        let plan = pipeline.plan_of(&beginning.option, spec.guidance_scale)?;
        let conditioning = Arc::new(encode(pipeline, spec)?);
        let trajectory = pipeline.start(conditioning, spec.seed, spec.noise, spec.size, plan)?;
        Ok(Self::new(pipeline, beginning, trajectory, None, began))
    }

    /// Goes on from another picture's state: its first steps are steered away from that picture's prompt, where that is
    /// known and another.
    ///
    /// # Errors
    /// The engine's; where the state does not fit the picture it names `state`.
    pub(super) fn from_state(
        pipeline: &Pipeline,
        beginning: Beginning,
        start: StartState,
        state: &DenoisingState,
    ) -> Result<Self> {
        let began = Instant::now();
        let spec = &beginning.task.spec;
        let wanted = pipeline.latent_shape(spec.size)?;
        if wanted != state.shape {
            let reason = format!(
                "the latent's shape is {:?}, a picture of {} takes {wanted:?}",
                state.shape, spec.size
            );
            return Err(Error::Invalid { field: "state", reason });
        }
        let mut conditioning = encode(pipeline, spec)?;
        let source = start.source_prompt.as_ref().filter(|source| **source != spec.prompt);
        let (option, scale, timestep) = (&beginning.option, spec.guidance_scale, state.timestep);
        let mut rest = match source {
            Some(source) => {
                conditioning = conditioning.with_source(pipeline.encode_prompt(source)?)?;
                pipeline.steered_rest_of(option, scale, timestep, &ResumeSteering::DEFAULT)?
            }
            None => pipeline.rest_of(option, scale, timestep)?,
        };
        if start.varied {
            rest = rest.with_eta(VARIED)?;
        }
        let trajectory = pipeline.resume(state, Arc::new(conditioning), spec.seed, rest)?;
        Ok(Self::new(pipeline, beginning, trajectory, Some(start), began))
    }

    fn new(
        pipeline: &Pipeline,
        beginning: Beginning,
        trajectory: Trajectory,
        started_from: Option<StartState>,
        began: Instant,
    ) -> Self {
        let Beginning { mut task, options, option, since } = beginning;
        // It was planned before: it cannot fail.
        let whole = pipeline.plan_of(&option, task.spec.guidance_scale);
        let whole = whole.as_ref().map_or(trajectory.plan().steps(), StepPlan::steps);
        let skipped = whole.len().saturating_sub(trajectory.plan().steps().len());
        let guided = whole[..skipped].iter().filter(|step| step.guidance.has_negative()).count();
        let done = skipped as f64 / whole.len().max(1) as f64;
        let keeping = task.keep.take().map(|order| Keeping::new(order, whole.len(), started_from.is_some()));
        Self {
            pipeline: pipeline.clone(),
            steered: steered(trajectory.plan()),
            trajectory,
            task,
            options,
            option,
            started_from,
            skipped,
            taken: skipped,
            guided,
            done,
            previews: 0,
            passed: 0,
            keeping,
            timings: PaintTimings { encode: began.elapsed(), ..PaintTimings::default() },
            since: began.checked_sub(since).unwrap_or(began),
        }
    }

    /// Where it is, and the steps still to be taken.
    pub fn trajectory(&self) -> &Trajectory {
        &self.trajectory
    }

    /// Steps of the option that the state it began from spared.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The guidance of the step that it takes next.
    pub(super) fn next_guidance(&self) -> Option<Guidance> {
        self.trajectory.next_step().map(|step| step.guidance)
    }

    /// A step was taken, of this guidance, in a batch that took so long.
    pub(super) fn stepped(&mut self, guidance: Option<Guidance>, time: Duration) {
        let left = self.trajectory.plan().steps().len();
        self.done += (1.0 - self.done) / (left + 1) as f64;
        self.taken += 1;
        self.guided += usize::from(guidance.is_some_and(Guidance::has_negative));
        self.timings.denoise += time;
        if left > 0 {
            self.keep_state(left);
        }
    }

    /// Keeps the state here if it is the one nearest to a share that is wanted.
    fn keep_state(&mut self, left: usize) {
        let Some(keeping) = &mut self.keeping else { return };
        let until = self.done + (1.0 - self.done) / (2 * left) as f64;
        let due = keeping.shares.partition_point(|share| f64::from(*share) < until);
        if due == 0 {
            return;
        }
        keeping.shares.drain(..due);
        match self.trajectory.snapshot() {
            Ok(DenoisingState { timestep, shape, latent }) => {
                let noise_level = self.pipeline.schedule().noise_level(timestep);
                keeping.states.push((State { timestep, noise_level, shape, latent }, self.done as f32));
            }
            // The picture is painted all the same.
            Err(error) => tracing::warn!(%error, "a state is not kept"),
        }
    }

    /// Steps of all plans that it had, skipped ones and those to come included.
    pub(super) fn steps(&self) -> usize {
        self.taken + self.trajectory.plan().steps().len()
    }

    /// How long ago its assignment arrived.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// What the cache is to keep, but for its file and its quality.
    pub(super) fn into_kept(self) -> Option<NewPicture> {
        let steps = self.steps() as u32;
        let Keeping { order, states, .. } = self.keeping?;
        let KeepOrder { mut picture, shares: _ } = *order;
        let in_menu = self.options.iter().any(|option| option.id == self.option.id);
        picture.plan = PaintedPlan {
            option: in_menu.then(|| self.option.id.clone()),
            steps,
            guided_steps: (self.guided as u32).min(steps),
        };
        picture.resumed = self
            .started_from
            .map(|start| ResumedFrom { entry: start.entry, loss: start.loss.clamp(0.0, 1.0) });
        picture.states = states;
        Some(picture)
    }

    /// Previews whose places it has passed, of those that are wanted: preview n of k is made after step
    /// ceil(n * steps / (k + 1)).
    fn passed_previews(&self) -> usize {
        let (steps, parts) = (self.steps(), self.previews + 1);
        (1..=self.previews).take_while(|n| (n * steps).div_ceil(parts) <= self.taken).count()
    }

    /// What `option` leaves to do. While steps are still steered away from the source, as large a part of the option's
    /// steered steps is, too.
    fn rest_of(&self, option: &PlanOption) -> Result<StepPlan> {
        let (scale, timestep) = (self.task.spec.guidance_scale, self.trajectory.timestep());
        let left = steered(self.trajectory.plan());
        let rest = if left == 0 {
            self.pipeline.rest_of(option, scale, timestep)
        } else {
            let share = ResumeSteering::DEFAULT.share * left as f32 / self.steered.max(left) as f32;
            let steering = ResumeSteering { share, ..ResumeSteering::DEFAULT };
            self.pipeline.steered_rest_of(option, scale, timestep, &steering)
        };
        rest?.with_eta(self.trajectory.plan().eta())
    }
}

impl Painting for PipelinePainting {
    /// Denoiser, the latent's shape, tokens of the conditioning.
    type Key = (u8, [usize; 3], usize);
    type Preview = (Pipeline, Trajectory);

    fn batch_key(&self) -> Self::Key {
        let key = self.trajectory.batch_key();
        key.map_or_else(Default::default, |key| (key.denoiser.0, key.latent, key.tokens))
    }

    fn shape(&self) -> Shape {
        Shape { width: self.task.spec.size.width, height: self.task.spec.size.height }
    }

    fn rows(&self) -> u32 {
        self.trajectory.rows() as u32
    }

    fn noise_level(&self) -> f64 {
        match self.taken {
            // Pure noise, whatever the schedule calls its level.
            0 => 1.0,
            _ if self.trajectory.is_finished() => 0.0,
            _ => self.pipeline.schedule().noise_level(self.trajectory.timestep()),
        }
    }

    fn replan(&mut self, option: &OptionId) -> std::result::Result<(), String> {
        let option = find(&self.options, &self.task.spec, option).ok_or("it is not in the menu")?;
        let rest = self.rest_of(&option).map_err(|error| error.to_string())?;
        let before = self.steps();
        self.trajectory.replan(rest).map_err(|error| error.to_string())?;
        self.option = option;
        telemetry::replanned(before, self.steps());
        Ok(())
    }

    fn set_previews(&mut self, previews: u32) {
        if self.previews != previews as usize {
            self.previews = previews as usize;
            self.passed = self.passed_previews();
        }
    }

    fn due_preview(&mut self) -> Option<(u32, Self::Preview)> {
        let passed = self.passed_previews();
        if passed <= self.passed {
            return None;
        }
        self.passed = passed;
        Some((passed as u32, (self.pipeline.clone(), self.trajectory.clone())))
    }
}

impl Keeping {
    /// States of a resumed picture are not kept: its losses would add up in others.
    fn new(order: Box<KeepOrder>, steps: usize, resumed: bool) -> Self {
        let mut shares = if resumed { vec![] } else { order.shares.clone() };
        shares.retain(|share| (*share * steps as f32).round() >= 1.0);
        shares.sort_by(f32::total_cmp);
        Self { order, shares, states: vec![] }
    }
}

/// The option of this name: the one that the specification pins, or one of the menu. A menu may give the pinned option's
/// name to another plan, and naming steps guides them all.
pub(super) fn find(options: &[PlanOption], spec: &PictureSpec, id: &OptionId) -> Option<PlanOption> {
    let pinned = spec.steps.map(PlanOption::guided).filter(|option| option.id == id.as_str());
    pinned.or_else(|| options.iter().find(|option| option.id == id.as_str()).cloned())
}

fn encode(pipeline: &Pipeline, spec: &PictureSpec) -> Result<Conditioning> {
    pipeline.encode(&spec.prompt, spec.negative_prompt.as_deref(), spec.size)
}

/// Steps of a plan that are steered away from the source's prompt.
fn steered(plan: &StepPlan) -> usize {
    plan.steps().iter().filter(|step| step.guidance.steering != Steering::Prompts).count()
}
