//! Attention over a latent's positions, and from there to the prompt's token states.

use candle_core::{D, DType, Module, Tensor};
use candle_nn::{GroupNorm, LayerNorm, Linear, VarBuilder, layer_norm, linear, linear_b, ops};

use super::config::Stage;
use super::resnet::NormConfig;
use crate::error::Result;

/// Multi-head attention with diffusers' names.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Attention {
    /// The UNet's: no bias on the projections in, `width` channels attend to `source` wide states.
    pub(crate) fn new(vb: VarBuilder, width: usize, source: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: linear_b(width, width, false, vb.pp("to_q"))?,
            to_k: linear_b(source, width, false, vb.pp("to_k"))?,
            to_v: linear_b(source, width, false, vb.pp("to_v"))?,
            to_out: linear(width, width, vb.pp("to_out.0"))?,
            heads,
        })
    }

    /// The VAE's: one head, biases, and in files older than diffusers 0.15 other names.
    pub(crate) fn single_head(vb: VarBuilder, width: usize) -> Result<Self> {
        let names = match vb.contains_tensor("query.weight") {
            true => ["query", "key", "value", "proj_attn"],
            false => ["to_q", "to_k", "to_v", "to_out.0"],
        };
        let [to_q, to_k, to_v, to_out] = names.map(|name| linear(width, width, vb.pp(name)));
        Ok(Self { to_q: to_q?, to_k: to_k?, to_v: to_v?, to_out: to_out?, heads: 1 })
    }

    /// (B, T, width), (B, S, source) -> (B, T, width). Scores are f32 in a half-precision model as well.
    pub(crate) fn forward(&self, x: &Tensor, source: &Tensor) -> Result<Tensor> {
        let q = self.split(&self.to_q.forward(x)?)?;
        let k = self.split(&self.to_k.forward(source)?)?;
        let v = self.split(&self.to_v.forward(source)?)?;
        let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
        let scores = (q * scale)?.to_dtype(DType::F32)?.matmul(&k.to_dtype(DType::F32)?.t()?)?;
        let shares = ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        let mixed = shares.matmul(&v)?.transpose(1, 2)?.flatten_from(2)?;
        Ok(self.to_out.forward(&mixed)?)
    }

    /// (B, T, width) -> (B, heads, T, width / heads), contiguous: candle's matmul takes no doubly strided batch.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, length, width) = x.dims3()?;
        let heads = x.reshape((batch, length, self.heads, width / self.heads))?;
        Ok(heads.transpose(1, 2)?.contiguous()?)
    }
}

/// diffusers' `FeedForward` with GEGLU (Shazeer 2020, arXiv 2002.05202), four times as wide inside.
#[derive(Debug, Clone)]
struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(vb: VarBuilder, width: usize) -> Result<Self> {
        let inner = width * 4;
        Ok(Self {
            proj: linear(width, inner * 2, vb.pp("net.0.proj"))?,
            out: linear(inner, width, vb.pp("net.2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.proj.forward(x)?;
        let inner = both.dim(D::Minus1)? / 2;
        let gate = both.narrow(D::Minus1, inner, inner)?.gelu_erf()?;
        Ok(self.out.forward(&(both.narrow(D::Minus1, 0, inner)? * gate)?)?)
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
        let norm = |name: &str| layer_norm(width, 1e-5, vb.pp(name));
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(vb.pp("attn1"), width, width, stage.heads)?,
            norm2: norm("norm2")?,
            attn2: Attention::new(vb.pp("attn2"), width, stage.token_width, stage.heads)?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(vb.pp("ff"), width)?,
        })
    }

    /// (B, T, width) -> the same.
    ///
    /// Token merging (Bolya & Hoffman 2023, arXiv 2303.17604) belongs around `attn1`: merge `h`, attend,
    /// unmerge before the residual. Nothing outside this function would see it.
    fn forward(&self, x: &Tensor, token_states: &Tensor) -> Result<Tensor> {
        let h = self.norm1.forward(x)?;
        let x = (self.attn1.forward(&h, &h)? + x)?;
        let x = (self.attn2.forward(&self.norm2.forward(&x)?, token_states)? + &x)?;
        Ok((self.ff.forward(&self.norm3.forward(&x)?)? + &x)?)
    }
}

/// diffusers' `Transformer2DModel`: a latent's positions as a sequence, and back.
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

    /// (B, C, H, W) -> the same.
    pub(crate) fn forward(&self, x: &Tensor, token_states: &Tensor) -> Result<Tensor> {
        let sequence = self.norm.forward(x)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let mut h = self.proj_in.forward(&sequence)?;
        for block in &self.blocks {
            h = block.forward(&h, token_states)?;
        }
        let h = self.proj_out.forward(&h)?.transpose(1, 2)?.reshape(x.shape())?;
        Ok((h + x)?)
    }
}

/// A projection that files store as a linear layer or as a 1×1 convolution; on a sequence both are the former.
fn projection(vb: VarBuilder, width: usize, stored_linear: bool) -> Result<Linear> {
    if stored_linear {
        return Ok(linear(width, width, vb)?);
    }
    let weight = vb.get((width, width, 1, 1), "weight")?.reshape((width, width))?;
    Ok(Linear::new(weight, Some(vb.get(width, "bias")?)))
}
