//! Pictures already painted and their denoising states, found again by specification and by the embeddings of prompts.
//!
//! This crate holds the embedding index, the store of states and pictures, the reuse policies and the eviction policies.
//! It knows nothing of HTTP and nothing of the engine: a state is a latent with a timestep, a prompt is a vector, a
//! picture is a file.
//!
//! [`Cache`] is the way in. It looks pictures up in a [`PromptIndex`], reads their files from a
//! [`StateStore`], and hands new pictures to a writer in the background, so that no request waits for it.
//!
//! Architecture invariants: nothing here panics on what lies on a disk or comes from a network; an entry is
//! never found outside its scope; files are written before the entry that names them and removed after it; an exact
//! look-up neither blocks nor waits; a picture that is replaced is found until its successor is.

mod archive;
mod bounded_lru;
mod cache;
mod closing;
mod config;
mod content;
mod entry;
mod eviction;
pub mod index;
mod ledger;
mod picture;
mod policy;
mod private_files;
mod read;
mod shared;
mod stats;
pub mod store;
mod writer;

pub use archive::{ArchiveError, Moved};
pub use bounded_lru::BoundedLru;
pub use cache::{Cache, LookUp};
pub use config::{CacheConfig, CacheError};
pub use content::{Content, Difference, SynonymError, Synonyms, same_content};
pub use entry::{
    Compatibility, Entry, EntryId, FINISHED, Kept, KeptPicture, PaintedPlan, Part, PictureKey, ResumedFrom,
    Scope, SpecificationHash,
};
pub use eviction::{EvictionPolicy, Fifo, Lcbfu, Lfu, Lru, Usage, eviction_policy};
pub use index::{ExactHit, Filter, IndexError, IndexStats, Neighbour, PromptIndex};
pub use picture::NewPicture;
pub use policy::{
    Calibrated, CalibratedConfig, Calibration, CalibrationError, CalibrationFor, Combined, CombinedConfig,
    Decision, Measured, NeighbourCounts, Nirvana, NirvanaConfig, NoStates, PolicyConfig, PolicyError, Query,
    Resume, ReusePolicy, SAME_PROMPT, Semantic, SemanticConfig, Threshold,
};
pub use read::ExactPicture;
pub use stats::Stats;
pub use store::{MAX_PICTURE_BYTES, State, StateError, StateStore};
