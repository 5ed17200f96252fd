//! Requests that nobody needs to stay connected for: painted, kept for a while, and told of when they end.

mod job;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::Instrument;

pub use job::{End, Job, JobFailure, JobId, Outcome, PictureProgress, Preview, Progress, Status};
use store::{Store, StoreLimits};

use super::PictureScheduler;
use super::pictures::Pictures;
use super::webhook::{Notice, Webhook, Webhooks};
use crate::config::Config;

/// Why a job is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// All jobs kept are still to be painted.
    #[error("too many jobs are waiting")]
    Full,
    /// Another request came under this key.
    #[error("the idempotency key belongs to another request")]
    KeyTaken,
}

/// Tells a request that is sent again from a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's own name for his request.
    pub key: String,
    /// The sha256 of its body.
    pub body: [u8; 32],
}

/// A job to be.
pub struct NewJob<A> {
    /// Its name.
    pub id: JobId,
    /// Whose it is; nobody else sees it.
    pub tenant: Arc<str>,
    /// What the API says of its pictures.
    pub about: A,
    /// Whether it was asked for before.
    pub idempotency: Option<Idempotency>,
    /// Who hears of its end.
    pub webhook: Option<Webhook>,
}

/// All jobs, running and finished. The gateway does not look into `A`, what the API keeps with each.
pub struct Jobs<A> {
    store: Mutex<Store<Job<A>>>,
    scheduler: PictureScheduler,
    webhooks: Webhooks,
    timeout: Duration,
}

impl<A: Send + Sync + 'static> Jobs<A> {
    /// No jobs yet. `scheduler` has their pictures painted.
    pub fn new(config: &Config, scheduler: PictureScheduler, webhooks: Webhooks) -> Self {
        let limits = StoreLimits {
            jobs: config.max_jobs,
            bytes: config.job_store_bytes,
            lifetime: Duration::from_secs(config.job_lifetime_seconds),
        };
        Self {
            store: Mutex::new(Store::new(limits)),
            scheduler,
            webhooks,
            timeout: Duration::from_secs(config.job_timeout_seconds),
        }
    }

    /// Who is told of ends.
    pub fn webhooks(&self) -> &Webhooks {
        &self.webhooks
    }

    /// The job that a request under this key already made; `None`: it is new.
    ///
    /// # Errors
    /// [`JobError`], where another request came under the key, or there is no room for one more job.
    pub fn before(
        &self,
        tenant: &Arc<str>,
        idempotency: Option<&Idempotency>,
    ) -> Result<Option<Arc<Job<A>>>, JobError> {
        let mut store = self.store.lock();
        store.expire(Instant::now());
        let known = idempotency.map(|it| store.known(tenant, it)).transpose()?.flatten();
        if known.is_none() && !store.has_room() { Err(JobError::Full) } else { Ok(known) }
    }

    /// Has a job's pictures painted. Where a request under the same key came in the meantime it is that one's job, and
    /// these pictures are not painted.
    ///
    /// # Errors
    /// As [`Self::before`]; the pictures are not painted then.
    pub fn start(self: &Arc<Self>, new: NewJob<A>, pictures: Pictures) -> Result<Arc<Job<A>>, JobError> {
        let NewJob { id, tenant, about, idempotency, webhook } = new;
        let places = (0..pictures.count()).map(|picture| PictureProgress::of(&pictures, picture)).collect();
        let job = Arc::new(Job::new(id, tenant, about, webhook, places));
        let mut store = self.store.lock();
        store.expire(Instant::now());
        if let Some(known) =
            idempotency.as_ref().map(|it| store.known(&job.tenant, it)).transpose()?.flatten()
        {
            return Ok(known);
        }
        store.insert(job.id.clone(), job.tenant.clone(), job.clone(), idempotency)?;
        drop(store);
        // In the request's span, so that the log tells which request a job was.
        tokio::spawn(run(self.clone(), job.clone(), pictures).in_current_span());
        Ok(job)
    }

    /// A tenant's job.
    pub fn get(&self, tenant: &str, id: &str) -> Option<Arc<Job<A>>> {
        let mut store = self.store.lock();
        store.expire(Instant::now());
        store.get(id).filter(|job| *job.tenant == *tenant)
    }

    /// Cancels a job, or forgets one that has ended. Says whether it was cancelled.
    pub fn remove(&self, job: &Arc<Job<A>>) -> bool {
        let cancelled = self.end(job, Outcome::Cancelled);
        if !cancelled {
            self.store.lock().forget(&job.id);
        }
        cancelled
    }

    /// When a job's last picture should be painted, as far as those before it tell; `None` once the first is begun.
    pub fn expected(&self, progress: &Progress) -> Option<Duration> {
        let ahead = progress.furthest().filter(|_| progress.status() == Status::Queued)?;
        Duration::try_from_secs_f64((ahead + 1) as f64 * self.picture_seconds()).ok()
    }

    /// Predicted seconds between the ends of two pictures, if all get the cheapest plan of their tier.
    fn picture_seconds(&self) -> f64 {
        let load = self.scheduler.load();
        let backlog = load.sets.iter().map(|set| set.backlog_seconds).fold(0.0, f64::max);
        backlog / load.tasks.max(1) as f64
    }

    /// How long a job may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// When it is worth asking again after [`JobError::Full`].
    pub fn retry_after(&self) -> Duration {
        Duration::from_secs_f64(self.picture_seconds().clamp(1.0, 600.0))
    }

    /// Forgets what is too old, and counts jobs by status.
    pub fn sweep(&self) -> [(Status, usize); 5] {
        let mut store = self.store.lock();
        store.expire(Instant::now());
        let mut counts = Status::ALL.map(|status| (status, 0));
        for job in store.jobs() {
            counts[job.progress().status() as usize].1 += 1;
        }
        counts
    }

    /// Waits until every job has ended and its webhook is delivered. The scheduler must be stopped.
    pub async fn close(&self) {
        loop {
            // Its end is told under the store's lock: whoever does not find it running finds its webhook under way.
            let Some(job) = self.store.lock().running() else { break };
            job.ended().await;
        }
        self.webhooks.close().await;
    }

    /// Ends a job, unless it has ended; says whether it did.
    fn end(&self, job: &Job<A>, outcome: Outcome) -> bool {
        let mut store = self.store.lock();
        let Some(end) = job.end(outcome) else { return false };
        tracing::info!(status = end.status().name(), "a job ended");
        store.ended(&job.id, job.progress().bytes(), end.at);
        if let Some(webhook) = &job.webhook {
            let notice = Notice {
                id: job.id.as_str(),
                status: end.status().name(),
                created: job.created,
                finished: end.time,
            };
            self.webhooks.send(webhook, &notice);
        }
        true
    }
}

/// A job's life.
async fn run<A: Send + Sync + 'static>(jobs: Arc<Jobs<A>>, job: Arc<Job<A>>, pictures: Pictures) {
    let room = |bytes| jobs.store.lock().grow(&job.id, bytes);
    // Whichever comes first, the pictures are dropped here: what is not painted is cancelled.
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(jobs.timeout, job.paint(pictures, room)) => outcome,
        _ = job.ended() => return,
    };
    let outcome = match outcome {
        Ok(Ok(pictures)) => Outcome::Completed(pictures),
        Ok(Err(failure)) => Outcome::Failed(failure),
        Err(_) => Outcome::Failed(JobFailure::TimedOut),
    };
    jobs.end(&job, outcome);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::gateway::pictures::{PictureFailure, Transcoder};
    use crate::picture::file::{Encoding, Format};
    use crate::picture::{FinishedPicture, PaintTask, PaintTimings, PictureSpec};
    use crate::scheduler::menu::{Measured, Menu, MenuOption};
    use crate::scheduler::messages::{
        Assignment, Change, Failure, Held, MenuChoice, NewTask, PictureId, Place, Poll, Report, Shape,
        Submit, TaskEnd, Terms,
    };
    use crate::scheduler::{TaskId, core, messages};

    /// Jobs, and a worker whose pictures a test paints by hand.
    struct Bench {
        jobs: Arc<Jobs<()>>,
        scheduler: PictureScheduler,
        requests: std::cell::Cell<u64>,
        sequence: std::cell::Cell<u64>,
        held: std::cell::RefCell<Vec<Held>>,
    }

    impl Bench {
        fn new(store: usize, timeout: u64) -> Self {
            let config = Config { job_store_bytes: store, job_timeout_seconds: timeout, ..Config::default() };
            let scheduler = PictureScheduler::new(core::Config::default());
            let quality = vec![Measured { noise_level: 1.0, mean: 1.0, low: 1.0, high: 1.0 }];
            scheduler.set_menu("m".into(), Menu::new(vec![MenuOption::even("2", 2, 0.0, quality)]).unwrap());
            let webhooks = Webhooks::new(&config).unwrap();
            Self {
                jobs: Arc::new(Jobs::new(&config, scheduler.clone(), webhooks)),
                scheduler,
                requests: Default::default(),
                sequence: Default::default(),
                held: Default::default(),
            }
        }

        fn start(&self, pictures: usize) -> Arc<Job<()>> {
            let request = self.requests.replace(self.requests.get() + 1);
            let task = |index: usize| {
                let spec: PictureSpec =
                    serde_json::from_value(serde_json::json!({"model": "m", "weights": "w",
                    "prompt": "p", "size": "64x64", "seed": index, "guidance_scale": 4.0}))
                    .unwrap();
                NewTask {
                    spec: PaintTask { request: "r".into(), spec, start: None, keep: None },
                    model: "m".into(),
                    shape: Shape { width: 64, height: 64 },
                    picture: PictureId { scope: format!("{request}"), hash: [index as u8; 32] },
                    terms: Terms {
                        tier: "auto".into(),
                        floor: 0.9,
                        best: 1.0,
                        deadline_seconds: 3600.0,
                        firm: false,
                    },
                    menu: MenuChoice::Whole,
                    start: None,
                    previews: 1,
                }
            };
            let tasks = (0..pictures).map(task).collect();
            let submit = Submit { request: format!("{request}").into(), client: "c".into(), tasks };
            let listener = self.scheduler.submit(submit).unwrap();
            let encoding = Encoding { format: Format::Png, quality: 100 };
            let painted = (0..pictures).collect();
            let pictures =
                Pictures::new(encoding, Transcoder::default(), true, vec![], Some(listener), painted);
            let id = JobId::random().unwrap();
            let new = NewJob { id, tenant: "t".into(), about: (), idempotency: None, webhook: None };
            self.jobs.start(new, pictures).unwrap()
        }

        /// Polls as a worker of one picture, until it holds one.
        async fn assigned(&self) -> Held {
            loop {
                self.poll().await;
                if let Some(held) = self.held.borrow().first() {
                    return held.clone();
                }
            }
        }

        /// Polls, and does as it is told.
        async fn poll(&self) {
            let sequence = self.sequence.replace(self.sequence.get() + 1) + 1;
            let report = Report {
                rows: 2,
                loadable: vec!["m".into()],
                resident: vec!["m".into()],
                held: self.held.borrow().clone(),
                ..Report::default()
            };
            let answer =
                self.scheduler.poll(Poll { worker: "w".into(), incarnation: 1, sequence, report }).await;
            let mut held = self.held.borrow_mut();
            for change in &answer.changes {
                if let Change::Cancel { task, .. } = change {
                    held.retain(|of| of.task != *task);
                }
            }
            let new = |new: Assignment<PaintTask>| {
                let Assignment { task, attempt, option, rank, paused, previews, .. } = new;
                let place = Place::Preparing;
                Held { task, attempt, option, place, rank, paused, previews, checkpoint: None }
            };
            held.extend(answer.assignments.into_iter().map(new));
        }

        /// Polls until the worker holds this task no longer.
        async fn dropped(&self, task: &TaskId) {
            while self.held.borrow().iter().any(|held| held.task == *task) {
                self.poll().await;
            }
        }

        async fn paint(&self, bytes: usize) {
            let Held { task, attempt, option, .. } = self.assigned().await;
            self.held.borrow_mut().retain(|held| held.task != task);
            let outcome = messages::Outcome::Done { option, machine_seconds: None, picture: finished(bytes) };
            assert!(self.scheduler.end(TaskEnd { task, attempt, outcome }).counted);
        }
    }

    fn finished(bytes: usize) -> FinishedPicture {
        FinishedPicture {
            file: vec![0; bytes].into(),
            steps: 2,
            skipped_steps: 0,
            started_from: None,
            timings: PaintTimings::default(),
        }
    }

    /// The job's end, in one word or in a failure's.
    async fn ended(job: &Job<()>) -> String {
        tokio::time::timeout(Duration::from_secs(30), job.ended()).await.unwrap();
        match &job.progress().end.unwrap().outcome {
            Outcome::Failed(failure) => failure.to_string(),
            outcome => format!("{outcome:?}").split('(').next().unwrap().to_owned(),
        }
    }

    #[tokio::test]
    async fn a_running_job_has_no_more_room_than_there_is() {
        let bench = Bench::new(100, 3600);
        let first = bench.start(1);
        bench.paint(60).await;
        assert_eq!(ended(&first).await, "Completed");
        let second = bench.start(3);
        let held = bench.assigned().await;
        bench.scheduler.preview(&held.task, 1, 1, &Bytes::from(vec![0; 30]));
        let mut progress = second.follow();
        progress.wait_for(|progress| progress.previews.len() == 1).await.unwrap();
        assert!(bench.jobs.get("t", first.id.as_str()).is_some(), "both have room");
        bench.paint(30).await;
        let painted = |progress: &Progress| progress.pictures.contains(&PictureProgress::Painted);
        progress.wait_for(painted).await.unwrap();
        assert!(bench.jobs.get("t", first.id.as_str()).is_none(), "the finished one gave way");
        bench.paint(41).await;
        assert_eq!(ended(&second).await, JobFailure::NoRoom.to_string());
        bench.scheduler.idle().await; // its third picture is not painted
        bench.held.borrow_mut().clear();
        let third = bench.start(1);
        bench.paint(100).await;
        assert_eq!(ended(&third).await, "Completed", "what a failed job held is free again");
    }

    #[tokio::test]
    async fn a_job_is_cancelled_failed_or_out_of_time_once() {
        let bench = Bench::new(100, 1);
        let slow = bench.start(1);
        let held = bench.assigned().await;
        assert_eq!(ended(&slow).await, JobFailure::TimedOut.to_string());
        bench.dropped(&held.task).await; // its place is free
        let unwanted = bench.start(2);
        assert!(bench.jobs.remove(&unwanted) && !bench.jobs.remove(&unwanted));
        assert_eq!(ended(&unwanted).await, "Cancelled");
        assert!(bench.jobs.get("t", unwanted.id.as_str()).is_none(), "the second time it was forgotten");
        let stopped = bench.start(1);
        assert!(bench.jobs.get("u", stopped.id.as_str()).is_none(), "another tenant's");
        bench.scheduler.stop();
        assert_eq!(ended(&stopped).await, PictureFailure::Painting(Failure::Stopped).to_string());
        bench.jobs.close().await;
    }
}
