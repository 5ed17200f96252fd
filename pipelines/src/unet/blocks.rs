//! The UNet's down, middle and up blocks.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;

use super::attention::SpatialTransformer;
use super::config::{Stage, UNetConfig};
use super::resnet::{Downsample, NormConfig, ResnetBlock, Upsample};
use crate::error::{Error, Result};
use crate::layers::join_channels;

/// The conditioning of all blocks in one call.
pub(super) struct Condition<'a> {
    /// (B, time width): the time embedding after its SiLU.
    pub(super) time: &'a Tensor,
    /// (B, T, D): the token states.
    pub(super) token_states: &'a Tensor,
}

/// Makes blocks with a model's common settings.
pub(super) struct Loader<'a> {
    pub(super) config: &'a UNetConfig,
    pub(super) time_width: usize,
}

impl Loader<'_> {
    fn resnet(&self, vb: &VarBuilder, i: usize, input: usize, output: usize) -> Result<ResnetBlock> {
        let norm = NormConfig { groups: self.config.norm_num_groups, eps: self.config.norm_eps };
        ResnetBlock::new(vb.pp("resnets").pp(i), input, output, Some(self.time_width), norm)
    }

    fn transformer(&self, vb: &VarBuilder, i: usize, stage: &Stage) -> Result<SpatialTransformer> {
        let (groups, linear) = (self.config.norm_num_groups, self.config.use_linear_projection);
        SpatialTransformer::new(vb.pp("attentions").pp(i), stage, groups, linear)
    }
}

/// A ResNet block, and a transformer if the stage has attention.
#[derive(Debug, Clone)]
struct BlockLayer {
    resnet: ResnetBlock,
    transformer: Option<SpatialTransformer>,
}

impl BlockLayer {
    fn forward(&self, x: &Tensor, condition: &Condition) -> Result<Tensor> {
        let h = self.resnet.forward(x, Some(condition.time))?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&h, condition.token_states),
            None => Ok(h),
        }
    }
}

/// `DownBlock2D` or `CrossAttnDownBlock2D`.
#[derive(Debug, Clone)]
pub(super) struct DownBlock {
    layers: Vec<BlockLayer>,
    downsample: Option<Downsample>,
}

impl DownBlock {
    /// The block of stage `index`. All blocks but the last halve the latent.
    pub(super) fn new(vb: VarBuilder, loader: &Loader, index: usize) -> Result<Self> {
        let stages = &loader.config.stages;
        let stage = &stages[index];
        let from = stages[index.saturating_sub(1)].channels;
        let layer = |i| {
            let input = if i == 0 { from } else { stage.channels };
            Ok(BlockLayer {
                resnet: loader.resnet(&vb, i, input, stage.channels)?,
                transformer: stage.down_attention.then(|| loader.transformer(&vb, i, stage)).transpose()?,
            })
        };
        let halve =
            || Downsample::new(vb.pp("downsamplers.0"), stage.channels, loader.config.downsample_padding);
        Ok(Self {
            layers: (0..stage.layers).map(layer).collect::<Result<_>>()?,
            downsample: (index + 1 < stages.len()).then(halve).transpose()?,
        })
    }

    /// Pushes its skips, which the up blocks use.
    pub(super) fn forward(
        &self,
        x: Tensor,
        condition: &Condition,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut x = x;
        for layer in &self.layers {
            x = layer.forward(&x, condition)?;
            skips.push(x.clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// `UNetMidBlock2DCrossAttn`.
#[derive(Debug, Clone)]
pub(super) struct MidBlock {
    before: BlockLayer,
    after: ResnetBlock,
}

impl MidBlock {
    pub(super) fn new(vb: VarBuilder, loader: &Loader, stage: &Stage) -> Result<Self> {
        let channels = stage.channels;
        let transformer = Some(loader.transformer(&vb, 0, stage)?);
        Ok(Self {
            before: BlockLayer { resnet: loader.resnet(&vb, 0, channels, channels)?, transformer },
            after: loader.resnet(&vb, 1, channels, channels)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, condition: &Condition) -> Result<Tensor> {
        let h = self.before.forward(x, condition)?;
        self.after.forward(&h, Some(condition.time))
    }
}

/// `UpBlock2D` or `CrossAttnUpBlock2D`.
#[derive(Debug, Clone)]
pub(super) struct UpBlock {
    layers: Vec<BlockLayer>,
    upsample: Option<Upsample>,
}

impl UpBlock {
    /// The block of stage `index`. All blocks but stage 0's double the latent.
    pub(super) fn new(vb: VarBuilder, loader: &Loader, index: usize) -> Result<Self> {
        let stages = &loader.config.stages;
        let stage = &stages[index];
        let below = stages[(index + 1).min(stages.len() - 1)].channels;
        // The last skip of a stage is the output of the finer stage's down block.
        let from_finer = stages[index.saturating_sub(1)].channels;
        let layer = |i| {
            let from = if i == 0 { below } else { stage.channels };
            let skip = if i == stage.layers { from_finer } else { stage.channels };
            Ok(BlockLayer {
                resnet: loader.resnet(&vb, i, from + skip, stage.channels)?,
                transformer: stage.up_attention.then(|| loader.transformer(&vb, i, stage)).transpose()?,
            })
        };
        let double = || Upsample::new(vb.pp("upsamplers.0"), stage.channels);
        Ok(Self {
            layers: (0..=stage.layers).map(layer).collect::<Result<_>>()?,
            upsample: (index > 0).then(double).transpose()?,
        })
    }

    /// Pops its skips. The output is upsampled to the next skip's size, which is not twice its own if a side was odd.
    pub(super) fn forward(
        &self,
        x: Tensor,
        condition: &Condition,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let exhausted = || Error::config("unet/config.json", "layers_per_block: an up block lacks a skip");
        let mut x = x;
        for layer in &self.layers {
            let skip = skips.pop().ok_or_else(exhausted)?;
            x = layer.forward(&join_channels(&x, &skip)?, condition)?;
        }
        if let Some(upsample) = &self.upsample {
            let next = skips.last().ok_or_else(exhausted)?;
            x = upsample.forward(&x, (next.dim(D::Minus2)?, next.dim(D::Minus1)?))?;
        }
        Ok(x)
    }
}
