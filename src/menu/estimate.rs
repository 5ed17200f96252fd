//! A measured value and how sure it is.

use serde::{Deserialize, Serialize};

/// A mean and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Estimate {
    /// A value that is certain.
    pub const fn exactly(value: f64) -> Self {
        Self { mean: value, low: value, high: value }
    }

    /// The part `share` of the way to another estimate, 0 to 1, linearly.
    pub(super) fn towards(self, other: Self, share: f64) -> Self {
        let between = |from: f64, to: f64| from + (to - from) * share;
        Self {
            mean: between(self.mean, other.mean),
            low: between(self.low, other.low),
            high: between(self.high, other.high),
        }
    }

    pub(super) fn is_finite(self) -> bool {
        self.mean.is_finite() && self.low.is_finite() && self.high.is_finite()
    }
}

/// In three digits: `0.981 (0.970–0.993)`.
impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ({:.3}–{:.3})", self.mean, self.low, self.high)
    }
}
