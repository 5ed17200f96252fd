//! Whole pictures: stored with their files, found by specification, replaced by better ones.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::*;
use bytes::Bytes;
use pentimento_cache::*;

/// A picture of always the same specification, with this file and quality.
fn version(text: &str, quality: Option<f32>) -> NewPicture {
    NewPicture { expected_quality: quality, file: Some(file(text)), ..picture("a red house", 0.0) }
}

async fn served(cache: &Cache) -> Option<Bytes> {
    let specification = specification("a red house 7");
    let found = cache.exact_picture(&scope("tenant"), &specification, |_| true).await.unwrap();
    found.map(|found| found.file)
}

#[tokio::test]
async fn a_better_picture_replaces_a_worse_one_and_no_other_does() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    let insert = async |new: NewPicture| {
        assert!(cache.insert(new));
        cache.flush().await.unwrap();
        assert_eq!(
            (cache.stats().entries, files(dir.path())),
            (1, 3),
            "no file of the other picture is left"
        );
        let served = served(&cache).await.unwrap();
        String::from_utf8(served[8..].to_vec()).unwrap()
    };
    assert_eq!(insert(version("unknown", None)).await, "unknown");
    assert_eq!(insert(version("unknown again", None)).await, "unknown");
    assert_eq!(insert(version("fair", Some(0.8))).await, "fair");
    assert_eq!(insert(version("unknown", None)).await, "fair");
    assert_eq!(insert(version("as good", Some(0.8))).await, "fair");
    assert_eq!(insert(version("better", Some(0.9))).await, "better");
    assert_eq!(insert(version("worse", Some(0.5))).await, "better");
    let stats = cache.stats();
    assert_eq!((stats.duplicates, stats.replacements, stats.failures), (4, 2, 0));
    let refresh = NewPicture { refresh: true, ..version("refreshed", None) };
    assert_eq!(insert(refresh).await, "refreshed");
    assert_eq!((cache.stats().duplicates, cache.stats().replacements), (4, 3));
}

#[tokio::test]
async fn states_alone_replace_no_picture_and_a_file_replaces_a_latent() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    let latent_alone = NewPicture { file: None, ..version("", Some(0.9)) };
    cache.insert(latent_alone.clone());
    cache.flush().await.unwrap();
    let hit = exact(&cache, &scope("tenant"), "a red house").await.unwrap();
    assert_eq!(hit.picture, None, "a worker has to decode it");
    assert_eq!(served(&cache).await, None);
    cache.insert(version("a file", Some(0.9)));
    cache.insert(latent_alone.clone());
    let no_picture = NewPicture { states: vec![(state(801.0), 0.2)], ..latent_alone };
    cache.insert(NewPicture { expected_quality: Some(1.0), ..no_picture });
    cache.flush().await.unwrap();
    assert_eq!(served(&cache).await.unwrap(), file("a file"));
    assert_eq!((cache.stats().replacements, cache.stats().duplicates), (1, 2));
}

/// While a picture is replaced many times, a reader on another thread always finds the old or the new one with its file.
#[test]
fn a_replacement_is_never_seen_as_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Without memory every file is read from the directory.
    let config = CacheConfig { picture_memory_bytes: 0, ..CacheConfig::new(dir.path()) };
    let cache = Cache::open(config).unwrap();
    let writer = runtime();
    let insert = |n: usize| {
        assert!(cache.insert(version(&format!("version {n}"), Some(n as f32 / 1000.0))));
        writer.block_on(cache.flush()).unwrap();
    };
    insert(0);
    let done = AtomicBool::new(false);
    let reads = std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            let (runtime, mut reads) = (runtime(), 0);
            while !done.load(Ordering::Relaxed) {
                let found = runtime.block_on(served(&cache)).expect("the older or the newer one");
                assert!(found[8..].starts_with(b"version "));
                reads += 1;
            }
            reads
        });
        (1..100).for_each(insert);
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(reads > 0);
    assert_eq!((cache.stats().replacements, cache.stats().failures, files(dir.path())), (99, 0, 3));
}

#[tokio::test]
async fn a_picture_is_served_only_if_it_reaches_the_quality() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    let plan = PaintedPlan { option: Some("ggggg---".into()), steps: 8, guided_steps: 5 };
    cache.insert(NewPicture { plan: plan.clone(), ..version("cheap", Some(0.85)) });
    cache.flush().await.unwrap();
    let (scope, specification) = (scope("tenant"), specification("a red house 7"));
    let at = async |quality| {
        cache.exact_picture(&scope, &specification, |hit| hit.reaches(quality)).await.unwrap()
    };
    assert_eq!(at(0.8).await.unwrap().hit.plan, plan);
    assert!(at(0.9).await.is_none());
}

#[tokio::test]
async fn a_resumed_picture_is_found_whole_and_is_no_source() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    let from = ResumedFrom { entry: EntryId::new(5), loss: 0.03 };
    cache.insert(NewPicture { resumed: Some(from.clone()), ..version("resumed", Some(0.95)) });
    cache.insert(picture("a blue tree", 40.0));
    cache.flush().await.unwrap();
    assert_eq!(served(&cache).await.unwrap(), file("resumed"));
    let entries = cache.entries(&Filter::default(), None, 10).await.unwrap();
    let resumed = entries.iter().find(|entry| entry.resumed.is_some()).unwrap();
    assert_eq!((resumed.resumed.as_ref(), resumed.states.len()), (Some(&from), 0));
    let found = look_up(&cache, &scope("tenant"), 1.0).await;
    assert_eq!(found.neighbours.len(), 1, "the resumed picture is nearer, but has no state to resume");
    assert_eq!(found.neighbours[0].entry.prompt.as_deref(), Some("a blue tree"));
    assert_eq!(files(dir.path()), 4);
}

#[tokio::test]
async fn damaged_and_missing_files_are_counted_misses_and_are_removed() {
    for damage in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
        cache.insert(version("sound", Some(0.9)));
        cache.flush().await.unwrap();
        let path = all_files(dir.path()).into_iter().find(|path| path.ends_with("picture.png")).unwrap();
        match damage {
            true => std::fs::write(&path, file("other")).unwrap(),
            false => std::fs::remove_file(&path).unwrap(),
        }
        assert_eq!(served(&cache).await, None);
        cache.flush().await.unwrap();
        assert_eq!((cache.stats().failures, cache.stats().pictures, cache.stats().entries), (1, 0, 1));
        assert!(!path.exists());
        let hit = exact(&cache, &scope("tenant"), "a red house").await.unwrap();
        assert_eq!(hit.picture, None, "its latent is still stored");
        cache.insert(version("sound", Some(0.9)));
        cache.flush().await.unwrap();
        assert_eq!(served(&cache).await.unwrap(), file("sound"), "painted again, it is stored again");
    }
}

#[tokio::test]
async fn a_better_picture_inherits_the_uses_of_the_one_it_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    cache.insert(version("fair", Some(0.8)));
    cache.flush().await.unwrap();
    let fair = exact(&cache, &scope("tenant"), "a red house").await.unwrap();
    (0..5).for_each(|_| cache.used(&fair.entry, Part::Picture));
    cache.flush().await.unwrap();
    cache.insert(version("good", Some(0.9)));
    cache.flush().await.unwrap();
    let good = exact(&cache, &scope("tenant"), "a red house").await.unwrap();
    assert_ne!(good.entry, fair.entry);
    assert_eq!(cache.entry(&good.entry).await.unwrap().unwrap().picture.unwrap().uses, 5);
    assert_eq!(
        cache.picture(&fair.picture.unwrap()).await.unwrap_err().to_string(),
        "stored file: there is none"
    );
}

#[tokio::test]
async fn pictures_count_in_the_budget_and_used_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let config = CacheConfig { max_bytes: 30_000, queue: 100, ..CacheConfig::new(dir.path()) };
    let cache = Cache::open(config).unwrap();
    let new = |n: usize| NewPicture {
        states: Vec::new(),
        file: Some(file(&"x".repeat(1000))),
        ..picture(&format!("prompt {n}"), n as f32)
    };
    cache.insert(new(0));
    cache.flush().await.unwrap();
    let wanted = exact(&cache, &scope("tenant"), "prompt 0").await.unwrap();
    cache.used(&wanted.entry, Part::Picture);
    (1..60).for_each(|n| assert!(cache.insert(new(n))));
    cache.flush().await.unwrap();
    let stats = cache.stats();
    assert!(stats.bytes <= 30_000 && stats.evictions >= 30, "{stats:?}");
    assert_eq!((stats.entries, stats.pictures as usize), (stats.pictures, files(dir.path())));
    assert!(exact(&cache, &scope("tenant"), "prompt 0").await.is_some());
}

#[tokio::test]
async fn a_picture_survives_closing_and_opening() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    cache.insert(version("stored", Some(0.9)));
    drop(cache);
    let cache = Cache::open(CacheConfig::new(dir.path())).unwrap();
    assert_eq!(served(&cache).await.unwrap(), file("stored"));
}
