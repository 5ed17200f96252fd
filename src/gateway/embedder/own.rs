//! The model's own text tower as embedder.

use candle_nn::{Linear, Module, linear_no_bias};
use pentimento_pipelines::Pipeline;

use super::{EmbedError, Embedder, unit};

/// Where a model that ships with CLIP's image tower has the projection of its text tower.
const CLIP: &str = "clip";

/// The pooled embedding of the model's last text tower, projected where the model ships a projection: in
/// the tower itself (SDXL's second), or in `clip/` beside it (storybook). A plain Stable Diffusion 1 or 2
/// folder has none; there it is the pooled embedding alone, whose cosines lie nearer together.
pub struct OwnEmbedder {
    pipeline: Pipeline,
    projection: Option<Linear>,
    digest: String,
    dimensions: usize,
}

impl OwnEmbedder {
    /// The embedder of a loaded model. Only the projection is read; the tower is shared.
    ///
    /// # Errors
    /// [`EmbedError`], naming a damaged file of the projection.
    pub fn load(pipeline: &Pipeline) -> Result<Self, EmbedError> {
        let pooled = pipeline.embed("")?;
        let files = pipeline.model().files();
        if files.read(&format!("{CLIP}/config.json"))?.is_none() {
            let digest = pipeline.embedding_digest(&[])?;
            let dimensions = pooled.dim(0)?;
            return Ok(Self { pipeline: pipeline.clone(), projection: None, digest, dimensions });
        }
        let names = files.weight_files(CLIP, "model")?;
        let fault = |e: candle_core::Error| EmbedError::File {
            file: names.join(", ").into(),
            reason: format!("the text projection: {e}"),
        };
        let weights = files.weights(CLIP, "model", pooled.device())?.pp("text_projection");
        let shape = weights.get_unchecked("weight").and_then(|w| w.dims2()).map_err(fault)?;
        let projection = linear_no_bias(pooled.dim(0)?, shape.0, weights).map_err(fault)?;
        let digest = pipeline.embedding_digest(&names)?;
        Ok(Self { pipeline: pipeline.clone(), projection: Some(projection), digest, dimensions: shape.0 })
    }
}

impl Embedder for OwnEmbedder {
    fn digest(&self) -> &str {
        &self.digest
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn embed(&self, prompt: &str) -> Result<Vec<f32>, EmbedError> {
        let pooled = self.pipeline.embed(prompt)?;
        match &self.projection {
            Some(projection) => unit(&projection.forward(&pooled.unsqueeze(0)?)?.squeeze(0)?),
            None => unit(&pooled),
        }
    }
}
