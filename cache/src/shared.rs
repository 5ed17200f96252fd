//! What the cache's users and its writer share, and the clock they go by.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};

use crate::closing::Closing;
use crate::entry::{EntryId, Part};
use crate::eviction::EvictionPolicy;
use crate::index::PromptIndex;
use crate::ledger::Budget;
use crate::stats::Counters;
use crate::store::StateStore;

/// What the cache's users and its writer share.
pub(crate) struct Shared {
    pub index: Arc<dyn PromptIndex>,
    pub store: StateStore,
    pub eviction: RwLock<Arc<dyn EvictionPolicy>>,
    pub budget: Budget,
    pub lifetime: Option<Duration>,
    pub store_prompt_text: bool,
    pub counters: Counters,
    pub closing: Closing,
    pub uses: Uses,
}

impl Shared {
    /// Whether what was painted at `created` is too old.
    pub(crate) fn is_expired(&self, created: u64) -> bool {
        self.lifetime.is_some_and(|lifetime| created.saturating_add(lifetime.as_secs()) < now())
    }
}

/// Different parts whose uses are counted between two flushes, at most: about 10 MB. Uses of others are not counted
/// then, which makes eviction a little less exact.
const MOST_USES: usize = 65_536;

/// Uses that the writer has not counted yet. A part that is served a thousand times a second costs one change of the
/// index per flush.
#[derive(Default)]
pub(crate) struct Uses(Mutex<HashMap<(EntryId, u64), (Part, u64)>>);

impl Uses {
    pub(crate) fn add(&self, id: &EntryId, part: Part) {
        let mut uses = self.0.lock();
        let key = (id.clone(), part.key());
        if uses.len() < MOST_USES || uses.contains_key(&key) {
            uses.entry(key).or_insert((part, 0)).1 += 1;
        }
    }

    /// What was counted since this was last called: entry, part, uses.
    pub(crate) fn take(&self) -> Vec<(EntryId, Part, u64)> {
        let uses = std::mem::take(&mut *self.0.lock());
        uses.into_iter().map(|((id, _), (part, count))| (id, part, count)).collect()
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
