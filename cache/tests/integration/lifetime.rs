//! Opening and closing: the ownership of files, the deadline of a shutdown, and the removal of damaged entries.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use pentimento_cache::index::{EmbeddedIndex, IndexOptions};
use pentimento_cache::*;
use tokio::sync::Semaphore;

use crate::support::*;

/// A cache with its index in `dir` and its states in `objects`.
fn sharing(dir: &std::path::Path, objects: Arc<dyn ObjectStore>, prefix: &str) -> Result<Cache, CacheError> {
    let index = EmbeddedIndex::open(&dir.join("index.redb"), &IndexOptions::default()).unwrap();
    let config = CacheConfig::new(dir);
    Cache::with(config, Arc::new(index), objects, Path::from(prefix))
}

/// Under one prefix each cache would remove the other's files.
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
    assert_eq!(
        *runtime.block_on(cache.state(&entry.id, 801.0)).unwrap(),
        state(801.0),
        "a cache opens its own prefix"
    );
    drop(cache);
    runtime.block_on(objects.delete(&Path::from("states/owner"))).unwrap();
    let refused = sharing(two.path(), Arc::clone(&objects), "states").err().unwrap().to_string();
    assert!(refused.contains("no object \"owner\""), "{refused}");
}

/// A cache whose writer is busy with an orphaned file: it waits for a permit to remove it. A second value is the permits.
fn with_a_busy_writer(dir: &std::path::Path, grace: Duration) -> (Cache, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let store = FaultyStore::new(Fault::DeletionsWait(Arc::clone(&permits)));
    let index = EmbeddedIndex::open(&dir.join("index.redb"), &IndexOptions::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let put = |path: String, bytes: String| {
        runtime.block_on(store.inner.put(&Path::from(path), bytes.into())).unwrap();
    };
    put("owner".into(), index.name());
    put(format!("00/{}/801.safetensors", "0".repeat(32)), "an orphan".into());
    let config = CacheConfig { grace, time_limit: NEVER, ..CacheConfig::new(dir) };
    (Cache::with(config, Arc::new(index), Arc::new(store), Path::default()).unwrap(), permits)
}

const NEVER: Duration = Duration::from_secs(86_400);

/// The writer waits for ever, so this test ends only if `close` and the drop do not wait for it beyond the deadline.
#[test]
fn closing_does_not_wait_for_the_writer_beyond_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, _permits) = with_a_busy_writer(dir.path(), Duration::from_millis(1));
    assert!(cache.insert(picture("behind the orphan", 0.0)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(matches!(runtime.block_on(cache.close()), Err(CacheError::Full)));
    runtime.block_on(until("the dropped picture is counted", || cache.stats().insert_drops == 1));
    drop(cache);
    EmbeddedIndex::open(&dir.path().join("index.redb"), &IndexOptions::default()).unwrap();
}

/// The writer has a day to finish, so the drop returns only if it does not wait for the writer.
#[test]
fn dropping_a_cache_does_not_block_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, permits) = with_a_busy_writer(dir.path(), NEVER);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let index = dir.path().join("index.redb");
    let open = || EmbeddedIndex::open(&index, &IndexOptions::default());
    runtime.block_on(async {
        drop(cache);
        assert!(matches!(open(), Err(IndexError::InUse { .. })), "the writer still works");
        permits.add_permits(1);
        until("the writer has released the index", || open().is_ok()).await;
    });
}

#[tokio::test]
async fn a_directory_can_be_opened_right_after_its_cache_was_dropped() {
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
async fn damaged_entries_are_removed_with_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    for n in 0..4 {
        cache.insert(picture(&format!("prompt {n}"), n as f32));
    }
    cache.flush().await.unwrap();
    let entries = cache.entries(&Filter::default(), None, 10).await.unwrap();
    std::thread::spawn(|| drop(cache)).join().unwrap(); // outside a runtime the drop waits for the writer
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

/// A power cut may leave an entry whose state's file is empty.
#[tokio::test]
async fn an_empty_state_is_a_miss_and_is_removed() {
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
fn files_in_a_public_directory_are_private() {
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
