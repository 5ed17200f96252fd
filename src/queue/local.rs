//! The queue within one process.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::turns::{Parts, Turns};
use super::{Job, Reused};
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

/// Where a picture's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for its turn.
    pub queue: Duration,
    /// Getting the state that it starts from.
    pub load: Duration,
    /// Encoding the prompts.
    pub encode: Duration,
    /// All steps.
    pub denoise: Duration,
    /// Latent to image file, previews included.
    pub decode: Duration,
}

/// A finished picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Painted {
    /// The image file.
    pub file: Vec<u8>,
    /// Where the time went.
    pub timings: Timings,
    /// What of the cache it was made from; `None`: it was painted from noise.
    pub reused: Option<Reused>,
    /// The steps of its plan that this spared.
    pub skipped_steps: usize,
}

/// Why an accepted picture was not painted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The engine failed; the reason is for the log.
    #[error("{0}")]
    Engine(String),
    /// The state to start from was gone when its turn came, and nothing else was wanted.
    #[error("the stored state is gone")]
    StateGone,
    /// The worker is gone, or had no time left to shut down in.
    #[error("the worker stopped before the picture was finished")]
    Stopped,
}

/// What a subscriber hears of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The predicted picture, as an image file; `index` counts previews from 0.
    Preview {
        /// Which of the job's previews.
        index: usize,
        /// The image file.
        file: Vec<u8>,
    },
    /// The end: the picture.
    Done(Painted),
    /// The end: none.
    Failed(Failure),
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
    /// Shared with the subscription: whose place this is.
    place: Arc<()>,
    job: Job,
    events: mpsc::Sender<Event>,
    since: Instant,
}

struct State {
    /// Clients in turn; within a client its requests in turn.
    waiting: Turns<String, Turns<String, VecDeque<Waiting>>>,
    phase: Phase,
    /// A running mean, for `Retry-After`.
    picture_seconds: f64,
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
        let state = State { waiting: Turns::default(), phase: Phase::Open, picture_seconds: 1.0 };
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

    /// Accepts a request's jobs, all or none. Whoever drops a subscription cancels its job.
    ///
    /// # Errors
    /// [`Busy`] where there is no room, or no time.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<Vec<Subscription>, Busy> {
        let mut state = self.lock();
        if let Some(job) = jobs.first() {
            self.0.limits.room_in(&state, &job.client, jobs.len())?;
        }
        let since = Instant::now();
        let subscriptions = jobs.into_iter().map(|job| {
            // Room for all that a job can say, so that the worker never waits for a reader.
            let (events, receiver) = mpsc::channel(job.previews.len() + 1);
            let line = state.waiting.entry(job.client.clone()).entry(job.request_id.clone());
            let place = Arc::new(());
            line.push_back(Waiting { place: place.clone(), job, events, since });
            Subscription { events: receiver, queue: self.clone(), place, ended: false }
        });
        let subscriptions = subscriptions.collect();
        telemetry::queue_length(state.waiting.len());
        drop(state);
        self.0.changed.notify_all();
        Ok(subscriptions)
    }

    /// The next job, once there is one; `None` when the queue is closed and empty.
    pub fn pull(&self) -> Option<Lease> {
        let mut state = self.lock();
        loop {
            if let Some(Waiting { job, events, since, .. }) = state.waiting.next() {
                telemetry::queue_length(state.waiting.len());
                let started = Instant::now();
                return Some(Lease { job, waited: started - since, events, started, queue: self.clone() });
            }
            if state.phase != Phase::Open {
                return None;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Seconds that a picture takes, a running mean.
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
        state.waiting.retain(&mut |waiting| !waiting.events.is_closed());
        let after = state.waiting.len();
        telemetry::cancelled(before - after);
        telemetry::queue_length(after);
    }
}

/// What a job's owner holds. Dropped before the end, it cancels the job, be it waiting or half painted.
pub struct Subscription {
    events: mpsc::Receiver<Event>,
    queue: LocalQueue,
    place: Arc<()>,
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
        let mut state = self.queue.lock();
        // Each client's pictures, and which client's and which of them is ours.
        let (mut clients, mut ours) = (Vec::<(String, usize)>::new(), None);
        state.waiting.retain(&mut |waiting| {
            if clients.last().is_none_or(|(client, _)| *client != waiting.job.client) {
                clients.push((waiting.job.client.clone(), 0));
            }
            let at = clients.len() - 1;
            if Arc::ptr_eq(&waiting.place, &self.place) {
                ours = Some((at, clients[at].1));
            }
            clients[at].1 += 1;
            true
        });
        let (our_client, place) = ours?;
        // Turn by turn: one picture of each client, those before us in the line once more.
        let others = clients.iter().enumerate().filter(|(at, _)| *at != our_client);
        Some(place + others.map(|(at, (_, n))| (*n).min(place + usize::from(at < our_client))).sum::<usize>())
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
    pub job: Job,
    /// How long it waited.
    pub waited: Duration,
    events: mpsc::Sender<Event>,
    started: Instant,
    queue: LocalQueue,
}

impl Lease {
    /// Whether nobody waits for the picture any more. Asked before every step.
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed() || self.queue.lock().phase == Phase::Stopped
    }

    /// Sends a preview.
    pub fn preview(&self, index: usize, file: Vec<u8>) {
        self.send(Event::Preview { index, file });
    }

    /// Sends the picture.
    pub fn complete(self, painted: Painted) {
        let seconds = self.started.elapsed().as_secs_f64();
        let mut state = self.queue.lock();
        state.picture_seconds += (seconds - state.picture_seconds) / 4.0;
        drop(state);
        self.send(Event::Done(painted));
    }

    /// Says why there is none.
    pub fn fail(self, failure: Failure) {
        self.send(Event::Failed(failure));
    }

    fn send(&self, event: Event) {
        // Fails only where nobody listens: the channel has room for every event of a job.
        let _ = self.events.try_send(event);
    }
}

#[cfg(test)]
mod tests {
    use pentimento_pipelines::{NoiseSource, Size};

    use super::*;
    use crate::queue::{Encoding, Format, Start};

    fn jobs(client: &str, n: usize) -> Vec<Job> {
        let job = |index| Job {
            request_id: format!("request-of-{client}"),
            index,
            client: client.to_owned(),
            model: "m".into(),
            prompt: "p".into(),
            negative_prompt: String::new(),
            size: Size { width: 64, height: 64 },
            seed: 0,
            noise: NoiseSource::Pentimento,
            plan: serde_json::from_str(r#"{"steps":[]}"#).unwrap(),
            start: Start::Noise,
            keep: None,
            previews: vec![],
            encoding: Encoding { format: Format::Png, quality: 100 },
        };
        (0..n).map(job).collect()
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
            std::iter::from_fn(|| queue.pull()).map(|lease| lease.job.client.clone()).collect();
        assert_eq!(clients, ["a", "b", "a", "a"], "what was accepted is handed out, in turn");
    }

    #[test]
    fn a_dropped_subscription_cancels_waiting_and_leased_jobs() {
        let queue = queue();
        let mut subscriptions = queue.submit(jobs("a", 3)).unwrap();
        let lease = queue.pull().unwrap();
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
        let painted = Painted { file: vec![1], timings: Timings::default(), reused: None, skipped_steps: 0 };
        queue.pull().unwrap().complete(painted.clone());
        drop(queue.pull()); // as a worker that dies
        let _kept = queue.submit(jobs("b", 1)).unwrap();
        let lease = queue.pull().unwrap();
        assert!(!lease.is_cancelled());
        queue.stop(); // with one being painted and one waiting
        assert!(lease.is_cancelled() && queue.pull().is_none());
        let ends = [Event::Done(painted), Event::Failed(Failure::Stopped), Event::Failed(Failure::Stopped)];
        for (subscription, end) in subscriptions.iter_mut().zip(ends) {
            assert_eq!(subscription.next().await, end);
        }
    }
}
