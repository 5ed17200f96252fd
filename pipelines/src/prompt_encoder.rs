//! From prompts to conditioning, for each model family.

use std::sync::{Arc, OnceLock};

use candle_core::{D, Device, Tensor};

use crate::conditioning::{Conditioning, EncodedPrompt};
use crate::error::{Error, Result};
use crate::manifest::Size;
use crate::text::{ClipTextEncoder, ClipTokenizer};

/// A model family, which determines how prompts become conditioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// SD1.x and SD2.x: the last layer's token states of one text encoder.
    StableDiffusion,
    /// SDXL: the penultimate layer's token states of two encoders side by side, the second encoder's pooled embedding, and time
    /// ids.
    StableDiffusionXl,
}

impl Family {
    /// The family of a `_class_name` in model_index.json.
    pub(crate) fn from_class(class: &str) -> Result<Self> {
        match class {
            "StableDiffusionPipeline" => Ok(Self::StableDiffusion),
            "StableDiffusionXLPipeline" => Ok(Self::StableDiffusionXl),
            other => Err(Error::config("model_index.json", format!("_class_name: {other} is not supported"))),
        }
    }
}

/// The tokenizers and text encoders of a model.
#[derive(Clone)]
pub(crate) struct PromptEncoder {
    family: Family,
    towers: Vec<(ClipTokenizer, Arc<ClipTextEncoder>)>,
    /// Whether an absent negative prompt is all zeros instead of the encoding of "", for SDXL.
    zeros_for_absent: bool,
    /// The encoding of "", which most pictures have as negative prompt.
    empty: Arc<OnceLock<EncodedPrompt>>,
}

impl PromptEncoder {
    pub(crate) fn new(
        family: Family,
        towers: Vec<(ClipTokenizer, Arc<ClipTextEncoder>)>,
        zeros_for_absent: bool,
    ) -> Self {
        Self { family, towers, zeros_for_absent, empty: Arc::default() }
    }

    /// Encodes both prompts. SDXL's time ids contain `size`.
    pub(crate) fn encode(
        &self,
        prompt: &str,
        negative_prompt: Option<&str>,
        size: Size,
        device: &Device,
    ) -> Result<Conditioning> {
        let prompt = self.encode_one(prompt, device)?;
        let negative = match negative_prompt {
            None if self.family == Family::StableDiffusionXl && self.zeros_for_absent => EncodedPrompt {
                ids: prompt.ids.clone(),
                token_states: prompt.token_states.zeros_like()?,
                pooled: prompt.pooled.as_ref().map(Tensor::zeros_like).transpose()?,
            },
            text => self.encode_one(text.unwrap_or(""), device)?,
        };
        let time_ids = match self.family {
            Family::StableDiffusion => None,
            Family::StableDiffusionXl => {
                let (w, h) = (size.width as f32, size.height as f32);
                Some(Tensor::new(&[h, w, 0.0, 0.0, h, w], device)?)
            }
        };
        Ok(Conditioning { prompt, negative, time_ids, source: None })
    }

    /// The last tower's pooled embedding (width,), projected if the tower has a projection.
    pub(crate) fn embed(&self, text: &str, device: &Device) -> Result<Tensor> {
        let Some((tokenizer, encoder)) = self.towers.last() else {
            return Err(Error::invalid("prompt", "this model has no text encoder"));
        };
        let ids = tokenizer.encode(text)?;
        let states = encoder.forward(&Tensor::new(ids.as_slice(), device)?.unsqueeze(0)?)?;
        Ok(states.projected.unwrap_or(states.pooled).squeeze(0)?)
    }

    /// The suffix of the folders of the tower that [`Self::embed`] uses: "" or "_2".
    pub(crate) fn embedding_tower(&self) -> &'static str {
        match self.family {
            Family::StableDiffusion => "",
            Family::StableDiffusionXl => "_2",
        }
    }

    /// Encodes a single prompt. The encoding of "" is stored for later calls.
    pub(crate) fn encode_one(&self, text: &str, device: &Device) -> Result<EncodedPrompt> {
        if !text.is_empty() {
            return self.encode_text(text, device);
        }
        if let Some(empty) = self.empty.get() {
            return Ok(empty.clone());
        }
        let encoded = self.encode_text(text, device)?;
        Ok(self.empty.get_or_init(|| encoded).clone())
    }

    fn encode_text(&self, text: &str, device: &Device) -> Result<EncodedPrompt> {
        let mut token_states = Vec::with_capacity(self.towers.len());
        let mut pooled = None;
        let mut first_ids = None;
        for (tokenizer, encoder) in &self.towers {
            let ids = tokenizer.encode(text)?;
            let states = encoder.forward(&Tensor::new(ids.as_slice(), device)?.unsqueeze(0)?)?;
            match self.family {
                Family::StableDiffusion => token_states.push(states.last),
                Family::StableDiffusionXl => {
                    token_states.push(states.penultimate);
                    pooled = states.projected.map(|p| p.squeeze(0)).transpose()?;
                }
            }
            first_ids.get_or_insert(ids);
        }
        let token_states = Tensor::cat(&token_states, D::Minus1)?.squeeze(0)?;
        Ok(EncodedPrompt { ids: first_ids.unwrap_or_default().into(), token_states, pooled })
    }
}
