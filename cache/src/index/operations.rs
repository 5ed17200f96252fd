//! What the embedded index does as a [`PromptIndex`].

use std::sync::atomic::Ordering;

use super::database::{ENTRIES, decode, put, storage, take};
use super::{EmbeddedIndex, ExactHit, Filter, IndexError, IndexStats, MAX_NEIGHBOURS, PromptIndex, Sought};
use crate::entry::{Entry, EntryId, Part, Scope, SpecificationHash};
use crate::policy::Neighbour;
use async_trait::async_trait;

/// Searches of one look-up, at most: entries may go while it reads what the first has found.
const SEARCHES: usize = 3;

impl EmbeddedIndex {
    /// Changes the database to hold `entry`, in place of `displaced`. In memory the new entry is found before the
    /// database has it, which hides nothing, and the displaced one until the caller removes it.
    fn replace(
        &self,
        entry: &Entry,
        before: Option<&Entry>,
        displaced: Option<&EntryId>,
    ) -> Result<(), IndexError> {
        let bytes = postcard::to_stdvec(entry).map_err(storage)?;
        self.shelve(entry);
        let changed = self.file.change(|transaction| {
            put(transaction, &entry.id, &bytes)?;
            take(transaction, displaced.map(EntryId::as_str))
        });
        if changed.is_err() {
            if before.is_none_or(|before| !together(before, entry)) {
                self.unshelve(entry);
            }
            before.into_iter().for_each(|before| self.shelve(before));
        }
        changed
    }

    /// The entry of a name, and nothing where it cannot be read.
    fn readable(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        match self.read(id) {
            Err(IndexError::Damaged { .. }) => Ok(None),
            read => read,
        }
    }
}

/// Whether two entries are searched together.
fn together(a: &Entry, b: &Entry) -> bool {
    (&a.scope, &a.compatibility) == (&b.scope, &b.compatibility)
}

#[async_trait]
impl PromptIndex for EmbeddedIndex {
    async fn search(
        &self,
        sought: &Sought<'_>,
        embedding: &[f32],
        n: usize,
    ) -> Result<Vec<Neighbour>, IndexError> {
        self.check_fits(sought.scope, sought.compatibility, embedding)?;
        let n = n.min(MAX_NEIGHBOURS);
        let mut gone = 0;
        let mut neighbours = Vec::with_capacity(n);
        for _ in 0..SEARCHES {
            let Some(shelf) = self.shelf(sought.scope, sought.compatibility) else { return Ok(Vec::new()) };
            let near = shelf.read().nearest(embedding, sought, n + gone);
            neighbours.clear();
            gone = 0;
            for (id, similarity) in near {
                match self.read(&id)? {
                    Some(entry) if is_sought(&entry, sought) => {
                        neighbours.push(Neighbour { entry, similarity })
                    }
                    // It went, or changed, between the two look-ups: what has taken its place may be behind the others.
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
        let before = self.readable(&entry.id)?;
        let other = self.exact.holder(&entry.scope, &entry.specification).filter(|id| *id != entry.id);
        let displaced = other.as_ref().map(|id| self.readable(id)).transpose()?.flatten();
        self.replace(&entry, before.as_ref(), other.as_ref())?;
        *dirty = true;
        self.exact.put(&entry);
        if let Some(before) = &before {
            if (&before.scope, before.specification) != (&entry.scope, entry.specification) {
                self.exact.remove(before);
            }
            if !together(before, &entry) {
                self.unshelve(before);
            }
        }
        displaced.iter().for_each(|gone| self.unshelve(gone));
        if let Some(shelf) = self.shelf(&entry.scope, &entry.compatibility) {
            self.gardener.visit(shelf);
        }
        Ok(displaced)
    }

    async fn remove(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        let mut dirty = self.writer.lock();
        let Some(entry) = self.read(id)? else { return Ok(None) };
        self.file.change(|transaction| take(transaction, [id.as_str()]))?;
        *dirty = true;
        self.exact.remove(&entry);
        self.unshelve(&entry);
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
                    Err(_) => self.damage_met.store(true, Ordering::Relaxed),
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
            tracing::warn!("the index was opened again after an error; its last changes are gone");
            *dirty = false;
            self.reopened.fetch_add(1, Ordering::Relaxed);
        }
        if reopened | self.damage_met.swap(false, Ordering::Relaxed) {
            self.derive(&mut dirty)?;
            self.visit_all();
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
        self.all_shelves().iter().for_each(|shelf| shelf.read().count_into(&mut stats));
        stats
    }
}

/// An entry may have changed since its row was found.
fn is_sought(entry: &Entry, sought: &Sought<'_>) -> bool {
    entry.scope == *sought.scope
        && entry.compatibility == *sought.compatibility
        && sought.holding.is_held_by(entry)
}
