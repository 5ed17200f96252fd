//! A process that is killed leaves a cache that opens, holds no wrong state, and lacks at most what was
//! inserted in its last second. A directory belongs to one process at a time.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pentimento_cache::*;
use support::*;

/// Set for the child process: the cache directory.
const DIR: &str = "PENTIMENTO_TEST_CRASH_DIR";
/// Set for the child process: the number of its first picture.
const FIRST: &str = "PENTIMENTO_TEST_CRASH_FIRST";

/// A state that says whose it is.
fn marked(n: usize, timestep: f64) -> State {
    let mut state = state(timestep);
    state.latent[0] = (n % 2048) as f32;
    state.latent[1] = (n / 2048) as f32;
    state
}

/// Not a test of its own: inserts pictures until it is killed, and says which it has handed over.
#[test]
fn child() {
    let (Ok(dir), Ok(first)) = (std::env::var(DIR), std::env::var(FIRST)) else { return };
    let cache = Cache::open(CacheConfig::new(dir)).unwrap();
    for n in first.parse::<usize>().unwrap().. {
        let mut new = picture(&format!("prompt {n}"), n as f32);
        new.states = vec![(marked(n, 801.0), 0.2), (marked(n, FINISHED), 1.0)];
        if n % 7 == 0 && n > 0 {
            // In place of an older one, whose states are then removed.
            new.specification = specification(&format!("prompt {} 7", n - 1));
            new.refresh = true;
        }
        while !cache.insert(new.clone()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("inserted {n}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn spawn(dir: &std::path::Path, first: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(DIR, dir)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets a child insert until `moment`, kills it, and returns the pictures with the times it spoke of them.
fn run_and_kill(dir: &std::path::Path, first: usize, moment: Duration) -> (Vec<(usize, Instant)>, Instant) {
    let mut child = spawn(dir, first);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let heard = std::thread::spawn(move || {
        let number = |line: String| line.split("inserted ").nth(1)?.trim().parse().ok();
        lines.map_while(Result::ok).filter_map(number).map(|n: usize| (n, Instant::now())).collect::<Vec<_>>()
    });
    std::thread::sleep(moment);
    child.kill().unwrap();
    let killed = Instant::now();
    child.wait().unwrap();
    (heard.join().unwrap(), killed)
}

#[test]
fn a_killed_process_leaves_a_sound_cache() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut next = 0;
    for moment in [40, 700, 1350, 270, 1777] {
        let (inserted, killed) = run_and_kill(dir.path(), next, Duration::from_millis(moment));
        let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
        runtime.block_on(cache.flush()).unwrap();
        let entries = runtime.block_on(cache.entries(&Filter::default(), None, 1 << 20)).unwrap();
        let mut numbers = std::collections::HashSet::new();
        for entry in &entries {
            let n: usize = entry.prompt.as_ref().unwrap()["prompt ".len()..].parse().unwrap();
            numbers.insert(n);
            for kept in &entry.states {
                let found = runtime.block_on(cache.state(&entry.id, kept.timestep)).unwrap();
                assert_eq!(*found, marked(n, kept.timestep), "an entry's states are its own and whole");
            }
            let picture = runtime.block_on(cache.picture(&entry.picture_key().unwrap())).unwrap();
            assert_eq!(picture, file(&format!("prompt {n}")), "and so is its picture");
        }
        assert_eq!(files(dir.path()), 3 * entries.len(), "and there are no others");
        for (n, said) in &inserted {
            let replaced = (n + 1) % 7 == 0;
            let early = killed.duration_since(*said) > Duration::from_millis(1500);
            assert!(!early || replaced || numbers.contains(n), "{n} was inserted long before the end");
        }
        next = inserted.last().map_or(next, |(n, _)| n + 1);
    }
    assert!(next > 100, "the children did insert: {next}");
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
