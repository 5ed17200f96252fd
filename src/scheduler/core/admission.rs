//! Who is let in, and when there will be room for the others.
//!
//! New pictures are let in if their client's own part of the machines is enough for them, or if half of the time to their
//! deadlines is enough for all that is there, and nothing that is in time becomes late for them. Everything counts at its floor: plans get cheaper before anything is
//! refused. No place is kept for those that are refused. What was told to them is remembered as one sum of machine seconds
//! that runs off, so that they do not all come back at the same moment.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Core;
use super::config::Tuning;
use super::latency::{Kind, pace};
use super::options::{Facts, Offer, choose, offers};
use super::workers::{Set, SetKey};
use crate::scheduler::messages::{Busy, Refusal, SubmitAnswer};
use crate::scheduler::{ClientId, Time};

/// The longest wait that is told, seconds. Predictions for later are worth nothing.
const MAX_WAIT: f64 = 600.0;
/// A price at which every task takes its cheapest option.
pub(super) const PROHIBITIVE: f64 = 1e150;
/// Machine seconds below this are rounding.
const ROUNDING: f64 = 1e-9;

/// What a new task needs at its floor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Need {
    /// Machine seconds.
    pub seconds: f64,
    /// Seconds until it is finished in full batches, if no step waits.
    pub clock: f64,
    /// The same on an idle machine, with the fastest option.
    pub idle_clock: f64,
    /// Whether this was measured.
    pub measured: bool,
}

/// What was told to clients that were refused.
#[derive(Debug)]
pub(super) struct Told {
    /// Machine seconds that are expected to come back, by set of workers, and when they were counted.
    seconds: BTreeMap<SetKey, (f64, Time)>,
    /// Until when each client was told to wait. It counts once until then, however often it asks.
    until: BTreeMap<ClientId, Time>,
    by_time: BTreeSet<(Time, ClientId)>,
    most: usize,
}

impl Told {
    pub fn new(most: usize) -> Self {
        Self { seconds: BTreeMap::new(), until: BTreeMap::new(), by_time: BTreeSet::new(), most }
    }

    /// Seconds until `shortfall` machine seconds have been done, and what was told before.
    fn tell(
        &mut self,
        now: Time,
        client: &ClientId,
        set: SetKey,
        workers: f64,
        shortfall: f64,
        need: f64,
    ) -> f64 {
        while self.by_time.first().is_some_and(|(until, _)| *until <= now || self.by_time.len() > self.most) {
            if let Some((_, client)) = self.by_time.pop_first() {
                self.until.remove(&client);
            }
        }
        self.seconds.retain(|_, (seconds, at)| *seconds > now.since(*at) * workers);
        if let Some(until) = self.until.get(client) {
            return until.since(now).clamp(1.0, MAX_WAIT);
        }
        let (before, at) = self.seconds.get(&set).copied().unwrap_or((0.0, now));
        let before = (before - now.since(at) * workers).max(0.0);
        let after = ((shortfall + before) / workers).clamp(1.0, MAX_WAIT);
        if after < MAX_WAIT {
            self.seconds.insert(set, (before + need, now));
        }
        let until = now.after(after);
        self.until.insert(client.clone(), until);
        self.by_time.insert((until, client.clone()));
        after
    }
}

/// Machine seconds that are too many for new work of `need` machine seconds, which is to be done in `slack` seconds and
/// takes `tail` seconds longer than its machine seconds; 0: it fits. `bins` is all other work, as (slack, machine
/// seconds), by rising slack. `part` of the time to each deadline may be filled. The tail is no work: other pictures are
/// painted meanwhile, so it shortens the time and fills nothing.
fn shortfall(bins: &[(f64, f64)], need: f64, tail: f64, slack: f64, workers: f64, part: f64) -> f64 {
    let limit = |slack: f64| part * slack.max(0.0) * workers;
    let (mut used, mut before, mut short) = (0.0, 0.0, 0.0f64);
    for &(due, seconds) in bins {
        used += seconds;
        if due <= slack {
            before = used;
        } else if used <= limit(due) + ROUNDING {
            // What is late anyway does not become late for the new work; it is painted all the same.
            short = short.max(used + need - limit(due));
        }
    }
    let own = before + need - limit(slack - tail);
    let short = short.max(own);
    if short > ROUNDING { short } else { 0.0 }
}

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// What a new task needs at its floor, in the set of workers that can serve it.
    pub(super) fn need(&self, facts: &Facts) -> Need {
        let beginnings = facts.beginnings();
        let set = self
            .workers
            .serving(&facts.model)
            .max_by_key(|(key, set)| (set.workers, std::cmp::Reverse(*key)));
        let with = |rows: Option<f64>| {
            let measured = Cell::new(true);
            let latencies: Vec<_> = set.iter().map(|(_, set)| &set.latency).collect();
            let full = set.map_or(1.0, |(_, set)| set.full_rows());
            let offers = offers(facts, &beginnings, |denoiser| {
                let kind = kind(facts, denoiser);
                let pace = pace(&latencies, kind, rows.unwrap_or(full), full);
                measured.set(measured.get() && pace.measured);
                pace
            });
            (offers, measured.get())
        };
        let (full, measured) = with(None);
        let (alone, _) = with(Some(2.0));
        let floor = self.floor_of(facts, &full);
        let fastest = choose(&alone, facts.terms.floor, 0.0, -1.0).map(|choice| choice.offer);
        Need {
            seconds: floor.map_or(0.0, |offer| offer.machine_seconds),
            clock: floor.map_or(0.0, |offer| offer.clock_seconds),
            idle_clock: fastest.map_or(0.0, |offer| offer.clock_seconds),
            measured: measured && set.is_some(),
        }
    }

    /// The cheapest that the policy gives.
    pub(super) fn floor_of(&self, facts: &Facts, offers: &[Offer]) -> Option<Offer> {
        self.config.policy.choose(facts, offers, PROHIBITIVE, f64::INFINITY).map(|choice| choice.offer)
    }

    /// Whether new tasks of a client are let in.
    pub(super) fn admit(
        &mut self,
        now: Time,
        client: &ClientId,
        new: &[(Arc<Facts>, Need)],
    ) -> Result<(), SubmitAnswer> {
        let too_near = |(facts, need): &&(Arc<Facts>, Need)| {
            need.measured && facts.terms.firm && need.idle_clock > facts.terms.deadline_seconds
        };
        if new.iter().any(|new| too_near(&new)) {
            return Err(SubmitAnswer::Never { why: Refusal::Deadline });
        }
        // A request is one piece of work: it is there as a whole by the first of its deadlines.
        let Some((first, _)) = new.first() else { return Ok(()) };
        if new.iter().any(|(_, need)| !need.measured) {
            return Ok(()); // nothing is known yet that could be a reason against it
        }
        let Tuning { headroom, planned, .. } = self.config.tuning;
        let need: f64 = new.iter().map(|(_, need)| need.seconds).sum();
        let clock = new.iter().map(|(_, need)| need.clock).fold(0.0, f64::max);
        let deadline =
            new.iter().map(|(facts, _)| facts.terms.deadline_seconds).fold(f64::INFINITY, f64::min);
        let firm = new.iter().any(|(facts, _)| facts.terms.firm);
        let mut refused = None;
        for (key, set) in self.workers.serving(&first.model) {
            let workers = set.workers as f64;
            let own = (need / workers).min(clock);
            // A deadline that not even idle workers keep is no reason to refuse, unless the client named it.
            let idle = if firm { clock } else { clock.max(need / workers) };
            let slack = deadline.max(idle / headroom + ROUNDING);
            let tail = clock - own;
            let clients = self.order.active() + usize::from(!self.order.is_active(client));
            // Beyond its own part a client's tasks wait for those that others will bring.
            let filled = if clients == 1 { headroom } else { planned };
            let short = shortfall(&self.bins(now, set), need, tail, slack, workers, filled);
            let of_client = (self.order.backlog(client) + need) * clients as f64;
            let part = of_client <= headroom * (slack - tail) * workers;
            if short == 0.0 || part {
                return Ok(());
            }
            let first = refused.is_none_or(|(_, _, least)| short / workers < least);
            if first {
                refused = Some((key, workers, short / workers));
            }
        }
        let Some((set, workers, seconds)) = refused else { return Ok(()) };
        let after_seconds = self.told.tell(now, client, set, workers, seconds * workers, need);
        Err(SubmitAnswer::Later { after_seconds, why: Busy::Overloaded })
    }

    /// A set's part of all work, as (slack, machine seconds at the floor) by rising slack.
    fn bins(&self, now: Time, set: &Set) -> Vec<(f64, f64)> {
        let mut bins: BTreeMap<Time, f64> = BTreeMap::new();
        for model in &set.models {
            let share = self.workers.share(model, set);
            for (due, (seconds, _)) in self.demand.of(model).iter().flat_map(|demand| &demand.floors) {
                *bins.entry(*due).or_default() += share * seconds;
            }
        }
        bins.into_iter().map(|(due, seconds)| (due.since(now), seconds)).collect()
    }

    /// Predicted seconds until so many pictures have ended.
    pub(super) fn seconds_until_ended(&self, pictures: usize) -> f64 {
        let models = self.demand.models().filter_map(|model| self.demand.of(model));
        let (seconds, tasks) = models.fold((0.0, 0), |(s, n), model| (s + model.seconds, n + model.tasks));
        let each = seconds / tasks.max(1) as f64 / self.workers.len().max(1) as f64;
        (each * pictures as f64).clamp(1.0, MAX_WAIT)
    }
}

/// The kind of steps of a task's denoiser.
pub(super) fn kind<'a>(facts: &'a Facts, denoiser: &'a str) -> Kind<'a> {
    Kind { model: &facts.model, denoiser, shape: facts.shape }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(bins: &[(f64, f64)], need: f64, slack: f64) -> f64 {
        shortfall(bins, need, 0.0, slack, 1.0, 0.9)
    }

    #[test]
    fn what_fits_is_let_in_and_nothing_becomes_late_for_it() {
        assert_eq!(short(&[], 0.9, 1.0), 0.0);
        assert!((short(&[], 1.0, 1.0) - 0.1).abs() < 1e-9);
        assert_eq!(short(&[(1.0, 0.8)], 0.1, 1.0), 0.0);
        assert!((short(&[(1.0, 0.8)], 0.3, 1.0) - 0.2).abs() < 1e-9);
        assert!((short(&[(2.0, 1.7)], 0.3, 1.0) - 0.2).abs() < 1e-9, "the other would be late");
        assert_eq!(short(&[(2.0, 50.0)], 0.3, 1.0), 0.0, "what is late anyway is no reason");
        assert!((short(&[(-1.0, 5.0)], 0.3, 1.0) - 4.4).abs() < 1e-9, "but it is painted");
        assert_eq!(shortfall(&[(1.0, 0.8)], 0.3, 0.0, 1.0, 2.0, 0.9), 0.0, "two workers");
        assert!(shortfall(&[], 0.1, 0.95, 1.0, 2.0, 0.9) > 0.0, "its steps come one after the other");
        assert_eq!(shortfall(&[], 0.1, 0.9, 1.0, 2.0, 0.9), 0.0);
    }

    #[test]
    fn those_refused_are_told_one_after_the_other_and_each_once() {
        let mut told = Told::new(3);
        let now = Time::ZERO.after(1.0);
        let mut tell = |client: &str, now| told.tell(now, &client.into(), 1, 2.0, 4.0, 10.0);
        assert_eq!((tell("a", now), tell("b", now), tell("c", now)), (2.0, 7.0, 12.0));
        assert_eq!((tell("a", now), tell("b", now)), (2.0, 7.0), "asking again changes nothing");
        assert_eq!(tell("a", now.after(5.0)), 12.0, "half of it was done");
        assert_eq!(tell("d", now.after(1000.0)), 2.0);
        for i in 0..1000 {
            told.tell(now.after(2000.0), &format!("{i}").into(), 1, 2.0, 4.0, 10.0);
        }
        assert!(told.until.len() <= 4 && told.by_time.len() <= 4, "{}", told.until.len());
    }
}
