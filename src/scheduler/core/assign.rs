//! Which tasks a worker gets, and which of its tasks are paused.

use super::Core;
use super::admission::kind;
use super::latency::{Pace, pace};
use super::options::{Choice, Facts, Origin, choose, offers};
use super::order::Lane;
use super::tasks::{Leg, Phase, Run, TaskKey};
use super::workers::WorkerKey;
use crate::scheduler::messages::{Assignment, Beginning, Rank};
use crate::scheduler::{ModelId, Time};

/// A task at a worker, as far as rows go.
pub(super) struct Part {
    pub key: TaskKey,
    pub rank: Rank,
    pub rows: u32,
}

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// How fast a task's steps are at a worker, in batches of `rows` rows.
    pub(super) fn pace_at(&self, worker: WorkerKey, facts: &Facts, denoiser: &str, rows: f64) -> Pace {
        let kind = kind(facts, denoiser);
        let Some(of) = self.workers.get(worker) else { return pace(&[], kind, rows, rows) };
        let set = self.workers.set(of.set).map(|set| &set.latency);
        match set {
            Some(set) => pace(&[&of.latency, set], kind, rows, f64::from(of.rows)),
            None => pace(&[&of.latency], kind, rows, f64::from(of.rows)),
        }
    }

    /// The price of the set that a worker belongs to.
    pub(super) fn price_at(&self, worker: WorkerKey) -> f64 {
        let set = self.workers.get(worker).and_then(|worker| self.workers.set(worker.set));
        set.map_or(0.0, |set| set.price.now())
    }

    /// Assigns waiting tasks to a worker while it has free rows, and beyond that those of better rank than what it holds.
    pub(super) fn fill(&mut self, now: Time, worker: WorkerKey) {
        let Some(of) = self.workers.get(worker).filter(|of| !of.draining) else { return };
        let (models, rows, ahead) = (of.resident.clone(), of.rows, of.ahead_rows);
        if rows == 0 {
            return;
        }
        loop {
            let held = self.parts(worker);
            let used: u32 = held.iter().map(|part| part.rows).sum();
            let Some((key, rank, choice)) = self.next_for(now, worker, &models, used.min(rows)) else {
                return;
            };
            let after = used + choice.offer.rows;
            let fits = used == 0 || after <= rows + ahead;
            let held_at_most = self.config.tuning.overcommit * rows + ahead;
            if !fits && (after > held_at_most || !self.takes_over(key, rank, choice.offer.rows, &held)) {
                return;
            }
            self.assign(now, key, worker, &choice, rank.yields);
        }
    }

    /// The best task that waits for one of these models, its rank, and the option that it takes at this worker.
    fn next_for(
        &mut self,
        now: Time,
        worker: WorkerKey,
        models: &[ModelId],
        company: u32,
    ) -> Option<(TaskKey, Rank, Choice)> {
        loop {
            let heads = |lane| {
                let of = models.iter().filter_map(|model| self.order.head(model, lane));
                of.min_by(|(tag, key), (other, than)| tag.total_cmp(other).then(key.cmp(than)))
            };
            let (lane, (tag, key)) = match heads(Lane::InTime) {
                Some(head) => (Lane::InTime, head),
                None => (Lane::Late, heads(Lane::Late)?),
            };
            let task = self.tasks.get(key)?;
            let facts = task.facts.clone();
            let rows = f64::from(company + 2);
            let offers =
                offers(&facts, &task.positions(), |denoiser| self.pace_at(worker, &facts, denoiser, rows));
            let seconds = self.config.tuning.headroom * task.deadline.since(now);
            let choice = self.config.policy.choose(&facts, &offers, self.price_at(worker), seconds)?;
            if choice.late && lane == Lane::InTime && !task.yielded {
                self.yield_turn(key);
                continue;
            }
            let yields = choice.late && !task.yielded;
            return Some((key, Rank { yields, tag }, choice));
        }
    }

    /// Whether a waiting task goes before one that the full worker holds. A task of the same client with a later deadline
    /// changes places with it; a task of another client is paused if its rank is worse, unless another worker has room.
    fn takes_over(&mut self, key: TaskKey, rank: Rank, rows: u32, held: &[Part]) -> bool {
        let Some(task) = self.tasks.get(key) else { return false };
        let room = self.workers.serving(&task.facts.model).any(|(_, set)| set.most_free() >= rows);
        if room {
            return false;
        }
        if held.iter().any(|part| part.rows > 0 && rank < part.rank) {
            return true;
        }
        let (client, deadline) = (task.client.clone(), task.deadline);
        let of_client = held.iter().filter_map(|part| Some((part, self.tasks.get(part.key)?)));
        let later = of_client
            .filter(|(part, other)| part.rows > 0 && other.client == client && other.deadline > deadline)
            .max_by_key(|(part, other)| (other.deadline, part.key));
        let Some((part, _)) = later.filter(|(part, _)| part.rank.yields == rank.yields) else { return false };
        let (other, tag) = (part.key, part.rank.tag);
        let behind = self.order.move_behind(&client, other, tag);
        if let Some(run) = self.tasks.get_mut(other).and_then(|task| task.run_mut()) {
            run.rank.tag = behind;
        }
        self.order.lend_tag(&client, tag);
        true
    }

    /// A task that cannot be in time lets those go first that can.
    fn yield_turn(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.phase = Phase::Waiting(Lane::Late);
        self.yielding.insert((task.yields_until(), key));
        let (client, model, deadline) = (task.client.clone(), task.facts.model.clone(), task.deadline);
        // First in, then out: the client is never without a task.
        self.order.push(&client, &model, Lane::Late, deadline, key);
        self.order.remove(&client, &model, Lane::InTime, deadline, key);
    }

    /// A task has yielded for as long as was promised to it, and takes its turn again.
    pub(super) fn take_turn_again(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.yielded = true;
        if task.phase != Phase::Waiting(Lane::Late) {
            return;
        }
        task.phase = Phase::Waiting(Lane::InTime);
        let (client, model, deadline) = (task.client.clone(), task.facts.model.clone(), task.deadline);
        self.order.push(&client, &model, Lane::InTime, deadline, key);
        self.order.remove(&client, &model, Lane::Late, deadline, key);
        self.wake_for(key);
    }

    pub(super) fn assign(
        &mut self,
        now: Time,
        key: TaskKey,
        worker: WorkerKey,
        choice: &Choice,
        yields: bool,
    ) {
        let Some(task) = self.tasks.get(key) else { return };
        let Phase::Waiting(lane) = task.phase else { return };
        let (client, model, deadline) = (task.client.clone(), task.facts.model.clone(), task.deadline);
        let seconds = choice.offer.machine_seconds;
        let tag = self.order.start(&client, key, seconds);
        self.order.remove(&client, &model, lane, deadline, key);
        self.yielding.remove(&(task.yields_until(), key));
        let position = choice.offer.position;
        let Some(task) = self.tasks.get_mut(key) else { return };
        if position.origin == Origin::State {
            task.least_steps = position.least_steps;
        }
        if deadline < now && task.yields_until() <= now {
            task.yielded = true;
        }
        task.attempt += 1;
        task.suspended = None;
        let leg = Leg { option: choice.offer.option, noise_level: position.noise_level, lost: position.lost };
        task.phase = Phase::Running(Box::new(Run {
            worker,
            rank: Rank { yields, tag },
            charged: seconds,
            predicted: seconds,
            origin: position.origin,
            from: task.checkpoint.as_ref().map(|kept| kept.key.clone()),
            legs: vec![leg],
            noise_level: position.noise_level,
            rows: choice.offer.rows,
            paused: false,
        }));
        if let Some(of) = self.workers.get_mut(worker) {
            of.tasks.insert(key);
        }
    }

    /// The tasks of a worker that take rows.
    pub(super) fn parts(&self, worker: WorkerKey) -> Vec<Part> {
        let tasks = self.workers.get(worker).into_iter().flat_map(|of| &of.tasks);
        let part = |key: &TaskKey| {
            let run = self.tasks.get(*key)?.run()?;
            Some(Part { key: *key, rank: run.rank, rows: run.rows })
        };
        tasks.filter_map(part).collect()
    }

    /// The assignment of a running task, as it is now.
    pub(super) fn assignment(&self, now: Time, key: TaskKey) -> Option<Assignment<Spec>> {
        let task = self.tasks.get(key)?;
        let run = task.run()?;
        let beginning = match (&run.from, run.origin) {
            (Some(key), _) => Beginning::Checkpoint { key: key.clone() },
            (None, Origin::State) => Beginning::State,
            (None, Origin::Noise | Origin::Own) => Beginning::Noise,
        };
        Some(Assignment {
            task: task.id.clone(),
            attempt: task.attempt,
            spec: task.spec.clone(),
            model: task.facts.model.clone(),
            option: task.facts.menu.get(run.leg().option)?.id.clone(),
            beginning,
            rank: run.rank,
            paused: run.paused,
            previews: task.previews(),
            deadline_seconds: task.deadline.since(now),
        })
    }

    /// Wakes the worker that has most rows free for a task that waits.
    pub(super) fn wake_for(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get(key) else { return };
        let free = self.workers.serving(&task.facts.model).filter_map(|(_, set)| set.freest());
        let rows = |key: &WorkerKey| self.workers.get(*key).map_or(0, |worker| worker.free_rows);
        let Some(worker) = free.max_by_key(rows) else { return };
        // Until it polls it counts as having taken the task, so that the next task wakes another worker.
        let rows = self.workers.get(worker).map_or(0, |worker| worker.free_rows);
        self.workers.set_free(worker, rows.saturating_sub(2));
        self.woken.insert(worker);
    }

    /// The floor's machine seconds of a running task, from where it is.
    pub(super) fn floor_seconds(&self, key: TaskKey) -> f64 {
        let Some(task) = self.tasks.get(key) else { return 0.0 };
        let Some(run) = task.run() else { return 0.0 };
        let rows = self.workers.get(run.worker).map_or(1.0, |worker| f64::from(worker.rows));
        let pace = |denoiser: &str| self.pace_at(run.worker, &task.facts, denoiser, rows);
        let offers = offers(&task.facts, &task.positions(), pace);
        // In flight the cheapest is what it has, or what it may change to.
        let floor = choose(&offers, task.facts.terms.floor, super::admission::PROHIBITIVE, f64::INFINITY);
        floor.map_or(0.0, |choice| choice.offer.machine_seconds)
    }
}
