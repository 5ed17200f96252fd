//! Two policies without reuse of states: one allows exact hits, the other nothing.

use super::{Decision, NeighbourCounts, Query, ReusePolicy};
use crate::index::Neighbour;

/// Policies that always start from noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoStates {
    /// Exact hits are answered with the stored picture.
    Exact,
    /// Exact hits are not answered either.
    Off,
}

impl ReusePolicy for NoStates {
    fn name(&self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Off => "off",
        }
    }

    fn neighbours(&self) -> NeighbourCounts {
        NeighbourCounts::default()
    }

    fn exact_hits(&self) -> bool {
        *self == Self::Exact
    }

    fn decide(&self, _: &Query<'_>, _: &[Neighbour]) -> Decision {
        Decision::miss(match self {
            Self::Exact => "only the same prompt, seed and parameters are answered from the cache",
            Self::Off => "reuse is off",
        })
    }
}
