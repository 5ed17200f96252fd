//! Entries older than the lifetime are not found. A clock of the test's own tells the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pentimento_cache::*;

use crate::support::*;

const LIFETIME: u64 = 100;

/// A cache whose entries live for [`LIFETIME`] seconds by `clock`.
fn open(dir: &tempfile::TempDir, clock: &Arc<AtomicU64>) -> Cache {
    let clock = Arc::clone(clock);
    let mut config = CacheConfig::new(dir.path());
    config.lifetime = Some(Duration::from_secs(LIFETIME));
    config.clock = EpochClock::new(move || clock.load(Ordering::Relaxed));
    Cache::open(config).unwrap()
}

#[tokio::test]
async fn an_entry_is_found_until_its_lifetime_is_over() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(1000)));
    let cache = open(&dir, &clock);
    cache.insert(picture("a red house", 0.0));
    cache.flush().await.unwrap();
    for (time, is_found) in [(1000, true), (1000 + LIFETIME, true), (1001 + LIFETIME, false)] {
        clock.store(time, Ordering::Relaxed);
        let found = look_up(&cache, &scope("tenant"), 0.0).await;
        assert_eq!(matches!(found.decision, Decision::State { .. }), is_found, "{time}");
        assert_eq!(exact(&cache, &scope("tenant"), "a red house").await.is_some(), is_found, "{time}");
    }
}

#[tokio::test]
async fn an_expired_picture_is_replaced_by_a_worse_one() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(1000)));
    let cache = open(&dir, &clock);
    cache.insert(picture("a red house", 0.0));
    cache.flush().await.unwrap();
    clock.store(1001 + LIFETIME, Ordering::Relaxed);
    let worse = NewPicture { expected_quality: Some(0.1), ..picture("a red house", 0.0) };
    cache.insert(worse);
    cache.flush().await.unwrap();
    let hit = exact(&cache, &scope("tenant"), "a red house").await.unwrap();
    assert_eq!((hit.expected_quality, cache.stats().duplicates), (Some(0.1), 0));
}

#[tokio::test]
async fn expired_entries_are_removed_when_the_cache_opens() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(1000)));
    let cache = open(&dir, &clock);
    cache.insert(picture("a red house", 0.0));
    cache.flush().await.unwrap();
    drop(cache);
    clock.store(1001 + LIFETIME, Ordering::Relaxed);
    let cache = open(&dir, &clock);
    until("the entry and its files are removed", || {
        cache.stats().evictions == 1 && cache.stats().entries == 0 && files(dir.path()) == 0
    })
    .await;
}
