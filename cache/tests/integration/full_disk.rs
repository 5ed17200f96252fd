//! A disk that is full for a while loses pictures but does not disable the cache: once it has space, the cache works again
//! without being reopened.
//!
//! The disk is a small tmpfs in a mount namespace of the test's own. Some systems do not allow that to a plain user. There
//! `unshare --map-root-user --mount` fails, and the test says that it tested nothing.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use crate::support::*;
use object_store::memory::InMemory;
use pentimento_cache::index::{EmbeddedIndex, IndexOptions};
use pentimento_cache::*;

/// Set for the child process: the mount point of the small disk.
const DISK: &str = "PENTIMENTO_TEST_SMALL_DISK";

#[test]
fn a_cache_outlives_a_full_disk() {
    let disk = tempfile::tempdir().unwrap();
    let unshare = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--mount", "sh", "-ec", command]).env(DISK, disk.path());
        unshare
    };
    let mount = format!("mount -t tmpfs -o size=6m none \"${DISK}\"");
    if !unshare(&mount).output().is_ok_and(|done| done.status.success()) {
        eprintln!("not tested: this system gives no mount namespace");
        return;
    }
    let mut child = unshare(&format!("{mount}; exec \"$PROGRAM\" --exact full_disk::child --nocapture"));
    let done = child.env("PROGRAM", std::env::current_exe().unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("works again"), "{said}");
}

/// The child process, not a test: a cache on the small disk.
#[test]
fn child() {
    let Ok(disk) = std::env::var(DISK).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = disk.join("index.redb");
    let index = EmbeddedIndex::open(&path, &IndexOptions::default()).unwrap();
    // The states are in memory, so that only the index uses the disk.
    let objects = Arc::new(InMemory::new());
    let config = CacheConfig { queue: 1000, ..CacheConfig::new(&disk) };
    let cache = Cache::with(config, Arc::new(index), objects, Default::default()).unwrap();
    let mut next = 0;
    let mut insert = |n| {
        for _ in 0..n {
            let mut new = picture(&format!("prompt {next}"), next as f32);
            new.prompt = Some("long ".repeat(2000));
            assert!(cache.insert(new));
            next += 1;
        }
        runtime.block_on(cache.flush())
    };
    insert(10).unwrap();
    let mut ballast = std::fs::File::create(disk.join("ballast")).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
    assert!((0..10).any(|_| insert(50).is_err()), "the disk is full");
    let before = cache.stats();
    assert!(before.failures > 0);
    // The result of a look-up does not matter. It must not end the process.
    let _ = runtime.block_on(cache.entries(&Filter::default(), None, 10));

    drop(ballast);
    std::fs::remove_file(disk.join("ballast")).unwrap();
    // The index is reopened after a pause. If it never is, this loop and the test do not end.
    while insert(1).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    insert(5).unwrap();
    let stats = cache.stats();
    assert!(stats.index.reopened > 0, "{stats:?}");
    let entries = runtime.block_on(cache.entries(&Filter::default(), None, 10_000)).unwrap();
    assert!(entries.len() >= 15, "entries from before and from after: {}", entries.len());
    assert_eq!(stats.entries, entries.len() as u64, "the accounting agrees with the index");
    for entry in &entries {
        runtime.block_on(cache.state(&entry.id, 801.0)).unwrap();
    }
    let seen = runtime.block_on(look_up(&cache, &scope("tenant"), 5.0));
    assert!(!seen.neighbours.is_empty());
    assert_eq!(stats.index.rows - stats.index.tombstones, stats.entries);
    println!("works again");
}
