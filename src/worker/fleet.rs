//! The workers of a process.

use std::future::Future;
use std::sync::Arc;

use futures_util::future::{select_all, try_join_all};
use pentimento_pipelines::HelperThreads;
use tokio::runtime::Handle;

use super::core::Settings;
use super::{Options, Stages, Worker};
use crate::scheduler::ModelId;
use crate::scheduler::local::LocalScheduler;

/// A report is due after so many seconds of steps: as often as prices change, so that plans in flight follow them.
const REPORT_SECONDS: f64 = 0.05;

/// How a process's workers are set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetOptions {
    /// How many workers.
    pub workers: usize,
    /// The threads that they share; 0: as many as there are cores.
    pub threads: usize,
    /// Rows of each one's largest batch.
    pub rows: u32,
    /// Whether they take and measure first steps before they ask for tasks.
    pub warm_up: bool,
}

/// The workers of a process: they share one engine and one scheduler.
pub struct Fleet<E: Stages> {
    workers: Vec<Worker<E>>,
}

impl<E: Stages> Fleet<E> {
    /// Starts the workers. One worker's steps use rayon's global pool; several have a pool each.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(
        options: FleetOptions,
        engine: &Arc<E>,
        scheduler: &LocalScheduler<E::Spec, E::Picture>,
        runtime: &Handle,
    ) -> std::io::Result<Self> {
        let FleetOptions { workers, threads, rows, warm_up } = options;
        let threads = if threads > 0 { threads } else { std::thread::available_parallelism()?.get() };
        let models: Vec<ModelId> = engine.models();
        let start = |number: usize| {
            let helpers = match workers {
                0 | 1 => None,
                _ => Some(HelperThreads::new((threads / workers).max(1)).map_err(std::io::Error::other)?),
            };
            let settings = Settings {
                worker: format!("worker-{number}").into(),
                incarnation: 1,
                pool: String::new(),
                rows,
                loadable: models.clone(),
                model_places: 0,
                report_seconds: REPORT_SECONDS,
            };
            let options = Options { settings, warm_up, helpers };
            Worker::start(options, Arc::clone(engine), scheduler.clone(), runtime)
        };
        Ok(Self { workers: (0..workers.max(1)).map(start).collect::<std::io::Result<_>>()? })
    }

    /// Resolves once each worker took its first steps.
    ///
    /// # Errors
    /// Why one could not.
    pub fn warm(&mut self) -> impl Future<Output = Result<(), String>> + Send + use<E> {
        let warm = try_join_all(self.workers.iter_mut().map(Worker::warm));
        async move { warm.await.map(drop) }
    }

    /// Resolves when a worker's thread panicked.
    pub async fn died(&self) {
        let died = self.workers.iter().map(|worker| Box::pin(worker.died()));
        select_all(died).await;
    }

    /// Whether a worker's step hangs. A hanging step is counted when this first sees it: to be called once a second.
    pub fn hangs(&self) -> bool {
        self.workers.iter().filter(|worker| worker.hangs()).count() > 0
    }

    /// Stops all workers, and waits for their threads to end the work in hand.
    pub fn join(self) {
        self.workers.iter().for_each(Worker::stop);
        self.workers.into_iter().for_each(Worker::join);
    }
}
