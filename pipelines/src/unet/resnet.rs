//! The convolutional blocks of UNet and VAE: ResNet block, downsampling, upsampling.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::error::Result;
use crate::layers::{Conv2d, Geometry, GroupNorm, Linear};

/// The settings of group norm, which all blocks of a model share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormConfig {
    pub(crate) groups: usize,
    pub(crate) eps: f64,
}

impl NormConfig {
    pub(crate) fn load(self, vb: VarBuilder, channels: usize) -> Result<GroupNorm> {
        GroupNorm::new(vb, self.groups, channels, self.eps)
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
    /// `time_width` is the time embedding's width; `None` in a VAE.
    pub(crate) fn new(
        vb: VarBuilder,
        input: usize,
        output: usize,
        time_width: Option<usize>,
        norm: NormConfig,
    ) -> Result<Self> {
        let project = |width| Linear::new(vb.pp("time_emb_proj"), width, output);
        let shortcut = || Conv2d::point(vb.pp("conv_shortcut"), input, output);
        Ok(Self {
            norm1: norm.load(vb.pp("norm1"), input)?,
            conv1: Conv2d::same(vb.pp("conv1"), input, output)?,
            time_emb_proj: time_width.map(project).transpose()?,
            norm2: norm.load(vb.pp("norm2"), output)?,
            conv2: Conv2d::same(vb.pp("conv2"), output, output)?,
            conv_shortcut: (input != output).then(shortcut).transpose()?,
        })
    }

    /// (B, input, H, W) -> (B, output, H, W). `time` (B, time_width) includes its SiLU, which is applied once for all blocks.
    pub(crate) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let h = self.norm1.forward_silu(x)?;
        let h = match (&self.time_emb_proj, time) {
            (Some(project), Some(time)) => self.conv1.forward_shift(&h, &project.forward(time)?)?,
            _ => self.conv1.forward(&h)?,
        };
        let h = self.norm2.forward_silu(&h)?;
        match &self.conv_shortcut {
            Some(shortcut) => self.conv2.forward_add(&h, &shortcut.forward(x)?),
            None => self.conv2.forward_add(&h, x),
        }
    }
}

/// diffusers' `Downsample2D`: a 3×3 convolution of stride 2.
#[derive(Debug, Clone)]
pub(crate) struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// `padding` 0 means one row and one column of zeros at the bottom and right, as in diffusers.
    pub(crate) fn new(vb: VarBuilder, channels: usize, padding: usize) -> Result<Self> {
        let geometry = Geometry { stride: 2, near: padding, far: padding.max(1) };
        Ok(Self { conv: Conv2d::new(vb.pp("conv"), channels, channels, 3, geometry)? })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv.forward(x)
    }
}

/// diffusers' `Upsample2D`: resizing by nearest neighbour, then a 3×3 convolution.
#[derive(Debug, Clone)]
pub(crate) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub(crate) fn new(vb: VarBuilder, channels: usize) -> Result<Self> {
        Ok(Self { conv: Conv2d::same(vb.pp("conv"), channels, channels)? })
    }

    pub(crate) fn forward(&self, x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
        self.conv.forward_resized(x, size)
    }
}
