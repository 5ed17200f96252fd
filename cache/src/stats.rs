//! Counts of what the cache holds and of what happened to it.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::index::IndexStats;

/// Counts of what the cache holds and of what happened to it. Counts of events start at 0 when it is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Entries.
    pub entries: u64,
    /// Of these, the ones whose picture is stored as a file.
    pub pictures: u64,
    /// Bytes of states and pictures in the store.
    pub bytes: u64,
    /// Bytes of states in memory.
    pub memory_bytes: u64,
    /// Bytes of pictures' files in memory.
    pub picture_memory_bytes: u64,
    /// Pictures waiting to be written.
    pub queued: u64,
    /// Pictures not stored because the queue was full or the cache was closing.
    pub insert_drops: u64,
    /// Pictures not stored because one of the same specification, as good or better, was stored already.
    pub duplicates: u64,
    /// Pictures that replaced one of the same specification.
    pub replacements: u64,
    /// States and pictures evicted, and entries expired.
    pub evictions: u64,
    /// Failures of index and store, including damaged states and pictures.
    pub failures: u64,
    /// The index's own counts.
    pub index: IndexStats,
}

#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub entries: Count,
    pub pictures: Count,
    pub bytes: Count,
    pub insert_drops: Count,
    pub duplicates: Count,
    pub replacements: Count,
    pub evictions: Count,
    pub failures: Count,
}
