//! Tests of the embedded index: the conformance suite, its files, and its graphs.

mod graphs;

use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::conformance::{self, at_angle, compatibility, entry, scope, specification};
use super::*;
use crate::entry::{Entry, EntryId};

fn open(dir: &Path, graph_from: usize) -> Result<EmbeddedIndex, IndexError> {
    let options = IndexOptions { graph_from, ..IndexOptions::default() };
    EmbeddedIndex::open(&dir.join("index.redb"), &options)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

#[test]
fn it_passes_the_suite_by_scan_and_by_graph() {
    for graph_from in [usize::MAX, 8] {
        block_on(conformance::run_all(async || {
            let dir = TempDir::new().unwrap();
            (open(dir.path(), graph_from).unwrap(), dir)
        }));
    }
}

#[test]
fn entries_outlive_the_process_that_flushed_them() {
    let dir = TempDir::new().unwrap();
    let here = scope("tenant", "");
    let index = open(dir.path(), 8).unwrap();
    for n in 0..20 {
        block_on(index.upsert(entry(n, &here, at_angle(n as f32)))).unwrap();
    }
    block_on(index.remove(&EntryId::new(3))).unwrap();
    block_on(index.flush()).unwrap();
    drop(index);
    let index = open(dir.path(), 8).unwrap();
    let compatibility = compatibility("embedder");
    let filter = SearchFilter {
        scope: &here,
        compatibility: &compatibility,
        guidance_scale: 0.0..=9.0,
        holding: Holding::Anything,
    };
    let near = block_on(index.search(&filter, &at_angle(3.0), 30)).unwrap();
    assert_eq!(near.len(), 19);
    assert!(near.iter().all(|near| near.entry.id != EntryId::new(3)));
}

#[test]
fn a_second_opener_is_refused() {
    let dir = TempDir::new().unwrap();
    let _first = open(dir.path(), 8).unwrap();
    assert!(matches!(open(dir.path(), 8), Err(IndexError::InUse { .. })));
}

#[test]
fn a_later_version_and_no_index_at_all_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u32>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(matches!(open(dir.path(), 8), Err(IndexError::Version { found: 99, .. })));

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"something else altogether, of some length".repeat(200)).unwrap();
    assert!(matches!(open(dir.path(), 8), Err(IndexError::Open { .. })));
}

#[test]
fn an_index_of_an_earlier_version_begins_empty() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    let here = scope("tenant", "");
    let index = open(dir.path(), 8).unwrap();
    block_on(index.upsert(entry(1, &here, at_angle(1.0)))).unwrap();
    let name = index.name();
    drop(index);
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u32>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    for _ in 0..2 {
        let index = open(dir.path(), 8).unwrap();
        assert!(block_on(index.scan(&Filter::default(), None, 10)).unwrap().is_empty());
        assert_eq!(index.stats().damaged, 0, "no row of the old format is left");
        assert_eq!(index.name(), name, "the index keeps its name, and so its files in the store");
    }
}

/// During a replacement both an exact look-up and a search find the old or the new picture.
#[test]
fn a_replacement_hides_neither_picture() {
    let dir = TempDir::new().unwrap();
    let index = open(dir.path(), usize::MAX).unwrap();
    let (here, compatibility) = (scope("tenant", ""), compatibility("embedder"));
    let replace = |n: u128| {
        let mut newer = entry(n, &here, at_angle(1.0));
        newer.specification = specification(0);
        block_on(index.upsert(newer)).unwrap();
    };
    replace(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            let mut looks = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(block_on(index.exact(&here, &specification(0))).unwrap().is_some());
                let holding = Holding::WholePicture;
                let filter = SearchFilter {
                    scope: &here,
                    compatibility: &compatibility,
                    guidance_scale: 0.0..=9.0,
                    holding,
                };
                assert_eq!(block_on(index.search(&filter, &at_angle(1.0), 1)).unwrap().len(), 1, "{looks}");
                looks += 1;
            }
        });
        (1..600).for_each(replace);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(block_on(index.scan(&Filter::default(), None, 10)).unwrap().len(), 1);
}

#[test]
fn an_altered_file_is_an_error_or_an_empty_find_but_never_a_panic() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    let here = scope("tenant", "");
    let index = open(dir.path(), 8).unwrap();
    for n in 0..50 {
        block_on(index.upsert(entry(n, &here, at_angle(n as f32)))).unwrap();
    }
    block_on(index.flush()).unwrap();
    drop(index);
    let sound = std::fs::read(&path).unwrap();
    for at in (0..sound.len().min(200_000)).step_by(4999) {
        let mut altered = sound.clone();
        altered[at] ^= 0x55;
        std::fs::write(&path, &altered).unwrap();
        if let Ok(index) = open(dir.path(), 8) {
            let _ = block_on(index.scan(&Filter::default(), None, 100));
        }
    }
    for length in [0, 1, 100, 4096, sound.len() / 2] {
        std::fs::write(&path, &sound[..length]).unwrap();
        let _ = open(dir.path(), 8).map(|index| block_on(index.scan(&Filter::default(), None, 100)));
    }
}

/// Makes entries in the database's table unreadable.
fn damage(dir: &Path, names: &[String]) {
    let database = redb::Database::create(dir.join("index.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let entries = redb::TableDefinition::<&str, &[u8]>::new("entries");
    for name in names {
        transaction.open_table(entries).unwrap().insert(name.as_str(), b"nonsense".as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

#[test]
fn damaged_entries_are_removed_with_their_pictures() {
    let dir = TempDir::new().unwrap();
    let here = scope("tenant", "");
    let index = open(dir.path(), 8).unwrap();
    for n in 0..20 {
        block_on(index.upsert(entry(n, &here, at_angle(n as f32)))).unwrap();
    }
    let name = index.name();
    block_on(index.flush()).unwrap();
    drop(index);
    damage(dir.path(), &[EntryId::new(3).into(), EntryId::new(4).into(), "no id at all".to_owned()]);
    let index = open(dir.path(), 8).unwrap();
    let stats = index.stats();
    assert_eq!(stats.damaged, 3);
    // If the graph was saved before the damage, it is loaded with the rows of the two entries dead.
    assert_eq!(stats.rows - stats.tombstones, 18);
    assert_eq!(block_on(index.get(&EntryId::new(3))).unwrap(), None);
    assert_eq!(block_on(index.exact(&here, &specification(3))).unwrap(), None);
    assert!(block_on(index.exact(&here, &specification(5))).unwrap().is_some());
    assert_eq!(index.name(), name);
    block_on(index.flush()).unwrap();
    drop(index);
    assert_eq!(open(dir.path(), 8).unwrap().stats().damaged, 0, "they were removed");
}

#[cfg(unix)]
#[test]
fn the_file_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.redb");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    drop(open(dir.path(), 8).unwrap());
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(dir.path(), 8).unwrap());
    assert_eq!(mode(), 0o600);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// After any sequence of changes a scope holds one entry of each specification, the one inserted last. An exact
    /// look-up finds it if its whole picture is stored. Reopening the index changes nothing of this.
    #[test]
    fn an_exact_look_up_finds_the_last_of_each_specification(
        changes in prop::collection::vec((0u128..12, 0usize..2, 0u128..4, prop::bool::ANY, prop::bool::weighted(0.8)), 1..60),
    ) {
        let scopes = [scope("a", ""), scope("", "a")];
        let dir = TempDir::new().unwrap();
        let mut index = open(dir.path(), usize::MAX).unwrap();
        let mut model = std::collections::HashMap::new();
        for (n, of, picture, whole, add) in changes {
            if add {
                let mut new = entry(n, &scopes[of], at_angle(n as f32));
                new.specification = specification(picture);
                if !whole {
                    (new.picture, new.states) = (None, vec![new.states[0].clone()]);
                }
                model.retain(|_, held: &mut Entry| held.id != new.id);
                let displaced = model.insert((of, picture), new.clone());
                prop_assert_eq!(block_on(index.upsert(new)).unwrap(), displaced);
            } else {
                let held = model.values().find(|held| held.id == EntryId::new(n)).cloned();
                model.retain(|_, held| held.id != EntryId::new(n));
                prop_assert_eq!(block_on(index.remove(&EntryId::new(n))).unwrap(), held);
            }
        }
        for _ in 0..2 {
            for (of, scope) in scopes.iter().enumerate() {
                for picture in 0..4 {
                    let found = block_on(index.exact(scope, &specification(picture))).unwrap();
                    prop_assert_eq!(found, model.get(&(of, picture)).and_then(ExactHit::of));
                }
            }
            prop_assert_eq!(block_on(index.scan(&Filter::default(), None, 100)).unwrap().len(), model.len());
            drop(index);
            index = open(dir.path(), usize::MAX).unwrap();
        }
    }

    /// After any sequence of changes a search, by scan or by graph, returns entries of its own scope and compatibility
    /// only. If it asks for enough entries, it returns all of them.
    #[test]
    fn no_search_leaves_its_scope(
        changes in prop::collection::vec((0u128..30, 0usize..4, 0usize..2, 0u16..360, prop::bool::weighted(0.8)), 1..80),
        graph_from in prop::sample::select(vec![4usize, usize::MAX]),
    ) {
        let scopes = [scope("a", "b"), scope("a", ""), scope("", "a"), scope("ab", "")];
        let compatibilities = [compatibility("one"), compatibility("two")];
        let dir = TempDir::new().unwrap();
        let index = open(dir.path(), graph_from).unwrap();
        let mut model = std::collections::HashMap::new();
        for (n, of, to, angle, add) in changes {
            if add {
                let mut new = entry(n, &scopes[of], at_angle(f32::from(angle)));
                new.compatibility = compatibilities[to].clone();
                model.insert(n, (of, to));
                block_on(index.upsert(new)).unwrap();
            } else {
                prop_assert_eq!(block_on(index.remove(&EntryId::new(n))).unwrap().is_some(), model.remove(&n).is_some());
            }
        }
        for (of, scope) in scopes.iter().enumerate() {
            for (to, compatibility) in compatibilities.iter().enumerate() {
                let filter = SearchFilter { scope, compatibility, guidance_scale: 0.0..=9.0, holding: Holding::Anything };
                let near = block_on(index.search(&filter, &at_angle(45.0), 100)).unwrap();
                prop_assert!(near.iter().all(|near| near.entry.scope == *scope));
                prop_assert!(near.iter().all(|near| near.entry.compatibility == *compatibility));
                prop_assert!(near.windows(2).all(|pair| pair[0].similarity >= pair[1].similarity));
                prop_assert_eq!(near.len(), model.values().filter(|place| **place == (of, to)).count());
            }
        }
    }
}
