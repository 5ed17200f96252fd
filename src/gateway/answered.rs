//! A picture as it is answered, stored or painted.

use std::time::Duration;

use bytes::Bytes;
use pentimento_cache::EntryId;

use crate::picture::PaintTimings;

/// What of the cache a picture was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HitKind {
    /// A denoising state of another picture: the later steps were painted.
    State,
    /// The stored picture of a prompt that means the same.
    Semantic,
    /// The stored picture of the same specification.
    Exact,
}

impl HitKind {
    /// Its name in answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Semantic => "semantic",
            Self::Exact => "exact",
        }
    }
}

/// The part that the cache had in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// What of it was used.
    pub kind: HitKind,
    /// The entry.
    pub source: EntryId,
    /// Cosine of both prompts' embeddings.
    pub similarity: f32,
}

/// A picture with its file, as it is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct AnsweredPicture {
    /// The image file in the wanted encoding.
    pub file: Bytes,
    /// What of the cache it was made from; `None`: it was painted from noise.
    pub hit: Option<Hit>,
    /// The option whose steps it took last; `None` for a stored picture whose option is not known.
    pub option: Option<String>,
    /// Steps of all plans that it had, skipped ones included.
    pub steps: usize,
    /// Steps that the cache spared.
    pub skipped_steps: usize,
    /// Its expected quality, 0 to 1, relative to the full plan; `None` where that was not measured.
    pub expected_quality: Option<f64>,
    /// From the request's submission to its turn.
    pub queue: Duration,
    /// Where the rest of the time went.
    pub timings: PaintTimings,
}
