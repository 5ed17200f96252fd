//! The CLIP score (Hessel et al., 2021): how near a picture and a prompt lie in their common embedding.

use candle_core::{Device, Tensor};
use candle_nn::{Linear, Module, linear_no_bias};
use candle_transformers::models::clip::text_model::Activation;
use candle_transformers::models::clip::vision_model::{ClipVisionConfig, ClipVisionTransformer};
use pentimento_pipelines::{Picture, Pipeline};
use serde::Deserialize;

use super::{Error, Result, config, scaled};

/// The part of `clip/config.json` that the image tower reads.
#[derive(Deserialize)]
struct Config {
    projection_dim: usize,
    vision_config: VisionConfig,
}

#[derive(Deserialize)]
struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    #[serde(default = "quick_gelu")]
    hidden_act: String,
}

fn quick_gelu() -> String {
    "quick_gelu".into()
}

/// The image tower and both projections; the text tower is the model's own.
pub struct ClipScorer {
    pipeline: Pipeline,
    image_tower: ClipVisionTransformer,
    image_projection: Linear,
    text_projection: Linear,
    side: u32,
    device: Device,
}

impl ClipScorer {
    /// Loads `clip/` of a loaded model's files.
    ///
    /// # Errors
    /// Where the model has no image tower, or its files are damaged.
    pub fn load(pipeline: &Pipeline, device: &Device) -> Result<Self> {
        let files = pipeline.model().files();
        let Config { projection_dim, vision_config: v } = config(files, "clip/config.json")?;
        if v.hidden_act != "quick_gelu" {
            return Err(Error::Unfit(format!(
                "clip/config.json: hidden_act {} is not supported",
                v.hidden_act
            )));
        }
        let vb = files.weights("clip", "model", device)?;
        let tower = ClipVisionConfig {
            embed_dim: v.hidden_size,
            activation: Activation::QuickGelu,
            intermediate_size: v.intermediate_size,
            num_hidden_layers: v.num_hidden_layers,
            num_attention_heads: v.num_attention_heads,
            projection_dim,
            num_channels: 3,
            image_size: v.image_size,
            patch_size: v.patch_size,
        };
        let text_width = vb.get_unchecked("text_projection.weight")?.dim(1)?;
        Ok(Self {
            pipeline: pipeline.clone(),
            image_tower: ClipVisionTransformer::new(vb.pp("vision_model"), &tower)?,
            image_projection: linear_no_bias(v.hidden_size, projection_dim, vb.pp("visual_projection"))?,
            text_projection: linear_no_bias(text_width, projection_dim, vb.pp("text_projection"))?,
            side: v.image_size as u32,
            device: device.clone(),
        })
    }

    /// The cosine between a prompt and a picture, -1 to 1.
    ///
    /// # Errors
    /// The tokenizer's or a tensor operation's.
    pub fn score(&self, prompt: &str, picture: &Picture) -> Result<f32> {
        let (text, image) = (self.embed_text(prompt)?, self.embed_picture(picture)?);
        Ok((text * image)?.sum_all()?.to_scalar()?)
    }

    /// A prompt's embedding, (projection,), of unit length.
    ///
    /// # Errors
    /// The tokenizer's or a tensor operation's.
    pub fn embed_text(&self, prompt: &str) -> Result<Tensor> {
        unit(&self.text_projection.forward(&self.pipeline.embed(prompt)?.unsqueeze(0)?)?)
    }

    /// The embedding of a picture of any size, (projection,), of unit length.
    ///
    /// # Errors
    /// A tensor operation's.
    pub fn embed_picture(&self, picture: &Picture) -> Result<Tensor> {
        let pooled = self.image_tower.forward(&scaled(picture, self.side, &self.device)?)?;
        unit(&self.image_projection.forward(&pooled)?)
    }
}

/// (1, D) to (D,) of length 1.
fn unit(row: &Tensor) -> Result<Tensor> {
    let row = row.squeeze(0)?;
    let length = row.sqr()?.sum_all()?.sqrt()?;
    Ok(row.broadcast_div(&length)?)
}
