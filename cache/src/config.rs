//! The configuration of a cache, and its errors.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::clock::EpochClock;
use crate::eviction::{EvictionPolicy, Lcbfu};
use crate::index::{IndexError, IndexOptions};
use crate::private_files;
use crate::store::StateError;

/// An error of the cache. For a request every error is a miss.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A state or a picture's file cannot be used, or the store failed.
    #[error("stored file: {0}")]
    State(#[from] StateError),
    /// The cache cannot be opened at the configured place.
    #[error("{place}: {why}")]
    Open {
        /// The directory or URL.
        place: String,
        /// The reason.
        why: String,
    },
    /// The queue of the writer is full, or the cache is closing.
    #[error("the cache's writer is not keeping up")]
    Full,
    /// The writer is gone.
    #[error("the cache is closed")]
    Closed,
    /// The picture to insert is impossible.
    #[error("picture: {0}")]
    Picture(&'static str),
}

/// The configuration of a cache.
#[derive(Clone)]
pub struct CacheConfig {
    /// The directory of the index, and of states and pictures if `states` is `None`. It is created if missing.
    pub dir: PathBuf,
    /// The URL of an object store for states and pictures: `s3://bucket/prefix`, `gs://…`, `az://…`, each if the crate is
    /// built with its feature. Credentials come from the environment variables that the store's own tools read. A prefix
    /// belongs to one cache.
    pub states: Option<String>,
    /// The most bytes of states in memory.
    pub memory_bytes: usize,
    /// The most bytes of pictures' files in memory.
    pub picture_memory_bytes: usize,
    /// The most bytes of states and pictures in the store.
    pub max_bytes: u64,
    /// The most entries.
    pub max_entries: usize,
    /// How long after its painting an entry expires; `None` for never.
    pub lifetime: Option<Duration>,
    /// The most pictures that may wait to be written. Further ones are dropped.
    pub queue: usize,
    /// The time limit of one operation of the store.
    pub time_limit: Duration,
    /// How long a cache that is being closed goes on writing queued pictures.
    pub grace: Duration,
    /// The policy that chooses what is removed when the cache is full.
    pub eviction: Arc<dyn EvictionPolicy>,
    /// Whether prompts may be stored as text, including those of imported entries.
    pub store_prompt_text: bool,
    /// The settings of the index.
    pub index: IndexOptions,
    /// The clock that entries are dated by.
    pub clock: EpochClock,
}

impl CacheConfig {
    /// The default configuration for a directory: at most 10 GiB and 100,000 entries, which do not expire and are evicted
    /// by LCBFU, with at most 256 MiB of states and 64 MiB of pictures in memory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            states: None,
            memory_bytes: 256 << 20,
            picture_memory_bytes: 64 << 20,
            max_bytes: 10 << 30,
            max_entries: 100_000,
            lifetime: None,
            queue: 64,
            time_limit: Duration::from_secs(10),
            grace: Duration::from_secs(5),
            eviction: Arc::new(Lcbfu),
            store_prompt_text: true,
            index: IndexOptions::default(),
            clock: EpochClock::system(),
        }
    }
}

/// The object store of a local directory, which is created for its owner only.
pub(crate) fn local_objects(dir: &Path) -> Result<Arc<dyn ObjectStore>, CacheError> {
    private_files::create_directory(dir).map_err(|why| cannot_open(dir.display(), why))?;
    private_files::restrict(dir, 0o700);
    remove_unfinished(dir).map_err(|why| cannot_open(dir.display(), why))?;
    let objects = LocalFileSystem::new_with_prefix(dir).map_err(|why| cannot_open(dir.display(), why))?;
    Ok(Arc::new(objects.with_automatic_cleanup(true)))
}

/// Removes the temporary files of writes that a killed process has left. The object store's own listing hides them.
fn remove_unfinished(dir: &Path) -> std::io::Result<()> {
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        if file.file_type()?.is_dir() {
            remove_unfinished(&file.path())?;
        } else {
            let name = file.file_name();
            let name = name.to_string_lossy();
            if [".safetensors#", ".png#"].iter().any(|unfinished| name.contains(unfinished)) {
                std::fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}

/// The object store and prefix of a URL.
pub(crate) fn remote_objects(
    url: &str,
) -> Result<(Arc<dyn ObjectStore>, object_store::path::Path), CacheError> {
    let parsed = url::Url::parse(url).map_err(|why| cannot_open(url, why))?;
    let (objects, prefix) =
        object_store::parse_url_opts(&parsed, std::env::vars()).map_err(|why| cannot_open(url, why))?;
    Ok((objects.into(), prefix))
}

pub(crate) fn cannot_open(place: impl std::fmt::Display, why: impl std::fmt::Display) -> CacheError {
    CacheError::Open { place: place.to_string(), why: why.to_string() }
}
