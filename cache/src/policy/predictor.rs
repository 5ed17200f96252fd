//! Predicts the quality loss of a change of the prompt. The prediction is a quadratic form of the direction in which the
//! embedding moved, plus a linear form of the distance and of the numbers of changed words.

use serde::{Deserialize, Serialize};

use crate::content::Difference;

/// Counts of changed words are capped at this.
const MOST_WORDS: u32 = 8;
/// The scale below which the direction of a move loses weight.
const NEAR: f64 = 0.1;
/// The ridge penalty, in units of the kernel's mean diagonal.
const RIDGE: f64 = 2.0;
/// The most rows to learn from. The cost grows with the cube of their number.
const MOST_ROWS: usize = 1000;
/// The number of linear features: a constant, the distance and its square, and three counts of words. Without the constant
/// the prediction for an unmoved prompt would be the mean loss.
const PLAIN: usize = 6;

/// The features of a change from one prompt to another.
pub struct PromptFeatures {
    /// The direction from the source's embedding to the wanted one's, of length at most 1. Zero if the words are the same,
    /// because then only the wording changed.
    direction: Vec<f64>,
    plain: [f64; PLAIN],
}

impl PromptFeatures {
    /// The features of two prompts, whose embeddings have the same length.
    pub fn new(wanted: &[f32], source: &[f32], difference: &Difference) -> Self {
        let moved: Vec<f64> = wanted.iter().zip(source).map(|(a, b)| f64::from(a - b)).collect();
        let length = dot(&moved, &moved).sqrt();
        let scale = if difference.is_none() { 0.0 } else { 1.0 / (length + NEAR) };
        let words = [difference.removed, difference.added, difference.reordered];
        let [removed, added, reordered] =
            words.map(|count| f64::from(count.min(MOST_WORDS)) / f64::from(MOST_WORDS));
        // Half the squared distance is one minus the cosine.
        let plain = [1.0, length.powi(2) / 2.0, length, removed, added, reordered];
        Self { direction: moved.into_iter().map(|x| x * scale).collect(), plain }
    }

    fn kernel(&self, other: &Self) -> f64 {
        dot(&self.direction, &other.direction).powi(2) + dot(&self.plain, &other.plain)
    }
}

/// A predictor learned by kernel ridge regression. The same rows give the same predictor.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Predictor {
    base: f64,
    plain: [f64; PLAIN],
    /// The lower triangle of a symmetric matrix, row by row.
    directions: Vec<f64>,
}

impl Predictor {
    /// Learns from features and their losses. Without rows it predicts 0.
    pub fn fit(rows: &[(&PromptFeatures, f64)]) -> Self {
        let rows = &rows[..rows.len().min(MOST_ROWS)];
        let count = rows.len();
        let base = rows.iter().map(|(_, target)| target).sum::<f64>() / count.max(1) as f64;
        let mut kernel: Vec<Vec<f64>> =
            (0..count).map(|i| (0..=i).map(|j| rows[i].0.kernel(rows[j].0)).collect()).collect();
        let diagonal = (0..count).map(|i| kernel[i][i]).sum::<f64>() / count.max(1) as f64;
        // The diagonal is never zero, so the factorisation below cannot fail.
        (0..count).for_each(|i| kernel[i][i] += RIDGE * diagonal + f64::EPSILON);
        let targets = rows.iter().map(|(_, target)| target - base).collect();
        let weights = solve(kernel, targets);
        let width = rows.first().map_or(0, |(features, _)| features.direction.len());
        let mut directions = vec![0.0; width * (width + 1) / 2];
        let mut plain = [0.0; PLAIN];
        for ((features, _), weight) in rows.iter().zip(weights) {
            plain.iter_mut().zip(features.plain).for_each(|(sum, x)| *sum += weight * x);
            let mut cells = directions.iter_mut();
            for (i, a) in features.direction.iter().enumerate() {
                for (b, cell) in features.direction[..=i].iter().zip(&mut cells) {
                    *cell += weight * a * b;
                }
            }
        }
        directions.iter_mut().chain(&mut plain).for_each(|x| *x = rounded(*x));
        Self { base: rounded(base), plain, directions }
    }

    /// The predicted loss.
    pub fn predict(&self, features: &PromptFeatures) -> f64 {
        let mut cells = self.directions.iter();
        let mut quadratic = 0.0;
        for (i, a) in features.direction.iter().enumerate() {
            let row: f64 = features.direction[..i].iter().zip(&mut cells).map(|(b, cell)| b * cell).sum();
            quadratic += a * (2.0 * row + a * cells.next().unwrap_or(&0.0));
        }
        self.base + quadratic + dot(&self.plain, &features.plain)
    }

    /// Whether the predictor is valid for embeddings of this length.
    pub fn check(&self, dimensions: usize) -> bool {
        let finite = self.directions.iter().chain(&self.plain).all(|x| x.is_finite());
        finite && self.base.is_finite() && self.directions.len() == dimensions * (dimensions + 1) / 2
    }
}

/// Rounds to four decimals, which keeps the tables' files small. Further digits are not significant.
pub fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Solves `matrix · x = right` by Cholesky factorisation. `matrix` is the lower triangle of a symmetric, positive definite
/// matrix.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let count = right.len();
    for i in 0..count {
        let (above, rest) = matrix.split_at_mut(i);
        let row = &mut rest[0];
        for (j, other) in above.iter().enumerate() {
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
        row[i] = (row[i] - dot(&row[..i], &row[..i])).sqrt();
    }
    for i in 0..count {
        right[i] = (right[i] - dot(&matrix[i][..i], &right[..i])) / matrix[i][i];
    }
    for i in (0..count).rev() {
        right[i] /= matrix[i][i];
        let solved = right[i];
        right[..i].iter_mut().zip(&matrix[i]).for_each(|(x, factor)| *x -= factor * solved);
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGED: Difference = Difference { removed: 1, added: 1, kept: 3, reordered: 0 };

    #[test]
    fn a_factorisation_solves() {
        let matrix = vec![vec![4.0], vec![2.0, 5.0], vec![1.0, 3.0, 6.0]];
        let x = solve(matrix, vec![11.0, 21.0, 25.0]);
        assert!(x.iter().zip([1.0, 2.0, 3.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{x:?}");
    }

    #[test]
    fn a_costly_direction_is_told_from_a_cheap_one() {
        let features = |x: f32, y: f32| PromptFeatures::new(&[x, y, 0.0], &[0.0, 0.0, 0.0], &CHANGED);
        let rows: Vec<(PromptFeatures, f64)> = (0..200)
            .map(|i| {
                let angle = i as f32 / 10.0;
                let (sin, cos) = angle.sin_cos();
                (features(0.5 * cos, 0.5 * sin), f64::from(cos * cos))
            })
            .collect();
        let rows: Vec<(&PromptFeatures, f64)> =
            rows.iter().map(|(features, target)| (features, *target)).collect();
        let predictor = Predictor::fit(&rows);
        let (costly, back) =
            (predictor.predict(&features(0.5, 0.0)), predictor.predict(&features(-0.5, 0.0)));
        let cheap = predictor.predict(&features(0.0, 0.5));
        assert!(costly > cheap + 0.5 && (costly - back).abs() < 1e-9, "{costly} {back} {cheap}");
        assert!(predictor.check(3) && !predictor.check(2));
    }

    #[test]
    fn an_unmoved_prompt_is_expected_to_lose_least() {
        let features = |x: f32| PromptFeatures::new(&[x, 0.0], &[0.0, 0.0], &CHANGED);
        let rows: Vec<(PromptFeatures, f64)> =
            (5..200).map(|i| (features(i as f32 / 200.0), f64::from(i) / 200.0)).collect();
        let rows: Vec<(&PromptFeatures, f64)> =
            rows.iter().map(|(features, target)| (features, *target)).collect();
        let predictor = Predictor::fit(&rows);
        assert!(predictor.predict(&features(0.0)) < predictor.predict(&features(0.3)) - 0.1);
    }

    #[test]
    fn the_same_words_hide_the_direction() {
        let of = |difference| PromptFeatures::new(&[1.0, 0.0], &[0.8, 0.6], &difference);
        assert_eq!(of(Difference::default()).direction, [0.0, 0.0]);
        let changed = of(Difference { added: 20, ..Difference::default() });
        assert!(changed.direction[0] > 0.2 && changed.plain[4] == 1.0);
    }

    #[test]
    fn nothing_learned_predicts_nothing() {
        assert_eq!(Predictor::fit(&[]).predict(&PromptFeatures::new(&[], &[], &CHANGED)), 0.0);
        let unmoved = PromptFeatures::new(&[1.0], &[1.0], &Difference::default());
        assert_eq!(Predictor::fit(&[(&unmoved, 0.5), (&unmoved, 0.5)]).predict(&unmoved), 0.5);
    }
}
