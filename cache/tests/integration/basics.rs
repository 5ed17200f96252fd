//! The cache's basic operations: insertion, look-up, purge, budgets, faults.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use pentimento_cache::index::{EmbeddedIndex, IndexOptions};
use pentimento_cache::*;
use tokio::sync::Semaphore;

use crate::support::*;

#[tokio::test]
async fn a_picture_is_found_by_similarity_and_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    assert!(cache.insert(picture("a red house", 0.0)));
    assert!(cache.insert(picture("a blue tree", 80.0)));
    cache.flush().await.unwrap();

    let found = look_up(&cache, &scope("tenant"), 5.0).await;
    let Decision::State { entry, timestep, similarity, .. } = found.decision else { panic!("{found:?}") };
    assert!(similarity > 0.99 && timestep == 801.0);
    assert_eq!(found.neighbours.len(), 2);
    assert_eq!(found.neighbours[0].entry.prompt.as_deref(), Some("a red house"));
    assert_eq!(*cache.state(&entry, 801.0).await.unwrap(), state(801.0));
    assert!(cache.cached_state(&entry, 801.0).is_some());

    let hit = exact(&cache, &scope("tenant"), "a red house").await.unwrap();
    assert_eq!((&hit.entry, hit.plan.rows(), hit.expected_quality), (&entry, 100, Some(0.9)));
    assert_eq!(cache.picture(&hit.picture.unwrap()).await.unwrap(), file("a red house"));
    assert_eq!(cache.cached_picture(&entry).unwrap(), file("a red house"));
    assert_eq!(exact(&cache, &scope("tenant"), "a red horse").await, None);
    assert_eq!(exact(&cache, &scope("stranger"), "a red house").await, None);
    let other = look_up(&cache, &scope("stranger"), 0.0).await;
    assert!(matches!(other.decision, Decision::Miss { .. }) && other.neighbours.is_empty());

    cache.used(&entry, Part::Picture);
    cache.used(&entry, Part::State(801.0));
    cache.used(&entry, Part::Picture);
    cache.flush().await.unwrap();
    let now = cache.entry(&entry).await.unwrap().unwrap();
    assert_eq!((now.kept(801.0).unwrap().uses, now.picture.unwrap().uses), (1, 2));
    let stats = cache.stats();
    assert_eq!(
        (stats.entries, stats.pictures, stats.failures, stats.insert_drops, stats.queued),
        (2, 2, 0, 0, 0)
    );
    assert!(stats.bytes > 0 && stats.memory_bytes > 0 && stats.picture_memory_bytes > 0);
}

#[tokio::test]
async fn entries_survive_closing_and_opening() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    assert!(matches!(
        Cache::open(CacheConfig::new(dir.path())),
        Err(CacheError::Index(IndexError::InUse { .. }))
    ));
    cache.insert(picture("a red house", 0.0));
    drop(cache);
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    let found = look_up(&cache, &scope("tenant"), 0.0).await;
    let Decision::State { entry, timestep, .. } = found.decision else { panic!("{found:?}") };
    cache.prefetch(&entry, timestep);
    assert_eq!(*cache.state(&entry, timestep).await.unwrap(), state(timestep));
    cache.close().await.unwrap();
    assert!(!cache.insert(picture("too late", 0.0)));
}

#[tokio::test]
async fn a_prompt_that_must_not_be_stored_is_in_no_file() {
    let holds = async |store_prompt_text| {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(CacheConfig { store_prompt_text, ..CacheConfig::new(dir.path()) }).unwrap();
        let mut new = picture("hash", 0.0);
        new.prompt = Some("a red house by the sea".into());
        cache.insert(new);
        cache.flush().await.unwrap();
        let files = all_files(dir.path()).into_iter().chain([dir.path().join("index.redb")]);
        let prompt = b"red house by the sea";
        let contains = |bytes: Vec<u8>| bytes.windows(prompt.len()).any(|part| part == prompt);
        files.map(|file| std::fs::read(file).unwrap()).any(contains)
    };
    assert!(holds(true).await, "the test looks where prompts would be");
    assert!(!holds(false).await);
}

#[tokio::test]
async fn the_same_picture_is_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    for _ in 0..3 {
        cache.insert(picture("a red house", 0.0));
    }
    cache.flush().await.unwrap();
    assert_eq!((cache.stats().entries, cache.stats().duplicates), (1, 2));
    assert_eq!(files(dir.path()), 3, "no files of the others were written");
}

#[tokio::test]
async fn a_purge_removes_entries_files_and_memory() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    for (n, tenant) in ["one", "one", "two", "two"].into_iter().enumerate() {
        let mut new = picture(&format!("prompt {n}"), n as f32);
        new.scope = scope(tenant);
        cache.insert(new);
    }
    cache.flush().await.unwrap();
    let all = cache.entries(&Filter::default(), None, 10).await.unwrap();
    for entry in &all {
        cache.state(&entry.id, 801.0).await.unwrap();
        cache.picture(&entry.picture_key().unwrap()).await.unwrap();
    }
    let filter = Filter { tenant: Some("one".into()), ..Filter::default() };
    assert_eq!(cache.purge(filter).await.unwrap(), 2);
    assert_eq!(files(dir.path()), 6);
    let left = cache.entries(&Filter::default(), None, 10).await.unwrap();
    assert!(left.iter().all(|entry| entry.scope.tenant == "two"));
    let filter = Filter { prompt_hash: Some("hash of prompt 3".into()), ..Filter::default() };
    assert_eq!(cache.purge(filter).await.unwrap(), 1);
    let last = cache.entries(&Filter::default(), None, 10).await.unwrap();
    assert!(cache.remove(&last[0].id).await.unwrap());
    assert!(!cache.remove(&last[0].id).await.unwrap());
    assert_eq!((files(dir.path()), cache.stats().entries, cache.stats().bytes), (0, 0, 0));
    for entry in &all {
        assert!(cache.cached_state(&entry.id, 801.0).is_none());
        assert!(cache.state(&entry.id, 801.0).await.is_err());
        assert!(cache.cached_picture(&entry.id).is_none());
        assert!(cache.picture(&entry.picture_key().unwrap()).await.is_err());
        assert_eq!(cache.exact(&entry.scope, &entry.specification).await.unwrap(), None);
    }
    assert_eq!((cache.stats().failures, cache.stats().pictures), (0, 0));
}

#[tokio::test]
async fn budgets_hold_and_parts_are_evicted_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = CacheConfig::new(dir.path());
    (config.max_bytes, config.queue) = (20_000, 100);
    let cache = Cache::open(config).unwrap();
    for n in 0..40 {
        assert!(cache.insert(picture(&format!("prompt {n}"), n as f32)));
    }
    cache.flush().await.unwrap();
    let stats = cache.stats();
    assert!(stats.bytes <= 20_000 && stats.evictions > 0 && stats.entries > 0, "{stats:?}");
    let entries = cache.entries(&Filter::default(), None, 100).await.unwrap();
    assert_eq!(entries.len() as u64, stats.entries);
    assert_eq!(files(dir.path()), entries.iter().map(|entry| entry.parts().count()).sum::<usize>());
    drop(cache);

    let mut config = CacheConfig::new(dir.path());
    config.max_entries = 3;
    config.eviction = eviction_policy("fifo").unwrap();
    let cache = Cache::open(config).unwrap();
    cache.flush().await.unwrap();
    assert_eq!(cache.stats().entries, 3, "a smaller budget holds from the opening on");
}

#[tokio::test]
async fn a_damaged_file_is_counted_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    cache.insert(picture("a red house", 0.0));
    cache.flush().await.unwrap();
    let entry = cache.entries(&Filter::default(), None, 1).await.unwrap().remove(0);
    for file in all_files(dir.path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let damaged = cache.state(&entry.id, 801.0).await;
    assert!(matches!(damaged, Err(CacheError::State(StateError::Damaged))));
    cache.flush().await.unwrap();
    assert_eq!(cache.stats().failures, 1);
    assert!(cache.entry(&entry.id).await.unwrap().unwrap().kept(801.0).is_none());
    assert!(cache.picture(&entry.picture_key().unwrap()).await.is_err());
    cache.flush().await.unwrap();
    assert!(cache.entry(&entry.id).await.unwrap().unwrap().picture.is_none());
    assert!(cache.state(&entry.id, FINISHED).await.is_err());
    cache.flush().await.unwrap();
    assert_eq!(cache.entry(&entry.id).await.unwrap(), None, "with its last file the entry is removed");
    assert_eq!((cache.stats().failures, files(dir.path())), (3, 0));
}

#[tokio::test]
async fn files_that_no_entry_names_are_swept_when_the_cache_opens() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    cache.insert(picture("a red house", 0.0));
    std::thread::spawn(|| drop(cache)).join().unwrap(); // outside a runtime the drop waits for the writer
    let orphan = format!("ab/ab{}", "0".repeat(30));
    let orphan = dir.path().join("states").join(orphan);
    std::fs::create_dir_all(&orphan).unwrap();
    std::fs::write(orphan.join("801.safetensors"), b"half a sta").unwrap();
    std::fs::write(orphan.join("picture.png"), b"half a pict").unwrap();
    std::fs::write(orphan.join("601.safetensors#1"), b"an unfinished write").unwrap();
    std::fs::write(orphan.join("picture.png#1"), b"another").unwrap();
    assert_eq!(files(dir.path()), 7);
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    cache.flush().await.unwrap();
    assert_eq!(files(dir.path()), 3);
}

/// A cache whose store has a fault.
fn with_fault(dir: &std::path::Path, fault: Fault, queue: usize, time_limit: Duration) -> Cache {
    let index = EmbeddedIndex::open(&dir.join("index.redb"), &IndexOptions::default()).unwrap();
    let config = CacheConfig { queue, time_limit, grace: Duration::ZERO, ..CacheConfig::new(dir) };
    Cache::with(config, Arc::new(index), Arc::new(FaultyStore::new(fault)), Path::default()).unwrap()
}

const NEVER: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_full_disk_is_a_counted_failure() {
    let dir = tempfile::tempdir().unwrap();
    let cache = with_fault(dir.path(), Fault::Full, 8, NEVER);
    assert!(cache.insert(picture("a red house", 0.0)));
    cache.flush().await.unwrap();
    let stats = cache.stats();
    assert_eq!((stats.entries, stats.failures), (0, 1));
    let found = look_up(&cache, &scope("tenant"), 0.0).await;
    assert!(matches!(found.decision, Decision::Miss { .. }));
}

/// `sweep` waits for the permit of a deletion, so the writer never takes an insertion from its queue.
#[tokio::test]
async fn pictures_that_find_the_queue_full_are_dropped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = FaultyStore::new(Fault::DeletionsWait(Arc::new(Semaphore::new(0))));
    let index = EmbeddedIndex::open(&dir.path().join("index.redb"), &IndexOptions::default()).unwrap();
    let name = PromptIndex::name(&index);
    store.inner.put(&Path::from("owner"), name.into()).await.unwrap();
    let orphan = format!("00/{}/801.safetensors", "0".repeat(32));
    store.inner.put(&Path::from(orphan), "an orphan".into()).await.unwrap();
    let config =
        CacheConfig { queue: 2, time_limit: NEVER, grace: Duration::ZERO, ..CacheConfig::new(dir.path()) };
    let cache = Cache::with(config, Arc::new(index), Arc::new(store), Path::default()).unwrap();
    let kept = (0..10).filter(|n| cache.insert(picture(&format!("prompt {n}"), 0.0))).count();
    assert_eq!((kept, cache.stats().insert_drops, cache.stats().queued), (2, 8, 2));
}

#[tokio::test]
async fn a_store_that_hangs_is_given_up_after_the_time_limit() {
    let dir = tempfile::tempdir().unwrap();
    let cache = with_fault(dir.path(), Fault::Hangs, 8, Duration::from_millis(1));
    assert!(cache.insert(picture("a red house", 0.0)));
    assert!(cache.insert(picture("a blue tree", 0.0)));
    // The flush fails if files of failed insertions could not be removed.
    let _ = cache.flush().await;
    let stats = cache.stats();
    assert!(stats.failures >= 2, "each insertion exceeded the time limit: {stats:?}");
    assert_eq!((stats.entries, stats.queued), (0, 0));
}

#[tokio::test]
async fn impossible_pictures_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    let refused = |change: fn(&mut NewPicture)| {
        let mut new = picture("a red house", 0.0);
        change(&mut new);
        assert!(!cache.insert(new));
    };
    refused(|new| new.embedding[0] = f32::NAN);
    refused(|new| new.embedding.fill(0.0));
    refused(|new| (new.states, new.file) = (vec![], None));
    refused(|new| new.file = Some(bytes::Bytes::from_static(b"GIF89a")));
    refused(|new| new.file = Some(bytes::Bytes::from(vec![0; MAX_PICTURE_BYTES as usize + 1])));
    refused(|new| new.expected_quality = Some(1.5));
    refused(|new| new.plan.guided_steps = 51);
    refused(|new| new.states.push(new.states[0].clone()));
    let mut nan = picture("a red house", 0.0);
    nan.states[1].0.latent[3] = f32::NAN;
    cache.insert(nan);
    cache.flush().await.unwrap();
    assert_eq!((cache.stats().entries, cache.stats().failures, files(dir.path())), (0, 9, 0));
}

#[tokio::test]
async fn states_may_lie_in_an_object_store() {
    let dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(&dir.path().join("index.redb"), &IndexOptions::default()).unwrap();
    let config = CacheConfig::new(dir.path());
    let objects = Arc::new(InMemory::new());
    let cache = Cache::with(config, Arc::new(index), objects, Path::from("some/prefix")).unwrap();
    cache.insert(picture("a red house", 0.0));
    cache.flush().await.unwrap();
    let entry = cache.entries(&Filter::default(), None, 1).await.unwrap().remove(0);
    assert_eq!(*cache.state(&entry.id, 801.0).await.unwrap(), state(801.0));
    assert_eq!(files(dir.path()), 0);

    let mut config = CacheConfig::new(dir.path().join("other"));
    config.states = Some("memory:///states".into());
    assert!(Cache::open(config.clone()).is_ok());
    for url in ["not a URL", "gopher://old/hole"] {
        config.states = Some(url.into());
        assert!(matches!(Cache::open(config.clone()), Err(CacheError::Open { .. })));
    }
}
