//! What happens next, and what the network does to a message on its way.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::rc::Rc;

use rand_chacha::ChaCha8Rng;

use super::scenario::Faults;
use super::uniform;
use super::worker::{Painted, Sketch, Stage};
use crate::scheduler::messages::{AttemptId, Cancel, Poll, PollAnswer, Submit, TaskEnd};
use crate::scheduler::{RequestId, Time, WorkerId};

/// Messages that are late arrive within so many seconds.
const LATE_SECONDS: f64 = 20.0;

/// What happens at a time.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A client makes the next request.
    Request,
    /// A gateway sends its request again, unless it has an answer.
    Resend(Box<RequestId>),
    /// A message arrives at the scheduler.
    Submit(Rc<Submit<Sketch>>),
    Cancel(Box<Cancel>),
    Poll(u32, Box<Poll<Painted>>),
    End(u32, Box<TaskEnd<Painted>>),
    /// An answer arrives at a gateway: the request is settled.
    Answered(Box<RequestId>, bool),
    /// A message arrives at an incarnation of a worker.
    Worker(u32, u32, Box<AtWorker>),
    /// A worker's stage has done its work.
    Done(u32, u32, Stage),
    /// A worker polls, if it has not lately.
    PollDue(u32),
    /// A worker dies, comes back, or stands still for a while.
    Die,
    Revive(u32),
    Stall,
    /// A second has passed.
    Tick,
}

/// An answer that arrives at a worker.
#[derive(Debug, Clone)]
pub(super) enum AtWorker {
    PollAnswered(PollAnswer<Sketch>),
    EndAnswered(AttemptId),
}

/// An event to come; the earliest is the greatest.
#[derive(Debug)]
struct Entry {
    time: Time,
    count: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.time, other.count).cmp(&(self.time, self.count))
    }
}

/// Events to come, in the order of their times.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    events: BinaryHeap<Entry>,
    count: u64,
}

impl Agenda {
    pub fn at(&mut self, time: Time, event: Event) {
        self.count += 1;
        self.events.push(Entry { time, count: self.count, event });
    }

    pub fn next(&mut self) -> Option<(Time, Event)> {
        self.events.pop().map(|Entry { time, event, .. }| (time, event))
    }

    /// Sends a message, which is lost, delayed and repeated as the faults say.
    pub fn send(&mut self, now: Time, event: Event, faults: &Faults, random: &mut ChaCha8Rng) {
        if uniform(random) < faults.duplicated {
            // A message that is repeated may be lost once, and arrive in any order.
            self.transmit(now, event.clone(), faults, random);
        }
        self.transmit(now, event, faults, random);
    }

    fn transmit(&mut self, now: Time, event: Event, faults: &Faults, random: &mut ChaCha8Rng) {
        if uniform(random) < faults.lost {
            return;
        }
        let most = if uniform(random) < faults.late { LATE_SECONDS } else { faults.delay_seconds };
        self.at(now.after(1e-4 + uniform(random) * most), event);
    }
}

/// The name of the n-th worker.
pub(super) fn worker_id(worker: u32) -> WorkerId {
    format!("worker-{worker:04}").into()
}

/// Which worker has a name.
pub(super) fn worker_index(worker: &WorkerId) -> Option<u32> {
    worker.as_str().strip_prefix("worker-")?.parse().ok()
}
