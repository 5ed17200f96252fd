//! The embeddings of one scope and compatibility: rows in one piece of memory, and a graph over them once
//! they are many. Rows are only ever appended; a removed one stays behind, dead, until the shelf is rebuilt.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::RwLock;

use super::IndexStats;
use super::graph::Graph;
use super::renewal::{absorb, rebuild};
use super::saved::GraphFile;
use super::vectors::{Best, Hit, dot};
use crate::entry::EntryId;

/// Rows behind the graph's end that are scanned beside it before they are linked in.
const TAIL: usize = 256;
/// A shelf is rebuilt when more than one of this many rows is dead.
const DEAD_SHARE: usize = 4;
/// Dead rows that are never worth a rebuild.
const DEAD_LEAST: usize = 64;

/// What must be done to a shelf besides serving it.
pub(crate) enum Chore {
    /// Link the tail into the graph.
    Absorb,
    /// Copy the living rows to a new shelf, with a graph where they are many.
    Rebuild,
}

pub(crate) struct Shelf {
    dimensions: usize,
    rows: Vec<f32>,
    guidance_scales: Vec<f32>,
    /// `None`: dead.
    ids: Vec<Option<EntryId>>,
    slots: HashMap<EntryId, usize>,
    /// Holds the first `linked` rows.
    pub(super) graph: Option<Arc<Graph>>,
    pub(super) linked: usize,
    /// Whether the graph was read from a file.
    pub(super) graph_from_file: bool,
    /// Where the graph is saved.
    pub(super) file: Option<GraphFile>,
    /// Rows of the graph that were saved.
    pub(super) saved: usize,
    /// Rows from which on a graph is faster than a scan.
    pub(super) graph_from: usize,
    /// Whether somebody looks after the shelf, or is about to.
    pub(super) tended: bool,
}

impl Shelf {
    pub(crate) fn new(dimensions: usize, graph_from: usize, file: Option<GraphFile>) -> Self {
        Self {
            dimensions,
            rows: Vec::new(),
            guidance_scales: Vec::new(),
            ids: Vec::new(),
            slots: HashMap::new(),
            graph: None,
            linked: 0,
            graph_from_file: false,
            file,
            saved: 0,
            graph_from,
            tended: false,
        }
    }

    /// Whether the shelf needs looking after and nobody is on the way; now somebody is.
    pub(crate) fn call_gardener(&mut self) -> bool {
        let needed = !self.tended && self.chore().is_some();
        self.tended |= needed;
        needed
    }

    pub(crate) fn gardener_left(&mut self) {
        self.tended = false;
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn has_graph(&self) -> bool {
        self.graph.is_some()
    }

    pub(super) fn row(&self, slot: usize) -> &[f32] {
        &self.rows[slot * self.dimensions..(slot + 1) * self.dimensions]
    }

    pub(super) fn id(&self, slot: usize) -> Option<&EntryId> {
        self.ids[slot].as_ref()
    }

    pub(super) fn guidance_scale(&self, slot: usize) -> f32 {
        self.guidance_scales[slot]
    }

    pub(super) fn is_alive(&self, slot: usize) -> bool {
        self.ids[slot].is_some()
    }

    pub(super) fn slot(&self, id: &EntryId) -> Option<usize> {
        self.slots.get(id).copied()
    }

    /// Living rows.
    pub(super) fn live(&self) -> usize {
        self.slots.len()
    }

    /// Living and dead ones.
    pub(super) fn rows_held(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn reserve(&mut self, rows: usize) {
        self.rows.reserve(rows * self.dimensions);
        self.guidance_scales.reserve(rows);
        self.ids.reserve(rows);
        self.slots.reserve(rows);
    }

    /// Adds a row of the shelf's own length, in place of the entry's older one. Returns where it is.
    pub(crate) fn put(&mut self, id: &EntryId, embedding: &[f32], guidance_scale: f32) -> usize {
        let place = self.ids.len();
        if let Some(&slot) = self.slots.get(id) {
            if self.row(slot) == embedding && self.guidance_scales[slot] == guidance_scale {
                return slot;
            }
            self.ids[slot] = None;
        }
        self.slots.insert(id.clone(), place);
        self.ids.push(Some(id.clone()));
        self.guidance_scales.push(guidance_scale);
        self.rows.extend_from_slice(embedding);
        place
    }

    /// Adds a row that nothing is found by, to keep the next ones in their places.
    pub(super) fn put_dead(&mut self) {
        self.ids.push(None);
        self.guidance_scales.push(0.0);
        self.rows.resize(self.rows.len() + self.dimensions, 0.0);
    }

    pub(super) fn kill(&mut self, slot: usize) {
        if let Some(id) = self.ids[slot].take() {
            self.slots.remove(&id);
        }
    }

    pub(crate) fn remove(&mut self, id: &EntryId) {
        if let Some(slot) = self.slots.remove(id) {
            self.ids[slot] = None;
        }
    }

    /// Removes all rows but those of `ids`.
    pub(crate) fn keep(&mut self, ids: &HashSet<EntryId>) {
        let gone: Vec<EntryId> = self.slots.keys().filter(|id| !ids.contains(*id)).cloned().collect();
        gone.iter().for_each(|id| self.remove(id));
    }

    pub(crate) fn count_into(&self, stats: &mut IndexStats) {
        stats.rows += self.ids.len() as u64;
        stats.tombstones += (self.ids.len() - self.slots.len()) as u64;
        stats.in_graphs += self.linked as u64;
        stats.graphs += u64::from(self.has_graph());
        stats.graphs_loaded += u64::from(self.graph_from_file);
    }

    /// The `n` nearest living rows with a guidance scale in the range, best first.
    pub(crate) fn nearest(
        &self,
        query: &[f32],
        guidance_scale: &RangeInclusive<f32>,
        n: usize,
    ) -> Vec<(EntryId, f32)> {
        let mut best = Best::new(n);
        let mut scanned_from = 0;
        if let Some(graph) = &self.graph {
            let fits = |hit: &Hit| hit.slot < self.linked && self.fits(hit.slot, guidance_scale);
            graph.near(query, n).filter(fits).for_each(|hit| best.offer(hit));
            // Where the graph's candidates were dead or of another guidance scale, nearer rows may be hidden behind
            // them: only a scan is sure.
            match best.len() < n.min(self.linked) {
                true => best = Best::new(n),
                false => scanned_from = self.linked,
            }
        }
        self.offer_rows(&mut best, scanned_from..self.ids.len(), query, guidance_scale);
        let named = |hit: Hit| Some((self.ids[hit.slot].clone()?, hit.similarity.clamp(-1.0, 1.0)));
        best.into_hits().into_iter().filter_map(named).collect()
    }

    fn fits(&self, slot: usize, guidance_scale: &RangeInclusive<f32>) -> bool {
        self.ids[slot].is_some() && guidance_scale.contains(&self.guidance_scales[slot])
    }

    fn offer_rows(
        &self,
        best: &mut Best,
        slots: std::ops::Range<usize>,
        query: &[f32],
        guidance_scale: &RangeInclusive<f32>,
    ) {
        for slot in slots.filter(|&slot| self.fits(slot, guidance_scale)) {
            best.offer(Hit { slot, similarity: dot(self.row(slot), query) });
        }
    }

    /// What the shelf needs next.
    pub(crate) fn chore(&self) -> Option<Chore> {
        let (live, dead) = (self.slots.len(), self.ids.len() - self.slots.len());
        if dead > DEAD_LEAST && dead * DEAD_SHARE > self.ids.len() {
            return Some(Chore::Rebuild);
        }
        match &self.graph {
            None if live >= self.graph_from => Some(Chore::Rebuild),
            Some(_) if self.ids.len() - self.linked > TAIL => Some(Chore::Absorb),
            _ => None,
        }
    }
}

/// Does what a shelf needs, without keeping its readers or its writer waiting for long; `stop` ends it early.
pub(crate) fn tend(shelf: &RwLock<Shelf>, chore: Chore, stop: &AtomicBool) {
    match chore {
        Chore::Absorb => absorb(shelf, stop),
        Chore::Rebuild => rebuild(shelf, stop),
    }
}
