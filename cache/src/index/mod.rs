//! The index: entries by name, by specification and by the similarity of their prompts' embeddings.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod database;
mod embedded;
mod exact;
mod graph;
mod graph_file;
mod maintenance;
mod operations;
mod partition;
mod prompt_index;
mod rebuild;
#[cfg(test)]
mod tests;
mod vectors;

pub use embedded::{EmbeddedIndex, IndexOptions};
pub use exact::ExactHit;
pub(crate) use exact::reaches;
pub use prompt_index::{
    Filter, Holding, IndexError, IndexStats, MAX_DIMENSIONS, MAX_NEIGHBOURS, Neighbour, PromptIndex,
    SearchFilter, check_embedding,
};
