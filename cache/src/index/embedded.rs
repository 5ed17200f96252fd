//! The index inside the process: entries in an embedded database, their embeddings in memory.
//!
//! The database is the truth. What is in memory is derived from it when the index is opened, so a process
//! that is killed leaves nothing torn: at worst the changes since the last flush are gone.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use redb::ReadableTable;

use super::database::{DatabaseFile, ENTRIES, decode, storage, take};
use super::exact::ExactTable;
use super::gardener::{Gardener, SharedShelf};
use super::saved::{self, GraphFile};
use super::shelf::{Shelf, Traits};
use super::{IndexError, check_embedding};
use crate::entry::{Compatibility, Entry, EntryId, Scope};

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

/// The default [`PromptIndex`](super::PromptIndex): a database file, and in memory one shelf of embeddings for every
/// scope and compatibility.
pub struct EmbeddedIndex {
    pub(super) file: DatabaseFile,
    shelves: RwLock<HashMap<Scope, HashMap<Compatibility, SharedShelf>>>,
    pub(super) exact: ExactTable,
    /// One writer at a time; `true`: there are changes to flush.
    pub(super) writer: Mutex<bool>,
    pub(super) gardener: Gardener,
    graph_from: usize,
    /// Directory of saved graphs.
    graphs: Arc<PathBuf>,
    /// Whether an entry that cannot be read was met since the last flush, which throws such entries out.
    pub(super) damage_met: AtomicBool,
    pub(super) damaged: AtomicU64,
    pub(super) reopened: AtomicU64,
}

impl EmbeddedIndex {
    /// Opens or creates the index in the file `path`; its graphs are saved beside it, in `graphs`. Entries that cannot
    /// be read are thrown out, with a warning, and counted in [`super::IndexStats::damaged`]. A file of an earlier
    /// format is emptied, with a warning: the states and pictures that no entry names any more are then swept.
    ///
    /// # Errors
    /// The file is in use by another process, of a later format, damaged, or cannot be read.
    pub fn open(path: &Path, options: &IndexOptions) -> Result<Self, IndexError> {
        let index = Self {
            file: DatabaseFile::open(path, options.database_cache)?,
            shelves: RwLock::default(),
            exact: ExactTable::default(),
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

    /// Makes what is in memory agree with the database, and throws out what cannot be read.
    pub(super) fn derive(&self, dirty: &mut bool) -> Result<(), IndexError> {
        let mut found: HashMap<Scope, HashMap<Compatibility, HashSet<EntryId>>> = HashMap::new();
        let mut damaged = Vec::new();
        let exact = ExactTable::default();
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
                if exact.holder(&entry.scope, &entry.specification).is_some() {
                    tracing::warn!(entry = id.value(), "another entry has its specification");
                    damaged.push(id.value().to_owned());
                    continue;
                }
                exact.put(&entry);
                self.shelve(&entry);
                let of_scope = found.entry(entry.scope).or_default();
                of_scope.entry(entry.compatibility).or_default().insert(entry.id);
            }
            Ok(())
        })?;
        self.exact.replace(exact);
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
            match self.file.change(|transaction| take(transaction, damaged.iter().map(String::as_str))) {
                Ok(()) => *dirty = true,
                // They are left out, and met again when the index is next opened.
                Err(error) => tracing::warn!(%error, "and could not be"),
            }
        }
        Ok(())
    }

    pub(super) fn visit_all(&self) {
        self.all_shelves().into_iter().for_each(|shelf| self.gardener.visit(shelf));
    }

    pub(super) fn all_shelves(&self) -> Vec<SharedShelf> {
        self.shelves.read().values().flat_map(|shelves| shelves.values().cloned()).collect()
    }

    pub(super) fn shelf(&self, scope: &Scope, compatibility: &Compatibility) -> Option<SharedShelf> {
        self.shelves.read().get(scope)?.get(compatibility).cloned()
    }

    pub(super) fn shelve(&self, entry: &Entry) {
        let shelf = self.shelf(&entry.scope, &entry.compatibility).unwrap_or_else(|| {
            let mut shelves = self.shelves.write();
            let of_scope = shelves.entry(entry.scope.clone()).or_default();
            let file = GraphFile::new(&self.graphs, &entry.scope, &entry.compatibility);
            let new =
                || Arc::new(RwLock::new(Shelf::new(entry.embedding.len(), self.graph_from, Some(file))));
            Arc::clone(of_scope.entry(entry.compatibility.clone()).or_insert_with(new))
        });
        shelf.write().put(&entry.id, &entry.embedding, Traits::of(entry));
    }

    pub(super) fn unshelve(&self, entry: &Entry) {
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
    pub(super) fn check_fits(
        &self,
        scope: &Scope,
        to: &Compatibility,
        embedding: &[f32],
    ) -> Result<(), IndexError> {
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

    pub(super) fn read(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
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
