//! The maintenance of a partition: rebuilding it without its dead rows, and linking new rows into its graph.
//!
//! A rebuild makes a new partition beside the old one, which goes on serving meanwhile. The new one's graph is read from
//! a file if there is one, and built otherwise. The old partition is locked for one batch of rows at a time. Only the
//! maintenance thread replaces partitions, so the old one's rows keep their slots during a rebuild.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::graph::Graph;
use super::graph_file::{SavedRow, row_digest};
use super::partition::Partition;

/// Rows that are copied under one lock.
const BATCH: usize = 512;
/// A graph file is not used if more than one in this many of its rows is dead: the partition would be rebuilt at once.
const DEAD_SHARE: usize = 4;
/// The graph is saved again when more than one in this many of its rows is not in the file.
const UNSAVED_SHARE: usize = 8;

struct Rebuild {
    new: Partition,
    /// The slot that each row of the new partition had in the old one; `None` for a dead row.
    old_slots: Vec<Option<usize>>,
    /// Slots of the old partition that were copied so far.
    copied: usize,
}

/// Replaces a partition by one without dead rows and with a new graph; `stop` ends the work early.
pub(super) fn rebuild(partition: &RwLock<Partition>, stop: &AtomicBool) {
    let (loadable, live) = {
        let partition = partition.read();
        (partition.graph.is_none().then(|| partition.file.clone()).flatten(), partition.live())
    };
    let mut rebuild = Rebuild::of(&partition.read());
    let loaded = loadable.and_then(|file| file.load(rebuild.new.dimensions()));
    let from_file = loaded.is_some_and(|(graph, rows)| rebuild.use_saved(partition, graph, &rows));
    if !from_file {
        rebuild = Rebuild::of(&partition.read());
    }
    rebuild.copy(partition);
    if !from_file && live >= rebuild.new.graph_from && !rebuild.build_graph(stop) {
        return;
    }
    let saves = !from_file && !stop.load(Ordering::Relaxed);
    rebuild.replace(partition);
    if saves {
        save(partition);
    }
}

impl Rebuild {
    fn of(old: &Partition) -> Self {
        let mut new = Partition::new(old.dimensions(), old.graph_from, old.file.clone());
        new.reserve(old.live());
        Self { new, old_slots: Vec::with_capacity(old.live()), copied: 0 }
    }

    /// Puts the rows of a saved graph into the slots that the graph has for them. A row is dead if its entry is gone or
    /// has another embedding now. Returns whether enough rows are alive to use the graph.
    fn use_saved(&mut self, old: &RwLock<Partition>, graph: Graph, rows: &[SavedRow]) -> bool {
        let mut dead = 0;
        for batch in rows.chunks(BATCH) {
            let old = old.read();
            for row in batch {
                let slot = row.id.as_ref().and_then(|id| old.slot(id));
                match slot.filter(|&slot| row_digest(old.row(slot)) == row.digest) {
                    Some(slot) => self.take(&old, slot),
                    None => {
                        dead += 1;
                        self.new.put_dead();
                        self.old_slots.push(None);
                    }
                }
            }
        }
        self.new.graph = Some(Arc::new(graph));
        self.new.linked = rows.len();
        self.new.saved = rows.len();
        self.new.graph_from_file = true;
        dead * DEAD_SHARE <= rows.len() && self.new.rows_held() == rows.len()
    }

    /// Copies the living rows that the new partition does not have yet.
    fn copy(&mut self, old: &RwLock<Partition>) {
        loop {
            let old = old.read();
            let end = (self.copied + BATCH).min(old.rows_held());
            if self.copied == end {
                return;
            }
            self.copy_range(&old, self.copied..end);
        }
    }

    fn copy_range(&mut self, old: &Partition, slots: Range<usize>) {
        self.copied = slots.end;
        slots.filter(|&slot| old.is_alive(slot)).for_each(|slot| self.take(old, slot));
    }

    fn take(&mut self, old: &Partition, slot: usize) {
        let Some(id) = old.id(slot) else { return };
        let new_slot = self.new.put(id, old.row(slot), old.properties(slot));
        self.old_slots.resize(self.new.rows_held(), None);
        self.old_slots[new_slot] = Some(slot);
    }

    /// Inserts all rows into a new graph. Returns false if `stop` ended the work.
    fn build_graph(&mut self, stop: &AtomicBool) -> bool {
        let graph = Graph::new(self.new.rows_held());
        for slot in 0..self.new.rows_held() {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            graph.insert(slot, self.new.row(slot));
        }
        self.new.graph = Some(Arc::new(graph));
        self.new.linked = self.new.rows_held();
        true
    }

    /// Applies the changes that the old partition had meanwhile, and puts the new one in its place.
    fn replace(mut self, partition: &RwLock<Partition>) {
        let mut old = partition.write();
        for (slot, old_slot) in self.old_slots.iter().enumerate() {
            match *old_slot {
                Some(old_slot) if old.is_alive(old_slot) => {
                    self.new.set_properties(slot, old.properties(old_slot));
                }
                Some(_) => self.new.kill(slot),
                None => {}
            }
        }
        self.copy_range(&old, self.copied..old.rows_held());
        self.new.in_maintenance = old.in_maintenance;
        let replaced = std::mem::replace(&mut *old, self.new);
        drop(old);
        // Freeing a large graph takes a while, so it happens outside the lock.
        drop(replaced);
    }
}

/// Links the rows that the graph does not have yet into it; `stop` ends the work early.
pub(super) fn link_tail(partition: &RwLock<Partition>, stop: &AtomicBool) {
    let (graph, range) = {
        let partition = partition.read();
        let Some(graph) = partition.graph.clone() else { return };
        (graph, partition.linked..partition.rows_held())
    };
    let end = range.end;
    for start in range.step_by(BATCH) {
        let batch = start..(start + BATCH).min(end);
        let rows: Vec<Vec<f32>> = {
            let partition = partition.read();
            batch.clone().map(|slot| partition.row(slot).to_vec()).collect()
        };
        for (slot, row) in batch.zip(&rows) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            graph.insert(slot, row);
        }
    }
    let unsaved = {
        let mut partition = partition.write();
        partition.linked = end;
        end - partition.saved
    };
    if unsaved * UNSAVED_SHARE > end {
        save(partition);
    }
}

/// Saves the partition's graph. If it has none, removes its graph file.
fn save(partition: &RwLock<Partition>) {
    let (file, graph, linked) = {
        let partition = partition.read();
        (partition.file.clone(), partition.graph.clone(), partition.linked)
    };
    let Some(file) = file else { return };
    let Some(graph) = graph else { return file.remove() };
    let mut rows = Vec::with_capacity(linked);
    for start in (0..linked).step_by(BATCH) {
        let partition = partition.read();
        let saved =
            |slot| SavedRow { id: partition.id(slot).cloned(), digest: row_digest(partition.row(slot)) };
        rows.extend((start..(start + BATCH).min(linked)).map(saved));
    }
    file.save(&graph, rows);
    let mut partition = partition.write();
    partition.saved = linked;
    if partition.is_empty() {
        // The partition was emptied during the write, which removed its file.
        file.remove();
    }
}
