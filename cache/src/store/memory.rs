//! The states used last, in memory, up to a bound in bytes.

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::State;
use crate::entry::{Entry, EntryId};

/// An entry and a timestep's bits.
type Key = (EntryId, u64);

pub(super) struct Memory {
    bound: usize,
    held: Mutex<Held>,
}

struct Held {
    bytes: usize,
    states: LruCache<Key, Arc<State>>,
}

impl Memory {
    pub(super) fn new(bound: usize) -> Self {
        Self { bound, held: Mutex::new(Held { bytes: 0, states: LruCache::unbounded() }) }
    }

    pub(super) fn get(&self, id: &EntryId, timestep: f64) -> Option<Arc<State>> {
        self.held.lock().states.get(&(id.clone(), timestep.to_bits())).cloned()
    }

    /// Keeps a state, in place of those used longest ago. One larger than the whole bound is not kept.
    pub(super) fn put(&self, id: &EntryId, state: Arc<State>) {
        if state.bytes() > self.bound {
            return;
        }
        let mut held = self.held.lock();
        held.bytes += state.bytes();
        if let Some(older) = held.states.put((id.clone(), state.timestep.to_bits()), state) {
            held.bytes -= older.bytes();
        }
        while held.bytes > self.bound {
            let Some((_, oldest)) = held.states.pop_lru() else { break };
            held.bytes -= oldest.bytes();
        }
    }

    pub(super) fn remove(&self, id: &EntryId, timestep: f64) {
        let mut held = self.held.lock();
        if let Some(state) = held.states.pop(&(id.clone(), timestep.to_bits())) {
            held.bytes -= state.bytes();
        }
    }

    pub(super) fn remove_all(&self, entry: &Entry) {
        entry.states.iter().for_each(|kept| self.remove(&entry.id, kept.timestep));
    }

    pub(super) fn bytes(&self) -> usize {
        self.held.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(timestep: f64, numbers: usize) -> Arc<State> {
        Arc::new(State { timestep, noise_level: 0.5, shape: [1, 1, numbers], latent: vec![0.0; numbers] })
    }

    #[test]
    fn the_bound_holds_and_the_state_used_longest_ago_goes() {
        let one = state(1.0, 100).bytes();
        let memory = Memory::new(2 * one);
        let id = EntryId::new(1);
        memory.put(&id, state(1.0, 100));
        memory.put(&id, state(2.0, 100));
        assert!(memory.get(&id, 1.0).is_some());
        memory.put(&id, state(3.0, 100));
        assert!(memory.get(&id, 2.0).is_none());
        assert!(memory.get(&id, 1.0).is_some() && memory.get(&id, 3.0).is_some());
        assert_eq!(memory.bytes(), 2 * one);
        memory.put(&id, state(4.0, 1000));
        assert!(memory.get(&id, 4.0).is_none(), "larger than the tier: not kept");
        assert_eq!(memory.bytes(), 2 * one);
        memory.remove(&id, 1.0);
        assert_eq!(memory.bytes(), one);
    }
}
