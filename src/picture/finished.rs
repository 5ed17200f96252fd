//! What a worker hands back.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::StartState;

/// A finished picture.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct FinishedPicture {
    /// The lossless file, a PNG with the generation parameters in its metadata.
    pub file: Bytes,
    /// Steps of all plans that it had, those skipped included.
    pub steps: usize,
    /// Steps of the plan that the state it started from spared.
    pub skipped_steps: usize,
    /// The stored state that it started from; `None`: noise.
    pub started_from: Option<StartState>,
    /// Where the time went.
    pub timings: PaintTimings,
}

/// Where a picture's time at the worker went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PaintTimings {
    /// Loading the state that it starts from.
    pub load: Duration,
    /// Encoding the prompts.
    pub encode: Duration,
    /// At the worker, but in no batch, or waiting for a stage.
    pub wait: Duration,
    /// All its steps, each as long as that of its whole batch.
    pub denoise: Duration,
    /// Latent to file.
    pub decode: Duration,
}

impl PaintTimings {
    /// The sum of all parts.
    pub fn total(&self) -> Duration {
        let Self { load, encode, wait, denoise, decode } = *self;
        load + encode + wait + denoise + decode
    }
}
