//! The tables of the replayed trace.

use std::collections::HashMap;
use std::time::Instant;

use pentimento::quality::{Interval, ratio};

use crate::replay::{Outcome, Run};
use crate::studio::{Request, STEPS, Score, Start, Studio};

const CLASSES: [&str; 5] = ["all", "edit", "paraphrase", "fresh", "repeat"];

/// Seconds that a picture's stations take alone: medians, measured now.
struct Costs {
    encode: f64,
    step: f64,
    decode: f64,
}

impl Costs {
    fn measure(studio: &Studio, prompt: &str) -> Self {
        let (mut encode, mut step, mut decode) = (Vec::new(), Vec::new(), Vec::new());
        let timed = |times: &mut Vec<f64>, begun: Instant| times.push(begun.elapsed().as_secs_f64());
        for seed in 0..3 {
            let begun = Instant::now();
            let mut trajectory = studio.begin_scratch(prompt, seed);
            timed(&mut encode, begun);
            while !trajectory.is_finished() {
                let begun = Instant::now();
                studio.pipeline.step(&mut [&mut trajectory]).unwrap();
                timed(&mut step, begun);
            }
            let begun = Instant::now();
            studio.pipeline.finish(&trajectory).unwrap();
            timed(&mut decode, begun);
        }
        Self { encode: quantile(encode, 0.5), step: quantile(step, 0.5), decode: quantile(decode, 0.5) }
    }

    /// What a request takes that finds the machine idle. A whole picture is decoded from its latent.
    fn latency(&self, outcome: &Outcome) -> f64 {
        let steps = STEPS - outcome.start.k;
        let encode = if steps == 0 { 0.0 } else { self.encode };
        outcome.lookup + outcome.load + encode + self.step * steps as f64 + self.decode
    }
}

fn quantile(mut values: Vec<f64>, at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at).round() as usize]
}

struct Report<'a> {
    requests: &'a [Request],
    scores: HashMap<Start, Score>,
    off: &'a Run,
}

impl Report<'_> {
    fn of_class(&self, class: &str) -> Vec<usize> {
        (0..self.requests.len()).filter(|i| class == "all" || self.requests[*i].class == class).collect()
    }

    /// Share of the rows of all steps that were not taken.
    fn saved(run: &Run, of: &[usize]) -> Interval {
        let rows: Vec<(f64, f64)> =
            of.iter().map(|i| (run.outcomes[*i].start.k as f64, STEPS as f64)).collect();
        ratio(&rows).unwrap()
    }

    /// A score relative to the pictures that would have been painted without a cache.
    fn relative(&self, run: &Run, of: &[usize], score: fn(&Score) -> f64) -> Interval {
        let at = |run: &Run, i: usize| score(&self.scores[&run.outcomes[i].start]);
        let rows: Vec<(f64, f64)> = of.iter().map(|i| (at(run, *i), at(self.off, *i))).collect();
        ratio(&rows).unwrap()
    }
}

/// Prints all as Markdown.
pub fn print(studio: &Studio, requests: &[Request], runs: &[(&str, Run)]) {
    let report = Report { requests, scores: studio.scores(), off: &runs[0].1 };
    let costs = Costs::measure(studio, &requests[0].prompt);
    let all = report.of_class("all");
    println!(
        "| setting | saved | hits: state / whole | fidelity ÷ off | CLIP score ÷ off | p50 ÷ off | p95 ÷ off | entries | MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let latency = |run: &Run, at| quantile(run.outcomes.iter().map(|o| costs.latency(o)).collect(), at);
    for (name, run) in runs {
        let hits = |whole: bool| {
            let is = |o: &&Outcome| o.start.k > 0 && (o.start.k == STEPS) == whole;
            run.outcomes.iter().filter(is).count() as f64 / all.len() as f64
        };
        println!(
            "| {name} | {:.3} | {:.3} / {:.3} | {:.3} | {:.3} | {:.2} | {:.2} | {} | {:.1} |",
            Report::saved(run, &all),
            hits(false),
            hits(true),
            report.relative(run, &all, |s| s.fidelity),
            report.relative(run, &all, |s| s.clip),
            latency(run, 0.5) / latency(report.off, 0.5),
            latency(run, 0.95) / latency(report.off, 0.95),
            run.entries,
            run.bytes as f64 / 1e6
        );
    }
    let lookups =
        |at| quantile(runs[1..].iter().flat_map(|(_, r)| r.outcomes.iter().map(|o| o.lookup)).collect(), at);
    if runs.len() > 1 {
        println!(
            "\nAlone on this machine, now: a step {:.2} ms, encoding {:.2} ms, decoding {:.2} ms; look-ups p50 {:.3} ms, p95 {:.3} ms.",
            costs.step * 1e3,
            costs.encode * 1e3,
            costs.decode * 1e3,
            lookups(0.5) * 1e3,
            lookups(0.95) * 1e3
        );
    }
    println!(
        "\n| setting | class | requests | saved | fidelity ÷ off | CLIP score ÷ off | K of the state hits: mean |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, run) in runs {
        for class in &CLASSES[1..] {
            let of = report.of_class(class);
            let ks: Vec<f64> = of
                .iter()
                .map(|i| run.outcomes[*i].start.k)
                .filter(|k| (1..STEPS).contains(k))
                .map(|k| k as f64)
                .collect();
            println!(
                "| {name} | {class} | {} | {:.3} | {:.3} | {:.3} | {} |",
                of.len(),
                Report::saved(run, &of),
                report.relative(run, &of, |s| s.fidelity),
                report.relative(run, &of, |s| s.clip),
                if ks.is_empty() {
                    "–".into()
                } else {
                    format!("{:.1}", ks.iter().sum::<f64>() / ks.len() as f64)
                }
            );
        }
    }
    print_reused(&report, runs);
}

/// What the state hits alone lost, by how they were gone on from.
fn print_reused(report: &Report<'_>, runs: &[(&str, Run)]) {
    println!(
        "\n| setting | whole pictures of other requests | their fidelity ÷ off | state hits | their fidelity ÷ off |"
    );
    println!("|---|---|---|---|---|");
    for (name, run) in &runs[1..] {
        let hits = |whole: bool| -> Vec<usize> {
            let is = |i: &usize| match run.outcomes[*i].start {
                Start { k: STEPS, source, request, .. } => whole && source != request,
                Start { k, .. } => !whole && k > 0,
            };
            (0..run.outcomes.len()).filter(is).collect()
        };
        let cell = |of: Vec<usize>| match of.is_empty() {
            true => "0 | –".to_owned(),
            false => format!("{} | {:.3}", of.len(), report.relative(run, &of, |s| s.fidelity)),
        };
        println!("| {name} | {} | {} |", cell(hits(true)), cell(hits(false)));
    }
}
