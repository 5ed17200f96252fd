//! The calibrated policy: resumes the latest state whose measured loss bound is within the operator's limit, and of equally
//! late states the one with the smallest bound.

use std::sync::Arc;

use super::calibration::{Calibration, ShareLoss};
use super::config::CalibratedConfig;
use super::{Decision, NeighbourCounts, Query, ReusePolicy, SAME_PROMPT, SAME_SHARE, pick, usable};
use crate::content::Difference;
use crate::entry::{Entry, Kept};
use crate::index::Neighbour;

/// Considers all stored states of the nearest entries.
#[derive(Debug, Clone)]
pub struct Calibrated {
    config: CalibratedConfig,
    calibrations: Vec<Arc<Calibration>>,
}

/// A state, the upper bound of the loss of resuming it, and the mean loss of states like it.
struct StateCandidate<'a> {
    neighbour: &'a Neighbour,
    state: &'a Kept,
    loss: f32,
    expected: f32,
}

impl Calibrated {
    pub(super) fn new(config: CalibratedConfig, calibrations: Vec<Arc<Calibration>>) -> Self {
        Self { config, calibrations }
    }

    /// The calibration table for resuming this entry's states.
    fn calibration(&self, query: &Query<'_>, entry: &Entry) -> Option<&Calibration> {
        self.calibrations.iter().map(Arc::as_ref).find(|table| table.fits(query, entry))
    }

    /// The usable states of a neighbour whose shares were measured.
    fn candidates<'a>(&self, query: &Query<'_>, neighbour: &'a Neighbour) -> Vec<StateCandidate<'a>> {
        let entry = &neighbour.entry;
        let Some(table) = self.calibration(query, entry) else { return Vec::new() };
        let difference = Difference::between(&entry.content, query.content);
        let losses = table.losses(query.embedding, &entry.embedding, &difference);
        // The loss at a share between two measured ones is at most the loss at the larger one.
        let loss = |share: f32| losses.iter().find(|loss| share <= loss.share + SAME_SHARE);
        let max_share = self.max_share(query, neighbour);
        let allowed = self.config.least_share - SAME_SHARE..=max_share + SAME_SHARE;
        usable(query, entry)
            .filter(|state| allowed.contains(&state.share))
            .filter_map(|state| {
                let ShareLoss { expected, bound, .. } = *loss(state.share)?;
                Some(StateCandidate { neighbour, state, loss: bound, expected })
            })
            .collect()
    }

    /// The largest share that a request may skip so that its picture differs from the stored one.
    ///
    /// A request for the stored prompt itself, with another seed, must not resume any of its states: without added noise it
    /// would paint the stored picture again. A request without a seed is limited by the setting `variety`.
    fn max_share(&self, query: &Query<'_>, neighbour: &Neighbour) -> f32 {
        match query.seeded {
            _ if neighbour.similarity >= SAME_PROMPT => 0.0,
            false => self.config.variety,
            true => 1.0,
        }
    }
}

impl ReusePolicy for Calibrated {
    fn name(&self) -> &'static str {
        "calibrated"
    }

    fn neighbours(&self) -> NeighbourCounts {
        NeighbourCounts { sources: self.config.neighbours, whole_pictures: 0 }
    }

    fn decide(&self, query: &Query<'_>, neighbours: &[Neighbour]) -> Decision {
        let most = self.config.max_quality_loss;
        let candidates: Vec<_> = neighbours.iter().flat_map(|n| self.candidates(query, n)).collect();
        let within = || {
            let allowed = |of: &&StateCandidate<'_>| of.loss <= most && of.expected <= query.most_loss;
            candidates.iter().filter(allowed)
        };
        let Some(share) = within().map(|candidate| candidate.state.share).max_by(f32::total_cmp) else {
            return Decision::miss(self.why_none(query, neighbours, &candidates));
        };
        let latest = || within().filter(|candidate| candidate.state.share >= share - SAME_SHARE);
        // Of many states the latest one within the limit is often one whose loss is underestimated. Taking the smallest
        // bound among equally late states reduces that risk.
        let least = latest().map(|candidate| candidate.loss).fold(f32::INFINITY, f32::min);
        // Without a seed only different sources make two pictures of one prompt differ, so any of them may be chosen.
        let any = !query.seeded;
        let ties: Vec<_> = latest().filter(|candidate| any || candidate.loss <= least).collect();
        let count = ties.len();
        match pick(ties, query.chance) {
            Some(StateCandidate { neighbour, state, loss, expected }) => {
                let why = format!(
                    "a share of {} is expected to lose at most {loss:.4} of {most}; {count} of {} pictures allow it",
                    state.share,
                    neighbours.len()
                );
                Decision::state(neighbour, state, Some(*expected), why)
            }
            None => Decision::miss(self.why_none(query, neighbours, &candidates)),
        }
    }
}

impl Calibrated {
    fn why_none(
        &self,
        query: &Query<'_>,
        neighbours: &[Neighbour],
        candidates: &[StateCandidate<'_>],
    ) -> String {
        if neighbours.is_empty() {
            return "the cache holds nothing near".into();
        }
        if neighbours.iter().all(|n| self.calibration(query, &n.entry).is_none()) {
            return "no calibration table was measured for such pictures (model, embedder, latent space, noise \
                    schedule, size, guidance scale, steps, the source's plan, steered or plain resume)"
                .into();
        }
        match candidates.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)) {
            None => {
                "no near picture keeps a state of a measured share, worth its while, that this plan can use"
                    .into()
            }
            Some(StateCandidate { neighbour, state, loss, expected }) => format!(
                "the safest state, a share of {} of a picture of similarity {:.4}, may lose {loss:.4} and is \
                 expected to lose {expected:.4}; allowed are {} and {:.4}",
                state.share, neighbour.similarity, self.config.max_quality_loss, query.most_loss
            ),
        }
    }
}
