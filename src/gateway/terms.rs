//! Tolerance tiers: the least quality of a picture, the quality beyond which more is worth nothing, and the time within
//! which it is wanted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Rejection;
use crate::menu::{MeasuredOption, MenuFile};
use crate::scheduler::messages::Terms;

/// The longest objective.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// A configured objective is that of `auto`; the other tiers keep their proportion to it.
const AUTO_MULTIPLE: f64 = 3.0;
/// Time of a full plan while no step was measured yet.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Objectives from predicted times are rounded up to the next power of this. Predictions change in their last digits with
/// every step, and only requests with equal terms are painted together.
const GRID: f64 = 1.1;
/// Time that a request has spent before it is submitted counts in whole parts of its objective, for the same reason.
const SPENT_PARTS: u32 = 16;

/// What a request tolerates: `quality` of the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Good enough, and soon.
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

/// What a request says of quality and time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tolerance {
    /// Its tier.
    pub tier: Tier,
    /// The least quality, 0 to 1, in place of the tier's.
    pub min_quality: Option<f64>,
    /// The time that the answer may take, in place of the tier's objective.
    pub max_latency: Option<Duration>,
}

impl Tolerance {
    /// Checks what a client named.
    ///
    /// # Errors
    /// [`Rejection::Invalid`] naming the field.
    pub fn new(tier: Tier, min_quality: Option<f64>, max_latency_ms: Option<f64>) -> Result<Self, Rejection> {
        let invalid = |field, reason: &str| Err(Rejection::Invalid { field, reason: reason.to_owned() });
        if !min_quality.is_none_or(|quality| (0.0..=1.0).contains(&quality)) {
            return invalid("pentimento.min_quality", "must be between 0 and 1");
        }
        let time = |ms: f64| Duration::try_from_secs_f64(ms / 1000.0).ok();
        let bounded = |time: &Duration| !time.is_zero() && *time <= LONGEST;
        let max_latency = max_latency_ms.map(|ms| time(ms).filter(bounded));
        if max_latency == Some(None) {
            return invalid(
                "pentimento.max_latency_ms",
                "must be a number of milliseconds above 0, and at most a day",
            );
        }
        Ok(Self { tier, min_quality, max_latency: max_latency.flatten() })
    }

    fn least_quality(&self) -> f64 {
        self.min_quality.unwrap_or(self.tier.quality())
    }
}

/// The interval of qualities that a request accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QualityRange {
    /// The least, steps and reuse together.
    pub floor: f64,
    /// The quality beyond which more is worth nothing.
    pub best: f64,
}

impl QualityRange {
    /// Of a menu's options.
    ///
    /// At best `low` gets the cheapest option that is certain to reach its floor: the lower end of the measured interval
    /// does. The other tiers get the best option.
    pub fn of_menu(tolerance: &Tolerance, menu: &MenuFile) -> Self {
        let most = quality(menu.best());
        let floor = tolerance.least_quality().min(most);
        let best = match tolerance.tier {
            Tier::Low => {
                menu.options().iter().find(|option| option.from[0].quality.low >= floor).map_or(most, quality)
            }
            Tier::Auto | Tier::Medium | Tier::High => most,
        };
        Self { floor, best: best.max(floor) }
    }

    /// Of a plan that the client named, of this quality. It may lose as much as the tier allows a full plan to lose.
    pub fn of_plan(tolerance: &Tolerance, quality: f64) -> Self {
        Self { floor: (quality - (1.0 - tolerance.least_quality())).max(0.0), best: quality }
    }

    /// What may be lost to reuse without falling below the floor.
    pub fn slack(&self) -> f64 {
        self.best - self.floor
    }
}

/// An option's quality from noise.
fn quality(option: &MeasuredOption) -> f64 {
    option.from[0].quality.mean.clamp(0.0, 1.0)
}

/// The time within which a request's pictures are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objective {
    /// From the request's arrival to its answer.
    pub time: Duration,
    /// Whether the client named it.
    pub is_named: bool,
}

impl Objective {
    /// A request's objective. `unloaded` is the time of the model's full plan on an idle machine, `configured` the
    /// operator's objective of `auto`, and `longer` how many times as long as the full plan all its pictures' plans are.
    pub fn new(
        tolerance: &Tolerance,
        unloaded: Option<Duration>,
        configured: Option<Duration>,
        longer: f64,
    ) -> Self {
        if let Some(time) = tolerance.max_latency {
            return Self { time, is_named: true };
        }
        let multiple = tolerance.tier.multiple();
        let seconds = match configured {
            Some(auto) => auto.as_secs_f64() / AUTO_MULTIPLE * multiple * longer,
            None => rounded_up(unloaded.unwrap_or(UNKNOWN).as_secs_f64() * multiple * longer),
        };
        Self { time: Duration::from_secs_f64(seconds.clamp(1e-3, LONGEST.as_secs_f64())), is_named: false }
    }
}

fn rounded_up(seconds: f64) -> f64 {
    // A millionth of slack, so that powers stay themselves.
    GRID.powf((seconds.max(1e-3).ln() / GRID.ln() - 1e-6).ceil())
}

/// The terms under which a request's pictures are submitted, `spent` after it arrived. Nothing is waited for longer than
/// `timeout`; a named time beyond that insists on nothing.
pub fn terms(
    tier: Tier,
    range: QualityRange,
    objective: Objective,
    spent: Duration,
    timeout: Duration,
) -> Terms {
    let whole = objective.time.min(timeout);
    let part = whole / SPENT_PARTS;
    let parts =
        spent.as_nanos().checked_div(part.as_nanos()).unwrap_or(0).min(u128::from(SPENT_PARTS)) as u32;
    Terms {
        tier: tier.name().to_owned(),
        floor: range.floor,
        best: range.best,
        deadline_seconds: (whole - part * parts).as_secs_f64().max(1e-3),
        firm: objective.is_named && objective.time <= timeout,
    }
}

#[cfg(test)]
mod tests {
    use pentimento_pipelines::Size;

    use super::*;

    const SIZE: Size = Size { width: 64, height: 64 };

    fn menu() -> MenuFile {
        MenuFile::unmeasured("m", "w", SIZE, 50, 5.0).unwrap()
    }

    fn of_tier(tier: Tier) -> Tolerance {
        Tolerance { tier, ..Tolerance::default() }
    }

    #[test]
    fn tiers_say_how_good_at_least_how_good_at_best_and_by_when() {
        let of = |tier| {
            let range = QualityRange::of_menu(&of_tier(tier), &menu());
            let time = Objective::new(&of_tier(tier), Some(Duration::from_millis(150)), None, 1.0).time;
            (range.floor, (range.best * 100.0).round() / 100.0, time.as_secs_f64())
        };
        for (tier, floor, best, seconds) in [
            (Tier::Low, 0.90, 0.92, 0.3),
            (Tier::Auto, 0.95, 1.0, 0.45),
            (Tier::Medium, 0.97, 1.0, 0.6),
            (Tier::High, 0.99, 1.0, 0.9),
        ] {
            let found = of(tier);
            assert_eq!((found.0, found.1), (floor, best), "{tier:?}");
            assert!((seconds..=seconds * GRID).contains(&found.2), "{tier:?}: {}", found.2);
        }
        assert!(QualityRange::of_menu(&of_tier(Tier::Auto), &menu()).slack() > 0.049);
    }

    #[test]
    fn a_floor_beyond_the_menu_is_its_best_option() {
        let tolerance = Tolerance { min_quality: Some(1.0), tier: Tier::Low, ..Tolerance::default() };
        let short = MenuFile::unmeasured("m", "w", SIZE, 4, 5.0).unwrap();
        let range = QualityRange::of_menu(&tolerance, &short);
        assert_eq!((range.floor, range.best), (1.0, 1.0));
        let named = QualityRange::of_plan(&of_tier(Tier::Auto), 0.8);
        assert!((named.floor - 0.75).abs() < 1e-9 && named.best == 0.8);
        assert_eq!(QualityRange::of_plan(&of_tier(Tier::Low), 0.05).floor, 0.0);
    }

    #[test]
    fn the_operators_objective_is_autos_and_the_others_keep_their_proportion() {
        let configured = Some(Duration::from_millis(600));
        let of = |tier| Objective::new(&of_tier(tier), None, configured, 1.0).time.as_millis();
        assert_eq!(Tier::ALL.map(of), [400, 600, 800, 1200]);
        let twice = Objective::new(&of_tier(Tier::Auto), None, configured, 2.0);
        assert_eq!((twice.time.as_millis(), twice.is_named), (1200, false));
        let named = Tolerance { max_latency: Some(Duration::from_millis(70)), ..Tolerance::default() };
        let named = Objective::new(&named, None, configured, 5.0);
        assert_eq!((named.time.as_millis(), named.is_named), (70, true));
    }

    #[test]
    fn nearly_equal_predictions_and_delays_make_equal_terms() {
        let of = |microseconds, spent| {
            let unloaded = Some(Duration::from_micros(microseconds));
            let objective = Objective::new(&of_tier(Tier::Auto), unloaded, None, 1.0);
            let range = QualityRange { floor: 0.9, best: 1.0 };
            terms(Tier::Auto, range, objective, Duration::from_millis(spent), Duration::from_secs(600))
        };
        assert_eq!(of(150_000, 1), of(150_900, 9));
        assert!(of(150_000, 300).deadline_seconds < of(150_000, 1).deadline_seconds);
        let late = of(150_000, 9999);
        assert!(late.deadline_seconds > 0.0 && !late.firm);
    }

    #[test]
    fn a_named_time_is_firm_unless_nothing_waits_so_long() {
        let range = QualityRange { floor: 0.9, best: 1.0 };
        let objective = Objective { time: Duration::from_secs(60), is_named: true };
        let within =
            |timeout| terms(Tier::Low, range, objective, Duration::ZERO, Duration::from_secs(timeout));
        assert_eq!((within(600).firm, within(600).deadline_seconds), (true, 60.0));
        assert_eq!((within(10).firm, within(10).deadline_seconds), (false, 10.0));
    }

    #[test]
    fn a_wish_that_cannot_be_is_named() {
        let refused = |quality, latency| match Tolerance::new(Tier::Auto, quality, latency) {
            Err(Rejection::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        for quality in [-0.1, 1.1, f64::NAN] {
            assert_eq!(refused(Some(quality), None), "pentimento.min_quality");
        }
        for latency in [0.0, -1.0, 1e12, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(None, Some(latency)), "pentimento.max_latency_ms");
        }
        assert!(Tolerance::new(Tier::Low, Some(0.5), Some(0.1)).is_ok());
    }
}
