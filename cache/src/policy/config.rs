//! The reuse policy's configuration.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Calibrated, Calibration, Combined, Nirvana, NoStates, ReusePolicy, Semantic};
use crate::content::{SynonymError, Synonyms};

/// A policy and its settings, for example `{"policy": "nirvana", "offset": 0.02}`. Absent settings have their defaults.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "policy", rename_all = "snake_case", deny_unknown_fields)]
pub enum PolicyConfig {
    /// The cache is not used.
    Off {},
    /// Exact hits only.
    Exact {},
    /// The more similar the prompts, the later the resumed state.
    Nirvana(NirvanaConfig),
    /// The stored picture of a prompt with the same meaning.
    Semantic(SemanticConfig),
    /// The latest state whose measured quality loss is within a limit.
    Calibrated(CalibratedConfig),
    /// The stored picture of a prompt with the same meaning, else as `calibrated`.
    Combined(CombinedConfig),
}

/// A threshold of `nirvana`: from `similarity` on, `share` of the plan may be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// The least cosine.
    pub similarity: f32,
    /// The largest share of the plan, between 0 and 1. NIRVANA's K of N steps is K/N.
    pub share: f32,
}

/// Settings of `nirvana`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct NirvanaConfig {
    /// The thresholds, rising in similarity and share. The defaults are NIRVANA's published ones for CLIP text embeddings.
    pub thresholds: Vec<Threshold>,
    /// A number added to every threshold's similarity. Above 0 fewer requests are hits.
    pub offset: f32,
}

impl Default for NirvanaConfig {
    fn default() -> Self {
        let published = [(0.65, 0.1), (0.75, 0.2), (0.85, 0.3), (0.90, 0.4), (0.95, 0.5)];
        let thresholds = published.map(|(similarity, share)| Threshold { similarity, share }).to_vec();
        Self { thresholds, offset: 0.0 }
    }
}

/// Settings of `semantic`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SemanticConfig {
    /// The least cosine.
    pub threshold: f32,
    /// Whether the content words must be the same too. Without this gate "a red house and a blue tree" is answered with
    /// "a blue house and a red tree".
    pub content_gate: bool,
    /// Groups of single words with the same meaning, for example `[["house", "cottage"], ["boat", "ship"]]`. They also
    /// apply to pictures stored before.
    pub synonyms: Vec<Vec<String>>,
}

impl Default for SemanticConfig {
    fn default() -> Self {
        Self { threshold: 0.95, content_gate: true, synonyms: Vec::new() }
    }
}

/// Settings of `calibrated`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CalibratedConfig {
    /// The largest acceptable bound of the quality loss, relative to the picture painted from noise.
    pub max_quality_loss: f32,
    /// The largest share that a request without a seed may skip. The later the state, the more its pictures resemble the
    /// source. 1 gives the most speed and the least variety.
    pub variety: f32,
    /// The smallest share worth skipping. States of resumed pictures are not reused. If every request resumed an early state
    /// of a remote picture, the cache would not get the pictures from noise whose later states save more.
    pub least_share: f32,
    /// How many of the nearest entries are considered.
    pub neighbours: usize,
}

impl Default for CalibratedConfig {
    fn default() -> Self {
        Self { max_quality_loss: 0.05, variety: 0.4, least_share: 0.2, neighbours: 8 }
    }
}

/// Settings of `combined`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CombinedConfig {
    /// When a stored picture is returned whole.
    pub semantic: SemanticConfig,
    /// When a state is resumed.
    pub calibrated: CalibratedConfig,
}

/// The reason why a policy's configuration is refused.
#[derive(Debug, Error, PartialEq)]
pub enum PolicyError {
    /// A setting is out of its bounds.
    #[error("`{field}` must be {must}")]
    OutOfBounds {
        /// The setting's name.
        field: &'static str,
        /// What its value must be.
        must: &'static str,
    },
    /// The synonyms are invalid.
    #[error("`synonyms`: {0}")]
    Synonyms(#[from] SynonymError),
    /// There is no calibration table.
    #[error("`calibrated` needs a calibration table: run `pentimento calibrate`")]
    NoCalibration,
}

fn check(holds: bool, field: &'static str, must: &'static str) -> Result<(), PolicyError> {
    if holds { Ok(()) } else { Err(PolicyError::OutOfBounds { field, must }) }
}

impl PolicyConfig {
    /// Builds the policy. `calibrations` are all available tables; `calibrated` uses for each entry the table that was
    /// measured for its embedder, latent space and model. `key` is the key of the contents' hashes (see
    /// [`Content::of`](crate::Content::of)), which synonyms need.
    ///
    /// # Errors
    /// A setting is out of its bounds, or there is no table.
    pub fn build(
        self,
        calibrations: &[Arc<Calibration>],
        key: &[u8; 16],
    ) -> Result<Box<dyn ReusePolicy>, PolicyError> {
        self.check()?;
        let semantic = |config: SemanticConfig| -> Result<Semantic, PolicyError> {
            let synonyms = Synonyms::new(&config.synonyms, key)?;
            Ok(Semantic::new(config, synonyms))
        };
        let calibrated = |config| Calibrated::new(config, calibrations.to_vec());
        Ok(match self {
            Self::Off {} => Box::new(NoStates::Off),
            Self::Exact {} => Box::new(NoStates::Exact),
            Self::Nirvana(config) => Box::new(Nirvana::new(config)),
            Self::Semantic(config) => Box::new(semantic(config)?),
            Self::Calibrated(_) | Self::Combined(_) if calibrations.is_empty() => {
                return Err(PolicyError::NoCalibration);
            }
            Self::Calibrated(config) => Box::new(calibrated(config)),
            Self::Combined(config) => {
                Box::new(Combined::new(semantic(config.semantic)?, calibrated(config.calibrated)))
            }
        })
    }

    fn check(&self) -> Result<(), PolicyError> {
        match self {
            Self::Off {} | Self::Exact {} => Ok(()),
            Self::Nirvana(config) => config.check(),
            Self::Semantic(config) => config.check(),
            Self::Calibrated(config) => config.check(),
            Self::Combined(config) => {
                config.semantic.check().and_then(|()| config.calibrated.check()).map_err(of_a_part)
            }
        }
    }
}

/// Names a wrong setting of a part of `combined` by its path.
fn of_a_part(error: PolicyError) -> PolicyError {
    const NAMES: [(&str, &str); 5] = [
        ("threshold", "semantic.threshold"),
        ("max_quality_loss", "calibrated.max_quality_loss"),
        ("variety", "calibrated.variety"),
        ("least_share", "calibrated.least_share"),
        ("neighbours", "calibrated.neighbours"),
    ];
    match error {
        PolicyError::OutOfBounds { field, must } => {
            let named = NAMES.iter().find(|(own, _)| *own == field).map_or(field, |(_, name)| *name);
            PolicyError::OutOfBounds { field: named, must }
        }
        other => other,
    }
}

impl SemanticConfig {
    fn check(&self) -> Result<(), PolicyError> {
        check((0.0..=1.0).contains(&self.threshold), "threshold", "from 0 to 1")
    }
}

impl CalibratedConfig {
    fn check(&self) -> Result<(), PolicyError> {
        let unit = 0.0..=1.0;
        check(unit.contains(&self.max_quality_loss), "max_quality_loss", "from 0 to 1")?;
        check(unit.contains(&self.variety), "variety", "from 0 to 1")?;
        check(unit.contains(&self.least_share), "least_share", "from 0 to 1")?;
        check((1..=64).contains(&self.neighbours), "neighbours", "from 1 to 64")
    }
}

impl NirvanaConfig {
    fn check(&self) -> Result<(), PolicyError> {
        let all = |holds: fn(&Threshold) -> bool| self.thresholds.iter().all(holds);
        let count = self.thresholds.len();
        check((1..=64).contains(&count), "thresholds", "a list of 1 to 64")?;
        check(all(|t| (-1.0..=1.0).contains(&t.similarity)), "thresholds.similarity", "from -1 to 1")?;
        check(all(|t| t.share > 0.0 && t.share < 1.0), "thresholds.share", "above 0 and below 1")?;
        let rising =
            self.thresholds.windows(2).all(|w| w[0].similarity < w[1].similarity && w[0].share <= w[1].share);
        check(rising, "thresholds", "rising in similarity and share")?;
        check((-1.0..=1.0).contains(&self.offset), "offset", "from -1 to 1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 16] = [7; 16];

    #[track_caller]
    fn refused(json: &str, names: &str) {
        let error = match serde_json::from_str::<PolicyConfig>(json) {
            Err(error) => error.to_string(),
            Ok(config) => {
                config.build(&[], &KEY).err().map_or_else(|| "accepted".into(), |error| error.to_string())
            }
        };
        assert!(error.contains(names), "{json}: {error}");
    }

    #[test]
    fn a_name_is_enough() {
        for name in ["off", "exact", "nirvana", "semantic"] {
            let config: PolicyConfig = serde_json::from_str(&format!(r#"{{"policy":"{name}"}}"#)).unwrap();
            assert_eq!(config.clone().build(&[], &KEY).unwrap().name(), name);
            let again = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
            assert_eq!(config, again);
        }
        refused(r#"{"policy":"calibrated"}"#, "pentimento calibrate");
        refused(r#"{"policy":"combined"}"#, "pentimento calibrate");
    }

    #[test]
    fn a_wrong_setting_is_named() {
        refused(r#"{"policy":"off","threshold":0.5}"#, "threshold");
        refused(r#"{"policy":"semantic","treshold":0.5}"#, "treshold");
        refused(r#"{"policy":"semantic","threshold":1.5}"#, "`threshold`");
        refused(r#"{"policy":"semantic","synonyms":[["house"]]}"#, "`synonyms`");
        refused(r#"{"policy":"semantic","synonyms":[["left","right"]]}"#, "\"left\"");
        refused(r#"{"policy":"combined","semantic":{"threshold":1.5}}"#, "`semantic.threshold`");
        refused(r#"{"policy":"combined","calibrated":{"variety":2}}"#, "`calibrated.variety`");
        refused(r#"{"policy":"combined","threshold":0.9}"#, "threshold");
        refused(r#"{"policy":"nirvana","offset":-3}"#, "`offset`");
        refused(r#"{"policy":"nirvana","thresholds":[]}"#, "`thresholds`");
        refused(r#"{"policy":"nirvana","thresholds":[{"similarity":0.9,"share":1}]}"#, "`thresholds.share`");
        let falling = r#"[{"similarity":0.9,"share":0.4},{"similarity":0.8,"share":0.5}]"#;
        refused(&format!(r#"{{"policy":"nirvana","thresholds":{falling}}}"#), "`thresholds`");
        refused(r#"{"policy":"calibrated","max_quality_loss":-0.1}"#, "`max_quality_loss`");
        refused(r#"{"policy":"calibrated","variety":2}"#, "`variety`");
        refused(r#"{"policy":"calibrated","least_share":-1}"#, "`least_share`");
        refused(r#"{"policy":"calibrated","neighbours":0}"#, "`neighbours`");
        refused(r#"{"policy":"telepathy"}"#, "telepathy");
    }
}
