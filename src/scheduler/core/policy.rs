//! How options follow the price.

use serde::{Deserialize, Serialize};

use super::options::{Choice, Facts, Offer, choose, reaching};
use crate::scheduler::OptionId;

/// A plan policy. None gives less than a task's floor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case")]
pub enum Policy {
    /// Every task gets one option, whatever the load.
    Fixed {
        /// The option; `None`: the best within a task's terms.
        #[serde(default)]
        option: Option<OptionId>,
    },
    /// All tasks of a model that begin at a price get one option, as accuracy-scaling systems do. Tasks in flight keep
    /// theirs.
    PerModel,
    /// Each task gets the option that is worth most to it at the price.
    Adaptive {
        /// Whether tasks in flight follow the price, too.
        #[serde(default = "yes")]
        replan: bool,
    },
}

fn yes() -> bool {
    true
}

impl Default for Policy {
    fn default() -> Self {
        Self::Adaptive { replan: true }
    }
}

impl Policy {
    /// Whether tasks in flight change their options.
    pub(super) fn replans(&self) -> bool {
        matches!(self, Self::Adaptive { replan: true })
    }

    /// The price at which `facts` chooses.
    pub(super) fn price(&self, price: f64) -> f64 {
        if matches!(self, Self::Fixed { .. }) { 0.0 } else { price }
    }

    /// The option that a task takes at a price, of which the picture must be finished within `seconds`.
    pub(super) fn choose(&self, facts: &Facts, offers: &[Offer], price: f64, seconds: f64) -> Option<Choice> {
        let floor = facts.terms.floor;
        let one = match self {
            Self::Adaptive { .. } | Self::Fixed { option: None } => None,
            Self::Fixed { option: Some(id) } => facts.menu.find(id),
            // One worth for all: quality as it is, without floor, best and deadline.
            Self::PerModel => {
                let plain = offers.iter().map(|offer| Offer { worth: offer.quality, ..*offer });
                let plain: Vec<Offer> = plain.collect();
                choose(&plain, 0.0, price, f64::INFINITY).map(|choice| choice.offer.option)
            }
        };
        let Some(one) = one else { return choose(offers, floor, self.price(price), seconds) };
        let its = reaching(offers, floor).filter(|offer| offer.option == one);
        match its.min_by(|a, b| a.machine_seconds.total_cmp(&b.machine_seconds)) {
            Some(offer) => Some(Choice { offer: *offer, late: offer.clock_seconds > seconds }),
            // Below the task's floor: the cheapest that reaches it.
            None => choose(offers, floor, f64::MAX.sqrt(), seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::latency::Pace;
    use super::super::options::offers;
    use super::super::options::tests::facts;
    use super::*;

    fn taken(policy: &Policy, floor: f64, price: f64, seconds: f64) -> (usize, bool) {
        let facts = facts(floor, 1.0);
        let pace =
            |_: &str| Pace { step_seconds: 0.01, row_seconds: 0.001, overhead_seconds: 0.0, measured: true };
        let offers = offers(&facts, &facts.beginnings(), pace);
        let choice = policy.choose(&facts, &offers, price, seconds).unwrap();
        (choice.offer.option, choice.late)
    }

    #[test]
    fn fixed_gives_one_option_and_no_less_than_the_floor() {
        let eight = Policy::Fixed { option: Some("8".into()) };
        for price in [0.0, 1e9] {
            assert_eq!(taken(&eight, 0.9, price, 9.0), (1, false));
            assert_eq!(taken(&eight, 0.99, price, 9.0), (2, false));
            assert_eq!(taken(&Policy::Fixed { option: None }, 0.9, price, 9.0), (2, false));
        }
        assert_eq!(taken(&eight, 0.9, 0.0, 0.05), (1, true));
    }

    #[test]
    fn per_model_follows_the_price_and_adaptive_the_deadline_too() {
        let adaptive = Policy::default();
        for (price, wanted) in [(0.0, 2), (3.0, 1), (8.0, 0)] {
            assert_eq!(taken(&Policy::PerModel, 0.9, price, 9.0), (wanted, false));
            assert_eq!(taken(&adaptive, 0.9, price, 9.0), (wanted, false));
        }
        assert_eq!(taken(&Policy::PerModel, 0.95, 8.0, 9.0), (1, false));
        assert_eq!(taken(&Policy::PerModel, 0.9, 0.0, 0.1), (2, true));
        assert_eq!(taken(&adaptive, 0.9, 0.0, 0.1), (1, false));
        assert!(adaptive.replans() && !Policy::PerModel.replans());
        let read: Policy = serde_json::from_str(r#"{"policy": "adaptive"}"#).unwrap();
        assert_eq!(read, adaptive);
        assert!(serde_json::from_str::<Policy>(r#"{"policy": "per-model"}"#).is_ok());
    }
}
