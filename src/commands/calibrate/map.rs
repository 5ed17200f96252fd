//! The map: what resuming costs by what changed, how similar the prompts are, and how late the state is; and what
//! tables make of pairs that they were not learned from.

use std::collections::BTreeMap;

use pentimento_cache::{Calibration, Resume};

use super::measure::{Measure, Row, mean_scratch};
use crate::quality::{Interval, ratio};

/// Parts of the similarities with equally many pairs.
const PARTS: usize = 3;
/// Fewer pairs say too little to be printed.
const LEAST: usize = 8;
const LIMITS: [f32; 6] = [0.01, 0.02, 0.03, 0.05, 0.08, 0.12];

/// Prints it as Markdown.
pub fn print(measure: &Measure, rows: &[Row], tables: &[Calibration]) -> anyhow::Result<()> {
    let settings = &measure.settings;
    println!(
        "{} pairs; {} steps, guidance scale {}; mean {} from scratch {:.4}.\n",
        rows.len(),
        settings.steps,
        settings.guidance_scale,
        settings.scorer,
        mean_scratch(rows)
    );
    let all = || rows.iter();
    let mut by_class: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    all().for_each(|row| by_class.entry(&row.pair.class).or_default().push(row));
    let bounds = bounds(rows);
    for resume in Resume::ALL {
        println!("### Loss by what changed, {} resume\n", resume.name());
        head(measure, "what changed");
        line(measure, rows, resume, "all", &all().collect::<Vec<_>>());
        by_class.iter().for_each(|(class, of)| line(measure, rows, resume, class, of));
        println!("\n### Loss by similarity, {} resume\n", resume.name());
        head(measure, "similarity");
        for part in 0..PARTS {
            let of: Vec<&Row> = all().filter(|row| part_of(&bounds, row) == part).collect();
            line(measure, rows, resume, &name(&bounds, part), &of);
        }
        println!("\n### Loss by what changed and similarity, {} resume\n", resume.name());
        head(measure, "what changed, similarity");
        for (class, of_class) in &by_class {
            for part in 0..PARTS {
                let of: Vec<&Row> =
                    of_class.iter().copied().filter(|row| part_of(&bounds, row) == part).collect();
                line(measure, rows, resume, &format!("{class}, {}", name(&bounds, part)), &of);
            }
        }
        println!();
    }
    tables.iter().try_for_each(|table| admitted(measure, rows, table))
}

fn head(measure: &Measure, first: &str) {
    let ks: Vec<String> =
        measure.settings.ks.iter().map(|k| format!("K = {k} of {}", measure.settings.steps)).collect();
    println!("| {first} | pairs | {} |", ks.join(" | "));
    println!("|---|---|{}", "---|".repeat(ks.len()));
}

/// A line of a table, where there are enough pairs.
fn line(measure: &Measure, all: &[Row], resume: Resume, name: &str, rows: &[&Row]) {
    if rows.len() < LEAST {
        return;
    }
    let mean = mean_scratch(all);
    let loss = |k: &usize| {
        let losses: Vec<(f64, f64)> =
            rows.iter().filter_map(|row| Some((lost(row, resume, *k, mean)?, 1.0))).collect();
        ratio(&losses).map_or_else(|| "–".to_owned(), |interval| format!("{interval:.3}"))
    };
    let cells: Vec<String> = measure.settings.ks.iter().map(loss).collect();
    println!("| {name} | {} | {} |", rows.len(), cells.join(" | "));
}

/// The loss of one picture, relative to `mean`.
fn lost(row: &Row, resume: Resume, k: usize, mean: f64) -> Option<f64> {
    let resumed = row.resumed.iter().find(|resumed| (resumed.resume, resumed.k) == (resume, k))?;
    Some((row.scratch - resumed.score) / mean)
}

/// The similarities that part the rows.
fn bounds(rows: &[Row]) -> Vec<f32> {
    let mut similarities: Vec<f32> = rows.iter().map(|row| row.similarity).collect();
    similarities.sort_by(f32::total_cmp);
    (1..PARTS).filter_map(|part| similarities.get(part * rows.len() / PARTS).copied()).collect()
}

fn part_of(bounds: &[f32], row: &Row) -> usize {
    bounds.iter().filter(|bound| row.similarity >= **bound).count()
}

fn name(bounds: &[f32], part: usize) -> String {
    match (part.checked_sub(1).and_then(|below| bounds.get(below)), bounds.get(part)) {
        (None, Some(below)) => format!("under {below:.3}"),
        (Some(from), Some(below)) => format!("{from:.3} to {below:.3}"),
        (Some(from), None) => format!("{from:.3} and more"),
        (None, None) => "any".to_owned(),
    }
}

/// What a policy that goes by the table alone skips of these pairs, and what that costs: per limit of the expected
/// loss the latest state within it, by what changed.
fn admitted(measure: &Measure, rows: &[Row], table: &Calibration) -> anyhow::Result<()> {
    let resume = table.measured_for.resume;
    let mean = mean_scratch(rows);
    println!("### What the table for {} resumes allows\n", resume.name());
    println!(
        "| largest loss | what changed | pairs | resumed | share skipped | loss of all | loss of the resumed |"
    );
    println!("|---|---|---|---|---|---|---|");
    for limit in LIMITS {
        let mut by_class: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
        for row in rows {
            let seen = measure.seen(&row.pair)?;
            let bounds = table.bounds(&seen.wanted, &seen.source, &seen.difference);
            // A share between two measured ones costs at most what the larger does.
            let bound = |k: &usize| {
                let share = measure.settings.share(*k);
                bounds.iter().find(|(at, _)| share <= at + 1e-4).map_or(f32::INFINITY, |(_, bound)| *bound)
            };
            let k = measure.settings.ks.iter().rev().find(|k| bound(k) <= limit).copied().unwrap_or(0);
            let loss = lost(row, resume, k, mean).unwrap_or(0.0);
            let cell = (f64::from(measure.settings.share(k)), loss);
            by_class.entry("all").or_default().push(cell);
            by_class.entry(&row.pair.class).or_default().push(cell);
        }
        for (class, cells) in by_class {
            let hits: Vec<(f64, f64)> = cells.iter().copied().filter(|(share, _)| *share > 0.0).collect();
            let loss = |of: &[(f64, f64)]| {
                let losses: Vec<(f64, f64)> = of.iter().map(|(_, loss)| (*loss, 1.0)).collect();
                ratio(&losses).map_or_else(|| "–".to_owned(), |interval: Interval| format!("{interval:.3}"))
            };
            println!(
                "| {limit} | {class} | {} | {:.2} | {:.3} | {} | {} |",
                cells.len(),
                hits.len() as f64 / cells.len() as f64,
                cells.iter().map(|(share, _)| share).sum::<f64>() / cells.len() as f64,
                loss(&cells),
                loss(&hits)
            );
        }
    }
    println!();
    Ok(())
}
