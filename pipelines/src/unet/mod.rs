//! The denoiser: Stable Diffusion's UNet (Rombach et al. 2022, arXiv 2112.10752) with diffusers' parameter names.
//!
//! candle-transformers' UNet is not used, because it takes one timestep for a whole batch and cannot be extended. Planned
//! extensions and their places:
//! - *Adapters (LoRA)* are applied per row: a linear or convolution layer adds each row's low-rank term beside the base product,
//!   in `layers.rs`.
//! - *Token merging* goes around the self-attention: see `TransformerBlock::forward` in `attention.rs`.
//! - *Deep-feature reuse* (DeepCache, Ma et al. 2023, arXiv 2312.00858): [`UNet::forward`] runs down blocks, a middle block and up
//!   blocks, which share one stack of skips. A step that reuses features runs only the first down blocks and the last up blocks,
//!   whose input was stored in the step before.

mod attention;
mod blocks;
mod config;
mod embeddings;
mod resnet;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;

use self::blocks::{Condition, DownBlock, Loader, MidBlock, UpBlock};
use self::embeddings::{Sinusoid, TimestepEmbedding};
use crate::error::{Error, Result};
use crate::layers::{Conv2d, GroupNorm, Operators};

pub(crate) use self::attention::Attention;
pub use self::config::{Stage, TextTimeConfig, UNetConfig};
pub(crate) use self::resnet::{Downsample, NormConfig, ResnetBlock, Upsample};

/// SDXL's additional conditioning, one row per sample of the batch.
#[derive(Debug, Clone)]
pub struct AddedConditioning {
    /// (B, P): the pooled, projected text embedding.
    pub pooled: Tensor,
    /// (B, 6): original height and width, crop top and left, target height and width, all in pixels.
    pub time_ids: Tensor,
}

/// Embeds [`AddedConditioning`].
#[derive(Debug, Clone)]
struct TextTime {
    sinusoid: Sinusoid,
    embedding: TimestepEmbedding,
    input_width: usize,
}

impl TextTime {
    fn new(vb: VarBuilder, config: &UNetConfig, text_time: &TextTimeConfig, width: usize) -> Result<Self> {
        let (flip, shift) = (config.flip_sin_to_cos, config.freq_shift);
        Ok(Self {
            sinusoid: Sinusoid::new(text_time.time_id_width, flip, shift, vb.device())?,
            embedding: TimestepEmbedding::new(vb, text_time.input_width, width)?,
            input_width: text_time.input_width,
        })
    }

    /// (B, P), (B, 6) -> (B, time width).
    fn forward(&self, added: &AddedConditioning, dtype: DType) -> Result<Tensor> {
        let batch = added.time_ids.dim(0)?;
        let times = self.sinusoid.forward(&added.time_ids.flatten_all()?)?.reshape((batch, ()))?;
        let features = Tensor::cat(&[added.pooled.to_dtype(dtype)?, times.to_dtype(dtype)?], 1)?;
        let width = features.dim(1)?;
        if width != self.input_width {
            let wanted = self.input_width;
            return Err(Error::invalid("added", format!("{width} features, the model takes {wanted}")));
        }
        self.embedding.forward(&features)
    }
}

/// A `UNet2DConditionModel`.
#[derive(Debug, Clone)]
pub struct UNet {
    config: UNetConfig,
    dtype: DType,
    operators: Operators,
    time_proj: Sinusoid,
    time_embedding: TimestepEmbedding,
    text_time: Option<TextTime>,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: Option<MidBlock>,
    up: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet {
    /// Reads the weights under `vb`, whose root has `conv_in.weight`. The model computes in `vb`'s type.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming a tensor that is missing or has another shape.
    pub fn new(config: UNetConfig, vb: VarBuilder) -> Result<Self> {
        let operators = Operators::of_network(&vb);
        let first = config.stages.first().map(|stage| stage.channels).unwrap_or_default();
        let time_width = 4 * first;
        let loader = Loader { config: &config, time_width };
        let n = config.stages.len();
        let block = |name: &str, i: usize| vb.pp(name).pp(i);
        let text_time = config
            .text_time
            .as_ref()
            .map(|text_time| TextTime::new(vb.pp("add_embedding"), &config, text_time, time_width));
        let mid = config
            .stages
            .last()
            .filter(|_| config.mid_block)
            .map(|stage| MidBlock::new(vb.pp("mid_block"), &loader, stage));
        let norm = NormConfig { groups: config.norm_num_groups, eps: config.norm_eps };
        Ok(Self {
            dtype: operators.dtype(&vb),
            operators,
            time_proj: Sinusoid::new(first, config.flip_sin_to_cos, config.freq_shift, vb.device())?,
            time_embedding: TimestepEmbedding::new(vb.pp("time_embedding"), first, time_width)?,
            text_time: text_time.transpose()?,
            conv_in: Conv2d::same(vb.pp("conv_in"), config.in_channels, first)?,
            down: (0..n)
                .map(|i| DownBlock::new(block("down_blocks", i), &loader, i))
                .collect::<Result<_>>()?,
            mid: mid.transpose()?,
            up: (0..n)
                .map(|i| UpBlock::new(block("up_blocks", i), &loader, n - 1 - i))
                .collect::<Result<_>>()?,
            conv_norm_out: norm.load(vb.pp("conv_norm_out"), first)?,
            conv_out: Conv2d::same(vb.pp("conv_out"), first, config.out_channels)?,
            config,
        })
    }

    /// The architecture.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// Predicts the noise, or v, in each latent.
    ///
    /// - `sample` (B, C, H, W): the latents. Their sides must be at least 2 to the number of halvings;
    /// - `timesteps` (B,), f32: the timestep of each latent;
    /// - `token_states` (B, T, D);
    /// - `added`: required for SDXL models, and refused for others.
    ///
    /// Returns (B, C, H, W) in `sample`'s type. A sample's result does not depend on the other samples of the batch. With
    /// candle's operators the order of sums may differ.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming an argument whose shape does not fit, or [`Error::Tensor`].
    pub fn forward(
        &self,
        sample: &Tensor,
        timesteps: &Tensor,
        token_states: &Tensor,
        added: Option<&AddedConditioning>,
    ) -> Result<Tensor> {
        self.check(sample, timesteps, token_states)?;
        self.operators.run(|| self.call(sample, timesteps, token_states, added))
    }

    fn call(
        &self,
        sample: &Tensor,
        timesteps: &Tensor,
        token_states: &Tensor,
        added: Option<&AddedConditioning>,
    ) -> Result<Tensor> {
        let time = self.embed_time(timesteps, added)?;
        let token_states = token_states.to_dtype(self.dtype)?.contiguous()?;
        let condition = Condition { time: &time, token_states: &token_states };

        let mut x = self.conv_in.forward(&sample.to_dtype(self.dtype)?)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            x = block.forward(x, &condition, &mut skips)?;
        }
        if let Some(mid) = &self.mid {
            x = mid.forward(&x, &condition)?;
        }
        for block in &self.up {
            x = block.forward(x, &condition, &mut skips)?;
        }
        let x = self.conv_norm_out.forward_silu(&x)?;
        Ok(self.conv_out.forward(&x)?.to_dtype(sample.dtype())?.contiguous()?)
    }

    /// (B,) -> (B, time width). It includes the SiLU that every ResNet block would apply.
    fn embed_time(&self, timesteps: &Tensor, added: Option<&AddedConditioning>) -> Result<Tensor> {
        let features = self.time_proj.forward(timesteps)?.to_dtype(self.dtype)?;
        let mut time = self.time_embedding.forward(&features)?;
        match (&self.text_time, added) {
            (Some(text_time), Some(added)) => time = (time + text_time.forward(added, self.dtype)?)?,
            (Some(_), None) => {
                return Err(Error::invalid("added", "this model needs a pooled embedding and time ids"));
            }
            (None, Some(_)) => {
                return Err(Error::invalid("added", "this model takes no pooled embedding and time ids"));
            }
            (None, None) => {}
        }
        Ok(time.silu()?)
    }

    fn check(&self, sample: &Tensor, timesteps: &Tensor, token_states: &Tensor) -> Result<()> {
        let wrong = |field, tensor: &Tensor, wanted: String| {
            Err(Error::invalid(field, format!("shape {:?}, expected {wanted}", tensor.dims())))
        };
        let channels = self.config.in_channels;
        let batch = match *sample.dims() {
            [batch, c, h, w] if c == channels && h > 0 && w > 0 => batch,
            _ => return wrong("sample", sample, format!("(batch, {channels}, height, width)")),
        };
        if *timesteps.dims() != [batch] {
            return wrong("timesteps", timesteps, format!("({batch},)"));
        }
        // Stages may have different token widths. This checks the first stage with attention; the layers check the others.
        let attends = |stage: &&Stage| stage.down_attention || stage.up_attention || self.config.mid_block;
        let width = self.config.stages.iter().find(attends).map(|stage| stage.token_width);
        match *token_states.dims() {
            [b, _, d] if b == batch && width.is_none_or(|width| width == d) => Ok(()),
            _ => wrong("token_states", token_states, format!("({batch}, tokens, {})", width.unwrap_or(0))),
        }
    }
}
