//! Reuse policies: from the nearest entries to what a request starts from. Pure functions of what they
//! are handed, chance included.

use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::entry::{Entry, EntryId};

/// A request, as far as reuse is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The prompt's embedding, of length 1.
    pub embedding: &'a [f32],
    /// The prompt's content words.
    pub content: &'a Content,
    /// See [`Entry::exact`]; `None` for a request without a seed, which has no exact hit.
    pub exact: Option<&'a str>,
    /// Timesteps of the request's own full plan, noisiest first.
    pub timesteps: &'a [f64],
    /// Random bits: which of several equally good neighbours is taken.
    pub chance: u64,
}

/// An entry near a query.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// The entry.
    pub entry: Entry,
    /// Cosine of both embeddings.
    pub similarity: f32,
}

/// What a request starts from.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Decision {
    /// Noise.
    Miss {
        /// Why nothing fits, for people.
        why: String,
    },
    /// An entry's state.
    State {
        /// Whose.
        entry: EntryId,
        /// Which.
        timestep: f64,
        /// Cosine of both prompts' embeddings.
        similarity: f32,
    },
    /// The stored picture itself, painted from the same prompt, seed and parameters.
    Exact {
        /// Whose.
        entry: EntryId,
    },
    /// The stored picture itself, of a prompt that means the same.
    Semantic {
        /// Whose.
        entry: EntryId,
        /// Cosine of both prompts' embeddings.
        similarity: f32,
    },
}

/// Decides what a request starts from.
pub trait ReusePolicy: Send + Sync {
    /// Its name in configuration and answers.
    fn name(&self) -> &'static str;

    /// How many of the nearest entries it wants to see.
    fn neighbours(&self) -> usize;

    /// Decides. `neighbours` are compatible and visible to the request, nearest first.
    fn decide(&self, query: &Query<'_>, neighbours: &[Neighbour]) -> Decision;
}
