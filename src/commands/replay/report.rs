//! What a run comes to.

use serde::Serialize;

use super::row::{Fate, Provenance, Row};

/// A run in numbers. Shares are of the offered requests.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Requests that were due.
    pub offered: usize,
    /// Seconds over which they were.
    pub seconds: f64,
    /// Offered per second.
    pub rate: f64,
    /// Answered with pictures.
    pub completed: usize,
    /// Answered within their objective.
    pub good: usize,
    /// Share of these.
    pub goodput: f64,
    /// All others.
    pub violations: Violations,
    /// Of the completed, in milliseconds.
    pub latency_ms: Option<Quantiles>,
    /// Mean steps of the completed requests' plans.
    pub mean_steps: Option<f64>,
    /// Mean steps spared by reuse.
    pub mean_skipped_steps: Option<f64>,
    /// What the server expects of its pictures.
    pub expected_quality: Delivered,
    /// Share of the named attributes that the pictures show.
    pub fidelity: Delivered,
    /// CLIP score.
    pub clip_score: Delivered,
    /// Of requests that were refused and came back after `Retry-After`.
    pub returned: Returned,
    /// What the load generator itself took.
    pub generator: Generator,
}

/// Violations by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Violations {
    pub late: usize,
    pub refused: usize,
    pub timed_out: usize,
    pub failed: usize,
    pub unsent: usize,
}

/// Percentiles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Quantiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

/// A mean quality. `None` where it is not known of every request that it would be the mean of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Delivered {
    /// Over completed requests.
    pub completed: Option<f64>,
    /// Over offered requests; a violation is worth 0.
    pub offered: Option<f64>,
}

/// Those who came back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Returned {
    /// Requests.
    pub requests: usize,
    /// Share of them that was not refused again.
    pub admitted: Option<f64>,
}

/// The generator's own cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Generator {
    /// Processor time, user and system.
    pub cpu_seconds: f64,
    /// From the first request's due time to the last answer.
    pub wall_seconds: f64,
    /// 99 % of the requests were sent at most this late.
    pub lag_p99_ms: Option<f64>,
}

impl Summary {
    /// Of `rows` that were due within `seconds`.
    pub fn new(rows: &[Row], seconds: f64, generator: Generator) -> Self {
        let count = |fate| rows.iter().filter(|row| row.fate == fate).count();
        let said = |what: fn(&Provenance) -> Option<f64>| {
            mean(rows.iter().filter_map(|row| row.pentimento.as_ref().and_then(what)))
        };
        let good = count(Fate::Good);
        let back: Vec<&Row> = rows.iter().filter(|row| row.returned.is_some()).collect();
        let admitted = back.iter().filter(|row| row.fate != Fate::Refused).count();
        Self {
            offered: rows.len(),
            seconds,
            rate: rows.len() as f64 / seconds.max(f64::MIN_POSITIVE),
            completed: rows.iter().filter(|row| row.completed()).count(),
            good,
            goodput: good as f64 / rows.len().max(1) as f64,
            violations: Violations {
                late: count(Fate::Late),
                refused: count(Fate::Refused),
                timed_out: count(Fate::TimedOut),
                failed: count(Fate::Failed),
                unsent: count(Fate::Unsent),
            },
            latency_ms: quantiles(rows.iter().filter_map(|row| row.latency_ms)),
            mean_steps: said(|answer| answer.steps),
            mean_skipped_steps: said(|answer| answer.skipped_steps),
            expected_quality: Delivered::new(rows, |row| row.pentimento.as_ref()?.expected_quality),
            fidelity: Delivered::new(rows, |row| row.fidelity),
            clip_score: Delivered::new(rows, |row| row.clip_score),
            returned: Returned {
                requests: back.len(),
                admitted: (!back.is_empty()).then(|| admitted as f64 / back.len() as f64),
            },
            generator,
        }
    }

    /// A Markdown table.
    pub fn table(&self) -> String {
        let Self { violations, latency_ms, returned, generator, .. } = self;
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let at = |quantile: fn(&Quantiles) -> f64| number(latency_ms.as_ref().map(quantile), 0);
        let both = |quality: &Delivered| (number(quality.completed, 4), number(quality.offered, 4));
        let mut rows = vec![
            ("offered requests", self.offered.to_string()),
            ("offered per second", format!("{:.3}", self.rate)),
            ("completed", self.completed.to_string()),
            ("goodput (share within the objective)", format!("{:.4}", self.goodput)),
            ("violations: late", violations.late.to_string()),
            ("violations: 429", violations.refused.to_string()),
            ("violations: timeouts", violations.timed_out.to_string()),
            ("violations: other errors", violations.failed.to_string()),
            ("violations: not sent (generator)", violations.unsent.to_string()),
            ("latency p50, ms", at(|q| q.p50)),
            ("latency p95, ms", at(|q| q.p95)),
            ("latency p99, ms", at(|q| q.p99)),
            ("mean steps", number(self.mean_steps, 2)),
            ("mean skipped steps", number(self.mean_skipped_steps, 2)),
        ];
        let (completed, offered) = both(&self.expected_quality);
        rows.push(("expected quality of the completed", completed));
        rows.push(("expected quality per offered, violations 0", offered));
        if self.fidelity.completed.is_some() {
            let (completed, offered) = both(&self.fidelity);
            rows.push(("fidelity of the completed", completed));
            rows.push(("fidelity per offered, violations 0", offered));
        }
        if self.clip_score.completed.is_some() {
            let (completed, offered) = both(&self.clip_score);
            rows.push(("CLIP score of the completed", completed));
            rows.push(("CLIP score per offered, violations 0", offered));
        }
        if returned.requests > 0 {
            rows.push(("came back after Retry-After", returned.requests.to_string()));
            rows.push(("share of them admitted", number(returned.admitted, 4)));
        }
        rows.push(("generator CPU, s", format!("{:.2}", generator.cpu_seconds)));
        rows.push(("generator lag p99, ms", number(generator.lag_p99_ms, 1)));
        let line = |(name, value): (&str, String)| format!("| {name} | {value} |\n");
        "| | |\n|---|---|\n".to_owned() + &rows.into_iter().map(line).collect::<String>()
    }
}

impl Delivered {
    fn new(rows: &[Row], quality: fn(&Row) -> Option<f64>) -> Self {
        let all = |of: fn(&Row) -> bool| {
            rows.iter().filter(|row| of(row)).map(quality).collect::<Option<Vec<f64>>>()
        };
        let completed = all(Row::completed).and_then(|values| mean(values.into_iter()));
        let good = all(|row| row.fate == Fate::Good).filter(|_| completed.is_some());
        Self { completed, offered: good.map(|values| values.iter().sum::<f64>() / rows.len() as f64) }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The value that a share `at` of the values does not exceed (nearest rank).
pub fn quantile(values: &mut [f64], at: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * at).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

fn quantiles(values: impl Iterator<Item = f64>) -> Option<Quantiles> {
    let mut values: Vec<f64> = values.collect();
    let mut at = |share| quantile(&mut values, share);
    Some(Quantiles { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fate: Fate, latency_ms: Option<f64>, quality: Option<f64>) -> Row {
        let said = Provenance { expected_quality: quality, steps: Some(20.0), ..Provenance::default() };
        Row {
            line: 1,
            class: None,
            at: 0.0,
            lag: Some(0.001),
            returned: None,
            ended: 1.0,
            fate,
            status: None,
            error: None,
            latency_ms,
            pentimento: latency_ms.map(|_| said),
            fidelity: None,
            clip_score: None,
        }
    }

    const NOTHING: Generator = Generator { cpu_seconds: 0.5, wall_seconds: 3.0, lag_p99_ms: Some(1.0) };

    #[test]
    fn a_violation_delivers_no_quality() {
        let mut rows = vec![
            row(Fate::Good, Some(100.0), Some(0.9)),
            row(Fate::Late, Some(300.0), Some(1.0)),
            row(Fate::Refused, None, None),
            row(Fate::Unsent, None, None),
        ];
        rows[2].returned = Some(2.0);
        let summary = Summary::new(&rows, 2.0, NOTHING);
        assert_eq!((summary.offered, summary.completed, summary.good), (4, 2, 1));
        assert_eq!((summary.rate, summary.goodput, summary.mean_steps), (2.0, 0.25, Some(20.0)));
        assert_eq!(summary.expected_quality, Delivered { completed: Some(0.95), offered: Some(0.225) });
        assert_eq!(
            summary.violations,
            Violations { late: 1, refused: 1, unsent: 1, ..Violations::default() }
        );
        assert_eq!(summary.returned, Returned { requests: 1, admitted: Some(0.0) });
        assert_eq!(summary.latency_ms, Some(Quantiles { p50: 100.0, p95: 300.0, p99: 300.0 }));
        assert!(summary.table().contains("| violations: 429 | 1 |") && summary.table().contains("0.2250"));
    }

    #[test]
    fn what_is_not_known_of_all_is_not_claimed() {
        let rows = [row(Fate::Good, Some(1.0), Some(0.9)), row(Fate::Good, Some(1.0), None)];
        assert_eq!(Summary::new(&rows, 1.0, NOTHING).expected_quality, Delivered::default());
        let none = Summary::new(&[], 1.0, NOTHING);
        assert_eq!((none.goodput, none.latency_ms, none.expected_quality), (0.0, None, Delivered::default()));
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let mut hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.95, 0.99].map(|at| quantile(&mut hundred, at)), [50.0, 95.0, 99.0].map(Some));
        assert_eq!((quantile(&mut [7.0], 0.01), quantile(&mut [], 0.5)), (Some(7.0), None));
    }
}
