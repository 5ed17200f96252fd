//! `per-model`: the same steps for everybody, as accuracy-scaling planners choose them (Ahmad et al., 2024, Proteus).

use super::deadlines::{Need, all_within, limits};
use super::policy::ladder;
use super::{Load, PlanPolicy, Plans, Work};

/// The share of the machine's time that arrivals may take; more steps are only given where they take less than
/// `TO_RAISE`, so that the number does not flap.
const BUSY: f64 = 0.9;
const TO_RAISE: f64 = 0.8;

/// The most steps for all pictures not begun with which the machine keeps up with arrivals, and those who can make
/// their deadlines do.
#[derive(Debug, Clone, Copy)]
pub struct PerModel;

impl PlanPolicy for PerModel {
    fn plan(&self, load: &Load<'_>) -> Plans {
        let all = || load.works.iter().chain(load.expected.as_ref().map(|expected| &expected.typical));
        let (Some(least), Some(most)) = (all().map(|w| w.floor).min(), all().map(|w| w.best).max()) else {
            return Plans { steps: Vec::new(), level: load.level };
        };
        let drains = drains(load.works);
        let fits = |level: &usize| keeps_up(load, *level) && drains(*level);
        let level = ladder(least, most.max(least)).rev().find(fits).unwrap_or(least);
        Plans { steps: load.works.iter().map(|work| at(work, level)).collect(), level: Some(level) }
    }

    fn replans(&self) -> bool {
        false
    }
}

fn at(work: &Work, level: usize) -> usize {
    work.kept(false).unwrap_or_else(|| work.within(level))
}

/// Whether arrivals take less than the machine's time.
fn keeps_up(load: &Load<'_>, level: usize) -> bool {
    let Some(expected) = &load.expected else { return true };
    let busy = expected.rate * expected.typical.seconds(expected.typical.within(level));
    busy <= if load.level.is_some_and(|before| level > before) { TO_RAISE } else { BUSY }
}

/// Whether all who make it at the lowest level do at another one. A picture's own steps taking too long on the clock is
/// no load, and no reason to give others fewer.
fn drains(works: &[Work]) -> impl Fn(usize) -> bool {
    let mut works: Vec<&Work> = works.iter().collect();
    works.sort_by(|a, b| a.slack.total_cmp(&b.slack));
    let need = |work: &Work, steps| Need { tail: 0.0, ..Need::of(work, steps) };
    let needs = move |level| works.iter().map(|work| need(work, at(work, level))).collect::<Vec<Need>>();
    let limits = limits(&needs(0));
    move |level| all_within(&needs(level), &limits)
}

#[cfg(test)]
mod tests {
    use super::super::Expected;
    use super::super::work::example;
    use super::*;

    fn level(rate: f64, before: Option<usize>, works: &[Work]) -> usize {
        let typical = Work { slack: 0.5, ..example() };
        let load = Load { works, expected: Some(Expected { rate, typical }), level: before };
        PerModel.plan(&load).level.unwrap()
    }

    #[test]
    fn the_rate_decides_the_level_and_a_little_less_does_not_raise_it() {
        // 50 steps are 25 ms of the machine: 36 pictures a second take 0.9 of it.
        assert_eq!(level(35.0, None, &[]), 50);
        assert_eq!(level(37.0, None, &[]), 42);
        assert_eq!(level(37.0, Some(50), &[]), 42);
        assert_eq!(level(35.0, Some(42), &[]), 42, "0.875 is too much to be raised at");
        assert_eq!(level(31.0, Some(42), &[]), 50);
        assert_eq!(level(1e6, None, &[]), 10);
    }

    #[test]
    fn a_backlog_lowers_it_and_what_is_begun_stays() {
        let works = vec![Work { slack: 0.5, ..example() }; 40];
        assert_eq!(level(0.0, None, &works[..10]), 50);
        let lowered = level(0.0, None, &works);
        assert!((10..50).contains(&lowered), "{lowered}");
        let mut works = works;
        works[3].planned = Some(50);
        works[4].best = 12;
        let plans = PerModel.plan(&Load { works: &works, expected: None, level: None });
        assert_eq!((plans.steps[3], plans.steps[4]), (50, 12));
        assert!(plans.steps[5] < 50);
    }
}
