//! Repeated prompts cost no pass of the encoder.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::{EmbedError, Embedder};

/// A prompt's embedding, or the place that is held while it is computed.
type Slot = Arc<Mutex<Option<Vec<f32>>>>;

/// An embedder that remembers the prompts it was last asked for. A prompt that several ask for at once is embedded once.
pub struct CachedEmbedder {
    inner: Box<dyn Embedder>,
    /// By the prompt's sha256: whatever the prompts' lengths, the number of entries bounds the memory.
    slots: Mutex<LruCache<[u8; 32], Slot>>,
}

impl CachedEmbedder {
    /// Remembers up to `entries` prompts of `inner`.
    pub fn new(inner: Box<dyn Embedder>, entries: NonZeroUsize) -> Self {
        Self { inner, slots: Mutex::new(LruCache::new(entries)) }
    }

    /// A prompt's embedding if it is remembered. Computes nothing and waits for nothing.
    pub fn known(&self, prompt: &str) -> Option<Vec<f32>> {
        let slot = self.slots.lock().get(&key(prompt)).cloned()?;
        slot.try_lock()?.clone()
    }
}

impl Embedder for CachedEmbedder {
    fn digest(&self) -> &str {
        self.inner.digest()
    }

    fn dimensions(&self) -> usize {
        self.inner.dimensions()
    }

    fn embed(&self, prompt: &str) -> Result<Vec<f32>, EmbedError> {
        let slot = Arc::clone(self.slots.lock().get_or_insert(key(prompt), Slot::default));
        // Under this prompt's lock alone: other prompts do not wait.
        let mut known = slot.lock();
        if let Some(found) = &*known {
            return Ok(found.clone());
        }
        let fresh = self.inner.embed(prompt)?;
        *known = Some(fresh.clone());
        Ok(fresh)
    }
}

fn key(prompt: &str) -> [u8; 32] {
    Sha256::digest(prompt).into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts its passes; refuses the empty prompt.
    struct Counting(Arc<AtomicUsize>);

    impl Embedder for Counting {
        fn digest(&self) -> &str {
            "d"
        }

        fn dimensions(&self) -> usize {
            1
        }

        fn embed(&self, prompt: &str) -> Result<Vec<f32>, EmbedError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if prompt.is_empty() { Err(EmbedError::NoDirection) } else { Ok(vec![prompt.len() as f32]) }
        }
    }

    #[test]
    fn a_repeated_prompt_costs_no_pass_until_others_push_it_out() {
        let passes = Arc::new(AtomicUsize::new(0));
        let two = NonZeroUsize::new(2).unwrap();
        let cached = CachedEmbedder::new(Box::new(Counting(passes.clone())), two);
        for (prompt, want) in [("a", 1), ("a", 1), ("bb", 2), ("a", 2), ("ccc", 3), ("a", 3), ("bb", 4)] {
            assert_eq!(cached.embed(prompt).unwrap(), [prompt.len() as f32]);
            assert_eq!(passes.load(Ordering::Relaxed), want, "after {prompt}");
        }
        // A failure is not remembered.
        assert!(cached.embed("").is_err() && cached.embed("").is_err());
        assert_eq!(passes.load(Ordering::Relaxed), 6);
        assert_eq!((cached.digest(), cached.dimensions()), ("d", 1));
        assert_eq!(cached.known("bb"), Some(vec![2.0]));
        assert_eq!((cached.known(""), cached.known("new")), (None, None), "no pass was made for them");
        assert_eq!(passes.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn equal_prompts_at_once_are_embedded_once() {
        let passes = Arc::new(AtomicUsize::new(0));
        let cached = CachedEmbedder::new(Box::new(Counting(passes.clone())), NonZeroUsize::MIN);
        std::thread::scope(|scope| {
            (0..8).for_each(|_| drop(scope.spawn(|| assert_eq!(cached.embed("a").unwrap(), [1.0]))));
        });
        assert_eq!(passes.load(Ordering::Relaxed), 1);
    }
}
