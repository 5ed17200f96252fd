//! Runs a worker: the core behind one mutex, and the threads that do its work.
//!
//! | thread | does |
//! |---|---|
//! | stepper | steps, and nothing else but the snapshots after them |
//! | encoder | encodes prompts and begins paintings |
//! | finisher | decodes, writes files and previews, hands pictures to the cache |
//! | a task on the runtime | polls the scheduler |
//! | a task on the runtime | loads stored states, several at a time, and models |
//!
//! Each takes its next work from the core and waits where there is none. Encoder and finisher are pools of one thread, so
//! that their networks take no helpers from a step.

mod tasks;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pentimento_pipelines::HelperThreads;
use rayon::ThreadPoolBuilder;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::core::{Batch, Begin, Finish, Member, Settings, WorkerCore};
use super::{BeginError, Measured, Painting, Stages, StepWatch};
use crate::scheduler::Time;
use crate::scheduler::local::LocalScheduler;
use crate::scheduler::messages::{AttemptId, EndAnswer, Outcome, TaskEnd};
use crate::telemetry;

/// How a worker runs.
pub struct Options {
    /// What it says of itself.
    pub settings: Settings,
    /// Whether it takes first steps and measures them before it asks for tasks.
    pub warm_up: bool,
    /// The threads that help its steps; `None`: rayon's global pool.
    pub helpers: Option<Arc<HelperThreads>>,
}

/// A running worker. Dropped, it stops after the work in hand; what it holds is then lost, unless the scheduler was idle.
pub struct Worker<E: Stages> {
    driver: Arc<Driver<E>>,
    threads: Vec<JoinHandle<()>>,
    warm: Option<oneshot::Receiver<Result<(), String>>>,
}

struct Driver<E: Stages> {
    engine: Arc<E>,
    scheduler: LocalScheduler<E::Spec, E::Picture>,
    core: Mutex<WorkerCore<E>>,
    watch: Mutex<StepWatch>,
    step: Condvar,
    begin: Condvar,
    finish: Condvar,
    /// States or models are to be loaded.
    load: Notify,
    /// The scheduler is to hear of something.
    news: Notify,
    stopping: AtomicBool,
    died: Notify,
}

impl<E: Stages> Worker<E> {
    /// Starts the worker's threads; its tasks run on `runtime`.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(
        options: Options,
        engine: Arc<E>,
        scheduler: LocalScheduler<E::Spec, E::Picture>,
        runtime: &Handle,
    ) -> std::io::Result<Self> {
        let Options { settings, warm_up, helpers } = options;
        let rows = settings.rows;
        let core = WorkerCore::new(settings, engine.models());
        let driver = Arc::new(Driver {
            engine,
            scheduler,
            core: Mutex::new(core),
            watch: Mutex::default(),
            step: Condvar::new(),
            begin: Condvar::new(),
            finish: Condvar::new(),
            load: Notify::new(),
            news: Notify::new(),
            stopping: AtomicBool::new(false),
            died: Notify::new(),
        });
        let (warmed, warm) = oneshot::channel();
        let (begin_polling, warm_enough) = oneshot::channel();
        let stepper = driver.thread("stepper", move |driver| {
            let run = || {
                let outcome = if warm_up { driver.warm_up(rows) } else { Ok(()) };
                let _ = (warmed.send(outcome), begin_polling.send(())); // the worker may be gone already
                while let Some(batch) = driver.wait(&driver.step, WorkerCore::next_batch) {
                    driver.step(batch);
                }
            };
            match helpers {
                Some(helpers) => helpers.lend(run),
                None => run(),
            }
        })?;
        let encoder = driver.thread_alone("encoder", |driver| {
            while let Some(begin) = driver.wait(&driver.begin, WorkerCore::next_begin) {
                driver.begin(begin);
            }
        })?;
        let finisher = driver.thread_alone("finisher", |driver| {
            while let Some(finish) = driver.wait(&driver.finish, WorkerCore::next_finish) {
                driver.finish(finish);
            }
        })?;
        let polling = Arc::clone(&driver);
        runtime.spawn(async move {
            let _watched = Watched(&polling);
            if warm_enough.await.is_ok() {
                polling.poll().await;
            }
        });
        runtime.spawn(Arc::clone(&driver).load_stage());
        Ok(Self { driver, threads: vec![stepper, encoder, finisher], warm: Some(warm) })
    }

    /// Resolves once the first steps were taken. Only the first call hears of them.
    ///
    /// # Errors
    /// Why they could not.
    pub fn warm(&mut self) -> impl Future<Output = Result<(), String>> + Send + use<E> {
        let warm = self.warm.take();
        async move {
            let Some(warm) = warm else { return Err("that was asked before".to_owned()) };
            warm.await.unwrap_or_else(|_| Err("the stepping thread ended".to_owned()))
        }
    }

    /// Resolves when one of its threads panicked, which is a defect of the worker: panics of the engine are caught.
    pub async fn died(&self) {
        self.driver.died.notified().await;
    }

    /// Whether its present step hangs. A hanging step is counted when this first sees it.
    pub fn hangs(&self) -> bool {
        let now = self.driver.scheduler.clock().now();
        let mut watch = self.driver.watch.lock();
        if watch.hangs_newly(now) {
            telemetry::step_hangs();
            tracing::error!("a step hangs");
        }
        watch.hangs(now)
    }

    /// Stops polling, and ends its threads after the work in hand.
    pub fn stop(&self) {
        self.driver.stop();
    }

    /// Stops, and waits for its threads.
    pub fn join(mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a panic was seen by `died`
        }
    }
}

impl<E: Stages> Drop for Worker<E> {
    fn drop(&mut self) {
        self.driver.stop();
    }
}

impl<E: Stages> Driver<E> {
    fn thread(
        self: &Arc<Self>,
        name: &str,
        run: impl FnOnce(&Self) + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let driver = Arc::clone(self);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _watched = Watched(&driver);
            run(&driver);
        })
    }

    /// A thread whose networks have no other thread to help.
    fn thread_alone(
        self: &Arc<Self>,
        name: &'static str,
        run: impl FnOnce(&Self) + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let pool = ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| name.to_owned()).build();
        let pool = pool.map_err(std::io::Error::other)?;
        self.thread(name, move |driver| pool.install(|| run(driver)))
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        drop(self.core.lock()); // a thread that has just looked waits by now
        for stage in [&self.step, &self.begin, &self.finish] {
            stage.notify_all();
        }
        self.load.notify_one();
        self.news.notify_one();
    }

    /// The next work of a stage, once there is some; `None` when the worker stops.
    fn wait<T>(&self, stage: &Condvar, next: impl Fn(&mut WorkerCore<E>) -> Option<T>) -> Option<T> {
        let mut core = self.core.lock();
        while !self.is_stopping() {
            match next(&mut core) {
                Some(work) => return Some(work),
                None => stage.wait(&mut core),
            }
        }
        None
    }

    /// Changes the core, tells the scheduler of ends, and wakes the stages that have work. Returns what was answered to
    /// the ends.
    fn change<T>(&self, change: impl FnOnce(&mut WorkerCore<E>) -> T) -> (T, Vec<(AttemptId, EndAnswer)>) {
        let mut core = self.core.lock();
        let changed = change(&mut core);
        // With the core locked, no report can tell of an end before this does: its answer would be lost.
        let tell = |end: TaskEnd<E::Picture>| {
            log_failure(&end);
            let id = AttemptId { task: end.task.clone(), attempt: end.attempt };
            let answer = self.scheduler.end(end);
            (id, answer)
        };
        let answers: Vec<_> = core.take_ends().into_iter().map(tell).collect();
        answers.iter().for_each(|(id, _)| core.acknowledge(id));
        let (ready, news) = (core.ready(), core.has_news());
        drop(core);
        for (stage, has_work) in
            [(&self.step, ready.step), (&self.begin, ready.begin), (&self.finish, ready.finish)]
        {
            if has_work {
                stage.notify_one();
            }
        }
        if ready.load || ready.model {
            self.load.notify_one();
        }
        if news {
            self.news.notify_one();
        }
        (changed, answers)
    }

    fn now(&self) -> Time {
        self.scheduler.clock().now()
    }

    fn warm_up(&self, rows: u32) -> Result<(), String> {
        let measured: Measured = catch(|| self.engine.warm_up(rows))?;
        self.change(|core| core.measured(measured));
        Ok(())
    }

    fn begin(&self, begin: Begin<E>) {
        let Begin { id, assignment, state, since } = begin;
        let began = self.now();
        let waited = Duration::try_from_secs_f64(began.since(since)).unwrap_or_default();
        let painting = catch_unwind(AssertUnwindSafe(|| self.engine.begin(&assignment, state, waited)));
        let painting = painting.unwrap_or_else(|_| Err(BeginError::Failed(PANICKED.to_owned())));
        let seconds = self.now().since(began);
        self.change(|core| core.begun(&id, seconds, painting));
    }

    /// Steps a batch. Where it fails each painting tries alone, so that a failure costs the picture that it belongs to.
    fn step(&self, batch: Batch<E>) {
        let Batch { model, shape, rows, members } = batch;
        let (ids, mut paintings): (Vec<_>, Vec<_>) =
            members.into_iter().map(|Member { id, painting }| (id, painting)).unzip();
        self.watch.lock().begin(self.now(), &model, shape, rows);
        let whole = catch(|| self.engine.step(&mut paintings.iter_mut().collect::<Vec<_>>()));
        let alone = paintings.len() == 1;
        let step_alone =
            |mut painting: E::Painting| catch(|| self.engine.step(&mut [&mut painting])).map(|()| painting);
        let stepped: Vec<Result<E::Painting, String>> = match &whole {
            Ok(()) => paintings.into_iter().map(Ok).collect(),
            Err(why) if alone => vec![Err(why.clone())],
            Err(_) => paintings.into_iter().map(step_alone).collect(),
        };
        let seconds = self.watch.lock().end(self.now(), &model, shape, rows);
        if whole.is_ok() {
            let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            telemetry::step(model.as_str(), stepped.len(), rows as usize, time);
        }
        let members = ids.into_iter().zip(stepped).collect();
        self.change(|core| core.stepped((model, shape, rows), seconds, whole.is_ok(), members));
    }

    fn finish(&self, finish: Finish<E>) {
        match finish {
            Finish::Preview { id, number, of, preview } => match catch(|| self.engine.preview(preview)) {
                Ok(file) => self.scheduler.preview(&id.task, number, of, &file),
                Err(why) => tracing::warn!(why, task = %id.task, "no preview"),
            },
            Finish::Picture { id, painting } => self.finish_picture(&id, painting),
        }
    }

    fn finish_picture(&self, id: &AttemptId, mut painting: E::Painting) {
        let (began, shape) = (self.now(), painting.shape());
        let picture = catch(|| self.engine.finish(&mut painting));
        let seconds = self.now().since(began);
        let (_, answers) = self.change(|core| core.finished(id, shape, seconds, picture.clone()));
        let counted = answers.into_iter().find(|(ended, answer)| ended == id && answer.counted);
        if let (Ok(picture), Some((_, answer))) = (picture, counted) {
            let keep = || self.engine.keep(painting, picture, answer.expected_quality);
            if catch_unwind(AssertUnwindSafe(keep)).is_err() {
                tracing::error!("the cache panicked; the picture is not kept");
            }
        }
    }
}

const PANICKED: &str = "the engine panicked";

/// What the engine returns; its panics are failures.
fn catch<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(PANICKED.to_owned()))
}

fn log_failure<Picture>(end: &TaskEnd<Picture>) {
    match &end.outcome {
        Outcome::Failed { why } => {
            telemetry::failed();
            tracing::error!(why, task = %end.task, "the picture failed");
        }
        Outcome::StateGone => tracing::warn!(task = %end.task, "the stored state is gone"),
        Outcome::Done { .. } | Outcome::HandedBack { .. } | Outcome::Unknown => {}
    }
}

/// Says when its thread or task panics.
struct Watched<'a, E: Stages>(&'a Driver<E>);

impl<E: Stages> Drop for Watched<'_, E> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.died.notify_one();
        }
    }
}
