//! How many pictures come: an estimate that follows a burst within about a second.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Time constants of the two means, seconds.
const FAST: f64 = 1.0;
const SLOW: f64 = 6.0;
/// Deviations of the fast mean from the slow one that chance explains, in standard deviations.
const CHANCE: f64 = 2.0;

/// Pictures per second, by two exponentially decaying counts: the steadier one, unless the faster one contradicts it by
/// more than chance explains.
#[derive(Debug, Clone, Default)]
pub struct Arrivals {
    /// When the last ones came, and how many they were.
    last: Option<(Duration, f64)>,
    /// What came before them, decayed to when they came.
    fast: f64,
    slow: f64,
}

impl Arrivals {
    /// So many pictures came, at a time that never goes back.
    pub fn arrive(&mut self, now: Duration, pictures: usize) {
        let pictures = pictures as f64;
        match self.last {
            Some((at, count)) if now <= at => self.last = Some((at, count + pictures)),
            Some((at, count)) => {
                let age = (now - at).as_secs_f64();
                self.fast = (self.fast + count) * (-age / FAST).exp();
                self.slow = (self.slow + count) * (-age / SLOW).exp();
                self.last = Some((now, pictures));
            }
            None => self.last = Some((now, pictures)),
        }
    }

    /// Pictures per second. The last arrival is not counted: one picture alone says nothing of when the next comes.
    pub fn rate(&self, now: Duration) -> f64 {
        let Some((at, _)) = self.last else { return 0.0 };
        let age = now.saturating_sub(at).as_secs_f64();
        let fast = self.fast * (-age / FAST).exp() / FAST;
        let slow = self.slow * (-age / SLOW).exp() / SLOW;
        // A count that decays with τ has at rate r the variance r·τ/2 (Campbell's theorem).
        let deviation = (slow / (2.0 * FAST)).sqrt();
        if (fast - slow).abs() > CHANCE * deviation { fast } else { slow }
    }
}

/// Requests that are remembered, and for how long.
const CALLS: usize = 64;
const REMEMBERED: Duration = Duration::from_secs(60);

/// Who asked of late.
#[derive(Debug, Default)]
pub struct Callers {
    calls: VecDeque<(u64, Duration)>,
    hasher: RandomState,
}

impl Callers {
    /// A client asks, at a time that never goes back. Whether most requests of late are his, and others ask, too.
    pub fn call(&mut self, client: &str, now: Duration) -> bool {
        let caller = self.hasher.hash_one(client);
        while self.calls.len() >= CALLS || self.calls.front().is_some_and(|(_, at)| *at + REMEMBERED < now) {
            self.calls.pop_front();
        }
        self.calls.push_back((caller, now));
        let own = self.calls.iter().filter(|(other, _)| *other == caller).count();
        own < self.calls.len() && 2 * own > self.calls.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(arrivals: &mut Arrivals, seconds: std::ops::Range<f64>, rate: f64) {
        let mut at = seconds.start;
        while at < seconds.end {
            arrivals.arrive(Duration::from_secs_f64(at), 1);
            at += 1.0 / rate;
        }
    }

    fn rate(arrivals: &Arrivals, at: f64) -> f64 {
        arrivals.rate(Duration::from_secs_f64(at))
    }

    #[test]
    fn a_steady_rate_is_found_and_kept() {
        let mut arrivals = Arrivals::default();
        every(&mut arrivals, 0.0..60.0, 10.0);
        assert!((rate(&arrivals, 60.0) - 10.0).abs() < 1.0, "{}", rate(&arrivals, 60.0));
    }

    #[test]
    fn a_burst_is_seen_within_a_second_and_forgotten_when_over() {
        let mut arrivals = Arrivals::default();
        every(&mut arrivals, 0.0..60.0, 4.0);
        every(&mut arrivals, 60.0..61.0, 40.0);
        assert!(rate(&arrivals, 61.0) > 20.0, "{}", rate(&arrivals, 61.0));
        assert!(rate(&arrivals, 66.0) < 6.0, "{}", rate(&arrivals, 66.0));
        assert!(rate(&arrivals, 120.0) < 0.01);
    }

    #[test]
    fn one_picture_is_no_rate() {
        let mut arrivals = Arrivals::default();
        assert_eq!(rate(&arrivals, 5.0), 0.0);
        arrivals.arrive(Duration::from_secs(5), 4);
        assert_eq!(rate(&arrivals, 5.0), 0.0);
        arrivals.arrive(Duration::from_secs(5), 1);
        arrivals.arrive(Duration::from_secs(4), 1);
        assert_eq!(rate(&arrivals, 5.0), 0.0, "a clock that goes back is the same moment");
        arrivals.arrive(Duration::from_secs(6), 1);
        assert!(rate(&arrivals, 6.0) > 0.0);
    }

    #[test]
    fn who_asks_for_most_is_known_while_others_ask_too() {
        let mut callers = Callers::default();
        let at = Duration::from_secs;
        assert!((0..100).all(|_| !callers.call("a", at(1))), "nobody else is there");
        assert!(!callers.call("b", at(2)));
        assert!(callers.call("a", at(2)));
        assert!(!callers.call("b", at(2)), "b asks for little");
        assert!(!callers.call("a", at(70)), "and is forgotten after a while");
        assert!((0..1000).all(|_| !callers.call("a", at(70))) && callers.calls.len() == CALLS);
    }
}
