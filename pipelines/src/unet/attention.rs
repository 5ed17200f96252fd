//! The UNet's transformers: attention between a latent's positions, and from these to the token states.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::config::Stage;
use super::resnet::NormConfig;
use crate::error::Result;
use crate::layers::{Geglu, GroupNorm, Heads, LayerNorm, Linear, to_picture, to_sequence};

/// Multi-head attention with diffusers' names.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: Heads,
}

impl Attention {
    /// The UNet's attention. Its input projections have no bias. `source` is the width of the states that it attends to.
    pub(crate) fn new(vb: VarBuilder, width: usize, source: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: Linear::without_bias(vb.pp("to_q"), width, width)?,
            to_k: Linear::without_bias(vb.pp("to_k"), source, width)?,
            to_v: Linear::without_bias(vb.pp("to_v"), source, width)?,
            to_out: Linear::new(vb.pp("to_out.0"), width, width)?,
            heads: Heads::new(&vb, heads, false),
        })
    }

    /// The VAE's attention. It has one head and biases. In files older than diffusers 0.15 it has other names.
    pub(crate) fn single_head(vb: VarBuilder, width: usize) -> Result<Self> {
        let names = match vb.contains_tensor("query.weight") {
            true => ["query", "key", "value", "proj_attn"],
            false => ["to_q", "to_k", "to_v", "to_out.0"],
        };
        let [to_q, to_k, to_v, to_out] = names.map(|name| Linear::new(vb.pp(name), width, width));
        Ok(Self { to_q: to_q?, to_k: to_k?, to_v: to_v?, to_out: to_out?, heads: Heads::new(&vb, 1, false) })
    }

    /// (B, T, width), (B, S, source) -> (B, T, width). `residual` is added.
    pub(crate) fn forward(&self, x: &Tensor, source: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(source)?, self.to_v.forward(source)?);
        self.to_out.forward_add(&self.heads.attend(&q, &k, &v)?, residual)
    }
}

/// diffusers' `FeedForward` with GEGLU. Its inner width is four times the outer one.
#[derive(Debug, Clone)]
struct FeedForward {
    proj: Linear,
    gate: Geglu,
    out: Linear,
}

impl FeedForward {
    fn new(vb: VarBuilder, width: usize) -> Result<Self> {
        let inner = width * 4;
        Ok(Self {
            proj: Linear::new(vb.pp("net.0.proj"), width, inner * 2)?,
            gate: Geglu::new(&vb),
            out: Linear::new(vb.pp("net.2"), inner, width)?,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.out.forward_add(&self.gate.forward(&self.proj.forward(x)?)?, residual)
    }
}

/// diffusers' `BasicTransformerBlock`: self-attention, attention to the token states, feed-forward.
#[derive(Debug, Clone)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(vb: VarBuilder, width: usize, stage: &Stage) -> Result<Self> {
        let norm = |name: &str| LayerNorm::new(vb.pp(name), width, 1e-5);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(vb.pp("attn1"), width, width, stage.heads)?,
            norm2: norm("norm2")?,
            attn2: Attention::new(vb.pp("attn2"), width, stage.token_width, stage.heads)?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(vb.pp("ff"), width)?,
        })
    }

    /// (B, T, width) -> (B, T, width).
    ///
    /// Token merging (Bolya & Hoffman 2023, arXiv 2303.17604) would go around `attn1`: merge `h`, attend, and unmerge before the
    /// residual. It would not affect code outside this function.
    fn forward(&self, x: &Tensor, token_states: &Tensor) -> Result<Tensor> {
        let h = self.norm1.forward(x)?;
        let x = self.attn1.forward(&h, &h, x)?;
        let x = self.attn2.forward(&self.norm2.forward(&x)?, token_states, &x)?;
        self.ff.forward(&self.norm3.forward(&x)?, &x)
    }
}

/// diffusers' `Transformer2DModel`. It treats a latent's positions as a sequence.
#[derive(Debug, Clone)]
pub(crate) struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

impl SpatialTransformer {
    pub(crate) fn new(vb: VarBuilder, stage: &Stage, groups: usize, linear_projection: bool) -> Result<Self> {
        let width = stage.channels;
        let blocks = vb.pp("transformer_blocks");
        Ok(Self {
            norm: NormConfig { groups, eps: 1e-6 }.load(vb.pp("norm"), width)?,
            proj_in: projection(vb.pp("proj_in"), width, linear_projection)?,
            blocks: (0..stage.transformer_layers)
                .map(|i| TransformerBlock::new(blocks.pp(i), width, stage))
                .collect::<Result<_>>()?,
            proj_out: projection(vb.pp("proj_out"), width, linear_projection)?,
        })
    }

    /// (B, C, H, W) -> (B, C, H, W).
    pub(crate) fn forward(&self, x: &Tensor, token_states: &Tensor) -> Result<Tensor> {
        let mut h = self.proj_in.forward(&to_sequence(&self.norm.forward(x)?)?)?;
        for block in &self.blocks {
            h = block.forward(&h, token_states)?;
        }
        to_picture(&self.proj_out.forward_add(&h, &to_sequence(x)?)?, x)
    }
}

/// A projection, which files store as a linear layer or as a 1×1 convolution. On a sequence both are a linear layer.
fn projection(vb: VarBuilder, width: usize, stored_linear: bool) -> Result<Linear> {
    if stored_linear { Linear::new(vb, width, width) } else { Linear::stored_conv(vb, width, width) }
}
