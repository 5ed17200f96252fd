//! The precision of a model's weights.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The type of the factors in convolutions and linear layers of denoiser and VAE. Everything else is f32: sums, norms,
/// activations between layers, and the text encoder. A prompt's embedding is therefore the same in each precision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16: weights and inputs are rounded.
    Bf16,
}

impl Precision {
    /// The type that weights are converted to when they are read.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The precision whose weights have this type.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        [Self::F32, Self::Bf16].into_iter().find(|precision| precision.dtype() == dtype)
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::F32, Self::Bf16]
            .into_iter()
            .find(|precision| precision.to_string() == text)
            .ok_or_else(|| Error::invalid("precision", format!("{text:?} is neither f32 nor bf16")))
    }
}
