//! What waits and runs, in buckets: of equal terms, at equal noise levels, with deadlines close to each other.
//!
//! The price and admission read buckets, never tasks. A bucket's deadline is the earliest that its tasks may have, its
//! noise level the highest. Both err towards more load.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::options::Facts;
use crate::scheduler::ModelId;
use crate::scheduler::menu::Menu;
use crate::scheduler::messages::{Shape, StoredStart, Terms};
use crate::scheduler::time::Time;

/// Parts that noise levels and times to deadlines are rounded to. Finer buckets cost time at each price, coarser ones
/// make it too high by up to this part.
const PARTS: f64 = 8.0;

/// A hash of all that decides what an option is worth and costs: terms, size, allowed options, stored start. Of two tasks
/// with one hash, the facts of one stand for both; should chance ever join two that differ, the price is a little off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class(u64);

impl Class {
    pub fn of(
        terms: &Terms,
        shape: Shape,
        menu: &Menu,
        allowed: Option<&[usize]>,
        start: Option<StoredStart>,
    ) -> Self {
        let percent = |quality: f64| (quality * 100.0).ceil().clamp(0.0, 100.0) as u32;
        let mut hasher = DefaultHasher::new();
        (&terms.tier, shape, percent(terms.floor), percent(terms.best), allowed).hash(&mut hasher);
        if menu.len() == 1 {
            let own = menu.get(0).map(|own| (own.id.as_str(), own.steps.len()));
            own.hash(&mut hasher);
        }
        if let Some(start) = start {
            let parts = (start.noise_level * PARTS).ceil() as u32;
            (parts, percent(start.loss), start.least_steps, start.required).hash(&mut hasher);
        }
        Self(hasher.finish())
    }
}

/// A bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BucketKey {
    /// The earliest deadline of its tasks.
    pub due: Time,
    /// Noise level in parts, rounded up.
    level: u8,
    class: Class,
}

impl BucketKey {
    /// The bucket of a task that came at `arrived` and is at `noise_level`; `None` when no step is left.
    pub fn of(facts: &Facts, deadline: Time, noise_level: f64) -> Option<Self> {
        let level = (noise_level * PARTS).ceil().clamp(0.0, PARTS) as u8;
        // A power of two, so that objectives that are nearly equal share their buckets' bounds.
        let width = (facts.terms.deadline_seconds / PARTS * 1e9).max(1.0) as u64;
        let width = 1u64 << width.ilog2();
        let due = Time::from_nanos(deadline.as_nanos() / width * width);
        (level > 0).then_some(Self { due, level, class: facts.class })
    }

    /// The same bucket at another noise level.
    pub fn at(&self, noise_level: f64) -> Option<Self> {
        let level = (noise_level * PARTS).ceil().clamp(0.0, PARTS) as u8;
        (level > 0).then_some(Self { level, ..*self })
    }

    /// The noise level.
    pub fn noise_level(&self) -> f64 {
        f64::from(self.level) / PARTS
    }

    /// What is equal in buckets that differ in nothing but their deadlines.
    pub fn offers_key(&self) -> OffersKey {
        OffersKey(self.level, self.class)
    }
}

/// Buckets of one key choose from the same offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OffersKey(u8, Class);

/// The tasks of a bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    pub tasks: usize,
    /// The facts of one of them, which stands for all.
    pub facts: Arc<Facts>,
}

/// One model's tasks.
#[derive(Debug, Default)]
pub(super) struct ModelDemand {
    pub buckets: BTreeMap<BucketKey, Bucket>,
    /// Machine seconds at the floor, and tasks, by the deadlines of the buckets.
    pub floors: BTreeMap<Time, (f64, usize)>,
    /// Machine seconds at the floor of all of them.
    pub seconds: f64,
    pub tasks: usize,
}

/// All tasks with steps to take.
#[derive(Debug, Default)]
pub(super) struct Demand {
    models: BTreeMap<ModelId, ModelDemand>,
}

impl Demand {
    pub fn of(&self, model: &ModelId) -> Option<&ModelDemand> {
        self.models.get(model)
    }

    /// Models that tasks wait for or run with.
    pub fn models(&self) -> impl Iterator<Item = &ModelId> {
        self.models.keys()
    }

    /// A task comes into a bucket, with machine seconds at its floor.
    pub fn add(&mut self, facts: &Arc<Facts>, key: BucketKey, seconds: f64) {
        let model = self.models.entry(facts.model.clone()).or_default();
        let (sum, tasks) = model.floors.entry(key.due).or_default();
        *sum += seconds;
        *tasks += 1;
        model.seconds += seconds;
        model.tasks += 1;
        model.buckets.entry(key).or_insert_with(|| Bucket { tasks: 0, facts: facts.clone() }).tasks += 1;
    }

    /// A task leaves a bucket.
    pub fn remove(&mut self, model: &ModelId, key: &BucketKey, seconds: f64) {
        let Some(of) = self.models.get_mut(model) else { return };
        let Some(bucket) = of.buckets.get_mut(key) else { return };
        bucket.tasks -= 1;
        if bucket.tasks == 0 {
            of.buckets.remove(key);
        }
        if let Some((sum, tasks)) = of.floors.get_mut(&key.due) {
            *sum -= seconds;
            *tasks -= 1;
            // With the last task goes what rounding left of the sum.
            if *tasks == 0 {
                of.floors.remove(&key.due);
            }
        }
        of.seconds -= seconds;
        of.tasks -= 1;
        if of.tasks == 0 {
            self.models.remove(model);
        }
    }

    /// Buckets in all.
    pub fn buckets(&self) -> usize {
        self.models.values().map(|model| model.buckets.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::tests::facts;
    use super::*;

    #[test]
    fn buckets_are_counted_and_go_with_their_last_task() {
        let mut demand = Demand::default();
        let facts = Arc::new(facts(0.9, 1.0));
        let key = |deadline, level| BucketKey::of(&facts, Time::ZERO.after(deadline), level);
        let keys: Vec<BucketKey> =
            [key(5.0, 1.0), key(5.001, 1.0), key(5.001, 0.4), key(7.0, 1.0)].into_iter().flatten().collect();
        assert_eq!(key(5.0, 0.0), None);
        let offers = |i: usize| keys[i].offers_key();
        assert!(keys[0] == keys[1] && offers(0) == offers(3) && offers(0) != offers(2));
        assert!(keys[0].due <= Time::ZERO.after(5.0) && keys[0].due >= Time::ZERO.after(4.875));
        assert_eq!((keys[2].noise_level(), keys[0].at(0.4).as_ref()), (0.5, Some(&keys[2])));
        for key in &keys {
            demand.add(&facts, *key, 0.1);
        }
        let model = demand.of(&"m".into()).unwrap();
        assert_eq!((model.buckets.len(), model.floors.len(), model.tasks), (3, 2, 4));
        for key in &keys {
            demand.remove(&"m".into(), key, 0.1);
        }
        assert!(demand.of(&"m".into()).is_none() && demand.buckets() == 0);
    }
}
