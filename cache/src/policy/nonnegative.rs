//! Least squares with weights that cannot be negative.

/// Ridge penalty per row, for columns of mean square 1.
const RIDGE: f64 = 1e-2;
const SWEEPS: usize = 200;
/// A sweep that moves no weight by more than this is the last.
const STILL: f64 = 1e-6;

/// A linear predictor `base + Σ weights·x`, `weights ≥ 0`.
pub struct Fit {
    /// The prediction at zero.
    pub base: f64,
    /// One per column.
    pub weights: Vec<f64>,
}

/// Least squares by coordinate descent with a small ridge penalty: deterministic, and a global minimum, since
/// the problem is convex. `columns` hold one value per row each.
pub fn fit(columns: &[Vec<f64>], targets: &[f64]) -> Fit {
    let rows = targets.len().max(1) as f64;
    let scale: Vec<f64> =
        columns.iter().map(|c| (c.iter().map(|x| x * x).sum::<f64>() / rows).sqrt()).collect();
    let mut weights = vec![0.0; columns.len()];
    let mut base = 0.0;
    let mut residual = targets.to_vec();
    for _ in 0..SWEEPS {
        let mut moved = residual.iter().sum::<f64>() / rows;
        base += moved;
        residual.iter_mut().for_each(|r| *r -= moved);
        moved = moved.abs();
        for ((column, &scale), weight) in columns.iter().zip(&scale).zip(&mut weights) {
            if scale == 0.0 {
                continue;
            }
            // In units of the scaled column, whose mean square is 1.
            let slope = column.iter().zip(&residual).map(|(x, r)| x * r).sum::<f64>() / (rows * scale);
            let next = ((*weight * scale + slope) / (1.0 + RIDGE)).max(0.0) / scale;
            let step = next - *weight;
            if step != 0.0 {
                residual.iter_mut().zip(column).for_each(|(r, x)| *r -= step * x);
                *weight = next;
                moved = moved.max((step * scale).abs());
            }
        }
        if moved < STILL {
            break;
        }
    }
    Fit { base, weights }
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn finds_weights_and_refuses_negative_ones() {
        let column = |period: u32| (0..1001).map(|row| f64::from(row % period) / f64::from(period)).collect();
        let columns: Vec<Vec<f64>> = vec![column(13), column(11), column(7)];
        let target = |weight: f64| -> Vec<f64> {
            columns[0].iter().zip(&columns[2]).map(|(a, c)| 0.1 + 2.0 * a + weight * c).collect()
        };
        let found = fit(&columns, &target(0.5)).weights;
        assert!(
            (found[0] - 2.0).abs() < 0.1 && found[1] < 0.02 && (found[2] - 0.5).abs() < 0.05,
            "{found:?}"
        );
        assert_eq!(fit(&columns, &target(-0.5)).weights[2], 0.0);
    }

    #[test]
    fn no_rows_and_no_columns_are_zero() {
        assert_eq!(fit(&[vec![]], &[]).weights, [0.0]);
        assert_eq!(fit(&[], &[1.0, 3.0]).base, 2.0);
    }
}
