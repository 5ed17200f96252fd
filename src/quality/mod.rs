//! What a picture is worth: does it show what its prompt names ([`AttributeClassifier`], [`fidelity`]),
//! and how near are picture and prompt in a common embedding ([`ClipScorer`]).
//!
//! Both ship with the storybook model; a model without those files has no scorer of that kind.

mod classifier;
mod clip_score;
mod fidelity;
mod interval;
mod scorer;

pub use classifier::AttributeClassifier;
pub use clip_score::ClipScorer;
pub use fidelity::{Attributes, Found, Share, Subject, fidelity};
pub use interval::{Interval, ratio};
pub use scorer::Scorer;

/// A scorer that cannot be loaded or cannot judge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model ships without this scorer's files, or they are not the manifest's.
    #[error(transparent)]
    Model(#[from] pentimento_pipelines::Error),
    /// A configuration that does not parse.
    #[error("{file}: {source}")]
    Config {
        /// The file within the model's folder.
        file: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A label or a size that the scorer does not know.
    #[error("{0}")]
    Unfit(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The module's result.
pub type Result<T> = std::result::Result<T, Error>;

fn config<T: serde::de::DeserializeOwned>(
    files: &pentimento_pipelines::ModelFiles,
    file: &'static str,
) -> Result<T> {
    serde_json::from_slice(&files.require(file)?).map_err(|source| Error::Config { file, source })
}
