//! Workers, sets of interchangeable ones, and which of them are lost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::config::Tuning;
use super::latency::{Kind, Latency, Pace, pace};
use super::price::Price;
use super::tasks::TaskKey;
use crate::scheduler::messages::Report;
use crate::scheduler::time::Time;
use crate::scheduler::{ModelId, WorkerId};

/// A set of interchangeable workers: of one pool, with the same models to load.
pub(super) type SetKey = u32;
/// A worker that polls; its place among them. Another worker may get the place of one that was lost.
pub(super) type WorkerKey = usize;

#[derive(Debug)]
pub(super) struct Worker {
    pub id: WorkerId,
    pub incarnation: u64,
    pub sequence: u64,
    pub last_poll: Time,
    pub set: SetKey,
    /// Rows of its largest batch, and those that it prepares beyond.
    pub rows: u32,
    pub ahead_rows: u32,
    pool: String,
    loadable: Vec<ModelId>,
    pub resident: Vec<ModelId>,
    pub model_places: u32,
    pub draining: bool,
    pub latency: Latency,
    /// Tasks that are assigned to it.
    pub tasks: BTreeSet<TaskKey>,
    /// Rows that are not assigned, as its set's index knows them.
    pub free_rows: u32,
}

/// Interchangeable workers.
#[derive(Debug)]
pub(super) struct Set {
    pub models: Vec<ModelId>,
    pub workers: usize,
    pub rows: u64,
    pub latency: Latency,
    pub price: Price,
    /// Workers with free rows, the most first.
    free: BTreeSet<(Reverse<u32>, WorkerKey)>,
}

impl Set {
    /// Rows of a full batch, on average.
    pub fn full_rows(&self) -> f64 {
        self.rows as f64 / self.workers.max(1) as f64
    }

    /// The pace of a kind of steps in full batches.
    pub fn pace(&self, kind: Kind<'_>) -> Pace {
        pace(&[&self.latency], kind, self.full_rows(), self.full_rows())
    }

    /// The worker that has most rows free.
    pub fn freest(&self) -> Option<WorkerKey> {
        self.free.first().map(|(_, worker)| *worker)
    }

    /// The most rows that one of its workers has free.
    pub fn most_free(&self) -> u32 {
        self.free.first().map_or(0, |(rows, _)| rows.0)
    }
}

/// How a poll is received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// It is the worker's newest.
    Newest(WorkerKey),
    /// It is the first of a new process: the last one's tasks are lost.
    Restarted(WorkerKey),
    /// It arrived after a newer one.
    Stale,
    /// There are too many workers.
    Refused,
}

/// All workers that poll.
#[derive(Debug, Default)]
pub(super) struct Workers {
    keys: HashMap<WorkerId, WorkerKey>,
    workers: Vec<Option<Worker>>,
    /// Places of workers that were lost.
    unused: Vec<WorkerKey>,
    sets: BTreeMap<SetKey, Set>,
    set_of: BTreeMap<(String, Vec<ModelId>), SetKey>,
    by_model: BTreeMap<ModelId, BTreeSet<SetKey>>,
    /// Workers by their last poll.
    by_poll: BTreeSet<(Time, WorkerKey)>,
    /// Workers that were lost or restarted in the last `lost_after` seconds.
    vanished: VecDeque<(Time, WorkerId)>,
    next_set: SetKey,
}

impl Workers {
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Tasks that workers have.
    pub fn tasks(&self) -> usize {
        self.workers.iter().flatten().map(|worker| worker.tasks.len()).sum()
    }

    pub fn get(&self, key: WorkerKey) -> Option<&Worker> {
        self.workers.get(key)?.as_ref()
    }

    pub fn get_mut(&mut self, key: WorkerKey) -> Option<&mut Worker> {
        self.workers.get_mut(key)?.as_mut()
    }

    pub fn set(&self, key: SetKey) -> Option<&Set> {
        self.sets.get(&key)
    }

    pub fn set_mut(&mut self, key: SetKey) -> Option<&mut Set> {
        self.sets.get_mut(&key)
    }

    pub fn sets(&self) -> impl Iterator<Item = (SetKey, &Set)> {
        self.sets.iter().map(|(key, set)| (*key, set))
    }

    /// The sets that can load a model.
    pub fn serving(&self, model: &ModelId) -> impl Iterator<Item = (SetKey, &Set)> {
        let keys = self.by_model.get(model).into_iter().flatten();
        keys.filter_map(|key| Some((*key, self.sets.get(key)?)))
    }

    /// The part of a model's work that a set does: it is spread over all workers that can load it.
    pub fn share(&self, model: &ModelId, set: &Set) -> f64 {
        let all: usize = self.serving(model).map(|(_, set)| set.workers).sum();
        set.workers as f64 / all.max(1) as f64
    }

    /// Takes note of a poll; `most` workers at most are known.
    pub fn receive(
        &mut self,
        id: &WorkerId,
        incarnation: u64,
        sequence: u64,
        now: Time,
        most: usize,
    ) -> Received {
        let Some(&key) = self.keys.get(id) else {
            if self.keys.len() >= most {
                return Received::Refused;
            }
            let key = self.insert(Worker::new(id.clone(), incarnation, sequence, now));
            self.by_poll.insert((now, key));
            return Received::Newest(key);
        };
        let Some(worker) = self.get_mut(key) else { return Received::Refused };
        if (incarnation, sequence) <= (worker.incarnation, worker.sequence) {
            return Received::Stale;
        }
        let (restarted, last_poll) = (incarnation > worker.incarnation, worker.last_poll);
        (worker.incarnation, worker.sequence, worker.last_poll) = (incarnation, sequence, now);
        self.by_poll.remove(&(last_poll, key));
        self.by_poll.insert((now, key));
        if restarted {
            self.vanish(now, id.clone());
            Received::Restarted(key)
        } else {
            Received::Newest(key)
        }
    }

    fn insert(&mut self, worker: Worker) -> WorkerKey {
        let id = worker.id.clone();
        let key = match self.unused.pop() {
            Some(key) => {
                self.workers[key] = Some(worker);
                key
            }
            None => {
                self.workers.push(Some(worker));
                self.workers.len() - 1
            }
        };
        self.keys.insert(id, key);
        key
    }

    /// Takes over what a report says of the worker itself.
    pub fn update<Picture>(&mut self, key: WorkerKey, report: &Report<Picture>, tuning: &Tuning) {
        let Some(worker) = self.workers.get_mut(key).and_then(Option::as_mut) else { return };
        worker.ahead_rows = report.ahead_rows;
        worker.model_places = report.model_places;
        worker.draining = report.draining;
        if worker.resident != report.resident {
            worker.resident.clone_from(&report.resident);
        }
        let moved = worker.pool != report.pool || worker.loadable != report.loadable || worker.set == 0;
        if moved || worker.rows != report.rows {
            self.enter_set(key, report);
        }
        let Some(worker) = self.workers.get_mut(key).and_then(Option::as_mut) else { return };
        let Some(of) = self.sets.get_mut(&worker.set) else { return };
        for times in report.step_times.iter().take(64) {
            worker.latency.observe(times, tuning);
            of.latency.observe(times, tuning);
        }
        for time in report.overhead_times.iter().take(64) {
            worker.latency.observe_overhead(time, tuning);
            of.latency.observe_overhead(time, tuning);
        }
    }

    /// A worker comes into the set that its report says, with its rows.
    fn enter_set<Picture>(&mut self, key: WorkerKey, report: &Report<Picture>) {
        let mut models: Vec<ModelId> = report.loadable.iter().chain(&report.resident).cloned().collect();
        models.sort();
        models.dedup();
        let of_set = (report.pool.clone(), models);
        let set = match self.set_of.get(&of_set) {
            Some(set) => *set,
            None => self.new_set(of_set),
        };
        self.leave_set(key, Some(set));
        let Some(worker) = self.workers.get_mut(key).and_then(Option::as_mut) else { return };
        let Some(of) = self.sets.get_mut(&set) else { return };
        of.workers += 1;
        of.rows += u64::from(report.rows);
        (worker.set, worker.rows) = (set, report.rows);
        (worker.pool, worker.loadable) = (report.pool.clone(), report.loadable.clone());
    }

    fn new_set(&mut self, key: (String, Vec<ModelId>)) -> SetKey {
        self.next_set += 1;
        let set = self.next_set;
        for model in &key.1 {
            self.by_model.entry(model.clone()).or_default().insert(set);
        }
        let models = key.1.clone();
        let of = Set {
            models,
            workers: 0,
            rows: 0,
            latency: Latency::default(),
            price: Price::default(),
            free: BTreeSet::new(),
        };
        self.sets.insert(set, of);
        self.set_of.insert(key, set);
        set
    }

    /// A worker leaves its set, which goes with its last worker, unless it is to `stay`.
    fn leave_set(&mut self, id: WorkerKey, stay: Option<SetKey>) {
        let Some(worker) = self.workers.get_mut(id).and_then(Option::as_mut) else { return };
        let key = worker.set;
        let Some(set) = self.sets.get_mut(&key) else { return };
        set.free.remove(&(Reverse(worker.free_rows), id));
        worker.free_rows = 0;
        set.workers -= 1;
        set.rows -= u64::from(worker.rows);
        worker.set = 0;
        if set.workers == 0 && stay != Some(key) {
            for model in &set.models {
                if let Some(sets) = self.by_model.get_mut(model) {
                    sets.remove(&key);
                    if sets.is_empty() {
                        self.by_model.remove(model);
                    }
                }
            }
            self.sets.remove(&key);
            self.set_of.retain(|_, set| *set != key);
        }
    }

    /// Takes note of a worker's free rows.
    pub fn set_free(&mut self, key: WorkerKey, free: u32) {
        let Some(worker) = self.workers.get_mut(key).and_then(Option::as_mut) else { return };
        let free = if worker.draining { 0 } else { free };
        if free == worker.free_rows {
            return;
        }
        let Some(set) = self.sets.get_mut(&worker.set) else { return };
        set.free.remove(&(Reverse(worker.free_rows), key));
        worker.free_rows = free;
        if free > 0 {
            set.free.insert((Reverse(free), key));
        }
    }

    /// Forgets workers that have not polled for `lost_after` seconds. Returns each, with its tasks.
    pub fn lose(&mut self, now: Time, lost_after: f64) -> Vec<(WorkerKey, Worker)> {
        while self.vanished.front().is_some_and(|(at, ..)| now.since(*at) > lost_after) {
            self.vanished.pop_front();
        }
        let mut lost = Vec::new();
        while self.by_poll.first().is_some_and(|(last, _)| now.since(*last) > lost_after) {
            let Some((_, key)) = self.by_poll.pop_first() else { break };
            self.leave_set(key, None);
            if let Some(worker) = self.workers.get_mut(key).and_then(Option::take) {
                self.keys.remove(&worker.id);
                self.unused.push(key);
                self.vanish(now, worker.id.clone());
                lost.push((key, worker));
            }
        }
        lost
    }

    fn vanish(&mut self, now: Time, id: WorkerId) {
        self.vanished.push_back((now, id));
        // A worker that restarts all the time fills no memory.
        if self.vanished.len() > 2 * self.keys.len() + 1000 {
            self.vanished.pop_front();
        }
    }

    /// Whether most workers vanished together, so that the tasks they held are not to blame: the network, the power or
    /// this process stood still. Vanished are those that were lost or restarted lately, and those that are silent for half
    /// the time after which they are lost. One or two are not many: there the tasks are to blame.
    pub fn most_vanished(&self, now: Time, lost_after: f64) -> bool {
        // One that restarts again and again counts once.
        let vanished: BTreeSet<&WorkerId> = self.vanished.iter().map(|(_, id)| id).collect();
        let lost = vanished.iter().filter(|id| !self.keys.contains_key(id)).count();
        let late = self.by_poll.iter().take_while(|(last, _)| now.since(*last) > lost_after / 2.0);
        let late = late.filter_map(|(_, key)| self.get(*key));
        let silent = late.filter(|worker| !vanished.contains(&worker.id)).count();
        let gone = silent + vanished.len();
        gone >= 3 && 2 * gone > self.keys.len() + lost
    }
}

impl Worker {
    fn new(id: WorkerId, incarnation: u64, sequence: u64, now: Time) -> Self {
        Self {
            id,
            incarnation,
            sequence,
            last_poll: now,
            set: 0,
            rows: 0,
            ahead_rows: 0,
            pool: String::new(),
            loadable: vec![],
            resident: vec![],
            model_places: 0,
            draining: false,
            latency: Latency::default(),
            tasks: BTreeSet::new(),
            free_rows: 0,
        }
    }
}

#[cfg(test)]
mod tests;
