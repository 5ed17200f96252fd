//! Embeddings of prompts: remembered, each computed once, and few at a time.

use std::num::NonZeroUsize;
use std::sync::Arc;

use pentimento_pipelines::Pipeline;
use tokio::sync::Semaphore;

use super::LookUpError;
use crate::gateway::embedder::{self, CachedEmbedder, EmbedError, Embedder};

/// Prompts whose embeddings are remembered, of each model.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Prompts embedded at a time: the painting needs the cores more.
const AT_ONCE: usize = 2;

/// What the cache must know of a model.
pub(super) struct ModelEmbedder {
    pub embedder: Arc<CachedEmbedder>,
    pub latent_space: String,
    pub noise_schedule: String,
}

impl ModelEmbedder {
    /// Of a loaded model.
    ///
    /// # Errors
    /// [`EmbedError`], naming the file at fault.
    pub fn new(model: &Pipeline) -> Result<Self, EmbedError> {
        Ok(Self {
            embedder: Arc::new(CachedEmbedder::new(embedder::for_model(model)?, REMEMBERED)),
            latent_space: model.model().latent_space()?,
            noise_schedule: model.schedule().id(),
        })
    }
}

/// Bounds the passes of all embedders.
pub(super) struct Embeddings(Arc<Semaphore>);

impl Default for Embeddings {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Embeddings {
    /// A prompt's embedding. A pass of an encoder takes up to some milliseconds, so it is not made on an async thread.
    ///
    /// # Errors
    /// [`LookUpError::Embed`] and [`LookUpError::Lost`].
    pub async fn embed(&self, embedder: &Arc<CachedEmbedder>, prompt: &str) -> Result<Vec<f32>, LookUpError> {
        if let Some(known) = embedder.known(prompt) {
            return Ok(known);
        }
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(|_| LookUpError::Lost)?;
        let (embedder, prompt) = (Arc::clone(embedder), prompt.to_owned());
        let embedded = tokio::task::spawn_blocking(move || {
            let _permit = permit; // until the pass is over, whether or not its request is still there
            embedder.embed(&prompt)
        });
        Ok(embedded.await.map_err(|_| LookUpError::Lost)??)
    }
}
