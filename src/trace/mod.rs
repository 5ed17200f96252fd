//! Traces of requests: what clients asked for, and when. `pentimento replay` sends them to a server, `pentimento simulate`
//! hands them to a simulated installation.
//!
//! Two formats are read, told apart by their first byte: our own JSON lines (`lines`), and the CSV of GenTD26, a
//! production service's trace (`gentd26`), whose prompts are not published and are made up from its sessions (`scene`).
//! `arrivals` says when each request is sent: at its recorded time, or at a drawn one.

mod arrivals;
mod error;
mod gentd26;
mod lines;
mod request;
mod scene;

use std::io::Read;
use std::path::Path;

pub use arrivals::{Arrival, Bursts, Process, arrivals};
pub use error::TraceError;
pub use request::{CacheUse, MAX_SECONDS, Quality, Request};

/// Bytes of a trace.
const MAX_BYTES: u64 = 256 << 20;
/// Lines of a trace, and requests of a run.
pub const MAX_REQUESTS: usize = 1_000_000;

/// The requests of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// In the order of their times.
    pub requests: Vec<Request>,
    /// Lines that say nothing of what was asked for, and were left out.
    pub left_out: usize,
}

/// Reads a trace. The seed decides the prompts of a trace that has none.
///
/// # Errors
/// [`TraceError`]: those of the file, and what makes no sense, with line and field.
pub fn read(path: &Path, seed: u64) -> Result<Trace, TraceError> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    let length = file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if length as u64 > MAX_BYTES {
        return Err(TraceError::Bytes);
    }
    parse(&text, seed)
}

fn parse(text: &str, seed: u64) -> Result<Trace, TraceError> {
    let trace = if text.starts_with(gentd26::FIRST_COLUMN) {
        gentd26::parse(text, seed)?
    } else {
        lines::parse(text)?
    };
    if trace.requests.is_empty() { Err(TraceError::Empty) } else { Ok(trace) }
}
