//! Why a trace is refused.

use thiserror::Error;

use super::{MAX_BYTES, MAX_REQUESTS};

/// Why a trace is refused.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file cannot be read, or is no UTF-8.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The file is too long.
    #[error("longer than {MAX_BYTES} bytes")]
    Bytes,
    /// There are too many requests.
    #[error("more than {MAX_REQUESTS} requests")]
    Requests,
    /// There is no request.
    #[error("no requests")]
    Empty,
    /// A line cannot be read.
    #[error("line {line}: {reason}")]
    Line {
        /// From 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A field of a line makes no sense.
    #[error("line {line}: {field}: {reason}")]
    Field {
        /// From 1.
        line: u64,
        /// The field or column.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// A request is recorded without its time.
    #[error("request {request}: at: is missing; --arrivals poisson or bursty draws the times")]
    NoTime {
        /// From 1.
        request: usize,
    },
    /// A run has too many requests.
    #[error("--rate and --seconds: more than {MAX_REQUESTS} requests")]
    Arrivals,
}

impl TraceError {
    pub(super) fn field(line: u64, field: &str, reason: impl Into<String>) -> Self {
        Self::Field { line, field: field.to_owned(), reason: reason.into() }
    }
}
