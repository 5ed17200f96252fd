//! diffusers' `unet/config.json`, resolved per resolution. Unsupported values are refused.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json_config::{check_rest, parse, unsupported};

const FILE: &str = "unet/config.json";

/// One resolution of the UNet, with its down and up blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// The channels at this resolution.
    pub channels: usize,
    /// The ResNet blocks of the down block. The up block has one more.
    pub layers: usize,
    /// Whether the down block attends to the token states (`CrossAttnDownBlock2D`).
    pub down_attention: bool,
    /// Whether the up block attends to the token states (`CrossAttnUpBlock2D`).
    pub up_attention: bool,
    /// The attention heads. In diffusers' files the key is `attention_head_dim`.
    pub heads: usize,
    /// The transformer blocks per attention layer.
    pub transformer_layers: usize,
    /// The width of the token states.
    pub token_width: usize,
}

/// SDXL's additional conditioning, `addition_embed_type: "text_time"` (Podell et al. 2023, arXiv 2307.01952).
#[derive(Debug, Clone, PartialEq)]
pub struct TextTimeConfig {
    /// The sinusoid width of each time id.
    pub time_id_width: usize,
    /// The width of the pooled embedding and all time ids' sinusoids together.
    pub input_width: usize,
}

/// The architecture of a `UNet2DConditionModel`.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetConfig {
    /// The channels of the input latent.
    pub in_channels: usize,
    /// The channels of the output.
    pub out_channels: usize,
    /// The latent's (height, width) in training; `None` if the file does not state it.
    pub sample_size: Option<(usize, usize)>,
    /// The resolutions, from the finest to the coarsest.
    pub stages: Vec<Stage>,
    /// Whether there is a middle block.
    pub mid_block: bool,
    /// The groups of every group norm.
    pub norm_num_groups: usize,
    /// The epsilon of the group norms outside the transformers.
    pub norm_eps: f64,
    /// The padding of a downsampling convolution. 0 means one row and one column at the bottom and right only.
    pub downsample_padding: usize,
    /// Whether cosines come first in the time embedding.
    pub flip_sin_to_cos: bool,
    /// diffusers' `freq_shift` of the time embedding.
    pub freq_shift: f64,
    /// Whether the transformers' projections are stored as linear layers instead of 1×1 convolutions.
    pub use_linear_projection: bool,
    /// SDXL's additional conditioning; `None` for other models.
    pub text_time: Option<TextTimeConfig>,
}

/// One value for all stages, or one per stage.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum PerStage {
    All(usize),
    Each(Vec<usize>),
}

impl PerStage {
    fn get(&self, key: &str, stages: usize) -> Result<Vec<usize>> {
        match self {
            Self::All(value) => Ok(vec![*value; stages]),
            Self::Each(values) if values.len() == stages => Ok(values.clone()),
            Self::Each(values) => Err(Error::config(
                FILE,
                format!("{key}: {} values for {stages} entries of block_out_channels", values.len()),
            )),
        }
    }
}

/// The file's keys, with diffusers' defaults.
#[derive(Deserialize)]
#[serde(default)]
struct UNetFile {
    in_channels: usize,
    out_channels: usize,
    sample_size: Option<PerStage>,
    block_out_channels: Vec<usize>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    mid_block_type: String,
    layers_per_block: PerStage,
    attention_head_dim: PerStage,
    transformer_layers_per_block: PerStage,
    cross_attention_dim: PerStage,
    norm_num_groups: usize,
    norm_eps: f64,
    downsample_padding: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    use_linear_projection: bool,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Default for UNetFile {
    fn default() -> Self {
        let types = |names: [&str; 4]| names.map(String::from).to_vec();
        let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
        Self {
            in_channels: 4,
            out_channels: 4,
            sample_size: None,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_block_types: types([down, down, down, "DownBlock2D"]),
            up_block_types: types(["UpBlock2D", up, up, up]),
            mid_block_type: MID_BLOCK.into(),
            layers_per_block: PerStage::All(2),
            attention_head_dim: PerStage::All(8),
            transformer_layers_per_block: PerStage::All(1),
            cross_attention_dim: PerStage::All(1280),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            downsample_padding: 1,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            use_linear_projection: false,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            rest: Map::new(),
        }
    }
}

const MID_BLOCK: &str = "UNetMidBlock2DCrossAttn";

/// The keys that are supported with one value only. `any` marks keys that do not change inference. `upcast_attention` is one of
/// them, because attention is always computed in f32.
const FIXED: &[(&str, &str)] = &[
    ("act_fn", r#""silu""#),
    ("addition_embed_type_num_heads", "any"),
    ("attention_type", r#""default""#),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("dropout", "any"),
    ("mid_block_scale_factor", "1"),
    ("resnet_out_scale_factor", "1"),
    ("resnet_time_scale_shift", r#""default""#),
    ("time_embedding_type", r#""positional""#),
    ("upcast_attention", "any"),
];

impl UNetConfig {
    /// Reads diffusers' `unet/config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, if the file does not parse or needs something that is not supported.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let raw: UNetFile = parse(FILE, bytes, |map| {
            for key in ["mid_block_type", "norm_num_groups"] {
                match map.get(key) {
                    // For these two keys null is not the same as absent: it means no middle block, or no norms.
                    Some(Value::Null) if key == "mid_block_type" => map[key] = Value::from("none"),
                    Some(Value::Null) => return Err(unsupported(FILE, key, &Value::Null)),
                    _ => {}
                }
            }
            Ok(())
        })?;
        check_rest(FILE, &raw.rest, FIXED)?;
        raw.resolve()
    }

    /// How often the down blocks halve the latent.
    pub fn downsamples(&self) -> usize {
        self.stages.len() - 1
    }
}

impl UNetFile {
    fn resolve(self) -> Result<UNetConfig> {
        let mid_block = match self.mid_block_type.as_str() {
            MID_BLOCK => true,
            "none" => false,
            other => return Err(unsupported(FILE, "mid_block_type", &other.into())),
        };
        Ok(UNetConfig {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            sample_size: self.sample_size()?,
            stages: self.stages()?,
            mid_block,
            norm_num_groups: self.norm_num_groups,
            norm_eps: self.norm_eps,
            downsample_padding: self.downsample_padding,
            flip_sin_to_cos: self.flip_sin_to_cos,
            freq_shift: self.freq_shift,
            use_linear_projection: self.use_linear_projection,
            text_time: self.text_time()?,
        })
    }

    fn sample_size(&self) -> Result<Option<(usize, usize)>> {
        let Some(size) = &self.sample_size else { return Ok(None) };
        let sides = size.get("sample_size", 2)?;
        Ok(Some((sides[0], sides[1])))
    }

    fn stages(&self) -> Result<Vec<Stage>> {
        let n = self.block_out_channels.len();
        if n == 0 {
            return Err(Error::config(FILE, "block_out_channels: empty"));
        }
        let down =
            attends("down_block_types", &self.down_block_types, ["DownBlock2D", "CrossAttnDownBlock2D"], n)?;
        let mut up = attends("up_block_types", &self.up_block_types, ["UpBlock2D", "CrossAttnUpBlock2D"], n)?;
        up.reverse();
        let layers = self.layers_per_block.get("layers_per_block", n)?;
        let heads = self.attention_head_dim.get("attention_head_dim", n)?;
        let depth = self.transformer_layers_per_block.get("transformer_layers_per_block", n)?;
        let width = self.cross_attention_dim.get("cross_attention_dim", n)?;
        let stages = (0..n).map(|i| Stage {
            channels: self.block_out_channels[i],
            layers: layers[i],
            down_attention: down[i],
            up_attention: up[i],
            heads: heads[i],
            transformer_layers: depth[i],
            token_width: width[i],
        });
        let stages: Vec<Stage> = stages.collect();
        for (i, stage) in stages.iter().enumerate() {
            let middle = i + 1 == n && self.mid_block_type == MID_BLOCK;
            self.check_stage(stage, stage.down_attention || stage.up_attention || middle)?;
        }
        Ok(stages)
    }

    fn check_stage(&self, stage: &Stage, attends: bool) -> Result<()> {
        let channels = stage.channels;
        let divides = |n: usize| n != 0 && channels.is_multiple_of(n);
        if !divides(self.norm_num_groups) {
            let groups = self.norm_num_groups;
            return Err(Error::config(FILE, format!("norm_num_groups: {groups} does not divide {channels}")));
        }
        if attends && !divides(stage.heads) {
            let heads = stage.heads;
            return Err(Error::config(
                FILE,
                format!("attention_head_dim: {heads} heads do not divide {channels}"),
            ));
        }
        Ok(())
    }

    fn text_time(&self) -> Result<Option<TextTimeConfig>> {
        let need = |key: &str, value: Option<usize>| {
            value.ok_or_else(|| {
                Error::config(FILE, format!("{key}: required by addition_embed_type text_time"))
            })
        };
        match self.addition_embed_type.as_deref() {
            None => Ok(None),
            Some("text_time") => Ok(Some(TextTimeConfig {
                time_id_width: need("addition_time_embed_dim", self.addition_time_embed_dim)?,
                input_width: need(
                    "projection_class_embeddings_input_dim",
                    self.projection_class_embeddings_input_dim,
                )?,
            })),
            Some(other) => Err(unsupported(FILE, "addition_embed_type", &other.into())),
        }
    }
}

/// For each block, whether its type is the one with attention.
fn attends(key: &str, types: &[String], [plain, attending]: [&str; 2], n: usize) -> Result<Vec<bool>> {
    if types.len() != n {
        return Err(Error::config(
            FILE,
            format!("{key}: {} types for {n} entries of block_out_channels", types.len()),
        ));
    }
    let which = |name: &String| match name.as_str() {
        name if name == plain => Ok(false),
        name if name == attending => Ok(true),
        other => Err(unsupported(FILE, key, &other.into())),
    };
    types.iter().map(which).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(json: &str) -> String {
        UNetConfig::from_json(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn empty_file_is_diffusers_default() {
        let config = UNetConfig::from_json(b"{}").unwrap();
        assert_eq!(config.stages.len(), 4);
        assert!(config.stages[0].down_attention && config.stages[0].up_attention);
        assert!(!config.stages[3].down_attention && !config.stages[3].up_attention);
    }

    #[test]
    fn unsupported_keys_are_named() {
        for (key, value) in [
            ("class_embed_type", r#""projection""#),
            ("num_class_embeds", "1000"),
            ("addition_embed_type", r#""image""#),
            ("time_cond_proj_dim", "256"),
            ("mid_block_type", r#""UNetMidBlock2DSimpleCrossAttn""#),
            ("act_fn", r#""gelu""#),
            ("resnet_time_scale_shift", r#""scale_shift""#),
            ("only_cross_attention", "[true,false]"),
            ("norm_num_groups", "null"),
            ("norm_num_groups", "7"),
            ("num_attention_heads", "8"),
            ("a_key_of_tomorrow", "1"),
            ("layers_per_block", r#""two""#),
            ("attention_head_dim", "[1,2]"),
            ("attention_head_dim", "[8,8,8,7]"),
            ("transformer_layers_per_block", "[[1,2],1,1,1]"),
            ("down_block_types", r#"["AttnDownBlock2D","DownBlock2D","DownBlock2D","DownBlock2D"]"#),
        ] {
            let message = message(&format!(r#"{{"{key}": {value}}}"#));
            assert!(message.starts_with("unet/config.json: ") && message.contains(key), "{message}");
        }
    }

    #[test]
    fn harmless_keys_pass() {
        let json = r#"{"_class_name": "x", "dropout": 0.1, "a_key_of_tomorrow": null, "dual_cross_attention": false,
            "mid_block_type": null, "resnet_out_scale_factor": 1.0, "only_cross_attention": [false, false]}"#;
        assert!(!UNetConfig::from_json(json.as_bytes()).unwrap().mid_block);
    }
}
