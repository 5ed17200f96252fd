//! The autoencoder between pixels and latents: `AutoencoderKL` (Rombach et al. 2022, arXiv 2112.10752).
//!
//! It consists of the UNet's blocks. candle-transformers' autoencoder is not used, because it only returns samples of an
//! encoding and not the mean, and image-to-image must be reproducible.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json_config::{check_rest, parse, unsupported};
use crate::layers::{Conv2d, GroupNorm, Operators, to_picture, to_sequence};
use crate::unet::{Attention, Downsample, NormConfig, ResnetBlock, Upsample};

const FILE: &str = "vae/config.json";

/// The architecture of an `AutoencoderKL`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// The channels of an input picture.
    pub in_channels: usize,
    /// The channels of an output picture.
    pub out_channels: usize,
    /// The channels of a latent.
    pub latent_channels: usize,
    /// The channels at each resolution, from the finest to the coarsest.
    pub block_out_channels: Vec<usize>,
    /// The ResNet blocks per resolution in the encoder. The decoder has one more.
    pub layers_per_block: usize,
    /// The groups of every group norm.
    pub norm_num_groups: usize,
    /// The factor of the denoiser's latents, which makes their variance about one.
    pub scaling_factor: f64,
    /// The number that is subtracted from a latent before it is scaled.
    pub shift_factor: f64,
    /// Whether the middle blocks have attention.
    pub mid_block_add_attention: bool,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Default for VaeConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: 0.0,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            down_block_types: vec![DOWN.into()],
            up_block_types: vec![UP.into()],
            rest: Map::new(),
        }
    }
}

const DOWN: &str = "DownEncoderBlock2D";
const UP: &str = "UpDecoderBlock2D";

/// The keys that are supported with one value only. `force_upcast` is for fp16; this VAE decodes in f32.
const FIXED: &[(&str, &str)] = &[("act_fn", r#""silu""#), ("sample_size", "any"), ("force_upcast", "any")];

impl VaeConfig {
    /// Reads diffusers' `vae/config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, if the file does not parse or needs something that is not supported.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let config: Self = parse(FILE, bytes, |_| Ok(()))?;
        check_rest(FILE, &config.rest, FIXED)?;
        let stages = config.block_out_channels.len();
        for (key, types, known) in [
            ("down_block_types", &config.down_block_types, DOWN),
            ("up_block_types", &config.up_block_types, UP),
        ] {
            if let Some(other) = types.iter().find(|name| *name != known) {
                return Err(unsupported(FILE, key, &other.as_str().into()));
            }
            if types.len() != stages || stages == 0 {
                let n = types.len();
                return Err(Error::config(FILE, format!("{key}: {n} types for {stages} block_out_channels")));
            }
        }
        let groups = config.norm_num_groups;
        match config.block_out_channels.iter().find(|c| groups == 0 || !c.is_multiple_of(groups)) {
            Some(c) => Err(Error::config(FILE, format!("norm_num_groups: {groups} does not divide {c}"))),
            None => Ok(config),
        }
    }

    /// The pixels per latent position along each side.
    pub fn spatial_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    fn norm(&self) -> NormConfig {
        NormConfig { groups: self.norm_num_groups, eps: 1e-6 }
    }

    fn coarsest(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or_default()
    }

    fn finest(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or_default()
    }
}

/// The middle block's attention over all positions.
#[derive(Debug, Clone)]
struct MidAttention {
    group_norm: GroupNorm,
    attention: Attention,
}

impl MidAttention {
    fn new(vb: VarBuilder, config: &VaeConfig) -> Result<Self> {
        let channels = config.coarsest();
        let group_norm = config.norm().load(vb.pp("group_norm"), channels)?;
        Ok(Self { group_norm, attention: Attention::single_head(vb, channels)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let sequence = to_sequence(&self.group_norm.forward(x)?)?;
        to_picture(&self.attention.forward(&sequence, &sequence, &to_sequence(x)?)?, x)
    }
}

/// diffusers' `UNetMidBlock2D`.
#[derive(Debug, Clone)]
struct VaeMidBlock {
    before: ResnetBlock,
    attention: Option<MidAttention>,
    after: ResnetBlock,
}

impl VaeMidBlock {
    fn new(vb: VarBuilder, config: &VaeConfig) -> Result<Self> {
        let channels = config.coarsest();
        let resnet =
            |i: usize| ResnetBlock::new(vb.pp("resnets").pp(i), channels, channels, None, config.norm());
        let attention = || MidAttention::new(vb.pp("attentions.0"), config);
        Ok(Self {
            before: resnet(0)?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
            after: resnet(1)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.before.forward(x, None)?;
        if let Some(attention) = &self.attention {
            h = attention.forward(&h)?;
        }
        self.after.forward(&h, None)
    }
}

/// The ResNet blocks of one resolution.
fn resnets(vb: VarBuilder, config: &VaeConfig, n: usize, from: usize, to: usize) -> Result<Vec<ResnetBlock>> {
    let block = |i| {
        let input = if i == 0 { from } else { to };
        ResnetBlock::new(vb.pp("resnets").pp(i), input, to, None, config.norm())
    };
    (0..n).map(block).collect()
}

/// The last layers of encoder and decoder: norm, SiLU, convolution.
#[derive(Debug, Clone)]
struct OutputHead {
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl OutputHead {
    fn new(vb: &VarBuilder, config: &VaeConfig, input: usize, output: usize) -> Result<Self> {
        Ok(Self {
            conv_norm_out: config.norm().load(vb.pp("conv_norm_out"), input)?,
            conv_out: Conv2d::same(vb.pp("conv_out"), input, output)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv_out.forward(&self.conv_norm_out.forward_silu(x)?)
    }
}

#[derive(Debug, Clone)]
struct Encoder {
    conv_in: Conv2d,
    down: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    mid: VaeMidBlock,
    head: OutputHead,
}

impl Encoder {
    fn new(vb: VarBuilder, config: &VaeConfig) -> Result<Self> {
        let widths = &config.block_out_channels;
        let block = |i: usize| {
            let vb = vb.pp("down_blocks").pp(i);
            let from = widths[i.saturating_sub(1)];
            let downsample = || Downsample::new(vb.pp("downsamplers.0"), widths[i], 0);
            let halve = (i + 1 < widths.len()).then(downsample).transpose()?;
            Ok((resnets(vb, config, config.layers_per_block, from, widths[i])?, halve))
        };
        Ok(Self {
            conv_in: Conv2d::same(vb.pp("conv_in"), config.in_channels, config.finest())?,
            down: (0..widths.len()).map(block).collect::<Result<_>>()?,
            mid: VaeMidBlock::new(vb.pp("mid_block"), config)?,
            head: OutputHead::new(&vb, config, config.coarsest(), 2 * config.latent_channels)?,
        })
    }

    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for (resnets, halve) in &self.down {
            for resnet in resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(halve) = halve {
                x = halve.forward(&x)?;
            }
        }
        self.head.forward(&self.mid.forward(&x)?)
    }
}

#[derive(Debug, Clone)]
struct Decoder {
    conv_in: Conv2d,
    mid: VaeMidBlock,
    up: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    head: OutputHead,
}

impl Decoder {
    fn new(vb: VarBuilder, config: &VaeConfig) -> Result<Self> {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let block = |i: usize| {
            let vb = vb.pp("up_blocks").pp(i);
            let from = widths[i.saturating_sub(1)];
            let upsample = || Upsample::new(vb.pp("upsamplers.0"), widths[i]);
            let double = (i + 1 < widths.len()).then(upsample).transpose()?;
            Ok((resnets(vb, config, config.layers_per_block + 1, from, widths[i])?, double))
        };
        Ok(Self {
            conv_in: Conv2d::same(vb.pp("conv_in"), config.latent_channels, config.coarsest())?,
            mid: VaeMidBlock::new(vb.pp("mid_block"), config)?,
            up: (0..widths.len()).map(block).collect::<Result<_>>()?,
            head: OutputHead::new(&vb, config, config.finest(), config.out_channels)?,
        })
    }

    fn forward(&self, latent: &Tensor) -> Result<Tensor> {
        let mut x = self.mid.forward(&self.conv_in.forward(latent)?)?;
        for (resnets, double) in &self.up {
            for resnet in resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(double) = double {
                let (_, _, height, width) = x.dims4()?;
                x = double.forward(&x, (2 * height, 2 * width))?;
            }
        }
        self.head.forward(&x)
    }
}

/// An `AutoencoderKL`.
#[derive(Debug, Clone)]
pub struct Vae {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    dtype: DType,
    operators: Operators,
    config: VaeConfig,
}

impl Vae {
    /// Reads the weights `encoder` and `decoder` under `vb`. The model computes in `vb`'s type.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming a tensor that is missing or has another shape.
    pub fn new(config: VaeConfig, vb: VarBuilder) -> Result<Self> {
        let conv = |name: &str, channels: usize| Conv2d::point(vb.pp(name), channels, channels);
        let latent = config.latent_channels;
        let operators = Operators::of_network(&vb);
        Ok(Self {
            encoder: Encoder::new(vb.pp("encoder"), &config)?,
            quant_conv: config.use_quant_conv.then(|| conv("quant_conv", 2 * latent)).transpose()?,
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| conv("post_quant_conv", latent))
                .transpose()?,
            decoder: Decoder::new(vb.pp("decoder"), &config)?,
            dtype: operators.dtype(&vb),
            operators,
            config,
        })
    }

    /// The architecture.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Decodes the denoiser's latents (B, C, h, w) to pictures (B, 3, H, W). H and W are [`VaeConfig::spatial_factor`] times h and
    /// w. The values are nominally in [-1, 1], but not clamped.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn decode(&self, latent: &Tensor) -> Result<Tensor> {
        let dtype = latent.dtype();
        let unscaled = latent.affine(1.0 / self.config.scaling_factor, self.config.shift_factor)?;
        let unscaled = unscaled.to_dtype(self.dtype)?;
        let decode = || self.decoder.forward(&apply(&self.post_quant_conv, unscaled)?);
        Ok(self.operators.run(decode)?.to_dtype(dtype)?.contiguous()?)
    }

    /// Encodes pictures (B, 3, H, W) in [-1, 1] to the denoiser's latents (B, C, h, w). H and W must be multiples of
    /// [`VaeConfig::spatial_factor`]. The latents are the means of the encodings, so that the same picture always has the same
    /// latent.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn encode(&self, image: &Tensor) -> Result<Tensor> {
        let x = image.to_dtype(self.dtype)?;
        let encode = || apply(&self.quant_conv, self.encoder.forward(&x)?);
        let moments = self.operators.run(encode)?.contiguous()?;
        let mean = moments.narrow(1, 0, self.config.latent_channels)?.to_dtype(image.dtype())?;
        let scale = self.config.scaling_factor;
        Ok(mean.affine(scale, -self.config.shift_factor * scale)?)
    }
}

fn apply(conv: &Option<Conv2d>, x: Tensor) -> Result<Tensor> {
    match conv {
        Some(conv) => conv.forward(&x),
        None => Ok(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_keys_are_named() {
        for (key, value) in [
            ("latents_mean", "[0.1]"),
            ("act_fn", r#""relu""#),
            ("down_block_types", r#"["AttnDownEncoderBlock2D"]"#),
            ("block_out_channels", "[33]"),
            ("a_key_of_tomorrow", "1"),
        ] {
            let error = VaeConfig::from_json(format!(r#"{{"{key}": {value}}}"#).as_bytes()).unwrap_err();
            let named = if key == "block_out_channels" { "norm_num_groups" } else { key };
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
