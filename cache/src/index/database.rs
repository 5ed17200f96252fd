//! The database file under the embedded index: its tables, and how it is opened, again too after an error
//! of the disk.
//!
//! After one such error the database refuses everything until it is opened anew, so a disk that was full for
//! a moment would end the cache. [`DatabaseFile::reopen`] opens it anew, ever more rarely while that fails.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redb::{
    Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};

use super::{IndexError, check_embedding};
use crate::entry::{Entry, EntryId};

/// Version of the tables and of what stands in them. Raise it when [`Entry`] changes. An index of an earlier version is
/// emptied when it is opened: a cache can be filled again, and a server must start. One of a later version is refused.
const FORMAT: u32 = 2;
const META: TableDefinition<&str, u32> = TableDefinition::new("meta");
/// What the index is called, so that a store of states can say whose it is.
const NAMES: TableDefinition<&str, &str> = TableDefinition::new("names");
/// Entries by name.
pub(super) const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");

/// Shortest time between two attempts to open the database again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest time between two.
const LAST_PAUSE: Duration = Duration::from_secs(60);

pub(super) struct DatabaseFile {
    path: PathBuf,
    /// Bytes of it that are kept in memory.
    cache: usize,
    name: String,
    /// `None` while it is opened again, and where that failed.
    database: RwLock<Option<Database>>,
    /// Whether an operation failed since it was opened.
    failed: AtomicBool,
    retry: Mutex<Retry>,
}

/// When it may be opened again.
struct Retry {
    from: Instant,
    pause: Duration,
}

impl DatabaseFile {
    pub(super) fn open(path: &Path, cache: usize) -> Result<Self, IndexError> {
        let (database, name) = open_database(path, cache)?;
        Ok(Self {
            path: path.to_owned(),
            cache,
            name,
            database: RwLock::new(Some(database)),
            failed: AtomicBool::new(false),
            retry: Mutex::new(Retry { from: Instant::now(), pause: FIRST_PAUSE }),
        })
    }

    /// The index's own name: random, given when the file was made.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        self.within(|database| work(&database.begin_read().map_err(storage)?))
    }

    /// Changes the database: visible at once, durable after the next flush.
    pub(super) fn change<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        self.within(|database| {
            let mut transaction = database.begin_write().map_err(storage)?;
            transaction.set_durability(Durability::None).map_err(storage)?;
            let done = work(&transaction)?;
            transaction.commit().map_err(storage)?;
            Ok(done)
        })
    }

    /// Makes all changes so far durable.
    pub(super) fn flush(&self) -> Result<(), IndexError> {
        self.within(commit)?;
        self.retry.lock().pause = FIRST_PAUSE;
        Ok(())
    }

    fn within<T>(&self, work: impl FnOnce(&Database) -> Result<T, IndexError>) -> Result<T, IndexError> {
        // Nobody waits while the file is read through and opened.
        let database = self.database.try_read();
        let database = database.as_ref().and_then(|database| database.as_ref());
        let Some(database) = database else {
            return Err(IndexError::Storage("not open after an error of the disk".into()));
        };
        let done = work(database);
        if matches!(done, Err(IndexError::Storage(_))) {
            self.failed.store(true, Ordering::Relaxed);
        }
        done
    }

    /// Opens the database anew where an operation has failed, but not too often. Whether it did: then the
    /// changes since the last flush are gone.
    pub(super) fn reopen(&self) -> Result<bool, IndexError> {
        let mut retry = self.retry.lock();
        let now = Instant::now();
        if !self.failed.load(Ordering::Relaxed) || now < retry.from {
            return Ok(false);
        }
        retry.from = now + retry.pause;
        retry.pause = (2 * retry.pause).min(LAST_PAUSE);
        let mut database = self.database.write();
        // What can still make its changes durable need not lose them.
        if database.as_ref().is_some_and(|database| commit(database).is_ok()) {
            self.failed.store(false, Ordering::Relaxed);
            return Ok(false);
        }
        // The old one holds the file's lock.
        *database = None;
        *database = Some(open_database(&self.path, self.cache)?.0);
        drop(database);
        self.failed.store(false, Ordering::Relaxed);
        Ok(true)
    }
}

fn commit(database: &Database) -> Result<(), IndexError> {
    let mut transaction = database.begin_write().map_err(storage)?;
    // Opening after a kill then does not have to walk the whole file.
    transaction.set_quick_repair(true);
    transaction.commit().map_err(storage)
}

fn open_database(path: &Path, cache: usize) -> Result<(Database, String), IndexError> {
    let shown = path.display().to_string();
    let failed = |why: String| IndexError::Open { path: shown.clone(), why };
    make_private(path).map_err(|why| failed(why.to_string()))?;
    // The check makes an altered file an error here, where the database would trust it.
    let opened = Database::builder().set_cache_size(cache).set_check_integrity_on_open(true).create(path);
    let database = opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => IndexError::InUse { path: shown.clone() },
        other => failed(other.to_string()),
    })?;
    let transaction = database.begin_write().map_err(|error| failed(error.to_string()))?;
    let found = {
        let mut meta = transaction.open_table(META).map_err(|error| failed(error.to_string()))?;
        let found = meta.get("format").map_err(storage)?.map(|version| version.value());
        if found.is_none_or(|found| found < FORMAT) {
            meta.insert("format", FORMAT).map_err(storage)?;
        }
        found.unwrap_or(FORMAT)
    };
    if found > FORMAT {
        return Err(IndexError::Version { path: shown, found, wanted: FORMAT });
    }
    if found < FORMAT {
        tracing::warn!(
            path = shown,
            found,
            wanted = FORMAT,
            "the cache's index has an earlier format: it begins empty"
        );
        transaction.delete_table(ENTRIES).map_err(|error| failed(error.to_string()))?;
    }
    let name = {
        let mut names = transaction.open_table(NAMES).map_err(|error| failed(error.to_string()))?;
        let found = names.get("index").map_err(storage)?.map(|name| name.value().to_owned());
        match found {
            Some(name) => name,
            None => {
                let mut random = [0; 16];
                getrandom::fill(&mut random).map_err(|error| failed(error.to_string()))?;
                let name = String::from(EntryId::new(u128::from_le_bytes(random)));
                names.insert("index", name.as_str()).map_err(storage)?;
                name
            }
        }
    };
    transaction.open_table(ENTRIES).map_err(|error| failed(error.to_string()))?;
    transaction.commit().map_err(storage)?;
    Ok((database, name))
}

/// Prompts stand in it: for its owner's eyes only, whoever may look into the directory.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    drop(options.open(path)?);
    crate::config::tighten(path, 0o600);
    Ok(())
}

/// Takes rows out.
pub(super) fn take<'a>(
    transaction: &WriteTransaction,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(), IndexError> {
    let mut entries = transaction.open_table(ENTRIES).map_err(storage)?;
    for name in names {
        entries.remove(name).map_err(storage)?;
    }
    Ok(())
}

pub(super) fn put(transaction: &WriteTransaction, id: &EntryId, bytes: &[u8]) -> Result<(), IndexError> {
    let mut entries = transaction.open_table(ENTRIES).map_err(storage)?;
    entries.insert(id.as_str(), bytes).map_err(storage)?;
    Ok(())
}

pub(super) fn decode(id: &str, bytes: &[u8]) -> Result<Entry, IndexError> {
    let entry: Option<Entry> = postcard::from_bytes(bytes).ok();
    let sound = entry.filter(|entry| entry.id.as_str() == id && check_embedding(&entry.embedding).is_ok());
    sound.ok_or_else(|| IndexError::Damaged { id: id.to_owned() })
}

pub(super) fn storage(error: impl std::fmt::Display) -> IndexError {
    IndexError::Storage(error.to_string())
}
