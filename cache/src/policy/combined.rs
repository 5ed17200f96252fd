//! The combined policy: a whole picture for a prompt that means the same, a state for any other.

use super::{Calibrated, Decision, NeighbourCounts, Query, ReusePolicy, SAME_PROMPT, Semantic};
use crate::index::Neighbour;

/// Tries `semantic` first, and `calibrated` if that misses. It is the default for a model with calibration tables.
///
/// A prompt that says the same in other words gets the stored picture whole. A prompt that is itself stored is not answered
/// by `semantic`: with the stored seed it would have been an exact hit, so the request wants another picture.
#[derive(Debug, Clone)]
pub struct Combined {
    semantic: Semantic,
    calibrated: Calibrated,
}

impl Combined {
    pub(super) fn new(semantic: Semantic, calibrated: Calibrated) -> Self {
        Self { semantic, calibrated }
    }
}

impl ReusePolicy for Combined {
    fn name(&self) -> &'static str {
        "combined"
    }

    fn neighbours(&self) -> NeighbourCounts {
        NeighbourCounts {
            sources: self.calibrated.neighbours().sources,
            whole_pictures: self.semantic.neighbours().whole_pictures,
        }
    }

    fn decide(&self, query: &Query<'_>, neighbours: &[Neighbour]) -> Decision {
        let is_stored = neighbours.iter().any(|near| near.similarity >= SAME_PROMPT);
        if !is_stored && let whole @ Decision::Semantic { .. } = self.semantic.decide(query, neighbours) {
            return whole;
        }
        // `calibrated` gets the same neighbours as it would alone.
        let sources: Vec<Neighbour> = neighbours
            .iter()
            .filter(|near| near.entry.is_source())
            .take(self.calibrated.neighbours().sources)
            .cloned()
            .collect();
        self.calibrated.decide(query, &sources)
    }
}
