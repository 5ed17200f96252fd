//! The accounting for eviction: sizes and uses of everything in the store, without embeddings and prompts.

use std::collections::{HashMap, HashSet};

use crate::entry::{Entry, EntryId, Part, PartKey};
use crate::eviction::{EvictionPolicy, Usage};

/// The most that the cache may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub bytes: u64,
    pub entries: usize,
}

/// Size and uses of one part of an entry.
struct PartAccount {
    part: Part,
    share: f32,
    bytes: u64,
    uses: u64,
}

/// Age and parts of one entry.
struct EntryAccount {
    created: u64,
    last_used: u64,
    parts: Vec<PartAccount>,
}

impl EntryAccount {
    fn of(entry: &Entry) -> Self {
        // A stored picture saves all of the plan's work.
        let picture = entry.picture.map(|kept| PartAccount {
            part: Part::Picture,
            share: 1.0,
            bytes: kept.bytes,
            uses: kept.uses,
        });
        let states = entry.states.iter().map(|kept| PartAccount {
            part: Part::State(kept.timestep),
            share: kept.share,
            bytes: kept.bytes,
            uses: kept.uses,
        });
        Self {
            created: entry.created,
            last_used: entry.last_used,
            parts: picture.into_iter().chain(states).collect(),
        }
    }

    fn usage(&self, kept: &PartAccount) -> Usage {
        Usage { uses: kept.uses, share: kept.share, created: self.created, last_used: self.last_used }
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(|kept| kept.bytes).sum()
    }

    fn has_picture(&self) -> bool {
        self.parts.iter().any(|kept| kept.part == Part::Picture)
    }
}

/// The accounts of all entries, and their totals.
#[derive(Default)]
pub(crate) struct Accounting {
    accounts: HashMap<EntryId, EntryAccount>,
    bytes: u64,
    pictures: usize,
}

impl Accounting {
    pub(crate) fn put(&mut self, entry: &Entry) {
        self.remove(&entry.id);
        let account = EntryAccount::of(entry);
        self.bytes += account.bytes();
        self.pictures += usize::from(account.has_picture());
        self.accounts.insert(entry.id.clone(), account);
    }

    pub(crate) fn remove(&mut self, id: &EntryId) {
        if let Some(account) = self.accounts.remove(id) {
            self.bytes -= account.bytes();
            self.pictures -= usize::from(account.has_picture());
        }
    }

    pub(crate) fn touch(&mut self, id: &EntryId, part: Part, uses: u64, now: u64) {
        let Some(account) = self.accounts.get_mut(id) else { return };
        account.last_used = account.last_used.max(now);
        let kept = account.parts.iter_mut().find(|kept| kept.part == part);
        kept.into_iter().for_each(|kept| kept.uses = kept.uses.saturating_add(uses));
    }

    pub(crate) fn holds(&self, id: &EntryId, part: Part) -> bool {
        self.accounts.get(id).is_some_and(|account| account.parts.iter().any(|kept| kept.part == part))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn entries(&self) -> usize {
        self.accounts.len()
    }

    /// The number of entries whose picture is stored as a file.
    pub(crate) fn pictures(&self) -> usize {
        self.pictures
    }

    /// The entries painted before `time`, in seconds since 1970.
    pub(crate) fn older_than(&self, time: u64) -> Vec<EntryId> {
        self.accounts.iter().filter(|(_, account)| account.created < time).map(|(id, _)| id.clone()).collect()
    }

    /// The parts to evict so that the rest fits the budget, those of least worth first. If any must be evicted, slightly
    /// more are than necessary, so that not every insertion has to sort all parts.
    pub(crate) fn victims(&self, policy: &dyn EvictionPolicy, budget: Budget) -> Vec<PartKey> {
        if self.bytes <= budget.bytes && self.entries() <= budget.entries {
            return Vec::new();
        }
        let (mut victims, evicted) = self.excess_entries(policy, budget.entries);
        let freed: u64 = victims.iter().filter_map(|victim| self.size(victim)).sum();
        let mut left = self.bytes - freed;
        if left > budget.bytes {
            let target = budget.bytes - budget.bytes / 64;
            for victim in self.by_worth(policy, &evicted) {
                if left <= target {
                    break;
                }
                left -= self.size(&victim).unwrap_or_default();
                victims.push(victim);
            }
        }
        victims
    }

    /// The entries to evict so that `max` remain, and their parts. They are the entries whose best part has least worth.
    fn excess_entries(&self, policy: &dyn EvictionPolicy, max: usize) -> (Vec<PartKey>, HashSet<&EntryId>) {
        if self.entries() <= max {
            return Default::default();
        }
        let best = |account: &EntryAccount| {
            let worths = account.parts.iter().map(|kept| policy.worth(&account.usage(kept)));
            worths.fold(f64::NEG_INFINITY, f64::max)
        };
        let mut entries: Vec<_> =
            self.accounts.iter().map(|(id, account)| (best(account), account.created, id)).collect();
        entries.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
        let surplus = self.entries() - (max - max / 64);
        let evicted: Vec<&EntryId> = entries.iter().take(surplus).map(|(_, _, id)| *id).collect();
        let parts = |id: &EntryId| {
            let name = id.clone();
            let key = move |kept: &PartAccount| PartKey { entry: name.clone(), part: kept.part };
            self.accounts[id].parts.iter().map(key).collect::<Vec<_>>()
        };
        (evicted.iter().flat_map(|id| parts(id)).collect(), evicted.into_iter().collect())
    }

    /// All parts but those of `evicted`, those of least worth first. Of parts of equal worth the oldest entry's come
    /// first; within an entry the noisiest state comes first and the picture last.
    fn by_worth(&self, policy: &dyn EvictionPolicy, evicted: &HashSet<&EntryId>) -> Vec<PartKey> {
        let mut parts: Vec<(f64, u64, &EntryId, Part)> = Vec::new();
        for (id, account) in self.accounts.iter().filter(|(id, _)| !evicted.contains(id)) {
            for kept in &account.parts {
                parts.push((policy.worth(&account.usage(kept)), account.created, id, kept.part));
            }
        }
        let noise = |part: Part| match part {
            Part::State(timestep) => timestep,
            Part::Picture => f64::NEG_INFINITY,
        };
        parts.sort_by(|a, b| {
            let oldest = || (a.1, a.2).cmp(&(b.1, b.2));
            a.0.total_cmp(&b.0).then_with(oldest).then_with(|| noise(b.3).total_cmp(&noise(a.3)))
        });
        let key = |(_, _, id, part): (f64, u64, &EntryId, Part)| PartKey { entry: id.clone(), part };
        parts.into_iter().map(key).collect()
    }

    fn size(&self, key: &PartKey) -> Option<u64> {
        let account = self.accounts.get(&key.entry)?;
        account.parts.iter().find(|kept| kept.part == key.part).map(|kept| kept.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::{Kept, KeptPicture};
    use crate::eviction::eviction_policy;
    use crate::index::conformance;

    fn entry(n: u128, created: u64, last_used: u64, states: &[(f32, u64, u64)]) -> Entry {
        let mut entry = conformance::entry(n, &conformance::scope("", ""), conformance::at_angle(0.0));
        (entry.created, entry.last_used) = (created, last_used);
        let kept = |(i, &(share, bytes, uses)): (usize, &(f32, u64, u64))| Kept {
            timestep: 1000.0 - i as f64,
            share,
            bytes,
            uses,
        };
        entry.states = states.iter().enumerate().map(kept).collect();
        entry.picture = None;
        entry
    }

    fn first_out(policy: &str, entries: &[Entry]) -> (EntryId, Part) {
        let mut accounting = Accounting::default();
        entries.iter().for_each(|entry| accounting.put(entry));
        let budget = Budget { bytes: accounting.bytes() - 1, entries: 100 };
        let victims = accounting.victims(eviction_policy(policy).unwrap().as_ref(), budget);
        (victims[0].entry.clone(), victims[0].part)
    }

    #[test]
    fn each_policy_has_its_own_first_victim() {
        let entries = [
            entry(1, 10, 90, &[(0.1, 10, 9), (0.5, 10, 4)]),
            entry(2, 30, 60, &[(0.1, 10, 12), (0.5, 10, 5)]),
            entry(3, 20, 80, &[(0.6, 10, 3)]),
        ];
        assert_eq!(first_out("lcbfu", &entries), (EntryId::new(1), Part::State(1000.0)));
        assert_eq!(first_out("lru", &entries), (EntryId::new(2), Part::State(1000.0)));
        assert_eq!(first_out("lfu", &entries), (EntryId::new(3), Part::State(1000.0)));
        assert_eq!(first_out("fifo", &entries), (EntryId::new(1), Part::State(1000.0)));
        assert!(eviction_policy("random").is_none());
    }

    #[test]
    fn of_equal_worth_the_oldest_goes() {
        let entries = [entry(1, 20, 20, &[(0.1, 10, 0)]), entry(2, 10, 10, &[(0.9, 10, 0)])];
        assert_eq!(first_out("lcbfu", &entries).0, EntryId::new(2));
    }

    #[test]
    fn a_picture_goes_by_its_uses_and_of_equal_worth_last() {
        let mut with_picture = entry(1, 10, 10, &[(0.5, 10, 2)]);
        with_picture.picture = Some(KeptPicture::new(10, [0; 32]));
        assert_eq!(first_out("lcbfu", &[with_picture.clone()]).1, Part::Picture, "it was never served");
        with_picture.touch(Part::Picture, 3, 20);
        assert_eq!(first_out("lcbfu", &[with_picture.clone()]).1, Part::State(1000.0));
        assert_eq!(first_out("fifo", &[with_picture]).1, Part::State(1000.0));
    }

    proptest! {
        /// For any sizes and uses: without the victims the rest fits the budget; no part is evicted unnecessarily,
        /// except for the margin; and no remaining part has less worth than one that was evicted for its bytes.
        #[test]
        fn victims_are_enough_and_of_least_worth(
            accounts in prop::collection::vec(
                (0u64..50, 0u64..50, prop::collection::vec((0.0f32..1.0, 1u64..100, 0u64..9), 1..5)),
                0..30,
            ),
            bytes in 0u64..3000,
            entries in 0usize..30,
            policy in prop::sample::select(vec!["lcbfu", "lru", "lfu", "fifo"]),
        ) {
            let policy = eviction_policy(policy).unwrap();
            let mut accounting = Accounting::default();
            for (n, (created, used, states)) in accounts.iter().enumerate() {
                accounting.put(&entry(n as u128, *created, *used, states));
            }
            let victims = accounting.victims(policy.as_ref(), Budget { bytes, entries });
            let fits = accounting.bytes() <= bytes && accounting.entries() <= entries;
            prop_assert_eq!(victims.is_empty(), fits);

            let worth = |id: &EntryId, kept: &PartAccount| policy.worth(&accounting.accounts[id].usage(kept));
            let went = |id: &EntryId, kept: &PartAccount| {
                victims.iter().any(|victim| victim.entry == *id && victim.part == kept.part)
            };
            let (mut left_bytes, mut left_entries) = (0, 0);
            let (mut least_kept, mut most_gone) = (f64::INFINITY, f64::NEG_INFINITY);
            for (id, account) in &accounting.accounts {
                let stays: Vec<&PartAccount> = account.parts.iter().filter(|kept| !went(id, kept)).collect();
                left_bytes += stays.iter().map(|kept| kept.bytes).sum::<u64>();
                left_entries += usize::from(!stays.is_empty());
                for kept in &account.parts {
                    let worth = worth(id, kept);
                    if went(id, kept) {
                        most_gone = most_gone.max(worth);
                    } else {
                        least_kept = least_kept.min(worth);
                    }
                }
            }
            prop_assert!(left_bytes <= bytes && left_entries <= entries);
            if accounting.entries() <= entries {
                prop_assert!(most_gone <= least_kept);
                let last = victims.last().and_then(|victim| accounting.size(victim)).unwrap_or(0);
                prop_assert!(victims.is_empty() || left_bytes + last > bytes - bytes / 64);
            }
        }

        #[test]
        fn totals_follow_every_change(changes in prop::collection::vec((0u128..6, 0u64..3, 1u64..50), 0..60)) {
            let mut accounting = Accounting::default();
            let mut model = HashMap::new();
            for (n, change, bytes) in changes {
                match change {
                    0 => {
                        accounting.remove(&EntryId::new(n));
                        model.remove(&n);
                    }
                    1 => accounting.touch(&EntryId::new(n), Part::State(1000.0), 1, bytes),
                    _ => {
                        accounting.put(&entry(n, 0, 0, &[(0.1, bytes, 0), (0.2, bytes, 0)]));
                        model.insert(n, 2 * bytes);
                    }
                }
            }
            prop_assert_eq!(accounting.entries(), model.len());
            prop_assert_eq!(accounting.bytes(), model.values().sum::<u64>());
        }
    }
}
