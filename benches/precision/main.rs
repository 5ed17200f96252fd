//! What rounding weights costs in pictures: every prompt painted in f32 and in bf16 from the same seed, and judged.
//!
//! `cargo bench --bench precision -- [--count N] [--threads N]` prints a Markdown table: the mean of each score in
//! both precisions, and of the difference within a pair, with a 95 % interval from resampled pairs.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use pentimento::quality::{AttributeClassifier, Attributes, ClipScorer, fidelity};
use pentimento_pipelines::{
    Components, Device, Model, NoiseSource, Picture, Pipeline, Precision, Trajectory,
};
use serde::Deserialize;

// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const STEPS: usize = 50;
const BATCH: usize = 16;
const RESAMPLES: usize = 10_000;

/// A line of prompts.jsonl.
#[derive(Deserialize)]
struct Wanted {
    prompt: String,
    named: Attributes,
}

/// A model in one precision, and how long it has painted.
struct Painter {
    pipeline: Pipeline,
    time: Duration,
}

impl Painter {
    fn load(model: &Model, precision: Precision) -> Self {
        let pipeline = Pipeline::load(model, &Components::of(precision), &Device::Cpu).unwrap();
        Self { pipeline, time: Duration::ZERO }
    }

    /// A picture of every prompt; seeds count up from `seed`.
    fn paint(&mut self, wanted: &[Wanted], seed: usize) -> Vec<Picture> {
        let start = Instant::now();
        let (p, defaults) = (&self.pipeline, self.pipeline.defaults());
        let begin = |(i, wanted): (usize, &Wanted)| -> Trajectory {
            let conditioning = Arc::new(p.encode(&wanted.prompt, None, defaults.size).unwrap());
            let plan = p.plan(STEPS, defaults.guidance_scale).unwrap();
            p.start(conditioning, (seed + i) as u64, NoiseSource::default(), defaults.size, plan).unwrap()
        };
        let mut batch: Vec<Trajectory> = wanted.iter().enumerate().map(begin).collect();
        while !batch[0].is_finished() {
            p.step(&mut batch.iter_mut().collect::<Vec<_>>()).unwrap();
        }
        let pictures = batch.iter().map(|t| p.finish(t).unwrap()).collect();
        self.time += start.elapsed();
        pictures
    }
}

/// A score of every picture, in f32 and in bf16.
#[derive(Default)]
struct Paired(Vec<[f64; 2]>);

impl Paired {
    fn print(&self, what: &str) {
        let n = self.0.len();
        let mean = |side: usize| self.0.iter().map(|pair| pair[side]).sum::<f64>() / n as f64;
        let differences: Vec<f64> = self.0.iter().map(|[f32, bf16]| bf16 - f32).collect();
        // Knuth's generator, so that the interval is the same each time.
        let mut state = 7u64;
        let mut any = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let mut means: Vec<f64> =
            (0..RESAMPLES).map(|_| (0..n).map(|_| differences[any()]).sum::<f64>() / n as f64).collect();
        means.sort_by(f64::total_cmp);
        let (low, high) = (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40]);
        println!(
            "| {what} | {:.4} | {:.4} | {:+.4} ({low:+.4} to {high:+.4}) |",
            mean(0),
            mean(1),
            mean(1) - mean(0)
        );
    }
}

/// Mean difference of two pictures' values, of 255.
fn distance(a: &Picture, b: &Picture) -> f64 {
    let sum: u64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.rgb.len() as f64
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn main() {
    let (mut count, mut threads) = (usize::MAX, 2);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo's own
            "--count" => count = arguments.next().unwrap().parse().unwrap(),
            "--threads" => threads = arguments.next().unwrap().parse().unwrap(),
            other => panic!("{other}: see the head of benches/precision/main.rs"),
        }
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let lines = include_str!("prompts.jsonl").lines().take(count);
    let wanted: Vec<Wanted> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    let model = Model::find("storybook").unwrap();
    let mut painters = [Precision::F32, Precision::Bf16].map(|precision| Painter::load(&model, precision));
    let classifier = AttributeClassifier::load(model.files(), &Device::Cpu).unwrap();
    let clip = ClipScorer::load(&painters[0].pipeline, &Device::Cpu).unwrap();

    let (mut found, mut scores) = (Paired::default(), Paired::default());
    let (mut apart, mut between) = (Vec::new(), Vec::new());
    for (n, batch) in wanted.chunks(BATCH).enumerate() {
        let pictures = painters.each_mut().map(|painter| painter.paint(batch, n * BATCH));
        for (i, Wanted { prompt, named }) in batch.iter().enumerate() {
            let pair = [&pictures[0][i], &pictures[1][i]];
            found.0.push(pair.map(|picture| fidelity(named, &classifier.classify(picture).unwrap()).ratio()));
            scores.0.push(pair.map(|picture| f64::from(clip.score(prompt, picture).unwrap())));
            apart.push(distance(pair[0], pair[1]));
            between.push(distance(pair[0], &pictures[0][(i + 1) % batch.len()]));
        }
        eprintln!("{} of {} prompts", n * BATCH + batch.len(), wanted.len());
    }

    println!("{} prompts, {STEPS} steps, {threads} threads.\n", wanted.len());
    println!("| score | f32 | bf16 | bf16 − f32, of a pair (95 %) |\n|---|---|---|---|");
    found.print("attribute fidelity");
    scores.print("CLIP score");
    apart.sort_by(f64::total_cmp);
    println!(
        "\nA pair's pictures differ by {:.2} of 255 per value in the mean, {:.2} in the median, {:.2} at most; two prompts' by {:.2}.",
        average(&apart),
        apart[apart.len() / 2],
        apart[apart.len() - 1],
        average(&between)
    );
    println!(
        "Painting took {:.2} times as long in f32.",
        painters[0].time.as_secs_f64() / painters[1].time.as_secs_f64()
    );
}
