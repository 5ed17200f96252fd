//! Two policies that start from noise: one answers exact hits, one nothing.

use super::{Decision, NeighbourCounts, Query, ReusePolicy};
use crate::index::Neighbour;

/// Reuses no state of another prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoStates {
    /// The stored picture for the same prompt, seed and parameters; else noise.
    Exact,
    /// Always noise.
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
