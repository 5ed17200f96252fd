//! A shelf made anew beside the old one, which goes on serving: without its dead rows, and with a graph, read
//! from a file where there is one and linked where not.
//!
//! The old shelf is locked for a batch of rows at a time. Only the gardener replaces shelves, so the rows of
//! the old one keep their places meanwhile.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::graph::Graph;
use super::saved::{SavedRow, row_digest};
use super::shelf::Shelf;

/// Rows that are copied under one lock.
const BATCH: usize = 512;
/// A saved graph is of no use when more than one of this many rows is dead: the shelf would be rebuilt.
const DEAD_SHARE: usize = 4;
/// Rows of a graph that are linked in, of all, before it is saved again: one of this many.
const UNSAVED_SHARE: usize = 8;

struct Renewal {
    fresh: Shelf,
    /// Which row of the old shelf each row of the fresh one was; `None` for a dead one.
    origins: Vec<Option<usize>>,
    /// Rows of the old shelf that were looked at.
    copied: usize,
}

/// Replaces a shelf's rows by the living ones alone, and its graph; `stop` ends it early.
pub(super) fn rebuild(shelf: &RwLock<Shelf>, stop: &AtomicBool) {
    let (loadable, live) = {
        let shelf = shelf.read();
        (shelf.graph.is_none().then(|| shelf.file.clone()).flatten(), shelf.live())
    };
    let mut renewal = Renewal::of(&shelf.read());
    let loaded = loadable.and_then(|file| file.load(renewal.fresh.dimensions()));
    let from_file = loaded.is_some_and(|(graph, rows)| renewal.place(shelf, graph, &rows));
    if !from_file {
        renewal = Renewal::of(&shelf.read());
    }
    renewal.copy(shelf);
    if !from_file && live >= renewal.fresh.graph_from && !renewal.link(stop) {
        return;
    }
    let saves = !from_file && !stop.load(Ordering::Relaxed);
    renewal.replace(shelf);
    if saves {
        save(shelf);
    }
}

impl Renewal {
    fn of(old: &Shelf) -> Self {
        let mut fresh = Shelf::new(old.dimensions(), old.graph_from, old.file.clone());
        fresh.reserve(old.live());
        Self { fresh, origins: Vec::with_capacity(old.live()), copied: 0 }
    }

    /// Puts the rows that a saved graph holds where it has them, dead where their entries are gone or have
    /// another embedding now. Whether enough of them live.
    fn place(&mut self, old: &RwLock<Shelf>, graph: Graph, rows: &[SavedRow]) -> bool {
        let mut dead = 0;
        for batch in rows.chunks(BATCH) {
            let old = old.read();
            for row in batch {
                let slot = row.id.as_ref().and_then(|id| old.slot(id));
                match slot.filter(|&slot| row_digest(old.row(slot)) == row.digest) {
                    Some(slot) => self.take(&old, slot),
                    None => {
                        dead += 1;
                        self.fresh.put_dead();
                        self.origins.push(None);
                    }
                }
            }
        }
        self.fresh.graph = Some(Arc::new(graph));
        self.fresh.linked = rows.len();
        self.fresh.saved = rows.len();
        self.fresh.graph_from_file = true;
        dead * DEAD_SHARE <= rows.len() && self.fresh.rows_held() == rows.len()
    }

    /// Copies the living rows that are not there yet.
    fn copy(&mut self, old: &RwLock<Shelf>) {
        loop {
            let old = old.read();
            let end = (self.copied + BATCH).min(old.rows_held());
            if self.copied == end {
                return;
            }
            self.copy_range(&old, self.copied..end);
        }
    }

    fn copy_range(&mut self, old: &Shelf, slots: Range<usize>) {
        self.copied = slots.end;
        slots.filter(|&slot| old.is_alive(slot)).for_each(|slot| self.take(old, slot));
    }

    fn take(&mut self, old: &Shelf, slot: usize) {
        let Some(id) = old.id(slot) else { return };
        let place = self.fresh.put(id, old.row(slot), old.traits(slot));
        self.origins.resize(self.fresh.rows_held(), None);
        self.origins[place] = Some(slot);
    }

    /// Whether all rows were linked into a new graph.
    fn link(&mut self, stop: &AtomicBool) -> bool {
        let graph = Graph::new(self.fresh.rows_held());
        for slot in 0..self.fresh.rows_held() {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            graph.link(slot, self.fresh.row(slot));
        }
        self.fresh.graph = Some(Arc::new(graph));
        self.fresh.linked = self.fresh.rows_held();
        true
    }

    /// Brings the fresh shelf up to date, and puts it in the old one's place.
    fn replace(mut self, shelf: &RwLock<Shelf>) {
        let mut old = shelf.write();
        for (slot, origin) in self.origins.iter().enumerate() {
            match *origin {
                Some(origin) if old.is_alive(origin) => self.fresh.set_traits(slot, old.traits(origin)),
                Some(_) => self.fresh.kill(slot),
                None => {}
            }
        }
        self.copy_range(&old, self.copied..old.rows_held());
        self.fresh.tended = old.tended;
        let outlived = std::mem::replace(&mut *old, self.fresh);
        drop(old);
        // A large graph takes a while to free: not under the lock.
        drop(outlived);
    }
}

/// Links the rows behind the graph's end into it; `stop` ends it early.
pub(super) fn absorb(shelf: &RwLock<Shelf>, stop: &AtomicBool) {
    let (graph, range) = {
        let shelf = shelf.read();
        let Some(graph) = shelf.graph.clone() else { return };
        (graph, shelf.linked..shelf.rows_held())
    };
    let end = range.end;
    for start in range.step_by(BATCH) {
        let batch = start..(start + BATCH).min(end);
        let rows: Vec<Vec<f32>> = {
            let shelf = shelf.read();
            batch.clone().map(|slot| shelf.row(slot).to_vec()).collect()
        };
        for (slot, row) in batch.zip(&rows) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            graph.link(slot, row);
        }
    }
    let unsaved = {
        let mut shelf = shelf.write();
        shelf.linked = end;
        end - shelf.saved
    };
    if unsaved * UNSAVED_SHARE > end {
        save(shelf);
    }
}

/// Saves a shelf's graph, or removes what was saved where it has none.
fn save(shelf: &RwLock<Shelf>) {
    let (file, graph, linked) = {
        let shelf = shelf.read();
        (shelf.file.clone(), shelf.graph.clone(), shelf.linked)
    };
    let Some(file) = file else { return };
    let Some(graph) = graph else { return file.remove() };
    let mut rows = Vec::with_capacity(linked);
    for start in (0..linked).step_by(BATCH) {
        let shelf = shelf.read();
        let saved = |slot| SavedRow { id: shelf.id(slot).cloned(), digest: row_digest(shelf.row(slot)) };
        rows.extend((start..(start + BATCH).min(linked)).map(saved));
    }
    file.save(&graph, rows);
    let mut shelf = shelf.write();
    shelf.saved = linked;
    if shelf.is_empty() {
        // It was emptied meanwhile, and its file removed.
        file.remove();
    }
}
