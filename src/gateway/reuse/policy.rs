//! The reuse policy in force.

use std::sync::Arc;

use pentimento_cache::{Calibration, PolicyConfig, PolicyError, ReusePolicy};

/// A policy with its configuration.
pub(super) struct LivePolicy {
    pub config: PolicyConfig,
    policy: Arc<dyn ReusePolicy>,
    /// For requests that name the least quality: what some policies lose is not known.
    strict: Arc<dyn ReusePolicy>,
}

impl LivePolicy {
    /// Builds it.
    ///
    /// # Errors
    /// [`PolicyError`], naming the setting.
    pub fn new(
        config: PolicyConfig,
        calibrations: &[Arc<Calibration>],
        secret: &[u8; 16],
    ) -> Result<Self, PolicyError> {
        let strict = match config.clone() {
            PolicyConfig::Combined(config) => PolicyConfig::Calibrated(config.calibrated),
            PolicyConfig::Nirvana(_) | PolicyConfig::Semantic(_) => PolicyConfig::Exact {},
            known @ (PolicyConfig::Off {} | PolicyConfig::Exact {} | PolicyConfig::Calibrated(_)) => known,
        };
        let policy = config.clone().build(calibrations, secret)?.into();
        Ok(Self { policy, strict: strict.build(calibrations, secret)?.into(), config })
    }

    /// Whether the cache is used at all.
    pub fn is_off(&self) -> bool {
        matches!(self.config, PolicyConfig::Off {})
    }

    /// The policy for a request that names the least quality, or not.
    pub fn of(&self, names_quality: bool) -> Arc<dyn ReusePolicy> {
        Arc::clone(if names_quality { &self.strict } else { &self.policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_quality_leaves_out_what_may_lose_more_than_is_known() {
        for (name, strict) in
            [("off", "off"), ("exact", "exact"), ("nirvana", "exact"), ("semantic", "exact")]
        {
            let config = serde_json::from_str(&format!(r#"{{"policy":"{name}"}}"#)).unwrap();
            let live = LivePolicy::new(config, &[], &[7; 16]).unwrap();
            assert_eq!((live.of(false).name(), live.of(true).name()), (name, strict));
            assert_eq!(live.is_off(), name == "off");
        }
        let uncalibrated = serde_json::from_str(r#"{"policy":"combined"}"#).unwrap();
        assert!(LivePolicy::new(uncalibrated, &[], &[7; 16]).is_err());
    }
}
