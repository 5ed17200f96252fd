//! The exact look-up: a table in memory from scope and specification to the stored picture. It does not block.

use std::collections::HashMap;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, EntryId, PaintedPlan, PictureKey, Scope, SpecificationHash};

/// A stored picture of exactly the specification that was looked up.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct ExactHit {
    /// The picture's entry.
    pub entry: EntryId,
    /// The plan that painted it.
    pub plan: PaintedPlan,
    /// See [`Entry::expected_quality`].
    pub expected_quality: Option<f32>,
    /// The key of its file; `None` if only the finished latent is stored, which a worker has to decode.
    pub picture: Option<PictureKey>,
    /// When it was painted, in seconds since 1970.
    pub created: u64,
}

impl ExactHit {
    /// The entry as a hit; `None` if its whole picture is not stored.
    pub fn of(entry: &Entry) -> Option<Self> {
        entry.is_whole().then(|| Self {
            entry: entry.id.clone(),
            plan: entry.plan.clone(),
            expected_quality: entry.expected_quality,
            picture: entry.picture_key(),
            created: entry.created,
        })
    }

    /// Whether the picture's expected quality is at least `quality`, from 0 to 1. An unknown quality reaches 0 only.
    pub fn reaches(&self, quality: f32) -> bool {
        reaches(self.expected_quality, quality)
    }
}

/// See [`ExactHit::reaches`].
pub(crate) fn reaches(expected: Option<f32>, wanted: f32) -> bool {
    wanted <= 0.0 || expected.is_some_and(|expected| expected >= wanted)
}

/// The entry of a specification.
struct ExactRow {
    id: EntryId,
    /// `None` if the entry's whole picture is not stored.
    hit: Option<ExactHit>,
}

/// The rows by scope and specification.
#[derive(Default)]
pub(super) struct ExactTable(RwLock<HashMap<Scope, HashMap<SpecificationHash, ExactRow>>>);

impl ExactTable {
    pub(super) fn get(&self, scope: &Scope, specification: &SpecificationHash) -> Option<ExactHit> {
        self.0.read().get(scope)?.get(specification)?.hit.clone()
    }

    /// The entry of a specification, even if its whole picture is not stored.
    pub(super) fn holder(&self, scope: &Scope, specification: &SpecificationHash) -> Option<EntryId> {
        Some(self.0.read().get(scope)?.get(specification)?.id.clone())
    }

    /// Puts an entry in the place of the one that had its specification. Readers find one of the two at every moment.
    pub(super) fn put(&self, entry: &Entry) {
        let row = ExactRow { id: entry.id.clone(), hit: ExactHit::of(entry) };
        let mut scopes = self.0.write();
        match scopes.get_mut(&entry.scope) {
            Some(of_scope) => drop(of_scope.insert(entry.specification, row)),
            None => drop(scopes.insert(entry.scope.clone(), HashMap::from([(entry.specification, row)]))),
        }
    }

    /// Removes an entry, unless another one has its specification now.
    pub(super) fn remove(&self, entry: &Entry) {
        let mut scopes = self.0.write();
        let Some(of_scope) = scopes.get_mut(&entry.scope) else { return };
        if of_scope.get(&entry.specification).is_some_and(|row| row.id == entry.id) {
            of_scope.remove(&entry.specification);
        }
        if of_scope.is_empty() {
            scopes.remove(&entry.scope);
        }
    }

    /// Replaces all rows by those of `new` at once.
    pub(super) fn replace(&self, new: Self) {
        let old = std::mem::replace(&mut *self.0.write(), new.0.into_inner());
        // Freeing a large table takes a while, so it happens outside the lock.
        drop(old);
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
