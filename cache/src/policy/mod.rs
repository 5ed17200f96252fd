//! Reuse policies: they decide what a request starts from, given the nearest entries. A policy is a pure function of its
//! arguments, which include the random bits.

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

/// The similarity from which on two prompts count as the same prompt.
pub const SAME_PROMPT: f32 = 0.9999;

/// Shares that differ by at most this are equal. They are quotients of step counts, rounded to f32.
const SAME_SHARE: f32 = 1e-4;

/// What a reuse policy needs to know of a request.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The model that will paint the request.
    pub model: &'a str,
    /// The prompt's embedding, of length 1.
    pub embedding: &'a [f32],
    /// The prompt's content words.
    pub content: &'a Content,
    /// Whether the request names a seed. A request without one expects its pictures to vary.
    pub seeded: bool,
    /// Whether a whole stored picture may be the answer. False for a request's second and later pictures, which must
    /// differ from its first.
    pub whole: bool,
    /// The lowest acceptable quality of a whole picture, from 0 to 1 (see [`Entry::expected_quality`]).
    pub least_quality: f32,
    /// The largest expected loss of a resume that the request accepts, from 0 to 1. It matters to policies that know
    /// losses; 1 leaves the decision to the policy's own bound.
    pub most_loss: f32,
    /// The timesteps of the request's full plan, noisiest first.
    pub timesteps: &'a [f64],
    /// Random bits, which choose between equally good neighbours.
    pub chance: u64,
}

/// What a request starts from, with an explanation for people.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Decision {
    /// The request starts from noise.
    Miss {
        /// Why no entry can be reused.
        why: String,
    },
    /// The request resumes a state.
    State {
        /// The state's entry.
        entry: EntryId,
        /// The state's timestep.
        timestep: f64,
        /// The cosine of both prompts' embeddings.
        similarity: f32,
        /// The expected loss of quality of the resume, from 0 to 1; `None` if the policy does not know it.
        #[serde(default)]
        loss: Option<f32>,
        /// Why this entry was chosen.
        why: String,
    },
    /// The stored picture of the same specification is the answer.
    Exact {
        /// The picture's entry.
        entry: EntryId,
        /// Why this entry was chosen.
        why: String,
    },
    /// The stored picture of a prompt with the same meaning is the answer.
    Semantic {
        /// The picture's entry.
        entry: EntryId,
        /// The cosine of both prompts' embeddings.
        similarity: f32,
        /// Why this entry was chosen.
        why: String,
    },
}

impl Decision {
    /// The explanation of the decision.
    pub fn why(&self) -> &str {
        match self {
            Self::Miss { why }
            | Self::State { why, .. }
            | Self::Exact { why, .. }
            | Self::Semantic { why, .. } => why,
        }
    }

    /// The entry that is reused; `None` for a miss.
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

    fn state(neighbour: &Neighbour, state: &Kept, loss: Option<f32>, why: String) -> Self {
        Self::State {
            entry: neighbour.entry.id.clone(),
            timestep: state.timestep,
            similarity: neighbour.similarity,
            loss,
            why,
        }
    }
}

/// How many of the nearest entries of each kind a policy decides on. An entry of both kinds counts for both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NeighbourCounts {
    /// Entries with states that can be resumed: see [`Entry::is_source`].
    pub sources: usize,
    /// Entries whose whole picture is stored: see [`Entry::is_whole`].
    pub whole_pictures: usize,
}

/// Decides what a request starts from.
pub trait ReusePolicy: Send + Sync {
    /// The policy's name in configuration and answers.
    fn name(&self) -> &'static str;

    /// How many of the nearest entries the policy decides on. For 0 the index is not searched.
    fn neighbours(&self) -> NeighbourCounts;

    /// Whether the gateway answers an exact hit by [`Cache::exact_picture`](crate::Cache::exact_picture) before it uses this
    /// policy.
    fn exact_hits(&self) -> bool {
        true
    }

    /// Decides what the request starts from. `neighbours` are compatible with and visible to the request, nearest first.
    fn decide(&self, query: &Query<'_>, neighbours: &[Neighbour]) -> Decision;
}

/// The states of an entry that the request can resume: those that save at least one step and leave at least one. A resumed
/// picture has none, because the losses of both resumes would add up.
fn usable<'a>(query: &Query<'_>, entry: &'a Entry) -> impl Iterator<Item = &'a Kept> {
    let (first, last) = match query.timesteps {
        [first, .., last] => (*first, *last),
        _ => (f64::NEG_INFINITY, f64::INFINITY),
    };
    let states = if entry.resumed.is_none() { entry.states.as_slice() } else { &[] };
    states.iter().filter(move |state| state.timestep >= last.max(0.0) && state.timestep < first)
}

/// Chooses one of several equally good candidates by `chance`; `None` if there are none.
fn pick<T>(mut candidates: Vec<T>, chance: u64) -> Option<T> {
    let count = candidates.len() as u64;
    (count > 0).then(|| candidates.swap_remove((chance % count) as usize))
}
