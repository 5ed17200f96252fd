//! Time per call of the networks, our operators against candle's, interleaved in one process.
//!
//! ```text
//! cargo bench -p pentimento-pipelines --bench engine -- [--shape storybook|sd15] [--side LATENT]
//!     [--threads 1,2] [--rows 1,2,8,16] [--rounds N] [--only unet|vae|text] [--ours] [--json FILE]
//! ```
//! Weights are hashes of their names: speed does not depend on them. CPU time is the process', all threads.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/hash_weights.rs"]
#[allow(dead_code)]
mod hash_weights;

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use hash_weights::{normal_like, weights};
use pentimento_pipelines::layers::with_candle_operators;
use pentimento_pipelines::text::{ClipTextConfig, ClipTextEncoder};
use pentimento_pipelines::unet::{UNet, UNetConfig};
use pentimento_pipelines::vae::{Vae, VaeConfig};
use rayon::ThreadPoolBuilder;

struct Options {
    shape: String,
    side: usize,
    threads: Vec<usize>,
    rows: Vec<usize>,
    rounds: usize,
    only: Option<String>,
    ours_alone: bool,
    json: Option<String>,
}

impl Options {
    fn parse() -> Self {
        let mut o = Self {
            shape: "storybook".into(),
            side: 16,
            threads: vec![1, 2],
            rows: vec![1, 2, 8, 16],
            rounds: 15,
            only: None,
            ours_alone: false,
            json: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
            let list = |s: String| s.split(',').map(|n| n.parse().unwrap()).collect();
            match arg.as_str() {
                "--shape" => o.shape = value(),
                "--side" => o.side = value().parse().unwrap(),
                "--threads" => o.threads = list(value()),
                "--rows" => o.rows = list(value()),
                "--rounds" => o.rounds = value().parse().unwrap(),
                "--only" => o.only = Some(value()),
                "--json" => o.json = Some(value()),
                "--ours" => o.ours_alone = true,
                "--bench" => {} // cargo's own
                other => panic!("unknown argument {other}"),
            }
        }
        o
    }
}

/// CPU time of all threads so far. Without Linux' procfs, zero.
fn cpu_time() -> Duration {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    let nanoseconds = |task: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(tasks.flatten().filter_map(nanoseconds).sum())
}

/// Milliseconds of one call: wall, CPU.
fn time(call: &dyn Fn()) -> [f64; 2] {
    let (cpu, wall) = (cpu_time(), Instant::now());
    call();
    let wall = wall.elapsed();
    [wall, cpu_time() - cpu].map(|t| t.as_secs_f64() * 1e3)
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

/// One network's call with our operators, and with candle's.
struct Case<'a> {
    name: String,
    rows: usize,
    ours: Box<dyn Fn() + Sync + Send + 'a>,
    candles: Option<Box<dyn Fn() + Sync + Send + 'a>>,
}

impl Case<'_> {
    /// Prints a line, returns it as JSON.
    fn measure(&self, threads: usize, rounds: usize) -> String {
        let (mut ours, mut candles) = (Vec::new(), Vec::new());
        (self.ours)();
        for _ in 0..rounds {
            if let Some(call) = &self.candles {
                candles.push(time(call));
            }
            ours.push(time(&self.ours));
        }
        let column = |of: &[[f64; 2]], i: usize| median(of.iter().map(|t| t[i]).collect());
        let ((wall, least, most), (cpu, ..)) = (column(&ours, 0), column(&ours, 1));
        print!(
            "{:14} {threads} thr {:3} rows  ours {wall:8.2} ms ({least:.2}..{most:.2}) cpu {cpu:8.2}",
            self.name, self.rows
        );
        let mut json = format!(
            r#"{{"case": "{}", "threads": {threads}, "rows": {}, "ours_ms": {wall:.4}, "ours_least_ms": {least:.4}, "ours_cpu_ms": {cpu:.4}"#,
            self.name, self.rows
        );
        if !candles.is_empty() {
            let (theirs, their_cpu) = (column(&candles, 0).0, column(&candles, 1).0);
            let ratio = |i: usize| median(ours.iter().zip(&candles).map(|(o, c)| o[i] / c[i]).collect());
            let ((wall, w0, w1), (cpu, c0, c1)) = (ratio(0), ratio(1));
            print!(
                "  candle {theirs:8.2} cpu {their_cpu:8.2}  ratio {wall:.3} ({w0:.3}..{w1:.3}) cpu {cpu:.3} ({c0:.3}..{c1:.3})"
            );
            json += &format!(
                r#", "candle_ms": {theirs:.4}, "candle_cpu_ms": {their_cpu:.4}, "ratio": {wall:.4}, "cpu_ratio": {cpu:.4}"#
            );
        }
        println!();
        json + "}"
    }
}

fn config(shape: &str, file: &str) -> Vec<u8> {
    let path = format!("{}/tests/goldens/{shape}/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Stable Diffusion 1.5's own sizes are diffusers' defaults; the goldens have a small model of its kind.
fn unet_config(shape: &str) -> UNetConfig {
    let json = config(shape, "unet/config.json");
    if shape != "sd15" {
        return UNetConfig::from_json(&json).unwrap();
    }
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    json["block_out_channels"] = serde_json::json!([320, 640, 1280, 1280]);
    json["layers_per_block"] = 2.into();
    json["attention_head_dim"] = 8.into();
    json["norm_num_groups"] = 32.into();
    json["cross_attention_dim"] = 768.into();
    UNetConfig::from_json(json.to_string().as_bytes()).unwrap()
}

fn pair<T>(ours_alone: bool, build: impl Fn() -> T) -> (T, Option<T>) {
    (build(), (!ours_alone).then(|| with_candle_operators(&build)))
}

fn main() {
    let o = Options::parse();
    let wanted = |name: &str| o.only.as_deref().is_none_or(|only| only == name);
    let mut lines = Vec::new();
    let mut run = |case: &Case| {
        for &threads in &o.threads {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            lines.push(pool.install(|| case.measure(threads, o.rounds)));
        }
    };
    if wanted("unet") {
        let json = unet_config(&o.shape);
        let (ours, candles) = pair(o.ours_alone, || UNet::new(json.clone(), weights("unet", &[]).0).unwrap());
        let width = json.stages[0].token_width;
        let tokens = if o.shape == "storybook" { 40 } else { 77 };
        for &rows in &o.rows {
            let sample = normal_like("sample", (rows, 4, o.side, o.side)).unwrap();
            let states = normal_like("states", (rows, tokens, width)).unwrap();
            let times = Tensor::full(500f32, rows, &Device::Cpu).unwrap();
            let call = |unet: &UNet| {
                unet.forward(&sample, &times, &states, None).unwrap();
            };
            let candles: Option<Box<dyn Fn() + Sync + Send>> = match &candles {
                Some(unet) => Some(Box::new(move || call(unet))),
                None => None,
            };
            run(&Case { name: "unet".into(), rows, ours: Box::new(|| call(&ours)), candles });
        }
    }
    if wanted("vae") {
        let json = VaeConfig::from_json(&config(&o.shape, "vae/config.json")).unwrap();
        let absent = ["decoder.mid_block.attentions.0.query", "encoder.mid_block.attentions.0.query"];
        let (ours, candles) =
            pair(o.ours_alone, || Vae::new(json.clone(), weights("vae", &absent).0).unwrap());
        let latent = normal_like("latent", (1, 4, o.side, o.side)).unwrap();
        let call = |vae: &Vae| {
            vae.decode(&latent).unwrap();
        };
        let candles: Option<Box<dyn Fn() + Sync + Send>> = match &candles {
            Some(vae) => Some(Box::new(move || call(vae))),
            None => None,
        };
        run(&Case { name: "vae decode".into(), rows: 1, ours: Box::new(|| call(&ours)), candles });
    }
    if wanted("text") {
        let json = ClipTextConfig::from_json(&config(&o.shape, "text_encoder/config.json")).unwrap();
        let (ours, candles) = pair(o.ours_alone, || {
            ClipTextEncoder::new(
                json.clone(),
                weights("text_encoder", &["text_model.", "text_projection."]).0,
            )
            .unwrap()
        });
        let ids =
            Tensor::ones((1, json.max_position_embeddings), candle_core::DType::U32, &Device::Cpu).unwrap();
        let call = |text: &ClipTextEncoder| {
            text.forward(&ids).unwrap();
        };
        let candles: Option<Box<dyn Fn() + Sync + Send>> = match &candles {
            Some(text) => Some(Box::new(move || call(text))),
            None => None,
        };
        run(&Case { name: "text encode".into(), rows: 1, ours: Box::new(|| call(&ours)), candles });
    }
    if let Some(file) = &o.json {
        std::fs::write(file, format!("[\n  {}\n]\n", lines.join(",\n  "))).unwrap();
    }
}
