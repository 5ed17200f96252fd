//! The model and its scorers; pictures painted from scratch with their states, and pictures that go on from them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Tensor, safetensors};
use pentimento::quality::{AttributeClassifier, Attributes, ClipScorer, fidelity};
use pentimento_pipelines::{
    Components, DenoisingState, Device, Model, NoiseSource, Picture, Pipeline, Precision, ResumeSteering,
    StepPlan, Trajectory,
};
use serde::{Deserialize, Serialize};

pub const STEPS: usize = 50;
/// Steps of 50 after which a picture's states are kept; 50 is the finished latent.
pub const KS: [usize; 9] = [5, 10, 15, 20, 25, 30, 35, 40, STEPS];
const IN_FLIGHT: usize = 12;

/// A line of the trace.
#[derive(Deserialize)]
pub struct Request {
    pub class: String,
    pub prompt: String,
    pub seed: u64,
    pub named: Attributes,
}

/// How a picture goes on from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    Steered,
    Plain,
    /// From the finished latent with forward noise (MoDM's way).
    Renoised,
}

/// What a picture is: whose prompt, whose state and how it was gone on from. K = 0 is from scratch, 50 the finished
/// picture itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Start {
    pub request: usize,
    pub source: usize,
    pub k: usize,
    pub how: How,
}

impl Start {
    pub fn scratch(request: usize) -> Self {
        Self { request, source: request, k: 0, how: How::Plain }
    }
}

/// From scratch, by the first request for the same picture.
pub fn canonical(requests: &[Request], request: usize) -> Start {
    let Request { prompt, seed, .. } = &requests[request];
    let first = requests.iter().position(|r| r.prompt == *prompt && r.seed == *seed);
    Start::scratch(first.unwrap_or(request))
}

/// A line of the scores.
#[derive(Deserialize, Serialize)]
struct Line {
    #[serde(flatten)]
    start: Start,
    #[serde(flatten)]
    score: Score,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub struct Score {
    /// Share of the named attributes that the picture shows.
    pub fidelity: f64,
    pub clip: f64,
}

pub struct Studio {
    pub pipeline: Pipeline,
    pub full: StepPlan,
    classifier: AttributeClassifier,
    clip: ClipScorer,
    folder: PathBuf,
}

impl Studio {
    /// Keeps pictures' states and scores in `folder`.
    pub fn open(model: &str, precision: Precision, folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("states")).unwrap();
        let model = Model::find(model).unwrap();
        let pipeline = Pipeline::load(&model, &Components::of(precision), &Device::Cpu).unwrap();
        let full = pipeline.plan(STEPS, pipeline.defaults().guidance_scale).unwrap();
        let classifier = AttributeClassifier::load(model.files(), &Device::Cpu).unwrap();
        let clip = ClipScorer::load(&pipeline, &Device::Cpu).unwrap();
        Self { pipeline, full, classifier, clip, folder: folder.to_owned() }
    }

    /// The timestep of a state after `k` steps.
    pub fn timestep(&self, k: usize) -> f64 {
        self.full.steps().get(k).map_or(-1.0, |step| step.timestep)
    }

    /// Scores of all pictures painted so far.
    pub fn scores(&self) -> HashMap<Start, Score> {
        let Ok(file) = File::open(self.folder.join("scores.jsonl")) else { return HashMap::new() };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        // A line that was cut is painted again.
        lines.filter_map(|line| serde_json::from_str(&line).ok()).map(|l: Line| (l.start, l.score)).collect()
    }

    /// Paints and judges those of `wanted` that are not yet.
    pub fn paint(&self, requests: &[Request], wanted: impl IntoIterator<Item = Start>) {
        let known = self.scores();
        let missing: HashSet<Start> = wanted.into_iter().filter(|start| !known.contains_key(start)).collect();
        let mut missing: Vec<Start> = missing.into_iter().collect();
        missing.sort();
        let count = missing.len();
        let mut file =
            OpenOptions::new().create(true).append(true).open(self.folder.join("scores.jsonl")).unwrap();
        let mut waiting = missing.into_iter();
        let mut painting: Vec<(Start, Trajectory, BTreeMap<usize, DenoisingState>)> = Vec::new();
        let mut done = 0;
        loop {
            while painting.len() < IN_FLIGHT {
                let Some(start) = waiting.next() else { break };
                painting.push((start, self.begin(requests, start), BTreeMap::new()));
            }
            if painting.is_empty() {
                return;
            }
            let mut unfinished: Vec<&mut Trajectory> =
                painting.iter_mut().map(|(_, t, _)| t).filter(|t| !t.is_finished()).collect();
            self.pipeline.step(&mut unfinished).unwrap();
            for (start, trajectory, states) in &mut painting {
                let taken = STEPS - trajectory.plan().steps().len();
                if start.k == 0 && KS.contains(&taken) {
                    states.insert(taken, trajectory.snapshot().unwrap());
                }
            }
            let (finished, rest) = painting.into_iter().partition(|(_, t, _)| t.is_finished());
            painting = rest;
            for (start, trajectory, states) in finished {
                // States first: whose score is there, has its states.
                if start.k == 0 {
                    self.keep(start.request, &states);
                }
                let score = self.judge(&requests[start.request], &self.pipeline.finish(&trajectory).unwrap());
                let line = serde_json::to_string(&Line { start, score }).unwrap() + "\n";
                file.write_all(line.as_bytes()).unwrap();
                done += 1;
                if done % 50 == 0 {
                    eprintln!("{done} of {count} pictures");
                }
            }
        }
    }

    /// The trajectory of a picture, as it starts.
    fn begin(&self, requests: &[Request], start: Start) -> Trajectory {
        let request = &requests[start.request];
        if start.k == 0 {
            return self.begin_scratch(&request.prompt, request.seed);
        }
        let from = if start.how == How::Renoised { STEPS } else { start.k };
        let source = &requests[start.source].prompt;
        let state = self.state(start.source, from);
        self.go_on(&request.prompt, source, request.seed, &state, start.k, start.how, 0.0)
    }

    pub fn begin_scratch(&self, prompt: &str, seed: u64) -> Trajectory {
        let size = self.pipeline.defaults().size;
        let conditioning = Arc::new(self.pipeline.encode(prompt, None, size).unwrap());
        self.pipeline.start(conditioning, seed, NoiseSource::default(), size, self.full.clone()).unwrap()
    }

    /// Goes on from a state with the steps after the `k`-th; `eta` is DDIM's η.
    #[expect(clippy::too_many_arguments, reason = "all of them tell one picture from another")]
    pub fn go_on(
        &self,
        prompt: &str,
        source: &str,
        seed: u64,
        state: &DenoisingState,
        k: usize,
        how: How,
        eta: f32,
    ) -> Trajectory {
        let conditioning = self.pipeline.encode(prompt, None, self.pipeline.defaults().size).unwrap();
        let timestep = self.timestep(k);
        let (conditioning, plan) = match how {
            How::Steered => {
                let source = self.pipeline.encode_prompt(source).unwrap();
                let plan = ResumeSteering::DEFAULT.plan(&self.full, timestep).unwrap();
                (conditioning.with_source(source).unwrap(), plan)
            }
            How::Plain | How::Renoised => (conditioning, self.full.after(timestep)),
        };
        self.pipeline.resume(state, Arc::new(conditioning), seed, plan.with_eta(eta).unwrap()).unwrap()
    }

    pub fn judge(&self, request: &Request, picture: &Picture) -> Score {
        let seen = self.classifier.classify(picture).unwrap();
        let clip = self.clip.score(&request.prompt, picture).unwrap();
        Score { fidelity: fidelity(&request.named, &seen).ratio(), clip: clip.into() }
    }

    fn path(&self, request: usize) -> PathBuf {
        self.folder.join("states").join(format!("{request}.safetensors"))
    }

    fn keep(&self, request: usize, states: &BTreeMap<usize, DenoisingState>) {
        // As the cache keeps them.
        let tensor = |(k, s): (&usize, &DenoisingState)| {
            let dtype = if *k == STEPS { DType::F32 } else { DType::F16 };
            let latent = Tensor::from_slice(&s.latent, &s.shape[..], &Device::Cpu).unwrap();
            (k.to_string(), latent.to_dtype(dtype).unwrap())
        };
        let tensors: HashMap<String, Tensor> = states.iter().map(tensor).collect();
        safetensors::save(&tensors, self.path(request)).unwrap();
    }

    /// A picture's state after `k` steps; it must have been painted.
    pub fn state(&self, request: usize, k: usize) -> DenoisingState {
        let tensors = safetensors::load(self.path(request), &Device::Cpu).unwrap();
        let tensor = tensors[&k.to_string()].to_dtype(DType::F32).unwrap();
        let (c, h, w) = tensor.dims3().unwrap();
        let latent = tensor.flatten_all().unwrap().to_vec1().unwrap();
        DenoisingState { timestep: self.timestep(k), shape: [c, h, w], latent }
    }
}
