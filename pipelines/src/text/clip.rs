//! CLIP's text tower with transformers' parameter names.
//!
//! Ours, because candle-transformers' general `clip::text_model` knows only the quick GELU, takes layer norm's
//! epsilon for granted, and shows neither the penultimate layer's states (SDXL's conditioning) nor the projection.

use candle_core::{Module, Tensor};
use candle_nn::{Embedding, VarBuilder, embedding, ops};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::layers::{Heads, LayerNorm, Linear, Operators};
use crate::unet::{parse, unsupported};

/// The feed-forward layers' activation.
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

/// A `CLIPTextModel`'s or `CLIPTextModelWithProjection`'s architecture.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the token states.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Width of the projected embedding.
    pub projection_dim: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of each layer's attention.
    pub num_attention_heads: usize,
    /// The most tokens that a text may have.
    pub max_position_embeddings: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    hidden_act: Activation,
    eos_token_id: u32,
}

impl Default for ClipTextConfig {
    /// transformers' defaults, which files may leave out.
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
    /// Reads transformers' `config.json` of a text tower; `file` is what errors call it. Keys that do not touch
    /// inference are ignored: these files carry everything that transformers' base class knows.
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

    /// (B, T, D) -> (B, T, D), plus `residual`.
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.q_proj.forward(x)?, self.k_proj.forward(x)?, self.v_proj.forward(x)?);
        self.out_proj.forward_add(&self.heads.attend(&q, &k, &v)?, residual)
    }
}

#[derive(Debug, Clone)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Layer {
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

/// What the text tower makes of a batch of texts.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// (B, T, D): every token's state after the final norm. Stable Diffusion 1 and 2 condition on these.
    pub last: Tensor,
    /// (B, T, D): every token's state before the last layer, not normed. SDXL conditions on these.
    pub penultimate: Tensor,
    /// (B, D): the state at each text's end, after the final norm.
    pub pooled: Tensor,
    /// (B, projection_dim): `pooled` in the space that text and image share, where the model has the projection.
    pub projected: Option<Tensor>,
}

/// A text tower.
#[derive(Debug, Clone)]
pub struct ClipTextEncoder {
    token_embedding: Embedding,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    operators: Operators,
    config: ClipTextConfig,
}

impl ClipTextEncoder {
    /// Reads the weights under `vb`. transformers up to 4 puts `text_model.` before the names of a
    /// `CLIPTextModel`, transformers 5 does not; both are read.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the tensor that is missing or of another shape.
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
                .map(|i| Layer::new(layers.pp(i), &config))
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

    /// Encodes `ids` (B, T), u32, each row from the start of text to padding.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a row is longer than the tower, [`Error::Tensor`] from below.
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
        // One row of the states viewed as (B × T, D) per text.
        let ends = self.ends(ids)?.into_iter().enumerate().map(|(row, end)| (row * length) as u32 + end);
        let ends = Tensor::from_vec(ends.collect::<Vec<_>>(), batch, ids.device())?;
        let pooled = last.flatten_to(1)?.index_select(&ends, 0)?;
        let projected = self.text_projection.as_ref().map(|p| p.forward(&pooled)).transpose()?;
        Ok(TextStates { last, penultimate, pooled, projected })
    }

    /// Where each text ends: the first end-of-text token. Old files say 2 there, which is not that token, and mean
    /// the highest id, which is.
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
