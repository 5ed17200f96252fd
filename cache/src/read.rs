//! Reading from the cache: exact look-ups, pictures and states.

use std::sync::Arc;

use bytes::Bytes;

use crate::cache::Cache;
use crate::config::CacheError;
use crate::entry::{EntryId, Part, PartKey, PictureKey, Scope, SpecificationHash};
use crate::index::ExactHit;
use crate::store::{State, StateError};
use crate::writer::Command;

/// The most attempts of one read. It is repeated if the picture was replaced while its file was being read.
const MAX_ATTEMPTS: usize = 3;

/// A stored picture of exactly the specification that was looked up, with its file.
#[derive(Debug, Clone, PartialEq)]
pub struct ExactPicture {
    /// The picture's entry, plan and quality.
    pub hit: ExactHit,
    /// The lossless file, as the worker made it.
    pub file: Bytes,
}

impl Cache {
    /// Looks up the scope's picture of a specification. This needs no embedding. The embedded index answers from memory
    /// without blocking. A hit is not counted as a use.
    ///
    /// # Errors
    /// The index failed, which is counted.
    pub async fn exact(
        &self,
        scope: &Scope,
        specification: &SpecificationHash,
    ) -> Result<Option<ExactHit>, CacheError> {
        let found = self.counted(self.core().index.exact(scope, specification).await)?;
        Ok(found.filter(|hit| !self.core().is_expired(hit.created)))
    }

    /// Looks up the scope's picture of a specification, and reads its file if `accept` approves of the hit. Returns
    /// `None` also if the file is not stored. A damaged file is counted as a failure and removed. A hit is not counted as a
    /// use.
    ///
    /// Does not block an async thread. Must be called within a tokio runtime with timers.
    ///
    /// # Errors
    /// The index failed, or the store failed or was too slow; both are counted.
    pub async fn exact_picture(
        &self,
        scope: &Scope,
        specification: &SpecificationHash,
        accept: impl Fn(&ExactHit) -> bool,
    ) -> Result<Option<ExactPicture>, CacheError> {
        let mut missing = None;
        for _ in 0..MAX_ATTEMPTS {
            let hit = self.exact(scope, specification).await?.filter(&accept);
            let Some((hit, key)) = hit.and_then(|hit| Some((hit.clone(), hit.picture?))) else {
                return Ok(None);
            };
            if missing.as_ref() == Some(&hit.entry) {
                return Ok(None);
            }
            match self.picture(&key).await {
                Ok(file) => return Ok(Some(ExactPicture { hit, file })),
                // The picture was replaced or removed during the read. The next attempt finds its successor.
                Err(CacheError::State(StateError::Missing)) => missing = Some(hit.entry),
                Err(CacheError::State(StateError::Damaged | StateError::Foreign(_))) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Returns a picture's file by the key from [`Self::exact`] or [`Entry::picture_key`](crate::Entry::picture_key). The
    /// file comes from memory or else from the store, where it is checked against the key.
    ///
    /// Does not block an async thread. Must be called within a tokio runtime with timers.
    ///
    /// # Errors
    /// The file is missing, it is damaged or foreign (it is then removed), or the store fails or exceeds its time limit.
    /// All of these but a missing file are counted.
    pub async fn picture(&self, key: &PictureKey) -> Result<Bytes, CacheError> {
        if let Some(file) = self.cached_picture(&key.entry) {
            return Ok(file);
        }
        let file = match self.core().store.read_picture(key).await {
            Ok(file) => file,
            Err(StateError::Missing) if !self.is_indexed(key).await? => {
                return Err(StateError::Missing.into());
            }
            Err(error) => return Err(self.unusable(&key.entry, Part::Picture, error)),
        };
        // If the file was purged during the read, it must not stay in memory.
        if !self.is_indexed(key).await? {
            self.core().store.forget_part(&key.entry, Part::Picture);
            return Err(StateError::Missing.into());
        }
        Ok(file)
    }

    /// Returns a picture's file if it is in memory. Does not block.
    pub fn cached_picture(&self, id: &EntryId) -> Option<Bytes> {
        self.core().store.cached_picture(id)
    }

    /// Whether the index still has the picture of a key.
    async fn is_indexed(&self, key: &PictureKey) -> Result<bool, CacheError> {
        let found = self.counted(self.core().index.exact(&key.scope, &key.specification).await)?;
        Ok(found.is_some_and(|hit| hit.picture.is_some_and(|found| found.entry == key.entry)))
    }

    /// Returns the state of an entry at a timestep. Must be called within a tokio runtime with timers.
    ///
    /// # Errors
    /// The state is missing, it is damaged or foreign (it is then removed), or the store fails or exceeds its time limit.
    /// All of these but a missing state are counted.
    pub async fn state(&self, id: &EntryId, timestep: f64) -> Result<Arc<State>, CacheError> {
        if let Some(state) = self.cached_state(id, timestep) {
            return Ok(state);
        }
        let index = &self.core().index;
        let entry = self.counted(index.get(id).await)?.filter(|entry| entry.kept(timestep).is_some());
        let entry = entry.ok_or(StateError::Missing)?;
        let read = self.core().store.read(&entry, timestep).await;
        let state = read.map_err(|error| self.unusable(id, Part::State(timestep), error))?;
        // If the file was purged during the read, it must not stay in memory.
        if self.counted(index.get(id).await)?.is_none_or(|now| now.kept(timestep).is_none()) {
            self.core().store.forget(&entry);
            return Err(StateError::Missing.into());
        }
        Ok(state)
    }

    /// Returns a state if it is in memory. Does not block.
    pub fn cached_state(&self, id: &EntryId, timestep: f64) -> Option<Arc<State>> {
        self.core().store.cached(id, timestep)
    }

    /// Starts loading a state into memory before it is needed. Does nothing outside a tokio runtime, or if too many states
    /// are being loaded already.
    pub fn prefetch(&self, id: &EntryId, timestep: f64) {
        let runtime = tokio::runtime::Handle::try_current();
        let permit = Arc::clone(&self.0.prefetches).try_acquire_owned();
        if let (Ok(runtime), Ok(permit), None) = (runtime, permit, self.cached_state(id, timestep)) {
            let (cache, id) = (self.clone(), id.clone());
            runtime.spawn(async move {
                let _ = cache.state(&id, timestep).await;
                drop(permit);
            });
        }
    }

    /// Counts a failed read. Has the writer remove the file unless the store itself failed.
    fn unusable(&self, id: &EntryId, part: Part, error: StateError) -> CacheError {
        self.core().counters.failures.add(1);
        if !matches!(error, StateError::Timeout | StateError::Store(_)) {
            tracing::warn!(%error, entry = id.as_str(), ?part, "a stored file cannot be used");
            self.try_send(Command::Drop(PartKey { entry: id.clone(), part }));
        }
        error.into()
    }
}
