//! Which of several alternatives is better, measured on the same prompts: a paired bootstrap (Efron, 1979).

use super::interval::Interval;

/// How often prompts are drawn again. The ends of a 95 % interval are then the 25th value from each end.
const SAMPLES: usize = 1000;

/// Draws of prompts, with replacement, that all alternatives are judged by.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// As many prompts as there are, in each draw; the first draw has every prompt once.
    draws: Vec<Vec<usize>>,
}

/// A value, for all prompts and for each draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrapped(Vec<f64>);

impl Bootstrap {
    /// Draws from `prompts` prompts. The same number gives the same draws.
    pub fn of(prompts: usize) -> Self {
        let mut state = 0;
        let mut draw = |_| (0..prompts).map(|_| random(&mut state) as usize % prompts).collect();
        let again: Vec<Vec<usize>> = (0..SAMPLES).map(&mut draw).collect();
        Self { draws: std::iter::once((0..prompts).collect()).chain(again).collect() }
    }

    /// The ratio of two sums over the prompts, which gives prompts weight by what is below. The slices have a value
    /// for each prompt. Where nothing is below, the ratio is 0.
    pub fn ratio(&self, above: &[f64], below: &[f64]) -> Bootstrapped {
        let of = |draw: &Vec<usize>| {
            let sum = |values: &[f64]| draw.iter().map(|i| values[*i]).sum::<f64>();
            let (above, below) = (sum(above), sum(below));
            if below == 0.0 { 0.0 } else { above / below }
        };
        Bootstrapped(self.draws.iter().map(of).collect())
    }
}

impl Bootstrapped {
    /// The smaller of both, draw by draw.
    pub fn min(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a.min(*b)).collect())
    }

    /// The value of all prompts and its 95 % interval.
    pub fn interval(&self) -> Interval {
        let mut samples = self.0[1..].to_vec();
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples[((SAMPLES - 1) as f64 * share).round() as usize];
        Interval { value: self.0[0], low: at(0.025), high: at(0.975) }
    }

    /// Whether this is better than `other` for sure: the 95 % interval of their difference lies above 0.
    pub fn is_better_than(&self, other: &Self) -> bool {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a - b).collect()).interval().low > 0.0
    }
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

    fn unit(state: &mut u64) -> f64 {
        (random(state) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Prompts differ much more than alternatives: unpaired intervals overlap, paired ones do not.
    #[test]
    fn pairs_tell_small_differences() {
        let mut state = 1;
        let full: Vec<f64> = (0..100).map(|_| 0.2 + unit(&mut state)).collect();
        let of = |factor: f64, state: &mut u64| -> Vec<f64> {
            full.iter().map(|value| value * factor + 0.02 * (unit(state) - 0.5)).collect()
        };
        let (good, bad, same) = (of(0.97, &mut state), of(0.95, &mut state), of(0.97, &mut state));
        let bootstrap = Bootstrap::of(full.len());
        let [good, bad, same] = [good, bad, same].map(|values| bootstrap.ratio(&values, &full));
        assert!(good.is_better_than(&bad) && !bad.is_better_than(&good));
        assert!(!good.is_better_than(&same) && !same.is_better_than(&good));
        assert!(!good.is_better_than(&good));
        let interval = good.interval();
        assert!((interval.value - 0.97).abs() < 0.005 && interval.low < interval.value, "{interval}");
        assert_eq!(bootstrap.ratio(&full, &full).interval().low, 1.0, "of the full plan itself");
        assert_eq!(good.min(&bad), bad.min(&good));
    }

    #[test]
    fn nothing_below_is_nothing() {
        let bootstrap = Bootstrap::of(3);
        assert_eq!(bootstrap.ratio(&[1.0; 3], &[0.0; 3]).interval().value, 0.0);
        assert_eq!(bootstrap.ratio(&[1.0, 2.0, 3.0], &[2.0; 3]).interval().value, 1.0);
    }

    #[test]
    fn the_smaller_of_two_has_an_interval_of_its_own() {
        let bootstrap = Bootstrap::of(2);
        let (rising, falling) =
            (bootstrap.ratio(&[0.0, 1.0], &[1.0; 2]), bootstrap.ratio(&[1.0, 0.0], &[1.0; 2]));
        let both = rising.min(&falling).interval();
        assert_eq!((both.value, both.low, both.high), (0.5, 0.0, 0.5));
    }
}
