//! Denoising states of pictures already painted, found again by the embeddings of their prompts.
//!
//! This crate holds the embedding index, the state store, the reuse policies and the eviction policies. It
//! knows nothing of HTTP and nothing of the engine: a state is a latent with a timestep, a prompt is a vector.

mod content;
mod entry;
mod policy;

pub use content::{Content, Difference, same_content};
pub use entry::{Compatibility, Entry, EntryId, Kept, Scope};
pub use policy::{
    Calibrated, CalibratedConfig, Calibration, CalibrationError, CalibrationFor, Decision, Measured,
    Neighbour, Nirvana, NirvanaConfig, NoStates, PolicyConfig, PolicyError, Query, ReusePolicy, Semantic,
    SemanticConfig, Threshold,
};
