//! Repeated prompts cost no pass of the encoder.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;
use sha2::{Digest, Sha256};

use super::{EmbedError, Embedder};

/// An embedder that remembers the prompts it was last asked for.
pub struct CachedEmbedder {
    inner: Box<dyn Embedder>,
    /// By the prompt's sha256: whatever the prompts' lengths, the number of entries bounds the memory.
    known: Mutex<LruCache<[u8; 32], Vec<f32>>>,
}

impl CachedEmbedder {
    /// Remembers up to `entries` prompts of `inner`.
    pub fn new(inner: Box<dyn Embedder>, entries: NonZeroUsize) -> Self {
        Self { inner, known: Mutex::new(LruCache::new(entries)) }
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
        let key: [u8; 32] = Sha256::digest(prompt).into();
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(&key) {
            return Ok(found.clone());
        }
        // Not under the lock: two that ask for one new prompt at once both embed it, and nobody else waits.
        let fresh = self.inner.embed(prompt)?;
        known().put(key, fresh.clone());
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
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
    }
}
