//! What an operator sets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::policy::Policy;

/// The configuration of a scheduler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How much may wait and run.
    pub limits: Limits,
    /// How options are chosen.
    pub policy: Policy,
    /// What quality is worth, by tier. A tier that is not here counts quality as it is.
    pub tiers: BTreeMap<String, Worth>,
    /// A worker that has not polled for so many seconds is lost. Polls come every second, so that ten of them must be
    /// missing: the repainting of a whole batch costs more than ten seconds of waiting.
    pub lost_after_seconds: f64,
    /// Numbers set by hand, which no operator needs to change. docs/planning.md says which experiment speaks for each.
    #[serde(skip)]
    pub tuning: Tuning,
}

/// Numbers set by hand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// The part of the time to a deadline that is planned with: predictions err, and a step under way is not interrupted.
    pub headroom: f64,
    /// The part of the time to a deadline that the options which tasks would choose may fill. The rest is for what comes in
    /// the meantime, and for turns: a client's tasks are not in order of everybody's deadlines. It takes the place of a
    /// forecast.
    pub planned: f64,
    /// Seconds between two prices. A price costs as much as a hundred messages; the load changes little in less.
    pub reprice_seconds: f64,
    /// A lower price holds after so many seconds: plans in flight only get cheaper, so a price that dips between two bursts
    /// would hand out plans that the second burst cannot afford.
    pub falls_after_seconds: f64,
    /// A worker holds tasks of at most so many times its rows: those beyond are paused for tasks of better rank. Their
    /// latents take memory; with 1 no task would ever be paused, and a client that asks for one picture would wait for the
    /// long pictures of another.
    pub overcommit: u32,
    /// The weight that a step's time keeps with each later one, in the prediction of the next.
    pub memory: f64,
    /// A step's time counts as at most so many times the prediction, and at least its part. Without it a single stall makes
    /// the next steps look impossible, and plans get cheaper for nothing.
    pub outlier: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            headroom: 0.9,
            planned: 0.5,
            reprice_seconds: 0.05,
            falls_after_seconds: 2.0,
            overcommit: 2,
            memory: 0.95,
            outlier: 2.0,
        }
    }
}

/// How much a scheduler holds. What goes beyond is refused, so that its memory is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Pictures that wait or are painted, in all.
    pub pictures: usize,
    /// The same of one client.
    pub pictures_per_client: usize,
    /// Pictures of one request.
    pub pictures_per_request: usize,
    /// Workers.
    pub workers: usize,
    /// Requests that are over and still known, so that a `submit` that arrives twice is painted once. Also clients that
    /// have nothing waiting and used more than their part.
    pub remembered: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            policy: Policy::default(),
            tiers: BTreeMap::new(),
            lost_after_seconds: 10.0,
            tuning: Tuning::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pictures: 10_000,
            pictures_per_client: 1_000,
            pictures_per_request: 64,
            workers: 10_000,
            remembered: 10_000,
        }
    }
}

/// What quality is worth to a tier: a concave, piecewise linear function that never falls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(f64, f64)>", into = "Vec<(f64, f64)>")]
pub struct Worth(Vec<(f64, f64)>);

/// Why a worth is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("worth must be 2 to 64 points (quality, worth) by rising quality, never falling, and concave")]
pub struct WorthError;

impl Default for Worth {
    /// Quality as it is.
    fn default() -> Self {
        Self(vec![(0.0, 0.0), (1.0, 1.0)])
    }
}

impl Worth {
    /// A worth through points (quality, worth).
    ///
    /// # Errors
    /// [`WorthError`] if that is not concave, or falls.
    pub fn new(points: Vec<(f64, f64)>) -> Result<Self, WorthError> {
        let finite = points.iter().all(|(quality, worth)| quality.is_finite() && worth.is_finite());
        let rising = points.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1);
        let slopes: Vec<f64> = points.windows(2).map(|w| (w[1].1 - w[0].1) / (w[1].0 - w[0].0)).collect();
        let concave = slopes.windows(2).all(|w| w[0] >= w[1] - 1e-9);
        let counted = (2..=64).contains(&points.len());
        if counted && finite && rising && concave { Ok(Self(points)) } else { Err(WorthError) }
    }

    /// The worth of a quality; outside the points that of the nearest.
    pub fn of(&self, quality: f64) -> f64 {
        let above = self.0.partition_point(|(at, _)| *at < quality);
        let last = self.0.len() - 1;
        let ((x0, y0), (x1, y1)) = (self.0[above.max(1).min(last) - 1], self.0[above.max(1).min(last)]);
        y0 + (y1 - y0) * ((quality - x0) / (x1 - x0)).clamp(0.0, 1.0)
    }
}

impl TryFrom<Vec<(f64, f64)>> for Worth {
    type Error = WorthError;
    fn try_from(points: Vec<(f64, f64)>) -> Result<Self, WorthError> {
        Self::new(points)
    }
}

impl From<Worth> for Vec<(f64, f64)> {
    fn from(worth: Worth) -> Self {
        worth.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worth_is_concave_and_read_between_its_points() {
        let worth = Worth::new(vec![(0.5, 0.0), (0.9, 0.8), (1.0, 0.9)]).unwrap();
        for (quality, wanted) in
            [(0.0, 0.0), (0.5, 0.0), (0.7, 0.4), (0.9, 0.8), (0.95, 0.85), (1.0, 0.9), (2.0, 0.9)]
        {
            assert!((worth.of(quality) - wanted).abs() < 1e-9, "{quality}: {}", worth.of(quality));
        }
        assert_eq!(Worth::default().of(0.25), 0.25);
        for wrong in [
            vec![],
            vec![(0.0, 0.0)],
            vec![(0.0, 0.0), (0.5, 0.1), (1.0, 1.0)],
            vec![(0.0, 1.0), (1.0, 0.0)],
            vec![(0.0, 0.0), (0.0, 1.0)],
            vec![(0.0, 0.0), (f64::NAN, 1.0)],
        ] {
            assert_eq!(Worth::new(wrong), Err(WorthError));
        }
        let config: Config = serde_json::from_str(r#"{"tiers": {"low": [[0.8, 0.0], [1.0, 1.0]]}}"#).unwrap();
        assert_eq!(config.limits, Limits::default());
        assert!(serde_json::from_str::<Worth>("[[0, 1], [1, 0]]").is_err());
    }
}
