//! The writer's changes of the cache: insertion, counting of uses, eviction, removal.

use std::sync::Arc;

use futures_util::future::{join, join_all};

use super::{PAGE, Writer};
use crate::config::CacheError;
use crate::entry::{Entry, EntryId, Part, PartKey};
use crate::index::{ExactHit, Filter};
use crate::pending_picture::PendingPicture;
use crate::store::StateError;

impl Writer {
    /// Stores a picture, unless one of its specification that is as good or better is stored. Returns whether it was.
    pub(super) async fn insert(&mut self, picture: PendingPicture) -> Result<bool, CacheError> {
        let PendingPicture { mut entry, file, states, refresh } = picture;
        if !self.core.store_prompt_text {
            entry.prompt = None;
        }
        let stored = self.core.index.exact(&entry.scope, &entry.specification).await?;
        if let Some(stored) = stored.filter(|stored| !self.core.is_expired(stored.created)) {
            if !refresh && !is_better(&entry, &stored) {
                self.core.counters.duplicates.add(1);
                return Ok(false);
            }
            self.inherit_uses(&mut entry, &stored.entry).await?;
        }
        self.claim_prefix().await?;
        let store = &self.core.store;
        let write_file = async {
            match file {
                Some(file) => store.write_picture(&entry.id, file).await,
                None => Ok(()),
            }
        };
        let write_states = async {
            let written = join_all(states.iter().map(|state| store.write(&entry, state))).await;
            written.into_iter().collect::<Result<Vec<u64>, StateError>>()
        };
        // Even if one write fails, the others are awaited: their files are removed below, and must not be written later.
        let (file_written, sizes) = join(write_file, write_states).await;
        match file_written.and(sizes) {
            Ok(sizes) => entry.states.iter_mut().zip(sizes).for_each(|(kept, bytes)| kept.bytes = bytes),
            Err(error) => {
                self.remove_files(&entry);
                return Err(error.into());
            }
        }
        match self.core.index.upsert(entry.clone()).await {
            Ok(displaced) => {
                self.core.counters.replacements.add(u64::from(displaced.is_some()));
                displaced.iter().for_each(|older| self.forget(older));
                self.accounting.put(&entry);
                Ok(true)
            }
            Err(error) => {
                self.remove_files(&entry);
                Err(error.into())
            }
        }
    }

    /// Copies the uses of the older picture of the same specification. Without that a better picture of a popular
    /// specification would be evicted as unused.
    async fn inherit_uses(&self, entry: &mut Entry, older: &EntryId) -> Result<(), CacheError> {
        let older = self.core.index.get(older).await?.and_then(|older| older.picture);
        if let (Some(newer), Some(older)) = (&mut entry.picture, older) {
            newer.uses = older.uses;
        }
        Ok(())
    }

    /// Writes the uses since its last call to the index.
    pub(super) async fn count_uses(&mut self) {
        let now = self.core.clock.now();
        for (id, part, uses) in self.core.uses.take() {
            match self.core.index.touch(&id, part, uses, now).await {
                Ok(_) => self.accounting.touch(&id, part, uses, now),
                Err(error) => self.failed(&error.into()),
            }
            tokio::task::yield_now().await; // see `evict`
        }
    }

    pub(super) async fn remove(&mut self, id: &EntryId) -> Result<bool, CacheError> {
        let removed = self.core.index.remove(id).await?;
        removed.iter().for_each(|entry| self.forget(entry));
        Ok(removed.is_some())
    }

    pub(super) async fn purge(&mut self, filter: &Filter) -> Result<usize, CacheError> {
        let mut removed = 0;
        loop {
            let page = self.core.index.scan(filter, None, PAGE).await?;
            if page.is_empty() {
                return Ok(removed);
            }
            for entry in page {
                tokio::task::yield_now().await; // see `evict`
                removed += usize::from(self.remove(&entry.id).await?);
            }
        }
    }

    /// Removes one part of an entry, and the entry if that was its last part.
    pub(super) async fn drop_part(&mut self, key: &PartKey) -> Result<(), CacheError> {
        let Some(mut entry) = self.core.index.get(&key.entry).await? else { return Ok(()) };
        if !entry.parts().any(|part| part == key.part) {
            return Ok(());
        }
        match key.part {
            Part::Picture => entry.picture = None,
            Part::State(timestep) => entry.states.retain(|kept| kept.timestep != timestep),
        }
        if entry.parts().next().is_none() {
            self.remove(&key.entry).await?;
        } else {
            self.core.index.upsert(entry.clone()).await?;
            self.accounting.put(&entry);
            self.core.store.forget_part(&key.entry, key.part);
            self.files_to_remove.push(key.clone());
        }
        Ok(())
    }

    pub(super) async fn evict(&mut self) {
        self.count_uses().await;
        let policy = Arc::clone(&self.core.eviction.read());
        for victim in self.accounting.victims(policy.as_ref(), self.core.budget) {
            tokio::task::yield_now().await; // lets the flushing task run between two changes
            match self.drop_part(&victim).await {
                Ok(()) => self.core.counters.evictions.add(1),
                Err(error) => return self.failed(&error),
            }
        }
    }

    pub(super) async fn expire(&mut self) {
        let Some(lifetime) = self.core.lifetime else { return };
        for id in self.accounting.older_than(self.core.clock.now().saturating_sub(lifetime.as_secs())) {
            tokio::task::yield_now().await; // see `evict`
            match self.remove(&id).await {
                Ok(_) => self.core.counters.evictions.add(1),
                Err(error) => return self.failed(&error),
            }
        }
        self.publish();
    }

    /// Removes an entry that the index no longer has from accounting, memory and store.
    fn forget(&mut self, entry: &Entry) {
        self.accounting.remove(&entry.id);
        self.core.store.forget(entry);
        self.remove_files(entry);
    }

    /// Has the next flush remove the files of an entry.
    fn remove_files(&mut self, entry: &Entry) {
        let key = |part: Part| PartKey { entry: entry.id.clone(), part };
        self.files_to_remove.extend(entry.parts().map(key));
    }
}

/// Whether a picture should replace the stored one of its specification: it has a higher expected quality, or the same
/// and a file while only the stored picture's latent is stored.
fn is_better(entry: &Entry, stored: &ExactHit) -> bool {
    // An unknown quality ranks below every known one.
    let rank = |quality: Option<f32>| quality.unwrap_or(-1.0);
    let (new, old) = (rank(entry.expected_quality), rank(stored.expected_quality));
    let gains_file = entry.picture.is_some() && stored.picture.is_none();
    entry.is_whole() && (new > old || (new == old && gains_file))
}
