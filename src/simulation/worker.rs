//! A fake worker: it paints by waiting, and otherwise does what a worker does.

use std::sync::Arc;

use super::agenda::worker_id;
use super::scenario::{Machine, Scenario};
use crate::scheduler::batch::{Batcher, Candidate};
use crate::scheduler::menu::MenuOption;
use crate::scheduler::messages::{
    Assignment, AttemptId, Beginning, Change, Checkpoint, Held, Outcome, Place, Poll, PollAnswer, Rank,
    Report, Shape, StepTimes, TaskEnd,
};
use crate::scheduler::{ModelId, OptionId, Time};

/// All simulated pictures have one size.
pub(super) const SHAPE: Shape = Shape { width: 64, height: 64 };
/// A checkpoint is stored after so many steps.
const CHECKPOINT_EVERY: usize = 4;
/// Differences of noise levels below this are rounding.
const EQUAL: f64 = 1e-6;

/// A fake specification.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sketch {
    /// Whether it kills its worker.
    pub deadly: bool,
    /// Whether it fails.
    pub failing: bool,
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

/// A task that is painted.
#[derive(Debug)]
struct Job {
    id: AttemptId,
    sketch: Sketch,
    /// The place of its model among the worker's.
    model: usize,
    option: Arc<MenuOption>,
    /// Which of the option's steps is next.
    next: usize,
    /// Where the present option began, and the quality lost before.
    since: f64,
    lost: f64,
    noise_level: f64,
    rank: Rank,
    paused: bool,
    finishing: bool,
    /// Whether the step under way is its own, too.
    stepping: bool,
    machine_seconds: f64,
    steps: usize,
    checkpoint: Option<Checkpoint>,
}

impl Job {
    /// Goes on with another option's steps, from its own noise level.
    fn take(&mut self, option: &Arc<MenuOption>) {
        self.lost = self.lost_here();
        (self.option, self.since) = (option.clone(), self.noise_level);
        self.next = first_step(option, self.noise_level);
    }

    fn lost_here(&self) -> f64 {
        self.lost + (self.option.quality_at(self.noise_level) - self.option.quality_at(self.since)).max(0.0)
    }

    fn rows(&self) -> u32 {
        self.option.steps.get(self.next).map_or(1, |step| step.rows)
    }
}

/// The first of an option's steps that begins at a noise level or below it.
fn first_step(option: &MenuOption, noise_level: f64) -> usize {
    let before = option.steps.partition_point(|step| step.noise_level > noise_level + EQUAL);
    before.min(option.steps.len() - 1)
}

/// What an event at a worker leads to.
#[derive(Debug, PartialEq)]
pub(super) enum Then {
    /// A picture's steps are done; its file follows.
    Finish(AttemptId),
    /// An attempt has ended.
    End(TaskEnd<Painted>),
}

/// What a worker does next.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// It takes a step of so many seconds.
    Takes(f64),
    /// The step kills it.
    Dies,
}

#[derive(Debug)]
pub(super) struct Worker {
    index: usize,
    rows: u32,
    machine: Machine,
    options: Arc<[Arc<MenuOption>]>,
    models: Arc<[ModelId]>,
    resident: Vec<ModelId>,
    model_places: u32,
    pub incarnation: u64,
    pub alive: bool,
    pub stalled_until: Time,
    sequence: u64,
    /// The last poll whose answer was applied.
    applied: u64,
    /// The number of the planned poll that counts.
    pub planned_poll: u64,
    jobs: Vec<Job>,
    ended: Vec<TaskEnd<Painted>>,
    is_stepping: bool,
    batcher: Batcher<usize>,
    step_times: Vec<StepTimes>,
}

impl Worker {
    pub fn new(
        index: usize,
        scenario: &Scenario,
        slower: f64,
        options: Arc<[Arc<MenuOption>]>,
        models: Arc<[ModelId]>,
    ) -> Self {
        let Machine { step_seconds, row_seconds, .. } = scenario.machine;
        let machine = Machine {
            step_seconds: slower * step_seconds,
            row_seconds: slower * row_seconds,
            ..scenario.machine
        };
        let mut worker = Self {
            index,
            rows: scenario.rows,
            machine,
            options,
            models,
            resident: vec![],
            model_places: scenario.model_places,
            incarnation: 1,
            alive: true,
            stalled_until: Time::ZERO,
            sequence: 0,
            applied: 0,
            planned_poll: 0,
            jobs: vec![],
            ended: vec![],
            is_stepping: false,
            batcher: Batcher::default(),
            step_times: vec![],
        };
        worker.start();
        worker
    }

    /// A process starts: with all models that fit, the first ones.
    fn start(&mut self) {
        let places = if self.model_places == 0 { self.models.len() } else { self.model_places as usize };
        self.resident = self.models.iter().take(places).cloned().collect();
    }

    /// The process ends: all that it held is gone, but for stored checkpoints.
    pub fn die(&mut self) {
        self.alive = false;
        self.jobs.clear();
        self.ended.clear();
        self.step_times.clear();
        self.is_stepping = false;
    }

    /// A new process starts.
    pub fn revive(&mut self) {
        self.alive = true;
        self.incarnation += 1;
        self.sequence = 0;
        self.applied = 0;
        self.start();
    }

    /// Tasks that are paused.
    pub fn paused(&self) -> usize {
        self.jobs.iter().filter(|job| job.paused && !job.finishing).count()
    }

    /// Tasks that are held, and ends that were not acknowledged.
    pub fn held(&self) -> usize {
        self.jobs.len() + self.ended.len()
    }

    /// The worker's next poll.
    pub fn poll(&mut self) -> Poll<Painted> {
        self.sequence += 1;
        let held = |job: &Job| Held {
            task: job.id.task.clone(),
            attempt: job.id.attempt,
            option: job.option.id.clone(),
            place: match job.finishing {
                true => Place::Finishing,
                false => Place::Stepping { noise_level: job.noise_level },
            },
            rank: job.rank,
            paused: job.paused,
            checkpoint: job.checkpoint.clone(),
        };
        let report = Report {
            pool: "simulated".to_owned(),
            rows: self.rows,
            loadable: self.models.to_vec(),
            resident: self.resident.clone(),
            model_places: self.model_places,
            held: self.jobs.iter().map(held).collect(),
            ended: self.ended.clone(),
            step_times: std::mem::take(&mut self.step_times),
            ..Report::default()
        };
        Poll { worker: worker_id(self.index), incarnation: self.incarnation, sequence: self.sequence, report }
    }

    /// Applies an answer, if it is to the newest poll and was not applied before. Returns a model that is to be loaded.
    pub fn apply(&mut self, answer: PollAnswer<Sketch>) -> Option<ModelId> {
        if answer.sequence != self.sequence || answer.sequence <= self.applied {
            return None;
        }
        self.applied = answer.sequence;
        answer.acknowledged.iter().for_each(|id| self.acknowledge(id));
        let mut load = None;
        for change in answer.changes {
            match change {
                Change::Load { model } => load = Some(model),
                Change::Unload { model } => self.unload(&model),
                change => self.change(change),
            }
        }
        for assignment in answer.assignments {
            self.begin(assignment);
        }
        load
    }

    /// An end was acknowledged.
    pub fn acknowledge(&mut self, id: &AttemptId) {
        self.ended.retain(|end| end.task != id.task || end.attempt != id.attempt);
    }

    fn unload(&mut self, model: &ModelId) {
        let needed = self.jobs.iter().any(|job| self.models[job.model] == *model);
        if !needed {
            self.resident.retain(|resident| resident != model);
        }
    }

    /// A model is in memory, if it still finds a place there.
    pub fn loaded(&mut self, model: ModelId) {
        let fits = self.model_places == 0 || self.resident.len() < self.model_places as usize;
        if fits && !self.resident.contains(&model) {
            self.resident.push(model);
        }
    }

    fn change(&mut self, change: Change) {
        let (Change::Plan { task, attempt, .. }
        | Change::Rank { task, attempt, .. }
        | Change::Pause { task, attempt, .. }
        | Change::Cancel { task, attempt }) = &change
        else {
            return;
        };
        let Some(place) = self.jobs.iter().position(|job| job.id.attempt == *attempt && job.id.task == *task)
        else {
            return;
        };
        let job = &mut self.jobs[place];
        match change {
            Change::Plan { option, .. } => {
                if let Some(option) = find(&self.options, &job.sketch, &option) {
                    job.take(&option);
                }
            }
            Change::Rank { rank, .. } => job.rank = rank,
            Change::Pause { paused, .. } => job.paused = paused,
            _ => drop(self.jobs.remove(place)),
        }
    }

    fn begin(&mut self, assignment: Assignment<Sketch>) {
        let Assignment { task, attempt, spec, model, option, beginning, rank, paused, .. } = assignment;
        let id = AttemptId { task, attempt };
        let known = self.jobs.iter().any(|job| job.id == id);
        if known || self.ended.iter().any(|end| end.task == id.task && end.attempt == id.attempt) {
            return;
        }
        let Some(option) = find(&self.options, &spec, &option) else { return };
        let Some(model) = self.models.iter().position(|of| *of == model) else { return };
        let (noise_level, lost) = match &beginning {
            Beginning::Noise => (1.0, 0.0),
            Beginning::State => spec.start.unwrap_or((1.0, 0.0)),
            Beginning::Checkpoint { key } => read_checkpoint(key).unwrap_or((1.0, 0.0)),
        };
        self.jobs.push(Job {
            id,
            sketch: spec,
            model,
            next: first_step(&option, noise_level),
            option,
            since: noise_level,
            lost,
            noise_level,
            rank,
            paused,
            finishing: false,
            stepping: false,
            machine_seconds: 0.0,
            steps: 0,
            checkpoint: None,
        });
    }

    /// Begins a step, if none is under way and there is something to step.
    pub fn step(&mut self) -> Option<Step> {
        if self.is_stepping {
            return None;
        }
        let ready = |job: &&mut Job| !job.paused && !job.finishing;
        let mut jobs: Vec<&mut Job> = self.jobs.iter_mut().filter(ready).collect();
        let candidate = |job: &&mut Job| Candidate { key: job.model, rank: job.rank, rows: job.rows() };
        let candidates: Vec<Candidate<usize>> = jobs.iter().map(candidate).collect();
        let chosen = self.batcher.choose(&candidates, self.rows);
        let model = candidates[*chosen.first()?].key;
        let rows: u32 = chosen.iter().map(|&i| candidates[i].rows).sum();
        if chosen.iter().any(|&i| jobs[i].sketch.deadly) {
            return Some(Step::Dies);
        }
        let seconds = self.machine.seconds(rows);
        for i in chosen {
            jobs[i].stepping = true;
            jobs[i].machine_seconds += seconds * f64::from(candidates[i].rows) / f64::from(rows.max(1));
        }
        self.is_stepping = true;
        self.note_times(model, rows, seconds);
        Some(Step::Takes(seconds))
    }

    fn note_times(&mut self, model: usize, rows: u32, seconds: f64) {
        let model = &self.models[model];
        match self.step_times.iter_mut().find(|times| times.rows == rows && times.model == *model) {
            Some(times) => times.steps += 1, // all take equally long
            None => self.step_times.push(StepTimes {
                model: model.clone(),
                denoiser: String::new(),
                shape: SHAPE,
                rows,
                steps: 1,
                seconds,
            }),
        }
    }

    /// The step under way is done.
    pub fn stepped(&mut self, then: &mut Vec<Then>) {
        self.is_stepping = false;
        let mut failed = vec![];
        for job in self.jobs.iter_mut().filter(|job| job.stepping) {
            job.stepping = false;
            // The step after the one that was taken begins where this one ends. A new plan may have come in the meantime.
            let end = job.option.steps.get(job.next + 1).map_or(0.0, |step| step.noise_level);
            job.noise_level = end;
            job.next += 1;
            job.steps += 1;
            if job.sketch.failing && job.steps > 1 {
                failed.push(job.id.clone());
            } else if job.noise_level == 0.0 {
                job.finishing = true;
                then.push(Then::Finish(job.id.clone()));
            } else if job.steps.is_multiple_of(CHECKPOINT_EVERY) {
                let key = write_checkpoint(job.noise_level, job.lost_here());
                job.checkpoint = Some(Checkpoint { noise_level: job.noise_level, key });
            }
        }
        for id in failed {
            self.jobs.retain(|job| job.id != id);
            let outcome = Outcome::Failed { why: "it cannot be painted".to_owned() };
            then.push(self.ended(id, outcome));
        }
    }

    /// A picture's file is done.
    pub fn finished(&mut self, id: &AttemptId) -> Option<Then> {
        let place = self.jobs.iter().position(|job| job.id == *id)?;
        let job = self.jobs.remove(place);
        let quality = job.option.quality_at(job.since) - job.lost;
        let (option, machine_seconds) = (job.option.id.clone(), Some(job.machine_seconds));
        Some(self.ended(job.id, Outcome::Done { option, machine_seconds, picture: Painted { quality } }))
    }

    fn ended(&mut self, id: AttemptId, outcome: Outcome<Painted>) -> Then {
        let end = TaskEnd { task: id.task, attempt: id.attempt, outcome };
        self.ended.push(end.clone());
        Then::End(end)
    }
}

/// An option by its name.
fn find(options: &[Arc<MenuOption>], sketch: &Sketch, id: &OptionId) -> Option<Arc<MenuOption>> {
    options.iter().chain(&sketch.own).find(|option| option.id == *id).cloned()
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
