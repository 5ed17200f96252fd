//! What a step is worth: prompts, painted with more and fewer steps, and judged.

use std::collections::BTreeSet;
use std::sync::Arc;

use pentimento_pipelines::{Device, NoiseSource, Pipeline, Size, StepPlan, Trajectory};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::plan::{Curve, FrontierFile, FrontierFor, Point};
use crate::quality::{AttributeClassifier, Attributes, ClipScorer, fidelity, ratio};

/// A line of a file of prompts. What it holds beyond this is not read.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Prompt {
    pub prompt: String,
    /// What the prompt names, for models with an attribute classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<Attributes>,
}

/// What prompts were measured under; lines of other settings are never mixed.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Settings {
    pub model: String,
    pub weights: String,
    pub size: Size,
    pub guidance_scale: f32,
    /// Steps of the full plan.
    pub full: usize,
    /// Numbers of steps, rising; the last are the full plan's.
    pub steps: Vec<usize>,
    /// Steps of the full plan after which pictures go on with another number; the first is 0, from noise.
    pub ks: Vec<usize>,
    /// Who judges.
    pub fidelity: bool,
    pub clip_score: bool,
}

/// A measured prompt: a line of `measured.jsonl`.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub prompt: Prompt,
    pub pictures: Vec<Judged>,
}

/// One of its pictures.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub struct Judged {
    /// Steps of the full plan behind the state that it went on from.
    pub k: usize,
    /// Steps of the whole plan that it went on with.
    pub steps: usize,
    pub fidelity: Option<f64>,
    pub clip_score: Option<f64>,
}

/// Paints and judges.
pub struct Measure {
    pipeline: Pipeline,
    classifier: Option<AttributeClassifier>,
    clip: Option<ClipScorer>,
    /// What its rows are measured under.
    pub settings: Settings,
}

impl Measure {
    /// With the model's own size, guidance and full plan.
    pub fn new(
        pipeline: &Pipeline,
        prompts: &[Prompt],
        steps: &[usize],
        shares: &[f64],
    ) -> anyhow::Result<Self> {
        let defaults = pipeline.defaults();
        let full = defaults.steps;
        let at = |share: &f64| (share * full as f64).round() as usize;
        let ks: BTreeSet<usize> = shares.iter().map(at).filter(|k| *k < full).chain([0]).collect();
        let steps: BTreeSet<usize> = steps.iter().copied().filter(|n| *n < full).chain([full]).collect();
        let files = pipeline.model().files();
        let has = |file: &str| anyhow::Ok(files.read(file)?.is_some());
        let named = prompts.iter().all(|prompt| prompt.named.is_some());
        let classifier = match named && has("classifier/config.json")? {
            true => Some(AttributeClassifier::load(files, &Device::Cpu)?),
            false => None,
        };
        let clip = match has("clip/config.json")? {
            true => Some(ClipScorer::load(pipeline, &Device::Cpu)?),
            false => None,
        };
        if classifier.is_none() && clip.is_none() {
            anyhow::bail!(
                "the model cannot be judged: it needs an image tower (clip/) or a classifier (classifier/)"
            );
        }
        let settings = Settings {
            model: pipeline.id().to_owned(),
            weights: pipeline.model().digest()?.to_owned(),
            size: defaults.size,
            guidance_scale: defaults.guidance_scale,
            full,
            steps: steps.into_iter().collect(),
            ks: ks.into_iter().collect(),
            fidelity: classifier.is_some(),
            clip_score: clip.is_some(),
        };
        Ok(Self { pipeline: pipeline.clone(), classifier, clip, settings })
    }

    /// Paints the full plan, every other number of steps from the same noise, and every one from the full plan's own
    /// states: all in step, so that each step of all of them is one batch.
    pub fn prompt(&self, prompt: &Prompt) -> anyhow::Result<Row> {
        let Settings { size, full, steps, ks, .. } = &self.settings;
        let conditioning = Arc::new(self.pipeline.encode(&prompt.prompt, None, *size)?);
        let seed = seed(&prompt.prompt);
        let start =
            |plan| self.pipeline.start(Arc::clone(&conditioning), seed, NoiseSource::default(), *size, plan);
        let mut pictures: Vec<(usize, usize, Trajectory)> = Vec::new();
        for &steps in steps {
            pictures.push((0, steps, start(self.plan(steps)?)?));
        }
        let mut taken = 0;
        while pictures.iter().any(|(_, _, picture)| !picture.is_finished()) {
            let unfinished = pictures.iter_mut().map(|(_, _, picture)| picture);
            let mut batch: Vec<&mut Trajectory> = unfinished.filter(|p| !p.is_finished()).collect();
            self.pipeline.step(&mut batch)?;
            taken += 1;
            if !ks.contains(&taken) {
                continue;
            }
            let Some((_, _, whole)) = pictures.iter().find(|(k, steps, _)| (*k, *steps) == (0, *full)) else {
                continue;
            };
            let state = whole.snapshot()?;
            for &steps in steps {
                let rest = self.plan(steps)?.after(state.timestep);
                let resumed = self.pipeline.resume(&state, Arc::clone(&conditioning), seed, rest)?;
                pictures.push((taken, steps, resumed));
            }
        }
        let judge =
            |(k, steps, picture): &(usize, usize, Trajectory)| self.judge(prompt, *k, *steps, picture);
        let pictures = pictures.iter().map(judge).collect::<anyhow::Result<_>>()?;
        Ok(Row { prompt: prompt.clone(), pictures })
    }

    fn plan(&self, steps: usize) -> anyhow::Result<StepPlan> {
        Ok(self.pipeline.plan(steps, self.settings.guidance_scale)?)
    }

    fn judge(&self, prompt: &Prompt, k: usize, steps: usize, picture: &Trajectory) -> anyhow::Result<Judged> {
        let picture = self.pipeline.finish(picture)?;
        let fidelity = match (&self.classifier, &prompt.named) {
            (Some(classifier), Some(named)) => Some(fidelity(named, &classifier.classify(&picture)?).ratio()),
            _ => None,
        };
        let score = |clip: &ClipScorer| clip.score(&prompt.prompt, &picture).map(f64::from);
        Ok(Judged { k, steps, fidelity, clip_score: self.clip.as_ref().map(score).transpose()? })
    }

    /// The frontier of what was measured.
    ///
    /// # Errors
    /// Without rows.
    pub fn fitted(&self, rows: &[Row]) -> anyhow::Result<FrontierFile> {
        let Settings { model, weights, guidance_scale, full, steps, ks, .. } = &self.settings;
        let curve = |k: &usize| Curve {
            skipped: *k as f64 / *full as f64,
            points: steps.iter().map(|steps| self.point(rows, *k, *steps)).collect(),
        };
        let measured_for = FrontierFor {
            model: model.clone(),
            weights: weights.clone(),
            steps: *full,
            guidance_scale: *guidance_scale,
            prompts: rows.len(),
        };
        Ok(FrontierFile::new(measured_for, ks.iter().map(curve).collect())?)
    }

    /// Quality is what the worse of both judges says, relative to the full plan's pictures.
    fn point(&self, rows: &[Row], k: usize, steps: usize) -> Point {
        let full = self.settings.full;
        // Of each prompt: the picture's, and the full plan's from noise.
        let pairs = |of: fn(&Judged) -> Option<f64>| -> Vec<(f64, f64)> {
            let find =
                |row: &Row, k, steps| row.pictures.iter().find(|p| (p.k, p.steps) == (k, steps)).and_then(of);
            rows.iter().filter_map(|row| Some((find(row, k, steps)?, find(row, 0, full)?))).collect()
        };
        let (fidelity, clip) = (pairs(|judged| judged.fidelity), pairs(|judged| judged.clip_score));
        let mean = |pairs: &[(f64, f64)]| {
            let sum: f64 = pairs.iter().map(|(value, _)| value).sum();
            (!pairs.is_empty()).then(|| sum / pairs.len() as f64)
        };
        let relative = [&fidelity, &clip].into_iter().filter_map(|pairs| ratio(pairs));
        let worse = relative.min_by(|a, b| a.value.total_cmp(&b.value));
        let of = |value: Option<f64>| value.unwrap_or(0.0).clamp(0.0, 1.0);
        Point {
            steps,
            quality: of(worse.map(|interval| interval.value)),
            low: of(worse.map(|interval| interval.low)),
            high: of(worse.map(|interval| interval.high)),
            fidelity: mean(&fidelity),
            clip_score: mean(&clip),
        }
    }
}

/// The prompt's own, wherever it stands in a file.
fn seed(prompt: &str) -> u64 {
    let digest = Sha256::digest(prompt);
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}
