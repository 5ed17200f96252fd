//! How a cache opens, closes and opens again: whose its states are, by when it has ended, and what is
//! thrown out.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use pentimento_cache::index::{EmbeddedIndex, IndexOptions};
use pentimento_cache::*;
use support::*;

/// A cache with its index in `dir` and its states in `objects`.
fn sharing(dir: &std::path::Path, objects: Arc<dyn ObjectStore>, prefix: &str) -> Result<Cache, CacheError> {
    let index = EmbeddedIndex::open(&dir.join("index.redb"), &IndexOptions::default()).unwrap();
    let mut config = CacheConfig::new(dir);
    config.grace = Duration::from_millis(300);
    Cache::with(config, Arc::new(index), objects, Path::from(prefix))
}

/// Each would remove the other's states as nobody's.
#[test]
fn two_caches_do_not_share_a_prefix() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let entry = {
        let cache = sharing(one.path(), Arc::clone(&objects), "states").unwrap();
        assert!(cache.insert(picture("a red house", 0.0)));
        runtime.block_on(cache.flush()).unwrap();
        runtime.block_on(cache.entries(&Filter::default(), None, 1)).unwrap().remove(0)
    };
    let refused = sharing(two.path(), Arc::clone(&objects), "states").err().unwrap();
    assert!(matches!(refused, CacheError::Open { .. }));
    let words = refused.to_string();
    assert!(
        words.contains("states") && words.contains("prefix of its own") && words.contains("import"),
        "{words}"
    );
    assert!(sharing(two.path(), Arc::clone(&objects), "elsewhere").is_ok());

    let cache = sharing(one.path(), Arc::clone(&objects), "states").unwrap();
    runtime.block_on(cache.flush()).unwrap();
    assert_eq!(*runtime.block_on(cache.state(&entry.id, 801.0)).unwrap(), state(801.0), "its own it opens");
    drop(cache);
    runtime.block_on(objects.delete(&Path::from("states/owner"))).unwrap();
    let refused = sharing(two.path(), Arc::clone(&objects), "states").err().unwrap().to_string();
    assert!(refused.contains("no object \"owner\""), "{refused}");
}

/// A cache that has, when it opens, minutes of removing before it.
async fn with_much_to_sweep(dir: &std::path::Path) -> Cache {
    let objects = Arc::new(Troubled::new(How::Slow));
    drop(sharing(dir, Arc::clone(&objects) as _, "").unwrap());
    for n in 0..2000u128 {
        let id = String::from(EntryId::new(n << 64));
        let path = Path::from(format!("{}/{id}/801.safetensors", &id[..2]));
        objects.inner.put(&path, "nobody's".into()).await.unwrap();
    }
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if EmbeddedIndex::open(&dir.join("index.redb"), &IndexOptions::default()).is_ok() {
            break;
        }
    }
    sharing(dir, objects, "").unwrap()
}

#[test]
fn closing_ends_in_time_whatever_there_is_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cache = runtime.block_on(with_much_to_sweep(dir.path()));
    assert!(cache.insert(picture("behind the sweep", 0.0)));
    let begun = Instant::now();
    assert!(matches!(runtime.block_on(cache.close()), Err(CacheError::Full)));
    let stats = cache.clone();
    drop(cache);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(stats.stats().insert_drops, 1, "what is given up is counted");
    drop(stats);
    EmbeddedIndex::open(&dir.path().join("index.redb"), &IndexOptions::default()).unwrap();
}

#[tokio::test]
async fn dropping_a_cache_does_not_hold_up_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let cache = with_much_to_sweep(dir.path()).await;
    let index = dir.path().join("index.redb");
    drop(cache);
    let busy = EmbeddedIndex::open(&index, &IndexOptions::default()).err();
    assert!(matches!(busy, Some(IndexError::InUse { .. })), "the writer still has its grace: {busy:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    EmbeddedIndex::open(&index, &IndexOptions::default()).unwrap();
}

#[tokio::test]
async fn a_directory_opens_again_once_its_cache_has_left_it() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..20 {
        let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
        assert!(cache.insert(picture(&format!("prompt {n}"), n as f32)));
        drop(cache);
    }
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    assert_eq!(cache.entries(&Filter::default(), None, 100).await.unwrap().len(), 20);
}

#[tokio::test]
async fn damaged_entries_go_and_their_states_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    for n in 0..4 {
        cache.insert(picture(&format!("prompt {n}"), n as f32));
    }
    cache.flush().await.unwrap();
    let entries = cache.entries(&Filter::default(), None, 10).await.unwrap();
    std::thread::spawn(|| drop(cache)).join().unwrap(); // outside the runtime it is waited for
    {
        let database = redb::Database::create(dir.path().join("index.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        let table = redb::TableDefinition::<&str, &[u8]>::new("entries");
        let row = (entries[1].id.as_str(), b"nonsense".as_slice());
        transaction.open_table(table).unwrap().insert(row.0, row.1).unwrap();
        transaction.commit().unwrap();
    }
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    cache.flush().await.unwrap();
    assert_eq!((cache.stats().entries, cache.stats().index.damaged, files(dir.path())), (3, 1, 9));
    assert_eq!(cache.purge(Filter::default()).await.unwrap(), 3);
    assert_eq!((cache.stats().entries, files(dir.path())), (0, 0));
}

/// As a power cut may leave it: the entry is there, the state's file has no contents.
#[tokio::test]
async fn an_empty_state_is_a_miss_and_then_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    cache.insert(picture("a red house", 0.0));
    cache.flush().await.unwrap();
    let entry = cache.entries(&Filter::default(), None, 1).await.unwrap().remove(0);
    for file in all_files(dir.path()) {
        std::fs::write(&file, b"").unwrap();
    }
    let empty = cache.state(&entry.id, 801.0).await;
    assert!(matches!(empty, Err(CacheError::State(StateError::Unreadable(_)))));
    cache.flush().await.unwrap();
    assert!(cache.entry(&entry.id).await.unwrap().unwrap().kept(801.0).is_none());
}

#[cfg(unix)]
#[test]
fn what_the_cache_makes_in_an_open_directory_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let states = dir.path().join("states");
    std::fs::create_dir(&states).unwrap();
    set(dir.path(), 0o755);
    set(&states, 0o755);
    drop(Cache::open(CacheConfig::new(dir.path())).unwrap());
    assert_eq!((mode(dir.path()), mode(&states)), (0o755, 0o700));
    assert_eq!(mode(&dir.path().join("index.redb")), 0o600);
}
