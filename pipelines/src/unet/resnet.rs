//! Convolutional parts that the UNet and the VAE share: ResNet block, downsampling, upsampling.

use candle_core::{D, Module, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, Linear, VarBuilder, conv2d, group_norm, linear};

use crate::error::Result;

/// A 3×3 convolution that keeps the size.
pub(crate) fn conv3x3(vb: VarBuilder, input: usize, output: usize) -> Result<Conv2d> {
    Ok(conv2d(input, output, 3, Conv2dConfig { padding: 1, ..Default::default() }, vb)?)
}

/// Group norm's two numbers, which every block of a model shares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormConfig {
    pub(crate) groups: usize,
    pub(crate) eps: f64,
}

impl NormConfig {
    pub(crate) fn load(self, vb: VarBuilder, channels: usize) -> Result<GroupNorm> {
        Ok(group_norm(self.groups, channels, self.eps, vb)?)
    }
}

/// diffusers' `ResnetBlock2D`.
#[derive(Debug, Clone)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// `time_width`: the time embedding's width, `None` in a VAE.
    pub(crate) fn new(
        vb: VarBuilder,
        input: usize,
        output: usize,
        time_width: Option<usize>,
        norm: NormConfig,
    ) -> Result<Self> {
        let project = |width| linear(width, output, vb.pp("time_emb_proj"));
        let shortcut = || conv2d(input, output, 1, Default::default(), vb.pp("conv_shortcut"));
        Ok(Self {
            norm1: norm.load(vb.pp("norm1"), input)?,
            conv1: conv3x3(vb.pp("conv1"), input, output)?,
            time_emb_proj: time_width.map(project).transpose()?,
            norm2: norm.load(vb.pp("norm2"), output)?,
            conv2: conv3x3(vb.pp("conv2"), output, output)?,
            conv_shortcut: (input != output).then(shortcut).transpose()?,
        })
    }

    /// (B, input, H, W) -> (B, output, H, W). `time` (B, time_width) has been through the SiLU already, once for
    /// all blocks.
    pub(crate) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut h = self.conv1.forward(&self.norm1.forward(x)?.silu()?)?;
        if let (Some(project), Some(time)) = (&self.time_emb_proj, time) {
            let shift = project.forward(time)?.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?;
            h = h.broadcast_add(&shift)?;
        }
        let h = self.conv2.forward(&self.norm2.forward(&h)?.silu()?)?;
        match &self.conv_shortcut {
            Some(shortcut) => Ok((shortcut.forward(x)? + h)?),
            None => Ok((x + h)?),
        }
    }
}

/// diffusers' `Downsample2D`: a 3×3 convolution of stride 2.
#[derive(Debug, Clone)]
pub(crate) struct Downsample {
    conv: Conv2d,
    pad_far_edges: bool,
}

impl Downsample {
    /// `padding` 0 means one row and one column of zeros at the far edges, as diffusers has it.
    pub(crate) fn new(vb: VarBuilder, channels: usize, padding: usize) -> Result<Self> {
        let config = Conv2dConfig { stride: 2, padding, ..Default::default() };
        Ok(Self { conv: conv2d(channels, channels, 3, config, vb.pp("conv"))?, pad_far_edges: padding == 0 })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !self.pad_far_edges {
            return Ok(self.conv.forward(x)?);
        }
        let padded = x.pad_with_zeros(D::Minus1, 0, 1)?.pad_with_zeros(D::Minus2, 0, 1)?;
        Ok(self.conv.forward(&padded)?)
    }
}

/// diffusers' `Upsample2D`: nearest neighbour to a given size, then a 3×3 convolution.
#[derive(Debug, Clone)]
pub(crate) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub(crate) fn new(vb: VarBuilder, channels: usize) -> Result<Self> {
        Ok(Self { conv: conv3x3(vb.pp("conv"), channels, channels)? })
    }

    pub(crate) fn forward(&self, x: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
        Ok(self.conv.forward(&x.upsample_nearest2d(height, width)?)?)
    }
}
