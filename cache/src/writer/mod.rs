//! The writer: the one thread that changes the cache. Requests send it commands through a bounded queue and do not wait.
//!
//! The order of its writes keeps the cache consistent when the process is killed. States and picture are written before
//! the entry that names them. When an entry is removed, the index is changed and flushed first, and the files are removed
//! after that.

mod changes;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::accounting::Accounting;
use crate::config::CacheError;
use crate::core::CacheCore;
use crate::entry::{Entry, EntryId, PartKey};
use crate::index::Filter;
use crate::pending_picture::PendingPicture;
use crate::store::{PrefixOwner, StateError};

/// The longest time until a change is durable.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// How often entries older than the lifetime are removed.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// Entries read from the index at once.
const PAGE: usize = 256;
/// The most files to remove that are remembered. The sweep at the next opening removes the rest.
const MAX_FILES_TO_REMOVE: usize = 100_000;

pub(crate) type CommandReply<T> = oneshot::Sender<Result<T, CacheError>>;

/// A command to the writer.
pub(crate) enum Command {
    /// Store a picture. The permit is its slot in the queue. Replies whether the picture was stored.
    Insert(Box<PendingPicture>, Option<OwnedSemaphorePermit>, Option<CommandReply<bool>>),
    /// Remove a state or a picture's file that cannot be used.
    Drop(PartKey),
    Remove(EntryId, CommandReply<bool>),
    Purge(Filter, CommandReply<usize>),
    /// Make the effects of all earlier commands durable.
    Flush(CommandReply<()>),
}

pub(crate) struct Writer {
    core: Arc<CacheCore>,
    accounting: Accounting,
    /// Files to remove once the removal of their entries from the index is durable.
    files_to_remove: Vec<PartKey>,
    /// Whether the store's prefix is known to be this index's. Until then no file is written or removed.
    owns_prefix: bool,
    /// The index's recoveries when the accounting was built.
    recoveries: u64,
}

impl Writer {
    pub(crate) fn new(core: Arc<CacheCore>, owns_prefix: bool) -> Self {
        let accounting = Accounting::default();
        Self { core, accounting, files_to_remove: Vec::new(), owns_prefix, recoveries: 0 }
    }

    /// Sends on `opened` whether the cache may open. Then executes commands until all senders are dropped or the
    /// shutdown's deadline passes.
    pub(crate) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Command>,
        opened: std::sync::mpsc::Sender<Result<(), CacheError>>,
    ) {
        match self.claim_prefix().await {
            Err(refused @ CacheError::Open { .. }) => {
                let _ = opened.send(Err(refused));
                return;
            }
            Err(error) => self.failed(&error),
            Ok(()) => {}
        }
        let _ = opened.send(Ok(()));
        let core = Arc::clone(&self.core);
        // The index is flushed by a task of its own, because commands may wait for a slow store.
        let flusher = tokio::spawn(keep_flushing(Arc::clone(&core)));
        // An interrupted command leaves at most files that no entry names, as a killed process does.
        tokio::select! {
            () = self.serve(&mut queue) => {}
            () = core.shutdown.over() => {}
        }
        flusher.abort();
        queue.close();
        while let Ok(command) = queue.try_recv() {
            if matches!(command, Command::Insert(..)) {
                core.counters.insert_drops.add(1);
            }
        }
        if let Err(error) = core.index.flush().await {
            tracing::warn!(%error, "the index could not be flushed at the end");
        }
    }

    async fn serve(&mut self, queue: &mut mpsc::Receiver<Command>) {
        if let Err(error) = self.rebuild_accounting().await {
            self.failed(&error);
        }
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        let mut expire = tokio::time::interval(EXPIRE_EVERY);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        expire.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = flush.tick() => self.flush_or_count().await,
                _ = expire.tick() => self.expire().await,
                command = queue.recv() => match command {
                    Some(command) => self.execute(command).await,
                    None => break,
                },
            }
        }
        self.flush_or_count().await;
    }

    /// Makes this index the owner of the store's prefix, or fails with [`CacheError::Open`].
    pub(super) async fn claim_prefix(&mut self) -> Result<(), CacheError> {
        if self.owns_prefix {
            return Ok(());
        }
        let store = &self.core.store;
        let why = match store.claim(&self.core.index.name()).await? {
            PrefixOwner::ThisIndex => {
                self.owns_prefix = true;
                return Ok(());
            }
            PrefixOwner::OtherIndex(name) => format!(
                "holds the files of another cache, whose index is named {name}; give this one a prefix of \
                 its own, and move what it should have with an export and an import"
            ),
            PrefixOwner::Unknown => {
                "holds files, but no object \"owner\" that says which cache's; give this one an \
                               empty prefix, or remove the files"
                    .to_owned()
            }
        };
        Err(CacheError::Open { place: store.location(), why })
    }

    /// Builds the accounting from the index, and removes files that no entry names.
    async fn rebuild_accounting(&mut self) -> Result<(), CacheError> {
        self.recoveries = self.index_recoveries();
        self.accounting = Accounting::default();
        // The sweep below removes these files, unless a recovery of the index has restored their entries.
        self.files_to_remove.clear();
        let mut after = None;
        loop {
            let page = self.core.index.scan(&Filter::default(), after.as_ref(), PAGE).await?;
            page.iter().for_each(|entry| self.accounting.put(entry));
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            if !self.core.store_prompt_text {
                self.remove_prompts(page).await?;
            }
            tokio::task::yield_now().await; // lets the shutdown's deadline interrupt the loop
        }
        self.publish();
        if self.owns_prefix {
            self.core.store.sweep(|id, part| self.accounting.holds(id, part)).await?;
        }
        self.evict().await;
        Ok(())
    }

    /// Removes the prompts of entries that were stored when prompts were allowed.
    async fn remove_prompts(&self, page: Vec<Entry>) -> Result<(), CacheError> {
        for entry in page.into_iter().filter(|entry| entry.prompt.is_some()) {
            self.core.index.upsert(Entry { prompt: None, ..entry }).await?;
        }
        Ok(())
    }

    async fn execute(&mut self, command: Command) {
        match command {
            Command::Insert(picture, permit, reply) => {
                let done = if self.core.shutdown.is_over() {
                    Err(CacheError::Full)
                } else {
                    self.insert(*picture).await
                };
                drop(permit);
                self.evict().await;
                self.answer(reply, done);
            }
            Command::Drop(key) => {
                let done = self.drop_part(&key).await;
                self.answer(None, done);
            }
            Command::Remove(id, reply) => {
                let done = self.remove(&id).await;
                let flushed = self.flush().await;
                self.answer(Some(reply), done.and_then(|removed| flushed.map(|()| removed)));
            }
            Command::Purge(filter, reply) => {
                let done = self.purge(&filter).await;
                let flushed = self.flush().await;
                self.answer(Some(reply), done.and_then(|purged| flushed.map(|()| purged)));
            }
            Command::Flush(reply) => {
                self.evict().await;
                let done = self.flush().await;
                self.answer(Some(reply), done);
            }
        }
        self.publish();
    }

    async fn flush(&mut self) -> Result<(), CacheError> {
        self.count_uses().await;
        self.core.index.flush().await?;
        if self.index_recoveries() != self.recoveries {
            self.rebuild_accounting().await?;
        }
        let mut failed = None;
        for key in std::mem::take(&mut self.files_to_remove) {
            // After one timeout the other removals would only time out too.
            if matches!(failed, Some(StateError::Timeout)) {
                self.files_to_remove.push(key);
                continue;
            }
            match self.core.store.remove(&key.entry, key.part).await {
                Ok(()) | Err(StateError::Missing) => {}
                Err(error) => {
                    self.files_to_remove.push(key);
                    failed = Some(error);
                }
            }
        }
        // The next flush tries the remaining files again.
        self.files_to_remove.truncate(MAX_FILES_TO_REMOVE);
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// The number of recoveries in which the index has removed or restored entries by itself.
    fn index_recoveries(&self) -> u64 {
        let stats = self.core.index.stats();
        stats.damaged + stats.reopened
    }

    async fn flush_or_count(&mut self) {
        if let Err(error) = self.flush().await {
            self.failed(&error);
        }
    }

    fn answer<T>(&self, reply: Option<CommandReply<T>>, done: Result<T, CacheError>) {
        self.publish();
        match &done {
            Err(CacheError::Full) => self.core.counters.insert_drops.add(1),
            Err(error) => self.failed(error),
            Ok(_) => {}
        }
        if let Some(reply) = reply {
            // The receiver may have been dropped.
            let _ = reply.send(done);
        }
    }

    fn failed(&self, error: &CacheError) {
        self.core.counters.failures.add(1);
        tracing::warn!(%error, "the cache's writer failed");
    }

    fn publish(&self) {
        self.core.counters.bytes.set(self.accounting.bytes());
        self.core.counters.entries.set(self.accounting.entries() as u64);
        self.core.counters.pictures.set(self.accounting.pictures() as u64);
    }
}

/// Flushes the index regularly. Failures are reported by the writer's own flush.
async fn keep_flushing(core: Arc<CacheCore>) {
    loop {
        tokio::time::sleep(FLUSH_EVERY).await;
        if let Err(error) = core.index.flush().await {
            tracing::debug!(%error, "the index could not be flushed");
        }
    }
}
