//! How exactly a model's weights are kept.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The numbers that convolutions and linear layers of denoiser and VAE multiply. All else is f32: sums, norms,
/// activations between layers, and the text encoder, so that a prompt's embedding is the same in each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As stored.
    #[default]
    F32,
    /// Both factors rounded to bf16.
    Bf16,
}

impl Precision {
    /// The type that weights are read as.
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
