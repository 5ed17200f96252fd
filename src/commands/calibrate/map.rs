//! The map: what resuming costs by what changed, how similar the prompts are, and how late the state is; and what
//! tables make of pairs that they were not learned from.

use std::collections::BTreeMap;

use pentimento_cache::{Calibration, Resume};

use super::measure::{Measure, Row, mean_scratch};
use crate::quality::ratio;

/// Parts of the similarities with equally many pairs.
const PARTS: usize = 3;
/// Fewer pairs say too little to be printed.
const LEAST: usize = 8;
const LIMITS: [f32; 5] = [0.02, 0.03, 0.05, 0.08, 0.12];

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

/// What a policy that goes by the table alone skips of these pairs, and what that costs: by what changed and by the
/// loss that is allowed.
fn admitted(measure: &Measure, rows: &[Row], table: &Calibration) -> anyhow::Result<()> {
    let resume = table.measured_for.resume;
    println!("### Share skipped, and loss, where the table for {} resumes decides\n", resume.name());
    let limits = LIMITS.map(|limit| format!("at most {limit}"));
    println!("| what changed | pairs | {} |\n|---|---|{}", limits.join(" | "), "---|".repeat(LIMITS.len()));
    let mut by_class: BTreeMap<&str, Vec<Vec<Reused>>> = BTreeMap::new();
    for row in rows {
        let reused = reused(measure, row, table, mean_scratch(rows))?;
        by_class.entry("all").or_default().push(reused.clone());
        by_class.entry(&row.pair.class).or_default().push(reused);
    }
    for (class, rows) in by_class {
        let cell = |limit: usize| {
            let skipped: f64 = rows.iter().map(|row| row[limit].share).sum();
            let losses: Vec<(f64, f64)> = rows.iter().map(|row| (row[limit].loss, 1.0)).collect();
            let loss = ratio(&losses).map_or_else(|| "–".to_owned(), |interval| format!("{interval:.3}"));
            format!("{:.2}, {loss}", skipped / rows.len() as f64)
        };
        let cells: Vec<String> = (0..LIMITS.len()).map(cell).collect();
        println!("| {class} | {} | {} |", rows.len(), cells.join(" | "));
    }
    println!();
    Ok(())
}

/// What is skipped of a pair, and lost; nothing of a pair that is painted from scratch.
#[derive(Clone, Copy)]
struct Reused {
    share: f64,
    loss: f64,
}

/// Per limit, what the latest measured state does whose bound is within it.
fn reused(measure: &Measure, row: &Row, table: &Calibration, mean: f64) -> anyhow::Result<Vec<Reused>> {
    let seen = measure.seen(&row.pair)?;
    let bounds = table.bounds(&seen.wanted, &seen.source, &seen.difference);
    // A share between two measured ones costs at most what the larger does.
    let bound = |k: &usize| {
        let share = measure.settings.share(*k);
        bounds.iter().find(|(at, _)| share <= at + 1e-4).map_or(f32::INFINITY, |(_, bound)| *bound)
    };
    let at = |limit: f32| {
        let k = measure.settings.ks.iter().rev().find(|k| bound(k) <= limit).copied().unwrap_or(0);
        let loss = lost(row, table.measured_for.resume, k, mean).unwrap_or(0.0);
        Reused { share: measure.settings.share(k).into(), loss }
    };
    Ok(LIMITS.map(at).to_vec())
}
