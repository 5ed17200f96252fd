//! The semantic policy: GPTCache's, with a gate. It returns the stored picture of a prompt with the same meaning.

use super::config::SemanticConfig;
use super::{Decision, NeighbourCounts, Query, ReusePolicy, pick};
use crate::content::Synonyms;
use crate::index::{Neighbour, reaches};

/// Similarities that differ by at most this are equal.
const SAME_SIMILARITY: f32 = 1e-6;

/// Returns the whole picture if the similarity reaches the threshold and the content words are the same.
#[derive(Debug, Clone)]
pub struct Semantic {
    config: SemanticConfig,
    synonyms: Synonyms,
}

impl Semantic {
    pub(super) fn new(config: SemanticConfig, synonyms: Synonyms) -> Self {
        Self { config, synonyms }
    }

    /// The reason why a neighbour's picture may not be returned; `None` if it may.
    fn refusal(&self, query: &Query<'_>, neighbour: &Neighbour) -> Option<String> {
        let similarity = neighbour.similarity;
        if !query.whole {
            return Some("the request wants another picture than its first".into());
        }
        // Models with the same latent space share states, but not finished pictures.
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
        (!neighbour.entry.is_whole()).then(|| "the finished picture is no longer stored".into())
    }
}

impl ReusePolicy for Semantic {
    fn name(&self) -> &'static str {
        "semantic"
    }

    fn neighbours(&self) -> NeighbourCounts {
        // The entry with the same words need not be the nearest one.
        NeighbourCounts { sources: 0, whole_pictures: 8 }
    }

    fn decide(&self, query: &Query<'_>, neighbours: &[Neighbour]) -> Decision {
        let Some(nearest) = neighbours.first() else {
            return Decision::miss("the cache holds nothing near");
        };
        let passing: Vec<_> = neighbours.iter().filter(|n| self.refusal(query, n).is_none()).collect();
        let best = passing.iter().map(|n| n.similarity).fold(f32::NEG_INFINITY, f32::max);
        // All passing pictures mean the same. Without a seed any of them is chosen, for variety.
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
