//! Runs parts of the engine on demand and prints how long each took. `compare.py` runs it beside other engines.
//!
//! ```text
//! cargo bench --workspace --bench engine -- [--bf16] [--candle[=KIND]|--profile] MODEL WIDTHxHEIGHT THREADS
//! ```
//! It reads lines from stdin and answers each with milliseconds of wall time:
//! - `unet ROWS`: one denoising step of so many pictures without guidance;
//! - `text`: a prompt and the empty one;
//! - `vae`: a latent to pixels;
//! - `picture STEPS`: a whole picture at the model's guidance scale;
//! - `memory`: answers with the largest resident size in MiB.
//!
//! `--candle` uses candle's operators instead of our own, all of them or those of one kind. `--bf16` rounds the weights.
//! `--profile` prints where a step's time goes, and ends.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::Instant;

use pentimento_pipelines::layers::{OperatorKind, peak_flops, take_profile, with_candle_operators};
use pentimento_pipelines::{Components, Device, Model, NoiseSource, Pipeline, Precision, Size, Trajectory};

// The allocator of the `pentimento` binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PROMPT: &str = "a large red house on the left in the snow at night";
const LONG: usize = 1000;

struct Runner {
    pipeline: Pipeline,
    size: Size,
    batches: HashMap<usize, Vec<Trajectory>>,
}

impl Runner {
    fn start(&self, seed: u64, steps: usize, guidance: f32) -> Trajectory {
        let conditioning = Arc::new(self.pipeline.encode(PROMPT, None, self.size).unwrap());
        let plan = self.pipeline.plan(steps, guidance).unwrap();
        self.pipeline.start(conditioning, seed, NoiseSource::default(), self.size, plan).unwrap()
    }

    fn step(&mut self, rows: usize) -> f64 {
        let mut batch = self.batches.remove(&rows).unwrap_or_default();
        if batch.iter().all(Trajectory::is_finished) {
            batch = (0..rows as u64).map(|seed| self.start(seed, LONG, 1.0)).collect();
        }
        let mut members: Vec<&mut Trajectory> = batch.iter_mut().collect();
        let start = Instant::now();
        self.pipeline.step(&mut members).unwrap();
        let time = milliseconds(start);
        self.batches.insert(rows, batch);
        time
    }

    fn decode(&self) -> f64 {
        let trajectory = self.start(0, LONG, 1.0);
        let start = Instant::now();
        self.pipeline.finish(&trajectory).unwrap();
        milliseconds(start)
    }

    fn encode(&self) -> f64 {
        let start = Instant::now();
        self.pipeline.encode(PROMPT, None, self.size).unwrap();
        milliseconds(start)
    }

    fn picture(&self, steps: usize) -> f64 {
        let start = Instant::now();
        let mut trajectory = self.start(0, steps, self.pipeline.defaults().guidance_scale);
        while !trajectory.is_finished() {
            self.pipeline.step(&mut [&mut trajectory]).unwrap();
        }
        self.pipeline.finish(&trajectory).unwrap();
        milliseconds(start)
    }

    fn answer(&mut self, line: &str) -> f64 {
        let (what, number) = line.split_once(' ').unwrap_or((line, "1"));
        let number = number.parse().unwrap();
        match what {
            "unet" => self.step(number),
            "vae" => self.decode(),
            "text" => self.encode(),
            "picture" => self.picture(number),
            "memory" => peak_mib(),
            other => panic!("unknown part {other:?}"),
        }
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The largest resident size of this process so far, in MiB; 0 without Linux' procfs.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Prints where the time of a step goes, as Markdown.
fn profile(runner: &mut Runner, threads: f64) {
    let peak = (0..5).map(|_| peak_flops()).fold(0.0, f64::max);
    let (from, mut to) = (vec![1u8; 1 << 28], vec![0u8; 1 << 28]);
    let copies = (0..5).map(|_| {
        let start = Instant::now();
        to.copy_from_slice(&from);
        std::hint::black_box(&to);
        2.0 * from.len() as f64 / start.elapsed().as_secs_f64()
    });
    let bandwidth = copies.fold(0.0, f64::max);
    println!(
        "One thread of this machine: {:.0} GFLOP/s in f32 at most, {:.1} GB/s copying.\n",
        peak / 1e9,
        bandwidth / 1e9
    );
    println!("| rows | operator | calls | ms per step | share | GFLOP/s | of {threads} threads' peak |");
    println!("|---|---|---|---|---|---|---|");
    for rows in [1, 8] {
        (0..3).for_each(|_| _ = runner.step(rows));
        take_profile();
        let steps = (3000.0 / runner.step(rows)).clamp(3.0, 200.0) as usize;
        take_profile();
        let total: f64 = (0..steps).map(|_| runner.step(rows)).sum::<f64>() / steps as f64;
        let mut rest = total;
        for spent in take_profile() {
            let time = spent.time.as_secs_f64() * 1e3 / steps as f64;
            let rate = spent.flops as f64 / spent.time.as_secs_f64();
            rest -= time;
            println!(
                "| {rows} | {:?} | {} | {time:.3} | {:.1} % | {:.0} | {:.0} % |",
                spent.kind,
                spent.calls as usize / steps,
                100.0 * time / total,
                rate / 1e9,
                100.0 * rate / peak / threads
            );
        }
        println!("| {rows} | all else | | {rest:.3} | {:.1} % | | |", 100.0 * rest / total);
    }
}

fn main() {
    let (flags, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let [model, size, threads] = &arguments[..] else {
        // `cargo bench` without a driver.
        return println!("run pipelines/benches/compare.py, or see the head of engine.rs");
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse().unwrap()).build_global().unwrap();
    let model = Model::find(model).unwrap();
    let precision = if flags.iter().any(|flag| flag == "--bf16") { Precision::Bf16 } else { Precision::F32 };
    let load = || Pipeline::load(&model, &Components::of(precision), &Device::Cpu).unwrap();
    let candles: Vec<OperatorKind> = OperatorKind::ALL
        .into_iter()
        .filter(|kind| flags.iter().any(|flag| *flag == "--candle" || *flag == format!("--candle={kind:?}")))
        .collect();
    let pipeline = with_candle_operators(&candles, load);
    let mut runner = Runner { pipeline, size: size.parse().unwrap(), batches: HashMap::new() };
    if flags.iter().any(|flag| flag == "--profile") {
        return profile(&mut runner, threads.parse().unwrap());
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        println!("{}", runner.answer(line.unwrap().trim()));
        std::io::stdout().flush().unwrap();
    }
}
