//! Pictures by scope and specification, in memory: an exact look-up neither blocks nor waits.

use std::collections::HashMap;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, EntryId, PaintedPlan, PictureKey, Scope, SpecificationHash};

/// A stored picture of the very specification that was asked for.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct ExactHit {
    /// Its entry.
    pub entry: EntryId,
    /// The plan that painted it.
    pub plan: PaintedPlan,
    /// See [`Entry::expected_quality`].
    pub expected_quality: Option<f32>,
    /// Names its file; `None` where only the finished latent is kept, which a worker has to decode.
    pub picture: Option<PictureKey>,
    /// When it was painted, in seconds since 1970.
    pub created: u64,
}

impl ExactHit {
    /// The entry as a hit; `None` where its whole picture is not kept.
    pub fn of(entry: &Entry) -> Option<Self> {
        entry.is_whole().then(|| Self {
            entry: entry.id.clone(),
            plan: entry.plan.clone(),
            expected_quality: entry.expected_quality,
            picture: entry.picture_key(),
            created: entry.created,
        })
    }

    /// Whether the picture is expected to be at least this good, from 0 to 1. One whose quality is not known is good
    /// enough only where nothing is asked.
    pub fn reaches(&self, quality: f32) -> bool {
        reaches(self.expected_quality, quality)
    }
}

/// See [`ExactHit::reaches`].
pub(crate) fn reaches(expected: Option<f32>, wanted: f32) -> bool {
    wanted <= 0.0 || expected.is_some_and(|expected| expected >= wanted)
}

/// The entry that has a specification, and what there is to be found of it.
struct Held {
    id: EntryId,
    hit: Option<ExactHit>,
}

/// By scope and specification.
#[derive(Default)]
pub(super) struct ExactTable(RwLock<HashMap<Scope, HashMap<SpecificationHash, Held>>>);

impl ExactTable {
    pub(super) fn get(&self, scope: &Scope, specification: &SpecificationHash) -> Option<ExactHit> {
        self.0.read().get(scope)?.get(specification)?.hit.clone()
    }

    /// The entry that has a specification, whether or not its whole picture is kept.
    pub(super) fn holder(&self, scope: &Scope, specification: &SpecificationHash) -> Option<EntryId> {
        Some(self.0.read().get(scope)?.get(specification)?.id.clone())
    }

    /// Puts an entry in the place of whichever has its specification, which no reader finds missing meanwhile.
    pub(super) fn put(&self, entry: &Entry) {
        let held = Held { id: entry.id.clone(), hit: ExactHit::of(entry) };
        let mut scopes = self.0.write();
        match scopes.get_mut(&entry.scope) {
            Some(of_scope) => drop(of_scope.insert(entry.specification, held)),
            None => drop(scopes.insert(entry.scope.clone(), HashMap::from([(entry.specification, held)]))),
        }
    }

    /// Takes an entry out, unless another one has its specification by now.
    pub(super) fn remove(&self, entry: &Entry) {
        let mut scopes = self.0.write();
        let Some(of_scope) = scopes.get_mut(&entry.scope) else { return };
        if of_scope.get(&entry.specification).is_some_and(|held| held.id == entry.id) {
            of_scope.remove(&entry.specification);
        }
        if of_scope.is_empty() {
            scopes.remove(&entry.scope);
        }
    }

    /// Holds what another one holds, from one moment to the next.
    pub(super) fn replace(&self, by: Self) {
        let outlived = std::mem::replace(&mut *self.0.write(), by.0.into_inner());
        // A large one takes a while to free: not under the lock.
        drop(outlived);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_quality_meets_no_demand() {
        assert!(reaches(None, 0.0) && !reaches(None, 0.1));
        assert!(reaches(Some(0.9), 0.9) && !reaches(Some(0.9), 0.95));
    }
}
