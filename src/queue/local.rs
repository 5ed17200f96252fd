//! The queue within one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::contract::{Busy, JobLease, JobQueue, JobSubscription, Pulled, QueueLimits};
use super::event::{Event, Failure, Listeners, Mark, Painted};
use super::lines::{Lines, Waiting};
use super::turns::Parts;
use super::urgency::{ByDeadline, Urgent};
use super::{Job, Line};
use crate::telemetry;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// What was accepted is painted, nothing more is accepted.
    Draining,
    /// Nothing more is painted either.
    Stopped,
}

struct State {
    waiting: Lines,
    /// What is leased, and from which line.
    flying: Vec<(Arc<Job>, Listeners, Line)>,
    phase: Phase,
    /// The time from one picture's end to the next one's while there is work, a running mean.
    picture_seconds: f64,
    last_end: Instant,
}

impl State {
    /// Another request's listeners, where they already wait for the very picture and one more may. Only within a client:
    /// what others ask for must not show in the time that an answer takes.
    fn same_picture(&self, job: &Job) -> Option<&Listeners> {
        let same = |other: &Job, listeners: &Listeners| other.is_same_picture(job) && listeners.have_room();
        let mut flying = self.flying.iter().map(|(other, listeners, _)| (&**other, listeners));
        let lines = self.waiting.all().into_iter().filter_map(|line| line.get(&job.client));
        let mut waiting = lines.flat_map(ByDeadline::iter).map(|waiting| (&*waiting.job, &waiting.listeners));
        let is_same = |(other, listeners): &(&Job, &Listeners)| same(other, listeners);
        let found = flying.find(is_same).or_else(|| waiting.find(is_same));
        found.map(|(_, listeners)| listeners)
    }

    fn next(&mut self, line: Line) -> Option<Waiting> {
        let waiting = self.waiting.line_mut(line).next()?;
        telemetry::queue_length(self.waiting.len());
        Some(waiting)
    }

    /// Whether nothing more will come to a line, which is empty.
    fn is_over(&self, line: Line) -> bool {
        let shown = || self.flying.iter().any(|(_, _, line)| *line == Line::Show);
        // What cannot be shown is painted.
        let may_come = line == Line::Paint && (self.waiting.show.len() > 0 || shown());
        self.phase != Phase::Open && !may_come
    }
}

struct Shared {
    limits: QueueLimits,
    state: Mutex<State>,
    changed: Condvar,
}

impl QueueLimits {
    fn room_in(&self, state: &State, client: &str, jobs: usize) -> Result<(), Busy> {
        if state.phase != Phase::Open {
            return Err(Busy::Closed);
        }
        let retry_after = |pictures: usize| {
            Duration::from_secs_f64((pictures as f64 * state.picture_seconds).clamp(1.0, 600.0))
        };
        let of_client = state.waiting.len_of(client);
        if of_client + jobs > self.length_per_client {
            return Err(Busy::ClientFull { retry_after: retry_after(of_client) });
        }
        let all = state.waiting.len();
        if all + jobs > self.length {
            return Err(Busy::Full { retry_after: retry_after(all) });
        }
        Ok(())
    }
}

/// The local queue; clones are the same queue.
#[derive(Clone)]
pub struct LocalQueue(Arc<Shared>);

impl LocalQueue {
    /// An empty queue.
    pub fn new(limits: QueueLimits) -> Self {
        let state = State {
            waiting: Lines::default(),
            flying: Vec::new(),
            phase: Phase::Open,
            picture_seconds: 1.0,
            last_end: Instant::now(),
        };
        Self(Arc::new(Shared { limits, state: Mutex::new(state), changed: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; the state is whole even if one did.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self, state: &mut State, job: Job, since: Instant) -> Subscription {
        let subscription =
            |events, client, mark| Subscription { events, queue: self.clone(), client, mark, ended: false };
        if let Some(listeners) = state.same_picture(&job)
            && let Some(events) = listeners.add(job.previews.len())
        {
            telemetry::joined();
            return subscription(events, job.client, listeners.mark());
        }
        let (events, listeners) = Listeners::new(job.previews.len());
        let client = job.client.clone();
        let mark = listeners.mark();
        let line = job.line();
        state.waiting.push(Waiting { job: Arc::new(job), line, listeners, since });
        subscription(events, client, mark)
    }

    fn lease(&self, state: &mut State, waiting: Waiting) -> Lease {
        let deadline = waiting.deadline();
        let Waiting { job, line, listeners, since } = waiting;
        state.flying.push((job.clone(), listeners.clone(), line));
        let started = Instant::now();
        Lease { job, line, since, deadline, listeners, started, queue: self.clone() }
    }

    fn forget_unwanted(&self) {
        let mut state = self.lock();
        let before = state.waiting.len();
        state.waiting.retain(&mut |waiting| !waiting.listeners.are_gone());
        let after = state.waiting.len();
        telemetry::cancelled(before - after);
        telemetry::queue_length(after);
        // Whoever waits for more to paint may hear that nothing will come; so where a lease ends.
        if state.phase != Phase::Open {
            self.0.changed.notify_all();
        }
    }
}

impl JobQueue for LocalQueue {
    type Lease = Lease;
    type Subscription = Subscription;

    fn has_room(&self, client: &str, jobs: usize) -> Result<(), Busy> {
        self.0.limits.room_in(&self.lock(), client, jobs)
    }

    fn has_all(&self, jobs: &[Job]) -> bool {
        let state = self.lock();
        jobs.iter().all(|job| state.same_picture(job).is_some())
    }

    fn submit(&self, jobs: Vec<Job>) -> Result<Vec<Subscription>, Busy> {
        let mut state = self.lock();
        if let Some(job) = jobs.first() {
            self.0.limits.room_in(&state, &job.client, jobs.len())?;
        }
        let since = Instant::now();
        let subscriptions = jobs.into_iter().map(|job| self.accept(&mut state, job, since)).collect();
        telemetry::queue_length(state.waiting.len());
        drop(state);
        self.0.changed.notify_all();
        Ok(subscriptions)
    }

    fn pull(&self, line: Line, patience: Option<Duration>) -> Pulled<Lease> {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut state = self.lock();
        loop {
            if let Some(waiting) = state.next(line) {
                return Pulled::Lease(self.lease(&mut state, waiting));
            }
            if state.is_over(line) {
                return Pulled::Closed;
            }
            let Some(until) = until else {
                state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Pulled::Nothing;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn pull_if(&self, wanted: impl FnOnce(&Job, Instant) -> bool) -> Pulled<Lease> {
        let mut state = self.lock();
        if !state.waiting.paint.peek().is_some_and(|next| wanted(&next.job, next.deadline())) {
            return Pulled::Nothing;
        }
        match state.next(Line::Paint) {
            Some(waiting) => Pulled::Lease(self.lease(&mut state, waiting)),
            None => Pulled::Nothing,
        }
    }

    fn waiting<T>(&self, line: Line, mut see: impl FnMut(&Job, Instant) -> T) -> Vec<T> {
        let state = self.lock();
        let waiting = state.waiting.line(line).lines().flat_map(ByDeadline::iter);
        waiting.map(|waiting| see(&waiting.job, waiting.deadline())).collect()
    }

    fn picture_seconds(&self) -> f64 {
        self.lock().picture_seconds
    }

    fn close(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Draining;
        }
        self.0.changed.notify_all();
    }

    fn stop(&self) {
        let mut state = self.lock();
        state.phase = Phase::Stopped;
        state.waiting.retain(&mut |_| false);
        self.0.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.lock().phase != Phase::Open
    }

    fn len(&self) -> usize {
        self.lock().waiting.len()
    }
}

/// What the owner of a job in a [`LocalQueue`] holds.
pub struct Subscription {
    events: mpsc::Receiver<Event>,
    queue: LocalQueue,
    client: String,
    mark: Mark,
    ended: bool,
}

impl JobSubscription for Subscription {
    async fn next(&mut self) -> Event {
        let event = self.events.recv().await.unwrap_or(Event::Failed(Failure::Stopped));
        self.ended |= !matches!(event, Event::Preview { .. });
        event
    }

    fn ahead(&self) -> Option<usize> {
        let state = self.queue.lock();
        state.waiting.all().into_iter().find_map(|line| {
            let mut own = line.get(&self.client)?.iter();
            let place = own.position(|waiting| waiting.listeners.are(&self.mark))?;
            Some(line.before(&self.client, place))
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.events.close();
        if !self.ended {
            self.queue.forget_unwanted();
        }
    }
}

/// A job of a [`LocalQueue`] that is being painted.
pub struct Lease {
    job: Arc<Job>,
    /// Where it waited.
    line: Line,
    since: Instant,
    deadline: Instant,
    listeners: Listeners,
    started: Instant,
    queue: LocalQueue,
}

impl Lease {
    /// It is no longer leased; a lease of the other line, where the same job went to be painted, stays.
    fn leave_flying(&self, state: &mut State) {
        state.flying.retain(|(job, _, line)| !(Arc::ptr_eq(job, &self.job) && *line == self.line));
    }

    fn end(self, event: &Event) {
        let listeners = self.listeners.clone();
        drop(self); // nobody joins any more
        listeners.hear(event);
    }
}

impl JobLease for Lease {
    fn job(&self) -> &Arc<Job> {
        &self.job
    }

    fn waited(&self) -> Duration {
        self.started - self.since
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn is_cancelled(&self) -> bool {
        self.listeners.are_gone() || self.queue.lock().phase == Phase::Stopped
    }

    fn preview(&self, index: usize, file: Vec<u8>) {
        self.listeners.hear(&Event::Preview { index, file });
    }

    fn complete(self, painted: Painted) {
        // A stored picture says nothing of those that take steps.
        if painted.skipped_steps < painted.steps {
            let now = Instant::now();
            let mut state = self.queue.lock();
            let seconds = (now - self.started.max(state.last_end)).as_secs_f64();
            state.picture_seconds += (seconds - state.picture_seconds) / 4.0;
            state.last_end = now;
        }
        self.end(&Event::Done(painted));
    }

    fn fail(self, failure: Failure) {
        self.end(&Event::Failed(failure));
    }

    fn paint_instead(self) {
        let (job, listeners, since) = (self.job.clone(), self.listeners.clone(), self.since);
        let queue = self.queue.clone();
        let mut state = queue.lock();
        // At once: whoever asks for the same meanwhile finds it in one place or the other.
        self.leave_flying(&mut state);
        if listeners.are_gone() {
            telemetry::cancelled(1);
        } else if state.phase != Phase::Stopped {
            // Whoever stopped the queue forgot what waited.
            state.waiting.push(Waiting { job, line: Line::Paint, listeners, since });
        }
        telemetry::queue_length(state.waiting.len());
        drop((state, self));
        queue.0.changed.notify_all();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        self.leave_flying(&mut state);
        if state.phase != Phase::Open {
            self.queue.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LocalQueue;

    crate::queue::conformance::suite!(LocalQueue::new);
}
