//! The cache embedder: a prompt as a vector of length 1, so that the cache can tell which prompts are near.
//!
//! A model's manifest names a folder under `cache_embedder`, relative to itself. What lies there decides
//! who reads it: with a `modules.json` it is a sentence-transformers folder with a BERT
//! ([`SentenceEmbedder`]), otherwise a CLIP text folder as transformers writes it ([`ClipEmbedder`]).
//! Without the key the model's own text tower embeds ([`OwnEmbedder`]), which costs no further memory.
//!
//! Vectors of different embedders must never meet; [`Embedder::digest`] names the content of all files that
//! an embedding comes from, wherever they lie.

mod cached;
mod clip;
mod folder;
mod own;
mod sentence;

use std::path::PathBuf;

use candle_core::Tensor;
use pentimento_pipelines::Pipeline;

pub use cached::CachedEmbedder;
pub use clip::ClipEmbedder;
pub use own::OwnEmbedder;
pub use sentence::SentenceEmbedder;

/// Makes vectors of prompts.
pub trait Embedder: Send + Sync {
    /// sha256 in hex of what makes the embeddings: only those of equal digests may be compared.
    fn digest(&self) -> &str;

    /// How long the vectors are.
    fn dimensions(&self) -> usize;

    /// A prompt's embedding, of length 1. What of the prompt exceeds the network's length has no part in it.
    ///
    /// # Errors
    /// [`EmbedError`]
    fn embed(&self, prompt: &str) -> Result<Vec<f32>, EmbedError>;
}

/// An embedder that cannot be loaded, or a prompt that it cannot embed.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// A file that is missing, damaged, or asks for what is not supported.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The engine's failure.
    #[error(transparent)]
    Engine(#[from] pentimento_pipelines::Error),
    /// The tokenizer's failure.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The weights make something of this prompt that has no direction.
    #[error("the prompt's embedding is zero or not finite")]
    NoDirection,
}

/// The embedder of a loaded model: the one that its manifest names, or its own text tower.
///
/// # Errors
/// [`EmbedError`], naming the file at fault.
pub fn for_model(pipeline: &Pipeline) -> Result<Box<dyn Embedder>, EmbedError> {
    match pipeline.model().cache_embedder() {
        None => Ok(Box::new(OwnEmbedder::load(pipeline)?)),
        Some(path) if SentenceEmbedder::fits(path) => Ok(Box::new(SentenceEmbedder::load(path)?)),
        Some(path) => Ok(Box::new(ClipEmbedder::load(path)?)),
    }
}

/// (D,) scaled to length 1.
fn unit(embedding: &Tensor) -> Result<Vec<f32>, EmbedError> {
    let values: Vec<f32> = embedding.to_vec1()?;
    let length = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() || length == 0.0 {
        return Err(EmbedError::NoDirection);
    }
    Ok(values.into_iter().map(|v| (f64::from(v) / length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn what_has_no_direction_is_an_error() {
        let of = |values: [f32; 2]| unit(&Tensor::new(&values, &Device::Cpu).unwrap());
        assert_eq!(of([3.0, -4.0]).unwrap(), [0.6, -0.8]);
        assert_eq!(of([f32::MAX, 0.0]).unwrap(), [1.0, 0.0]);
        for bad in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            assert!(matches!(of(bad), Err(EmbedError::NoDirection)), "{bad:?}");
        }
    }
}
