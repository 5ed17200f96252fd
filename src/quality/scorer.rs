//! One number for a picture: how much of what its prompt asks for it shows.

use candle_core::Device;
use pentimento_pipelines::{Picture, Pipeline};

use super::{AttributeClassifier, Attributes, ClipScorer, Error, Result, fidelity};

/// Judges pictures of one model. More is better, and only numbers of one scorer may be compared.
pub enum Scorer {
    /// Fidelity, 0 to 1: needs the attributes that a prompt names.
    Fidelity(AttributeClassifier),
    /// The CLIP score, -1 to 1.
    Clip(ClipScorer),
}

impl Scorer {
    /// Fidelity where the model has a classifier and the attributes that prompts name are `known`, otherwise the
    /// CLIP score.
    ///
    /// # Errors
    /// Where the model has neither, or a scorer's files are damaged.
    pub fn load(pipeline: &Pipeline, known: bool, device: &Device) -> Result<Self> {
        let files = pipeline.model().files();
        let has = |file: &str| Ok::<_, Error>(files.read(file)?.is_some());
        if known && has("classifier/config.json")? {
            return Ok(Self::Fidelity(AttributeClassifier::load(files, device)?));
        }
        if has("clip/config.json")? {
            return Ok(Self::Clip(ClipScorer::load(pipeline, device)?));
        }
        let need = if known { "a classifier (classifier/) or" } else { "" };
        Err(Error::Unfit(format!("the model cannot be judged: it needs {need} an image tower (clip/)")))
    }

    /// Its name in files and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fidelity(_) => "fidelity",
            Self::Clip(_) => "clip score",
        }
    }

    /// What a picture of `prompt`, which names these attributes, is worth.
    ///
    /// # Errors
    /// [`Error::Unfit`] for a picture of a size that the scorer cannot read, or where fidelity is not told what
    /// the prompt names.
    pub fn score(&self, prompt: &str, named: Option<&Attributes>, picture: &Picture) -> Result<f64> {
        match (self, named) {
            (Self::Clip(clip), _) => Ok(f64::from(clip.score(prompt, picture)?)),
            (Self::Fidelity(classifier), Some(named)) => {
                Ok(fidelity(named, &classifier.classify(picture)?).ratio())
            }
            (Self::Fidelity(_), None) => {
                Err(Error::Unfit(format!("what the prompt {prompt:?} names is not known")))
            }
        }
    }
}
