//! The queue within one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Job;
use super::event::{Event, Failure, Listeners, Mark, Painted};
use super::turns::{Parts, Turns};
use super::urgency::{ByDeadline, Urgent};
use crate::telemetry;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Pictures in all.
    pub length: usize,
    /// Pictures of one client.
    pub length_per_client: usize,
}

/// Why nothing more is accepted.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Busy {
    /// The queue is full.
    #[error("too many pictures are waiting")]
    Full {
        /// When there should be room again.
        retry_after: Duration,
    },
    /// This client has too many pictures waiting.
    #[error("too many of your pictures are waiting")]
    ClientFull {
        /// When there should be room again.
        retry_after: Duration,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// What was accepted is painted, nothing more is accepted.
    Draining,
    /// Nothing more is painted either.
    Stopped,
}

struct Waiting {
    job: Arc<Job>,
    listeners: Listeners,
    since: Instant,
}

impl Urgent for Waiting {
    fn deadline(&self) -> Instant {
        self.since + self.job.terms.objective
    }
}

struct State {
    /// Clients in turn; within a client the most urgent picture first.
    waiting: Turns<String, ByDeadline<Waiting>>,
    /// What is leased.
    flying: Vec<(Arc<Job>, Listeners)>,
    phase: Phase,
    /// The time from one picture's end to the next one's while there is work, a running mean.
    picture_seconds: f64,
    last_end: Instant,
}

impl State {
    /// Another request's listeners, where they already wait for the very picture. Only within a client: what others
    /// ask for must not show in the time that an answer takes.
    fn same_picture(&self, job: &Job) -> Option<&Listeners> {
        let same = |other: &Job| other.is_same_picture(job);
        let flying = self.flying.iter().find(|(other, _)| same(other)).map(|(_, listeners)| listeners);
        let waiting = || {
            let line = self.waiting.get(&job.client)?;
            line.iter().find(|waiting| same(&waiting.job)).map(|waiting| &waiting.listeners)
        };
        flying.or_else(waiting)
    }
}

struct Shared {
    limits: QueueLimits,
    state: Mutex<State>,
    changed: Condvar,
}

/// What a worker gets that asks for work.
pub enum Pulled {
    /// A job.
    Lease(Lease),
    /// Nothing, in the time that it had.
    Nothing,
    /// Nothing any more: the queue is closed and empty.
    Closed,
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
            waiting: Turns::default(),
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

    /// Whether so many jobs of a client would be accepted now.
    ///
    /// # Errors
    /// [`Busy`] where there is no room, or no time.
    pub fn has_room(&self, client: &str, jobs: usize) -> Result<(), Busy> {
        self.0.limits.room_in(&self.lock(), client, jobs)
    }

    /// Whether each of these is painted for its client already, or waits for it: they cost nothing more.
    pub fn has_all(&self, jobs: &[Job]) -> bool {
        let state = self.lock();
        jobs.iter().all(|job| state.same_picture(job).is_some())
    }

    /// Accepts a request's jobs, all or none. Whoever drops a subscription cancels its job, unless somebody else waits
    /// for the same picture: what one client asks for several times is painted once.
    ///
    /// # Errors
    /// [`Busy`] where there is no room, or no time.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<Vec<Subscription>, Busy> {
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
        state.waiting.entry(client.clone()).push(Waiting { job: Arc::new(job), listeners, since });
        subscription(events, client, mark)
    }

    /// The next job, waited for so long; `None` waits for ever.
    pub fn pull(&self, patience: Option<Duration>) -> Pulled {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut state = self.lock();
        loop {
            if let Some(waiting) = state.waiting.next() {
                telemetry::queue_length(state.waiting.len());
                return Pulled::Lease(self.lease(&mut state, waiting));
            }
            if state.phase != Phase::Open {
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

    /// The job whose turn is next, if it is wanted, of which the deadline is told, too; nothing is waited for.
    pub fn pull_if(&self, wanted: impl FnOnce(&Job, Instant) -> bool) -> Pulled {
        let mut state = self.lock();
        if !state.waiting.peek().is_some_and(|next| wanted(&next.job, next.deadline())) {
            return Pulled::Nothing;
        }
        match state.waiting.next() {
            Some(waiting) => {
                telemetry::queue_length(state.waiting.len());
                Pulled::Lease(self.lease(&mut state, waiting))
            }
            None => Pulled::Nothing,
        }
    }

    fn lease(&self, state: &mut State, waiting: Waiting) -> Lease {
        let deadline = waiting.deadline();
        let Waiting { job, listeners, since } = waiting;
        state.flying.push((job.clone(), listeners.clone()));
        let started = Instant::now();
        Lease { job, waited: started - since, deadline, listeners, started, queue: self.clone() }
    }

    /// What waits, as `see` sees it with its deadline. It must be quick: the queue stands still meanwhile.
    pub fn waiting<T>(&self, mut see: impl FnMut(&Job, Instant) -> T) -> Vec<T> {
        let state = self.lock();
        let lines = state.waiting.lines().flat_map(ByDeadline::iter);
        lines.map(|waiting| see(&waiting.job, waiting.deadline())).collect()
    }

    /// Seconds from one picture's end to the next one's while there is work.
    pub fn picture_seconds(&self) -> f64 {
        self.lock().picture_seconds
    }

    /// Accepts nothing more; what was accepted is still handed out.
    pub fn close(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Draining;
        }
        self.0.changed.notify_all();
    }

    /// Forgets what waits and cancels what is being painted: its subscribers hear [`Failure::Stopped`].
    pub fn stop(&self) {
        let mut state = self.lock();
        state.phase = Phase::Stopped;
        state.waiting.retain(&mut |_| false);
        self.0.changed.notify_all();
    }

    /// Whether nothing more is accepted.
    pub fn is_closed(&self) -> bool {
        self.lock().phase != Phase::Open
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn forget_unwanted(&self) {
        let mut state = self.lock();
        let before = state.waiting.len();
        state.waiting.retain(&mut |waiting| !waiting.listeners.are_gone());
        let after = state.waiting.len();
        telemetry::cancelled(before - after);
        telemetry::queue_length(after);
    }
}

/// What a job's owner holds. Dropped before the end, it cancels the job, be it waiting or half painted.
pub struct Subscription {
    events: mpsc::Receiver<Event>,
    queue: LocalQueue,
    client: String,
    mark: Mark,
    ended: bool,
}

impl Subscription {
    /// The next event; the last one is [`Event::Done`] or [`Event::Failed`].
    pub async fn next(&mut self) -> Event {
        let event = self.events.recv().await.unwrap_or(Event::Failed(Failure::Stopped));
        self.ended |= !matches!(event, Event::Preview { .. });
        event
    }

    /// How many pictures will be begun before this one; `None` once it is begun, or over.
    pub fn ahead(&self) -> Option<usize> {
        let state = self.queue.lock();
        let mut line = state.waiting.get(&self.client)?.iter();
        let place = line.position(|waiting| waiting.listeners.are(&self.mark))?;
        Some(state.waiting.before(&self.client, place))
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

/// A job being painted. Dropped without an outcome, it tells the subscriber that the worker stopped.
pub struct Lease {
    /// The job.
    pub job: Arc<Job>,
    /// How long it waited.
    pub waited: Duration,
    /// When it should be done.
    pub deadline: Instant,
    listeners: Listeners,
    started: Instant,
    queue: LocalQueue,
}

impl Lease {
    /// Whether nobody waits for the picture any more. Asked before every step.
    pub fn is_cancelled(&self) -> bool {
        self.listeners.are_gone() || self.queue.lock().phase == Phase::Stopped
    }

    /// Sends a preview.
    pub fn preview(&self, index: usize, file: Vec<u8>) {
        self.listeners.hear(&Event::Preview { index, file });
    }

    /// Sends the picture.
    pub fn complete(self, painted: Painted) {
        let now = Instant::now();
        let mut state = self.queue.lock();
        let seconds = (now - self.started.max(state.last_end)).as_secs_f64();
        state.picture_seconds += (seconds - state.picture_seconds) / 4.0;
        state.last_end = now;
        drop(state);
        self.end(&Event::Done(painted));
    }

    /// Says why there is none.
    pub fn fail(self, failure: Failure) {
        self.end(&Event::Failed(failure));
    }

    fn end(self, event: &Event) {
        let listeners = self.listeners.clone();
        drop(self); // nobody joins any more
        listeners.hear(event);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.queue.lock().flying.retain(|(job, _)| !Arc::ptr_eq(job, &self.job));
    }
}

#[cfg(test)]
mod tests {
    use pentimento_pipelines::{NoiseSource, Size};

    use super::*;
    use crate::plan::{Terms, Tier};
    use crate::queue::{Encoding, Format, Start, Timings};

    fn jobs(client: &str, n: usize) -> Vec<Job> {
        let job = |index| Job {
            request_id: format!("request-of-{client}"),
            index,
            client: client.to_owned(),
            model: "m".into(),
            prompt: "p".into(),
            negative_prompt: String::new(),
            size: Size { width: 64, height: 64 },
            seed: index as u64,
            noise: NoiseSource::Pentimento,
            plan: serde_json::from_str(r#"{"steps":[]}"#).unwrap(),
            start: Start::Noise,
            terms: terms(60),
            keep: None,
            previews: vec![],
            encoding: Encoding { format: Format::Png, quality: 100 },
        };
        (0..n).map(job).collect()
    }

    fn terms(seconds: u64) -> Terms {
        Terms { tier: Tier::Auto, floor: 1, best: 1, objective: Duration::from_secs(seconds) }
    }

    fn pull(queue: &LocalQueue) -> Option<Lease> {
        match queue.pull(Some(Duration::ZERO)) {
            Pulled::Lease(lease) => Some(lease),
            Pulled::Nothing | Pulled::Closed => None,
        }
    }

    fn painted() -> Painted {
        let (timings, reused) = (Timings::default(), None);
        Painted { file: vec![1], timings, reused, skipped_steps: 0, steps: 1, expected_quality: None }
    }

    fn queue() -> LocalQueue {
        LocalQueue::new(QueueLimits { length: 4, length_per_client: 3 })
    }

    #[test]
    fn a_request_is_accepted_whole_or_not_at_all() {
        let queue = queue();
        let _three = queue.submit(jobs("a", 3)).unwrap();
        assert!(matches!(queue.submit(jobs("a", 1)), Err(Busy::ClientFull { .. })));
        assert!(matches!(queue.submit(jobs("b", 2)), Err(Busy::Full { .. })));
        assert_eq!(queue.len(), 3);
        let _one = queue.submit(jobs("b", 1)).unwrap();
        queue.close();
        assert!(matches!(queue.submit(jobs("b", 1)), Err(Busy::Closed)));
        let clients: Vec<_> =
            std::iter::from_fn(|| pull(&queue)).map(|lease| lease.job.client.clone()).collect();
        assert_eq!(clients, ["a", "b", "a", "a"], "what was accepted is handed out, in turn");
    }

    #[test]
    fn a_dropped_subscription_cancels_waiting_and_leased_jobs() {
        let queue = queue();
        let mut subscriptions = queue.submit(jobs("a", 3)).unwrap();
        let lease = pull(&queue).unwrap();
        drop(subscriptions.pop());
        assert_eq!(queue.len(), 1);
        assert!(!lease.is_cancelled());
        drop(subscriptions);
        assert!(queue.is_empty() && lease.is_cancelled());
    }

    #[tokio::test]
    async fn whatever_happens_the_subscriber_hears_an_end() {
        let queue = queue();
        let mut subscriptions = queue.submit(jobs("a", 3)).unwrap();
        pull(&queue).unwrap().complete(painted());
        drop(pull(&queue)); // as a worker that dies
        let _kept = queue.submit(jobs("b", 1)).unwrap();
        let lease = pull(&queue).unwrap();
        assert!(!lease.is_cancelled());
        queue.stop(); // with one being painted and one waiting
        assert!(lease.is_cancelled() && pull(&queue).is_none());
        let ends = [Event::Done(painted()), Event::Failed(Failure::Stopped), Event::Failed(Failure::Stopped)];
        for (subscription, end) in subscriptions.iter_mut().zip(ends) {
            assert_eq!(subscription.next().await, end);
        }
    }

    #[tokio::test]
    async fn what_one_client_asks_for_twice_is_painted_once() {
        let queue = queue();
        let mut first = queue.submit(jobs("a", 1)).unwrap();
        let mut again = queue.submit(jobs("a", 1)).unwrap();
        let _others = queue.submit(jobs("b", 1)).unwrap();
        assert_eq!(queue.len(), 2, "another client's stays his own");
        let lease = pull(&queue).unwrap();
        let mut while_painted = queue.submit(jobs("a", 1)).unwrap();
        drop(first.pop());
        assert!(!lease.is_cancelled() && queue.len() == 1);
        lease.complete(painted());
        for subscription in [&mut again[0], &mut while_painted[0]] {
            assert_eq!(subscription.next().await, Event::Done(painted()));
        }
        let _later = queue.submit(jobs("a", 1)).unwrap();
        assert_eq!(queue.len(), 2, "what is over is painted anew");
    }

    #[test]
    fn within_a_client_the_most_urgent_goes_first_and_everybody_knows_his_place() {
        let queue = queue();
        let mut late = jobs("a", 2);
        late[1].terms = terms(5);
        let late = queue.submit(late).unwrap();
        let other = queue.submit(jobs("b", 1)).unwrap();
        assert_eq!([late[0].ahead(), late[1].ahead(), other[0].ahead()], [Some(2), Some(0), Some(1)]);
        let lease = pull(&queue).unwrap();
        assert_eq!((lease.job.index, late[1].ahead()), (1, None));
        assert_eq!([late[0].ahead(), other[0].ahead()], [Some(1), Some(0)]);
        let than = lease.deadline;
        assert!(matches!(queue.pull_if(|_, due| due < than), Pulled::Nothing), "nobody is more urgent");
        let Pulled::Lease(other) = queue.pull_if(|_, due| due > than) else { panic!("all are less urgent") };
        assert_eq!(other.job.client, "b", "in turn all the same");
        assert_eq!(pull(&queue).unwrap().job.client, "a");
        assert_eq!(queue.waiting(|job, _| job.index), [0usize; 0]);
    }
}
