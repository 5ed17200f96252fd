//! What a worker does on the runtime: it polls the scheduler, and loads stored states and models.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Driver, Watched, catch};
use crate::worker::Stages;
use crate::worker::core::{Load, ModelWork, WorkerCore};

/// Stored states that are loaded at a time.
const LOADS: usize = 8;
/// An answer of which nothing could be taken over is asked for again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl<E: Stages> Driver<E> {
    /// Polls for as long as the worker runs: again at once after each answer, and as soon as there is news.
    pub(super) async fn poll(&self) {
        while !self.is_stopping() {
            let poll = self.core.lock().poll();
            let answer = tokio::select! {
                biased; // a poll that was made up is sent in any case
                answer = self.scheduler.poll(poll) => answer,
                () = self.news.notified() => continue,
            };
            let now = self.now();
            let (at_once, _) = self.change(|core| core.answered(now, answer));
            if !at_once {
                let _ = tokio::time::timeout(ASK_AGAIN, self.news.notified()).await; // news, or time to ask again
            }
        }
    }

    /// Loads states, so many at a time, and models.
    pub(super) async fn load_stage(self: Arc<Self>) {
        let _watched = Watched(&self);
        let permits = Arc::new(Semaphore::new(LOADS));
        while !self.is_stopping() {
            while let Some(work) = self.take(WorkerCore::next_model) {
                Arc::clone(&self).change_models(work);
            }
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match self.take(WorkerCore::next_load) {
                Some(load) => drop(tokio::spawn(Arc::clone(&self).load(load, permit))),
                None => self.load.notified().await,
            }
        }
    }

    fn take<T>(&self, next: impl Fn(&mut WorkerCore<E>) -> Option<T>) -> Option<T> {
        next(&mut self.core.lock())
    }

    fn change_models(self: Arc<Self>, work: ModelWork) {
        tokio::task::spawn_blocking(move || match work {
            ModelWork::Unload(model) => self.engine.unload_model(&model),
            ModelWork::Load(model) => {
                let loaded = catch(|| self.engine.load_model(&model));
                if let Err(why) = &loaded {
                    tracing::error!(why, %model, "a model cannot be loaded");
                }
                self.change(|core| core.model_loaded(&model, loaded.is_ok()));
            }
        });
    }

    async fn load(self: Arc<Self>, load: Load<E>, _permit: OwnedSemaphorePermit) {
        let Load { id, spec, beginning } = load;
        let engine = Arc::clone(&self.engine);
        // A task of its own, so that a panic is heard of.
        let loading = tokio::spawn(async move { engine.load(&spec, &beginning).await });
        let state = loading.await.unwrap_or_else(|_| Err("loading a state panicked".to_owned()));
        let state =
            state.inspect_err(|why| tracing::warn!(why, task = %id.task, "no state to begin from")).ok();
        self.change(|core| core.loaded(&id, state));
    }
}
