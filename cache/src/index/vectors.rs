//! Inner products, and the best of many.

/// Numbers that are summed side by side, so that the compiler can use vector registers.
const LANES: usize = 16;

/// Inner product of two vectors of one length.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_parts, b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_parts.remainder().iter().zip(b_parts.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_parts.zip(b_parts) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// A row and its similarity to the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Hit {
    pub slot: usize,
    pub similarity: f32,
}

/// The `n` best hits seen so far, best first; of equal ones, the older row.
pub(crate) struct Best {
    n: usize,
    hits: Vec<Hit>,
}

impl Best {
    pub(crate) fn new(n: usize) -> Self {
        Self { n, hits: Vec::with_capacity(n + 1) }
    }

    pub(crate) fn offer(&mut self, hit: Hit) {
        let full = self.hits.len() >= self.n;
        if full && self.hits.last().is_none_or(|worst| hit.similarity <= worst.similarity) {
            return;
        }
        let place = self.hits.partition_point(|better| better.similarity >= hit.similarity);
        self.hits.insert(place, hit);
        self.hits.truncate(self.n);
    }

    pub(crate) fn len(&self) -> usize {
        self.hits.len()
    }

    pub(crate) fn into_hits(self) -> Vec<Hit> {
        self.hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_products_of_any_length() {
        for n in [1, 15, 16, 17, 33, 512] {
            let a: Vec<f32> = (0..n).map(|i| i as f32 % 7.0).collect();
            let b: Vec<f32> = (0..n).map(|i| i as f32 % 5.0).collect();
            let plain: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            assert_eq!(dot(&a, &b), plain);
        }
    }

    #[test]
    fn the_best_come_first_and_the_rest_is_forgotten() {
        let mut best = Best::new(2);
        for (slot, similarity) in [(0, 0.1), (1, 0.9), (2, 0.5), (3, 0.9)] {
            best.offer(Hit { slot, similarity });
        }
        let slots: Vec<usize> = best.into_hits().iter().map(|hit| hit.slot).collect();
        assert_eq!(slots, [1, 3]);
    }
}
