//! What was accepted, what was told, and what must never happen.

use std::collections::HashMap;
use std::sync::Arc;

use thiserror::Error;

use super::outcome::Outcome;
use super::scenario::Scenario;
use super::worker::{Painted, Sketch};
use crate::scheduler::menu::{Menu, MenuOption};
use crate::scheduler::messages::{MenuChoice, Notice, PictureResult, Submit};
use crate::scheduler::{RequestId, Time};

/// The most pictures of a simulated request.
const MOST_PICTURES: u32 = 16;

/// An invariant that broke.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Violation {
    /// A picture that was accepted did not end.
    #[error("{lost} accepted pictures never ended; the first is {first}")]
    Lost {
        /// How many.
        lost: usize,
        /// The first one.
        first: String,
    },
    /// An end was told of a picture that had ended, was cancelled, or was never accepted.
    #[error("the end of {picture} was told, but nothing waited for it")]
    ToldTwice {
        /// The picture.
        picture: String,
    },
    /// A picture is worth less than was promised.
    #[error("{picture} has quality {quality}, below its floor {floor}")]
    BelowFloor {
        /// The picture.
        picture: String,
        /// What it has.
        quality: f64,
        /// What was promised.
        floor: f64,
    },
    /// A picture is worth less than the scheduler says.
    #[error("{picture} has quality {quality}, but {expected} was told")]
    Overrated {
        /// The picture.
        picture: String,
        /// What it has.
        quality: f64,
        /// What was told.
        expected: f64,
    },
    /// More is held than the bounds allow.
    #[error("{what}: {found}, more than {most}")]
    Unbounded {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        found: usize,
        /// The bound.
        most: usize,
    },
}

/// A picture that was accepted.
#[derive(Debug)]
struct Open {
    since: Time,
    floor: f64,
    deadline_seconds: f64,
}

/// All pictures that were accepted and have not ended.
#[derive(Debug)]
pub(super) struct Ledger {
    open: HashMap<(RequestId, u32), Open>,
    menu: Arc<Menu>,
    /// The best quality of the menu.
    best: f64,
    pub outcome: Outcome,
}

impl Ledger {
    pub fn new(scenario: &Scenario) -> Self {
        let menu = scenario.menu.clone();
        let mut ledger = Self { open: HashMap::new(), menu, best: 0.0, outcome: Outcome::default() };
        ledger.best = ledger.best_of(|_| true);
        ledger
    }

    /// The best quality of the menu's options that are allowed.
    fn best_of(&self, allowed: impl Fn(&MenuOption) -> bool) -> f64 {
        let allowed = self.menu.iter().filter(|option| allowed(option));
        allowed.map(|option| option.quality_at(1.0)).fold(0.0, f64::max)
    }

    /// A request was accepted for the first time.
    pub fn accept(&mut self, now: Time, submit: &Submit<Sketch>) {
        for (index, task) in (0..).zip(&submit.tasks) {
            let best = match &task.menu {
                MenuChoice::Whole => self.best,
                MenuChoice::Only { options } => self.best_of(|option| options.contains(&option.id)),
                MenuChoice::Own { option } => option.quality_at(1.0),
            };
            let floor = task.terms.floor.min(best);
            let open = Open { since: now, floor, deadline_seconds: task.terms.deadline_seconds };
            self.open.insert((submit.request.clone(), index), open);
            self.outcome.accepted += 1;
        }
    }

    /// A request was cancelled.
    pub fn cancel(&mut self, request: &RequestId) {
        let Outcome { cancelled, .. } = &mut self.outcome;
        for index in 0.. {
            // A request's pictures are numbered; some of them may have ended.
            match self.open.remove(&(request.clone(), index)) {
                Some(_) => *cancelled += 1,
                None if index >= MOST_PICTURES => break,
                None => {}
            }
        }
    }

    /// The end of a picture was told.
    pub fn tell(&mut self, now: Time, notice: &Notice<Painted>) -> Result<(), Violation> {
        let picture = || format!("{}/{}", notice.request, notice.index);
        let Some(open) = self.open.remove(&(notice.request.clone(), notice.index)) else {
            return Err(Violation::ToldTwice { picture: picture() });
        };
        let seconds = now.since(open.since);
        self.outcome.longest_seconds = self.outcome.longest_seconds.max(seconds);
        match &notice.result {
            PictureResult::Failed { .. } => self.outcome.failed += 1,
            PictureResult::Done { picture: painted, expected_quality, .. } => {
                let quality = painted.quality;
                self.outcome.painted += 1;
                self.outcome.in_time += usize::from(seconds <= open.deadline_seconds);
                self.outcome.quality += quality;
                if quality < open.floor - 1e-6 {
                    return Err(Violation::BelowFloor { picture: picture(), quality, floor: open.floor });
                }
                if *expected_quality > quality + 1e-6 {
                    return Err(Violation::Overrated {
                        picture: picture(),
                        quality,
                        expected: *expected_quality,
                    });
                }
            }
        }
        Ok(())
    }

    /// All that was accepted must have ended.
    pub fn close(self) -> Result<Outcome, Violation> {
        match self.open.keys().min() {
            None => Ok(self.outcome),
            Some((request, index)) => {
                Err(Violation::Lost { lost: self.open.len(), first: format!("{request}/{index}") })
            }
        }
    }
}
