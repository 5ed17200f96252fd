//! The database file of the embedded index: its tables, and how it is opened and reopened.
//!
//! After a disk error the database refuses every operation until it is reopened. Without that, a disk that was full for
//! a moment would disable the cache for good. [`DatabaseFile::reopen`] reopens it, with growing pauses while that fails.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redb::{
    Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};

use super::prompt_index::{IndexError, check_embedding};
use crate::entry::{Entry, EntryId};

/// Version of the tables and their rows. Raise it when [`Entry`] changes. An index of an earlier version is emptied when
/// it is opened, because a cache can be filled again and the server must start. A later version is refused.
const FORMAT: u32 = 2;
const META: TableDefinition<&str, u32> = TableDefinition::new("meta");
/// The index's name, which marks the store's prefix as this index's.
const NAMES: TableDefinition<&str, &str> = TableDefinition::new("names");
/// Entries by id.
pub(super) const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");

/// The shortest time between two attempts to reopen the database.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two attempts.
const LAST_PAUSE: Duration = Duration::from_secs(60);

pub(super) struct DatabaseFile {
    path: PathBuf,
    /// The size of the database's own memory cache, in bytes.
    cache: usize,
    name: String,
    /// `None` while the database is being reopened, and after that failed.
    database: RwLock<Option<Database>>,
    /// Whether an operation has failed since the database was opened.
    failed: AtomicBool,
    retry: Mutex<Retry>,
}

/// When the next attempt to reopen may be made.
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

    /// The index's name: random, made when the file was created.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        self.within(|database| work(&database.begin_read().map_err(storage)?))
    }

    /// Changes the database. The change is visible at once and durable after the next flush.
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
        // An operation during a reopen fails at once instead of waiting, because opening reads the whole file.
        let database = self.database.try_read();
        let database = database.as_ref().and_then(|database| database.as_ref());
        let Some(database) = database else {
            return Err(IndexError::Storage("not open after a disk error".into()));
        };
        let done = work(database);
        if matches!(done, Err(IndexError::Storage(_))) {
            self.failed.store(true, Ordering::Relaxed);
        }
        done
    }

    /// Reopens the database if an operation has failed and the pause since the last attempt is over. Returns whether it
    /// was reopened; the changes since the last flush are then lost.
    pub(super) fn reopen(&self) -> Result<bool, IndexError> {
        let mut retry = self.retry.lock();
        let now = Instant::now();
        if !self.failed.load(Ordering::Relaxed) || now < retry.from {
            return Ok(false);
        }
        retry.from = now + retry.pause;
        retry.pause = (2 * retry.pause).min(LAST_PAUSE);
        let mut database = self.database.write();
        // If a commit still succeeds, the database works and no change need be lost.
        if database.as_ref().is_some_and(|database| commit(database).is_ok()) {
            self.failed.store(false, Ordering::Relaxed);
            return Ok(false);
        }
        // The old database holds the file's lock.
        *database = None;
        *database = Some(open_database(&self.path, self.cache)?.0);
        drop(database);
        self.failed.store(false, Ordering::Relaxed);
        Ok(true)
    }
}

fn commit(database: &Database) -> Result<(), IndexError> {
    let mut transaction = database.begin_write().map_err(storage)?;
    // With this, opening after a kill need not read the whole file.
    transaction.set_quick_repair(true);
    transaction.commit().map_err(storage)
}

fn open_database(path: &Path, cache: usize) -> Result<(Database, String), IndexError> {
    let shown = path.display().to_string();
    let failed = |why: String| IndexError::Open { path: shown.clone(), why };
    make_private(path).map_err(|why| failed(why.to_string()))?;
    // Without the check the database would trust an altered file.
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
            "the cache's index has an earlier format: it starts empty"
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

/// Creates the file readable by its owner only, because it contains prompts.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    drop(options.open(path)?);
    crate::private_files::restrict(path, 0o600);
    Ok(())
}

/// Removes entries.
pub(super) fn delete<'a>(
    transaction: &WriteTransaction,
    ids: impl IntoIterator<Item = &'a str>,
) -> Result<(), IndexError> {
    let mut entries = transaction.open_table(ENTRIES).map_err(storage)?;
    for id in ids {
        entries.remove(id).map_err(storage)?;
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
