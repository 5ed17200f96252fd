//! The cache as the worker sees it: states to start from, and states to keep.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pentimento_cache::{BoundedLru, Cache, CacheError, EntryId, FINISHED, Part, State};
use pentimento_pipelines::{DenoisingState, Picture, Pipeline};
use tokio::runtime::Handle;
use tracing::Instrument;

use crate::queue::{Keep, Reused};
use crate::telemetry;

/// For how long a store that let a picture wait in vain is not asked again.
const PAUSE: Duration = Duration::from_secs(10);
/// Bytes of stored pictures that are held decoded.
const DECODED_BYTES: usize = 64 << 20;

/// The cache, and how long a picture waits for it.
pub struct Stored {
    /// The cache.
    pub cache: Cache,
    /// Stored pictures that were wanted last: decoding takes most of the time of a picture that takes no step. What is
    /// here is not served without its latent: nobody sees what was removed from the cache.
    pub decoded: BoundedLru<EntryId, Picture>,
    runtime: Handle,
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

impl StateError {
    /// Whether the store did not answer, or could not: others' states are not to be had either.
    pub fn is_outage(&self) -> bool {
        use pentimento_cache::StateError as Kept;
        matches!(
            self,
            Self::Timeout | Self::Paused | Self::Cache(CacheError::State(Kept::Timeout | Kept::Store(_)))
        )
    }
}

impl Stored {
    /// A cache that `runtime` reads from. A state that takes longer than `patience` is not waited for.
    pub fn new(cache: Cache, runtime: Handle, patience: Duration) -> Self {
        let decoded =
            BoundedLru::new(DECODED_BYTES, |picture: &Picture| picture.rgb.len() + size_of::<Picture>());
        Self { cache, decoded, runtime, patience, too_slow: Mutex::new(None) }
    }

    /// Asks for the state of a job whose turn has come. Mostly it is in memory already: it was asked for when the job
    /// was queued. Otherwise it comes while others are painted.
    pub fn ask(&self, reused: &Reused) -> Coming {
        let (sender, receiver) = sync_channel(1);
        let (cache, wanted, patience) = (self.cache.clone(), reused.clone(), self.patience);
        let coming = Coming { receiver, reused: reused.clone(), since: Instant::now(), patience };
        // Fails only where nobody waits any more; so below.
        if let Some(state) = self.cache.cached_state(&reused.source, reused.timestep) {
            let _ = sender.send(Ok(state));
        } else if self.too_slow.lock().is_some_and(|since| since.elapsed() < PAUSE) {
            let _ = sender.send(Err(StateError::Paused));
        } else {
            let span = tracing::info_span!("load_state", source = reused.source.as_str());
            let load = async move {
                let state = cache.state(&wanted.source, wanted.timestep);
                let state = tokio::time::timeout(patience, state).await;
                let _ = sender.send(state.map_err(|_| StateError::Timeout).and_then(|state| Ok(state?)));
            };
            self.runtime.spawn(load.instrument(span));
        }
        coming
    }

    /// Waits for the state of a job. Must not be called on an async thread.
    ///
    /// # Errors
    /// [`StateError`]; it is counted.
    pub fn fetch(&self, reused: &Reused) -> Result<DenoisingState, StateError> {
        let coming = self.ask(reused);
        loop {
            if let Some(state) = self.arrived(&coming, self.patience) {
                return state;
            }
        }
    }

    /// What was asked for, once it is there or will not come; waits for it so long at most.
    ///
    /// # Errors
    /// [`StateError`]; it is counted.
    pub fn arrived(&self, coming: &Coming, wait: Duration) -> Option<Result<DenoisingState, StateError>> {
        let Coming { receiver, reused, since, patience } = coming;
        let state = match receiver.recv_timeout(wait) {
            Ok(state) => state,
            // A runtime that hangs does not keep the time either.
            Err(RecvTimeoutError::Timeout) if since.elapsed() < 2 * *patience => return None,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(StateError::Timeout),
        };
        telemetry::state_loaded(since.elapsed(), state.is_ok());
        if matches!(state, Err(StateError::Timeout)) {
            *self.too_slow.lock() = Some(Instant::now());
        }
        Some(state.map(|state| {
            self.cache.used(&reused.source, Part::State(reused.timestep));
            DenoisingState { timestep: state.timestep, shape: state.shape, latent: state.latent.clone() }
        }))
    }
}

/// A state that was asked for.
pub struct Coming {
    receiver: Receiver<Result<Arc<State>, StateError>>,
    reused: Reused,
    since: Instant,
    patience: Duration,
}

/// A picture's states on their way into the cache.
pub struct Keeping {
    keep: Box<Keep>,
    steps: usize,
}

impl Keeping {
    /// For a plan of `steps` steps.
    pub fn new(keep: Box<Keep>, steps: usize) -> Self {
        Self { keep, steps }
    }

    /// Whether the state after so many steps is kept.
    pub fn wants(&self, steps_taken: usize) -> bool {
        steps_taken == self.steps || self.keep.after_steps.contains(&steps_taken)
    }

    /// Takes the state after so many steps.
    pub fn add(&mut self, model: &Pipeline, state: DenoisingState, steps_taken: usize) {
        let noise_level = match state.timestep {
            FINISHED => 0.0,
            timestep => (1.0 - model.schedule().alpha_bar(timestep)).sqrt(),
        };
        let DenoisingState { timestep, shape, latent } = state;
        let state = State { timestep, noise_level, shape, latent };
        self.keep.picture.states.push((state, steps_taken as f32 / self.steps as f32));
    }

    /// Hands all to the cache, which writes later, if at all.
    pub fn into_cache(self, cache: &Cache) {
        cache.insert(self.keep.picture);
    }
}
