//! Tolerance tiers: how few steps a picture may get, how many it gets at best, and by when it is wanted.

use std::time::Duration;

use pentimento_pipelines::MAX_STEPS;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Frontier;

/// The longest objective.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Of a configured objective, `auto` has it as it is; the other tiers keep their proportion to it.
const AUTO_MULTIPLE: f64 = 3.0;

/// What a request tolerates: `quality` of the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Half the steps at best, and soon.
    Low,
    /// Little worse than the full plan.
    Medium,
    /// As good as the full plan.
    High,
    /// A picture as good as time allows.
    #[default]
    Auto,
}

impl Tier {
    /// All, by rising quality.
    pub const ALL: [Self; 4] = [Self::Low, Self::Auto, Self::Medium, Self::High];

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Auto => "auto",
        }
    }

    /// The least quality, relative to the full plan.
    pub fn quality(self) -> f64 {
        match self {
            Self::Low => 0.90,
            Self::Auto => 0.95,
            Self::Medium => 0.97,
            Self::High => 0.99,
        }
    }

    /// The latency objective, in times that the full plan takes without load.
    fn multiple(self) -> f64 {
        match self {
            Self::Low => 2.0,
            Self::Auto => AUTO_MULTIPLE,
            Self::Medium => 4.0,
            Self::High => 6.0,
        }
    }
}

/// What a request says of its plan.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Asked {
    /// Its tier.
    pub tier: Tier,
    /// A number of steps, which is then the plan.
    pub steps: Option<usize>,
    /// A latency objective of its own.
    pub max_latency: Option<Duration>,
    /// The least quality, 0 to 1, in place of the tier's.
    pub min_quality: Option<f64>,
}

/// What a model offers.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Steps of its full plan.
    pub full: usize,
    /// Time of a picture of the full plan where nothing else is painted.
    pub unloaded: Duration,
    /// The configured latency objective of `auto`.
    pub objective: Option<Duration>,
    /// What its steps are worth.
    pub frontier: &'a Frontier,
}

/// A wish that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
#[error("`{field}` must be {must}")]
pub struct TermsError {
    /// Its name in the API.
    pub field: &'static str,
    /// What it must be.
    pub must: &'static str,
}

/// What a picture was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct Terms {
    /// Its tier.
    pub tier: Tier,
    /// The fewest steps of a whole plan.
    pub floor: usize,
    /// Steps of the whole plan that it gets without load.
    pub best: usize,
    /// Time from its arrival to its answer.
    pub objective: Duration,
}

impl Terms {
    /// A request's terms with a model. A plan longer than the full one has an objective as many times as long.
    ///
    /// # Errors
    /// [`TermsError`] naming the field.
    pub fn new(asked: &Asked, offer: &Offer<'_>) -> Result<Self, TermsError> {
        let wrong = |field, must| Err(TermsError { field, must });
        if asked.steps.is_some_and(|steps| !(1..=MAX_STEPS).contains(&steps)) {
            return wrong("num_inference_steps", "from 1 to 1000");
        }
        if asked.min_quality.is_some_and(|quality| !(0.0..=1.0).contains(&quality)) {
            return wrong("min_quality", "from 0 to 1");
        }
        if asked.max_latency.is_some_and(|latency| latency.is_zero() || latency > LONGEST) {
            return wrong("max_latency_ms", "above 0 and at most a day");
        }
        let full = offer.full.max(1);
        let (floor, best) = match asked.steps {
            Some(steps) => (steps, steps),
            None => {
                let quality = asked.min_quality.unwrap_or(asked.tier.quality());
                let floor = offer.frontier.fewest(quality).min(full);
                let best = if asked.tier == Tier::Low { full.div_ceil(2) } else { full };
                (floor, best.max(floor))
            }
        };
        let longer = (best as f64 / full as f64).max(1.0);
        let objective = asked.max_latency.unwrap_or_else(|| objective(asked.tier, offer, longer));
        Ok(Self { tier: asked.tier, floor, best, objective })
    }
}

impl Terms {
    /// The terms of a request of whom nobody else wants anything: it gets its best plan.
    ///
    /// # Errors
    /// [`TermsError`] naming the field.
    pub fn unhurried(asked: &Asked, full: usize) -> Result<Self, TermsError> {
        let (frontier, unloaded) = (Frontier::flat(full), Duration::from_secs(60));
        Self::new(asked, &Offer { full, unloaded, objective: None, frontier: &frontier })
    }
}

fn objective(tier: Tier, offer: &Offer<'_>, longer: f64) -> Duration {
    let of = offer.objective.map_or(offer.unloaded.as_secs_f64(), |own| own.as_secs_f64() / AUTO_MULTIPLE);
    Duration::from_secs_f64((of * tier.multiple() * longer).clamp(1e-3, LONGEST.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(asked: Asked) -> Result<Terms, TermsError> {
        let frontier = Frontier::flat(50);
        let unloaded = Duration::from_millis(150);
        Terms::new(&asked, &Offer { full: 50, unloaded, objective: None, frontier: &frontier })
    }

    #[test]
    fn tiers_say_how_few_steps_how_many_and_by_when() {
        let of = |tier| {
            let terms = terms(Asked { tier, ..Asked::default() }).unwrap();
            (terms.floor, terms.best, terms.objective.as_millis())
        };
        assert_eq!(of(Tier::Low), (9, 25, 300));
        assert_eq!(of(Tier::Auto), (15, 50, 450));
        assert_eq!(of(Tier::Medium), (20, 50, 600));
        assert_eq!(of(Tier::High), (34, 50, 900));
    }

    #[test]
    fn a_request_may_say_it_itself() {
        let steps = terms(Asked { steps: Some(100), ..Asked::default() }).unwrap();
        assert_eq!((steps.floor, steps.best, steps.objective.as_millis()), (100, 100, 900));
        let few = terms(Asked { steps: Some(4), ..Asked::default() }).unwrap();
        assert_eq!((few.floor, few.best, few.objective.as_millis()), (4, 4, 450));
        let quality = terms(Asked { tier: Tier::Low, min_quality: Some(0.99), ..Asked::default() }).unwrap();
        assert_eq!((quality.floor, quality.best), (34, 34));
        let soon = terms(Asked { max_latency: Some(Duration::from_millis(70)), ..Asked::default() }).unwrap();
        assert_eq!((soon.floor, soon.objective.as_millis()), (15, 70));
    }

    #[test]
    fn the_operators_objective_is_autos_and_the_others_keep_their_proportion() {
        let frontier = Frontier::flat(20);
        let objective = Some(Duration::from_millis(600));
        let offer = Offer { full: 20, unloaded: Duration::ZERO, objective, frontier: &frontier };
        let of =
            |tier| Terms::new(&Asked { tier, ..Asked::default() }, &offer).unwrap().objective.as_millis();
        assert_eq!(Tier::ALL.map(of), [400, 600, 800, 1200]);
    }

    #[test]
    fn a_wish_that_cannot_be_is_named() {
        let refused = |asked, field| assert_eq!(terms(asked).unwrap_err().field, field);
        for steps in [0, 1001, usize::MAX] {
            refused(Asked { steps: Some(steps), ..Asked::default() }, "num_inference_steps");
        }
        for quality in [-0.1, 1.1, f64::NAN] {
            refused(Asked { min_quality: Some(quality), ..Asked::default() }, "min_quality");
        }
        for latency in [Duration::ZERO, Duration::MAX] {
            refused(Asked { max_latency: Some(latency), ..Asked::default() }, "max_latency_ms");
        }
    }

    #[test]
    fn terms_travel_in_a_job() {
        let terms = terms(Asked { tier: Tier::High, ..Asked::default() }).unwrap();
        let json = serde_json::to_string(&terms).unwrap();
        assert!(json.contains("\"high\""), "{json}");
        assert_eq!(serde_json::from_str::<Terms>(&json).unwrap(), terms);
    }
}
