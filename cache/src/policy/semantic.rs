//! GPTCache's policy with a gate: the stored picture itself where two prompts mean the same.

use super::config::SemanticConfig;
use super::{Decision, NeighbourCounts, Query, ReusePolicy, pick};
use crate::content::Synonyms;
use crate::index::{Neighbour, reaches};

/// Similarities this close are one.
const SAME_SIMILARITY: f32 = 1e-6;

/// A similarity above the threshold, and the same content words, bring back the whole picture.
#[derive(Debug, Clone)]
pub struct Semantic {
    config: SemanticConfig,
    synonyms: Synonyms,
}

impl Semantic {
    pub(super) fn new(config: SemanticConfig, synonyms: Synonyms) -> Self {
        Self { config, synonyms }
    }

    /// Why a neighbour's picture may not be returned whole; `None` if it may.
    fn refusal(&self, query: &Query<'_>, neighbour: &Neighbour) -> Option<String> {
        let similarity = neighbour.similarity;
        // A state may go on under another model of its latent space; a finished picture is the other model's.
        if !query.whole {
            return Some("the request wants another picture than its first".into());
        }
        if query.model != neighbour.entry.model {
            return Some(format!("it was painted by the model {:?}", neighbour.entry.model));
        }
        if similarity.is_nan() || similarity < self.config.threshold {
            return Some(format!(
                "similarity {similarity:.4} is below the threshold of {}",
                self.config.threshold
            ));
        }
        if self.config.content_gate && !self.synonyms.same_content(query.content, &neighbour.entry.content) {
            return Some(format!("similarity {similarity:.4} suffices, but the content words differ"));
        }
        if !reaches(neighbour.entry.expected_quality, query.least_quality) {
            return Some(format!("its quality does not reach the {} that is asked for", query.least_quality));
        }
        (!neighbour.entry.is_whole()).then(|| "the finished picture is no longer kept".into())
    }
}

impl ReusePolicy for Semantic {
    fn name(&self) -> &'static str {
        "semantic"
    }

    fn neighbours(&self) -> NeighbourCounts {
        // The same words need not be the nearest: a few others may be as near.
        NeighbourCounts { sources: 0, whole_pictures: 8 }
    }

    fn decide(&self, query: &Query<'_>, neighbours: &[Neighbour]) -> Decision {
        let Some(nearest) = neighbours.first() else {
            return Decision::miss("the cache holds nothing near");
        };
        let passing: Vec<_> = neighbours.iter().filter(|n| self.refusal(query, n).is_none()).collect();
        let best = passing.iter().map(|n| n.similarity).fold(f32::NEG_INFINITY, f32::max);
        // All of them mean the same. Without a seed any one will do, and not always the same one.
        let least = if query.seeded { best - SAME_SIMILARITY } else { f32::NEG_INFINITY };
        let ties = passing.into_iter().filter(|n| n.similarity >= least).collect();
        let Some(Neighbour { entry, similarity }) = pick(ties, query.chance) else {
            return Decision::miss(self.refusal(query, nearest).unwrap_or_default());
        };
        let gate = if self.config.content_gate { " and the content words are the same" } else { "" };
        let why =
            format!("similarity {similarity:.4} reaches the threshold of {}{gate}", self.config.threshold);
        Decision::Semantic { entry: entry.id.clone(), similarity: *similarity, why }
    }
}
