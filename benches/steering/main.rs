//! Does a resumed trajectory follow its own prompt, and which steering helps?
//!
//! `cargo bench --bench steering -- RESULTS.jsonl [--pairs FILE] [--k 5,10] [--threads N] SETTING...` paints every
//! pair's source, resumes it at every K of 50 with the new prompt under every setting, and appends one line a
//! picture to RESULTS; what is there already is not painted again. Without settings it prints the tables of what
//! is there. A setting is a list such as `extrapolated=1,steps=8,guidance=1.5,falling`; its words are `plain`,
//! `extrapolated=λ`, `contrastive=λ`, `steps=m`, `guidance=factor`, `falling` (λ falls linearly to
//! nothing), `renoise=levels` and `scratch` (no resume: the reference, from another seed).
#![allow(clippy::unwrap_used)]

mod report;

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;

use pentimento::quality::{AttributeClassifier, Attributes, ClipScorer, fidelity};
use pentimento_pipelines::{
    Components, DenoisingState, Device, Model, NoiseSource, Pipeline, Steering, StepPlan, Trajectory,
};
use serde::{Deserialize, Serialize};

// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const STEPS: usize = 50;
const BATCH: usize = 16;
/// The reference is not painted from the source's seed.
const OTHER_SEED: u64 = 1_000_000;

/// A line of pairs.jsonl.
#[derive(Deserialize)]
struct Pair {
    class: String,
    source: String,
    prompt: String,
    named: Attributes,
    /// By attribute, what a picture must show to have taken it up.
    changed: BTreeMap<String, Attributes>,
}

/// A line of the results: one picture.
#[derive(Deserialize, Serialize)]
struct Line {
    setting: String,
    /// Steps of 50 that the source had taken; 0 from scratch.
    k: usize,
    pair: usize,
    class: String,
    /// Changed attributes that the picture shows.
    taken: usize,
    changed: usize,
    /// Named attributes that the picture shows.
    found: usize,
    named: usize,
    clip: f32,
    /// Rows of all its steps.
    rows: usize,
}

/// How a picture is painted; see the head of this file.
struct Setting {
    name: String,
    scratch: bool,
    falling: bool,
    steps: usize,
    renoise: usize,
    guidance: f32,
    steering: Steering,
}

impl Setting {
    fn parse(name: &str) -> Self {
        let mut setting = Self {
            name: name.to_owned(),
            scratch: false,
            falling: false,
            steps: 0,
            renoise: 0,
            guidance: 1.0,
            steering: Steering::Prompts,
        };
        for word in name.split(',') {
            let (word, value) = word.split_once('=').unwrap_or((word, "0"));
            let strength = value.parse().unwrap();
            match word {
                "plain" => {}
                "scratch" => setting.scratch = true,
                "falling" => setting.falling = true,
                "steps" => setting.steps = value.parse().unwrap(),
                "renoise" => setting.renoise = value.parse().unwrap(),
                "guidance" => setting.guidance = strength,
                "extrapolated" => setting.steering = Steering::Extrapolated { strength },
                "contrastive" => setting.steering = Steering::Contrastive { strength },
                other => panic!("{other}: no word of a setting"),
            }
        }
        setting
    }

    /// Step number `i`'s steering.
    fn steering(&self, i: usize) -> Steering {
        let share = if self.falling { 1.0 - i as f32 / self.steps as f32 } else { 1.0 };
        match self.steering {
            Steering::Extrapolated { strength } => Steering::Extrapolated { strength: strength * share },
            Steering::Contrastive { strength } => Steering::Contrastive { strength: strength * share },
            Steering::Prompts => Steering::Prompts,
        }
    }

    /// The rest of the plan after `k` steps, as this setting takes it.
    fn plan(&self, full: &StepPlan, k: usize) -> StepPlan {
        if self.scratch {
            return full.clone().steered(STEPS, Steering::Prompts, self.guidance).unwrap();
        }
        let from = full.steps()[k.saturating_sub(self.renoise)].timestep;
        let rest = full.after(from);
        let mut steps = rest.steps().to_vec();
        for (i, step) in steps.iter_mut().take(self.steps).enumerate() {
            step.guidance.steering = self.steering(i);
            step.guidance.scale *= self.guidance;
        }
        StepPlan::new(steps, rest.eta()).unwrap()
    }
}

struct Bench {
    pipeline: Pipeline,
    classifier: AttributeClassifier,
    clip: ClipScorer,
    full: StepPlan,
}

impl Bench {
    fn load() -> Self {
        let model = Model::find("storybook").unwrap();
        let pipeline = Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap();
        let full = pipeline.plan(STEPS, pipeline.defaults().guidance_scale).unwrap();
        let classifier = AttributeClassifier::load(model.files(), &Device::Cpu).unwrap();
        let clip = ClipScorer::load(&pipeline, &Device::Cpu).unwrap();
        Self { pipeline, classifier, clip, full }
    }

    fn start(&self, prompt: &str, seed: u64, plan: StepPlan) -> Trajectory {
        let size = self.pipeline.defaults().size;
        let conditioning = Arc::new(self.pipeline.encode(prompt, None, size).unwrap());
        self.pipeline.start(conditioning, seed, NoiseSource::default(), size, plan).unwrap()
    }

    /// Advances all by one step; they have equally many left.
    fn step(&self, batch: &mut [Trajectory]) {
        self.pipeline.step(&mut batch.iter_mut().collect::<Vec<_>>()).unwrap();
    }

    /// Every pair's states at the wanted K, ascending; no step is taken past the last.
    fn sources(&self, pairs: &[(usize, &Pair)], ks: &[usize]) -> BTreeMap<usize, Vec<DenoisingState>> {
        let start = |&(i, pair): &(usize, &Pair)| self.start(&pair.source, i as u64, self.full.clone());
        let mut batch: Vec<Trajectory> = pairs.iter().map(start).collect();
        let mut states = BTreeMap::new();
        for k in 1..=ks.last().copied().unwrap_or(0) {
            self.step(&mut batch);
            if ks.contains(&k) {
                states.insert(k, batch.iter().map(|t| t.snapshot().unwrap()).collect());
            }
        }
        states
    }

    /// The trajectory of one picture.
    fn begin(
        &self,
        setting: &Setting,
        k: usize,
        pair: (usize, &Pair),
        state: Option<&DenoisingState>,
    ) -> Trajectory {
        let plan = setting.plan(&self.full, k);
        let (i, pair) = pair;
        let seed = OTHER_SEED + i as u64;
        let Some(state) = state else { return self.start(&pair.prompt, seed, plan) };
        let conditioning = self.pipeline.encode(&pair.prompt, None, self.pipeline.defaults().size).unwrap();
        let source = self.pipeline.encode_prompt(&pair.source).unwrap();
        let conditioning = Arc::new(conditioning.with_source(source).unwrap());
        self.pipeline.resume(state, conditioning, seed, plan).unwrap()
    }

    /// Paints a batch and judges it.
    fn cell(
        &self,
        setting: &Setting,
        k: usize,
        pairs: &[(usize, &Pair)],
        states: &[DenoisingState],
    ) -> Vec<Line> {
        let begin = |(n, &pair): (usize, &(usize, &Pair))| self.begin(setting, k, pair, states.get(n));
        let mut batch: Vec<Trajectory> = pairs.iter().enumerate().map(begin).collect();
        let rows: usize = batch[0].plan().steps().iter().map(|s| s.guidance.rows()).sum();
        while !batch[0].is_finished() {
            self.step(&mut batch);
        }
        let judge = |(&(i, pair), trajectory): (&(usize, &Pair), &Trajectory)| {
            let picture = self.pipeline.finish(trajectory).unwrap();
            let seen = self.classifier.classify(&picture).unwrap();
            let shown = |wanted: &&Attributes| {
                let share = fidelity(wanted, &seen);
                share.found == share.named
            };
            let share = fidelity(&pair.named, &seen);
            Line {
                setting: setting.name.clone(),
                k,
                pair: i,
                class: pair.class.clone(),
                taken: pair.changed.values().filter(shown).count(),
                changed: pair.changed.len(),
                found: share.found,
                named: share.named,
                clip: self.clip.score(&pair.prompt, &picture).unwrap(),
                rows,
            }
        };
        pairs.iter().zip(&batch).map(judge).collect()
    }
}

/// The lines of a JSON lines file; none of one that is not there.
fn read<T: serde::de::DeserializeOwned>(path: &str) -> Vec<T> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    BufReader::new(file).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

fn paint(results: &str, pairs: &[Pair], ks: &[usize], settings: &[Setting]) {
    let done: HashSet<(String, usize, usize)> =
        read::<Line>(results).into_iter().map(|l| (l.setting, l.k, l.pair)).collect();
    let mut file = OpenOptions::new().create(true).append(true).open(results).unwrap();
    let bench = Bench::load();
    let numbered: Vec<(usize, &Pair)> = pairs.iter().enumerate().collect();
    for chunk in numbered.chunks(BATCH) {
        let wanted = |s: &Setting| if s.scratch { vec![0] } else { ks.to_vec() };
        let missing: Vec<(&Setting, usize)> = settings
            .iter()
            .flat_map(|s| wanted(s).into_iter().map(move |k| (s, k)))
            .filter(|(s, k)| chunk.iter().any(|(i, _)| !done.contains(&(s.name.clone(), *k, *i))))
            .collect();
        let mut needed: Vec<usize> = missing.iter().map(|(_, k)| *k).filter(|k| *k > 0).collect();
        needed.sort_unstable();
        let states = bench.sources(chunk, &needed);
        for (setting, k) in missing {
            let from = states.get(&k).map_or(&[][..], |s| s);
            let lines = bench.cell(setting, k, chunk, from);
            let lines: String = lines.iter().map(|l| serde_json::to_string(l).unwrap() + "\n").collect();
            file.write_all(lines.as_bytes()).unwrap();
        }
        eprintln!("{} of {} pairs", chunk[chunk.len() - 1].0 + 1, pairs.len());
    }
}

fn main() {
    let mut pairs = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/steering/pairs.jsonl").to_owned();
    let mut ks = vec![3, 5, 8, 10, 15, 20, 25, 30, 40];
    let mut threads = 2;
    let mut free = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo's own
            "--pairs" => pairs = arguments.next().unwrap(),
            "--threads" => threads = arguments.next().unwrap().parse().unwrap(),
            "--k" => ks = arguments.next().unwrap().split(',').map(|k| k.parse().unwrap()).collect(),
            _ => free.push(argument),
        }
    }
    let Some((results, settings)) = free.split_first() else {
        return println!("see the head of benches/steering/main.rs");
    };
    if !settings.is_empty() {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
        let settings: Vec<Setting> = settings.iter().map(|s| Setting::parse(s)).collect();
        paint(results, &read(&pairs), &ks, &settings);
    }
    report::print(&read(results));
}
