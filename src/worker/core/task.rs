//! A task at the worker, and how far it is.

use crate::scheduler::messages::{Assignment, AttemptId, Held, Place};
use crate::scheduler::{OptionId, Time};
use crate::worker::{Engine, Painting};

/// What a task does, or waits for.
pub(super) enum Phase<E: Engine> {
    /// It waits for its stored state to be loaded.
    ToLoad,
    /// The state is on its way.
    Loading,
    /// It waits for its prompts to be encoded. The state is `None` where it begins with noise.
    ToBegin(Option<E::State>),
    /// Its prompts are being encoded.
    Beginning,
    /// It waits for its next step.
    ToStep(E::Painting),
    /// It takes a step of so many rows, from this noise level.
    InBatch { rows: u32, noise_level: f64 },
    /// It waits to be decoded.
    ToFinish(E::Painting),
    /// It is being decoded and written.
    Finishing,
}

pub(super) struct Task<E: Engine> {
    /// As it was given, with the option, rank, pause and previews that are wanted now.
    pub assignment: Assignment<E::Spec>,
    /// When it was given.
    pub since: Time,
    /// The option whose steps it takes, until its next step.
    pub option: OptionId,
    /// Machine seconds of its rows.
    pub machine_seconds: f64,
    /// Seconds of its other stages.
    pub overhead_seconds: f64,
    pub phase: Phase<E>,
}

impl<E: Engine> Task<E> {
    pub fn id(&self) -> AttemptId {
        AttemptId { task: self.assignment.task.clone(), attempt: self.assignment.attempt }
    }

    /// As the next report has it. An option that was told and holds from the next step on is reported already.
    pub fn held(&self) -> Held {
        let Assignment { task, attempt, option, rank, paused, previews, .. } = &self.assignment;
        let place = match &self.phase {
            Phase::ToLoad | Phase::Loading | Phase::ToBegin(_) | Phase::Beginning => Place::Preparing,
            Phase::ToStep(painting) => Place::Stepping { noise_level: painting.noise_level() },
            Phase::InBatch { noise_level, .. } => Place::Stepping { noise_level: *noise_level },
            Phase::ToFinish(_) | Phase::Finishing => Place::Finishing,
        };
        Held {
            task: task.clone(),
            attempt: *attempt,
            option: option.clone(),
            place,
            rank: *rank,
            paused: *paused,
            previews: *previews,
            checkpoint: None,
        }
    }

    /// Takes over what was told while the painting was elsewhere: the option and the previews that are wanted now.
    pub fn follow_orders(&mut self) {
        let Phase::ToStep(painting) = &mut self.phase else { return };
        painting.set_previews(self.assignment.previews);
        if self.option == self.assignment.option {
            return;
        }
        match painting.replan(&self.assignment.option) {
            Ok(()) => self.option.clone_from(&self.assignment.option),
            Err(why) => {
                tracing::warn!(why, task = %self.assignment.task, option = %self.assignment.option, "not replanned");
                self.assignment.option.clone_from(&self.option);
            }
        }
    }
}
