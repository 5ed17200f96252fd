//! The price of a second of machine time, for one set of interchangeable workers.

use std::collections::VecDeque;

use super::config::Tuning;
use super::options::{Facts, Offer, cheapest};
use super::policy::Policy;
use crate::scheduler::time::Time;

/// Halvings of the interval in which the price is searched: enough for a millionth of it.
const HALVINGS: usize = 20;

/// A bucket as the price sees it, with its part of the workers.
pub(super) struct Lump<'a> {
    /// Seconds to the deadline.
    pub slack: f64,
    /// How many tasks there are; not whole where two sets of workers share them.
    pub tasks: f64,
    pub facts: &'a Facts,
    pub offers: &'a [Offer],
}

/// The lowest price at which the work that all tasks would choose fits before their deadlines. `lumps` are in order of
/// their deadlines, `workers` the machine seconds per second. What cannot be in time even at the floor does not raise the
/// price: it yields.
pub(super) fn lowest(policy: &Policy, tuning: &Tuning, lumps: &[Lump<'_>], workers: f64) -> f64 {
    let Tuning { headroom, planned, .. } = *tuning;
    // The part of each lump that can be in time if all take the cheapest option that reaches their floors.
    let mut used = 0.0;
    let mut parts = Vec::with_capacity(lumps.len());
    let mut highest = 0.0f64;
    for lump in lumps {
        let floor = cheapest(lump.offers, lump.facts.terms.floor);
        let (seconds, clock) =
            floor.map_or((0.0, 0.0), |o| (o.machine_seconds * lump.tasks, o.clock_seconds));
        let limit = headroom * lump.slack.max(0.0) * workers;
        let part = if clock > headroom * lump.slack {
            0.0
        } else {
            ((limit - used) / seconds.max(1e-12)).clamp(0.0, 1.0)
        };
        used += part * seconds;
        parts.push(part);
        for offer in lump.offers {
            // Above this price every task takes its cheapest option.
            let saved = floor.map_or(0.0, |floor| offer.machine_seconds - floor.machine_seconds);
            let gained = floor.map_or(0.0, |floor| offer.worth - floor.worth);
            if saved > 1e-12 {
                highest = highest.max(gained / saved);
            }
        }
    }
    let fits = |price: f64| {
        let mut used = 0.0;
        lumps.iter().zip(&parts).filter(|(_, part)| **part > 0.0).all(|(lump, part)| {
            let choice = policy.choose(lump.facts, lump.offers, price, headroom * lump.slack);
            used += choice.map_or(0.0, |c| c.offer.machine_seconds) * lump.tasks * part;
            used <= planned * lump.slack * workers + 1e-9
        })
    };
    if fits(0.0) {
        return 0.0;
    }
    // With `highest` itself, ties would go either way.
    let (mut low, mut high) = (0.0, highest * 1.001 + 1e-9);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if fits(middle) { high = middle } else { low = middle }
    }
    high
}

/// The price that is published: it rises at once and falls after two seconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Price {
    computed: Option<Time>,
    /// Prices of the last two seconds that no later one exceeds, by falling price.
    recent: VecDeque<(Time, f64)>,
}

impl Price {
    /// Whether a new price is due.
    pub fn is_due(&self, now: Time, tuning: &Tuning) -> bool {
        self.computed.is_none_or(|computed| now.since(computed) >= tuning.reprice_seconds)
    }

    /// Takes a new price.
    pub fn set(&mut self, now: Time, price: f64, tuning: &Tuning) {
        self.computed = Some(now);
        while self.recent.back().is_some_and(|(_, last)| *last <= price) {
            self.recent.pop_back();
        }
        self.recent.push_back((now, price));
        // The last price holds until there is another.
        let old = |(at, _): &(Time, f64)| now.since(*at) > tuning.falls_after_seconds;
        while self.recent.len() > 1 && self.recent.front().is_some_and(old) {
            self.recent.pop_front();
        }
    }

    /// Worth per machine second.
    pub fn now(&self) -> f64 {
        self.recent.front().map_or(0.0, |(_, price)| *price)
    }
}

#[cfg(test)]
mod tests {
    use super::super::latency::Pace;
    use super::super::options::offers;
    use super::super::options::tests::facts;
    use super::*;

    /// 4, 8 or 16 steps: 0.04, 0.08 or 0.16 machine seconds.
    fn price(floor: f64, lumps: &[(f64, f64)], workers: f64) -> f64 {
        let facts = facts(floor, 1.0);
        let pace =
            |_: &str| Pace { step_seconds: 0.01, row_seconds: 0.005, overhead_seconds: 0.0, measured: true };
        let offers = offers(&facts, &facts.beginnings(), pace);
        let lump = |&(slack, tasks): &(f64, f64)| Lump { slack, tasks, facts: &facts, offers: &offers };
        let lumps: Vec<Lump<'_>> = lumps.iter().map(lump).collect();
        lowest(&Policy::default(), &Tuning::default(), &lumps, workers)
    }

    #[test]
    fn time_costs_nothing_where_all_fits_and_no_more_than_it_must() {
        assert_eq!(price(0.9, &[(1.0, 3.0)], 1.0), 0.0);
        // 16 to 8 steps: 0.04 worth for 0.08 seconds. 8 to 4: 0.06 for 0.04.
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-3, "{found}, not {wanted}");
        near(price(0.9, &[(1.0, 6.0)], 1.0), 0.5);
        near(price(0.9, &[(1.0, 12.0)], 1.0), 1.5);
        near(price(0.9, &[(1.0, 12.0)], 2.0), 0.5);
        near(price(0.95, &[(1.0, 6.0)], 1.0), 0.5);
        assert_eq!(price(0.9, &[(0.5, 1.0), (9.0, 2.0)], 1.0), 0.0);
        near(price(0.9, &[(0.5, 3.0), (9.0, 2.0)], 1.0), 0.5);
    }

    #[test]
    fn what_is_late_whatever_is_done_does_not_raise_the_price() {
        assert_eq!(price(0.9, &[(-1.0, 500.0), (1.0, 2.0)], 1.0), 0.0);
        assert_eq!(price(0.9, &[(0.01, 500.0), (1.0, 2.0)], 1.0), 0.0, "faster than any step");
        let crowded = price(0.9, &[(1.0, 500.0)], 1.0);
        assert!((crowded - 1.5).abs() < 1e-2, "the floor for all: {crowded}");
    }

    #[test]
    fn it_rises_at_once_and_falls_after_two_seconds() {
        let (mut price, tuning) = (Price::default(), Tuning::default());
        let at = |seconds| Time::ZERO.after(seconds);
        assert!(price.is_due(at(0.0), &tuning) && price.now() == 0.0);
        for (seconds, computed, published) in [
            (0.0, 1.0, 1.0),
            (0.5, 3.0, 3.0),
            (1.0, 2.0, 3.0),
            (2.4, 0.0, 3.0),
            (2.6, 0.0, 2.0),
            (9.0, 0.0, 0.0),
        ] {
            price.set(at(seconds), computed, &tuning);
            assert_eq!(price.now(), published, "at {seconds}");
        }
        assert!(!price.is_due(at(9.01), &tuning) && price.is_due(at(9.05), &tuning));
        (0..100_000).for_each(|i| price.set(at(10.0 + f64::from(i) * 0.05), f64::from(100_000 - i), &tuning));
        assert!(price.recent.len() < 50);
    }
}
