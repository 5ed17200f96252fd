//! A worker polls: its report is taken over, and the answer is the whole difference between what is wanted of it and what
//! it reported.

use std::collections::BTreeSet;

use super::Core;
use super::order::Lane;
use super::tasks::{KeptState, Phase, TaskKey};
use super::workers::{Received, WorkerKey};
use crate::scheduler::messages::{AttemptId, Change, Held, Place, Poll, PollAnswer, Rank, Report};
use crate::scheduler::{ModelId, Time};

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// Takes a worker's report, and answers with what is to change. Nothing is sent only once: what the next report does
    /// not show is in the next answer again.
    pub fn poll(&mut self, now: Time, poll: Poll<Picture>) -> PollAnswer<Spec> {
        self.tick(now);
        let Poll { worker: id, incarnation, sequence, mut report } = poll;
        let mut answer = PollAnswer::go_on(sequence);
        let received = self.workers.receive(&id, incarnation, sequence, now, self.config.limits.workers);
        let (Received::Newest(worker) | Received::Restarted(worker)) = received else { return answer };
        if received == Received::Restarted(worker) {
            let lost = self.workers.get_mut(worker).map(|of| std::mem::take(&mut of.tasks));
            self.lose_tasks(now, &id, lost.unwrap_or_default());
        }
        self.workers.update(worker, &report, &self.config.tuning);
        self.woken.remove(&worker);
        for end in std::mem::take(&mut report.ended) {
            answer.acknowledged.push(AttemptId { task: end.task.clone(), attempt: end.attempt });
            self.settle(end);
        }
        let mut held = BTreeSet::new();
        for of in &report.held {
            match self.wanted(worker, of) {
                Some(key) => {
                    self.progress(key, of);
                    held.insert(key);
                }
                None => answer.changes.push(Change::Cancel { task: of.task.clone(), attempt: of.attempt }),
            }
        }
        self.reprice(now, worker);
        for key in &held {
            self.replan(now, worker, *key);
        }
        self.fill(now, worker);
        self.take_over_paused(now, worker);
        self.pause_beyond_rows(worker);
        for of in &report.held {
            if let Some(key) = self.tasks.find(&of.task).filter(|key| held.contains(key)) {
                self.tell_changes(key, of, &mut answer.changes);
            }
        }
        let assigned = self.workers.get(worker).into_iter().flat_map(|of| &of.tasks);
        let unseen = assigned.filter(|key| !held.contains(key)).copied();
        answer.assignments = unseen.filter_map(|key| self.assignment(now, key)).collect();
        self.change_models(worker, &report, &mut answer.changes);
        answer
    }

    /// The task that a worker holds, if that attempt is wanted of it. A worker that was thought lost goes on with a task
    /// that no other has got since.
    fn wanted(&mut self, worker: WorkerKey, held: &Held) -> Option<TaskKey> {
        let key = self.tasks.find(&held.task)?;
        let task = self.tasks.get(key)?;
        if task.attempt != held.attempt {
            return None;
        }
        match &task.phase {
            Phase::Running(run) => (run.worker == worker).then_some(key),
            Phase::Waiting(_) => {
                let (id, _) = task.suspended.as_ref()?;
                if self.workers.get(worker).is_none_or(|of| of.id != *id) {
                    return None;
                }
                self.resume_suspended(key, worker);
                Some(key)
            }
        }
    }

    /// Takes over how far a held task is.
    fn progress(&mut self, key: TaskKey, held: &Held) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let facts = task.facts.clone();
        let kept = held.checkpoint.as_ref().filter(|new| {
            let known = task.checkpoint.as_ref().map_or(f64::INFINITY, |kept| kept.noise_level);
            new.noise_level > 0.0 && new.noise_level < known
        });
        let kept = kept.and_then(|new| {
            let run = task.run()?;
            let lost = task.lost_until(run, new.noise_level);
            let (key, option) = (new.key.clone(), run.leg().option);
            Some(KeptState { key, noise_level: new.noise_level, lost, option })
        });
        task.checkpoint = kept.or(task.checkpoint.take());
        let Some(run) = task.run_mut() else { return };
        match held.place {
            Place::Preparing => {}
            // A late or nonsensical value never takes a picture back.
            Place::Stepping { noise_level } => run.noise_level = run.noise_level.min(noise_level).max(0.0),
            Place::Finishing => run.noise_level = 0.0,
        }
        run.rows = facts.menu.remaining(run.leg().option, run.noise_level).peak_rows;
        let noise_level = run.noise_level;
        let moved =
            task.bucket.as_ref().is_some_and(|(bucket, _)| bucket.at(noise_level).as_ref() != Some(bucket));
        if moved {
            let seconds = self.floor_seconds(key);
            self.put_into_bucket(key, noise_level, seconds);
        }
    }

    /// What a held task is to change.
    fn tell_changes(&self, key: TaskKey, held: &Held, changes: &mut Vec<Change>) {
        let Some(task) = self.tasks.get(key) else { return };
        let Some(run) = task.run() else { return };
        let (id, attempt) = (|| held.task.clone(), held.attempt);
        if let Some(option) = task.facts.menu.get(run.leg().option)
            && option.id != held.option
        {
            changes.push(Change::Plan { task: id(), attempt, option: option.id.clone() });
        }
        if run.rank != held.rank {
            changes.push(Change::Rank { task: id(), attempt, rank: run.rank });
        }
        if run.paused != held.paused {
            changes.push(Change::Pause { task: id(), attempt, paused: run.paused });
        }
        if task.previews() != held.previews {
            changes.push(Change::Previews { task: id(), attempt, previews: task.previews() });
        }
    }

    /// A worker with free rows loads a model that tasks wait for and that no worker with free rows has; where its memory
    /// is full, a model leaves that nothing waits for and nothing it holds needs.
    fn change_models(&self, worker: WorkerKey, report: &Report<Picture>, changes: &mut Vec<Change>) {
        let Some(of) = self.workers.get(worker) else { return };
        let next = |model: &ModelId| {
            let heads = [Lane::InTime, Lane::Late].into_iter().filter_map(|lane| {
                let (tag, _) = self.order.head(model, lane)?;
                Some(Rank { yields: lane == Lane::Late, tag })
            });
            heads.min()
        };
        if of.free_rows == 0 || of.draining {
            return;
        }
        let missing = report.loadable.iter().filter(|model| !of.resident.contains(model));
        let Some((_, model)) = missing.filter_map(|model| Some((next(model)?, model))).min() else { return };
        let places = report.model_places as usize;
        if places > 0 && of.resident.len() >= places {
            let needed = |model: &ModelId| {
                let held = of.tasks.iter().filter_map(|key| self.tasks.get(*key));
                next(model).is_some() || held.into_iter().any(|task| task.facts.model == *model)
            };
            let Some(unused) = of.resident.iter().find(|model| !needed(model)) else { return };
            changes.push(Change::Unload { model: unused.clone() });
        }
        changes.push(Change::Load { model: model.clone() });
    }
}
