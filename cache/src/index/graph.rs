//! An approximate nearest-neighbour graph over a shelf's rows.

use hnsw_rs::prelude::{Distance, Hnsw};

use super::vectors::{Hit, dot};

/// Links of a row per layer; twice as many in the lowest.
const LINKS: usize = 16;
/// Candidates that are weighed when a row is linked in.
const BUILD_BREADTH: usize = 200;
/// Least candidates that a search keeps.
const SEARCH_BREADTH: usize = 24;
const LAYERS: usize = 16;

/// One minus the cosine, of vectors of length 1. Not below zero, which the graph asserts.
struct CosineDistance;

impl Distance<f32> for CosineDistance {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        (1.0 - dot(a, b)).max(0.0)
    }
}

/// The graph. It keeps its own copy of the rows, and it can be searched while rows are linked in.
pub(crate) struct Graph(Hnsw<'static, f32, CosineDistance>);

impl Graph {
    pub(crate) fn new(expected_rows: usize) -> Self {
        Self(Hnsw::new(LINKS, expected_rows, LAYERS, BUILD_BREADTH, CosineDistance))
    }

    pub(crate) fn link(&self, slot: usize, row: &[f32]) {
        self.0.insert((row, slot));
    }

    /// The candidates of a search, in no particular order: more than `n`, since some may be dead.
    pub(crate) fn near(&self, query: &[f32], n: usize) -> impl Iterator<Item = Hit> {
        let breadth = SEARCH_BREADTH.max(2 * n);
        let found = self.0.search(query, breadth, breadth);
        found.into_iter().map(|near| Hit { slot: near.d_id, similarity: 1.0 - near.distance })
    }
}
