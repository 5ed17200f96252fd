//! The denoiser's time embedding: sinusoids and a small network.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::error::Result;
use crate::layers::Linear;

/// Sinusoidal features of a scalar (Ho et al. 2020, arXiv 2006.11239, after Vaswani et al. 2017).
#[derive(Debug, Clone)]
pub(crate) struct Sinusoid {
    /// (1, width / 2): the angular frequencies, f32.
    frequencies: Tensor,
    cosines_first: bool,
    odd: bool,
}

impl Sinusoid {
    pub(crate) fn new(width: usize, cosines_first: bool, freq_shift: f64, device: &Device) -> Result<Self> {
        let half = width / 2;
        // The exponent is computed in f32, as in diffusers: at timestep 999 one ulp of a frequency changes the phase by 6e-5.
        let exponent = (Tensor::arange(0u32, half as u32, device)?.to_dtype(DType::F32)? * -10_000f64.ln())?;
        let frequencies = (exponent / (half as f64 - freq_shift))?.exp()?.unsqueeze(0)?;
        Ok(Self { frequencies, cosines_first, odd: width % 2 == 1 })
    }

    /// (N,) of any float type -> (N, width), f32.
    pub(crate) fn forward(&self, values: &Tensor) -> Result<Tensor> {
        let phase = values.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&self.frequencies)?;
        let (sin, cos) = (phase.sin()?, phase.cos()?);
        let both = if self.cosines_first { [cos, sin] } else { [sin, cos] };
        let features = Tensor::cat(&both, 1)?;
        Ok(if self.odd { features.pad_with_zeros(1, 0, 1)? } else { features })
    }
}

/// diffusers' `TimestepEmbedding`: linear, SiLU, linear.
#[derive(Debug, Clone)]
pub(crate) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    pub(crate) fn new(vb: VarBuilder, input: usize, width: usize) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(vb.pp("linear_1"), input, width)?,
            linear_2: Linear::new(vb.pp("linear_2"), width, width)?,
        })
    }

    /// (N, input) -> (N, width).
    pub(crate) fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.linear_1.forward(features)?.silu()?)
    }
}
