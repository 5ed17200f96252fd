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
    /// Offered per second. `None` where all were due at once.
    pub rate: Option<f64>,
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

/// A mean quality, over the requests of which it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Delivered {
    /// Of how many completed requests it is known.
    pub known: usize,
    /// Over these.
    pub completed: Option<f64>,
    /// Over offered requests: a violation is worth 0, and one answered in time, where it is not known, the mean of
    /// those of which it is.
    pub offered: Option<f64>,
}

/// Those who came back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Returned {
    /// Requests.
    pub requests: usize,
    /// Share of them that was admitted then: answered, or waited for until time was up.
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
        let admitted = back.iter().filter(|row| row.completed() || row.fate == Fate::TimedOut).count();
        Self {
            offered: rows.len(),
            seconds,
            rate: (seconds > 0.0).then(|| rows.len() as f64 / seconds),
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
        let at = |quantile: fn(&Quantiles) -> f64| number(latency_ms.as_ref().map(quantile), 0);
        let row = |name: &str, value: String| (name.to_owned(), value);
        let mut rows = vec![
            row("offered requests", self.offered.to_string()),
            row("offered per second", number(self.rate, 3)),
            row("completed", self.completed.to_string()),
            row("goodput (share within the objective)", format!("{:.4}", self.goodput)),
            row("violations: late", violations.late.to_string()),
            row("violations: 429", violations.refused.to_string()),
            row("violations: timeouts", violations.timed_out.to_string()),
            row("violations: other errors", violations.failed.to_string()),
            row("violations: not sent (generator)", violations.unsent.to_string()),
            row("latency p50, ms", at(|q| q.p50)),
            row("latency p95, ms", at(|q| q.p95)),
            row("latency p99, ms", at(|q| q.p99)),
            row("mean steps", number(self.mean_steps, 2)),
            row("mean skipped steps", number(self.mean_skipped_steps, 2)),
        ];
        rows.extend(self.expected_quality.lines("expected quality", self.completed));
        for (name, judged) in [("fidelity", &self.fidelity), ("CLIP score", &self.clip_score)] {
            if judged.known > 0 {
                rows.extend(judged.lines(name, self.completed));
            }
        }
        if returned.requests > 0 {
            rows.push(row("came back after Retry-After", returned.requests.to_string()));
            rows.push(row("share of them admitted", number(returned.admitted, 4)));
        }
        rows.push(row("generator CPU, s", format!("{:.2}", generator.cpu_seconds)));
        rows.push(row("generator lag p99, ms", number(generator.lag_p99_ms, 1)));
        let line = |(name, value): (String, String)| format!("| {name} | {value} |\n");
        "| | |\n|---|---|\n".to_owned() + &rows.into_iter().map(line).collect::<String>()
    }
}

impl Delivered {
    fn new(rows: &[Row], quality: fn(&Row) -> Option<f64>) -> Self {
        let of = |is: fn(&Row) -> bool| -> Vec<f64> {
            rows.iter().filter(|row| is(row)).filter_map(quality).collect()
        };
        let completed = of(Row::completed);
        let good = rows.iter().filter(|row| row.fate == Fate::Good).count();
        let known_good =
            if good == 0 { Some(0.0) } else { mean(of(|row| row.fate == Fate::Good).into_iter()) };
        let known = completed.len();
        Self {
            known,
            // Where nothing is known, violations alone would make a mean of 0.
            offered: known_good
                .filter(|_| known > 0)
                .map(|quality| quality * good as f64 / rows.len() as f64),
            completed: mean(completed.into_iter()),
        }
    }

    /// Lines of the table, of a run with so many completed requests.
    fn lines(&self, name: &str, completed: usize) -> Vec<(String, String)> {
        let mut lines = vec![(format!("{name} of the completed"), number(self.completed, 4))];
        if (1..completed).contains(&self.known) {
            lines.push((format!("{name} is known of"), self.known.to_string()));
        }
        lines.push((format!("{name} per offered, violations 0"), number(self.offered, 4)));
        lines
    }
}

/// With so many digits, or a dash.
fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
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
        assert_eq!((summary.rate, summary.goodput, summary.mean_steps), (Some(2.0), 0.25, Some(20.0)));
        let delivered = Delivered { known: 2, completed: Some(0.95), offered: Some(0.225) };
        assert_eq!(summary.expected_quality, delivered);
        assert_eq!(
            summary.violations,
            Violations { late: 1, refused: 1, unsent: 1, ..Violations::default() }
        );
        assert_eq!(summary.returned, Returned { requests: 1, admitted: Some(0.0) });
        assert_eq!(summary.latency_ms, Some(Quantiles { p50: 100.0, p95: 300.0, p99: 300.0 }));
        assert!(summary.table().contains("| violations: 429 | 1 |") && summary.table().contains("0.2250"));
    }

    #[test]
    fn what_is_not_known_is_not_claimed() {
        let rows = [
            row(Fate::Good, Some(1.0), Some(0.9)),
            row(Fate::Good, Some(1.0), None),
            row(Fate::Late, Some(1.0), Some(0.5)),
            row(Fate::Refused, None, None),
        ];
        let summary = Summary::new(&rows, 1.0, NOTHING);
        let some = Delivered { known: 2, completed: Some(0.7), offered: Some(0.45) };
        assert_eq!(summary.expected_quality, some);
        assert!(summary.table().contains("| expected quality is known of | 2 |"), "{}", summary.table());
        let late = Summary::new(&rows[2..], 1.0, NOTHING).expected_quality;
        assert_eq!(late, Delivered { known: 1, completed: Some(0.5), offered: Some(0.0) });
        assert_eq!(Summary::new(&rows[3..], 1.0, NOTHING).expected_quality, Delivered::default());
        let none = Summary::new(&[], 0.0, NOTHING);
        assert_eq!((none.rate, none.goodput, none.latency_ms), (None, 0.0, None));
        assert_eq!(none.expected_quality, Delivered::default());
    }

    #[test]
    fn who_came_back_and_was_not_sent_or_not_served_was_not_admitted() {
        let fates =
            [Fate::Good, Fate::Late, Fate::TimedOut, Fate::Refused, Fate::Unsent, Fate::Failed, Fate::Good];
        let mut rows = fates.map(|fate| row(fate, None, None));
        rows[..6].iter_mut().for_each(|row| row.returned = Some(1.0));
        let returned = Summary::new(&rows, 1.0, NOTHING).returned;
        assert_eq!(returned, Returned { requests: 6, admitted: Some(0.5) });
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let mut hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.95, 0.99].map(|at| quantile(&mut hundred, at)), [50.0, 95.0, 99.0].map(Some));
        assert_eq!((quantile(&mut [7.0], 0.01), quantile(&mut [], 0.5)), (Some(7.0), None));
    }
}
