//! The cache: its public handle, except for reading (`read.rs`) and archives (`archive.rs`).

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use object_store::ObjectStore;
use parking_lot::RwLock;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::accounting::Budget;
use crate::config::{CacheConfig, CacheError, cannot_open, local_objects, remote_objects};
use crate::core::CacheCore;
use crate::entry::{Compatibility, Entry, EntryId, Part, Scope};
use crate::eviction::EvictionPolicy;
use crate::index::{EmbeddedIndex, Filter, Holding, IndexError, Neighbour, PromptIndex, SearchFilter};
use crate::pending_picture::NewPicture;
use crate::policy::{Decision, NeighbourCounts, Query, ReusePolicy};
use crate::private_files;
use crate::shutdown::{Shutdown, run_in_background, wait_for_background};
use crate::stats::{Counters, Stats};
use crate::store::StateStore;
use crate::uses::PendingUses;
use crate::writer::{Command, CommandReply, Writer};

/// The most commands in the writer's queue, in addition to pictures to insert.
const MAX_COMMANDS: usize = 1024;
/// The most states that are prefetched at the same time.
const MAX_PREFETCHES: usize = 32;

/// The result of a look-up.
#[derive(Debug, Clone)]
pub struct LookUp {
    /// What the policy decided that the request starts from.
    pub decision: Decision,
    /// The entries that the policy decided on, nearest first.
    pub neighbours: Vec<Neighbour>,
}

impl LookUp {
    /// The neighbour that the decision names; `None` for a miss.
    pub fn source(&self) -> Option<&Neighbour> {
        let id = self.decision.entry()?;
        self.neighbours.iter().find(|near| near.entry.id == *id)
    }
}

/// The cache of pictures and their denoising states. Clones share one cache.
///
/// A gateway uses it in two steps:
/// 1. [`Cache::exact_picture`] with the specification's hash, before the prompt is embedded. If it returns a picture, that
///    is the answer.
/// 2. [`Cache::look_up`] with the prompt's embedding, on a blocking thread. A [`Decision::Semantic`] is answered with
///    [`Cache::exact_picture`] of the scope and specification of [`LookUp::source`]. The entry and timestep of a
///    [`Decision::State`] are sent to a worker, which reads the state with [`Cache::state`].
///
/// [`Cache::used`] counts what was served. A worker passes every finished picture to [`Cache::insert`], whatever its plan
/// was. Any of these calls may fail; for the request a failure is a miss.
///
/// ```no_run
/// # use pentimento_cache::*;
/// # async fn answer(cache: &Cache, scope: &Scope, hash: &SpecificationHash, floor: f32) -> Option<bytes::Bytes> {
/// let found = cache.exact_picture(scope, hash, |hit| hit.reaches(floor)).await.ok()??;
/// cache.used(&found.hit.entry, Part::Picture);
/// Some(found.file)
/// # }
/// ```
///
/// When the last clone is dropped, the cache writes what is queued, for at most [`CacheConfig::grace`], and releases its
/// directory. Within a tokio runtime this happens in the background, and the next [`Cache::open`] of the directory in this
/// process waits for it. A process that is about to end must call [`Cache::close`] first.
#[derive(Clone)]
pub struct Cache(pub(crate) Arc<OpenCache>);

/// The state behind all clones of a [`Cache`].
pub(crate) struct OpenCache {
    core: Arc<CacheCore>,
    /// `None` only while being dropped.
    queue: Option<mpsc::Sender<Command>>,
    /// The free slots of the queue for pictures to insert.
    insert_slots: Arc<Semaphore>,
    queue_length: usize,
    pub(crate) prefetches: Arc<Semaphore>,
    grace: Duration,
    dir: PathBuf,
    writer: Option<JoinHandle<()>>,
}

impl Drop for OpenCache {
    fn drop(&mut self) {
        self.core.shutdown.begin(self.grace);
        self.queue = None;
        let Some(writer) = self.writer.take() else { return };
        if tokio::runtime::Handle::try_current().is_err() {
            let _ = writer.join();
            return;
        }
        let core = Arc::clone(&self.core);
        run_in_background(std::mem::take(&mut self.dir), move || {
            let _ = writer.join();
            drop(core);
        });
    }
}

impl Cache {
    /// Opens or creates a cache. This reads the whole index, which takes about a second for 100,000 entries, and checks the
    /// ownership of the object store's prefix. It blocks.
    ///
    /// # Errors
    /// The directory is in use by another process or cannot be used, the index is damaged or of a later version, the URL
    /// is not valid, or the files under it belong to another cache.
    pub fn open(config: CacheConfig) -> Result<Self, CacheError> {
        private_files::create_directory(&config.dir).map_err(|why| cannot_open(config.dir.display(), why))?;
        wait_for_background(&canonical(&config.dir));
        let index = EmbeddedIndex::open(&config.dir.join("index.redb"), &config.index)?;
        let (objects, prefix) = match &config.states {
            Some(url) => remote_objects(url)?,
            // The index in the same directory is locked, so no other process uses these files.
            None => {
                let objects = local_objects(&config.dir.join("states"))?;
                return Self::start(config, Arc::new(index), objects, Default::default(), true);
            }
        };
        Self::with(config, Arc::new(index), objects, prefix)
    }

    /// Opens a cache over an index and an object store that the caller provides; `config.dir` and `config.states` are not
    /// used. The index becomes the owner of `prefix`. A store that does not answer is no error: then no file is written or
    /// removed until it answers.
    ///
    /// # Errors
    /// The writer cannot be started, or the files under `prefix` belong to another index or to an unknown one.
    pub fn with(
        config: CacheConfig,
        index: Arc<dyn PromptIndex>,
        objects: Arc<dyn ObjectStore>,
        prefix: object_store::path::Path,
    ) -> Result<Self, CacheError> {
        Self::start(config, index, objects, prefix, false)
    }

    fn start(
        config: CacheConfig,
        index: Arc<dyn PromptIndex>,
        objects: Arc<dyn ObjectStore>,
        prefix: object_store::path::Path,
        owns_prefix: bool,
    ) -> Result<Self, CacheError> {
        let core = Arc::new(CacheCore {
            index,
            store: StateStore::new(
                objects,
                prefix,
                config.memory_bytes,
                config.picture_memory_bytes,
                config.time_limit,
            ),
            eviction: RwLock::new(config.eviction),
            budget: Budget { bytes: config.max_bytes, entries: config.max_entries },
            lifetime: config.lifetime,
            clock: config.clock,
            store_prompt_text: config.store_prompt_text,
            counters: Counters::default(),
            shutdown: Shutdown::new(),
            uses: PendingUses::default(),
        });
        let (queue, commands) = mpsc::channel(config.queue + MAX_COMMANDS);
        let (opened, may_open) = std::sync::mpsc::channel();
        let writer = Writer::new(Arc::clone(&core), owns_prefix);
        let writer = start_writer(writer, commands, opened).map_err(|why| CacheError::Open {
            place: config.dir.display().to_string(),
            why: why.to_string(),
        })?;
        if let Ok(Err(refused)) = may_open.recv() {
            drop(queue);
            let _ = writer.join();
            return Err(refused);
        }
        Ok(Self(Arc::new(OpenCache {
            core,
            queue: Some(queue),
            insert_slots: Arc::new(Semaphore::new(config.queue)),
            queue_length: config.queue,
            prefetches: Arc::new(Semaphore::new(MAX_PREFETCHES)),
            grace: config.grace,
            dir: canonical(&config.dir),
            writer: Some(writer),
        })))
    }

    /// Decides by `policy` what a request starts from, given the nearest entries whose guidance scale is in the range. It
    /// may block on a scan of a large index or on the disk, so it must run on a blocking thread. It does not look for the
    /// exact picture: see [`Self::exact`], which needs no embedding and comes first.
    ///
    /// # Errors
    /// The index failed, which is counted, or the embedding is malformed.
    pub async fn look_up(
        &self,
        scope: &Scope,
        compatibility: &Compatibility,
        query: &Query<'_>,
        policy: &dyn ReusePolicy,
        guidance_scale: RangeInclusive<f32>,
    ) -> Result<LookUp, CacheError> {
        let NeighbourCounts { sources, whole_pictures } = policy.neighbours();
        let mut filter = SearchFilter { scope, compatibility, guidance_scale, holding: Holding::Source };
        let mut neighbours = self.search(&filter, query, sources).await?;
        filter.holding = Holding::WholePicture;
        let whole = self.search(&filter, query, whole_pictures).await?;
        let known: HashSet<EntryId> = neighbours.iter().map(|near| near.entry.id.clone()).collect();
        neighbours.extend(whole.into_iter().filter(|near| !known.contains(&near.entry.id)));
        neighbours.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
        neighbours.retain(|near| !self.core().is_expired(near.entry.created));
        Ok(LookUp { decision: policy.decide(query, &neighbours), neighbours })
    }

    async fn search(
        &self,
        filter: &SearchFilter<'_>,
        query: &Query<'_>,
        n: usize,
    ) -> Result<Vec<Neighbour>, CacheError> {
        match n {
            0 => Ok(Vec::new()),
            n => self.counted(self.core().index.search(filter, query.embedding, n).await),
        }
    }

    /// Counts a use of a state or a picture, for eviction. Does not block. The index is updated at the next flush.
    pub fn used(&self, id: &EntryId, part: Part) {
        self.core().uses.add(id, part);
    }

    /// Queues a picture to be stored in the background. Does not block. Returns false if the queue is full or the cache is
    /// closing (counted in [`Stats::insert_drops`]), or if the picture is impossible (counted in [`Stats::failures`]).
    ///
    /// A scope holds one picture of each specification. The new picture replaces a stored one if its expected quality is
    /// higher or [`NewPicture::refresh`] is set. Otherwise it is dropped and counted in [`Stats::duplicates`]. During the
    /// replacement [`Self::exact`] finds one of the two at every moment.
    pub fn insert(&self, picture: NewPicture) -> bool {
        let picture = match picture.into_pending(self.core().clock.now()) {
            Ok(picture) => picture,
            Err(error) => {
                tracing::warn!(%error, "an impossible picture is not stored");
                self.core().counters.failures.add(1);
                return false;
            }
        };
        let slot = Arc::clone(&self.0.insert_slots).try_acquire_owned().ok();
        let closing = self.core().shutdown.has_begun();
        let queued =
            slot.is_some() && !closing && self.try_send(Command::Insert(Box::new(picture), slot, None));
        if !queued {
            self.core().counters.insert_drops.add(1);
        }
        queued
    }

    /// Removes the entries that match `filter`, with their files, and returns their number. This includes pictures that
    /// were queued before the call.
    ///
    /// # Errors
    /// The index or the store fails. Entries removed before the failure stay removed.
    pub async fn purge(&self, filter: Filter) -> Result<usize, CacheError> {
        self.request(|reply| Command::Purge(filter, reply)).await
    }

    /// Removes an entry with its files. Returns whether it existed.
    ///
    /// # Errors
    /// The index or the store fails.
    pub async fn remove(&self, id: &EntryId) -> Result<bool, CacheError> {
        self.request(|reply| Command::Remove(id.clone(), reply)).await
    }

    /// Returns up to `limit` entries that match `filter`, in the order of their ids, starting after `after`.
    ///
    /// # Errors
    /// The index fails.
    pub async fn entries(
        &self,
        filter: &Filter,
        after: Option<&EntryId>,
        limit: usize,
    ) -> Result<Vec<Entry>, CacheError> {
        self.counted(self.core().index.scan(filter, after, limit).await)
    }

    /// Returns the entry of an id.
    ///
    /// # Errors
    /// The index fails.
    pub async fn entry(&self, id: &EntryId) -> Result<Option<Entry>, CacheError> {
        self.counted(self.core().index.get(id).await)
    }

    /// Returns the name of the eviction policy.
    pub fn eviction(&self) -> &'static str {
        self.core().eviction.read().name()
    }

    /// Sets the eviction policy.
    pub fn set_eviction(&self, policy: Arc<dyn EvictionPolicy>) {
        *self.core().eviction.write() = policy;
    }

    /// Returns the cache's counts.
    pub fn stats(&self) -> Stats {
        let counters = &self.core().counters;
        Stats {
            entries: counters.entries.get(),
            pictures: counters.pictures.get(),
            bytes: counters.bytes.get(),
            memory_bytes: self.core().store.memory_bytes() as u64,
            picture_memory_bytes: self.core().store.picture_memory_bytes() as u64,
            queued: (self.0.queue_length - self.0.insert_slots.available_permits()) as u64,
            insert_drops: counters.insert_drops.get(),
            duplicates: counters.duplicates.get(),
            replacements: counters.replacements.get(),
            evictions: counters.evictions.get(),
            failures: counters.failures.get(),
            index: self.core().index.stats(),
        }
    }

    /// Waits until the effects of all earlier calls are durable.
    ///
    /// # Errors
    /// The index or the store fails.
    pub async fn flush(&self) -> Result<(), CacheError> {
        self.request(Command::Flush).await
    }

    /// Stops accepting pictures, writes queued ones for at most [`CacheConfig::grace`], and flushes the index. The directory
    /// is released when the last clone is dropped. Must be called within a tokio runtime with timers.
    ///
    /// # Errors
    /// The index or the store fails, or [`CacheError::Full`] if not all pictures were written in time.
    pub async fn close(&self) -> Result<(), CacheError> {
        let shutdown = &self.core().shutdown;
        shutdown.begin(self.0.grace);
        tokio::select! {
            done = self.flush() => match done {
                Err(CacheError::Closed) => Err(CacheError::Full),
                done => done,
            },
            () = shutdown.over() => Err(CacheError::Full),
        }
    }

    pub(crate) fn core(&self) -> &CacheCore {
        &self.0.core
    }

    /// Sends a command to the writer if its queue has room. Returns whether it was sent.
    pub(crate) fn try_send(&self, command: Command) -> bool {
        self.0.queue.as_ref().is_some_and(|queue| queue.try_send(command).is_ok())
    }

    /// Sends a command to the writer, waiting for room in its queue, and waits for the reply.
    pub(crate) async fn request<T>(
        &self,
        command: impl FnOnce(CommandReply<T>) -> Command,
    ) -> Result<T, CacheError> {
        let (reply, answer) = oneshot::channel();
        let queue = self.0.queue.as_ref().ok_or(CacheError::Closed)?;
        queue.send(command(reply)).await.map_err(|_| CacheError::Closed)?;
        answer.await.map_err(|_| CacheError::Closed)?
    }

    /// Counts a failure of the index.
    pub(crate) fn counted<T>(&self, done: Result<T, IndexError>) -> Result<T, CacheError> {
        if done.is_err() {
            self.core().counters.failures.add(1);
        }
        Ok(done?)
    }
}

/// The canonical path of a directory if it exists, otherwise the path as it is.
fn canonical(dir: &std::path::Path) -> PathBuf {
    std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned())
}

fn start_writer(
    writer: Writer,
    commands: mpsc::Receiver<Command>,
    opened: std::sync::mpsc::Sender<Result<(), CacheError>>,
) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("cache-writer".into()).spawn(move || {
        runtime.block_on(writer.run(commands, opened));
        // Does not wait for blocking tasks: a file system that hangs must not keep the process from ending.
        runtime.shutdown_background();
    })
}
