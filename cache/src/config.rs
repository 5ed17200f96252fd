//! How a cache is opened, and what can go wrong in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::eviction::{EvictionPolicy, Lcbfu};
use crate::index::{IndexError, IndexOptions};
use crate::private_files;
use crate::store::StateError;

/// What can go wrong in the cache. To a request all of it is a miss.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A state or a picture's file cannot be used, or the store failed.
    #[error("stored file: {0}")]
    State(#[from] StateError),
    /// The cache cannot be opened where the configuration says.
    #[error("{place}: {why}")]
    Open {
        /// The directory or URL.
        place: String,
        /// Why not.
        why: String,
    },
    /// The queue of the writer is full, or the cache is closing.
    #[error("the cache's writer is not keeping up")]
    Full,
    /// The writer is gone.
    #[error("the cache is closed")]
    Closed,
    /// A picture to insert that cannot be.
    #[error("picture: {0}")]
    Picture(&'static str),
}

/// How a cache is opened.
#[derive(Clone)]
pub struct CacheConfig {
    /// Directory of the index, and of states and pictures unless `states` says otherwise. Created if missing.
    pub dir: PathBuf,
    /// URL of an object store for states and pictures: `s3://bucket/prefix`, `gs://…`, `az://…` where the crate is
    /// built with them. Credentials come from the environment, as the store's own tools read them. A prefix
    /// belongs to one cache, which marks it.
    pub states: Option<String>,
    /// Bytes of states kept in memory.
    pub memory_bytes: usize,
    /// Bytes of pictures' files kept in memory.
    pub picture_memory_bytes: usize,
    /// Bytes of states and pictures kept in the store.
    pub max_bytes: u64,
    /// Entries kept.
    pub max_entries: usize,
    /// How long after it was painted an entry is kept.
    pub lifetime: Option<Duration>,
    /// Pictures that may wait to be written; more are dropped.
    pub queue: usize,
    /// How long one operation of the store may take.
    pub time_limit: Duration,
    /// How long a cache that is closed goes on writing what is queued.
    pub grace: Duration,
    /// What goes first when the cache is full.
    pub eviction: Arc<dyn EvictionPolicy>,
    /// Whether prompts may be kept as text, those of imported entries among them.
    pub store_prompt_text: bool,
    /// How the index works.
    pub index: IndexOptions,
}

impl CacheConfig {
    /// A cache in a directory: 256 MiB of states and 64 MiB of pictures in memory, 10 GiB and 100,000 entries at most,
    /// kept for ever, LCBFU.
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
        }
    }
}

pub(crate) fn local_objects(dir: &Path) -> Result<Arc<dyn ObjectStore>, CacheError> {
    private_files::create_directory(dir).map_err(|why| cannot_open(dir.display(), why))?;
    private_files::restrict(dir, 0o700);
    remove_unfinished(dir).map_err(|why| cannot_open(dir.display(), why))?;
    let objects = LocalFileSystem::new_with_prefix(dir).map_err(|why| cannot_open(dir.display(), why))?;
    Ok(Arc::new(objects.with_automatic_cleanup(true)))
}

/// Removes what writes that a killed process had begun have left: the object store's own listing hides it.
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
