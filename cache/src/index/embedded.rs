//! The index inside the process: entries in an embedded database, their embeddings in memory.
//!
//! The database is the truth. What is in memory is derived from it when the index is opened, so a process
//! that is killed leaves nothing torn: at worst the changes since the last flush are gone.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use redb::ReadableTable;

use super::database::{DatabaseFile, ENTRIES, PICTURES, decode, picture_key, storage, take, take_damaged};
use super::gardener::{Gardener, SharedShelf};
use super::saved::{self, GraphFile};
use super::shelf::Shelf;
use super::{Filter, IndexError, IndexStats, MAX_NEIGHBOURS, PromptIndex, Sought, check_embedding};
use crate::entry::{Compatibility, Entry, EntryId, Scope};
use crate::policy::Neighbour;

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
    file: DatabaseFile,
    shelves: RwLock<HashMap<Scope, HashMap<Compatibility, SharedShelf>>>,
    /// One writer at a time; `true`: there are changes to flush.
    writer: Mutex<bool>,
    gardener: Gardener,
    graph_from: usize,
    /// Directory of saved graphs.
    graphs: Arc<PathBuf>,
    /// Whether an entry that cannot be read was met since the last flush, which throws such entries out.
    damage_met: AtomicBool,
    damaged: AtomicU64,
    reopened: AtomicU64,
}

impl EmbeddedIndex {
    /// Opens or creates the index in the file `path`; its graphs are saved beside it, in `graphs`. Entries that cannot be read are thrown out, with a
    /// warning, and counted in [`IndexStats::damaged`].
    ///
    /// # Errors
    /// The file is in use by another process, of another version, damaged, or cannot be read.
    pub fn open(path: &Path, options: &IndexOptions) -> Result<Self, IndexError> {
        let index = Self {
            file: DatabaseFile::open(path, options.database_cache)?,
            shelves: RwLock::default(),
            writer: Mutex::new(false),
            gardener: Gardener::start().map_err(storage)?,
            graph_from: options.graph_from,
            graphs: Arc::new(private_directory(path.with_file_name("graphs"))),
            damage_met: AtomicBool::new(false),
            damaged: AtomicU64::new(0),
            reopened: AtomicU64::new(0),
        };
        index.derive(&mut index.writer.lock())?;
        let wanted: Vec<_> =
            index.all_shelves().iter().filter_map(|shelf| shelf.read().file.clone()).collect();
        if let Err(error) = saved::sweep(&index.graphs, &wanted) {
            tracing::warn!(%error, "graphs that are of no use could not be removed");
        }
        index.visit_all();
        Ok(index)
    }

    /// Makes the shelves agree with the database, and throws out what cannot be read.
    fn derive(&self, dirty: &mut bool) -> Result<(), IndexError> {
        let mut found: HashMap<Scope, HashMap<Compatibility, HashSet<EntryId>>> = HashMap::new();
        let mut damaged = Vec::new();
        self.file.read(|read| {
            let entries = read.open_table(ENTRIES).map_err(storage)?;
            for row in entries.iter().map_err(storage)? {
                let (id, bytes) = row.map_err(storage)?;
                let Ok(entry) = decode(id.value(), bytes.value()) else {
                    damaged.push(id.value().to_owned());
                    continue;
                };
                if let Err(error) = self.check_fits(&entry.scope, &entry.compatibility, &entry.embedding) {
                    tracing::warn!(%error, entry = id.value(), "does not fit its shelf");
                    damaged.push(id.value().to_owned());
                    continue;
                }
                self.shelve(&entry);
                let of_scope = found.entry(entry.scope).or_default();
                of_scope.entry(entry.compatibility).or_default().insert(entry.id);
            }
            Ok(())
        })?;
        self.shelves.write().retain(|scope, shelves| {
            shelves.retain(|to, shelf| match found.get(scope).and_then(|of_scope| of_scope.get(to)) {
                None => false,
                Some(ids) => {
                    shelf.write().keep(ids);
                    true
                }
            });
            !shelves.is_empty()
        });
        if !damaged.is_empty() {
            tracing::warn!(entries = ?damaged, "damaged entries are thrown out of the index");
            self.damaged.fetch_add(damaged.len() as u64, Ordering::Relaxed);
            match self.file.change(|transaction| take_damaged(transaction, &damaged)) {
                Ok(()) => *dirty = true,
                // They are left out, and met again when the index is next opened.
                Err(error) => tracing::warn!(%error, "and could not be"),
            }
        }
        Ok(())
    }

    fn visit_all(&self) {
        self.all_shelves().into_iter().for_each(|shelf| self.gardener.visit(shelf));
    }

    fn all_shelves(&self) -> Vec<SharedShelf> {
        self.shelves.read().values().flat_map(|shelves| shelves.values().cloned()).collect()
    }

    fn shelf(&self, scope: &Scope, compatibility: &Compatibility) -> Option<SharedShelf> {
        self.shelves.read().get(scope)?.get(compatibility).cloned()
    }

    fn shelve(&self, entry: &Entry) {
        let shelf = self.shelf(&entry.scope, &entry.compatibility).unwrap_or_else(|| {
            let mut shelves = self.shelves.write();
            let of_scope = shelves.entry(entry.scope.clone()).or_default();
            let file = GraphFile::new(&self.graphs, &entry.scope, &entry.compatibility);
            let new =
                || Arc::new(RwLock::new(Shelf::new(entry.embedding.len(), self.graph_from, Some(file))));
            Arc::clone(of_scope.entry(entry.compatibility.clone()).or_insert_with(new))
        });
        shelf.write().put(&entry.id, &entry.embedding, entry.guidance_scale);
    }

    fn unshelve(&self, entry: &Entry) {
        let Some(shelf) = self.shelf(&entry.scope, &entry.compatibility) else { return };
        shelf.write().remove(&entry.id);
        if shelf.read().is_empty() {
            GraphFile::new(&self.graphs, &entry.scope, &entry.compatibility).remove();
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

    fn read(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        let found = self.file.read(|read| {
            let entries = read.open_table(ENTRIES).map_err(storage)?;
            let bytes = entries.get(id.as_str()).map_err(storage)?;
            bytes.map(|bytes| decode(id.as_str(), bytes.value())).transpose()
        });
        if matches!(found, Err(IndexError::Damaged { .. })) {
            self.damage_met.store(true, Ordering::Relaxed);
        }
        found
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
        let picture = picture_key(scope, exact)?;
        let id = self.file.read(|read| {
            let pictures = read.open_table(PICTURES).map_err(storage)?;
            let found = pictures.get(picture.as_slice()).map_err(storage)?;
            Ok(found.map(|id| id.value().to_owned()))
        })?;
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
        let displaced = self.file.change(|transaction| {
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
            // One that cannot be read is gone all the same.
            Ok(displaced.and_then(|bytes| decode(&other, bytes.value()).ok()))
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
        self.file.change(|transaction| take(transaction, &entry))?;
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
        self.file.change(|transaction| {
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

impl Drop for EmbeddedIndex {
    fn drop(&mut self) {
        if *self.writer.lock() && self.file.flush().is_err() {
            tracing::warn!("the index's last changes could not be made durable");
        }
    }
}

/// Makes a directory that only its owner may look into. Where that fails graphs are not saved, which is said then.
fn private_directory(dir: PathBuf) -> PathBuf {
    if crate::config::create_private(&dir).is_ok() {
        crate::config::tighten(&dir, 0o700);
    }
    dir
}
