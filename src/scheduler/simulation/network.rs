//! What happens next, and what the network does to a message on its way.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;

use super::engine::{Painted, Sketch};
use super::{Faults, uniform};
use crate::scheduler::messages::{Cancel, Poll, PollAnswer, Submit, TaskEnd};
use crate::scheduler::{Time, WorkerId};

/// What happens at a time.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A client asks for pictures, for the n-th time.
    Request(usize),
    /// A gateway sends its request again, unless it has an answer.
    Resend(usize),
    /// A message arrives at the scheduler.
    Submit(usize, Submit<Sketch>),
    Cancel(Cancel),
    Poll(usize, Poll<Painted>),
    End(usize, TaskEnd<Painted>),
    /// An answer arrives at a gateway: the request is settled.
    Answered(usize, bool),
    /// An answer arrives at an incarnation of a worker.
    PollAnswered(usize, u64, Box<PollAnswer<Sketch>>),
    EndAnswered(usize, u64, crate::scheduler::messages::AttemptId),
    /// It is time for a worker's next poll, of those that were planned the one with this number.
    PollDue(usize, u64, u64),
    /// A worker's step is done, or a picture's last stage.
    Stepped(usize, u64),
    Finished(usize, u64, crate::scheduler::messages::AttemptId),
    /// A worker dies, comes back, or stands still for a while.
    Die,
    Revive(usize),
    Stall,
    /// A second has passed.
    Tick,
}

/// Events to come, in the order of their times.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    events: BTreeMap<(Time, u64), Event>,
    count: u64,
}

impl Agenda {
    pub fn at(&mut self, time: Time, event: Event) {
        self.count += 1;
        self.events.insert((time, self.count), event);
    }

    pub fn next(&mut self) -> Option<(Time, Event)> {
        self.events.pop_first().map(|((time, _), event)| (time, event))
    }

    /// Sends a message, which is lost, delayed and repeated as the faults say.
    pub fn send(&mut self, now: Time, event: &Event, faults: &Faults, random: &mut ChaCha8Rng) {
        let copies = 1 + usize::from(uniform(random) < faults.duplicated);
        for _ in 0..copies {
            // A message that is repeated may be lost once, and arrive in any order.
            if uniform(random) >= faults.lost {
                let delay = 1e-4 + uniform(random) * faults.delay_seconds;
                self.at(now.after(delay), event.clone());
            }
        }
    }
}

/// The name of the n-th worker.
pub(super) fn worker_id(worker: usize) -> WorkerId {
    format!("worker-{worker:04}").into()
}

/// Which worker has a name.
pub(super) fn worker_index(worker: &WorkerId) -> Option<usize> {
    worker.as_str().strip_prefix("worker-")?.parse().ok()
}
