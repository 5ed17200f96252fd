//! Prices are renewed, and tasks in flight follow them.

use std::collections::BTreeMap;

use super::Core;
use super::admission::kind;
use super::demand::BucketKey;
use super::options::{Choice, Facts, Offer, Origin, Position, offers};
use super::price::{Lump, lowest};
use super::tasks::{Leg, TaskKey};
use super::workers::{Set, WorkerKey};
use crate::scheduler::Time;

/// Machine seconds below this are no saving.
const ROUNDING: f64 = 1e-12;

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// Renews the price of a worker's set, if it is due.
    pub(super) fn reprice(&mut self, now: Time, worker: WorkerKey) {
        let Some(key) = self.workers.get(worker).map(|of| of.set) else { return };
        let Some(set) = self.workers.set(key).filter(|set| set.price.is_due(now, &self.config.tuning)) else {
            return;
        };
        let price = self.price_of(now, set);
        if let Some(set) = self.workers.set_mut(key) {
            set.price.set(now, price, &self.config.tuning);
        }
    }

    fn price_of(&self, now: Time, set: &Set) -> f64 {
        // Buckets that differ in nothing but their deadlines share their offers.
        let mut known = BTreeMap::new();
        let mut all: Vec<Vec<Offer>> = Vec::new();
        let mut buckets = Vec::new();
        for model in &set.models {
            let share = self.workers.share(model, set);
            for (key, bucket) in self.demand.of(model).iter().flat_map(|demand| &demand.buckets) {
                let place = *known.entry((model, key.offers_key())).or_insert_with(|| {
                    let pace = |denoiser: &str| set.pace(kind(&bucket.facts, denoiser));
                    all.push(offers(&bucket.facts, &positions(&bucket.facts, key), pace));
                    all.len() - 1
                });
                buckets.push((key.due, share * bucket.tasks as f64, &bucket.facts, place));
            }
        }
        buckets.sort_by_key(|(due, ..)| *due);
        let lump = |(due, tasks, facts, place): (Time, f64, _, usize)| Lump {
            slack: due.since(now),
            tasks,
            facts,
            offers: &all[place],
        };
        let lumps: Vec<Lump<'_>> =
            buckets.into_iter().map(|(a, b, c, d)| lump((a, b, c.as_ref(), d))).collect();
        lowest(&self.config.policy, &self.config.tuning, &lumps, set.workers as f64)
    }

    /// Changes the option of a task in flight, if a cheaper one is worth more at the price or the present one would be
    /// late. Whether the task yields is decided anew, too.
    pub(super) fn replan(&mut self, now: Time, worker: WorkerKey, key: TaskKey) {
        let Some(task) = self.tasks.get(key) else { return };
        let Some(run) = task.run().filter(|run| run.rows > 0) else { return };
        let facts = &*task.facts;
        let rows = self.workers.get(worker).map_or(1.0, |worker| f64::from(worker.rows));
        let positions = task.positions();
        let mut offers = offers(facts, &positions, |denoiser| self.pace_at(worker, facts, denoiser, rows));
        let current = run.leg().option;
        let Some(now_taken) = offers.iter().find(|offer| offer.option == current).copied() else { return };
        let replans = self.config.policy.replans();
        offers.retain(|offer| {
            let cheaper = offer.machine_seconds < now_taken.machine_seconds - ROUNDING;
            offer.option == current || replans && cheaper
        });
        let (price, seconds) =
            (self.price_at(worker), self.config.tuning.headroom * task.deadline.since(now));
        let late = |offer: Offer| Choice { offer, late: offer.clock_seconds > seconds };
        let choice = if replans { self.config.policy.choose(facts, &offers, price, seconds) } else { None };
        let choice = choice.unwrap_or_else(|| late(now_taken));
        let yielded = task.yielded || task.yields_until() <= now;
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.yielded = yielded;
        let leg = Leg {
            option: choice.offer.option,
            noise_level: choice.offer.position.noise_level,
            lost: choice.offer.position.lost,
        };
        let Some(run) = task.run_mut() else { return };
        run.rank.yields = choice.late && !yielded;
        if leg.option != current {
            run.predicted -= now_taken.machine_seconds - choice.offer.machine_seconds;
            run.rows = choice.offer.rows;
            run.legs.push(leg);
        }
    }

    /// Puts a task into the bucket of its noise level, with machine seconds at its floor; out of all buckets when its steps
    /// are done.
    pub(super) fn put_into_bucket(&mut self, key: TaskKey, noise_level: f64, seconds: f64) {
        self.take_from_bucket(key);
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Some(bucket) = BucketKey::of(&task.facts, task.deadline, noise_level) else { return };
        task.bucket = Some((bucket, seconds));
        let (facts, client) = (task.facts.clone(), task.client.clone());
        self.demand.add(&facts, bucket, seconds);
        self.order.change_backlog(&client, seconds);
    }

    pub(super) fn take_from_bucket(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Some((bucket, seconds)) = task.bucket.take() else { return };
        let (model, client) = (task.facts.model.clone(), task.client.clone());
        self.demand.remove(&model, &bucket, seconds);
        self.order.change_backlog(&client, -seconds);
    }
}

/// Where the tasks of a bucket are.
fn positions(facts: &Facts, bucket: &BucketKey) -> Vec<Position> {
    if bucket.noise_level() >= 1.0 {
        return facts.beginnings();
    }
    let (origin, noise_level) = (Origin::Own, bucket.noise_level());
    let least_steps = facts.start.map_or(0, |start| start.least_steps);
    let own = Position { origin, noise_level, lost: 0.0, least_steps, current: None };
    let measured = |place: usize| facts.menu.get(place).is_some_and(|option| option.is_measured_in_flight());
    let some = (0..facts.menu.len()).any(|place| {
        measured(place) && facts.allowed.as_ref().is_none_or(|allowed| allowed.contains(&place))
    });
    // Options that were never measured in flight are gone on with.
    let current = (!some).then(|| facts.allowed.as_ref().and_then(|of| of.first().copied()).unwrap_or(0));
    vec![Position { current, ..own }]
}
