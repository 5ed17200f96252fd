//! Who judges a model's pictures: what they show, and how they look.

use pentimento_pipelines::{Device, Picture, Pipeline};
use serde::{Deserialize, Serialize};

use crate::quality::{AttributeClassifier, Attributes, ClipScorer, Critic, fidelity};

/// The files of all judges.
const FILES: [&str; 6] = [
    "classifier/config.json",
    "classifier/model.safetensors",
    "clip/config.json",
    "clip/model.safetensors",
    "critic/config.json",
    "critic/model.safetensors",
];

/// Which judges there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct Judges {
    pub fidelity: bool,
    pub clip_score: bool,
    pub realism: bool,
}

impl Judges {
    /// The judges whose smaller ratio is the quality, in words: one of what the picture shows, if any, and one of
    /// how it looks.
    pub fn names(self) -> String {
        let shows = match self {
            Self { fidelity: true, .. } => "fidelity, ",
            Self { clip_score: true, .. } => "clip_score, ",
            _ => "",
        };
        format!("{shows}{}", if self.realism { "realism" } else { "closeness" })
    }
}

/// What one picture got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
pub struct Scores {
    /// Share of what the prompt names that the picture shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fidelity: Option<f64>,
    /// Cosine of prompt and picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_score: Option<f64>,
    /// The critic's probability that the picture was drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realism: Option<f64>,
    /// Root mean square distance from the full plan's picture of the same seed, 0 to 1, where there is no critic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<f64>,
}

/// The judges, loaded.
pub struct Panel {
    classifier: Option<AttributeClassifier>,
    clip: Option<ClipScorer>,
    critic: Option<Critic>,
    /// Digest of the judges' files.
    pub digest: String,
}

impl Panel {
    /// The judges that come with the model. The classifier is of use where it is `known` what prompts name.
    pub fn load(pipeline: &Pipeline, known: bool) -> anyhow::Result<Self> {
        let files = pipeline.model().files();
        let has = |file: &str| anyhow::Ok(files.read(file)?.is_some());
        let classifier = match known && has("classifier/config.json")? {
            true => Some(AttributeClassifier::load(files, &Device::Cpu)?),
            false => None,
        };
        let clip = match has("clip/config.json")? {
            true => Some(ClipScorer::load(pipeline, &Device::Cpu)?),
            false => None,
        };
        let critic = match has("critic/config.json")? {
            true => Some(Critic::load(files, &Device::Cpu)?),
            false => None,
        };
        let digest = files.digest(&FILES.map(str::to_owned))?;
        Ok(Self { classifier, clip, critic, digest })
    }

    /// Which judges it has.
    pub fn judges(&self) -> Judges {
        Judges {
            fidelity: self.classifier.is_some(),
            clip_score: self.clip.is_some(),
            realism: self.critic.is_some(),
        }
    }

    /// Judges a picture of `prompt`, which names these attributes. `full` is the full plan's picture of the same seed.
    pub fn judge(
        &self,
        prompt: &str,
        named: Option<&Attributes>,
        picture: &Picture,
        full: &Picture,
    ) -> anyhow::Result<Scores> {
        let fidelity = match (&self.classifier, named) {
            (Some(classifier), Some(named)) => Some(fidelity(named, &classifier.classify(picture)?).ratio()),
            _ => None,
        };
        let clip_score = self.clip.as_ref().map(|clip| clip.score(prompt, picture)).transpose()?;
        let realism = self.critic.as_ref().map(|critic| critic.realism(picture)).transpose()?;
        let distance = realism.is_none().then(|| distance(picture, full));
        Ok(Scores { fidelity, clip_score: clip_score.map(f64::from), realism, distance })
    }
}

/// Root mean square difference of two pictures of one size, 0 to 1.
pub fn distance(a: &Picture, b: &Picture) -> f64 {
    let squares = a.rgb.iter().zip(&b.rgb).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    (squares.sum::<f64>() / a.rgb.len().max(1) as f64).sqrt() / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_judge_of_what_is_shown_and_one_of_the_look() {
        let judges = |fidelity, clip_score, realism| Judges { fidelity, clip_score, realism }.names();
        assert_eq!(judges(true, true, true), "fidelity, realism");
        assert_eq!(judges(false, true, true), "clip_score, realism");
        assert_eq!(judges(false, true, false), "clip_score, closeness");
        assert_eq!(judges(false, false, false), "closeness");
    }

    #[test]
    fn distances_are_shares_of_black_to_white() {
        let picture = |rgb: &[u8]| Picture { width: 1, height: 1, rgb: rgb.to_vec() };
        assert_eq!(distance(&picture(&[0; 3]), &picture(&[255; 3])), 1.0);
        assert_eq!(distance(&picture(&[7, 8, 9]), &picture(&[7, 8, 9])), 0.0);
        let one = distance(&picture(&[0; 3]), &picture(&[255, 0, 0]));
        assert!((one - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
