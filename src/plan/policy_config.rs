//! The plan policies as an operator writes them.

use pentimento_pipelines::MAX_STEPS;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::adaptive::Adaptive;
use super::fixed::Fixed;
use super::per_model::PerModel;
use super::policy::PlanPolicy;

/// Which policy, and its settings: `{"policy": "adaptive", "replan": true}`. What is left out has its default.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "policy", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PlanPolicyConfig {
    /// The same plan whatever the load.
    Fixed(FixedConfig),
    /// The most total quality within deadlines.
    Adaptive(AdaptiveConfig),
    /// The same steps for everybody, by load.
    PerModel {},
}

/// Settings of `fixed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FixedConfig {
    /// Steps of a whole plan; `null`: each picture's best.
    pub steps: Option<usize>,
}

/// Settings of `adaptive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveConfig {
    /// Whether pictures that are being painted are planned anew.
    pub replan: bool,
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        Self { replan: true }
    }
}

impl Default for PlanPolicyConfig {
    fn default() -> Self {
        Self::Adaptive(AdaptiveConfig::default())
    }
}

/// Why a policy cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanPolicyError {
    /// A setting out of its bounds.
    #[error("`{field}` must be {must}")]
    OutOfBounds {
        /// Its name in the configuration.
        field: &'static str,
        /// What it must be.
        must: &'static str,
    },
}

impl PlanPolicyConfig {
    /// The policy.
    ///
    /// # Errors
    /// [`PlanPolicyError`] naming the setting.
    pub fn build(&self) -> Result<Box<dyn PlanPolicy>, PlanPolicyError> {
        Ok(match self {
            Self::Fixed(FixedConfig { steps: Some(steps) }) if !(1..=MAX_STEPS).contains(steps) => {
                return Err(PlanPolicyError::OutOfBounds { field: "steps", must: "from 1 to 1000" });
            }
            Self::Fixed(config) => Box::new(Fixed { steps: config.steps }),
            Self::Adaptive(config) => Box::new(Adaptive { replan: config.replan }),
            Self::PerModel {} => Box::new(PerModel),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(json: &str, names: &str) {
        let error = match serde_json::from_str::<PlanPolicyConfig>(json) {
            Err(error) => error.to_string(),
            Ok(config) => config.build().map_or_else(|e| e.to_string(), |_| "accepted".into()),
        };
        assert!(error.contains(names), "{json}: {error}");
    }

    #[test]
    fn a_name_is_enough() {
        for (name, replans) in [("fixed", false), ("adaptive", true), ("per-model", false)] {
            let config: PlanPolicyConfig =
                serde_json::from_str(&format!(r#"{{"policy":"{name}"}}"#)).unwrap();
            assert_eq!(config.build().unwrap().replans(), replans, "{name}");
            let again = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
            assert_eq!(config, again);
        }
        let config: PlanPolicyConfig =
            serde_json::from_str(r#"{"policy":"adaptive","replan":false}"#).unwrap();
        assert!(!config.build().unwrap().replans());
        assert_eq!(PlanPolicyConfig::default(), serde_json::from_str(r#"{"policy":"adaptive"}"#).unwrap());
    }

    #[test]
    fn a_wrong_setting_is_named() {
        refused(r#"{"policy":"fixed","steps":0}"#, "`steps`");
        refused(r#"{"policy":"fixed","steps":1001}"#, "`steps`");
        refused(r#"{"policy":"fixed","stpes":5}"#, "stpes");
        refused(r#"{"policy":"adaptive","steps":5}"#, "steps");
        refused(r#"{"policy":"per-model","replan":true}"#, "replan");
        refused(r#"{"policy":"lottery"}"#, "lottery");
    }
}
