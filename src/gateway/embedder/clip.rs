//! Any CLIP text tower as embedder.

use std::path::Path;

use candle_core::{Device, Tensor};
use pentimento_pipelines::text::{ClipTextConfig, ClipTextEncoder, ClipTokenizer};
use serde_json::{Map, Value};

use super::folder::Folder;
use super::{EmbedError, Embedder, unit};

const CONFIG: &str = "./config.json";

/// A CLIP text folder as transformers writes it, of a whole CLIP or of its text tower: `config.json`,
/// `tokenizer.json` or `vocab.json` and `merges.txt`, `model.safetensors`. Pooled, projected where there is
/// a text projection.
pub struct ClipEmbedder {
    tokenizer: ClipTokenizer,
    encoder: ClipTextEncoder,
    digest: String,
    dimensions: usize,
}

impl ClipEmbedder {
    /// Reads a folder.
    ///
    /// # Errors
    /// [`EmbedError`], naming the file at fault.
    pub fn load(path: &Path) -> Result<Self, EmbedError> {
        let folder = Folder::new(path);
        let config = text_config(folder.require(CONFIG)?);
        let config = ClipTextConfig::from_json(CONFIG, Value::Object(config).to_string().as_bytes())
            .map_err(|e| folder.named(e))?;
        let most = config.max_position_embeddings;
        let read = |file: &str| folder.files().read(&format!("./{file}"));
        let tokenizer = ClipTokenizer::from_files(&read).map_err(|e| folder.named(e))?;
        if tokenizer.max_length() > most {
            let reason = format!("model_max_length is {}, the tower takes {most}", tokenizer.max_length());
            return Err(folder.fault("./tokenizer_config.json", reason));
        }
        let encoder = folder.network(".", |weights| ClipTextEncoder::new(config, weights))?;
        let mut names = vec![CONFIG.to_owned()];
        names.extend(ClipTokenizer::FILES.map(|file| format!("./{file}")));
        let digest = folder.digest(".", &names)?;
        let mut embedder = Self { tokenizer, encoder, digest, dimensions: 0 };
        embedder.dimensions = embedder.raw("")?.dim(0)?;
        Ok(embedder)
    }

    fn raw(&self, prompt: &str) -> Result<Tensor, EmbedError> {
        let ids = self.tokenizer.encode(prompt)?;
        let states = self.encoder.forward(&Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?)?;
        Ok(states.projected.unwrap_or(states.pooled).squeeze(0)?)
    }
}

/// The text tower's part of a whole CLIP's configuration, whose projection has the whole one's width; a
/// tower's own configuration as it is.
fn text_config(mut config: Map<String, Value>) -> Map<String, Value> {
    let Some(Value::Object(mut text)) = config.remove("text_config") else { return config };
    if let Some(width) = config.remove("projection_dim") {
        text.insert("projection_dim".into(), width);
    }
    text
}

impl Embedder for ClipEmbedder {
    fn digest(&self) -> &str {
        &self.digest
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn embed(&self, prompt: &str) -> Result<Vec<f32>, EmbedError> {
        unit(&self.raw(prompt)?)
    }
}
