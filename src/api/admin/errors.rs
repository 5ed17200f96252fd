//! Errors that only the admin API has.

use axum::http::StatusCode;
use pentimento_cache::{ArchiveError, CacheError, IndexError};

use crate::api::ApiError;
use crate::api::errors::{INVALID_REQUEST, SERVER, short};
use crate::gateway::{LookUpError, MoveError};

impl ApiError {
    /// No admin token, or a wrong one.
    pub fn admin_token(given: bool) -> Self {
        let message = if given {
            "The admin token is wrong."
        } else {
            "The admin API wants its token: send the header Authorization: Bearer TOKEN."
        };
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, "invalid_admin_token", message)
    }

    /// A request that a web page may have made.
    pub fn forbidden(reason: &str) -> Self {
        let message = format!("Refused: {reason}.");
        Self::new(StatusCode::FORBIDDEN, INVALID_REQUEST, "forbidden", message)
    }

    /// No such entry, or no longer.
    pub fn entry(id: &str) -> Self {
        let message = format!("The cache has no entry {:?}.", short(id));
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "entry_not_found", message)
    }

    /// An archive that cannot be imported, or not to its end.
    fn archive(reason: &dyn std::fmt::Display) -> Self {
        let reason = short(&reason.to_string());
        let message = format!("The archive cannot be imported: {reason}.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, "invalid_archive", message)
    }

    /// The cache or its embedder was too slow.
    pub fn too_slow() -> Self {
        let message = "The cache did not answer in time.";
        Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, "timeout", message)
    }
}

impl From<CacheError> for ApiError {
    fn from(error: CacheError) -> Self {
        Self::internal(&error)
    }
}

impl From<LookUpError> for ApiError {
    fn from(error: LookUpError) -> Self {
        match error {
            LookUpError::Timeout => Self::too_slow(),
            other => Self::internal(&other),
        }
    }
}

impl From<MoveError> for ApiError {
    fn from(error: MoveError) -> Self {
        let error = match error {
            MoveError::Archive(error) => error,
            other => return Self::archive(&other),
        };
        match error {
            ArchiveError::TooLarge(limit) => {
                Self::body_too_large(usize::try_from(limit).unwrap_or(usize::MAX))
            }
            // Of all that the cache can say, only this speaks of what the archive holds.
            ArchiveError::Cache(CacheError::Index(error @ IndexError::Embedding(_))) => {
                Self::archive(&format!("{error}; the entries before that are kept"))
            }
            ArchiveError::Cache(error) => error.into(),
            other => Self::archive(&format!("{other}; the entries before that are kept")),
        }
    }
}
