//! Counts of uses that the writer has not written to the index yet.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::entry::{EntryId, Part};

/// The most parts whose uses are counted between two flushes, in about 10 MB. Uses of further parts are not counted,
/// which makes eviction slightly less exact.
const MAX_PARTS: usize = 65_536;

/// Uses since the last flush, by part. A part that is served a thousand times a second costs one change of the index
/// per flush.
#[derive(Default)]
pub(crate) struct PendingUses(Mutex<HashMap<(EntryId, u64), (Part, u64)>>);

impl PendingUses {
    pub(crate) fn add(&self, id: &EntryId, part: Part) {
        let mut uses = self.0.lock();
        let key = (id.clone(), part.key());
        if uses.len() < MAX_PARTS || uses.contains_key(&key) {
            uses.entry(key).or_insert((part, 0)).1 += 1;
        }
    }

    /// Returns the uses since the last call, as (entry, part, uses), and starts again from zero.
    pub(crate) fn take(&self) -> Vec<(EntryId, Part, u64)> {
        let uses = std::mem::take(&mut *self.0.lock());
        uses.into_iter().map(|((id, _), (part, count))| (id, part, count)).collect()
    }
}
