//! What was used last, up to a bound in bytes.

use std::hash::Hash;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

/// Values by key. Where they would take more than the bound, those used longest ago go.
pub struct Recent<K, V> {
    bound: usize,
    /// Bytes of a value.
    size: fn(&V) -> usize,
    held: Mutex<Held<K, V>>,
}

struct Held<K, V> {
    bytes: usize,
    values: LruCache<K, Arc<V>>,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// At most `bound` bytes; `size` says how many a value takes.
    pub fn new(bound: usize, size: fn(&V) -> usize) -> Self {
        Self { bound, size, held: Mutex::new(Held { bytes: 0, values: LruCache::unbounded() }) }
    }

    /// A value, if it is still held.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.held.lock().values.get(key).cloned()
    }

    /// Keeps a value, in place of those used longest ago. One larger than the whole bound is not kept.
    pub fn put(&self, key: K, value: Arc<V>) {
        let size = (self.size)(&value);
        if size > self.bound {
            return;
        }
        let mut held = self.held.lock();
        held.bytes += size;
        if let Some(older) = held.values.put(key, value) {
            held.bytes -= (self.size)(&older);
        }
        while held.bytes > self.bound {
            let Some((_, oldest)) = held.values.pop_lru() else { break };
            held.bytes -= (self.size)(&oldest);
        }
    }

    /// Forgets a value.
    pub fn remove(&self, key: &K) {
        let mut held = self.held.lock();
        if let Some(value) = held.values.pop(key) {
            held.bytes -= (self.size)(&value);
        }
    }

    /// Bytes of all values held.
    pub fn bytes(&self) -> usize {
        self.held.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_what_was_used_longest_ago_goes() {
        let recent = Recent::new(200, Vec::len);
        let value = |bytes: usize| Arc::new(vec![0u8; bytes]);
        recent.put(1, value(100));
        recent.put(2, value(100));
        assert!(recent.get(&1).is_some());
        recent.put(3, value(100));
        assert!(recent.get(&2).is_none());
        assert!(recent.get(&1).is_some() && recent.get(&3).is_some());
        assert_eq!(recent.bytes(), 200);
        recent.put(4, value(201));
        assert!(recent.get(&4).is_none(), "larger than the bound: not kept");
        recent.put(3, value(50));
        assert_eq!(recent.bytes(), 150, "another value of the same key takes its place");
        recent.remove(&1);
        assert_eq!((recent.bytes(), recent.get(&1)), (50, None));
    }
}
