//! Tasks that wait or run, and how equal pictures become one task.

use std::collections::HashMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::demand::BucketKey;
use super::options::{Facts, Origin, Position};
use super::order::Lane;
use super::workers::WorkerKey;
use crate::scheduler::messages::{PictureId, Rank};
use crate::scheduler::time::Time;
use crate::scheduler::{ClientId, OptionId, RequestId, TaskId, WorkerId};

/// A task within this process, by rising order of arrival.
pub(super) type TaskKey = u64;

/// The most pictures that one painting answers. Beyond it a second painting begins, so that the end of one task is never
/// the work of thousands.
const MAX_LISTENERS: usize = 64;

/// A picture of a request that a task answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listener {
    pub request: RequestId,
    pub index: u32,
    pub client: ClientId,
    /// Previews that it wants.
    pub previews: u32,
}

/// One option that a trajectory took, from a noise level on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Leg {
    pub option: usize,
    pub noise_level: f64,
    /// Quality lost before it.
    pub lost: f64,
}

/// A checkpoint, and what was lost before it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KeptState {
    pub key: String,
    pub noise_level: f64,
    pub lost: f64,
    pub option: usize,
}

/// An attempt at a task, at a worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    pub worker: WorkerKey,
    pub rank: Rank,
    /// Machine seconds that the client was charged, and those that the present option is predicted to take in all.
    pub charged: f64,
    pub predicted: f64,
    /// Where the attempt began.
    pub origin: Origin,
    /// The checkpoint that it began with.
    pub from: Option<String>,
    /// The options that it took, at least one; the last is the one that is wanted.
    pub legs: Vec<Leg>,
    pub noise_level: f64,
    /// Rows of its steps; 0 once they are done.
    pub rows: u32,
    pub paused: bool,
}

impl Run {
    /// The option that is wanted now.
    pub fn leg(&self) -> Leg {
        self.legs.last().copied().unwrap_or(Leg { option: 0, noise_level: 1.0, lost: 0.0 })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Phase {
    /// It waits, in a lane of its model's queue.
    Waiting(Lane),
    Running(Box<Run>),
}

impl Phase {
    pub fn run_mut(&mut self) -> Option<&mut Run> {
        match self {
            Self::Running(run) => Some(run),
            Self::Waiting(_) => None,
        }
    }
}

/// A picture to be painted.
#[derive(Debug)]
pub(super) struct Task<Spec> {
    pub id: TaskId,
    pub spec: Spec,
    pub facts: Arc<Facts>,
    pub picture: PictureId,
    /// The client whose turn it uses.
    pub client: ClientId,
    pub deadline: Time,
    pub listeners: Vec<Listener>,
    pub phase: Phase,
    /// The last attempt and its worker, while the task waits because that was lost: it may come back with it.
    pub suspended: Option<(WorkerId, Box<Run>)>,
    /// Attempts begun.
    pub attempt: u32,
    /// The options that earlier attempts took: their successes count, too.
    pub past: Vec<(u32, Vec<Leg>)>,
    /// Workers that were lost with it.
    pub losses: u32,
    pub checkpoint: Option<KeptState>,
    /// Fewest steps of its options, once it was begun from another picture's state.
    pub least_steps: u32,
    /// It was late, yielded for as long as its objective, and takes its turn again.
    pub yielded: bool,
    /// Its bucket, and machine seconds at its floor.
    pub bucket: Option<(BucketKey, f64)>,
}

impl<Spec> Task<Spec> {
    pub fn run(&self) -> Option<&Run> {
        match &self.phase {
            Phase::Running(run) => Some(run),
            Phase::Waiting(_) => None,
        }
    }

    pub fn run_mut(&mut self) -> Option<&mut Run> {
        self.phase.run_mut()
    }

    /// Previews that are made of it: the most that a listener wants.
    pub fn previews(&self) -> u32 {
        self.listeners.iter().map(|listener| listener.previews).max().unwrap_or(0)
    }

    /// Until when a late task yields: it has waited as long again as was promised.
    pub fn yields_until(&self) -> Time {
        self.deadline.after(self.facts.terms.deadline_seconds)
    }

    /// Where it is, or may begin.
    pub fn positions(&self) -> Vec<Position> {
        match self.run() {
            Some(run) => {
                let lost = self.lost_until(run, run.noise_level);
                vec![self.own(run.noise_level, lost, run.leg().option)]
            }
            None => self.beginnings(),
        }
    }

    /// Where a next attempt may begin.
    pub fn beginnings(&self) -> Vec<Position> {
        match &self.checkpoint {
            Some(kept) => vec![self.own(kept.noise_level, kept.lost, kept.option)],
            None => self.facts.beginnings(),
        }
    }

    fn own(&self, noise_level: f64, lost: f64, current: usize) -> Position {
        let (origin, least_steps) = (Origin::Own, self.least_steps);
        Position { origin, noise_level, lost, least_steps, current: Some(current) }
    }

    /// Quality that was lost when the trajectory is at a noise level: what its options are expected to lose from noise,
    /// less what they lose from there. Losses add up, which is careful: later steps also mend.
    pub fn lost_until(&self, run: &Run, noise_level: f64) -> f64 {
        let Leg { option, noise_level: since, lost } = run.leg();
        let quality = |at| self.facts.menu.get(option).map_or(1.0, |option| option.quality_at(at));
        lost + (quality(noise_level) - quality(since)).max(0.0)
    }

    /// Expected quality of the picture, if `option` took the last steps of an attempt. Of an attempt that is not known
    /// nothing is expected.
    pub fn expected_quality(&self, attempt: u32, option: &OptionId) -> f64 {
        let past = self.past.iter().find(|(of, _)| *of == attempt).map(|(_, legs)| legs);
        let present = self.run().filter(|_| attempt == self.attempt).map(|run| &run.legs);
        let place = self.facts.menu.find(option);
        let legs = present.or(past).into_iter().flatten();
        let leg = legs.rev().find(|leg| Some(leg.option) == place);
        let quality =
            |leg: &Leg| Some(self.facts.menu.get(leg.option)?.quality_at(leg.noise_level) - leg.lost);
        leg.and_then(quality).unwrap_or(0.0).clamp(0.0, 1.0)
    }
}

/// What must be equal for two pictures to be painted once: scope, specification, terms and options.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct JoinKey {
    picture: PictureId,
    tier: String,
    /// The terms' numbers, as bits.
    numbers: [u64; 3],
    firm: bool,
    allowed: Option<Vec<usize>>,
    /// The only option, where it is not of the model's menu.
    own: Option<(OptionId, usize)>,
}

impl JoinKey {
    pub fn of(picture: &PictureId, facts: &Facts) -> Self {
        let terms = &facts.terms;
        let own = (facts.menu.len() == 1).then(|| facts.menu.get(0)).flatten();
        Self {
            picture: picture.clone(),
            tier: terms.tier.clone(),
            numbers: [terms.floor, terms.best, terms.deadline_seconds].map(f64::to_bits),
            firm: terms.firm,
            allowed: facts.allowed.clone(),
            own: own.map(|option| (option.id.clone(), option.steps.len())),
        }
    }
}

/// All tasks. Things are looked up in the maps, which are never walked: their order is not reproducible.
#[derive(Debug)]
pub(super) struct Tasks<Spec> {
    /// Boxed, so that a map that grows moves little.
    tasks: FxHashMap<TaskKey, Box<Task<Spec>>>,
    by_id: HashMap<TaskId, TaskKey>,
    /// The newest painting of each picture that one more may join.
    joinable: HashMap<JoinKey, TaskKey>,
    next: TaskKey,
}

impl<Spec> Default for Tasks<Spec> {
    fn default() -> Self {
        Self { tasks: FxHashMap::default(), by_id: HashMap::new(), joinable: HashMap::new(), next: 0 }
    }
}

impl<Spec> Tasks<Spec> {
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    pub fn get(&self, key: TaskKey) -> Option<&Task<Spec>> {
        self.tasks.get(&key).map(Box::as_ref)
    }

    pub fn get_mut(&mut self, key: TaskKey) -> Option<&mut Task<Spec>> {
        self.tasks.get_mut(&key).map(Box::as_mut)
    }

    pub fn find(&self, id: &TaskId) -> Option<TaskKey> {
        self.by_id.get(id).copied()
    }

    /// All keys, by order of arrival.
    pub fn keys(&self) -> Vec<TaskKey> {
        let mut keys: Vec<TaskKey> = self.tasks.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// The task that paints an equal picture under equal terms, if `more` pictures may join it.
    pub fn joinable(&self, key: &JoinKey, more: usize) -> Option<TaskKey> {
        let task = *self.joinable.get(key)?;
        (self.get(task)?.listeners.len() + more <= MAX_LISTENERS).then_some(task)
    }

    /// Adds a task.
    pub fn insert(&mut self, task: Task<Spec>) -> TaskKey {
        self.next += 1;
        self.by_id.insert(task.id.clone(), self.next);
        self.joinable.insert(JoinKey::of(&task.picture, &task.facts), self.next);
        self.tasks.insert(self.next, Box::new(task));
        self.next
    }

    /// Removes a task.
    pub fn remove(&mut self, key: TaskKey) -> Option<Box<Task<Spec>>> {
        let task = self.tasks.remove(&key)?;
        self.by_id.remove(&task.id);
        let join = JoinKey::of(&task.picture, &task.facts);
        if self.joinable.get(&join) == Some(&key) {
            self.joinable.remove(&join);
        }
        Some(task)
    }

    /// What the maps hold, for tests of what grows.
    #[cfg(test)]
    pub fn sizes(&self) -> [usize; 3] {
        [self.tasks.len(), self.by_id.len(), self.joinable.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::tests::facts;
    use super::*;
    use crate::scheduler::messages::Terms;

    fn task(hash: u8, floor: f64, request: &str) -> Task<()> {
        let listener = Listener { request: request.into(), index: 0, client: "c".into(), previews: 0 };
        Task {
            id: TaskId { request: request.into(), index: 0 },
            spec: (),
            facts: Arc::new(facts(floor, 1.0)),
            picture: PictureId { scope: "s".into(), hash: [hash; 32] },
            client: "c".into(),
            deadline: Time::ZERO.after(1.0),
            listeners: vec![listener],
            phase: Phase::Waiting(Lane::InTime),
            suspended: None,
            attempt: 0,
            past: vec![],
            losses: 0,
            checkpoint: None,
            least_steps: 0,
            yielded: false,
            bucket: None,
        }
    }

    #[test]
    fn equal_pictures_of_equal_terms_are_joined_until_there_are_too_many() {
        let mut tasks = Tasks::default();
        let first = tasks.insert(task(1, 0.9, "a"));
        let key = |hash, floor| JoinKey::of(&task(hash, floor, "").picture, &facts(floor, 1.0));
        assert_eq!(tasks.joinable(&key(1, 0.9), 1), Some(first));
        assert_eq!((tasks.joinable(&key(2, 0.9), 1), tasks.joinable(&key(1, 0.8), 1)), (None, None));
        let other =
            Facts { terms: Terms { deadline_seconds: 2.0, ..facts(0.9, 1.0).terms }, ..facts(0.9, 1.0) };
        assert_eq!(tasks.joinable(&JoinKey::of(&task(1, 0.9, "").picture, &other), 1), None);
        let listener = tasks.get(first).unwrap().listeners[0].clone();
        tasks.get_mut(first).unwrap().listeners.resize(MAX_LISTENERS, listener);
        assert_eq!(tasks.joinable(&key(1, 0.9), 1), None);
        let second = tasks.insert(task(1, 0.9, "b"));
        tasks.remove(first);
        assert_eq!(tasks.joinable(&key(1, 0.9), 1), Some(second), "the newer one is still joined");
        tasks.remove(second);
        assert_eq!(tasks.sizes(), [0, 0, 0]);
    }

    #[test]
    fn quality_is_lost_leg_by_leg() {
        // 16 steps lose nothing; 8 steps lose 0.04 from noise and 0.01 from a half.
        let mut task = task(1, 0.0, "a");
        let mut run = Run {
            worker: 0,
            rank: Rank { yields: false, tag: 0.0 },
            charged: 0.0,
            predicted: 0.0,
            origin: Origin::Noise,
            from: None,
            legs: vec![Leg { option: 1, noise_level: 1.0, lost: 0.0 }],
            noise_level: 0.5,
            rows: 2,
            paused: false,
        };
        assert!((task.lost_until(&run, 0.5) - 0.03).abs() < 1e-9);
        run.legs.push(Leg { option: 0, noise_level: 0.5, lost: 0.03 });
        task.phase = Phase::Running(Box::new(run));
        assert!((task.expected_quality(0, &"4".into()) - 0.94).abs() < 1e-9, "0.97 from a half, less 0.03");
        assert!((task.expected_quality(0, &"8".into()) - 0.96).abs() < 1e-9, "the change never arrived");
        assert_eq!(task.expected_quality(0, &"unknown".into()), 0.0);
        assert_eq!(task.expected_quality(7, &"4".into()), 0.0);
        task.past.push((7, vec![Leg { option: 0, noise_level: 1.0, lost: 0.02 }]));
        assert!((task.expected_quality(7, &"4".into()) - 0.88).abs() < 1e-9);
    }
}
