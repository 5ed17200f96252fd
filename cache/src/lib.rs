//! A cache of painted pictures and their denoising states, which are found by specification and by the embeddings of
//! their prompts.
//!
//! This crate contains the embedding index, the store of states and pictures, the reuse policies and the eviction
//! policies. It contains no HTTP and nothing of the engine: here a state is a latent with a timestep, a prompt is a vector
//! and a picture is a file.
//!
//! [`Cache`] is the entry point. It looks pictures up in a [`PromptIndex`] and reads their files from a [`StateStore`]. A
//! background writer stores new pictures, so that no request waits for it.
//!
//! Architecture invariants:
//! - Nothing here panics on data from a disk or a network.
//! - An entry is never found outside its scope.
//! - Files are written before the entry that names them and removed after it.
//! - An exact look-up does not block.
//! - While a picture is replaced, the old or the new one is found at every moment.

mod accounting;
mod archive;
mod bounded_lru;
mod cache;
mod clock;
mod config;
mod content;
mod core;
mod entry;
mod eviction;
pub mod index;
mod pending_picture;
mod policy;
mod private_files;
mod read;
mod shutdown;
mod stats;
pub mod store;
mod uses;
mod writer;

pub use archive::{ArchiveError, Moved};
pub use bounded_lru::BoundedLru;
pub use cache::{Cache, LookUp};
pub use clock::EpochClock;
pub use config::{CacheConfig, CacheError};
pub use content::{Content, Difference, SynonymError, Synonyms, same_content};
pub use entry::{
    Compatibility, Entry, EntryId, FINISHED, Kept, KeptPicture, PaintedPlan, Part, PictureKey, ResumedFrom,
    Scope, SpecificationHash,
};
pub use eviction::{EvictionPolicy, Fifo, Lcbfu, Lfu, Lru, Usage, eviction_policy};
pub use index::{ExactHit, Filter, IndexError, IndexStats, Neighbour, PromptIndex};
pub use pending_picture::NewPicture;
pub use policy::{
    Calibrated, CalibratedConfig, Calibration, CalibrationError, CalibrationFor, Combined, CombinedConfig,
    Decision, Measured, NeighbourCounts, Nirvana, NirvanaConfig, NoStates, PolicyConfig, PolicyError, Query,
    Resume, ReusePolicy, SAME_PROMPT, Semantic, SemanticConfig, Threshold,
};
pub use read::ExactPicture;
pub use stats::Stats;
pub use store::{MAX_PICTURE_BYTES, State, StateError, StateStore};
