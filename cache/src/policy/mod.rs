//! Reuse policies: from the nearest entries to what a request starts from. Pure functions of what they
//! are handed, chance included.

mod calibrated;
mod calibration;
mod combined;
mod config;
mod exact;
mod measured_for;
mod nirvana;
mod predictor;
mod semantic;

use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::entry::{Entry, EntryId, Kept};
use crate::index::Neighbour;

pub use calibrated::Calibrated;
pub use calibration::{Calibration, CalibrationError, Measured};
pub use combined::Combined;
pub use config::{
    CalibratedConfig, CombinedConfig, NirvanaConfig, PolicyConfig, PolicyError, SemanticConfig, Threshold,
};
pub use exact::NoStates;
pub use measured_for::{CalibrationFor, Resume};
pub use nirvana::Nirvana;
pub use semantic::Semantic;

/// From this similarity on, two prompts are the same prompt.
pub const SAME_PROMPT: f32 = 0.9999;

/// Shares this close are one share: they come from step counts, through f32.
const SAME_SHARE: f32 = 1e-4;

/// A request, as far as reuse is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The model that is to paint.
    pub model: &'a str,
    /// The prompt's embedding, of length 1.
    pub embedding: &'a [f32],
    /// The prompt's content words.
    pub content: &'a Content,
    /// Whether the request names a seed. One that does not wants a picture, not the last one once more.
    pub seeded: bool,
    /// Whether a whole stored picture of another prompt may be the answer: false for a request's second and later
    /// pictures, which are to differ from its first.
    pub whole: bool,
    /// Least quality of a whole picture, from 0 to 1 (see [`Entry::expected_quality`]); 0 where any will do.
    pub least_quality: f32,
    /// Timesteps of the request's own full plan, noisiest first.
    pub timesteps: &'a [f64],
    /// Random bits: which of several equally good neighbours is taken.
    pub chance: u64,
}

/// What a request starts from, and why, for people.
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
        /// Why this one.
        why: String,
    },
    /// The stored picture itself, painted from the same prompt, seed and parameters.
    Exact {
        /// Whose.
        entry: EntryId,
        /// Why this one.
        why: String,
    },
    /// The stored picture itself, of a prompt that means the same.
    Semantic {
        /// Whose.
        entry: EntryId,
        /// Cosine of both prompts' embeddings.
        similarity: f32,
        /// Why this one.
        why: String,
    },
}

impl Decision {
    /// Why it was decided so.
    pub fn why(&self) -> &str {
        match self {
            Self::Miss { why }
            | Self::State { why, .. }
            | Self::Exact { why, .. }
            | Self::Semantic { why, .. } => why,
        }
    }

    /// The entry that it names; `None` for a miss.
    pub fn entry(&self) -> Option<&EntryId> {
        match self {
            Self::Miss { .. } => None,
            Self::State { entry, .. } | Self::Exact { entry, .. } | Self::Semantic { entry, .. } => {
                Some(entry)
            }
        }
    }

    fn miss(why: impl Into<String>) -> Self {
        Self::Miss { why: why.into() }
    }

    fn state(neighbour: &Neighbour, state: &Kept, why: String) -> Self {
        Self::State {
            entry: neighbour.entry.id.clone(),
            timestep: state.timestep,
            similarity: neighbour.similarity,
            why,
        }
    }
}

/// How many of the nearest entries a policy wants to see. An entry that is both counts for both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NeighbourCounts {
    /// Entries with states to go on from: see [`Entry::is_source`].
    pub sources: usize,
    /// Entries whose whole picture is kept: see [`Entry::is_whole`].
    pub whole_pictures: usize,
}

/// Decides what a request starts from.
pub trait ReusePolicy: Send + Sync {
    /// Its name in configuration and answers.
    fn name(&self) -> &'static str;

    /// How many of the nearest entries it wants to see; 0 spares the search.
    fn neighbours(&self) -> NeighbourCounts;

    /// Whether the gateway answers the same picture, asked for again with its seed, by
    /// [`Cache::exact_picture`](crate::Cache::exact_picture) before it asks this policy.
    fn exact_hits(&self) -> bool {
        true
    }

    /// Decides. `neighbours` are compatible and visible to the request, nearest first.
    fn decide(&self, query: &Query<'_>, neighbours: &[Neighbour]) -> Decision;
}

/// An entry's states that save the request a step and leave it one to take. A resumed picture has none: the losses of
/// both resumes would add up.
fn usable<'a>(query: &Query<'_>, entry: &'a Entry) -> impl Iterator<Item = &'a Kept> {
    let (first, last) = match query.timesteps {
        [first, .., last] => (*first, *last),
        _ => (f64::NEG_INFINITY, f64::INFINITY),
    };
    let states = if entry.resumed.is_none() { entry.states.as_slice() } else { &[] };
    states.iter().filter(move |state| state.timestep >= last.max(0.0) && state.timestep < first)
}

/// One of several equally good candidates.
fn pick<T>(mut candidates: Vec<T>, chance: u64) -> Option<T> {
    let count = candidates.len() as u64;
    (count > 0).then(|| candidates.swap_remove((chance % count) as usize))
}
