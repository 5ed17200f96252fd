//! What the writer changes: pictures come, are replaced, used, evicted and purged.

use std::sync::Arc;

use futures_util::future::{join, join_all};

use super::{PAGE, Writer};
use crate::config::CacheError;
use crate::entry::{Entry, EntryId, Part};
use crate::index::{ExactHit, Filter};
use crate::ledger::Victim;
use crate::picture::Picture;
use crate::shared::now;
use crate::store::StateError;

impl Writer {
    /// Keeps a picture, unless one of its specification that is as good or better is kept already. Whether it is kept.
    pub(super) async fn insert(&mut self, picture: Picture) -> Result<bool, CacheError> {
        let Picture { mut entry, file, states, refresh } = picture;
        if !self.shared.store_prompt_text {
            entry.prompt = None;
        }
        let stored = self.shared.index.exact(&entry.scope, &entry.specification).await?;
        if let Some(stored) = stored.filter(|stored| !self.shared.is_expired(stored.created)) {
            if !refresh && !is_better(&entry, &stored) {
                self.shared.counters.duplicates.add(1);
                return Ok(false);
            }
            self.inherit_uses(&mut entry, &stored.entry).await?;
        }
        self.own().await?;
        let store = &self.shared.store;
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
        // Both to their end, even if one fails: what is removed afterwards must not be written after that.
        let (file_written, sizes) = join(write_file, write_states).await;
        match file_written.and(sizes) {
            Ok(sizes) => entry.states.iter_mut().zip(sizes).for_each(|(kept, bytes)| kept.bytes = bytes),
            Err(error) => {
                self.doom(&entry);
                return Err(error.into());
            }
        }
        match self.shared.index.upsert(entry.clone()).await {
            Ok(displaced) => {
                self.shared.counters.replacements.add(u64::from(displaced.is_some()));
                displaced.iter().for_each(|older| self.gone(older));
                self.ledger.put(&entry);
                Ok(true)
            }
            Err(error) => {
                self.doom(&entry);
                Err(error.into())
            }
        }
    }

    /// Uses are of a specification: a better picture of one that is asked for often must not be evicted as a new one.
    async fn inherit_uses(&self, entry: &mut Entry, older: &EntryId) -> Result<(), CacheError> {
        let older = self.shared.index.get(older).await?.and_then(|older| older.picture);
        if let (Some(newer), Some(older)) = (&mut entry.picture, older) {
            newer.uses = older.uses;
        }
        Ok(())
    }

    /// Writes down the uses since it was last called.
    pub(super) async fn count_uses(&mut self) {
        let now = now();
        for (id, part, uses) in self.shared.uses.take() {
            match self.shared.index.touch(&id, part, uses, now).await {
                Ok(_) => self.ledger.touch(&id, part, uses, now),
                Err(error) => self.failed(&error.into()),
            }
            tokio::task::yield_now().await; // as in `evict`
        }
    }

    pub(super) async fn remove(&mut self, id: &EntryId) -> Result<bool, CacheError> {
        let removed = self.shared.index.remove(id).await?;
        removed.iter().for_each(|entry| self.gone(entry));
        Ok(removed.is_some())
    }

    pub(super) async fn purge(&mut self, filter: &Filter) -> Result<usize, CacheError> {
        let mut removed = 0;
        loop {
            let page = self.shared.index.scan(filter, None, PAGE).await?;
            if page.is_empty() {
                return Ok(removed);
            }
            for entry in page {
                tokio::task::yield_now().await; // as in `evict`
                removed += usize::from(self.remove(&entry.id).await?);
            }
        }
    }

    /// Takes one part from its entry, and the entry too where it was the last.
    pub(super) async fn drop_part(&mut self, victim: &Victim) -> Result<(), CacheError> {
        let Some(mut entry) = self.shared.index.get(&victim.entry).await? else { return Ok(()) };
        if !entry.parts().any(|part| part == victim.part) {
            return Ok(());
        }
        match victim.part {
            Part::Picture => entry.picture = None,
            Part::State(timestep) => entry.states.retain(|kept| kept.timestep != timestep),
        }
        if entry.parts().next().is_none() {
            self.remove(&victim.entry).await?;
        } else {
            self.shared.index.upsert(entry.clone()).await?;
            self.ledger.put(&entry);
            self.shared.store.forget_part(&victim.entry, victim.part);
            self.doomed.push(victim.clone());
        }
        Ok(())
    }

    pub(super) async fn evict(&mut self) {
        self.count_uses().await;
        let policy = Arc::clone(&self.shared.eviction.read());
        for victim in self.ledger.victims(policy.as_ref(), self.shared.budget) {
            tokio::task::yield_now().await; // what is inserted meanwhile must become durable in time
            match self.drop_part(&victim).await {
                Ok(()) => self.shared.counters.evictions.add(1),
                Err(error) => return self.failed(&error),
            }
        }
    }

    pub(super) async fn expire(&mut self) {
        let Some(lifetime) = self.shared.lifetime else { return };
        for id in self.ledger.older_than(now().saturating_sub(lifetime.as_secs())) {
            tokio::task::yield_now().await; // as in `evict`
            match self.remove(&id).await {
                Ok(_) => self.shared.counters.evictions.add(1),
                Err(error) => return self.failed(&error),
            }
        }
        self.publish();
    }

    /// The index has forgotten an entry: everything else must, too.
    fn gone(&mut self, entry: &Entry) {
        self.ledger.remove(&entry.id);
        self.shared.store.forget(entry);
        self.doom(entry);
    }

    fn doom(&mut self, entry: &Entry) {
        let victim = |part: Part| Victim { entry: entry.id.clone(), part };
        self.doomed.extend(entry.parts().map(victim));
    }
}

/// Whether a picture is to take the place of the stored one of its specification: it is expected to be better, or it
/// has a file where of the stored one only the latent is kept.
fn is_better(entry: &Entry, stored: &ExactHit) -> bool {
    // An unknown quality is below every known one.
    let rank = |quality: Option<f32>| quality.unwrap_or(-1.0);
    let (new, old) = (rank(entry.expected_quality), rank(stored.expected_quality));
    let gains_file = entry.picture.is_some() && stored.picture.is_none();
    entry.is_whole() && (new > old || (new == old && gains_file))
}
