//! CLIP's text tower with transformers' parameter names.
//!
//! candle-transformers' `clip::text_model` is not used. It supports only the quick GELU and one epsilon, and it returns neither
//! the penultimate layer's states, which SDXL needs, nor the projection.

use candle_core::{Module, Tensor};
use candle_nn::{Embedding, VarBuilder, embedding, ops};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::json_config::{parse, unsupported};
use crate::layers::{Heads, LayerNorm, Linear, Operators};

/// The activation of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Activation {
    QuickGelu,
    Gelu,
}

impl Activation {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::QuickGelu => Ok((x * ops::sigmoid(&(x * 1.702)?)?)?),
            Self::Gelu => Ok(x.gelu_erf()?),
        }
    }
}

/// The architecture of a `CLIPTextModel` or `CLIPTextModelWithProjection`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// The number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// The width of the token states.
    pub hidden_size: usize,
    /// The width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// The width of the projected embedding.
    pub projection_dim: usize,
    /// The number of layers.
    pub num_hidden_layers: usize,
    /// The heads of each layer's attention.
    pub num_attention_heads: usize,
    /// The most tokens of a text.
    pub max_position_embeddings: usize,
    /// The epsilon of the layer norms.
    pub layer_norm_eps: f64,
    hidden_act: Activation,
    eos_token_id: u32,
}

impl Default for ClipTextConfig {
    /// transformers' defaults, which apply to absent keys.
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            layer_norm_eps: 1e-5,
            hidden_act: Activation::QuickGelu,
            eos_token_id: 49407,
        }
    }
}

impl ClipTextConfig {
    /// Reads transformers' `config.json` of a text tower. Errors name it `file`. Unknown keys are ignored, because these files
    /// contain all keys of transformers' base class.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn from_json(file: &str, bytes: &[u8]) -> Result<Self> {
        let config: Self = parse(file, bytes, |map| match map.get("model_type") {
            None => Ok(()),
            Some(kind) if kind == "clip_text_model" => Ok(()),
            Some(kind) => Err(unsupported(file, "model_type", kind)),
        })?;
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(Error::config(file, format!("num_attention_heads: {heads} do not divide {width}")));
        }
        Ok(config)
    }
}

#[derive(Debug, Clone)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: Heads,
}

impl SelfAttention {
    fn new(vb: VarBuilder, config: &ClipTextConfig) -> Result<Self> {
        let project = |name: &str| Linear::new(vb.pp(name), config.hidden_size, config.hidden_size);
        Ok(Self {
            q_proj: project("q_proj")?,
            k_proj: project("k_proj")?,
            v_proj: project("v_proj")?,
            out_proj: project("out_proj")?,
            heads: Heads::new(&vb, config.num_attention_heads, true),
        })
    }

    /// (B, T, D) -> (B, T, D). `residual` is added.
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.q_proj.forward(x)?, self.k_proj.forward(x)?, self.v_proj.forward(x)?);
        self.out_proj.forward_add(&self.heads.attend(&q, &k, &v)?, residual)
    }
}

#[derive(Debug, Clone)]
struct ClipLayer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl ClipLayer {
    fn new(vb: VarBuilder, config: &ClipTextConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name: &str| LayerNorm::new(vb.pp(name), width, config.layer_norm_eps);
        Ok(Self {
            layer_norm1: norm("layer_norm1")?,
            self_attn: SelfAttention::new(vb.pp("self_attn"), config)?,
            layer_norm2: norm("layer_norm2")?,
            fc1: Linear::new(vb.pp("mlp.fc1"), width, inner)?,
            fc2: Linear::new(vb.pp("mlp.fc2"), inner, width)?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.self_attn.forward(&self.layer_norm1.forward(x)?, x)?;
        let inner = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        self.fc2.forward_add(&self.activation.forward(&inner)?, &x)
    }
}

/// The text tower's output for a batch of texts.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// (B, T, D): the token states after the final norm. Stable Diffusion 1 and 2 use these.
    pub last: Tensor,
    /// (B, T, D): the token states before the last layer, without norm. SDXL uses these.
    pub penultimate: Tensor,
    /// (B, D): the state of each text's end token, after the final norm.
    pub pooled: Tensor,
    /// (B, projection_dim): `pooled`, projected into the common space of texts and images; `None` without a projection.
    pub projected: Option<Tensor>,
}

/// A text tower.
#[derive(Debug, Clone)]
pub struct ClipTextEncoder {
    token_embedding: Embedding,
    position_embedding: Tensor,
    layers: Vec<ClipLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    operators: Operators,
    config: ClipTextConfig,
}

impl ClipTextEncoder {
    /// Reads the weights under `vb`. The names of a `CLIPTextModel` may begin with `text_model.`, as in transformers up to 4, or
    /// not, as in transformers 5.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming a tensor that is missing or has another shape.
    pub fn new(config: ClipTextConfig, vb: VarBuilder) -> Result<Self> {
        let prefixed = vb.contains_tensor("text_model.embeddings.token_embedding.weight");
        let tower = if prefixed { vb.pp("text_model") } else { vb.clone() };
        let embeddings = tower.pp("embeddings");
        let (width, positions) = (config.hidden_size, config.max_position_embeddings);
        let layers = tower.pp("encoder.layers");
        let project = || Linear::without_bias(vb.pp("text_projection"), width, config.projection_dim);
        Ok(Self {
            token_embedding: embedding(config.vocab_size, width, embeddings.pp("token_embedding"))?,
            position_embedding: embeddings.get((positions, width), "position_embedding.weight")?,
            layers: (0..config.num_hidden_layers)
                .map(|i| ClipLayer::new(layers.pp(i), &config))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::new(tower.pp("final_layer_norm"), width, config.layer_norm_eps)?,
            text_projection: vb.contains_tensor("text_projection.weight").then(project).transpose()?,
            operators: Operators::of_network(&vb),
            config,
        })
    }

    /// The architecture.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Encodes `ids` (B, T), u32. Each row begins with the start of text and ends with padding.
    ///
    /// # Errors
    /// [`Error::Invalid`], if the rows are too long for the tower, or [`Error::Tensor`].
    pub fn forward(&self, ids: &Tensor) -> Result<TextStates> {
        let (batch, length) = ids.dims2()?;
        let most = self.config.max_position_embeddings;
        if length > most {
            return Err(Error::invalid("ids", format!("{length} tokens, the text encoder takes {most}")));
        }
        self.operators.run(|| self.call(ids, batch, length))
    }

    fn call(&self, ids: &Tensor, batch: usize, length: usize) -> Result<TextStates> {
        let positions = self.position_embedding.narrow(0, 0, length)?;
        let mut x = self.token_embedding.forward(ids)?.broadcast_add(&positions)?;
        let mut penultimate = x.clone();
        for layer in &self.layers {
            penultimate = x;
            x = layer.forward(&penultimate)?;
        }
        let last = self.final_layer_norm.forward(&x)?;
        // The end tokens' rows when the states are viewed as (B × T, D).
        let ends = self.ends(ids)?.into_iter().enumerate().map(|(row, end)| (row * length) as u32 + end);
        let ends = Tensor::from_vec(ends.collect::<Vec<_>>(), batch, ids.device())?;
        let pooled = last.flatten_to(1)?.index_select(&ends, 0)?;
        let projected = self.text_projection.as_ref().map(|p| p.forward(&pooled)).transpose()?;
        Ok(TextStates { last, penultimate, pooled, projected })
    }

    /// The position of each text's first end-of-text token. In old files `eos_token_id` is wrongly 2; then the end-of-text token
    /// is the one with the highest id.
    fn ends(&self, ids: &Tensor) -> Result<Vec<u32>> {
        let eos = self.config.eos_token_id;
        let end = |row: Vec<u32>| {
            let wanted = if eos == 2 { row.iter().copied().max().unwrap_or(eos) } else { eos };
            row.iter().position(|id| *id == wanted).unwrap_or(0) as u32
        };
        Ok(ids.to_vec2::<u32>()?.into_iter().map(end).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_keys_are_named() {
        for (key, value) in
            [("hidden_act", "\"relu\""), ("model_type", "\"t5\""), ("num_attention_heads", "7")]
        {
            let json = format!(r#"{{"{key}": {value}}}"#);
            let error = ClipTextConfig::from_json("x/config.json", json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("x/config.json"), "{error}");
        }
    }
}
