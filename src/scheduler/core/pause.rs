//! Which of a worker's tasks are paused, and which of these go on at another worker.

use super::Core;
use super::ends::MAX_ATTEMPTS;
use super::options::{Choice, offers};
use super::tasks::TaskKey;
use super::workers::WorkerKey;
use crate::scheduler::Time;

/// The most paused tasks of a model that are looked at for a worker with free rows, the oldest first. A bound of the work
/// of one poll.
const LOOKED_AT: usize = 16;

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// Pauses the tasks that find no room in a worker's rows, those of the worst rank, and lets the others go on.
    pub(super) fn pause_beyond_rows(&mut self, worker: WorkerKey) {
        let Some(of) = self.workers.get(worker) else { return };
        let most = of.rows + of.ahead_rows;
        let mut parts = self.parts(worker);
        parts.sort_by_key(|part| (part.rank, part.key));
        let (mut used, mut all) = (0, 0);
        for part in parts {
            let paused = part.rows > 0 && used > 0 && used + part.rows > most;
            used += if paused { 0 } else { part.rows };
            all += part.rows;
            self.set_paused(part.key, paused);
        }
        self.workers.set_free(worker, most.saturating_sub(all));
    }

    /// Pauses a running task, or lets it go on.
    pub(super) fn set_paused(&mut self, key: TaskKey, paused: bool) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let model = &task.facts.model;
        let Some(run) = task.phase.run_mut().filter(|run| run.paused != paused) else { return };
        run.paused = paused;
        if paused {
            self.paused.insert((model.clone(), key));
        } else {
            self.paused.remove(&(model.clone(), key));
        }
    }

    /// A worker with free rows, for which nothing waits, takes tasks that are paused at other workers, if they are finished
    /// sooner here. They begin with their last checkpoint, or anew.
    pub(super) fn take_over_paused(&mut self, now: Time, worker: WorkerKey) {
        let Some(of) = self.workers.get(worker).filter(|of| !of.draining) else { return };
        let used: u32 = self.parts(worker).iter().map(|part| part.rows).sum();
        let mut free = of.rows.saturating_sub(used);
        if free == 0 || self.paused.is_empty() {
            return;
        }
        let keys = of.resident.iter().flat_map(|model| {
            let of_model = (model.clone(), 0)..=(model.clone(), TaskKey::MAX);
            self.paused.range(of_model).map(|(_, key)| *key).take(LOOKED_AT)
        });
        for key in keys.collect::<Vec<TaskKey>>() {
            if let Some(choice) = self.sooner_at(now, key, worker).filter(|choice| choice.offer.rows <= free)
            {
                free -= choice.offer.rows;
                let yields = choice.late && self.tasks.get(key).is_some_and(|task| !task.yielded);
                self.wait_again(key);
                self.assign(now, key, worker, &choice, yields);
            }
        }
    }

    /// The option that a paused task takes at another worker, if it is finished sooner there: where it is paused, it goes on
    /// when the next of the tasks that run there ends.
    fn sooner_at(&self, now: Time, key: TaskKey, worker: WorkerKey) -> Option<Choice> {
        let task = self.tasks.get(key).filter(|task| task.attempt < MAX_ATTEMPTS / 2)?;
        let run = task.run().filter(|run| run.worker != worker)?;
        let running = self.parts(run.worker).into_iter().filter(|part| part.rows > 0);
        let running = running
            .filter(|part| !self.tasks.get(part.key).and_then(|of| of.run()).is_none_or(|of| of.paused));
        let waits = running.filter_map(|part| self.seconds_left(part.key)).fold(f64::INFINITY, f64::min);
        let there = if waits.is_finite() { waits } else { 0.0 } + self.seconds_left(key)?;
        let rows = self.workers.get(worker).map_or(1.0, |of| f64::from(of.rows));
        let pace = |denoiser: &str| self.pace_at(worker, &task.facts, denoiser, rows);
        let offers = offers(&task.facts, &task.beginnings(), pace);
        let seconds = self.config.tuning.headroom * task.deadline.since(now);
        let choice = self.config.policy.choose(&task.facts, &offers, self.price_at(worker), seconds)?;
        (choice.offer.clock_seconds < there).then_some(choice)
    }

    /// Seconds until a running task is finished where it is, if it takes every step.
    fn seconds_left(&self, key: TaskKey) -> Option<f64> {
        let task = self.tasks.get(key)?;
        let run = task.run()?;
        let option = run.leg().option;
        let rows = f64::from(self.workers.get(run.worker)?.rows);
        let pace = self.pace_at(run.worker, &task.facts, &task.facts.menu.get(option)?.denoiser, rows);
        let steps = task.facts.menu.remaining(option, run.noise_level).steps;
        Some(f64::from(steps) * pace.step_seconds + pace.overhead_seconds)
    }
}
