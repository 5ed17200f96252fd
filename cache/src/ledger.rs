//! What the cache holds, as eviction sees it: sizes and uses, without embeddings or prompts.

use std::collections::{HashMap, HashSet};

use crate::entry::{Entry, EntryId, Part};
use crate::eviction::{EvictionPolicy, Usage};

/// How much the cache may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub bytes: u64,
    pub entries: usize,
}

/// A state or a picture's file that is to go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Victim {
    pub entry: EntryId,
    pub part: Part,
}

/// A part of an entry, as eviction sees it.
struct KeptPart {
    part: Part,
    share: f32,
    bytes: u64,
    uses: u64,
}

struct Account {
    created: u64,
    last_used: u64,
    parts: Vec<KeptPart>,
}

impl Account {
    fn of(entry: &Entry) -> Self {
        // A stored picture saves the whole plan.
        let picture = entry.picture.map(|kept| KeptPart {
            part: Part::Picture,
            share: 1.0,
            bytes: kept.bytes,
            uses: kept.uses,
        });
        let states = entry.states.iter().map(|kept| KeptPart {
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

    fn usage(&self, kept: &KeptPart) -> Usage {
        Usage { uses: kept.uses, share: kept.share, created: self.created, last_used: self.last_used }
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(|kept| kept.bytes).sum()
    }

    fn has_picture(&self) -> bool {
        self.parts.iter().any(|kept| kept.part == Part::Picture)
    }
}

#[derive(Default)]
pub(crate) struct Ledger {
    accounts: HashMap<EntryId, Account>,
    bytes: u64,
    pictures: usize,
}

impl Ledger {
    pub(crate) fn put(&mut self, entry: &Entry) {
        self.remove(&entry.id);
        let account = Account::of(entry);
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

    /// Entries whose picture is kept as a file.
    pub(crate) fn pictures(&self) -> usize {
        self.pictures
    }

    /// Entries painted before `moment`.
    pub(crate) fn older_than(&self, moment: u64) -> Vec<EntryId> {
        self.accounts
            .iter()
            .filter(|(_, account)| account.created < moment)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// What must go so that the rest keeps the budget, least worth first. Where something must, a little
    /// more goes than must, so that not every insert has to look through everything.
    pub(crate) fn victims(&self, policy: &dyn EvictionPolicy, budget: Budget) -> Vec<Victim> {
        if self.bytes <= budget.bytes && self.entries() <= budget.entries {
            return Vec::new();
        }
        let (mut victims, gone) = self.entries_over(policy, budget.entries);
        let freed: u64 = victims.iter().filter_map(|victim| self.size(victim)).sum();
        let mut left = self.bytes - freed;
        if left > budget.bytes {
            let target = budget.bytes - budget.bytes / 64;
            for victim in self.by_worth(policy, &gone) {
                if left <= target {
                    break;
                }
                left -= self.size(&victim).unwrap_or_default();
                victims.push(victim);
            }
        }
        victims
    }

    /// The parts of the entries beyond `most`: those whose best part is worth least.
    fn entries_over(&self, policy: &dyn EvictionPolicy, most: usize) -> (Vec<Victim>, HashSet<&EntryId>) {
        if self.entries() <= most {
            return Default::default();
        }
        let best = |account: &Account| {
            let worths = account.parts.iter().map(|kept| policy.worth(&account.usage(kept)));
            worths.fold(f64::NEG_INFINITY, f64::max)
        };
        let mut entries: Vec<_> =
            self.accounts.iter().map(|(id, account)| (best(account), account.created, id)).collect();
        entries.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
        let surplus = self.entries() - (most - most / 64);
        let gone: Vec<&EntryId> = entries.iter().take(surplus).map(|(_, _, id)| *id).collect();
        let parts = |id: &EntryId| {
            let name = id.clone();
            let victim = move |kept: &KeptPart| Victim { entry: name.clone(), part: kept.part };
            self.accounts[id].parts.iter().map(victim).collect::<Vec<_>>()
        };
        (gone.iter().flat_map(|id| parts(id)).collect(), gone.into_iter().collect())
    }

    /// All parts but those of `gone`, least worth first; of equal ones the oldest entry's, then the noisiest state, the
    /// picture last.
    fn by_worth(&self, policy: &dyn EvictionPolicy, gone: &HashSet<&EntryId>) -> Vec<Victim> {
        let mut parts: Vec<(f64, u64, &EntryId, Part)> = Vec::new();
        for (id, account) in self.accounts.iter().filter(|(id, _)| !gone.contains(id)) {
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
        let named = |(_, _, id, part): (f64, u64, &EntryId, Part)| Victim { entry: id.clone(), part };
        parts.into_iter().map(named).collect()
    }

    fn size(&self, victim: &Victim) -> Option<u64> {
        let account = self.accounts.get(&victim.entry)?;
        account.parts.iter().find(|kept| kept.part == victim.part).map(|kept| kept.bytes)
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
        let mut ledger = Ledger::default();
        entries.iter().for_each(|entry| ledger.put(entry));
        let budget = Budget { bytes: ledger.bytes() - 1, entries: 100 };
        let victims = ledger.victims(eviction_policy(policy).unwrap().as_ref(), budget);
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
        /// Whatever was kept and used: after the victims are gone the budget holds; nothing goes that need
        /// not, but for the margin; and nothing stays that is worth less than a state that went for bytes.
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
            let mut ledger = Ledger::default();
            for (n, (created, used, states)) in accounts.iter().enumerate() {
                ledger.put(&entry(n as u128, *created, *used, states));
            }
            let victims = ledger.victims(policy.as_ref(), Budget { bytes, entries });
            let fits = ledger.bytes() <= bytes && ledger.entries() <= entries;
            prop_assert_eq!(victims.is_empty(), fits);

            let worth = |id: &EntryId, kept: &KeptPart| policy.worth(&ledger.accounts[id].usage(kept));
            let went = |id: &EntryId, kept: &KeptPart| {
                victims.iter().any(|victim| victim.entry == *id && victim.part == kept.part)
            };
            let (mut left_bytes, mut left_entries) = (0, 0);
            let (mut least_kept, mut most_gone) = (f64::INFINITY, f64::NEG_INFINITY);
            for (id, account) in &ledger.accounts {
                let stays: Vec<&KeptPart> = account.parts.iter().filter(|kept| !went(id, kept)).collect();
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
            if ledger.entries() <= entries {
                prop_assert!(most_gone <= least_kept);
                let last = victims.last().and_then(|victim| ledger.size(victim)).unwrap_or(0);
                prop_assert!(victims.is_empty() || left_bytes + last > bytes - bytes / 64);
            }
        }

        #[test]
        fn totals_follow_every_change(changes in prop::collection::vec((0u128..6, 0u64..3, 1u64..50), 0..60)) {
            let mut ledger = Ledger::default();
            let mut model = HashMap::new();
            for (n, change, bytes) in changes {
                match change {
                    0 => {
                        ledger.remove(&EntryId::new(n));
                        model.remove(&n);
                    }
                    1 => ledger.touch(&EntryId::new(n), Part::State(1000.0), 1, bytes),
                    _ => {
                        ledger.put(&entry(n, 0, 0, &[(0.1, bytes, 0), (0.2, bytes, 0)]));
                        model.insert(n, 2 * bytes);
                    }
                }
            }
            prop_assert_eq!(ledger.entries(), model.len());
            prop_assert_eq!(ledger.bytes(), model.values().sum::<u64>());
        }
    }
}
