//! An HNSW graph (Malkov and Yashunin, 2018) over the rows of a partition: approximate nearest neighbours.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use hnsw_rs::prelude::{AnnT, Distance, Hnsw, HnswIo};

use super::vectors::{ScoredRow, dot};

/// Links of a row per layer; the lowest layer has twice as many.
const M: usize = 16;
/// Candidates that an insertion considers.
const EF_CONSTRUCTION: usize = 200;
/// The fewest candidates that a search keeps.
pub(crate) const EF_SEARCH: usize = 24;
const MAX_LAYERS: usize = 16;

/// One minus the cosine, for vectors of length 1. It is never negative, because the graph asserts that.
struct CosineDistance;

impl Distance<f32> for CosineDistance {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        (1.0 - dot(a, b)).max(0.0)
    }
}

/// The graph. It holds its own copy of the rows. It can be searched while rows are inserted.
pub(crate) struct Graph(Hnsw<'static, f32, CosineDistance>);

impl Graph {
    pub(crate) fn new(expected_rows: usize) -> Self {
        Self(Hnsw::new(M, expected_rows, MAX_LAYERS, EF_CONSTRUCTION, CosineDistance))
    }

    pub(crate) fn insert(&self, slot: usize, row: &[f32]) {
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
        // The library panics if it cannot create a file.
        let written = catch_unwind(AssertUnwindSafe(|| self.0.file_dump(dir, name)));
        let written = written.map_err(|_| std::io::Error::other("the graph's files cannot be created"))?;
        written.map(drop).map_err(|error| std::io::Error::other(error.to_string()))
    }

    /// Reads a graph that [`Self::dump`] wrote. The caller must have checked that the files are unaltered: on other
    /// files the library panics, or allocates without bound.
    pub(crate) fn reload(dir: &Path, name: &str) -> Option<Self> {
        // The library's graph borrows from its reader, because a reader can map the files into memory. This one does
        // not map them, so leaking it costs some hundred bytes per graph, once when the index opens.
        let reader: &'static HnswIo = Box::leak(Box::new(HnswIo::new(dir, name)));
        let read = catch_unwind(AssertUnwindSafe(|| reader.load_hnsw_with_dist(CosineDistance)));
        let mut graph: Hnsw<'static, f32, CosineDistance> = read.ok()?.ok()?;
        // Reading switches this option on; a new graph has it off.
        graph.set_extend_candidates(false);
        Some(Self(graph))
    }

    /// The `ef` candidates of a search, in no particular order.
    pub(crate) fn search(&self, query: &[f32], ef: usize) -> impl Iterator<Item = ScoredRow> {
        let found = self.0.search(query, ef, ef);
        found.into_iter().map(|near| ScoredRow { slot: near.d_id, similarity: 1.0 - near.distance })
    }
}
