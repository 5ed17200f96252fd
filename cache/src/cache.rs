//! The cache as the service uses it.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use object_store::ObjectStore;
use parking_lot::RwLock;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::closing::{Closing, leave, wait_for_leaving};
use crate::config::{CacheConfig, CacheError, cannot_open, local_objects, remote_objects};
use crate::entry::{Compatibility, Entry, EntryId, Part, Scope};
use crate::eviction::EvictionPolicy;
use crate::index::{EmbeddedIndex, Filter, Holding, IndexError, Neighbour, PromptIndex, SearchFilter};
use crate::ledger::Budget;
use crate::picture::NewPicture;
use crate::policy::{Decision, NeighbourCounts, Query, ReusePolicy};
use crate::private_files;
use crate::shared::{Shared, Uses};
use crate::stats::{Counters, Stats};
use crate::store::StateStore;
use crate::writer::{Reply, Work, Writer};

/// Orders, other than pictures to insert, that may wait for the writer.
const ORDERS: usize = 1024;
/// States fetched ahead of their use at one time.
const PREFETCHES: usize = 32;

/// What a look-up found.
#[derive(Debug, Clone)]
pub struct LookUp {
    /// What the request starts from.
    pub decision: Decision,
    /// What was near, nearest first.
    pub neighbours: Vec<Neighbour>,
}

impl LookUp {
    /// The neighbour that the decision names; `None` for a miss.
    pub fn source(&self) -> Option<&Neighbour> {
        let id = self.decision.entry()?;
        self.neighbours.iter().find(|near| near.entry.id == *id)
    }
}

/// The cache of pictures and their denoising states. Clones are the same cache.
///
/// A gateway asks it twice. First [`Cache::exact_picture`] with the specification's hash, before any embedding: a stored
/// picture that is good enough for the request's terms is the answer. Then [`Cache::look_up`] with the prompt's
/// embedding, on a thread that may block: a [`Decision::Semantic`] is answered with [`Cache::exact_picture`] again, of
/// the scope and specification of [`LookUp::source`]; a [`Decision::State`] travels by its key to a worker, which reads
/// it with [`Cache::state`]. What is served is counted with [`Cache::used`]. A worker hands every finished picture to
/// [`Cache::insert`], whatever its plan was. All of this may fail: to a request that is a miss.
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
/// When the last clone goes, it writes what is queued, for [`CacheConfig::grace`] at most, and releases its directory.
/// Within a tokio runtime that happens in the background, and the next [`Cache::open`] of the directory in this process
/// waits for it; a process that is about to end calls [`Cache::close`] first.
#[derive(Clone)]
pub struct Cache(pub(crate) Arc<Open>);

pub(crate) struct Open {
    shared: Arc<Shared>,
    /// `None` only while being dropped.
    queue: Option<mpsc::Sender<Work>>,
    places: Arc<Semaphore>,
    queue_length: usize,
    pub(crate) prefetches: Arc<Semaphore>,
    grace: Duration,
    dir: PathBuf,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.closing.begin(self.grace);
        self.queue = None;
        let Some(writer) = self.writer.take() else { return };
        if tokio::runtime::Handle::try_current().is_err() {
            let _ = writer.join();
            return;
        }
        let shared = Arc::clone(&self.shared);
        leave(std::mem::take(&mut self.dir), move || {
            let _ = writer.join();
            drop(shared);
        });
    }
}

impl Cache {
    /// Opens the cache, or creates it. Reads the whole index, about a second for 100,000 entries, and waits for
    /// an object store to say whose its prefix is: call it from a thread that may block.
    ///
    /// # Errors
    /// The directory is in use by another process or cannot be used, the index is damaged or of another
    /// version, the URL is not understood, the states under it are another cache's.
    pub fn open(config: CacheConfig) -> Result<Self, CacheError> {
        private_files::create_directory(&config.dir).map_err(|why| cannot_open(config.dir.display(), why))?;
        wait_for_leaving(&real(&config.dir));
        let index = EmbeddedIndex::open(&config.dir.join("index.redb"), &config.index)?;
        let (objects, prefix) = match &config.states {
            Some(url) => remote_objects(url)?,
            // Its index is locked, and beside it: nobody else can be here.
            None => {
                let objects = local_objects(&config.dir.join("states"))?;
                return Self::start(config, Arc::new(index), objects, Default::default(), true);
            }
        };
        Self::with(config, Arc::new(index), objects, prefix)
    }

    /// A cache over an index and an object store of the caller's; `dir` and `states` are not looked at.
    /// `prefix` is marked as the index's. A store that does not answer is no error: nothing is written or
    /// swept until it is known whose the prefix is.
    ///
    /// # Errors
    /// The writer cannot be started, or the states under `prefix` are another index's, or nobody's.
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
        owned: bool,
    ) -> Result<Self, CacheError> {
        let shared = Arc::new(Shared {
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
            store_prompt_text: config.store_prompt_text,
            counters: Counters::default(),
            closing: Closing::new(),
            uses: Uses::default(),
        });
        let (queue, work) = mpsc::channel(config.queue + ORDERS);
        let (opened, may_open) = std::sync::mpsc::channel();
        let writer = Writer::new(Arc::clone(&shared), owned);
        let writer = start_writer(writer, work, opened).map_err(|why| CacheError::Open {
            place: config.dir.display().to_string(),
            why: why.to_string(),
        })?;
        if let Ok(Err(refused)) = may_open.recv() {
            drop(queue);
            let _ = writer.join();
            return Err(refused);
        }
        Ok(Self(Arc::new(Open {
            shared,
            queue: Some(queue),
            places: Arc::new(Semaphore::new(config.queue)),
            queue_length: config.queue,
            prefetches: Arc::new(Semaphore::new(PREFETCHES)),
            grace: config.grace,
            dir: real(&config.dir),
            writer: Some(writer),
        })))
    }

    /// Looks for something that the request can start from: what `policy` makes of the nearest entries painted with a
    /// guidance scale in the range. It may block, on a scan of a large index or on the disk: call it from a thread that
    /// may. The exact picture is not looked for: that is [`Self::exact`], which needs no embedding and comes first.
    ///
    /// # Errors
    /// The index failed, which is counted, or the embedding is impossible.
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
        neighbours.retain(|near| !self.shared().is_expired(near.entry.created));
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
            n => self.counted(self.shared().index.search(filter, query.embedding, n).await),
        }
    }

    /// Counts that a state was resumed or a picture served: eviction goes by it. Waits for nothing; the index has it
    /// with the next flush.
    pub fn used(&self, id: &EntryId, part: Part) {
        self.shared().uses.add(id, part);
    }

    /// Has a picture kept: its file and states are written in the background, before its entry. Waits for nothing:
    /// `false` where it is not kept, because too many wait already (counted) or because it cannot be (counted as a
    /// failure).
    ///
    /// A scope keeps one picture of each specification. The new one takes the place of a stored one where it is
    /// expected to be better or [`NewPicture::refresh`] is set; otherwise it is dropped, and counted in
    /// [`Stats::duplicates`]. At every moment [`Self::exact`] finds one of the two; the older one's files are removed
    /// after it was replaced.
    pub fn insert(&self, picture: NewPicture) -> bool {
        let picture = match picture.into_picture() {
            Ok(picture) => picture,
            Err(error) => {
                tracing::warn!(%error, "a picture is not kept");
                self.shared().counters.failures.add(1);
                return false;
            }
        };
        let permit = Arc::clone(&self.0.places).try_acquire_owned().ok();
        let closed = self.shared().closing.has_begun();
        let queued = permit.is_some() && !closed && self.order(Work::Insert(Box::new(picture), permit, None));
        if !queued {
            self.shared().counters.insert_drops.add(1);
        }
        queued
    }

    /// Removes the entries that `filter` means, with their files, and returns how many these were. Pictures
    /// that were queued before are removed, too.
    ///
    /// # Errors
    /// Index or store fails; what was removed until then stays removed.
    pub async fn purge(&self, filter: Filter) -> Result<usize, CacheError> {
        self.ask(|reply| Work::Purge(filter, reply)).await
    }

    /// Removes an entry with its files. Whether there was one.
    ///
    /// # Errors
    /// Index or store fails.
    pub async fn remove(&self, id: &EntryId) -> Result<bool, CacheError> {
        self.ask(|reply| Work::Remove(id.clone(), reply)).await
    }

    /// Up to `limit` entries that `filter` means, in the order of their names, from the one after `after`.
    ///
    /// # Errors
    /// The index fails.
    pub async fn entries(
        &self,
        filter: &Filter,
        after: Option<&EntryId>,
        limit: usize,
    ) -> Result<Vec<Entry>, CacheError> {
        self.counted(self.shared().index.scan(filter, after, limit).await)
    }

    /// The entry of a name.
    ///
    /// # Errors
    /// The index fails.
    pub async fn entry(&self, id: &EntryId) -> Result<Option<Entry>, CacheError> {
        self.counted(self.shared().index.get(id).await)
    }

    /// The name of the policy that evicts.
    pub fn eviction(&self) -> &'static str {
        self.shared().eviction.read().name()
    }

    /// Evicts by another policy from now on.
    pub fn set_eviction(&self, policy: Arc<dyn EvictionPolicy>) {
        *self.shared().eviction.write() = policy;
    }

    /// How the cache is doing.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared().counters;
        Stats {
            entries: counters.entries.get(),
            pictures: counters.pictures.get(),
            bytes: counters.bytes.get(),
            memory_bytes: self.shared().store.memory_bytes() as u64,
            picture_memory_bytes: self.shared().store.picture_memory_bytes() as u64,
            queued: (self.0.queue_length - self.0.places.available_permits()) as u64,
            insert_drops: counters.insert_drops.get(),
            duplicates: counters.duplicates.get(),
            replacements: counters.replacements.get(),
            evictions: counters.evictions.get(),
            failures: counters.failures.get(),
            index: self.shared().index.stats(),
        }
    }

    /// Waits until all that was asked for so far is done and durable.
    ///
    /// # Errors
    /// Index or store fails.
    pub async fn flush(&self) -> Result<(), CacheError> {
        self.ask(Work::Flush).await
    }

    /// Takes no more pictures, writes what is queued, for [`CacheConfig::grace`] at most, and makes it durable.
    /// Afterwards nothing is changed any more. The directory is released when the last clone goes. Must be
    /// called within a tokio runtime with timers.
    ///
    /// # Errors
    /// Index or store fails; [`CacheError::Full`] where not all was written in time.
    pub async fn close(&self) -> Result<(), CacheError> {
        let closing = &self.shared().closing;
        closing.begin(self.0.grace);
        tokio::select! {
            done = self.flush() => match done {
                Err(CacheError::Closed) => Err(CacheError::Full),
                done => done,
            },
            () = closing.deadline() => Err(CacheError::Full),
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Whether the writer has taken an order that nobody waits for.
    pub(crate) fn order(&self, work: Work) -> bool {
        self.0.queue.as_ref().is_some_and(|queue| queue.try_send(work).is_ok())
    }

    /// Waits in the queue, and for the answer.
    pub(crate) async fn ask<T>(&self, work: impl FnOnce(Reply<T>) -> Work) -> Result<T, CacheError> {
        let (reply, answer) = oneshot::channel();
        let queue = self.0.queue.as_ref().ok_or(CacheError::Closed)?;
        queue.send(work(reply)).await.map_err(|_| CacheError::Closed)?;
        answer.await.map_err(|_| CacheError::Closed)?
    }

    pub(crate) fn counted<T>(&self, done: Result<T, IndexError>) -> Result<T, CacheError> {
        if done.is_err() {
            self.shared().counters.failures.add(1);
        }
        Ok(done?)
    }
}

/// One spelling for a directory, where it exists.
fn real(dir: &std::path::Path) -> PathBuf {
    std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned())
}

fn start_writer(
    writer: Writer,
    work: mpsc::Receiver<Work>,
    opened: std::sync::mpsc::Sender<Result<(), CacheError>>,
) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("cache-writer".into()).spawn(move || {
        runtime.block_on(writer.run(work, opened));
        // A hanging file system must not keep the process from ending.
        runtime.shutdown_background();
    })
}
