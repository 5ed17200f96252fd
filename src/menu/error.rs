//! Why there is no menu.

use thiserror::Error;

use super::file::VERSION;

/// Why a menu cannot be used.
#[derive(Debug, Error)]
pub enum MenuFileError {
    /// Not a menu.
    #[error("not a plan menu: {0}")]
    Json(#[from] serde_json::Error),
    /// A file of another version.
    #[error("plan menu of version {0}; this one reads version {VERSION}: run `pentimento frontier`")]
    Version(u32),
    /// A value out of its bounds.
    #[error("plan menu: `{field}` must be {must}")]
    OutOfBounds {
        /// Its name in the file.
        field: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// An option that is none.
    #[error("plan menu: options: {0}")]
    Option(#[source] pentimento_pipelines::Error),
}

/// A value's bounds.
pub(super) fn check(holds: bool, field: &'static str, must: &'static str) -> Result<(), MenuFileError> {
    if holds { Ok(()) } else { Err(MenuFileError::OutOfBounds { field, must }) }
}
