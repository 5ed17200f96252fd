//! An approximate nearest-neighbour graph over a shelf's rows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use hnsw_rs::prelude::{AnnT, Distance, Hnsw, HnswIo};

use super::vectors::{Hit, dot};

/// Links of a row per layer; twice as many in the lowest.
const LINKS: usize = 16;
/// Candidates that are weighed when a row is linked in.
const BUILD_BREADTH: usize = 200;
/// Least candidates that a search keeps.
pub(crate) const SEARCH_BREADTH: usize = 24;
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

    pub(crate) fn rows(&self) -> usize {
        self.0.get_nb_point()
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.0.get_point_indexation().get_data_dimension()
    }

    /// Writes the graph to two files in `dir` whose names begin with `name`.
    pub(crate) fn dump(&self, dir: &Path, name: &str) -> std::io::Result<()> {
        // The library panics where it cannot create a file.
        let written = catch_unwind(AssertUnwindSafe(|| self.0.file_dump(dir, name)));
        let written = written.map_err(|_| std::io::Error::other("the graph's files cannot be created"))?;
        written.map(drop).map_err(|error| std::io::Error::other(error.to_string()))
    }

    /// Reads a graph that [`Self::dump`] wrote. The files must be as they were written: the library panics or
    /// allocates without bound on others.
    pub(crate) fn reload(dir: &Path, name: &str) -> Option<Self> {
        // The graph borrows from its reader, as if it mapped the files into memory, which it does not. Some
        // hundred bytes are lost for every graph that is read: once, when the index opens.
        let reader: &'static HnswIo = Box::leak(Box::new(HnswIo::new(dir, name)));
        let read = catch_unwind(AssertUnwindSafe(|| reader.load_hnsw_with_dist(CosineDistance)));
        let mut graph: Hnsw<'static, f32, CosineDistance> = read.ok()?.ok()?;
        // As a new one has it: reading sets it otherwise.
        graph.set_extend_candidates(false);
        Some(Self(graph))
    }

    /// The `breadth` candidates of a search, in no particular order.
    pub(crate) fn near(&self, query: &[f32], breadth: usize) -> impl Iterator<Item = Hit> {
        let found = self.0.search(query, breadth, breadth);
        found.into_iter().map(|near| Hit { slot: near.d_id, similarity: 1.0 - near.distance })
    }
}
