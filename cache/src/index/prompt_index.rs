//! The index's contract: the trait that every index implements, and the types of its calls.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::exact::ExactHit;
use super::vectors;
use crate::entry::{Compatibility, Entry, EntryId, Part, Scope, SpecificationHash};

/// The most neighbours that one search returns.
pub const MAX_NEIGHBOURS: usize = 256;
/// The longest embedding that an index accepts, in numbers.
pub const MAX_DIMENSIONS: usize = 1 << 16;

/// What can go wrong in an index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The index is open already, in another process or in this one.
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
        /// The version of the file.
        found: u32,
        /// The version that this program reads and writes.
        wanted: u32,
    },
    /// The index file cannot be opened.
    #[error("{path}: {why}")]
    Open {
        /// The index file.
        path: String,
        /// The database's message.
        why: String,
    },
    /// The embedding is malformed, or its length differs from the others'.
    #[error("embedding: {0}")]
    Embedding(String),
    /// An entry in the index cannot be read.
    #[error("entry {id}: damaged in the index")]
    Damaged {
        /// The entry's id.
        id: String,
    },
    /// The database failed at run time: a full disk, for instance.
    #[error("index: {0}")]
    Storage(String),
}

/// Selects entries. An entry matches if it agrees with every field that is set; the default matches all entries.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The entry's tenant.
    pub tenant: Option<String>,
    /// The entry's namespace.
    pub namespace: Option<String>,
    /// The model that painted the entry's picture.
    pub model: Option<String>,
    /// The hash of the entry's prompt.
    pub prompt_hash: Option<String>,
    /// A text that the entry's prompt contains. Entries whose prompts are not stored do not match.
    pub prompt_contains: Option<String>,
    /// The entry's specification.
    pub specification: Option<SpecificationHash>,
    /// A time that the entry was painted before, in seconds since 1970.
    pub created_before: Option<u64>,
}

impl Filter {
    /// Whether an entry matches.
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

/// Counts of what an index holds and of what happened to it. Counts of events start at 0 when it is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct IndexStats {
    /// Embeddings in memory.
    pub rows: u64,
    /// Of these, the ones of removed entries. They stay in memory until their partition is rebuilt.
    pub tombstones: u64,
    /// Embeddings in graphs; a search scans the others.
    pub in_graphs: u64,
    /// Graphs; there is at most one per scope and compatibility.
    pub graphs: u64,
    /// Of these, the ones that were read from files instead of built.
    pub graphs_loaded: u64,
    /// Entries removed because they could not be read.
    pub damaged: u64,
    /// How often the database was reopened after a disk error.
    pub reopened: u64,
}

/// What a search requires an entry to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Holding {
    /// Nothing in particular: any entry qualifies.
    #[default]
    Anything,
    /// States that other pictures may resume: see [`Entry::is_source`].
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

/// The entries that a search may return: those that agree with every field.
#[derive(Debug, Clone)]
pub struct SearchFilter<'a> {
    /// The entry's scope.
    pub scope: &'a Scope,
    /// The entry's compatibility.
    pub compatibility: &'a Compatibility,
    /// A range that contains the entry's guidance scale.
    pub guidance_scale: RangeInclusive<f32>,
    /// What the entry must hold.
    pub holding: Holding,
}

/// An entry that a search returned.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// The entry.
    pub entry: Entry,
    /// The cosine of its embedding and the query's.
    pub similarity: f32,
}

/// Stores entries and finds them by id, by specification and by the similarity of their embeddings. Every
/// implementation must pass the `conformance` suite. It has one writer at a time and any number of readers.
#[async_trait]
pub trait PromptIndex: Send + Sync {
    /// Returns the `n` entries, at most [`MAX_NEIGHBOURS`], that pass `filter` and whose embeddings have the greatest
    /// cosine with `embedding`, nearest first. The result may be approximate if there are many entries.
    ///
    /// # Errors
    /// The embedding is malformed or of another length than those it is compared with, or the storage fails.
    async fn search(
        &self,
        filter: &SearchFilter<'_>,
        embedding: &[f32],
        n: usize,
    ) -> Result<Vec<Neighbour>, IndexError>;

    /// Returns the entry of an id.
    async fn get(&self, id: &EntryId) -> Result<Option<Entry>, IndexError>;

    /// Returns the scope's picture of a specification, if the whole picture is stored. Must not block, because it is
    /// called on async threads. The embedded index answers from memory.
    async fn exact(
        &self,
        scope: &Scope,
        specification: &SpecificationHash,
    ) -> Result<Option<ExactHit>, IndexError>;

    /// Adds an entry, or replaces the one of the same id. A scope holds one entry of each specification: an entry of
    /// another id with the same specification is removed and returned. Meanwhile [`Self::exact`] and [`Self::search`]
    /// find one of the two at every moment.
    ///
    /// # Errors
    /// As for [`Self::search`]. After an error the index is unchanged.
    async fn upsert(&self, entry: Entry) -> Result<Option<Entry>, IndexError>;

    /// Removes an entry and returns it.
    async fn remove(&self, id: &EntryId) -> Result<Option<Entry>, IndexError>;

    /// Adds `uses` to the count of an entry's part, and sets the entry's last use to `now`, in seconds since 1970.
    /// Returns whether the index has that part.
    async fn touch(&self, id: &EntryId, part: Part, uses: u64, now: u64) -> Result<bool, IndexError>;

    /// Returns up to `limit` entries that match `filter`, in the order of their ids, starting after `after`.
    async fn scan(
        &self,
        filter: &Filter,
        after: Option<&EntryId>,
        limit: usize,
    ) -> Result<Vec<Entry>, IndexError>;

    /// Makes all changes so far durable. Recovers from a storage error if it can, and removes entries that cannot be
    /// read. [`IndexStats::damaged`] and [`IndexStats::reopened`] count these recoveries. A caller that keeps totals of
    /// the entries must recompute them when either count has changed.
    async fn flush(&self) -> Result<(), IndexError>;

    /// Returns the index's unique, permanent name. The store's prefix is marked with it as belonging to this index.
    fn name(&self) -> String;

    /// Returns the index's counts.
    fn stats(&self) -> IndexStats {
        IndexStats::default()
    }
}

/// Refuses a malformed embedding.
///
/// # Errors
/// [`IndexError::Embedding`]: empty or too long, not finite, or not of length 1.
pub fn check_embedding(embedding: &[f32]) -> Result<(), IndexError> {
    if embedding.is_empty() || embedding.len() > MAX_DIMENSIONS {
        return Err(IndexError::Embedding(format!("has {} numbers", embedding.len())));
    }
    let square: f32 = vectors::dot(embedding, embedding);
    // The sum of squares is finite only if every number is.
    if (square - 1.0).abs() < 0.01 {
        Ok(())
    } else {
        Err(IndexError::Embedding(format!("has length {}, not 1", square.sqrt())))
    }
}
