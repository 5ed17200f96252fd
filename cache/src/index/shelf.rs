//! The embeddings of one scope and compatibility: rows in one piece of memory, and a graph over them once
//! they are many. Rows are only ever appended; a removed one stays behind, dead, until the shelf is rebuilt.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::RwLock;

use super::graph::{Graph, SEARCH_BREADTH};
use super::renewal::{absorb, rebuild};
use super::saved::GraphFile;
use super::vectors::{Best, Hit, dot};
use super::{Holding, IndexStats, Sought};
use crate::entry::{Entry, EntryId};

/// Rows behind the graph's end that are scanned beside it before they are linked in.
const TAIL: usize = 256;
/// A shelf is rebuilt when more than one of this many rows is dead.
const DEAD_SHARE: usize = 4;
/// Dead rows that are never worth a rebuild.
const DEAD_LEAST: usize = 64;
/// How often a search of the graph is widened, fourfold each time, when too few of its candidates qualify. Then
/// everything is scanned, which costs as much as a search of some hundred times as many candidates.
const WIDENINGS: usize = 2;

/// What a search asks of a row besides its embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Traits {
    guidance_scale: f32,
    /// Whether other pictures may be resumed from the entry's states.
    source: bool,
    /// Whether the entry's whole picture is kept.
    whole: bool,
}

impl Traits {
    pub(super) fn of(entry: &Entry) -> Self {
        Self { guidance_scale: entry.guidance_scale, source: entry.is_source(), whole: entry.is_whole() }
    }

    const NONE: Self = Self { guidance_scale: 0.0, source: false, whole: false };

    fn satisfy(&self, sought: &Sought<'_>) -> bool {
        sought.guidance_scale.contains(&self.guidance_scale) && self.hold(sought.holding)
    }

    fn hold(&self, holding: Holding) -> bool {
        match holding {
            Holding::Anything => true,
            Holding::Source => self.source,
            Holding::WholePicture => self.whole,
        }
    }
}

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
    traits: Vec<Traits>,
    /// `None`: dead.
    ids: Vec<Option<EntryId>>,
    slots: HashMap<EntryId, usize>,
    /// Living rows of sources, and of whole pictures.
    sources: usize,
    whole: usize,
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
            traits: Vec::new(),
            ids: Vec::new(),
            slots: HashMap::new(),
            sources: 0,
            whole: 0,
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

    pub(super) fn traits(&self, slot: usize) -> Traits {
        self.traits[slot]
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
        self.traits.reserve(rows);
        self.ids.reserve(rows);
        self.slots.reserve(rows);
    }

    /// Adds a row of the shelf's own length, in place of the entry's older one. Returns where it is.
    pub(super) fn put(&mut self, id: &EntryId, embedding: &[f32], traits: Traits) -> usize {
        if let Some(&slot) = self.slots.get(id) {
            if self.row(slot) == embedding {
                self.set_traits(slot, traits);
                return slot;
            }
            self.kill(slot);
        }
        let place = self.ids.len();
        self.slots.insert(id.clone(), place);
        self.ids.push(Some(id.clone()));
        self.traits.push(Traits::NONE);
        self.rows.extend_from_slice(embedding);
        self.set_traits(place, traits);
        place
    }

    /// Of a living row. The graph does not know of them, so they may change under it.
    pub(super) fn set_traits(&mut self, slot: usize, traits: Traits) {
        let before = std::mem::replace(&mut self.traits[slot], traits);
        self.sources = self.sources + usize::from(traits.source) - usize::from(before.source);
        self.whole = self.whole + usize::from(traits.whole) - usize::from(before.whole);
    }

    /// Adds a row that nothing is found by, to keep the next ones in their places.
    pub(super) fn put_dead(&mut self) {
        self.ids.push(None);
        self.traits.push(Traits::NONE);
        self.rows.resize(self.rows.len() + self.dimensions, 0.0);
    }

    pub(super) fn kill(&mut self, slot: usize) {
        if let Some(id) = self.ids[slot].take() {
            self.slots.remove(&id);
            self.set_traits(slot, Traits::NONE);
        }
    }

    pub(crate) fn remove(&mut self, id: &EntryId) {
        if let Some(slot) = self.slot(id) {
            self.kill(slot);
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

    /// The `n` nearest living rows of what is sought, best first.
    pub(crate) fn nearest(&self, query: &[f32], sought: &Sought<'_>, n: usize) -> Vec<(EntryId, f32)> {
        let from_graph = self.graph.as_ref().and_then(|graph| self.nearest_of(graph, query, sought, n));
        let (mut best, scanned_from) = match from_graph {
            Some(best) => (best, self.linked),
            None => (Best::new(n), 0),
        };
        for slot in (scanned_from..self.ids.len()).filter(|&slot| self.qualifies(slot, sought)) {
            best.offer(Hit { slot, similarity: dot(self.row(slot), query) });
        }
        let named = |hit: Hit| Some((self.ids[hit.slot].clone()?, hit.similarity.clamp(-1.0, 1.0)));
        best.into_hits().into_iter().filter_map(named).collect()
    }

    /// What the graph finds of its own rows. `None` where its candidates were dead or not what is sought: nearer rows
    /// may be hidden behind them, and only a scan is sure.
    fn nearest_of(&self, graph: &Graph, query: &[f32], sought: &Sought<'_>, n: usize) -> Option<Best> {
        let enough = n.min(self.living(sought.holding)).min(self.linked);
        let mut breadth = SEARCH_BREADTH.max(2 * n);
        for _ in 0..=WIDENINGS {
            let mut best = Best::new(n);
            let qualifies = |hit: &Hit| hit.slot < self.linked && self.qualifies(hit.slot, sought);
            graph.near(query, breadth).filter(qualifies).for_each(|hit| best.offer(hit));
            if best.len() >= enough {
                return Some(best);
            }
            breadth *= 4;
        }
        None
    }

    /// Living rows that hold something.
    fn living(&self, holding: Holding) -> usize {
        match holding {
            Holding::Anything => self.slots.len(),
            Holding::Source => self.sources,
            Holding::WholePicture => self.whole,
        }
    }

    fn qualifies(&self, slot: usize, sought: &Sought<'_>) -> bool {
        self.ids[slot].is_some() && self.traits[slot].satisfy(sought)
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
