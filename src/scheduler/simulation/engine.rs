//! A fake worker: it paints by waiting, and otherwise does what a worker does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::network::worker_id;
use crate::scheduler::batch::{Batcher, Candidate};
use crate::scheduler::menu::Menu;
use crate::scheduler::messages::{
    Assignment, AttemptId, Beginning, Change, Checkpoint, Held, Outcome, Place, Poll, PollAnswer, Rank,
    Report, Shape, StepTimes, TaskEnd,
};
use crate::scheduler::{ModelId, OptionId, Time};

/// Seconds of a step without rows, and of each row. A step of eight rows takes 10 ms.
const STEP: f64 = 0.002;
const ROW: f64 = 0.001;
/// Seconds from the last step to the file.
pub(super) const FINISHING: f64 = 0.005;
/// All simulated pictures have one size.
pub(super) const SHAPE: Shape = Shape { width: 64, height: 64 };

/// A fake specification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sketch {
    /// Whether it kills its worker.
    pub deadly: bool,
    /// Whether it fails.
    pub failing: bool,
    /// Quality that its stored start costs, and the noise level of that start.
    pub start: Option<(f64, f64)>,
}

/// A fake picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Painted {
    /// Quality of the options whose steps were really taken, leg by leg.
    pub quality: f64,
}

#[derive(Debug, Clone)]
struct Job {
    sketch: Sketch,
    model: ModelId,
    option: usize,
    /// Where the present option began, and the quality lost before.
    since: f64,
    lost: f64,
    noise_level: f64,
    rank: Rank,
    paused: bool,
    finishing: bool,
    machine_seconds: f64,
    steps: usize,
    checkpoint: Option<Checkpoint>,
}

/// What an event at a worker leads to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Then {
    /// A step that takes so many seconds has begun.
    Step(f64),
    /// A picture is finished in [`FINISHING`].
    Finish(AttemptId),
    /// An attempt has ended.
    End(TaskEnd<Painted>),
    /// The worker dies.
    Die,
}

#[derive(Debug)]
pub(super) struct Engine {
    index: usize,
    rows: u32,
    speed: f64,
    menu: Arc<Menu>,
    models: Vec<ModelId>,
    pub incarnation: u64,
    pub alive: bool,
    pub stalled_until: Time,
    pub sequence: u64,
    /// The last poll whose answer was applied.
    applied: u64,
    /// The number of the planned poll that counts.
    pub planned_poll: u64,
    jobs: BTreeMap<AttemptId, Job>,
    ended: Vec<TaskEnd<Painted>>,
    batch: Vec<AttemptId>,
    batcher: Batcher<ModelId>,
    step_times: VecDeque<StepTimes>,
    /// Noise level and loss of each checkpoint, which outlives the worker.
    pub stored: BTreeMap<String, (f64, f64)>,
}

impl Engine {
    pub fn new(index: usize, rows: u32, speed: f64, menu: Arc<Menu>, models: Vec<ModelId>) -> Self {
        Self {
            index,
            rows,
            speed,
            menu,
            models,
            incarnation: 1,
            alive: true,
            stalled_until: Time::ZERO,
            sequence: 0,
            applied: 0,
            planned_poll: 0,
            jobs: BTreeMap::new(),
            ended: vec![],
            batch: vec![],
            batcher: Batcher::default(),
            step_times: VecDeque::new(),
            stored: BTreeMap::new(),
        }
    }

    /// The process ends: all that it held is gone, but for stored checkpoints.
    pub fn die(&mut self) {
        self.alive = false;
        self.jobs.clear();
        self.ended.clear();
        self.batch.clear();
        self.step_times.clear();
    }

    /// A new process starts.
    pub fn revive(&mut self) {
        self.alive = true;
        self.incarnation += 1;
        self.sequence = 0;
        self.applied = 0;
    }

    /// Tasks that are paused.
    pub fn paused(&self) -> usize {
        self.jobs.values().filter(|job| job.paused && !job.finishing).count()
    }

    /// Tasks that are held, and ends that were not acknowledged.
    pub fn held(&self) -> usize {
        self.jobs.len() + self.ended.len()
    }

    /// The worker's next poll.
    pub fn poll(&mut self) -> Poll<Painted> {
        self.sequence += 1;
        let held = |(id, job): (&AttemptId, &Job)| Held {
            task: id.task.clone(),
            attempt: id.attempt,
            option: self.option_id(job.option),
            place: match job.finishing {
                true => Place::Finishing,
                false => Place::Stepping { noise_level: job.noise_level },
            },
            rank: job.rank,
            paused: job.paused,
            previews: 0,
            checkpoint: job.checkpoint.clone(),
        };
        let report = Report {
            pool: "simulated".to_owned(),
            rows: self.rows,
            loadable: self.models.clone(),
            resident: self.models.clone(),
            held: self.jobs.iter().map(held).collect(),
            ended: self.ended.clone(),
            step_times: self.step_times.drain(..).collect(),
            ..Report::default()
        };
        Poll { worker: worker_id(self.index), incarnation: self.incarnation, sequence: self.sequence, report }
    }

    fn option_id(&self, option: usize) -> OptionId {
        self.menu.get(option).map_or_else(|| "none".into(), |option| option.id.clone())
    }

    /// Applies an answer, if it is to the newest poll and was not applied before.
    pub fn apply(&mut self, answer: PollAnswer<Sketch>, stored: &BTreeMap<String, (f64, f64)>) {
        if answer.sequence != self.sequence || answer.sequence <= self.applied {
            return;
        }
        self.applied = answer.sequence;
        self.ended.retain(|end| {
            !answer.acknowledged.iter().any(|id| id.task == end.task && id.attempt == end.attempt)
        });
        for change in answer.changes {
            self.change(change);
        }
        for assignment in answer.assignments {
            self.begin(assignment, stored);
        }
    }

    /// An end was acknowledged.
    pub fn acknowledge(&mut self, id: &AttemptId) {
        self.ended.retain(|end| end.task != id.task || end.attempt != id.attempt);
    }

    fn change(&mut self, change: Change) {
        let (Change::Plan { task, attempt, .. }
        | Change::Rank { task, attempt, .. }
        | Change::Pause { task, attempt, .. }
        | Change::Cancel { task, attempt }) = &change
        else {
            return;
        };
        let id = AttemptId { task: task.clone(), attempt: *attempt };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match change {
            Change::Plan { option, .. } => {
                let Some(new) = self.menu.find(&option) else { return };
                let quality = |at| self.menu.get(job.option).map_or(0.0, |option| option.quality_at(at));
                job.lost += (quality(job.noise_level) - quality(job.since)).max(0.0);
                (job.option, job.since) = (new, job.noise_level);
            }
            Change::Rank { rank, .. } => job.rank = rank,
            Change::Pause { paused, .. } => job.paused = paused,
            Change::Cancel { .. } => drop(self.jobs.remove(&id)),
            Change::Previews { .. } | Change::Load { .. } | Change::Unload { .. } | Change::Unknown => {}
        }
    }

    fn begin(&mut self, assignment: Assignment<Sketch>, stored: &BTreeMap<String, (f64, f64)>) {
        let Assignment { task, attempt, spec, model, option, beginning, rank, paused, .. } = assignment;
        let id = AttemptId { task, attempt };
        let ended = self.ended.iter().any(|end| end.task == id.task && end.attempt == id.attempt);
        let Some(option) = self.menu.find(&option).filter(|_| !ended && !self.jobs.contains_key(&id)) else {
            return;
        };
        let (noise_level, lost) = match &beginning {
            Beginning::Noise => (1.0, 0.0),
            Beginning::State => spec.start.unwrap_or((1.0, 0.0)),
            Beginning::Checkpoint { key } => stored.get(key).copied().unwrap_or((1.0, 0.0)),
        };
        self.jobs.insert(
            id,
            Job {
                sketch: spec,
                model,
                option,
                since: noise_level,
                lost,
                noise_level,
                rank,
                paused,
                finishing: false,
                machine_seconds: 0.0,
                steps: 0,
                checkpoint: None,
            },
        );
    }

    /// Begins a step, if none is under way and there is something to step.
    pub fn step(&mut self) -> Option<Then> {
        if !self.batch.is_empty() {
            return None;
        }
        let ready = self.jobs.iter().filter(|(_, job)| !job.paused && !job.finishing);
        let rows = |job: &Job| {
            self.menu.get(job.option).map_or(1, |option| {
                let next = option.steps.iter().find(|step| step.noise_level <= job.noise_level + 1e-6);
                next.or(option.steps.last()).map_or(1, |step| step.rows)
            })
        };
        let (ids, candidates): (Vec<AttemptId>, Vec<Candidate<ModelId>>) = ready
            .map(|(id, job)| {
                (id.clone(), Candidate { key: job.model.clone(), rank: job.rank, rows: rows(job) })
            })
            .unzip();
        let chosen = self.batcher.choose(&candidates, self.rows);
        self.batch = chosen.iter().map(|&i| ids[i].clone()).collect();
        let rows: u32 = chosen.iter().map(|&i| candidates[i].rows).sum();
        let first = chosen.first()?;
        if self.batch.iter().any(|id| self.jobs.get(id).is_some_and(|job| job.sketch.deadly)) {
            return Some(Then::Die);
        }
        let seconds = self.speed * (STEP + ROW * f64::from(rows));
        for &i in &chosen {
            if let Some(job) = self.jobs.get_mut(&ids[i]) {
                job.machine_seconds += seconds * f64::from(candidates[i].rows) / f64::from(rows.max(1));
            }
        }
        let model = candidates[*first].key.clone();
        let times = StepTimes { model, denoiser: String::new(), shape: SHAPE, rows, steps: 1, seconds };
        if self.step_times.len() >= 16 {
            self.step_times.pop_front();
        }
        self.step_times.push_back(times);
        Some(Then::Step(seconds))
    }

    /// The step under way is done.
    pub fn stepped(&mut self) -> Vec<Then> {
        let mut then = vec![];
        for id in std::mem::take(&mut self.batch) {
            let Some(job) = self.jobs.get_mut(&id) else { continue }; // it was cancelled
            let Some(option) = self.menu.get(job.option) else { continue };
            let next =
                option.steps.iter().map(|step| step.noise_level).filter(|at| *at < job.noise_level - 1e-6);
            // The step after the one that was taken begins where this one ends.
            job.noise_level = next.reduce(f64::max).unwrap_or(0.0);
            job.steps += 1;
            let quality = |at: f64| option.quality_at(at);
            if job.sketch.failing && job.steps > 1 {
                self.jobs.remove(&id);
                then.push(self.ended(id, Outcome::Failed { why: "it cannot be painted".to_owned() }));
            } else if job.noise_level == 0.0 {
                job.finishing = true;
                then.push(Then::Finish(id));
            } else if job.steps.is_multiple_of(4) {
                let lost = job.lost + (quality(job.noise_level) - quality(job.since)).max(0.0);
                let key = format!("{}/{}/{}", id.task, id.attempt, job.steps);
                self.stored.insert(key.clone(), (job.noise_level, lost));
                job.checkpoint = Some(Checkpoint { noise_level: job.noise_level, key });
            }
        }
        then
    }

    /// A picture's file is done.
    pub fn finished(&mut self, id: AttemptId) -> Option<Then> {
        let job = self.jobs.remove(&id)?;
        let quality = self.menu.get(job.option)?.quality_at(job.since) - job.lost;
        let (option, machine_seconds) = (self.option_id(job.option), Some(job.machine_seconds));
        Some(self.ended(id, Outcome::Done { option, machine_seconds, picture: Painted { quality } }))
    }

    fn ended(&mut self, id: AttemptId, outcome: Outcome<Painted>) -> Then {
        let end = TaskEnd { task: id.task, attempt: id.attempt, outcome };
        self.ended.push(end.clone());
        Then::End(end)
    }
}
