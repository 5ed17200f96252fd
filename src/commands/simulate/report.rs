//! What `simulate` prints.

use crate::simulation::Outcome;

/// The most runs that have a row of their own.
const MOST_ROWS: usize = 20;

/// One run.
pub struct Row {
    /// Its seed.
    pub seed: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// Seconds that it really took.
    pub wall_seconds: f64,
}

/// All runs.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    runs: usize,
    all: Outcome,
    wall_seconds: f64,
}

impl Report {
    /// Adds a run.
    pub fn add(&mut self, row: Row) {
        self.runs += 1;
        self.all.add(&row.outcome);
        self.wall_seconds += row.wall_seconds;
        if self.rows.len() <= MOST_ROWS {
            self.rows.push(row);
        }
    }

    /// A Markdown table: a row for each run, if there are not too many, and one for all together.
    pub fn table(&self) -> String {
        let mut text = format!("{HEAD}\n{RULE}\n");
        if self.rows.len() <= MOST_ROWS {
            for row in &self.rows {
                text += &line(&format!("seed {}", row.seed), &row.outcome, row.wall_seconds);
            }
        }
        if self.runs != 1 {
            text += &line(&format!("{} seeds", self.runs), &self.all, self.wall_seconds);
        }
        text
    }
}

const HEAD: &str = "| run | requests | later | refused | pictures | failed | cancelled | in time | quality | \
utilisation | price, highest | longest s | most waiting, paused | simulated s | messages | messages/s | s |";
const RULE: &str = "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | \
---: | ---: | ---: | ---: |";

fn line(run: &str, outcome: &Outcome, wall_seconds: f64) -> String {
    format!(
        "| {run} | {} | {} | {} | {} | {} | {} | {:.4} | {:.4} | {:.3} | {:.3}, {:.3} | {:.2} | {}, {} | {:.0} | {} | {:.0} | {:.1} |\n",
        outcome.requests,
        outcome.later,
        outcome.never,
        outcome.accepted,
        outcome.failed,
        outcome.cancelled,
        outcome.in_time_share(),
        outcome.mean_quality(),
        outcome.utilisation(),
        outcome.mean_price(),
        outcome.price_highest,
        outcome.longest_seconds,
        outcome.most_tasks,
        outcome.most_paused,
        outcome.seconds,
        outcome.messages,
        outcome.messages as f64 / wall_seconds.max(1e-9),
        wall_seconds,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_summed_and_many_have_no_rows_of_their_own() {
        let outcome = Outcome { requests: 2, painted: 4, in_time: 3, quality: 3.6, ..Outcome::default() };
        let mut report = Report::default();
        let mut add = |seed| {
            report.add(Row { seed, outcome: outcome.clone(), wall_seconds: 1.0 });
            report.table()
        };
        let one = add(0);
        assert!(
            one.lines().count() == 3 && one.contains("| seed 0 | 2 |") && one.contains("| 0.7500 | 0.9000 |"),
            "{one}"
        );
        let two = add(1);
        assert!(two.lines().count() == 5 && two.contains("| 2 seeds | 4 |"), "{two}");
        let many = (2..30).map(&mut add).last().unwrap();
        assert!(many.lines().count() == 3 && many.contains("| 30 seeds | 60 |"), "{many}");
    }
}
