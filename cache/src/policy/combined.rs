//! Whole pictures for prompts that mean the same, states for the others.

use super::{Calibrated, Decision, NeighbourCounts, Query, ReusePolicy, SAME_PROMPT, Semantic};
use crate::index::Neighbour;

/// `semantic` first, and `calibrated` where that finds nothing. The default where a model has calibration tables.
///
/// A prompt that says the same in other words gets the stored picture whole. A prompt that is stored already, asked for
/// again without its seed, wants another picture than the stored one: it goes to `calibrated`, as every other prompt does.
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
        // It is to see as many neighbours as alone, whichever the others are.
        let sources: Vec<Neighbour> = neighbours
            .iter()
            .filter(|near| near.entry.is_source())
            .take(self.calibrated.neighbours().sources)
            .cloned()
            .collect();
        self.calibrated.decide(query, &sources)
    }
}
