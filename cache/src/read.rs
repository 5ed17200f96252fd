//! Reading from the cache: exact look-ups, pictures and states.

use std::sync::Arc;

use bytes::Bytes;

use crate::cache::Cache;
use crate::config::CacheError;
use crate::entry::{EntryId, Part, PictureKey, Scope, SpecificationHash};
use crate::index::ExactHit;
use crate::ledger::Victim;
use crate::store::{State, StateError};
use crate::writer::Work;

/// How often a picture that was replaced while its file was read is looked up again.
const TRIES: usize = 3;

/// A stored picture of the very specification that was asked for, with its file.
#[derive(Debug, Clone, PartialEq)]
pub struct ExactPicture {
    /// The entry, its plan and its quality.
    pub hit: ExactHit,
    /// The lossless file, as the worker made it.
    pub file: Bytes,
}

impl Cache {
    /// The scope's picture of a specification. It needs no embedding, looks into memory and neither blocks nor waits
    /// (an index in another process takes its own time). A hit is not counted as a use.
    ///
    /// # Errors
    /// The index failed, which is counted.
    pub async fn exact(
        &self,
        scope: &Scope,
        specification: &SpecificationHash,
    ) -> Result<Option<ExactHit>, CacheError> {
        let found = self.counted(self.shared().index.exact(scope, specification).await)?;
        Ok(found.filter(|hit| !self.shared().is_expired(hit.created)))
    }

    /// The scope's picture of a specification with its file, where `accept` finds it good enough. `None` too where the
    /// file is not kept, or cannot be used any more: that is counted, and the file forgotten. Safe on an async thread;
    /// must be called within a tokio runtime with timers. Not counted as a use.
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
        for _ in 0..TRIES {
            let hit = self.exact(scope, specification).await?.filter(&accept);
            let Some((hit, key)) = hit.and_then(|hit| Some((hit.clone(), hit.picture?))) else {
                return Ok(None);
            };
            if missing.as_ref() == Some(&hit.entry) {
                return Ok(None);
            }
            match self.picture(&key).await {
                Ok(file) => return Ok(Some(ExactPicture { hit, file })),
                // Replaced or removed while it was read: what is there now is found by the next try.
                Err(CacheError::State(StateError::Missing)) => missing = Some(hit.entry),
                Err(CacheError::State(StateError::Damaged | StateError::Foreign(_))) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A picture's file, by the key that [`Self::exact`] or [`Entry::picture_key`](crate::Entry::picture_key) gives.
    /// From memory where it was read lately, else from the store, checked against the key. Safe on an async thread; must
    /// be called within a tokio runtime with timers.
    ///
    /// # Errors
    /// There is none any more, it is damaged or foreign (it is then forgotten), or the store fails or is too slow. All
    /// but the first are counted.
    pub async fn picture(&self, key: &PictureKey) -> Result<Bytes, CacheError> {
        if let Some(file) = self.cached_picture(&key.entry) {
            return Ok(file);
        }
        let file = match self.shared().store.read_picture(key).await {
            Ok(file) => file,
            Err(StateError::Missing) if !self.names(key).await? => return Err(StateError::Missing.into()),
            Err(error) => return Err(self.unusable(&key.entry, Part::Picture, error)),
        };
        // It may have been purged while it was read: then memory must not keep it.
        if !self.names(key).await? {
            self.shared().store.forget_part(&key.entry, Part::Picture);
            return Err(StateError::Missing.into());
        }
        Ok(file)
    }

    /// A picture's file if it is in memory; waits for nothing.
    pub fn cached_picture(&self, id: &EntryId) -> Option<Bytes> {
        self.shared().store.cached_picture(id)
    }

    /// Whether the index still says that a picture is kept.
    async fn names(&self, key: &PictureKey) -> Result<bool, CacheError> {
        let found = self.counted(self.shared().index.exact(&key.scope, &key.specification).await)?;
        Ok(found.is_some_and(|hit| hit.picture.is_some_and(|found| found.entry == key.entry)))
    }

    /// The state of an entry at a timestep. Must be called within a tokio runtime with timers.
    ///
    /// # Errors
    /// There is none, it is damaged or foreign (it is then forgotten), or the store fails or is too slow.
    /// All but the first are counted.
    pub async fn state(&self, id: &EntryId, timestep: f64) -> Result<Arc<State>, CacheError> {
        if let Some(state) = self.cached_state(id, timestep) {
            return Ok(state);
        }
        let index = &self.shared().index;
        let entry = self.counted(index.get(id).await)?.filter(|entry| entry.kept(timestep).is_some());
        let entry = entry.ok_or(StateError::Missing)?;
        let read = self.shared().store.read(&entry, timestep).await;
        let state = read.map_err(|error| self.unusable(id, Part::State(timestep), error))?;
        // It may have been purged while it was read: then memory must not keep it.
        if self.counted(index.get(id).await)?.is_none_or(|now| now.kept(timestep).is_none()) {
            self.shared().store.forget(&entry);
            return Err(StateError::Missing.into());
        }
        Ok(state)
    }

    /// The state if it is in memory; waits for nothing.
    pub fn cached_state(&self, id: &EntryId, timestep: f64) -> Option<Arc<State>> {
        self.shared().store.cached(id, timestep)
    }

    /// Begins to load a state into memory, ahead of its use. Does nothing outside a tokio runtime, or where
    /// many are being loaded already.
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

    /// Counts that a file cannot be used, and has it forgotten unless it is the store that failed.
    fn unusable(&self, id: &EntryId, part: Part, error: StateError) -> CacheError {
        self.shared().counters.failures.add(1);
        if !matches!(error, StateError::Timeout | StateError::Store(_)) {
            tracing::warn!(%error, entry = id.as_str(), ?part, "a stored file cannot be used");
            self.order(Work::Drop(Victim { entry: id.clone(), part }));
        }
        error.into()
    }
}
