//! The index: entries by name, by picture and by the nearness of their prompts' embeddings.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod database;
mod embedded;
mod exact;
mod gardener;
mod graph;
mod operations;
mod renewal;
mod saved;
mod shelf;
#[cfg(test)]
mod tests;
mod vectors;

use std::ops::RangeInclusive;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use embedded::{EmbeddedIndex, IndexOptions};
pub use exact::ExactHit;
pub(crate) use exact::reaches;

use crate::entry::{Compatibility, Entry, EntryId, Part, Scope, SpecificationHash};
use crate::policy::Neighbour;

/// Most neighbours that one search returns.
pub const MAX_NEIGHBOURS: usize = 256;
/// Longest embedding that is accepted, in numbers.
pub const MAX_DIMENSIONS: usize = 1 << 16;

/// What can go wrong in an index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Another process, or this one, has the index open.
    #[error("{path}: the cache is in use, by another process or by this one")]
    InUse {
        /// The index file.
        path: String,
    },
    /// The index file has a later format than this program knows.
    #[error(
        "{path}: the index has format version {found}, this program reads {wanted}; use the program that wrote it, or delete the cache directory"
    )]
    Version {
        /// The index file.
        path: String,
        /// Its version.
        found: u32,
        /// This program's version.
        wanted: u32,
    },
    /// The index file cannot be opened.
    #[error("{path}: {why}")]
    Open {
        /// The index file.
        path: String,
        /// The database's words.
        why: String,
    },
    /// The embedding cannot be compared with others.
    #[error("embedding: {0}")]
    Embedding(String),
    /// An entry in the index cannot be read.
    #[error("entry {id}: damaged in the index")]
    Damaged {
        /// Its name.
        id: String,
    },
    /// The database failed at run time: a full disk, for instance.
    #[error("index: {0}")]
    Storage(String),
}

/// Which entries are meant. Every part that is set must agree; the default means all.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Of this namespace.
    pub namespace: Option<String>,
    /// Painted by this model.
    pub model: Option<String>,
    /// Of the prompt with this hash.
    pub prompt_hash: Option<String>,
    /// With this text in the prompt, where prompts are stored.
    pub prompt_contains: Option<String>,
    /// The picture of this specification.
    pub specification: Option<SpecificationHash>,
    /// Painted before this moment, in seconds since 1970.
    pub created_before: Option<u64>,
}

impl Filter {
    /// Whether an entry is meant.
    pub fn matches(&self, entry: &Entry) -> bool {
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.tenant, &entry.scope.tenant)
            && is(&self.namespace, &entry.scope.namespace)
            && is(&self.model, &entry.model)
            && is(&self.prompt_hash, &entry.prompt_hash)
            && self.specification.is_none_or(|wanted| wanted == entry.specification)
            && self.created_before.is_none_or(|moment| entry.created < moment)
            && self
                .prompt_contains
                .as_deref()
                .is_none_or(|part| entry.prompt.as_deref().is_some_and(|prompt| prompt.contains(part)))
    }
}

/// How an index is doing. Counts of events begin at 0 when it is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct IndexStats {
    /// Embeddings in memory.
    pub rows: u64,
    /// Of these, the ones of entries that are gone: they stay until their shelf is rebuilt.
    pub tombstones: u64,
    /// Embeddings that graphs find; the others are scanned.
    pub in_graphs: u64,
    /// Graphs, at most one per scope and compatibility.
    pub graphs: u64,
    /// Of these, the ones that were read from a file instead of built.
    pub graphs_loaded: u64,
    /// Entries thrown out because they could not be read.
    pub damaged: u64,
    /// How often the database was opened again after an error of the disk.
    pub reopened: u64,
}

/// What an entry must hold to be found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Holding {
    /// Any entry will do.
    #[default]
    Anything,
    /// States that other pictures may be resumed from: see [`Entry::is_source`].
    Source,
    /// The whole picture: see [`Entry::is_whole`].
    WholePicture,
}

impl Holding {
    /// Whether an entry holds it.
    pub fn is_held_by(self, entry: &Entry) -> bool {
        match self {
            Self::Anything => true,
            Self::Source => entry.is_source(),
            Self::WholePicture => entry.is_whole(),
        }
    }
}

/// Whom a search may find.
#[derive(Debug, Clone)]
pub struct Sought<'a> {
    /// Entries of this scope,
    pub scope: &'a Scope,
    /// that can serve this,
    pub compatibility: &'a Compatibility,
    /// painted with a guidance scale in this range.
    pub guidance_scale: RangeInclusive<f32>,
    /// Of these, the ones that hold this.
    pub holding: Holding,
}

/// Entries, found by name, by picture and by nearness. Every implementation must pass
/// the `conformance` suite. One writer at a time; any number of readers beside it.
#[async_trait]
pub trait PromptIndex: Send + Sync {
    /// The `n` (at most [`MAX_NEIGHBOURS`]) entries whose embeddings have the greatest cosine with
    /// `embedding`, nearest first. Approximate where there are many.
    ///
    /// # Errors
    /// The embedding is not finite, is zero or has another length than those it is compared with, or the
    /// storage fails.
    async fn search(
        &self,
        sought: &Sought<'_>,
        embedding: &[f32],
        n: usize,
    ) -> Result<Vec<Neighbour>, IndexError>;

    /// The entry of a name.
    async fn get(&self, id: &EntryId) -> Result<Option<Entry>, IndexError>;

    /// The scope's picture of a specification, if all of it is kept. Called on an async thread: it must not block. The
    /// embedded index looks into memory and waits for nothing.
    async fn exact(
        &self,
        scope: &Scope,
        specification: &SpecificationHash,
    ) -> Result<Option<ExactHit>, IndexError>;

    /// Adds an entry, or replaces the one of the same name. A scope holds one entry of each specification: returns
    /// the one of another name that had the same, which is removed. At every moment [`Self::exact`] and
    /// [`Self::search`] find one of the two.
    ///
    /// # Errors
    /// As for [`Self::search`]; then nothing is changed.
    async fn upsert(&self, entry: Entry) -> Result<Option<Entry>, IndexError>;

    /// Removes an entry and returns it.
    async fn remove(&self, id: &EntryId) -> Result<Option<Entry>, IndexError>;

    /// Counts uses of an entry's part at `now`, in seconds since 1970. Whether there was one.
    async fn touch(&self, id: &EntryId, part: Part, uses: u64, now: u64) -> Result<bool, IndexError>;

    /// Up to `limit` entries that `filter` means, in the order of their names, from the one after `after`.
    async fn scan(
        &self,
        filter: &Filter,
        after: Option<&EntryId>,
        limit: usize,
    ) -> Result<Vec<Entry>, IndexError>;

    /// Makes all changes so far durable: they outlive the process. Recovers from an error of the storage where
    /// it can, and throws out what cannot be read. Entries that go that way, instead of by
    /// [`Self::remove`], show in [`IndexStats::damaged`] and [`IndexStats::reopened`]: whoever keeps accounts
    /// must then take them anew.
    async fn flush(&self) -> Result<(), IndexError>;

    /// The index's own name, the same for its whole life and no other's: a store of states says by it whose
    /// it is.
    fn name(&self) -> String;

    /// How it is doing.
    fn stats(&self) -> IndexStats {
        IndexStats::default()
    }
}

/// Refuses an embedding that no cosine can be taken of.
///
/// # Errors
/// [`IndexError::Embedding`]: empty or too long, not finite, or not of length 1.
pub fn check_embedding(embedding: &[f32]) -> Result<(), IndexError> {
    if embedding.is_empty() || embedding.len() > MAX_DIMENSIONS {
        return Err(IndexError::Embedding(format!("has {} numbers", embedding.len())));
    }
    let square: f32 = vectors::dot(embedding, embedding);
    // The sum of squares is finite only where every number is.
    if (square - 1.0).abs() < 0.01 {
        Ok(())
    } else {
        Err(IndexError::Embedding(format!("has length {}, not 1", square.sqrt())))
    }
}
