//! A prompt's content: its words that carry meaning, in order, as keyed hashes.

use serde::{Deserialize, Serialize};

/// The content words of a prompt in the order they stand, each as a keyed hash, so that prompts can be
/// compared word by word without being kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Content {
    /// One hash per content word.
    pub words: Vec<u64>,
}
