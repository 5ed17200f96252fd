//! Workers on their threads, with an engine that fails where it is told to.

pub mod fake;
mod faults;
#[cfg(feature = "embedded-model")]
mod painting;
mod sharing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;

use super::core::Settings;
use super::{Options, Worker};
use crate::scheduler::Time;
use crate::scheduler::core::Config;
use crate::scheduler::local::{Clock, Listener, LocalScheduler, RequestEvent};
use crate::scheduler::messages::{NewTask, Notice, PictureResult, Submit};
use fake::{Fake, Sketch, Studio, menu};

/// A scheduler whose clock stands still, unless it is moved, and what is logged of its workers' engines.
struct Room {
    scheduler: LocalScheduler<Sketch, String>,
    studio: Arc<Studio>,
    nanoseconds: Arc<AtomicU64>,
}

impl Room {
    fn new() -> Self {
        let nanoseconds = Arc::new(AtomicU64::new(1_000_000_000));
        let told = Arc::clone(&nanoseconds);
        let clock = Clock::new(move || Time::from_nanos(told.load(Ordering::SeqCst)));
        let scheduler = LocalScheduler::with_clock(Config::default(), clock);
        scheduler.set_menu("m".into(), menu());
        scheduler.set_menu("n".into(), menu());
        Self { scheduler, studio: Arc::default(), nanoseconds }
    }

    fn pass(&self, seconds: u64) {
        self.nanoseconds.fetch_add(seconds * 1_000_000_000, Ordering::SeqCst);
    }

    fn worker(&self, name: &'static str) -> Worker<Fake> {
        self.worker_of(name, &["m"], false)
    }

    fn worker_of(&self, name: &'static str, loadable: &[&str], warm_up: bool) -> Worker<Fake> {
        let settings = Settings {
            worker: name.into(),
            incarnation: 1,
            pool: String::new(),
            rows: 8,
            loadable: loadable.iter().map(|model| (*model).into()).collect(),
            model_places: 0,
            report_seconds: 0.05,
        };
        let options = Options { settings, warm_up, helpers: None };
        let engine = Fake::new(name, &self.studio);
        Worker::start(options, engine, self.scheduler.clone(), &Handle::current()).unwrap()
    }

    fn submit(&self, request: &str, tasks: Vec<NewTask<Sketch>>) -> Listener<String> {
        let submit = Submit { request: request.into(), client: "c".into(), tasks };
        self.scheduler.submit(submit).unwrap()
    }
}

/// Each picture of a request, or why there is none, in their order.
async fn results(mut listener: Listener<String>) -> Vec<Result<String, String>> {
    let mut results = Vec::new();
    while let Some(event) = listener.next().await {
        if let RequestEvent::End(Notice { index, result, .. }) = event {
            let result = match result {
                PictureResult::Done { picture, .. } => Ok(picture),
                PictureResult::Failed { why } => Err(why.to_string()),
            };
            results.push((index, result));
        }
    }
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
