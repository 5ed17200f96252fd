//! What the cache holds, as eviction sees it: sizes and uses, without embeddings or prompts.

use std::collections::{HashMap, HashSet};

use crate::entry::{Entry, EntryId, Kept};
use crate::eviction::{EvictionPolicy, Usage};

/// How much the cache may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub bytes: u64,
    pub entries: usize,
}

/// A state that is to go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Victim {
    pub entry: EntryId,
    pub timestep: f64,
}

struct Account {
    created: u64,
    last_used: u64,
    states: Vec<Kept>,
}

impl Account {
    fn usage(&self, kept: &Kept) -> Usage {
        Usage { uses: kept.uses, share: kept.share, created: self.created, last_used: self.last_used }
    }
}

#[derive(Default)]
pub(crate) struct Ledger {
    accounts: HashMap<EntryId, Account>,
    bytes: u64,
}

impl Ledger {
    pub(crate) fn put(&mut self, entry: &Entry) {
        self.remove(&entry.id);
        self.bytes += entry.states.iter().map(|kept| kept.bytes).sum::<u64>();
        let (created, last_used) = (entry.created, entry.last_used);
        let account = Account { created, last_used, states: entry.states.clone() };
        self.accounts.insert(entry.id.clone(), account);
    }

    pub(crate) fn remove(&mut self, id: &EntryId) {
        if let Some(account) = self.accounts.remove(id) {
            self.bytes -= account.states.iter().map(|kept| kept.bytes).sum::<u64>();
        }
    }

    pub(crate) fn touch(&mut self, id: &EntryId, timestep: f64, now: u64) {
        let Some(account) = self.accounts.get_mut(id) else { return };
        account.last_used = account.last_used.max(now);
        account.states.iter_mut().filter(|kept| kept.timestep == timestep).for_each(|kept| kept.uses += 1);
    }

    pub(crate) fn holds(&self, id: &EntryId, timestep: f64) -> bool {
        self.accounts.get(id).is_some_and(|account| account.states.iter().any(|s| s.timestep == timestep))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn entries(&self) -> usize {
        self.accounts.len()
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

    /// The states of the entries beyond `most`: those whose best state is worth least.
    fn entries_over(&self, policy: &dyn EvictionPolicy, most: usize) -> (Vec<Victim>, HashSet<&EntryId>) {
        if self.entries() <= most {
            return Default::default();
        }
        let best = |account: &Account| {
            let worths = account.states.iter().map(|kept| policy.worth(&account.usage(kept)));
            worths.fold(f64::NEG_INFINITY, f64::max)
        };
        let mut entries: Vec<_> =
            self.accounts.iter().map(|(id, account)| (best(account), account.created, id)).collect();
        entries.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
        let surplus = self.entries() - (most - most / 64);
        let gone: Vec<&EntryId> = entries.iter().take(surplus).map(|(_, _, id)| *id).collect();
        let states = |id: &EntryId| {
            let name = id.clone();
            let victim = move |kept: &Kept| Victim { entry: name.clone(), timestep: kept.timestep };
            self.accounts[id].states.iter().map(victim).collect::<Vec<_>>()
        };
        (gone.iter().flat_map(|id| states(id)).collect(), gone.into_iter().collect())
    }

    /// All states but those of `gone`, least worth first; of equal ones the oldest, then the noisiest.
    fn by_worth(&self, policy: &dyn EvictionPolicy, gone: &HashSet<&EntryId>) -> Vec<Victim> {
        let mut states: Vec<(f64, u64, &EntryId, f64)> = Vec::new();
        for (id, account) in self.accounts.iter().filter(|(id, _)| !gone.contains(id)) {
            for kept in &account.states {
                states.push((policy.worth(&account.usage(kept)), account.created, id, kept.timestep));
            }
        }
        states.sort_by(|a, b| {
            let oldest = || (a.1, a.2).cmp(&(b.1, b.2));
            a.0.total_cmp(&b.0).then_with(oldest).then_with(|| b.3.total_cmp(&a.3))
        });
        let named = |(_, _, id, timestep): (f64, u64, &EntryId, f64)| Victim { entry: id.clone(), timestep };
        states.into_iter().map(named).collect()
    }

    fn size(&self, victim: &Victim) -> Option<u64> {
        let account = self.accounts.get(&victim.entry)?;
        account.states.iter().find(|kept| kept.timestep == victim.timestep).map(|kept| kept.bytes)
    }
}
