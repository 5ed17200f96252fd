//! The one thread that changes the cache. Requests hand it work through a bounded queue and go on.
//!
//! The order of its writes is what keeps a killed process's cache whole: states and picture before the entry that names
//! them; and when an entry goes, the index first, made durable, and its files after.

mod changes;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::config::CacheError;
use crate::entry::{Entry, EntryId};
use crate::index::Filter;
use crate::ledger::{Ledger, Victim};
use crate::picture::Picture;
use crate::shared::Shared;
use crate::store::{PrefixOwner, StateError};

/// Changes become durable this long after they are made, at most.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// How often entries are looked through for those that are too old.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// Entries read from the index at once.
const PAGE: usize = 256;
/// Files whose removal failed that are remembered.
const MOST_DOOMED: usize = 100_000;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, CacheError>>;

/// What the writer is asked to do.
pub(crate) enum Work {
    /// Its place in the queue is free again when the permit drops. Answers whether the picture is kept.
    Insert(Box<Picture>, Option<OwnedSemaphorePermit>, Option<Reply<bool>>),
    /// A state or a picture's file turned out to be unusable.
    Drop(Victim),
    Remove(EntryId, Reply<bool>),
    Purge(Filter, Reply<usize>),
    /// Make all that was asked for before durable.
    Flush(Reply<()>),
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    ledger: Ledger,
    /// Files whose entries are gone from the index, but not durably yet.
    doomed: Vec<Victim>,
    /// Whether the store's prefix is known to be this index's: nothing is written or swept before.
    owned: bool,
    /// Of the index, when stock was taken last.
    upheavals: u64,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, owned: bool) -> Self {
        Self { shared, ledger: Ledger::default(), doomed: Vec::new(), owned, upheavals: 0 }
    }

    /// Works until nobody is left to ask for anything, or the cache has been closed for long enough. Says
    /// first whether the cache may open at all.
    pub(crate) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Work>,
        opened: std::sync::mpsc::Sender<Result<(), CacheError>>,
    ) {
        match self.own().await {
            Err(refused @ CacheError::Open { .. }) => {
                let _ = opened.send(Err(refused));
                return;
            }
            Err(error) => self.failed(&error),
            Ok(()) => {}
        }
        let _ = opened.send(Ok(()));
        let shared = Arc::clone(&self.shared);
        // Beside the work: a slow store must not keep what is inserted from becoming durable.
        let flusher = tokio::spawn(keep_flushing(Arc::clone(&shared)));
        // Work that is given up leaves what a killed process leaves: states that no entry names, at most.
        tokio::select! {
            () = self.serve(&mut queue) => {}
            () = shared.closing.deadline() => {}
        }
        flusher.abort();
        queue.close();
        while let Ok(work) = queue.try_recv() {
            if matches!(work, Work::Insert(..)) {
                shared.counters.insert_drops.add(1);
            }
        }
        if let Err(error) = shared.index.flush().await {
            tracing::warn!(%error, "the index could not be flushed at the end");
        }
    }

    async fn serve(&mut self, queue: &mut mpsc::Receiver<Work>) {
        if let Err(error) = self.take_stock().await {
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
                work = queue.recv() => match work {
                    Some(work) => self.work(work).await,
                    None => break,
                },
            }
        }
        self.flush_or_count().await;
    }

    /// Makes sure that the store's prefix is this index's.
    async fn own(&mut self) -> Result<(), CacheError> {
        if self.owned {
            return Ok(());
        }
        let store = &self.shared.store;
        let why = match store.claim(&self.shared.index.name()).await? {
            PrefixOwner::ThisIndex => {
                self.owned = true;
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

    /// Reads what the index holds, and removes states that no entry names.
    async fn take_stock(&mut self) -> Result<(), CacheError> {
        self.upheavals = self.index_upheavals();
        self.ledger = Ledger::default();
        // The sweep finds them, unless their entries have come back.
        self.doomed.clear();
        let mut after = None;
        loop {
            let page = self.shared.index.scan(&Filter::default(), after.as_ref(), PAGE).await?;
            page.iter().for_each(|entry| self.ledger.put(entry));
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            if !self.shared.store_prompt_text {
                self.forget_prompts(page).await?;
            }
            tokio::task::yield_now().await; // so that a deadline can end it
        }
        self.publish();
        if self.owned {
            self.shared.store.sweep(|id, part| self.ledger.holds(id, part)).await?;
        }
        self.evict().await;
        Ok(())
    }

    /// Of entries that were stored while prompts might be.
    async fn forget_prompts(&self, page: Vec<Entry>) -> Result<(), CacheError> {
        for entry in page.into_iter().filter(|entry| entry.prompt.is_some()) {
            self.shared.index.upsert(Entry { prompt: None, ..entry }).await?;
        }
        Ok(())
    }

    async fn work(&mut self, work: Work) {
        match work {
            Work::Insert(picture, permit, reply) => {
                let done = if self.shared.closing.is_late() {
                    Err(CacheError::Full)
                } else {
                    self.insert(*picture).await
                };
                drop(permit);
                self.evict().await;
                self.answer(reply, done);
            }
            Work::Drop(victim) => {
                let done = self.drop_part(&victim).await;
                self.answer(None, done);
            }
            Work::Remove(id, reply) => {
                let done = self.remove(&id).await;
                let flushed = self.flush().await;
                self.answer(Some(reply), done.and_then(|removed| flushed.map(|()| removed)));
            }
            Work::Purge(filter, reply) => {
                let done = self.purge(&filter).await;
                let flushed = self.flush().await;
                self.answer(Some(reply), done.and_then(|purged| flushed.map(|()| purged)));
            }
            Work::Flush(reply) => {
                self.evict().await;
                let done = self.flush().await;
                self.answer(Some(reply), done);
            }
        }
        self.publish();
    }

    async fn flush(&mut self) -> Result<(), CacheError> {
        self.count_uses().await;
        self.shared.index.flush().await?;
        if self.index_upheavals() != self.upheavals {
            self.take_stock().await?;
        }
        let mut failed = None;
        for victim in std::mem::take(&mut self.doomed) {
            // A store that is gone fails them all: then one attempt is enough.
            if matches!(failed, Some(StateError::Timeout)) {
                self.doomed.push(victim);
                continue;
            }
            match self.shared.store.remove(&victim.entry, victim.part).await {
                Ok(()) | Err(StateError::Missing) => {}
                Err(error) => {
                    self.doomed.push(victim);
                    failed = Some(error);
                }
            }
        }
        // Tried again with the next flush; what is too many is swept when the cache is next opened.
        self.doomed.truncate(MOST_DOOMED);
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// How often entries went, or came back, without the writer's doing.
    fn index_upheavals(&self) -> u64 {
        let stats = self.shared.index.stats();
        stats.damaged + stats.reopened
    }

    async fn flush_or_count(&mut self) {
        if let Err(error) = self.flush().await {
            self.failed(&error);
        }
    }

    fn answer<T>(&self, reply: Option<Reply<T>>, done: Result<T, CacheError>) {
        self.publish();
        match &done {
            Err(CacheError::Full) => self.shared.counters.insert_drops.add(1),
            Err(error) => self.failed(error),
            Ok(_) => {}
        }
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _ = reply.send(done);
        }
    }

    fn failed(&self, error: &CacheError) {
        self.shared.counters.failures.add(1);
        tracing::warn!(%error, "the cache could not do its work");
    }

    fn publish(&self) {
        self.shared.counters.bytes.set(self.ledger.bytes());
        self.shared.counters.entries.set(self.ledger.entries() as u64);
        self.shared.counters.pictures.set(self.ledger.pictures() as u64);
    }
}

/// Makes changes of the index durable in time. Failures show in the writer's own flush.
async fn keep_flushing(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(FLUSH_EVERY).await;
        if let Err(error) = shared.index.flush().await {
            tracing::debug!(%error, "the index could not be flushed");
        }
    }
}
