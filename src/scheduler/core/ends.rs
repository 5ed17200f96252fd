//! What an end, a lost worker or a cancelled request means for a task.

use std::collections::BTreeSet;

use super::Core;
use super::order::Lane;
use super::tasks::{KeptState, Phase, Run, TaskKey};
use super::workers::WorkerKey;
use crate::scheduler::messages::{Checkpoint, EndAnswer, Failure, Notice, Outcome, PictureResult, TaskEnd};
use crate::scheduler::{RequestId, Time, WorkerId};

/// A task that lost so many workers fails. One loss is chance, three are the task: without a bound one bad request stops
/// every worker of a fleet, one after the other.
const MAX_LOSSES: u32 = 3;
/// A task that was begun so many times fails, even if it was handed back each time, or lost together with most workers. A
/// bound, not a decision: without it a worker that hands back what it cannot do gets it again for ever.
pub(super) const MAX_ATTEMPTS: u32 = 16;

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// Takes note of the end of an attempt.
    pub(super) fn settle(&mut self, end: TaskEnd<Picture>) -> EndAnswer {
        let TaskEnd { task: id, attempt, outcome } = end;
        let (nothing, counted) = (EndAnswer::default(), EndAnswer { counted: true, ..EndAnswer::default() });
        let Some(key) = self.tasks.find(&id) else { return nothing };
        let Some(task) = self.tasks.get(key) else { return nothing };
        let current = attempt == task.attempt && attempt > 0;
        let runs = task.run().is_some();
        match outcome {
            Outcome::Done { option, machine_seconds, picture } => {
                let used = machine_seconds.filter(|seconds| current && (0.0..1e9).contains(seconds));
                let expected_quality = task.expected_quality(attempt, &option);
                self.finish(key, used, &PictureResult::Done { option, expected_quality, picture });
                EndAnswer { expected_quality: Some(expected_quality), ..counted }
            }
            Outcome::Failed { why } if current => {
                self.fail(key, &Failure::Engine { why });
                counted
            }
            Outcome::StateGone if current => {
                self.fail(key, &Failure::StateGone);
                counted
            }
            Outcome::HandedBack { checkpoint } if current && runs => {
                self.hand_back(key, checkpoint);
                counted
            }
            Outcome::Unknown if current && runs => {
                self.hand_back(key, None);
                counted
            }
            Outcome::Failed { .. } | Outcome::StateGone | Outcome::HandedBack { .. } | Outcome::Unknown => {
                nothing
            }
        }
    }

    /// A task ends without a picture.
    pub(super) fn fail(&mut self, key: TaskKey, why: &Failure) {
        self.finish(key, None, &PictureResult::Failed { why: why.clone() });
    }

    /// A task ends, and all who asked for it are told.
    fn finish(&mut self, key: TaskKey, used: Option<f64>, result: &PictureResult<Picture>) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let (id, listeners) = (task.id.clone(), std::mem::take(&mut task.listeners));
        for listener in listeners {
            if self.requests.close(&listener.request, listener.index) {
                self.notices.push(Notice {
                    request: listener.request,
                    index: listener.index,
                    task: id.clone(),
                    result: result.clone(),
                });
            }
        }
        self.forget(key, used);
    }

    /// Removes a task from all that knows of it. Its worker is told to drop it when it next reports it.
    fn forget(&mut self, key: TaskKey, used: Option<f64>) {
        self.take_from_bucket(key);
        match self.tasks.get(key).map(|task| &task.phase) {
            Some(Phase::Running(_)) => {
                // Of a picture whose steps were done the worker has nothing left but an end that it told itself, or soon
                // tells.
                if let Some(run) = self.take_from_worker(key, used).filter(|run| run.rows > 0) {
                    self.woken.insert(run.worker);
                }
            }
            Some(Phase::Waiting(lane)) => self.take_from_queue(key, *lane),
            None => {}
        }
        self.tasks.remove(key);
    }

    fn take_from_queue(&mut self, key: TaskKey, lane: Lane) {
        let Some(task) = self.tasks.get(key) else { return };
        self.yielding.remove(&(task.yields_until(), key));
        self.order.remove(&task.client, &task.facts.model, lane, task.deadline, key);
    }

    /// Takes a task from its worker; its client is charged for what was used. The phase stays for the caller to set.
    fn take_from_worker(&mut self, key: TaskKey, used: Option<f64>) -> Option<Box<Run>> {
        self.set_paused(key, false);
        let task = self.tasks.get(key)?;
        let Phase::Running(run) = task.phase.clone() else { return None };
        if let Some(worker) = self.workers.get_mut(run.worker) {
            worker.tasks.remove(&key);
        }
        // Without a word of the worker: as much as it went forward.
        let began = run.legs.first().map_or(1.0, |leg| leg.noise_level).max(1e-9);
        let used = used.unwrap_or(run.predicted * (1.0 - run.noise_level / began).clamp(0.0, 1.0));
        self.order.finish(&task.client, key, run.rank.tag, run.charged, used);
        Some(run)
    }

    /// A running task waits again.
    pub(super) fn wait_again(&mut self, key: TaskKey) -> Option<Box<Run>> {
        let task = self.tasks.get(key)?;
        let lane = Lane::InTime;
        let (client, model, deadline) = (task.client.clone(), task.facts.model.clone(), task.deadline);
        // First in, then out: the client is never without a task.
        self.order.push(&client, &model, lane, deadline, key);
        let run = self.take_from_worker(key, None)?;
        let task = self.tasks.get_mut(key)?;
        task.phase = Phase::Waiting(lane);
        let attempt = task.attempt;
        task.past.retain(|(of, _)| *of != attempt); // it may have been resumed, and is lost again
        task.past.push((attempt, run.legs.clone()));
        let noise_level = task.checkpoint.as_ref().map_or(1.0, |kept| kept.noise_level);
        let facts = task.facts.clone();
        let seconds = self.need(&facts).seconds * noise_level;
        self.put_into_bucket(key, noise_level, seconds);
        Some(run)
    }

    fn hand_back(&mut self, key: TaskKey, checkpoint: Option<Checkpoint>) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        if task.attempt >= MAX_ATTEMPTS {
            return self.fail(key, &Failure::Engine { why: "it was handed back too often".to_owned() });
        }
        if let Some(Checkpoint { noise_level, key }) = checkpoint.filter(|c| c.noise_level > 0.0)
            && let Some(run) = task.run()
        {
            let lost = task.lost_until(run, noise_level);
            task.checkpoint = Some(KeptState { key, noise_level, lost, option: run.leg().option });
        }
        self.wait_again(key);
        self.wake_for(key);
    }

    /// The worker of these tasks is lost: they wait again, from their last checkpoints.
    pub(super) fn lose_tasks(&mut self, now: Time, worker: &WorkerId, tasks: BTreeSet<TaskKey>) {
        if tasks.is_empty() {
            return;
        }
        let counts = !self.workers.most_vanished(now, self.config.lost_after_seconds);
        for key in tasks {
            let Some(task) = self.tasks.get_mut(key) else { continue };
            task.losses += u32::from(counts);
            let losses = task.losses;
            if losses >= MAX_LOSSES || task.attempt >= MAX_ATTEMPTS {
                let losses = losses.max(task.attempt);
                self.fail(key, &Failure::WorkersLost { losses });
            } else if let Some(run) = self.wait_again(key)
                && let Some(task) = self.tasks.get_mut(key)
            {
                task.suspended = Some((worker.clone(), run));
                self.wake_for(key);
            }
        }
    }

    /// A worker that was thought lost came back with a task that waits: it goes on with it.
    pub(super) fn resume_suspended(&mut self, key: TaskKey, worker: WorkerKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Phase::Waiting(lane) = task.phase else { return };
        let Some((_, mut run)) = task.suspended.take() else { return };
        run.worker = worker;
        let client = task.client.clone();
        run.charged = run.predicted;
        run.rank.tag = self.order.start(&client, key, run.charged);
        self.take_from_queue(key, lane);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.tasks.insert(key);
        }
        let noise_level = run.noise_level;
        if let Some(task) = self.tasks.get_mut(key) {
            task.phase = Phase::Running(run);
        }
        let seconds = self.floor_seconds(key);
        self.put_into_bucket(key, noise_level, seconds);
    }

    /// A request no longer waits for a task. The last one that leaves ends it.
    pub(super) fn drop_listener(&mut self, key: TaskKey, request: &RequestId, index: u32) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.listeners.retain(|listener| listener.request != *request || listener.index != index);
        let Some(heir) = task.listeners.first().map(|listener| listener.client.clone()) else {
            return self.forget(key, None);
        };
        let stays = task.listeners.iter().any(|listener| listener.client == task.client);
        let Phase::Waiting(lane) = task.phase else { return };
        if stays {
            return;
        }
        // What waits takes a turn of a client that still wants it.
        let (client, model, deadline) = (task.client.clone(), task.facts.model.clone(), task.deadline);
        let bucket = task.bucket.as_ref().map_or(0.0, |(_, seconds)| *seconds);
        task.client = heir.clone();
        self.order.push(&heir, &model, lane, deadline, key);
        self.order.change_backlog(&heir, bucket);
        self.order.change_backlog(&client, -bucket);
        self.order.remove(&client, &model, lane, deadline, key);
    }
}
