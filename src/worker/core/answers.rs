//! The scheduler's answers: tasks to begin, and changes.

use super::task::{Phase, Task};
use super::{ModelWork, WorkerCore};
use crate::scheduler::messages::{Assignment, AttemptId, Beginning, Change, Outcome, PollAnswer};
use crate::scheduler::{TaskId, Time};
use crate::worker::Engine;

/// A worker holds at most so many times its rows in tasks, and [`MORE`] beyond: a bound, should a scheduler go wrong.
const MOST: usize = 16;
const MORE: usize = 64;

impl<E: Engine> WorkerCore<E> {
    /// Takes over an answer, if it is to the newest poll. Whether it is worth to poll again at once: an answer of which
    /// nothing could be taken over would come again.
    pub fn answered(&mut self, now: Time, answer: PollAnswer<E::Spec>) -> bool {
        if answer.sequence != self.sequence || answer.sequence <= self.answered {
            return false;
        }
        self.answered = answer.sequence;
        let mut changed = answer.is_empty();
        let before = self.ended.len();
        let PollAnswer { sequence: _, assignments, changes, acknowledged } = answer;
        self.ended
            .retain(|end| !acknowledged.iter().any(|id| id.task == end.task && id.attempt == end.attempt));
        changed |= self.ended.len() < before;
        for change in changes {
            changed |= self.change(change);
        }
        for assignment in assignments {
            changed |= self.take(now, assignment);
        }
        changed
    }

    /// Whether it changed anything.
    fn change(&mut self, change: Change) -> bool {
        match change {
            Change::Plan { task, attempt, option } => self.order(task, attempt, |task| {
                let before = std::mem::replace(&mut task.assignment.option, option);
                task.follow_orders(); // an option that it cannot take is not kept
                before != task.assignment.option
            }),
            Change::Rank { task, attempt, rank } => {
                self.order(task, attempt, |task| std::mem::replace(&mut task.assignment.rank, rank) != rank)
            }
            Change::Pause { task, attempt, paused } => self.order(task, attempt, |task| {
                std::mem::replace(&mut task.assignment.paused, paused) != paused
            }),
            Change::Previews { task, attempt, previews } => self.order(task, attempt, |task| {
                let before = std::mem::replace(&mut task.assignment.previews, previews);
                task.follow_orders();
                before != previews
            }),
            Change::Cancel { task, attempt } => self.cancel(&AttemptId { task, attempt }),
            Change::Load { model } => {
                let known = self.resident.contains(&model) || self.loading.contains(&model);
                if known || !self.settings.loadable.contains(&model) {
                    return false;
                }
                self.loading.push(model.clone());
                self.models.push_back(ModelWork::Load(model));
                true
            }
            Change::Unload { model } => {
                let needed = self.tasks.values().any(|task| task.assignment.model == model);
                let Some(place) = self.resident.iter().position(|known| *known == model && !needed) else {
                    return false;
                };
                self.resident.remove(place);
                self.models.push_back(ModelWork::Unload(model));
                true
            }
            Change::Unknown => false,
        }
    }

    /// Changes what is wanted of a task, if it is held. Whether it changed anything.
    fn order(&mut self, task: TaskId, attempt: u32, change: impl FnOnce(&mut Task<E>) -> bool) -> bool {
        self.tasks.get_mut(&AttemptId { task, attempt }).is_some_and(change)
    }

    fn cancel(&mut self, id: &AttemptId) -> bool {
        self.previews.retain(|preview| preview.id != *id);
        self.tasks.remove(id).is_some()
    }

    /// Whether the assignment is new. One of a model that is not in memory is handed back.
    fn take(&mut self, now: Time, assignment: Assignment<E::Spec>) -> bool {
        let id = AttemptId { task: assignment.task.clone(), attempt: assignment.attempt };
        let ended = self.ended.iter().any(|end| end.task == id.task && end.attempt == id.attempt);
        let full = self.tasks.len() >= MOST * self.settings.rows as usize + MORE;
        if ended || full || self.tasks.contains_key(&id) {
            return false;
        }
        if !self.resident.contains(&assignment.model) {
            self.end(id, Outcome::HandedBack { checkpoint: None });
            return true;
        }
        let phase = match assignment.beginning {
            Beginning::Noise => Phase::ToBegin(None),
            Beginning::State | Beginning::Checkpoint { .. } => Phase::ToLoad,
        };
        let option = assignment.option.clone();
        let task =
            Task { assignment, since: now, option, machine_seconds: 0.0, overhead_seconds: 0.0, phase };
        self.tasks.insert(id, task);
        true
    }
}
