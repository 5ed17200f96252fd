//! The index inside the process: entries in an embedded database, their embeddings in memory.
//!
//! The database is the truth. What is in memory is derived from it when the index is opened, so a process
//! that is killed leaves nothing torn: at worst the changes since the last flush are gone.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::gardener::{Gardener, SharedShelf};
use super::shelf::Shelf;
use super::{Filter, IndexError, MAX_NEIGHBOURS, PromptIndex, Sought, check_embedding};
use crate::entry::{Compatibility, Entry, EntryId, Scope};
use crate::policy::Neighbour;

/// Version of the tables and of what stands in them. Raise it when [`Entry`] changes.
const FORMAT: u32 = 1;
const META: TableDefinition<&str, u32> = TableDefinition::new("meta");
/// Entries by name.
const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");
/// Names by scope and picture.
const PICTURES: TableDefinition<&[u8], &str> = TableDefinition::new("pictures");

/// How the embedded index works.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Entries of one scope and compatibility from which on a graph is searched instead of a scan. The
    /// default is about twice where the graph begins to win: a scan is exact and takes half the memory.
    pub graph_from: usize,
    /// Bytes of the database that are kept in memory.
    pub database_cache: usize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { graph_from: 2048, database_cache: 64 << 20 }
    }
}

/// The default [`PromptIndex`]: a database file, and in memory one shelf of embeddings for every scope and
/// compatibility.
pub struct EmbeddedIndex {
    database: Database,
    shelves: RwLock<HashMap<Scope, HashMap<Compatibility, SharedShelf>>>,
    /// One writer at a time; `true`: there are changes to flush.
    writer: Mutex<bool>,
    gardener: Gardener,
    graph_from: usize,
}

impl EmbeddedIndex {
    /// Opens or creates the index in the file `path`.
    ///
    /// # Errors
    /// The file is in use by another process, of another version, damaged, or cannot be read.
    pub fn open(path: &Path, options: &IndexOptions) -> Result<Self, IndexError> {
        let database = open_database(path, options.database_cache)?;
        let index = Self {
            database,
            shelves: RwLock::default(),
            writer: Mutex::new(false),
            gardener: Gardener::start().map_err(storage)?,
            graph_from: options.graph_from,
        };
        index.fill_shelves()?;
        Ok(index)
    }

    fn fill_shelves(&self) -> Result<(), IndexError> {
        let read = self.database.begin_read().map_err(storage)?;
        let entries = read.open_table(ENTRIES).map_err(storage)?;
        for row in entries.iter().map_err(storage)? {
            let (id, bytes) = row.map_err(storage)?;
            match decode(id.value(), bytes.value()) {
                Ok(entry) => self.shelve(&entry),
                Err(error) => tracing::warn!(%error, "left out of the index"),
            }
        }
        let shelves: Vec<SharedShelf> =
            self.shelves.read().values().flat_map(|shelves| shelves.values().cloned()).collect();
        shelves.into_iter().for_each(|shelf| self.gardener.visit(shelf));
        Ok(())
    }

    fn shelf(&self, scope: &Scope, compatibility: &Compatibility) -> Option<SharedShelf> {
        self.shelves.read().get(scope)?.get(compatibility).cloned()
    }

    fn shelve(&self, entry: &Entry) {
        let shelf = self.shelf(&entry.scope, &entry.compatibility).unwrap_or_else(|| {
            let mut shelves = self.shelves.write();
            let of_scope = shelves.entry(entry.scope.clone()).or_default();
            let new = || Arc::new(RwLock::new(Shelf::new(entry.embedding.len(), self.graph_from)));
            Arc::clone(of_scope.entry(entry.compatibility.clone()).or_insert_with(new))
        });
        shelf.write().put(&entry.id, &entry.embedding, entry.guidance_scale);
    }

    fn unshelve(&self, entry: &Entry) {
        let Some(shelf) = self.shelf(&entry.scope, &entry.compatibility) else { return };
        shelf.write().remove(&entry.id);
        if shelf.read().is_empty() {
            let mut shelves = self.shelves.write();
            if let Some(of_scope) = shelves.get_mut(&entry.scope) {
                of_scope.remove(&entry.compatibility);
            }
            shelves.retain(|_, of_scope| !of_scope.is_empty());
        } else {
            self.gardener.visit(shelf);
        }
    }

    /// The embedding must be of its shelf's length.
    fn check_fits(&self, scope: &Scope, to: &Compatibility, embedding: &[f32]) -> Result<(), IndexError> {
        check_embedding(embedding)?;
        let Some(shelf) = self.shelf(scope, to) else { return Ok(()) };
        let wanted = shelf.read().dimensions();
        if wanted == embedding.len() {
            Ok(())
        } else {
            let found = embedding.len();
            Err(IndexError::Embedding(format!("has {found} numbers, the others of its embedder {wanted}")))
        }
    }

    /// Changes the database: visible at once, durable after the next flush.
    fn change<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        let mut transaction = self.database.begin_write().map_err(storage)?;
        transaction.set_durability(Durability::None).map_err(storage)?;
        let done = work(&transaction)?;
        transaction.commit().map_err(storage)?;
        Ok(done)
    }

    fn read(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        let read = self.database.begin_read().map_err(storage)?;
        let entries = read.open_table(ENTRIES).map_err(storage)?;
        let bytes = entries.get(id.as_str()).map_err(storage)?;
        bytes.map(|bytes| decode(id.as_str(), bytes.value())).transpose()
    }

    /// Whether graphs serve the entries of this scope and compatibility: false while they are few, and
    /// while a graph is being built.
    pub fn has_graph(&self, scope: &Scope, compatibility: &Compatibility) -> bool {
        self.shelf(scope, compatibility).is_some_and(|shelf| shelf.read().has_graph())
    }
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
        let Some(shelf) = self.shelf(sought.scope, sought.compatibility) else { return Ok(Vec::new()) };
        let near = shelf.read().nearest(embedding, &sought.guidance_scale, n.min(MAX_NEIGHBOURS));
        let mut neighbours = Vec::with_capacity(near.len());
        for (id, similarity) in near {
            // An entry may go between the two look-ups.
            let Some(entry) = self.read(&id)? else { continue };
            if entry.scope == *sought.scope && entry.compatibility == *sought.compatibility {
                neighbours.push(Neighbour { entry, similarity });
            }
        }
        Ok(neighbours)
    }

    async fn get(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        self.read(id)
    }

    async fn exact(&self, scope: &Scope, exact: &str) -> Result<Option<Entry>, IndexError> {
        let id = {
            let read = self.database.begin_read().map_err(storage)?;
            let pictures = read.open_table(PICTURES).map_err(storage)?;
            let found = pictures.get(picture_key(scope, exact)?.as_slice()).map_err(storage)?;
            found.map(|id| id.value().to_owned())
        };
        let id = id.and_then(|id| EntryId::try_from(id).ok());
        let entry = id.map(|id| self.read(&id)).transpose()?.flatten();
        Ok(entry.filter(|entry| entry.scope == *scope && entry.exact == exact))
    }

    async fn upsert(&self, entry: Entry) -> Result<Option<Entry>, IndexError> {
        let mut dirty = self.writer.lock();
        self.check_fits(&entry.scope, &entry.compatibility, &entry.embedding)?;
        let bytes = postcard::to_stdvec(&entry).map_err(storage)?;
        let picture = picture_key(&entry.scope, &entry.exact)?;
        let before = self.read(&entry.id)?;
        let displaced = self.change(|transaction| {
            if let Some(before) = &before {
                take(transaction, before)?;
            }
            let mut pictures = transaction.open_table(PICTURES).map_err(storage)?;
            let other = pictures.insert(picture.as_slice(), entry.id.as_str()).map_err(storage)?;
            let other = other.map(|id| id.value().to_owned());
            let mut entries = transaction.open_table(ENTRIES).map_err(storage)?;
            entries.insert(entry.id.as_str(), bytes.as_slice()).map_err(storage)?;
            let Some(other) = other else { return Ok(None) };
            let displaced = entries.remove(other.as_str()).map_err(storage)?;
            displaced.map(|bytes| decode(&other, bytes.value())).transpose()
        })?;
        *dirty = true;
        let moved = before
            .filter(|before| (&before.scope, &before.compatibility) != (&entry.scope, &entry.compatibility));
        moved.iter().chain(&displaced).for_each(|gone| self.unshelve(gone));
        self.shelve(&entry);
        if let Some(shelf) = self.shelf(&entry.scope, &entry.compatibility) {
            self.gardener.visit(shelf);
        }
        Ok(displaced)
    }

    async fn remove(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        let mut dirty = self.writer.lock();
        let Some(entry) = self.read(id)? else { return Ok(None) };
        self.change(|transaction| take(transaction, &entry))?;
        *dirty = true;
        self.unshelve(&entry);
        Ok(Some(entry))
    }

    async fn touch(&self, id: &EntryId, timestep: f64, now: u64) -> Result<bool, IndexError> {
        let mut dirty = self.writer.lock();
        let Some(mut entry) = self.read(id)? else { return Ok(false) };
        let Some(kept) = entry.states.iter_mut().find(|kept| kept.timestep == timestep) else {
            return Ok(false);
        };
        kept.uses = kept.uses.saturating_add(1);
        entry.last_used = entry.last_used.max(now);
        let bytes = postcard::to_stdvec(&entry).map_err(storage)?;
        self.change(|transaction| {
            let mut entries = transaction.open_table(ENTRIES).map_err(storage)?;
            entries.insert(id.as_str(), bytes.as_slice()).map_err(storage)?;
            Ok(())
        })?;
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
        let read = self.database.begin_read().map_err(storage)?;
        let entries = read.open_table(ENTRIES).map_err(storage)?;
        let start = after.map_or(Unbounded, |id| Excluded(id.as_str()));
        let mut page = Vec::new();
        for row in entries.range::<&str>((start, Unbounded)).map_err(storage)? {
            if page.len() >= limit {
                break;
            }
            let (id, bytes) = row.map_err(storage)?;
            match decode(id.value(), bytes.value()) {
                Ok(entry) if filter.matches(&entry) => page.push(entry),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "left out of a scan"),
            }
        }
        Ok(page)
    }

    async fn flush(&self) -> Result<(), IndexError> {
        let mut dirty = self.writer.lock();
        if !*dirty {
            return Ok(());
        }
        let mut transaction = self.database.begin_write().map_err(storage)?;
        // Opening after a kill then does not have to walk the whole file.
        transaction.set_quick_repair(true);
        transaction.commit().map_err(storage)?;
        *dirty = false;
        Ok(())
    }
}

impl Drop for EmbeddedIndex {
    fn drop(&mut self) {
        let dirty = *self.writer.lock();
        let flushed = dirty.then(|| self.database.begin_write().map(WriteTransaction::commit));
        if !matches!(flushed, None | Some(Ok(Ok(())))) {
            tracing::warn!("the index's last changes could not be made durable");
        }
    }
}

fn open_database(path: &Path, cache: usize) -> Result<Database, IndexError> {
    let name = path.display().to_string();
    let failed = |why: String| IndexError::Open { path: name.clone(), why };
    // The check makes an altered file an error here, where the database would trust it.
    let opened = Database::builder().set_cache_size(cache).set_check_integrity_on_open(true).create(path);
    let database = opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => IndexError::InUse { path: name.clone() },
        other => failed(other.to_string()),
    })?;
    let transaction = database.begin_write().map_err(|error| failed(error.to_string()))?;
    let found = {
        let mut meta = transaction.open_table(META).map_err(|error| failed(error.to_string()))?;
        let found = meta.get("format").map_err(storage)?.map(|version| version.value());
        if found.is_none() {
            meta.insert("format", FORMAT).map_err(storage)?;
        }
        found.unwrap_or(FORMAT)
    };
    if found != FORMAT {
        return Err(IndexError::Version { path: name, found, wanted: FORMAT });
    }
    transaction.open_table(ENTRIES).map_err(|error| failed(error.to_string()))?;
    transaction.open_table(PICTURES).map_err(|error| failed(error.to_string()))?;
    transaction.commit().map_err(storage)?;
    Ok(database)
}

/// Takes an entry out of both tables, and its picture only where it is the one that has it.
fn take(transaction: &WriteTransaction, entry: &Entry) -> Result<(), IndexError> {
    let mut entries = transaction.open_table(ENTRIES).map_err(storage)?;
    entries.remove(entry.id.as_str()).map_err(storage)?;
    let mut pictures = transaction.open_table(PICTURES).map_err(storage)?;
    let key = picture_key(&entry.scope, &entry.exact)?;
    let own =
        pictures.get(key.as_slice()).map_err(storage)?.is_some_and(|id| id.value() == entry.id.as_str());
    if own {
        pictures.remove(key.as_slice()).map_err(storage)?;
    }
    Ok(())
}

fn picture_key(scope: &Scope, exact: &str) -> Result<Vec<u8>, IndexError> {
    postcard::to_stdvec(&(scope, exact)).map_err(storage)
}

fn decode(id: &str, bytes: &[u8]) -> Result<Entry, IndexError> {
    let entry: Option<Entry> = postcard::from_bytes(bytes).ok();
    let sound = entry.filter(|entry| entry.id.as_str() == id && check_embedding(&entry.embedding).is_ok());
    sound.ok_or_else(|| IndexError::Damaged { id: id.to_owned() })
}

fn storage(error: impl std::fmt::Display) -> IndexError {
    IndexError::Storage(error.to_string())
}
