//! A fake engine, and the stages of a worker in simulated time. What a worker does is the production worker's core.

use std::collections::VecDeque;
use std::sync::Arc;

use super::agenda::worker_id;
use super::scenario::{Machine, Scenario};
use crate::scheduler::menu::MenuOption;
use crate::scheduler::messages::{AttemptId, Beginning, Checkpoint, Poll, PollAnswer, Shape, TaskEnd};
use crate::scheduler::{ModelId, OptionId, Time};
use crate::worker::core::{Batch, Begin, Finish, Load, Member, ModelWork, Settings, WorkerCore};
use crate::worker::{BeginError, Engine, Painting};

/// All simulated pictures have one size.
pub(super) const SHAPE: Shape = Shape { width: 64, height: 64 };
/// A checkpoint is stored after so many steps.
const CHECKPOINT_EVERY: usize = 4;
/// The most checkpoints that a worker reports, of its last steps.
const CHECKPOINTS: usize = 256;
/// Differences of noise levels below this are rounding.
const EQUAL: f64 = 1e-6;
/// A worker reports after so many seconds of steps, as the workers of a cluster do.
const REPORT_SECONDS: f64 = 1.0;

/// Where a picture goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fails {
    /// Its prompt cannot be encoded.
    Encoding,
    /// Its second step fails.
    Stepping,
    /// It cannot be decoded.
    Decoding,
    /// Its steps kill the worker.
    Deadly,
}

/// A fake specification.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sketch {
    /// What goes wrong.
    pub fails: Option<Fails>,
    /// The noise level of its stored start, and the quality that this costs.
    pub start: Option<(f64, f64)>,
    /// Its option, if the menu has it not.
    pub own: Option<Arc<MenuOption>>,
}

/// A fake picture: the quality of the options whose steps were really taken, leg by leg.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Painted {
    pub quality: f64,
}

/// An engine whose work only takes time.
#[derive(Debug)]
pub(super) struct FakeEngine;

impl Engine for FakeEngine {
    type Spec = Sketch;
    type Picture = Painted;
    /// A noise level, and the quality lost before it.
    type State = (f64, f64);
    type Painting = Canvas;
}

/// A picture on its way.
#[derive(Debug)]
pub(super) struct Canvas {
    fails: Option<Fails>,
    /// The options that it may be told to take, and the one that it takes.
    options: Arc<[Arc<MenuOption>]>,
    option: Arc<MenuOption>,
    /// Which of the option's steps is next.
    next: usize,
    /// Where the present option began, and the quality lost before.
    since: f64,
    lost: f64,
    noise_level: f64,
    steps: usize,
}

impl Canvas {
    fn lost_here(&self) -> f64 {
        self.lost + (self.option.quality_at(self.noise_level) - self.option.quality_at(self.since)).max(0.0)
    }

    /// Takes a step, and says whether it failed.
    fn step(&mut self) -> Result<(), String> {
        self.next += 1;
        self.steps += 1;
        self.noise_level = self.option.steps.get(self.next).map_or(0.0, |step| step.noise_level);
        let fails = self.fails == Some(Fails::Stepping) && self.steps > 1;
        if fails { Err("a step failed".to_owned()) } else { Ok(()) }
    }
}

impl Painting for Canvas {
    type Key = ();
    type Preview = ();

    fn batch_key(&self) {}

    fn shape(&self) -> Shape {
        SHAPE
    }

    fn rows(&self) -> u32 {
        self.option.steps.get(self.next).map_or(0, |step| step.rows)
    }

    fn noise_level(&self) -> f64 {
        self.noise_level
    }

    fn replan(&mut self, option: &OptionId) -> Result<(), String> {
        let option = self.options.iter().find(|of| of.id == *option).ok_or("there is no such option")?;
        self.lost = self.lost_here();
        (self.option, self.since) = (option.clone(), self.noise_level);
        self.next = first_step(option, self.noise_level);
        Ok(())
    }

    fn set_previews(&mut self, _: u32) {}

    fn due_preview(&mut self) -> Option<(u32, ())> {
        None
    }
}

/// The first of an option's steps that begins at a noise level or below it.
fn first_step(option: &MenuOption, noise_level: f64) -> usize {
    let before = option.steps.partition_point(|step| step.noise_level > noise_level + EQUAL);
    before.min(option.steps.len() - 1)
}

/// Work that takes time at a worker. Each stage does one thing at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Encode,
    Step,
    Decode,
    /// Of the models that it can load, the one at this place.
    LoadModel(u32),
}

/// What a worker does next: work of so many seconds.
pub(super) type Then = (Stage, f64);

pub(super) struct Worker {
    settings: Settings,
    machine: Machine,
    options: Arc<[Arc<MenuOption>]>,
    core: WorkerCore<FakeEngine>,
    pub alive: bool,
    pub stalled_until: Time,
    /// When its last poll was sent, and whether the answer has not arrived.
    pub polled_at: Time,
    pub polls: bool,
    encoding: Option<Begin<FakeEngine>>,
    stepping: Option<(Batch<FakeEngine>, f64)>,
    decoding: Option<(AttemptId, Canvas)>,
    /// Checkpoints of the last steps. They are the state store's: the worker's core does not report any yet.
    checkpoints: VecDeque<(AttemptId, Checkpoint)>,
    /// Seconds of all its steps.
    pub busy_seconds: f64,
}

impl Worker {
    pub fn new(
        index: u32,
        scenario: &Scenario,
        slower: f64,
        options: Arc<[Arc<MenuOption>]>,
        models: &[ModelId],
    ) -> Self {
        let Machine { step_seconds, row_seconds, .. } = scenario.machine;
        let machine = Machine {
            step_seconds: slower * step_seconds,
            row_seconds: slower * row_seconds,
            ..scenario.machine
        };
        let settings = Settings {
            worker: worker_id(index),
            incarnation: 1,
            pool: "simulated".to_owned(),
            rows: scenario.rows,
            loadable: models.to_vec(),
            model_places: scenario.model_places,
            report_seconds: REPORT_SECONDS,
        };
        Self {
            core: start(&settings),
            settings,
            machine,
            options,
            alive: true,
            stalled_until: Time::ZERO,
            polled_at: Time::ZERO,
            polls: false,
            encoding: None,
            stepping: None,
            decoding: None,
            checkpoints: VecDeque::new(),
            busy_seconds: 0.0,
        }
    }

    pub fn incarnation(&self) -> u32 {
        self.settings.incarnation as u32
    }

    /// The process ends: all that it held is gone, but for stored checkpoints.
    pub fn die(&mut self) {
        (self.alive, self.polls) = (false, false);
        self.core = start(&self.settings);
        (self.encoding, self.stepping, self.decoding) = (None, None, None);
        self.checkpoints.clear();
    }

    /// A new process starts.
    pub fn revive(&mut self) {
        self.alive = true;
        self.settings.incarnation += 1;
        self.core = start(&self.settings);
    }

    /// Tasks that are held, and ends that were not acknowledged.
    pub fn held(&self) -> usize {
        self.core.held()
    }

    /// Whether the scheduler should hear of what happened.
    pub fn has_news(&self) -> bool {
        self.core.has_news()
    }

    /// The worker's next poll.
    pub fn poll(&mut self) -> Poll<Painted> {
        let mut poll = self.core.poll();
        for held in &mut poll.report.held {
            let of = |(id, _): &&(AttemptId, Checkpoint)| id.attempt == held.attempt && id.task == held.task;
            held.checkpoint =
                self.checkpoints.iter().rev().find(of).map(|(_, checkpoint)| checkpoint.clone());
        }
        poll
    }

    pub fn answered(&mut self, now: Time, answer: PollAnswer<Sketch>) {
        self.core.answered(now, answer);
    }

    pub fn acknowledge(&mut self, id: &AttemptId) {
        self.core.acknowledge(id);
    }

    pub fn take_ends(&mut self) -> Vec<TaskEnd<Painted>> {
        self.core.take_ends()
    }

    /// Gives the next work to each stage that has none. `None`: a step killed the worker.
    pub fn start_stages(&mut self, then: &mut Vec<Then>) -> Option<()> {
        while let Some(work) = self.core.next_model() {
            if let ModelWork::Load(model) = work
                && let Some(place) = self.settings.loadable.iter().position(|of| *of == model)
            {
                then.push((Stage::LoadModel(place as u32), self.machine.load_seconds));
            }
        }
        while let Some(Load { id, spec, beginning }) = self.core.next_load() {
            let state = match &beginning {
                Beginning::Noise => None,
                Beginning::State => spec.start,
                Beginning::Checkpoint { key } => read_checkpoint(key),
            };
            self.core.loaded(&id, state);
        }
        if self.encoding.is_none() {
            self.encoding = self.core.next_begin();
            then.extend(self.encoding.as_ref().map(|_| (Stage::Encode, self.machine.encode_seconds)));
        }
        if self.stepping.is_none()
            && let Some(batch) = self.core.next_batch()
        {
            if batch.members.iter().any(|member| member.painting.fails == Some(Fails::Deadly)) {
                return None;
            }
            let seconds = self.machine.seconds(batch.rows);
            self.busy_seconds += seconds;
            self.stepping = Some((batch, seconds));
            then.push((Stage::Step, seconds));
        }
        if self.decoding.is_none()
            && let Some(Finish::Picture { id, painting }) = self.core.next_finish()
        {
            self.decoding = Some((id, painting));
            then.push((Stage::Decode, self.machine.finish_seconds));
        }
        Some(())
    }

    /// A stage has done its work.
    pub fn done(&mut self, stage: Stage) {
        match stage {
            Stage::Encode => self.encoded(),
            Stage::Step => self.stepped(),
            Stage::Decode => self.decoded(),
            Stage::LoadModel(place) => {
                if let Some(model) = self.settings.loadable.get(place as usize) {
                    self.core.model_loaded(model, true);
                }
            }
        }
    }

    fn encoded(&mut self) {
        let Some(Begin { id, assignment, state, .. }) = self.encoding.take() else { return };
        let spec = &assignment.spec;
        let of_own = spec.own.as_ref().map(|own| Arc::from([own.clone()]));
        let options: Arc<[Arc<MenuOption>]> = of_own.unwrap_or_else(|| self.options.clone());
        let option = options.iter().find(|option| option.id == assignment.option).cloned();
        let (noise_level, lost) = state.unwrap_or((1.0, 0.0));
        let painting = match option {
            _ if spec.fails == Some(Fails::Encoding) => Err(BeginError::Failed("no prompt".to_owned())),
            None => Err(BeginError::Failed("no such option".to_owned())),
            Some(option) => Ok(Canvas {
                fails: spec.fails,
                next: first_step(&option, noise_level),
                options,
                option,
                since: noise_level,
                lost,
                noise_level,
                steps: 0,
            }),
        };
        self.core.begun(&id, self.machine.encode_seconds, painting);
    }

    fn stepped(&mut self) {
        let Some((batch, seconds)) = self.stepping.take() else { return };
        let Batch { model, shape, rows, members } = batch;
        let mut whole = true;
        let mut step = |Member { id, mut painting }: Member<FakeEngine>| {
            let stepped = painting.step();
            whole &= stepped.is_ok();
            if painting.steps.is_multiple_of(CHECKPOINT_EVERY) && painting.noise_level > 0.0 {
                let key = write_checkpoint(painting.noise_level, painting.lost_here());
                let checkpoint = Checkpoint { noise_level: painting.noise_level, key };
                self.checkpoints.push_back((id.clone(), checkpoint));
            }
            (id, stepped.map(|()| painting))
        };
        let members = members.into_iter().map(&mut step).collect();
        while self.checkpoints.len() > CHECKPOINTS {
            self.checkpoints.pop_front();
        }
        self.core.stepped((model, shape, rows), seconds, whole, members);
    }

    fn decoded(&mut self) {
        let Some((id, canvas)) = self.decoding.take() else { return };
        let picture = match canvas.fails {
            Some(Fails::Decoding) => Err("it is not finite".to_owned()),
            _ => Ok(Painted { quality: canvas.option.quality_at(canvas.since) - canvas.lost }),
        };
        self.core.finished(&id, SHAPE, self.machine.finish_seconds, picture);
    }
}

/// A process starts: with all models that fit, the first ones.
fn start(settings: &Settings) -> WorkerCore<FakeEngine> {
    let places =
        if settings.model_places == 0 { settings.loadable.len() } else { settings.model_places as usize };
    WorkerCore::new(settings.clone(), settings.loadable.iter().take(places).cloned().collect())
}

/// The key of a checkpoint. It says all that is to be known of it, so that no store grows.
fn write_checkpoint(noise_level: f64, lost: f64) -> String {
    format!("{:x}-{:x}", noise_level.to_bits(), lost.to_bits())
}

fn read_checkpoint(key: &str) -> Option<(f64, f64)> {
    let (noise_level, lost) = key.split_once('-')?;
    let bits = |text| Some(f64::from_bits(u64::from_str_radix(text, 16).ok()?));
    Some((bits(noise_level)?, bits(lost)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoints_key_says_what_it_holds() {
        assert_eq!(read_checkpoint(&write_checkpoint(0.3, 0.01)), Some((0.3, 0.01)));
        assert_eq!(read_checkpoint("nonsense"), None);
    }
}
