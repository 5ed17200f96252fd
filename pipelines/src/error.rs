//! The crate's errors.

use std::path::PathBuf;

/// A result with the crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate. Each message names the thing at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of a model could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A model file's digest differs from the manifest's.
    #[error("{file} is not the file the manifest names: expected sha256 {expected}, found {found}")]
    Digest {
        /// The file's name in the manifest.
        file: String,
        /// The manifest's digest, in hex.
        expected: String,
        /// The digest found, in hex.
        found: String,
    },
    /// A configuration or manifest file does not parse, or needs something that the engine does not support.
    #[error("{file}: {reason}")]
    Config {
        /// The file's name for users.
        file: String,
        /// What is wrong. It names the key.
        reason: String,
    },
    /// A request that the model cannot fulfil.
    #[error("{field}: {reason}")]
    Invalid {
        /// The request's field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The engine computed values that no picture has: the weights are damaged, or overflow.
    #[error("the {0} holds values that are not finite")]
    NotFinite(&'static str),
    /// A tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A tensor operation failed: shapes, memory or the device.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn config(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { file: file.into(), reason: reason.into() }
    }

    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }
}
