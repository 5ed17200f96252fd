//! How sure a mean is: percentile bootstrap intervals (Efron, 1979).

const SAMPLES: usize = 1000;

/// A value and its 95 % bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Of all rows.
    pub value: f64,
    /// 2.5 % of the resampled values lie below it.
    pub low: f64,
    /// 2.5 % of the resampled values lie above it.
    pub high: f64,
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(3);
        write!(f, "{:.digits$} ({:.digits$}–{:.digits$})", self.value, self.low, self.high)
    }
}

/// The ratio of two means, Σ above / Σ below, over rows of (above, below) that are drawn again together: of
/// paired measurements their relative value; with 1 below, a mean. `None` without rows. The same rows give the
/// same interval.
pub fn ratio(rows: &[(f64, f64)]) -> Option<Interval> {
    let of = |sums: (f64, f64)| if sums.1 == 0.0 { 0.0 } else { sums.0 / sums.1 };
    let add = |sums: (f64, f64), row: (f64, f64)| (sums.0 + row.0, sums.1 + row.1);
    let count = rows.len() as u64;
    if count == 0 {
        return None;
    }
    let mut state = 0;
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|_| of((0..count).map(|_| rows[(random(&mut state) % count) as usize]).fold((0.0, 0.0), add)))
        .collect();
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((SAMPLES - 1) as f64 * share).round() as usize];
    Some(Interval { value: of(rows.iter().copied().fold((0.0, 0.0), add)), low: at(0.025), high: at(0.975) })
}

/// SplitMix64: the same numbers everywhere.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_covers_the_mean_about_as_often_as_it_says() {
        let mut state = 7;
        let mut unit = || (random(&mut state) >> 11) as f64 / (1u64 << 53) as f64;
        let covered = (0..300)
            .filter(|_| {
                let rows: Vec<(f64, f64)> = (0..60).map(|_| (unit(), 1.0)).collect();
                ratio(&rows)
                    .is_some_and(|i| i.low <= 0.5 && 0.5 <= i.high && i.low < i.value && i.value < i.high)
            })
            .count();
        assert!((270..=297).contains(&covered), "{covered} of 300");
    }

    #[test]
    fn pairs_are_drawn_together() {
        let rows: Vec<(f64, f64)> = (1..50).map(|i| (0.9 * f64::from(i), f64::from(i))).collect();
        let interval = ratio(&rows).unwrap();
        assert!((interval.low - 0.9).abs() < 1e-9 && (interval.high - 0.9).abs() < 1e-9, "{interval}");
        assert_eq!(ratio(&[]), None);
    }
}
