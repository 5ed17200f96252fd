//! NIRVANA's policy (Agarwal et al., NSDI 2024): the more similar the prompts, the later the resumed state.

use super::config::NirvanaConfig;
use super::{Decision, NeighbourCounts, Query, ReusePolicy, SAME_SHARE, usable};
use crate::index::Neighbour;

/// Thresholds of the similarity give the largest share of the plan that may be skipped.
#[derive(Debug, Clone)]
pub struct Nirvana(NirvanaConfig);

impl Nirvana {
    pub(super) fn new(config: NirvanaConfig) -> Self {
        Self(config)
    }

    /// The largest share that a similarity allows; `None` below all thresholds.
    fn allowed(&self, similarity: f32) -> Option<f32> {
        let reached = |at: f32| similarity >= at + self.0.offset;
        self.0
            .thresholds
            .iter()
            .rfind(|threshold| reached(threshold.similarity))
            .map(|threshold| threshold.share)
    }
}

impl ReusePolicy for Nirvana {
    fn name(&self) -> &'static str {
        "nirvana"
    }

    fn neighbours(&self) -> NeighbourCounts {
        NeighbourCounts { sources: 1, whole_pictures: 0 }
    }

    fn decide(&self, query: &Query<'_>, neighbours: &[Neighbour]) -> Decision {
        let Some(nearest) = neighbours.first() else {
            return Decision::miss("the cache holds nothing near");
        };
        let similarity = nearest.similarity;
        let Some(allowed) = self.allowed(similarity) else {
            return Decision::miss(format!(
                "the nearest similarity, {similarity:.4}, is below every threshold"
            ));
        };
        let within = usable(query, &nearest.entry).filter(|state| state.share <= allowed + SAME_SHARE);
        match within.max_by(|a, b| a.share.total_cmp(&b.share)) {
            Some(state) => {
                let why = format!(
                    "similarity {similarity:.4} allows a share of {allowed}; the latest state kept within it has {}",
                    state.share
                );
                Decision::state(nearest, state, None, why)
            }
            None => Decision::miss(format!(
                "similarity {similarity:.4} allows a share of {allowed}, but the nearest picture keeps no such state"
            )),
        }
    }
}
