//! A killed process leaves a cache that opens, has no wrong state, and has every picture that was flushed. A directory
//! belongs to one process at a time.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use object_store::memory::InMemory;
use pentimento_cache::index::{EmbeddedIndex, IndexOptions, SearchFilter};
use pentimento_cache::*;

use crate::support::*;

/// Set for the child process: the cache directory.
const DIR: &str = "PENTIMENTO_TEST_CRASH_DIR";
/// Set for the child process: the number of its first picture.
const FIRST: &str = "PENTIMENTO_TEST_CRASH_FIRST";
/// The child flushes after every so many pictures.
const FLUSH_EVERY: usize = 10;

/// A state whose latent contains `n`.
fn numbered(n: usize, timestep: f64) -> State {
    let mut state = state(timestep);
    state.latent[0] = (n % 2048) as f32;
    state.latent[1] = (n / 2048) as f32;
    state
}

/// Whether picture `n` takes the place of the one before it, whose files are then removed.
fn replaces(n: usize) -> bool {
    n.is_multiple_of(7) && n > 0
}

/// The child process, not a test: inserts pictures until it is killed, and prints what it has inserted and flushed.
#[test]
fn child() {
    let (Ok(dir), Ok(first)) = (std::env::var(DIR), std::env::var(FIRST)) else { return };
    let cache = Cache::open(CacheConfig::new(dir)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for n in first.parse::<usize>().unwrap().. {
        let mut new = picture(&format!("prompt {n}"), n as f32);
        new.states = vec![(numbered(n, 801.0), 0.2), (numbered(n, FINISHED), 1.0)];
        if replaces(n) {
            new.specification = specification(&format!("prompt {} 7", n - 1));
            new.refresh = true;
        }
        while !cache.insert(new.clone()) {
            std::thread::yield_now();
        }
        println!("inserted {n}");
        if n.is_multiple_of(FLUSH_EVERY) {
            runtime.block_on(cache.flush()).unwrap();
            println!("flushed {n}");
        }
    }
}

fn spawn(dir: &std::path::Path, first: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--nocapture"])
        .env(DIR, dir)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What the child printed about one picture.
enum Said {
    Inserted(usize),
    Flushed(usize),
}

fn said(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<Said> {
    for line in lines.map_while(Result::ok) {
        let number = |word: &str| line.split(word).nth(1)?.trim().parse().ok();
        if let Some(n) = number("inserted ") {
            return Some(Said::Inserted(n));
        }
        if let Some(n) = number("flushed ") {
            return Some(Said::Flushed(n));
        }
    }
    None
}

/// Kills a child after it has inserted `count` pictures. Returns the number of the last inserted and of the last flushed
/// picture that it printed before.
fn run_and_kill(dir: &std::path::Path, first: usize, count: usize) -> (usize, Option<usize>) {
    let mut child = spawn(dir, first);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut inserted, mut flushed) = (first, None);
    while inserted + 1 < first + count {
        match said(&mut lines).expect("the child runs until it is killed") {
            Said::Inserted(n) => inserted = n,
            Said::Flushed(n) => flushed = Some(n),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    while let Some(more) = said(&mut lines) {
        match more {
            Said::Inserted(n) => inserted = n,
            Said::Flushed(n) => flushed = Some(n),
        }
    }
    (inserted, flushed)
}

#[test]
fn a_killed_process_leaves_a_sound_cache() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut next = 0;
    for count in [1, 95, 200, 23, 138] {
        let (inserted, flushed) = run_and_kill(dir.path(), next, count);
        let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
        runtime.block_on(cache.flush()).unwrap();
        let entries = runtime.block_on(cache.entries(&Filter::default(), None, 1 << 20)).unwrap();
        let mut numbers = HashSet::new();
        for entry in &entries {
            let n: usize = entry.prompt.as_ref().unwrap()["prompt ".len()..].parse().unwrap();
            numbers.insert(n);
            for kept in &entry.states {
                let found = runtime.block_on(cache.state(&entry.id, kept.timestep)).unwrap();
                assert_eq!(*found, numbered(n, kept.timestep), "an entry's states are complete and its own");
            }
            let picture = runtime.block_on(cache.picture(&entry.picture_key().unwrap())).unwrap();
            assert_eq!(picture, file(&format!("prompt {n}")), "and so is its picture");
        }
        assert_eq!(files(dir.path()), 3 * entries.len(), "and there are no other files");
        for n in next..flushed.map_or(next, |n| n + 1) {
            assert!(replaces(n + 1) || numbers.contains(&n), "{n} was flushed");
        }
        next = inserted + 1;
    }
}

#[test]
fn a_second_process_is_refused_and_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    let refused = spawn(dir.path(), 0).wait().unwrap();
    assert!(!refused.success());
    assert!(cache.insert(picture("a red house", 0.0)));
    drop(cache);
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(cache.entries(&Filter::default(), None, 10)).unwrap().len(), 1);
}

/// An index that counts its flushes.
struct CountingIndex {
    inner: EmbeddedIndex,
    flushes: Arc<AtomicU64>,
}

#[async_trait]
impl PromptIndex for CountingIndex {
    async fn search(
        &self,
        filter: &SearchFilter<'_>,
        embedding: &[f32],
        n: usize,
    ) -> Result<Vec<Neighbour>, IndexError> {
        self.inner.search(filter, embedding, n).await
    }
    async fn get(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        self.inner.get(id).await
    }
    async fn exact(
        &self,
        scope: &Scope,
        specification: &SpecificationHash,
    ) -> Result<Option<ExactHit>, IndexError> {
        self.inner.exact(scope, specification).await
    }
    async fn upsert(&self, entry: Entry) -> Result<Option<Entry>, IndexError> {
        self.inner.upsert(entry).await
    }
    async fn remove(&self, id: &EntryId) -> Result<Option<Entry>, IndexError> {
        self.inner.remove(id).await
    }
    async fn touch(&self, id: &EntryId, part: Part, uses: u64, now: u64) -> Result<bool, IndexError> {
        self.inner.touch(id, part, uses, now).await
    }
    async fn scan(
        &self,
        filter: &Filter,
        after: Option<&EntryId>,
        limit: usize,
    ) -> Result<Vec<Entry>, IndexError> {
        self.inner.scan(filter, after, limit).await
    }
    async fn flush(&self) -> Result<(), IndexError> {
        self.inner.flush().await?;
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn name(&self) -> String {
        self.inner.name()
    }
}

/// Without a call of [`Cache::flush`].
#[tokio::test]
async fn inserted_pictures_are_flushed_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let inner = EmbeddedIndex::open(&dir.path().join("index.redb"), &IndexOptions::default()).unwrap();
    let flushes = Arc::new(AtomicU64::new(0));
    let index = CountingIndex { inner, flushes: Arc::clone(&flushes) };
    let config = CacheConfig::new(dir.path());
    let cache = Cache::with(config, Arc::new(index), Arc::new(InMemory::new()), Default::default()).unwrap();
    cache.insert(picture("a red house", 0.0));
    until("the picture is stored", || cache.stats().entries == 1).await;
    let before = flushes.load(Ordering::Relaxed);
    // The first of two flushes may have begun before the insertion.
    until("the index is flushed", || flushes.load(Ordering::Relaxed) >= before + 2).await;
}
