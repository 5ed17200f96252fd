//! [`PromptIndex`] for the embedded index.

use std::sync::atomic::Ordering;

use async_trait::async_trait;

use super::database::{ENTRIES, decode, delete, put, storage};
use super::embedded::EmbeddedIndex;
use super::exact::ExactHit;
use super::prompt_index::{
    Filter, IndexError, IndexStats, MAX_NEIGHBOURS, Neighbour, PromptIndex, SearchFilter,
};
use crate::entry::{Entry, EntryId, Part, Scope, SpecificationHash};

/// The most attempts of one search. It is repeated if entries that it found were removed before it could read them.
const MAX_ATTEMPTS: usize = 3;

impl EmbeddedIndex {
    /// Writes `entry` to the database in place of `displaced`. The entry's row is in memory before the entry is in the
    /// database, and the displaced entry's row stays until the caller removes it, so that a search at any moment finds
    /// one of them.
    fn replace(
        &self,
        entry: &Entry,
        before: Option<&Entry>,
        displaced: Option<&EntryId>,
    ) -> Result<(), IndexError> {
        let bytes = postcard::to_stdvec(entry).map_err(storage)?;
        self.add_row(entry);
        let changed = self.file.change(|transaction| {
            put(transaction, &entry.id, &bytes)?;
            delete(transaction, displaced.map(EntryId::as_str))
        });
        if changed.is_err() {
            if before.is_none_or(|before| !same_partition(before, entry)) {
                self.remove_row(entry);
            }
            before.into_iter().for_each(|before| self.add_row(before));
        }
        changed
    }

    /// The entry of an id; `None` also if it is damaged.
    fn read_undamaged(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        match self.read(id) {
            Err(IndexError::Damaged { .. }) => Ok(None),
            read => read,
        }
    }
}

/// Whether two entries belong to the same partition.
fn same_partition(a: &Entry, b: &Entry) -> bool {
    (&a.scope, &a.compatibility) == (&b.scope, &b.compatibility)
}

#[async_trait]
impl PromptIndex for EmbeddedIndex {
    async fn search(
        &self,
        filter: &SearchFilter<'_>,
        embedding: &[f32],
        n: usize,
    ) -> Result<Vec<Neighbour>, IndexError> {
        self.check_fits(filter.scope, filter.compatibility, embedding)?;
        let n = n.min(MAX_NEIGHBOURS);
        let mut gone = 0;
        let mut neighbours = Vec::with_capacity(n);
        for _ in 0..MAX_ATTEMPTS {
            let Some(partition) = self.partition(filter.scope, filter.compatibility) else {
                return Ok(Vec::new());
            };
            let near = partition.read().nearest(embedding, filter, n + gone);
            neighbours.clear();
            gone = 0;
            for (id, similarity) in near {
                match self.read(&id)? {
                    Some(entry) if passes(&entry, filter) => neighbours.push(Neighbour { entry, similarity }),
                    // The entry was removed or changed after its row was found. The next attempt asks for more rows.
                    _ => gone += 1,
                }
            }
            if gone == 0 {
                break;
            }
        }
        neighbours.truncate(n);
        Ok(neighbours)
    }

    async fn get(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        self.read(id)
    }

    async fn exact(
        &self,
        scope: &Scope,
        specification: &SpecificationHash,
    ) -> Result<Option<ExactHit>, IndexError> {
        Ok(self.exact.get(scope, specification))
    }

    async fn upsert(&self, entry: Entry) -> Result<Option<Entry>, IndexError> {
        let mut dirty = self.writer.lock();
        self.check_fits(&entry.scope, &entry.compatibility, &entry.embedding)?;
        let before = self.read_undamaged(&entry.id)?;
        let other = self.exact.holder(&entry.scope, &entry.specification).filter(|id| *id != entry.id);
        let displaced = other.as_ref().map(|id| self.read_undamaged(id)).transpose()?.flatten();
        self.replace(&entry, before.as_ref(), other.as_ref())?;
        *dirty = true;
        self.exact.put(&entry);
        if let Some(before) = &before {
            if (&before.scope, before.specification) != (&entry.scope, entry.specification) {
                self.exact.remove(before);
            }
            if !same_partition(before, &entry) {
                self.remove_row(before);
            }
        }
        displaced.iter().for_each(|displaced| self.remove_row(displaced));
        if let Some(partition) = self.partition(&entry.scope, &entry.compatibility) {
            self.maintenance.schedule(partition);
        }
        Ok(displaced)
    }

    async fn remove(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        let mut dirty = self.writer.lock();
        let Some(entry) = self.read(id)? else { return Ok(None) };
        self.file.change(|transaction| delete(transaction, [id.as_str()]))?;
        *dirty = true;
        self.exact.remove(&entry);
        self.remove_row(&entry);
        Ok(Some(entry))
    }

    async fn touch(&self, id: &EntryId, part: Part, uses: u64, now: u64) -> Result<bool, IndexError> {
        let mut dirty = self.writer.lock();
        let Some(mut entry) = self.read(id)? else { return Ok(false) };
        if !entry.touch(part, uses, now) {
            return Ok(false);
        }
        let bytes = postcard::to_stdvec(&entry).map_err(storage)?;
        self.file.change(|transaction| put(transaction, id, &bytes))?;
        *dirty = true;
        Ok(true)
    }

    async fn scan(
        &self,
        filter: &Filter,
        after: Option<&EntryId>,
        limit: usize,
    ) -> Result<Vec<Entry>, IndexError> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, |id| Excluded(id.as_str()));
        let mut page = Vec::new();
        self.file.read(|read| {
            let entries = read.open_table(ENTRIES).map_err(storage)?;
            for row in entries.range::<&str>((start, Unbounded)).map_err(storage)? {
                if page.len() >= limit {
                    break;
                }
                let (id, bytes) = row.map_err(storage)?;
                match decode(id.value(), bytes.value()) {
                    Ok(entry) if filter.matches(&entry) => page.push(entry),
                    Ok(_) => {}
                    Err(_) => self.found_damage.store(true, Ordering::Relaxed),
                }
            }
            Ok(())
        })?;
        Ok(page)
    }

    async fn flush(&self) -> Result<(), IndexError> {
        let mut dirty = self.writer.lock();
        let reopened = self.file.reopen()?;
        if reopened {
            tracing::warn!("the index was reopened after an error; its last changes are lost");
            *dirty = false;
            self.reopened.fetch_add(1, Ordering::Relaxed);
        }
        if reopened | self.found_damage.swap(false, Ordering::Relaxed) {
            self.load_entries(&mut dirty)?;
            self.maintain_all();
        }
        if *dirty {
            self.file.flush()?;
            *dirty = false;
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.file.name().to_owned()
    }

    fn stats(&self) -> IndexStats {
        let mut stats = IndexStats {
            damaged: self.damaged.load(Ordering::Relaxed),
            reopened: self.reopened.load(Ordering::Relaxed),
            ..IndexStats::default()
        };
        self.all_partitions().iter().for_each(|partition| partition.read().count_into(&mut stats));
        stats
    }
}

/// Whether an entry still passes the filter. It may have changed after its row was found.
fn passes(entry: &Entry, filter: &SearchFilter<'_>) -> bool {
    entry.scope == *filter.scope
        && entry.compatibility == *filter.compatibility
        && filter.holding.is_held_by(entry)
}
