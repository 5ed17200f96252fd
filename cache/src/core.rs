//! The parts of an open cache that its handles and its writer share.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use crate::accounting::Budget;
use crate::clock::EpochClock;
use crate::eviction::EvictionPolicy;
use crate::index::PromptIndex;
use crate::shutdown::Shutdown;
use crate::stats::Counters;
use crate::store::StateStore;
use crate::uses::PendingUses;

/// Index, store, limits and counters of an open cache.
pub(crate) struct CacheCore {
    pub index: Arc<dyn PromptIndex>,
    pub store: StateStore,
    pub eviction: RwLock<Arc<dyn EvictionPolicy>>,
    pub budget: Budget,
    pub lifetime: Option<Duration>,
    pub clock: EpochClock,
    pub store_prompt_text: bool,
    pub counters: Counters,
    pub shutdown: Shutdown,
    pub uses: PendingUses,
}

impl CacheCore {
    /// Whether an entry painted at `created` is older than the lifetime.
    pub(crate) fn is_expired(&self, created: u64) -> bool {
        self.lifetime.is_some_and(|lifetime| created.saturating_add(lifetime.as_secs()) < self.clock.now())
    }
}
