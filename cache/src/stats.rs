//! Counts of what the cache holds and does.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::index::IndexStats;

/// How the cache is doing. Counts begin at 0 when it is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Entries held.
    pub entries: u64,
    /// Bytes of states in the store.
    pub bytes: u64,
    /// Bytes of states in memory.
    pub memory_bytes: u64,
    /// Pictures waiting to be written.
    pub queued: u64,
    /// Pictures not kept because too many waited.
    pub insert_drops: u64,
    /// States evicted, and entries that were too old.
    pub evictions: u64,
    /// Failures of index and store, damaged states among them.
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
    pub bytes: Count,
    pub insert_drops: Count,
    pub evictions: Count,
    pub failures: Count,
}
