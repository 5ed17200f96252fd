//! The layers of the networks. On a CPU they use our own operators (`cpu/`), elsewhere candle's. The choice is made when a layer
//! is made, by the device and the type of its weights.
//!
//! The layers' inputs and outputs have the shape (B, C, H, W). The outputs of our operators have their channels last in memory;
//! they are permuted tensors, which the next layer reads without a copy.

use std::cell::Cell;
use std::sync::Arc;

use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::{Conv2dConfig, VarBuilder, ops};

use crate::cpu;
pub(crate) use crate::cpu::Geometry;
use crate::error::Result;
use crate::precision::Precision;

/// The operators that a layer uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operators {
    /// Our own, with weights of this precision. Tensors are f32.
    Own(Precision),
    /// candle's. Tensors have the weights' type.
    Candle,
}

thread_local! {
    /// The kinds of operators that are candle's on a CPU too, one bit each.
    static CANDLE_KINDS: Cell<u8> = const { Cell::new(0) };
}

fn bit(kind: OperatorKind) -> u8 {
    1 << kind as u8
}

impl Operators {
    /// The operators of a kind for layers with the weights `vb`.
    fn of(vb: &VarBuilder, kind: OperatorKind) -> Self {
        let own = vb.device().is_cpu() && CANDLE_KINDS.get() & bit(kind) == 0;
        Precision::of(vb.dtype()).filter(|_| own).map_or(Self::Candle, Self::Own)
    }

    /// The operators of a network with the weights `vb`, which are those of its convolutions.
    pub(crate) fn of_network(vb: &VarBuilder) -> Self {
        Self::of(vb, OperatorKind::Convolution)
    }

    /// Runs a network's call, with helper threads if the operators are our own.
    pub(crate) fn run<T>(self, f: impl FnOnce() -> T) -> T {
        if self == Self::Candle { f() } else { cpu::with_helpers(f) }
    }

    /// The type of a network's tensors other than its weights.
    pub(crate) fn dtype(self, vb: &VarBuilder) -> DType {
        if self == Self::Candle { vb.dtype() } else { DType::F32 }
    }

    /// The weights of a layer in the type of [`Self::dtype`]. Our own operators round them when they pack them.
    fn source<'a>(self, vb: VarBuilder<'a>) -> VarBuilder<'a> {
        let dtype = self.dtype(&vb);
        vb.set_dtype(dtype)
    }
}

/// Runs `build` so that layers made by it use candle's operators of these kinds on a CPU too. Benches compare these with our own.
#[doc(hidden)]
pub fn with_candle_operators<T>(kinds: &[OperatorKind], build: impl FnOnce() -> T) -> T {
    let before = CANDLE_KINDS.replace(kinds.iter().fold(0, |bits, &kind| bits | bit(kind)));
    let built = build();
    CANDLE_KINDS.set(before);
    built
}

#[doc(hidden)]
pub use crate::cpu::{OperatorKind, OperatorProfile};

/// Returns the profile of our operators per kind since the last call. It is for benches.
#[doc(hidden)]
pub fn take_profile() -> Vec<OperatorProfile> {
    cpu::take_profile()
}

/// Measures one thread's peak in multiplications and additions per second. It is for benches.
#[doc(hidden)]
pub fn peak_flops() -> f64 {
    cpu::peak_flops()
}

fn channels_last(x: &Tensor) -> candle_core::Result<Tensor> {
    x.permute((0, 2, 3, 1))
}

fn channels_first(x: &Tensor) -> candle_core::Result<Tensor> {
    x.permute((0, 3, 1, 2))
}

/// (B, C, H, W) -> (B, H W, C).
pub(crate) fn to_sequence(x: &Tensor) -> Result<Tensor> {
    Ok(channels_last(x)?.flatten(1, 2)?)
}

/// (B, H W, C) -> (B, C, H, W) with `like`'s height and width.
pub(crate) fn to_picture(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    let (batch, _, height, width) = like.dims4()?;
    Ok(channels_first(&x.reshape((batch, height, width, ()))?)?)
}

/// Concatenates the channels of (B, C, H, W) and (B, C', H, W).
pub(crate) fn join_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (last_a, last_b) = (channels_last(a)?, channels_last(b)?);
    if last_a.is_contiguous() && last_b.is_contiguous() {
        return Ok(channels_first(&Tensor::cat(&[last_a, last_b], 3)?)?);
    }
    Ok(Tensor::cat(&[a, b], 1)?)
}

/// A 1×1 or 3×3 convolution.
#[derive(Debug, Clone)]
pub(crate) enum Conv2d {
    Own(Arc<cpu::Conv>),
    Candle { conv: candle_nn::Conv2d, pad_far: bool },
}

impl Conv2d {
    pub(crate) fn new(
        vb: VarBuilder,
        input: usize,
        output: usize,
        side: usize,
        geometry: Geometry,
    ) -> Result<Self> {
        let Geometry { stride, near, far } = geometry;
        let config = Conv2dConfig { stride, padding: near, ..Default::default() };
        let operators = Operators::of(&vb, OperatorKind::Convolution);
        let conv = candle_nn::conv2d(input, output, side, config, operators.source(vb))?;
        Ok(match operators {
            Operators::Own(precision) => {
                let conv = cpu::Conv::new(precision, conv.weight(), conv.bias(), geometry)?;
                Self::Own(Arc::new(conv))
            }
            Operators::Candle => Self::Candle { conv, pad_far: near < far },
        })
    }

    /// A 1×1 convolution.
    pub(crate) fn point(vb: VarBuilder, input: usize, output: usize) -> Result<Self> {
        Self::new(vb, input, output, 1, Geometry { stride: 1, near: 0, far: 0 })
    }

    /// A 3×3 convolution that keeps the size.
    pub(crate) fn same(vb: VarBuilder, input: usize, output: usize) -> Result<Self> {
        Self::new(vb, input, output, 3, Geometry { stride: 1, near: 1, far: 1 })
    }

    /// (B, input, H, W) -> (B, output, H', W').
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own(conv) => Ok(channels_first(&conv.forward(&channels_last(x)?, None, None)?)?),
            Self::Candle { conv, pad_far: true } => {
                Ok(conv.forward(&x.pad_with_zeros(D::Minus1, 0, 1)?.pad_with_zeros(D::Minus2, 0, 1)?)?)
            }
            Self::Candle { conv, .. } => Ok(conv.forward(x)?),
        }
    }

    /// Resizes the input by nearest neighbour before the convolution.
    pub(crate) fn forward_resized(&self, x: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
        match self {
            Self::Own(conv) => {
                Ok(channels_first(&conv.forward(&channels_last(x)?, Some((height, width)), None)?)?)
            }
            Self::Candle { .. } => self.forward(&x.upsample_nearest2d(height, width)?),
        }
    }

    /// Adds `add`, of the output's shape, to the output.
    pub(crate) fn forward_add(&self, x: &Tensor, add: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own(conv) => {
                Ok(channels_first(&conv.forward(&channels_last(x)?, None, Some(&channels_last(add)?))?)?)
            }
            Self::Candle { .. } => Ok((self.forward(x)? + add)?),
        }
    }

    /// Adds `shift` (B, output) to every pixel of the output.
    pub(crate) fn forward_shift(&self, x: &Tensor, shift: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own(conv) => Ok(channels_first(&conv.forward(&channels_last(x)?, None, Some(shift))?)?),
            Self::Candle { .. } => {
                let shift = shift.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?;
                Ok(self.forward(x)?.broadcast_add(&shift)?)
            }
        }
    }
}

/// Group norm.
#[derive(Debug, Clone)]
pub(crate) enum GroupNorm {
    Own(Arc<cpu::Norm>),
    Candle(candle_nn::GroupNorm),
}

impl GroupNorm {
    pub(crate) fn new(vb: VarBuilder, groups: usize, channels: usize, eps: f64) -> Result<Self> {
        let operators = Operators::of(&vb, OperatorKind::GroupNorm);
        Ok(match operators {
            Operators::Own(_) => {
                let vb = operators.source(vb);
                let (weight, bias) = (vb.get(channels, "weight")?, vb.get(channels, "bias")?);
                Self::Own(Arc::new(cpu::Norm::new(&weight, &bias, groups, eps)?))
            }
            Operators::Candle => Self::Candle(candle_nn::group_norm(groups, channels, eps, vb)?),
        })
    }

    /// (B, C, H, W) -> (B, C, H, W).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own(norm) => Ok(channels_first(&norm.group_norm(&channels_last(x)?, false)?)?),
            Self::Candle(norm) => Ok(norm.forward(x)?),
        }
    }

    /// Group norm followed by SiLU.
    pub(crate) fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own(norm) => Ok(channels_first(&norm.group_norm(&channels_last(x)?, true)?)?),
            Self::Candle(norm) => Ok(norm.forward(x)?.silu()?),
        }
    }
}

/// Layer norm over the last dimension.
#[derive(Debug, Clone)]
pub(crate) enum LayerNorm {
    Own(Arc<cpu::Norm>),
    Candle(candle_nn::LayerNorm),
}

impl LayerNorm {
    pub(crate) fn new(vb: VarBuilder, width: usize, eps: f64) -> Result<Self> {
        let operators = Operators::of(&vb, OperatorKind::LayerNorm);
        Ok(match operators {
            Operators::Own(_) => {
                let vb = operators.source(vb);
                let (weight, bias) = (vb.get(width, "weight")?, vb.get(width, "bias")?);
                Self::Own(Arc::new(cpu::Norm::new(&weight, &bias, 1, eps)?))
            }
            Operators::Candle => Self::Candle(candle_nn::layer_norm(width, eps, vb)?),
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own(norm) => Ok(norm.layer_norm(x)?),
            Self::Candle(norm) => Ok(norm.forward(x)?),
        }
    }
}

/// A linear layer.
#[derive(Debug, Clone)]
pub(crate) enum Linear {
    Own(Arc<cpu::PackedLinear>),
    Candle(candle_nn::Linear),
}

impl Linear {
    pub(crate) fn new(vb: VarBuilder, input: usize, output: usize) -> Result<Self> {
        let operators = Operators::of(&vb, OperatorKind::Linear);
        Self::of(operators, candle_nn::linear(input, output, operators.source(vb))?)
    }

    pub(crate) fn without_bias(vb: VarBuilder, input: usize, output: usize) -> Result<Self> {
        let operators = Operators::of(&vb, OperatorKind::Linear);
        Self::of(operators, candle_nn::linear_no_bias(input, output, operators.source(vb))?)
    }

    /// A linear layer whose weights are stored as a 1×1 convolution's.
    pub(crate) fn stored_conv(vb: VarBuilder, input: usize, output: usize) -> Result<Self> {
        let operators = Operators::of(&vb, OperatorKind::Linear);
        let vb = operators.source(vb);
        let weight = vb.get((output, input, 1, 1), "weight")?.reshape((output, input))?;
        Self::of(operators, candle_nn::Linear::new(weight, Some(vb.get(output, "bias")?)))
    }

    fn of(operators: Operators, linear: candle_nn::Linear) -> Result<Self> {
        Ok(match operators {
            Operators::Own(precision) => {
                Self::Own(Arc::new(cpu::PackedLinear::new(precision, linear.weight(), linear.bias())?))
            }
            Operators::Candle => Self::Candle(linear),
        })
    }

    /// (…, input) -> (…, output).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own(linear) => Ok(linear.forward(x, None)?),
            Self::Candle(linear) => Ok(linear.forward(x)?),
        }
    }

    /// Adds `add`, of the output's shape, to the output.
    pub(crate) fn forward_add(&self, x: &Tensor, add: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own(linear) => Ok(linear.forward(x, Some(add))?),
            Self::Candle(linear) => Ok((linear.forward(x)? + add)?),
        }
    }
}

/// Multi-head attention between its projections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    operators: Operators,
    heads: usize,
    causal: bool,
}

impl Heads {
    /// If `causal`, each position attends only to itself and earlier ones.
    pub(crate) fn new(vb: &VarBuilder, heads: usize, causal: bool) -> Self {
        Self { operators: Operators::of(vb, OperatorKind::Attention), heads, causal }
    }

    /// (B, T, C), (B, S, C), (B, S, C) -> (B, T, C). Scores are f32 even in a half-precision model.
    pub(crate) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if self.operators != Operators::Candle {
            return Ok(cpu::attention(q, k, v, self.heads, self.causal)?);
        }
        let (q, k, v) = (self.split(q)?, self.split(k)?, self.split(v)?);
        let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
        let mut scores = (q * scale)?.to_dtype(DType::F32)?.matmul(&k.to_dtype(DType::F32)?.t()?)?;
        if self.causal {
            scores = scores.broadcast_add(&causal_mask(k.dim(2)?, k.device())?)?;
        }
        let shares = ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        Ok(shares.matmul(&v)?.transpose(1, 2)?.flatten_from(2)?)
    }

    /// (B, T, C) -> (B, heads, T, C / heads). The result is contiguous, because candle's matmul takes no doubly strided batch.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, length, width) = x.dims3()?;
        let heads = x.reshape((batch, length, self.heads, width / self.heads))?;
        Ok(heads.transpose(1, 2)?.contiguous()?)
    }
}

/// The mask (T, T): minus infinity where a position would attend to a later one.
fn causal_mask(length: usize, device: &Device) -> Result<Tensor> {
    let mask = (0..length * length).map(|i| if i % length > i / length { f32::NEG_INFINITY } else { 0.0 });
    Ok(Tensor::from_vec(mask.collect::<Vec<_>>(), (length, length), device)?)
}

/// GEGLU (Shazeer 2020, arXiv 2002.05202): the first half of the features times the GELU of the second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geglu(Operators);

impl Geglu {
    pub(crate) fn new(vb: &VarBuilder) -> Self {
        Self(Operators::of(vb, OperatorKind::Geglu))
    }

    /// (…, 2 C) -> (…, C).
    pub(crate) fn forward(self, x: &Tensor) -> Result<Tensor> {
        if self.0 != Operators::Candle {
            return Ok(cpu::geglu(x)?);
        }
        let half = x.dim(D::Minus1)? / 2;
        let gate = x.narrow(D::Minus1, half, half)?.gelu_erf()?;
        Ok((x.narrow(D::Minus1, 0, half)? * gate)?)
    }
}
