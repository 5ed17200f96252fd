//! The plan policies as an operator writes them, and what they answer.

use pentimento_pipelines::MAX_STEPS;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Work;
use super::adaptive::Adaptive;
use super::per_model::PerModel;

/// What a policy decides upon.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    /// What waits and what is being painted.
    pub works: &'a [Work],
    /// What is likely to come.
    pub expected: Option<Expected>,
    /// [`Plans::level`] of the plans before.
    pub level: Option<usize>,
}

/// What is likely to come.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Pictures per second.
    pub rate: f64,
    /// A picture as they come; its slack is its latency objective.
    pub typical: Work,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plans {
    /// Steps of the whole plan, for each work.
    pub steps: Vec<usize>,
    /// The steps that the load allows everybody, where the policy has such a number. For the next [`Load`].
    pub level: Option<usize>,
}

/// Decides how many steps each picture gets: never fewer than its floor, never more than its best. What is begun
/// keeps its plan, unless the policy replans and the work is replannable.
pub trait PlanPolicy: Send + Sync + std::fmt::Debug {
    /// The plans. The same load gives the same plans.
    fn plan(&self, load: &Load<'_>) -> Plans;
    /// Whether it changes plans of pictures that are being painted.
    fn replans(&self) -> bool;
    /// The fewest steps that it may ever give a picture: what admission counts with.
    fn least(&self, work: &Work) -> usize {
        work.floor
    }
}

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
            Self::Fixed(config) => Box::new(*config),
            Self::Adaptive(config) => Box::new(Adaptive { replan: config.replan }),
            Self::PerModel {} => Box::new(PerModel),
        })
    }
}

impl PlanPolicy for FixedConfig {
    fn plan(&self, load: &Load<'_>) -> Plans {
        let steps = |work: &Work| work.kept(false).unwrap_or_else(|| self.least(work));
        Plans { steps: load.works.iter().map(steps).collect(), level: None }
    }

    fn replans(&self) -> bool {
        false
    }

    fn least(&self, work: &Work) -> usize {
        work.within(self.steps.unwrap_or(work.best))
    }
}

/// Step counts that are told apart between a floor and a best.
const LADDER: [usize; 24] =
    [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 25, 30, 35, 42, 50, 70, 100, 140, 200, 300, 500, 1000];

/// `floor`, some step counts between, `best`: rising.
pub(super) fn ladder(floor: usize, best: usize) -> impl DoubleEndedIterator<Item = usize> {
    let between = LADDER.into_iter().filter(move |steps| floor < *steps && *steps < best);
    std::iter::once(floor).chain(between).chain((floor < best).then_some(best))
}

#[cfg(test)]
mod tests {
    use super::super::work::example;
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

    #[test]
    fn fixed_is_fixed_within_each_pictures_bounds() {
        let works = [
            example(),
            Work { best: 8, floor: 4, ..example() },
            Work { floor: 30, ..example() },
            Work { planned: Some(40), ..example() },
        ];
        let plan = |steps| FixedConfig { steps }.plan(&Load { works: &works, expected: None, level: None });
        assert_eq!(plan(Some(20)).steps, [20, 8, 30, 40]);
        assert_eq!(plan(None).steps, [50, 8, 50, 40]);
    }

    #[test]
    fn ladders_begin_at_the_floor_and_end_at_the_best() {
        let of = |floor, best| ladder(floor, best).collect::<Vec<_>>();
        assert_eq!(of(9, 20), [9, 10, 12, 14, 16, 20]);
        assert_eq!(of(10, 12), [10, 12]);
        assert_eq!(of(7, 7), [7]);
    }
}
