//! Inner products of vectors, and the best rows of a search.

/// Partial sums that are kept side by side, so that the compiler can use vector registers.
const LANES: usize = 16;

/// The inner product of two vectors of the same length.
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

/// A row's slot and its similarity to the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ScoredRow {
    pub slot: usize,
    pub similarity: f32,
}

/// The `n` most similar rows offered so far, best first. Of equally similar rows the one offered first comes first.
pub(crate) struct TopRows {
    n: usize,
    rows: Vec<ScoredRow>,
}

impl TopRows {
    pub(crate) fn new(n: usize) -> Self {
        Self { n, rows: Vec::with_capacity(n + 1) }
    }

    pub(crate) fn offer(&mut self, row: ScoredRow) {
        let full = self.rows.len() >= self.n;
        if full && self.rows.last().is_none_or(|worst| row.similarity <= worst.similarity) {
            return;
        }
        let rank = self.rows.partition_point(|better| better.similarity >= row.similarity);
        self.rows.insert(rank, row);
        self.rows.truncate(self.n);
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn into_rows(self) -> Vec<ScoredRow> {
        self.rows
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
        let mut best = TopRows::new(2);
        for (slot, similarity) in [(0, 0.1), (1, 0.9), (2, 0.5), (3, 0.9)] {
            best.offer(ScoredRow { slot, similarity });
        }
        let slots: Vec<usize> = best.into_rows().iter().map(|row| row.slot).collect();
        assert_eq!(slots, [1, 3]);
    }
}
