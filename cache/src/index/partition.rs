//! A partition: the embeddings of one scope and compatibility.
//!
//! The rows lie one after another in memory. A partition of many rows also has a graph over them. Rows are only
//! appended. A removed row stays in its slot, dead, until the partition is rebuilt.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::graph::{EF_SEARCH, Graph};
use super::graph_file::GraphFile;
use super::prompt_index::{Holding, IndexStats, SearchFilter};
use super::vectors::{ScoredRow, TopRows, dot};
use crate::entry::{Entry, EntryId};

/// Rows that may follow the graph's last row. A search scans them; when they are more, they are linked into the graph.
const MAX_TAIL: usize = 256;
/// A partition is rebuilt when more than one in this many of its rows is dead.
const DEAD_SHARE: usize = 4;
/// A partition with at most this many dead rows is never rebuilt for their sake.
const MIN_DEAD: usize = 64;
/// How often a graph search whose candidates qualify too rarely is repeated, with four times the `ef` each time. After
/// that the search scans all rows, which costs as much as a graph search with an `ef` some hundred times as large.
const WIDENINGS: usize = 2;

/// What a search filters rows by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RowProperties {
    guidance_scale: f32,
    /// Whether other pictures may be resumed from the entry's states.
    source: bool,
    /// Whether the entry's whole picture is stored.
    whole: bool,
}

impl RowProperties {
    pub(super) fn of(entry: &Entry) -> Self {
        Self { guidance_scale: entry.guidance_scale, source: entry.is_source(), whole: entry.is_whole() }
    }

    const NONE: Self = Self { guidance_scale: 0.0, source: false, whole: false };

    fn satisfy(&self, filter: &SearchFilter<'_>) -> bool {
        filter.guidance_scale.contains(&self.guidance_scale) && self.hold(filter.holding)
    }

    fn hold(&self, holding: Holding) -> bool {
        match holding {
            Holding::Anything => true,
            Holding::Source => self.source,
            Holding::WholePicture => self.whole,
        }
    }
}

/// A piece of maintenance that a partition needs.
pub(crate) enum Maintenance {
    /// Link the rows that follow the graph's last row into the graph.
    LinkTail,
    /// Copy the living rows to a new partition, with a graph if they are many.
    Rebuild,
}

pub(crate) struct Partition {
    dimensions: usize,
    rows: Vec<f32>,
    properties: Vec<RowProperties>,
    /// The entry of each slot; `None` if the row is dead.
    ids: Vec<Option<EntryId>>,
    slots: HashMap<EntryId, usize>,
    /// Living rows whose entries are sources, and those whose entries hold the whole picture.
    sources: usize,
    whole: usize,
    /// The graph of the first `linked` rows.
    pub(super) graph: Option<Arc<Graph>>,
    pub(super) linked: usize,
    /// Whether the graph was read from a file instead of built.
    pub(super) graph_from_file: bool,
    /// The file that the graph is saved in.
    pub(super) file: Option<GraphFile>,
    /// Rows of the graph that the file has.
    pub(super) saved: usize,
    /// The number of rows from which on the partition has a graph.
    pub(super) graph_from: usize,
    /// Whether the partition is in the maintenance thread's queue, or in its hands.
    pub(super) in_maintenance: bool,
}

impl Partition {
    pub(crate) fn new(dimensions: usize, graph_from: usize, file: Option<GraphFile>) -> Self {
        Self {
            dimensions,
            rows: Vec::new(),
            properties: Vec::new(),
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
            in_maintenance: false,
        }
    }

    /// Marks the partition as being in maintenance, if it needs some and is not marked yet. Returns whether it did.
    pub(crate) fn begin_maintenance(&mut self) -> bool {
        let needed = !self.in_maintenance && self.maintenance().is_some();
        self.in_maintenance |= needed;
        needed
    }

    pub(crate) fn end_maintenance(&mut self) {
        self.in_maintenance = false;
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

    pub(super) fn properties(&self, slot: usize) -> RowProperties {
        self.properties[slot]
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

    /// Living and dead rows.
    pub(super) fn rows_held(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn reserve(&mut self, rows: usize) {
        self.rows.reserve(rows * self.dimensions);
        self.properties.reserve(rows);
        self.ids.reserve(rows);
        self.slots.reserve(rows);
    }

    /// Adds a row, in place of the entry's older one. `embedding` has the partition's length. Returns the row's slot.
    pub(super) fn put(&mut self, id: &EntryId, embedding: &[f32], properties: RowProperties) -> usize {
        if let Some(&slot) = self.slots.get(id) {
            if self.row(slot) == embedding {
                self.set_properties(slot, properties);
                return slot;
            }
            self.kill(slot);
        }
        let slot = self.ids.len();
        self.slots.insert(id.clone(), slot);
        self.ids.push(Some(id.clone()));
        self.properties.push(RowProperties::NONE);
        self.rows.extend_from_slice(embedding);
        self.set_properties(slot, properties);
        slot
    }

    /// Sets the properties of a living row. The graph does not contain them, so it stays valid.
    pub(super) fn set_properties(&mut self, slot: usize, properties: RowProperties) {
        let before = std::mem::replace(&mut self.properties[slot], properties);
        self.sources = self.sources + usize::from(properties.source) - usize::from(before.source);
        self.whole = self.whole + usize::from(properties.whole) - usize::from(before.whole);
    }

    /// Adds a dead row, so that the rows after it keep the slots that a saved graph has for them.
    pub(super) fn put_dead(&mut self) {
        self.ids.push(None);
        self.properties.push(RowProperties::NONE);
        self.rows.resize(self.rows.len() + self.dimensions, 0.0);
    }

    pub(super) fn kill(&mut self, slot: usize) {
        if let Some(id) = self.ids[slot].take() {
            self.slots.remove(&id);
            self.set_properties(slot, RowProperties::NONE);
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

    /// The entries of the `n` nearest living rows that pass `filter`, with their similarities, best first.
    pub(crate) fn nearest(&self, query: &[f32], filter: &SearchFilter<'_>, n: usize) -> Vec<(EntryId, f32)> {
        let from_graph = self.graph.as_ref().and_then(|graph| self.nearest_in_graph(graph, query, filter, n));
        let (mut best, scanned_from) = match from_graph {
            Some(best) => (best, self.linked),
            None => (TopRows::new(n), 0),
        };
        for slot in (scanned_from..self.ids.len()).filter(|&slot| self.qualifies(slot, filter)) {
            best.offer(ScoredRow { slot, similarity: dot(self.row(slot), query) });
        }
        let named = |row: ScoredRow| Some((self.ids[row.slot].clone()?, row.similarity.clamp(-1.0, 1.0)));
        best.into_rows().into_iter().filter_map(named).collect()
    }

    /// The nearest rows that a search of the graph finds. `None` if too few of its candidates were alive and passed the
    /// filter: the graph may then have missed nearer rows that do, so the caller must scan.
    fn nearest_in_graph(
        &self,
        graph: &Graph,
        query: &[f32],
        filter: &SearchFilter<'_>,
        n: usize,
    ) -> Option<TopRows> {
        let enough = n.min(self.living(filter.holding)).min(self.linked);
        let mut ef = EF_SEARCH.max(2 * n);
        for _ in 0..=WIDENINGS {
            let mut best = TopRows::new(n);
            let qualifies = |row: &ScoredRow| row.slot < self.linked && self.qualifies(row.slot, filter);
            graph.search(query, ef).filter(qualifies).for_each(|row| best.offer(row));
            if best.len() >= enough {
                return Some(best);
            }
            ef *= 4;
        }
        None
    }

    /// The number of living rows whose entries hold `holding`.
    fn living(&self, holding: Holding) -> usize {
        match holding {
            Holding::Anything => self.slots.len(),
            Holding::Source => self.sources,
            Holding::WholePicture => self.whole,
        }
    }

    fn qualifies(&self, slot: usize, filter: &SearchFilter<'_>) -> bool {
        self.ids[slot].is_some() && self.properties[slot].satisfy(filter)
    }

    /// The maintenance that the partition needs next.
    pub(crate) fn maintenance(&self) -> Option<Maintenance> {
        let (live, dead) = (self.slots.len(), self.ids.len() - self.slots.len());
        if dead > MIN_DEAD && dead * DEAD_SHARE > self.ids.len() {
            return Some(Maintenance::Rebuild);
        }
        match &self.graph {
            None if live >= self.graph_from => Some(Maintenance::Rebuild),
            Some(_) if self.ids.len() - self.linked > MAX_TAIL => Some(Maintenance::LinkTail),
            _ => None,
        }
    }
}
