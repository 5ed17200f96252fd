//! Tests of graphs: building, saving, loading and rebuilding.

use std::path::Path;

use tempfile::TempDir;

use super::super::conformance::{compatibility, entry, scope};
use super::super::*;
use super::{block_on, open};
use crate::entry::EntryId;

/// Random unit vectors, the same in every run.
fn scattered(n: usize, dimensions: usize) -> Vec<Vec<f32>> {
    use rand_chacha::rand_core::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut direction = || {
        let row: Vec<f32> =
            (0..dimensions).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).collect();
        let length = vectors::dot(&row, &row).sqrt();
        row.into_iter().map(|x| x / length).collect()
    };
    (0..n).map(|_| direction()).collect()
}

/// A partition is searched while its entries change and its graph is rebuilt. Living rows are found even if the graph's
/// candidates are all dead.
#[test]
fn entries_are_found_while_the_graph_is_rebuilt() {
    let dir = TempDir::new().unwrap();
    let here = scope("tenant", "");
    let compatibility = compatibility("embedder");
    let filter = SearchFilter {
        scope: &here,
        compatibility: &compatibility,
        guidance_scale: 0.0..=9.0,
        holding: Holding::Anything,
    };
    let index = open(dir.path(), 200).unwrap();
    let rows = scattered(1200, 16);
    let nearest = |row: &[f32]| {
        let near = block_on(index.search(&filter, row, 1)).unwrap();
        near.into_iter().next().map(|near| near.entry.id)
    };
    for (n, row) in rows.iter().enumerate() {
        block_on(index.upsert(entry(n as u128, &here, row.clone()))).unwrap();
    }
    until("a graph", || index.has_graph(&here, &compatibility));
    let right = |range: std::ops::Range<usize>| {
        range.filter(|&n| nearest(&rows[n]) == Some(EntryId::new(n as u128))).count()
    };
    assert!(right(0..1200) >= 1180, "an entry is its own nearest, as a rule");
    for n in 0..900 {
        block_on(index.remove(&EntryId::new(n))).unwrap();
        assert_ne!(nearest(&rows[n as usize]), Some(EntryId::new(n)), "a removed entry is not found");
    }
    assert!(right(900..1200) >= 290);
    for n in 900..1200 {
        block_on(index.remove(&EntryId::new(n))).unwrap();
    }
    assert_eq!(nearest(&rows[0]), None);
}

/// Waits until `done` is true because of the maintenance thread's work. The bound only makes a failing test end.
fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("never: {what}");
}

fn saved_files(dir: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(dir.join("graphs")).unwrap().map(|file| file.unwrap().path()).collect()
}

/// Makes an index of `rows` whose graph is saved, and closes it.
fn with_a_saved_graph(dir: &Path, rows: &[Vec<f32>]) {
    let index = open(dir, 200).unwrap();
    for (n, row) in rows.iter().enumerate() {
        block_on(index.upsert(entry(n as u128, &scope("tenant", ""), row.clone()))).unwrap();
    }
    let tail = |stats: IndexStats| stats.rows - stats.in_graphs;
    until("a graph of most rows", || index.stats().graphs == 1 && tail(index.stats()) <= 256);
    drop(index);
    // Without its files the graph is built again, of all rows, and then saved.
    saved_files(dir).iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let index = open(dir, 200).unwrap();
    until("a saved graph", || saved_files(dir).iter().any(|file| file.extension().unwrap() == "rows"));
    assert_eq!(index.stats().in_graphs, rows.len() as u64);
}

/// The number of rows in the range whose nearest entry is their own.
fn own_nearest(index: &EmbeddedIndex, rows: &[Vec<f32>], range: std::ops::Range<usize>) -> usize {
    let (here, compatibility) = (scope("tenant", ""), compatibility("embedder"));
    let filter = SearchFilter {
        scope: &here,
        compatibility: &compatibility,
        guidance_scale: 0.0..=9.0,
        holding: Holding::Anything,
    };
    let found = |n: &usize| {
        let near = block_on(index.search(&filter, &rows[*n], 1)).unwrap();
        near.first().is_some_and(|near| near.entry.id == EntryId::new(*n as u128))
    };
    range.filter(found).count()
}

#[test]
fn a_saved_graph_is_used_for_the_rows_that_have_not_changed() {
    let dir = TempDir::new().unwrap();
    let here = scope("tenant", "");
    let rows = scattered(2400, 16);
    with_a_saved_graph(dir.path(), &rows[..1200]);
    // Changes that the saved graph does not contain.
    let index = open(dir.path(), usize::MAX).unwrap();
    for n in 0..100 {
        block_on(index.remove(&EntryId::new(n))).unwrap();
        block_on(index.upsert(entry(100 + n, &here, rows[1200 + n as usize].clone()))).unwrap();
    }
    block_on(index.flush()).unwrap();
    drop(index);
    let index = open(dir.path(), 200).unwrap();
    until("a graph", || index.stats().graphs == 1);
    let stats = index.stats();
    assert_eq!((stats.graphs_loaded, stats.in_graphs, stats.tombstones), (1, 1200, 200), "{stats:?}");
    assert_eq!(own_nearest(&index, &rows, 0..200), 0, "removed or of another embedding now");
    assert!(own_nearest(&index, &rows, 200..1200) >= 980);
    // The loaded graph can be extended.
    for n in 1300..2400 {
        block_on(index.upsert(entry(n, &here, rows[n as usize].clone()))).unwrap();
    }
    until("the new rows in the graph", || index.stats().in_graphs > 2100);
    assert!(own_nearest(&index, &rows, 1300..2400) >= 1080);
    assert_eq!(own_nearest(&index, &rows, 0..200), 0);
}

#[test]
fn a_damaged_saved_graph_is_built_again() {
    let dir = TempDir::new().unwrap();
    let rows = scattered(400, 16);
    with_a_saved_graph(dir.path(), &rows);
    let sound: Vec<_> =
        saved_files(dir.path()).into_iter().map(|f| (std::fs::read(&f).unwrap(), f)).collect();
    assert_eq!(sound.len(), 3);
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes[40] ^= 0x40,
        |bytes| *bytes.last_mut().unwrap() ^= 1,
    ];
    for damage in damages {
        for at in 0..3 {
            for (n, (bytes, file)) in sound.iter().enumerate() {
                let mut bytes = bytes.clone();
                if n == at {
                    damage(&mut bytes);
                }
                std::fs::write(file, bytes).unwrap();
            }
            let index = open(dir.path(), 200).unwrap();
            until("a graph", || index.stats().graphs == 1);
            assert_eq!(index.stats().graphs_loaded, 0);
            assert!(own_nearest(&index, &rows, 0..400) >= 390);
        }
    }
}

#[test]
fn no_graph_of_removed_entries_stays_in_a_file() {
    let dir = TempDir::new().unwrap();
    with_a_saved_graph(dir.path(), &scattered(400, 16));
    std::fs::write(dir.path().join("graphs").join("of-another-scope.hnsw.data"), b"rows").unwrap();
    let index = open(dir.path(), 200).unwrap();
    until("a graph", || index.stats().graphs == 1);
    assert_eq!(saved_files(dir.path()).len(), 3);
    for n in 0..400 {
        block_on(index.remove(&EntryId::new(n))).unwrap();
    }
    drop(index);
    assert_eq!(saved_files(dir.path()), Vec::<std::path::PathBuf>::new());
}
