//! The cache as the worker sees it: states to begin from.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pentimento_cache::{Cache, CacheError, EntryId, Part};
use pentimento_pipelines::DenoisingState;

use crate::telemetry;

/// For how long a store that let a picture wait in vain is not asked again.
const PAUSE: Duration = Duration::from_secs(10);

/// The cache, and how long a picture waits for it.
pub struct Stored {
    cache: Cache,
    patience: Duration,
    /// When the store last let a picture wait in vain.
    too_slow: Mutex<Option<Instant>>,
}

/// Why a state is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The cache's reason.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// It takes too long.
    #[error("the state did not come in time")]
    Timeout,
    /// It is not in memory, and the store was too slow a moment ago.
    #[error("the store was too slow a moment ago")]
    Paused,
}

impl Stored {
    /// A state that takes longer than `patience` is not waited for.
    pub fn new(cache: Cache, patience: Duration) -> Self {
        Self { cache, patience, too_slow: Mutex::new(None) }
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// A state, and how long it took. Mostly it is in memory already: it was asked for when the task was submitted.
    ///
    /// # Errors
    /// [`StateError`]; it is counted.
    pub async fn load(
        &self,
        entry: &EntryId,
        timestep: f64,
    ) -> Result<(DenoisingState, Duration), StateError> {
        let began = Instant::now();
        let loaded = self.read(entry, timestep).await;
        telemetry::state_loaded(began.elapsed(), loaded.is_ok());
        Ok((loaded?, began.elapsed()))
    }

    async fn read(&self, entry: &EntryId, timestep: f64) -> Result<DenoisingState, StateError> {
        let state = match self.cache.cached_state(entry, timestep) {
            Some(state) => state,
            None if self.too_slow.lock().is_some_and(|since| since.elapsed() < PAUSE) => {
                return Err(StateError::Paused);
            }
            None => {
                let read = tokio::time::timeout(self.patience, self.cache.state(entry, timestep)).await;
                read.map_err(|_| {
                    *self.too_slow.lock() = Some(Instant::now());
                    StateError::Timeout
                })??
            }
        };
        self.cache.used(entry, Part::State(timestep));
        Ok(DenoisingState { timestep: state.timestep, shape: state.shape, latent: state.latent.clone() })
    }
}
