//! What do reuse policies save on a trace of editing users, and what do they cost in quality?
//!
//! `python benches/trace/draw.py > trace.jsonl`, then `cargo bench --bench trace -- trace.jsonl WORK SETTING...` replays
//! the trace through an empty cache under each setting, paints the pictures that are missing, and prints the tables.
//! Pictures are told apart by prompt, seed and start, so all settings share them; they are kept in WORK, and whoever is
//! cut goes on where he was. Settings are `Setting::parse`'s; `off` is the reference and always replayed.
//! `--part I/N` only paints the I-th of N parts of what is missing, for several processes at one WORK.
//! `--precision bf16` paints, and measures, 2.5 times as fast on processors with AMX.
//! `--model weights-manifest/storybook.toml` takes the model and its calibration tables from files.
//! `--variety N` paints, instead, ten pictures each, without a seed, of the trace's first N edits.
#![allow(clippy::unwrap_used)]

mod replay;
mod report;
mod studio;
mod variety;

use std::path::Path;

use pentimento_pipelines::Precision;
use replay::{Setting, embedder, replay};
use studio::{Request, Start, Studio};

// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut threads = 2;
    let mut precision = Precision::F32;
    let mut varied = None;
    let mut part = None;
    let mut model = "storybook".to_owned();
    let mut free = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo's own
            "--threads" => threads = arguments.next().unwrap().parse().unwrap(),
            "--variety" => varied = Some(arguments.next().unwrap().parse().unwrap()),
            "--precision" => precision = arguments.next().unwrap().parse().unwrap(),
            "--model" => model = arguments.next().unwrap(),
            "--part" => {
                let text = arguments.next().unwrap();
                let (i, n) = text.split_once('/').unwrap();
                part = Some((i.parse::<usize>().unwrap(), n.parse::<usize>().unwrap()));
            }
            _ => free.push(argument),
        }
    }
    let [trace, work, names @ ..] = free.as_slice() else {
        return println!("see the head of benches/trace/main.rs");
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let text = std::fs::read_to_string(trace).unwrap();
    let requests: Vec<Request> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let work = Path::new(work);
    let studio = Studio::open(&model, precision, work);
    let embedder = embedder(&studio);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let settings: Vec<Setting> = names.iter().map(|name| Setting::parse(name)).collect();
    if let Some(prompts) = varied {
        return runtime.block_on(variety::print(&studio, &embedder, &requests, &settings, prompts, work));
    }
    let ours = |start: &Start| part.is_none_or(|(i, n)| start.request % n == i);
    let paint = |starts: &mut dyn Iterator<Item = Start>| studio.paint(&requests, starts.filter(ours));
    paint(&mut (0..requests.len()).map(|i| studio::canonical(&requests, i)));
    if settings.is_empty() {
        return;
    }
    let cache = work.join(format!("cache-{}", std::process::id()));
    let off = Setting::parse("off");
    let runs: Vec<_> = std::iter::once(&off)
        .chain(&settings)
        .map(|setting| {
            let run = runtime.block_on(replay(&studio, &embedder, &requests, setting, &cache));
            let steps: usize = run.outcomes.iter().map(|outcome| outcome.start.k).sum();
            eprintln!("{}: {steps} steps saved", setting.name);
            (setting.name.as_str(), run)
        })
        .collect();
    paint(&mut runs.iter().flat_map(|(_, run)| run.outcomes.iter().map(|outcome| outcome.start)));
    if part.is_none() {
        report::print(&studio, &requests, &runs);
    }
}
