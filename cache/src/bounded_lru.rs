//! A least-recently-used cache with a bound in bytes.

use std::hash::Hash;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

/// Values by key. When the values take more than the bound, the least recently used ones are dropped.
pub struct BoundedLru<K, V> {
    bound: usize,
    /// Returns the bytes that a value takes.
    size: fn(&V) -> usize,
    content: Mutex<LruContent<K, V>>,
}

struct LruContent<K, V> {
    bytes: usize,
    values: LruCache<K, Arc<V>>,
}

impl<K: Hash + Eq, V> BoundedLru<K, V> {
    /// An empty cache of at most `bound` bytes; `size` returns the bytes that a value takes.
    pub fn new(bound: usize, size: fn(&V) -> usize) -> Self {
        Self { bound, size, content: Mutex::new(LruContent { bytes: 0, values: LruCache::unbounded() }) }
    }

    /// Returns the value of `key`, if it is held, and marks it as used.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.content.lock().values.get(key).cloned()
    }

    /// Adds or replaces a value, and drops least recently used ones to stay within the bound. A value larger than the
    /// whole bound is not added.
    pub fn put(&self, key: K, value: Arc<V>) {
        let size = (self.size)(&value);
        if size > self.bound {
            return;
        }
        let mut content = self.content.lock();
        content.bytes += size;
        if let Some(older) = content.values.put(key, value) {
            content.bytes -= (self.size)(&older);
        }
        while content.bytes > self.bound {
            let Some((_, oldest)) = content.values.pop_lru() else { break };
            content.bytes -= (self.size)(&oldest);
        }
    }

    /// Drops a value.
    pub fn remove(&self, key: &K) {
        let mut content = self.content.lock();
        if let Some(value) = content.values.pop(key) {
            content.bytes -= (self.size)(&value);
        }
    }

    /// Bytes of all values held.
    pub fn bytes(&self) -> usize {
        self.content.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_the_least_recently_used_value_is_dropped() {
        let lru = BoundedLru::new(200, Vec::len);
        let value = |bytes: usize| Arc::new(vec![0u8; bytes]);
        lru.put(1, value(100));
        lru.put(2, value(100));
        assert!(lru.get(&1).is_some());
        lru.put(3, value(100));
        assert!(lru.get(&2).is_none());
        assert!(lru.get(&1).is_some() && lru.get(&3).is_some());
        assert_eq!(lru.bytes(), 200);
        lru.put(4, value(201));
        assert!(lru.get(&4).is_none(), "larger than the bound: not added");
        lru.put(3, value(50));
        assert_eq!(lru.bytes(), 150, "another value of the same key replaces it");
        lru.remove(&1);
        assert_eq!((lru.bytes(), lru.get(&1)), (50, None));
    }
}
