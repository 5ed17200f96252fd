//! The index inside the process: entries in an embedded database, their embeddings in memory.
//!
//! The database is the source of truth, and what is in memory is loaded from it when the index opens. A killed process
//! therefore leaves a consistent index, which lacks at most the changes since the last flush.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use redb::ReadableTable;

use super::database::{DatabaseFile, ENTRIES, decode, delete, storage};
use super::exact::ExactTable;
use super::graph_file::{self, GraphFile};
use super::maintenance::{MaintenanceThread, SharedPartition};
use super::partition::{Partition, RowProperties};
use super::prompt_index::{IndexError, check_embedding};
use crate::entry::{Compatibility, Entry, EntryId, Scope};
use crate::private_files;

/// Settings of the embedded index.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// The number of entries of one scope and compatibility from which on a search uses a graph instead of a scan. The
    /// default is about twice the number at which the graph becomes faster, because a scan is exact and takes half the
    /// memory.
    pub graph_from: usize,
    /// The size of the database's memory cache, in bytes.
    pub database_cache: usize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { graph_from: 2048, database_cache: 64 << 20 }
    }
}

/// The default [`PromptIndex`](super::PromptIndex): a database file, and in memory one partition of embeddings for each
/// scope and compatibility.
pub struct EmbeddedIndex {
    pub(super) file: DatabaseFile,
    partitions: RwLock<HashMap<Scope, HashMap<Compatibility, SharedPartition>>>,
    pub(super) exact: ExactTable,
    /// Locked by each change, so that there is one writer at a time. `true` if there are changes to flush.
    pub(super) writer: Mutex<bool>,
    pub(super) maintenance: MaintenanceThread,
    graph_from: usize,
    /// Directory of the graph files.
    graphs: Arc<PathBuf>,
    /// Whether an unreadable entry was found since the last flush. The next flush removes such entries.
    pub(super) found_damage: AtomicBool,
    pub(super) damaged: AtomicU64,
    pub(super) reopened: AtomicU64,
}

impl EmbeddedIndex {
    /// Opens or creates the index in the file `path`; its graphs are saved beside it, in `graphs`. Entries that cannot
    /// be read are removed with a warning and counted in [`super::IndexStats::damaged`]. A file of an earlier format is
    /// emptied with a warning; the cache then removes the states and pictures that no entry names any more.
    ///
    /// # Errors
    /// The file is in use by another process, of a later format, damaged, or cannot be read.
    pub fn open(path: &Path, options: &IndexOptions) -> Result<Self, IndexError> {
        let index = Self {
            file: DatabaseFile::open(path, options.database_cache)?,
            partitions: RwLock::default(),
            exact: ExactTable::default(),
            writer: Mutex::new(false),
            maintenance: MaintenanceThread::start().map_err(storage)?,
            graph_from: options.graph_from,
            graphs: Arc::new(private_directory(path.with_file_name("graphs"))),
            found_damage: AtomicBool::new(false),
            damaged: AtomicU64::new(0),
            reopened: AtomicU64::new(0),
        };
        index.load_entries(&mut index.writer.lock())?;
        let wanted: Vec<_> =
            index.all_partitions().iter().filter_map(|partition| partition.read().file.clone()).collect();
        if let Err(error) = graph_file::sweep(&index.graphs, &wanted) {
            tracing::warn!(%error, "unused graph files could not be removed");
        }
        index.maintain_all();
        Ok(index)
    }

    /// Makes the tables in memory agree with the database, and removes entries that cannot be read.
    pub(super) fn load_entries(&self, dirty: &mut bool) -> Result<(), IndexError> {
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
                    tracing::warn!(%error, entry = id.value(), "the entry does not fit its partition");
                    damaged.push(id.value().to_owned());
                    continue;
                }
                if exact.holder(&entry.scope, &entry.specification).is_some() {
                    tracing::warn!(entry = id.value(), "another entry has the entry's specification");
                    damaged.push(id.value().to_owned());
                    continue;
                }
                exact.put(&entry);
                self.add_row(&entry);
                let of_scope = found.entry(entry.scope).or_default();
                of_scope.entry(entry.compatibility).or_default().insert(entry.id);
            }
            Ok(())
        })?;
        self.exact.replace(exact);
        self.partitions.write().retain(|scope, partitions| {
            partitions.retain(|to, partition| match found.get(scope).and_then(|of_scope| of_scope.get(to)) {
                None => false,
                Some(ids) => {
                    partition.write().keep(ids);
                    true
                }
            });
            !partitions.is_empty()
        });
        if !damaged.is_empty() {
            tracing::warn!(entries = ?damaged, "damaged entries are removed from the index");
            self.damaged.fetch_add(damaged.len() as u64, Ordering::Relaxed);
            match self.file.change(|transaction| delete(transaction, damaged.iter().map(String::as_str))) {
                Ok(()) => *dirty = true,
                // Nothing in memory names them. They are found again when the index next opens.
                Err(error) => tracing::warn!(%error, "damaged entries could not be removed"),
            }
        }
        Ok(())
    }

    pub(super) fn maintain_all(&self) {
        self.all_partitions().into_iter().for_each(|partition| self.maintenance.schedule(partition));
    }

    pub(super) fn all_partitions(&self) -> Vec<SharedPartition> {
        self.partitions.read().values().flat_map(|of_scope| of_scope.values().cloned()).collect()
    }

    pub(super) fn partition(&self, scope: &Scope, compatibility: &Compatibility) -> Option<SharedPartition> {
        self.partitions.read().get(scope)?.get(compatibility).cloned()
    }

    /// Adds the entry's row to its partition, or replaces it.
    pub(super) fn add_row(&self, entry: &Entry) {
        let partition = self.partition(&entry.scope, &entry.compatibility).unwrap_or_else(|| {
            let mut partitions = self.partitions.write();
            let of_scope = partitions.entry(entry.scope.clone()).or_default();
            let file = GraphFile::new(&self.graphs, &entry.scope, &entry.compatibility);
            let new = || {
                let partition = Partition::new(entry.embedding.len(), self.graph_from, Some(file));
                Arc::new(RwLock::new(partition))
            };
            Arc::clone(of_scope.entry(entry.compatibility.clone()).or_insert_with(new))
        });
        partition.write().put(&entry.id, &entry.embedding, RowProperties::of(entry));
    }

    /// Removes the entry's row, and its partition if that was the last row.
    pub(super) fn remove_row(&self, entry: &Entry) {
        let Some(partition) = self.partition(&entry.scope, &entry.compatibility) else { return };
        partition.write().remove(&entry.id);
        if partition.read().is_empty() {
            GraphFile::new(&self.graphs, &entry.scope, &entry.compatibility).remove();
            let mut partitions = self.partitions.write();
            if let Some(of_scope) = partitions.get_mut(&entry.scope) {
                of_scope.remove(&entry.compatibility);
            }
            partitions.retain(|_, of_scope| !of_scope.is_empty());
        } else {
            self.maintenance.schedule(partition);
        }
    }

    /// Refuses an embedding that is malformed or not of its partition's length.
    pub(super) fn check_fits(
        &self,
        scope: &Scope,
        to: &Compatibility,
        embedding: &[f32],
    ) -> Result<(), IndexError> {
        check_embedding(embedding)?;
        let Some(partition) = self.partition(scope, to) else { return Ok(()) };
        let wanted = partition.read().dimensions();
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
            self.found_damage.store(true, Ordering::Relaxed);
        }
        found
    }

    /// Whether the partition of this scope and compatibility has a graph. It has none while its entries are few, and
    /// while its first graph is being built.
    pub fn has_graph(&self, scope: &Scope, compatibility: &Compatibility) -> bool {
        self.partition(scope, compatibility).is_some_and(|partition| partition.read().has_graph())
    }
}

impl Drop for EmbeddedIndex {
    fn drop(&mut self) {
        if *self.writer.lock() && self.file.flush().is_err() {
            tracing::warn!("the index's last changes could not be made durable");
        }
    }
}

/// Creates a directory for its owner only. If that fails, saving a graph fails and is logged.
fn private_directory(dir: PathBuf) -> PathBuf {
    if private_files::create_directory(&dir).is_ok() {
        private_files::restrict(&dir, 0o700);
    }
    dir
}
