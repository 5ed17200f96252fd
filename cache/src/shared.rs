//! What the cache's users and its writer share, and the clock they go by.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;

use crate::closing::Closing;
use crate::entry::Entry;
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
}

impl Shared {
    pub(crate) fn is_expired(&self, entry: &Entry) -> bool {
        self.lifetime.is_some_and(|lifetime| entry.created.saturating_add(lifetime.as_secs()) < now())
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
