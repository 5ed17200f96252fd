//! Calibration tables: bounds of the quality loss of a resume, learned from measured pairs of prompts.
//!
//! A predictor ranks changes of the prompt by their expected loss. For each share of the plan, the table has upper
//! confidence bounds of the loss that pairs with similar predictions really had. The predictions of a pair come from a
//! predictor that was not trained on it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::predictor::{Predictor, PromptFeatures, rounded};
use super::{CalibrationFor, Query, SAME_SHARE};
use crate::content::Difference;
use crate::entry::Entry;

/// Version of the tables. Others are refused.
const VERSION: u32 = 3;
/// The fewest measured pairs per share.
const LEAST_ROWS: usize = 100;
/// The number of folds of the cross-validation.
const FOLDS: u64 = 5;
/// The fewest pairs per bound, and the most bounds per share.
const LEAST_PER_BIN: usize = 40;
const MOST_BINS: usize = 12;
/// The one-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.645;

/// A measured resume: a prompt painted from another prompt's state.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The embedding of the painted prompt, of length 1.
    pub wanted: Vec<f32>,
    /// The embedding of the prompt whose state was resumed, of length 1.
    pub source: Vec<f32>,
    /// The difference from the source's words to the painted prompt's.
    pub difference: Difference,
    /// The share of the plan that was skipped, between 0 and 1.
    pub share: f32,
    /// The quality lost against the picture painted from noise; negative if quality was gained.
    pub loss: f32,
}

/// The reason why a table cannot be made or read.
#[derive(Debug, Error)]
pub enum CalibrationError {
    /// There are too few measurements at a share.
    #[error("{rows} measured pairs at a share of {share}: at least {LEAST_ROWS} are needed")]
    TooFew {
        /// The share.
        share: f32,
        /// How many there are.
        rows: usize,
    },
    /// There are no measurements.
    #[error("nothing was measured")]
    Nothing,
    /// A measured pair has impossible numbers.
    #[error("measured pair {row}: {what}")]
    Unfit {
        /// The pair's index in the list.
        row: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The text is not a table.
    #[error("not a calibration table: {0}")]
    Json(#[from] serde_json::Error),
    /// The table has another version.
    #[error("calibration table of version {0}; this one reads version {VERSION}: run `pentimento calibrate`")]
    Version(u32),
    /// The table is inconsistent.
    #[error("calibration table: {0}")]
    Damaged(&'static str),
}

/// Bounds of the quality loss, by the change between two prompts and the skipped share of the plan.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    version: u32,
    /// What the table was measured for.
    #[serde(rename = "for")]
    pub measured_for: CalibrationFor,
    /// The rows of the cheapest measured source's plan; `None` if all sources had the full plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_rows: Option<u32>,
    dimensions: usize,
    /// Predicts a pair's loss over all shares, relative to the mean loss at each share.
    predictor: Predictor,
    /// The measured shares, rising.
    levels: Vec<Level>,
}

/// The bounds at one share of the plan.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Level {
    share: f32,
    /// The bounds by rising prediction.
    bins: Vec<Bin>,
}

/// What resuming at a share loses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ShareLoss {
    pub share: f32,
    /// The mean of pairs like this one; 0 where they won.
    pub expected: f32,
    /// Upper confidence bound of the mean.
    pub bound: f32,
}

/// Pairs with similar predicted losses.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Bin {
    /// The largest prediction of the bin.
    up_to: f64,
    rows: usize,
    mean: f64,
    /// The upper confidence bound of the mean loss.
    bound: f64,
}

impl Calibration {
    /// Learns a table. The same measurements give the same table.
    pub fn fit(measured_for: CalibrationFor, measured: &[Measured]) -> Result<Self, CalibrationError> {
        let dimensions = measured.first().ok_or(CalibrationError::Nothing)?.wanted.len();
        for (row, pair) in measured.iter().enumerate() {
            pair.check(dimensions).map_err(|what| CalibrationError::Unfit { row, what })?;
        }
        let mut by_share: Vec<&Measured> = measured.iter().collect();
        by_share.sort_by(|a, b| a.share.total_cmp(&b.share));
        let by_share: Vec<&[&Measured]> = by_share.chunk_by(|a, b| b.share - a.share <= SAME_SHARE).collect();
        let pairs = PromptPair::all(&by_share);
        let learned: Vec<(&PromptFeatures, f64)> =
            pairs.values().map(|pair| (&pair.features, pair.loss())).collect();
        let predicted = cross_validate(&pairs);
        let levels = by_share.iter().map(|rows| Level::fit(rows, &predicted)).collect::<Result<_, _>>()?;
        let predictor = Predictor::fit(&learned);
        Ok(Self { version: VERSION, measured_for, source_rows: None, dimensions, predictor, levels })
    }

    /// The table of measurements whose sources were painted by plans of at least `rows` rows (see
    /// [`PaintedPlan::rows`](crate::PaintedPlan::rows)) instead of by the full plan.
    pub fn for_sources_of(self, rows: u32) -> Self {
        Self { source_rows: Some(rows), ..self }
    }

    /// Whether the table applies to a request that resumes an entry's states: it was measured for such requests
    /// ([`CalibrationFor::fits`]), and on sources whose plans had no more rows than the entry's.
    pub fn fits(&self, query: &Query<'_>, entry: &Entry) -> bool {
        let least = self.source_rows.unwrap_or_else(|| self.measured_for.full_plan().rows());
        entry.plan.rows() >= least && self.measured_for.fits(query, entry)
    }

    /// Reads a table of this version.
    pub fn from_json(json: &str) -> Result<Self, CalibrationError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_str(json)?;
        if version != VERSION {
            return Err(CalibrationError::Version(version));
        }
        let table: Self = serde_json::from_str(json)?;
        table.check().map_err(CalibrationError::Damaged)?;
        Ok(table)
    }

    /// The table as JSON.
    pub fn to_json(&self) -> Result<String, CalibrationError> {
        Ok(serde_json::to_string(self)?)
    }

    /// The measured shares, rising.
    pub fn shares(&self) -> impl Iterator<Item = f32> + '_ {
        self.levels.iter().map(|level| level.share)
    }

    /// For each measured share, rising, the bound of the loss of resuming `source` at that share for `wanted`. The bound is
    /// infinite beyond the measured predictions. It never falls with the share.
    pub fn bounds(&self, wanted: &[f32], source: &[f32], difference: &Difference) -> Vec<(f32, f32)> {
        self.losses(wanted, source, difference).into_iter().map(|loss| (loss.share, loss.bound)).collect()
    }

    /// For each measured share, rising, what resuming `source` at it for `wanted` loses; infinite beyond what was
    /// measured. Neither number falls with the share.
    pub(super) fn losses(&self, wanted: &[f32], source: &[f32], difference: &Difference) -> Vec<ShareLoss> {
        if wanted.len() != self.dimensions || source.len() != self.dimensions {
            return Vec::new();
        }
        let prediction = self.predictor.predict(&PromptFeatures::new(wanted, source, difference));
        let (mut expected, mut bound) = (0.0f64, f64::NEG_INFINITY);
        let loss = |level: &Level| {
            let bin = level.bins.iter().find(|bin| prediction <= bin.up_to);
            expected = expected.max(bin.map_or(f64::INFINITY, |bin| bin.mean));
            bound = bound.max(bin.map_or(f64::INFINITY, |bin| bin.bound));
            ShareLoss { share: level.share, expected: expected as f32, bound: bound as f32 }
        };
        self.levels.iter().map(loss).collect()
    }

    fn check(&self) -> Result<(), &'static str> {
        let rising = self.levels.windows(2).all(|w| w[0].share < w[1].share);
        match self.levels.as_slice() {
            [] => Err("no shares"),
            _ if !rising => Err("shares do not rise"),
            _ if !self.predictor.check(self.dimensions) => {
                Err("the predictor does not fit embeddings of this length")
            }
            levels => levels.iter().try_for_each(Level::check),
        }
    }
}

impl Measured {
    /// A hash that identifies the two prompts (FNV-1a over their embeddings' bits).
    fn prompts(&self) -> u64 {
        let values = self.wanted.iter().chain(&self.source);
        values.fold(0xcbf2_9ce4_8422_2325, |hash, value| {
            (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3)
        })
    }

    fn check(&self, dimensions: usize) -> Result<(), &'static str> {
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        if self.wanted.len() != dimensions || self.source.len() != dimensions {
            return Err("its embeddings differ in length from the first pair's");
        }
        if !finite(&self.wanted) || !finite(&self.source) || !self.loss.is_finite() {
            return Err("not a number");
        }
        (self.share > 0.0 && self.share < 1.0).then_some(()).ok_or("its share is not between 0 and 1")
    }
}

/// Two prompts, and the sum of their losses relative to the mean loss at each share. Averaging over shares reduces the
/// noise of single pictures, and makes pairs comparable that were measured at different shares.
struct PromptPair {
    features: PromptFeatures,
    lost: f64,
    rows: usize,
}

impl PromptPair {
    /// All pairs by their hash, so that their order is random and does not depend on the list's.
    fn all(by_share: &[&[&Measured]]) -> BTreeMap<u64, Self> {
        let mut pairs = BTreeMap::new();
        for rows in by_share {
            let mean = rows.iter().map(|row| f64::from(row.loss)).sum::<f64>() / rows.len() as f64;
            for row in *rows {
                let features = || PromptFeatures::new(&row.wanted, &row.source, &row.difference);
                let pair = pairs.entry(scrambled(row.prompts())).or_insert_with(|| Self {
                    features: features(),
                    lost: 0.0,
                    rows: 0,
                });
                pair.lost += f64::from(row.loss) - mean;
                pair.rows += 1;
            }
        }
        pairs
    }

    fn loss(&self) -> f64 {
        self.lost / self.rows as f64
    }
}

/// Cross-validation: the prediction for each pair by a predictor that was not trained on it.
fn cross_validate(pairs: &BTreeMap<u64, PromptPair>) -> BTreeMap<u64, f64> {
    let mut predicted = BTreeMap::new();
    for fold in 0..FOLDS {
        let (held_out, training): (Vec<_>, Vec<_>) =
            pairs.iter().partition(|(hash, _)| *hash % FOLDS == fold);
        let learned: Vec<(&PromptFeatures, f64)> =
            training.iter().map(|(_, pair)| (&pair.features, pair.loss())).collect();
        let predictor = Predictor::fit(&learned);
        predicted.extend(held_out.iter().map(|(hash, pair)| (**hash, predictor.predict(&pair.features))));
    }
    predicted
}

impl Level {
    fn fit(rows: &[&Measured], predicted: &BTreeMap<u64, f64>) -> Result<Self, CalibrationError> {
        // The rows' shares differ by rounding only. The largest one is the safest.
        let share = rows.last().map_or(0.0, |row| row.share);
        if rows.len() < LEAST_ROWS {
            return Err(CalibrationError::TooFew { share, rows: rows.len() });
        }
        let row = |row: &&Measured| Some((*predicted.get(&scrambled(row.prompts()))?, f64::from(row.loss)));
        Ok(Self { share, bins: bins(rows.iter().filter_map(row).collect()) })
    }

    fn check(&self) -> Result<(), &'static str> {
        let rising = self.bins.windows(2).all(|w| w[0].up_to <= w[1].up_to && w[0].bound <= w[1].bound);
        match () {
            () if !(self.share > 0.0 && self.share < 1.0) => Err("a share is not between 0 and 1"),
            () if self.bins.is_empty() || !rising => Err("bounds do not rise with the prediction"),
            () => Ok(()),
        }
    }
}

/// A pseudo-random number for each number (SplitMix64's last step).
fn scrambled(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sorts rows of (prediction, loss) by prediction, and divides them into bins of equal size, each with a bound of its mean
/// loss. The bounds rise with the prediction.
///
/// The bins assume that the loss does not fall with the prediction. A bound of a bin together with the bins after it is
/// therefore also a bound of the bin alone, and may be tighter because it has more pairs.
fn bins(mut rows: Vec<(f64, f64)>) -> Vec<Bin> {
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let count = (rows.len() / LEAST_PER_BIN).clamp(1, MOST_BINS);
    // At least 1, which is the loss of all quality.
    let worst = rows.iter().map(|(_, loss)| *loss).fold(1.0, f64::max);
    let mut least = f64::NEG_INFINITY;
    let end = |part: usize| (part + 1) * rows.len() / count;
    (0..count)
        .map(|part| {
            let from = part * rows.len() / count;
            let bounds = (part..count).map(|last| bound_of_mean(&rows[from..end(last)], worst));
            least = least.max(bounds.fold(f64::INFINITY, f64::min));
            let own = &rows[from..end(part)];
            let up_to = own.last().map_or(f64::NEG_INFINITY, |(prediction, _)| *prediction);
            let mean = own.iter().map(|(_, loss)| loss).sum::<f64>() / own.len().max(1) as f64;
            Bin { up_to, rows: own.len(), mean: rounded(mean), bound: (least * 1e4).ceil() / 1e4 }
        })
        .collect()
}

/// The one-sided upper confidence bound of the mean loss. One additional pair with the worst loss is included, because a
/// few pairs without loss do not prove that there is none.
fn bound_of_mean(rows: &[(f64, f64)], worst: f64) -> f64 {
    let count = rows.len() as f64 + 1.0;
    let losses = || rows.iter().map(|(_, loss)| *loss).chain([worst]);
    let mean = losses().sum::<f64>() / count;
    let variance = losses().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    mean + Z * (variance / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_observed_losses_the_bound_is_above_zero() {
        let few = bound_of_mean(&[(0.0, 0.0); 40], 1.0);
        let many = bound_of_mean(&[(0.0, 0.0); 4000], 1.0);
        assert!(few > 0.03 && many < 0.001, "{few} {many}");
    }
}
