//! What resuming another prompt's picture costs: pairs of prompts, painted and judged.

use std::collections::BTreeSet;
use std::sync::Arc;

use pentimento_cache::{CalibrationFor, Content, Difference, Measured, Resume};
use pentimento_pipelines::{
    Conditioning, DenoisingState, Device, NoiseSource, Pipeline, ResumeSteering, Size, StepPlan, Trajectory,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::gateway::embedder::{self, Embedder};
use crate::quality::{Attributes, Scorer};

/// Differences count words, and are the same under every key.
const ANY_KEY: &[u8; 16] = &[0; 16];

/// A line of a file of pairs. What it holds beyond this is not read.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Pair {
    /// The prompt whose picture is resumed.
    pub source: String,
    /// The prompt that is wanted.
    pub prompt: String,
    /// What the wanted prompt names, for models with an attribute classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<Attributes>,
    /// What changed between the two, for the report.
    #[serde(default)]
    pub class: String,
}

/// What pairs were measured under; lines of other settings are never mixed.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Settings {
    pub embedder: String,
    pub latent_space: String,
    pub noise_schedule: String,
    pub model: String,
    pub weights: String,
    /// Sizes that pairs are painted at, each pair at one of them.
    pub sizes: Vec<Size>,
    pub guidance_scale: f32,
    pub steps: usize,
    pub scorer: String,
    /// Steps taken before a state is resumed, rising.
    pub ks: Vec<usize>,
}

impl Settings {
    /// What a table says that was measured under these.
    pub fn measured_for(&self, resume: Resume) -> CalibrationFor {
        CalibrationFor {
            embedder: self.embedder.clone(),
            latent_space: self.latent_space.clone(),
            noise_schedule: self.noise_schedule.clone(),
            model: self.model.clone(),
            weights: self.weights.clone(),
            sizes: self.sizes.iter().map(|size| (size.width, size.height)).collect(),
            guidance_scale: self.guidance_scale,
            steps: self.steps,
            resume,
        }
    }

    /// The size that a pair is painted at, wherever it stands in a file: the first size for about half of the pairs, since
    /// most pictures have it, and the others in equal parts for the rest.
    fn size(&self, pair: &Pair) -> Size {
        let [_, _, number] = numbers(pair);
        let (first, others) = (self.sizes[0], &self.sizes[1..]);
        if others.is_empty() || number % 2 == 0 {
            return first;
        }
        others[(number / 2 % others.len() as u64) as usize]
    }

    /// The share of the plan that `k` steps are.
    pub fn share(&self, k: usize) -> f32 {
        k as f32 / self.steps as f32
    }
}

/// A measured pair: a line of `measured.jsonl`.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub pair: Pair,
    /// Cosine of both prompts' embeddings.
    pub similarity: f32,
    /// Score of the wanted prompt's picture from scratch, from a seed of its own.
    pub scratch: f64,
    /// Scores of its pictures that went on from the source's.
    pub resumed: Vec<Resumed>,
}

/// One resumed picture.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub struct Resumed {
    pub resume: Resume,
    /// Steps of the source's plan that had been taken.
    pub k: usize,
    pub score: f64,
}

/// Paints and judges.
pub struct Measure {
    pipeline: Pipeline,
    scorer: Scorer,
    embedder: Box<dyn Embedder>,
    full: StepPlan,
    /// What its rows are measured under.
    pub settings: Settings,
}

impl Measure {
    /// Of pictures of these `sizes`, at least one; `known`, where all pairs say what their prompts name.
    pub fn new(
        pipeline: &Pipeline,
        known: bool,
        sizes: Vec<Size>,
        steps: usize,
        guidance_scale: f32,
        shares: &[f32],
    ) -> anyhow::Result<Self> {
        let full = pipeline.plan(steps, guidance_scale)?;
        let steps = full.steps().len();
        let at = |share: &f32| (share * steps as f32).round() as usize;
        let ks: BTreeSet<usize> = shares.iter().map(at).filter(|k| (1..steps).contains(k)).collect();
        let scorer = Scorer::load(pipeline, known, &Device::Cpu)?;
        let embedder = embedder::for_model(pipeline)?;
        let settings = Settings {
            embedder: embedder.digest().to_owned(),
            latent_space: pipeline.model().latent_space()?,
            noise_schedule: pipeline.schedule().id(),
            model: pipeline.id().to_owned(),
            weights: pipeline.model().digest()?.to_owned(),
            sizes,
            guidance_scale,
            steps,
            scorer: scorer.name().to_owned(),
            ks: ks.into_iter().collect(),
        };
        Ok(Self { pipeline: pipeline.clone(), scorer, embedder, full, settings })
    }

    /// Paints the source once, the wanted prompt from scratch, and the wanted prompt from the source's states at
    /// every K, steered and plain: all in step, so that each step of all of them is one batch.
    pub fn pair(&self, pair: &Pair) -> anyhow::Result<Row> {
        let [source_seed, seed, _] = numbers(pair);
        let size = self.settings.size(pair);
        let wanted = self.pipeline.encode(&pair.prompt, None, size)?;
        let steered = Arc::new(wanted.clone().with_source(self.pipeline.encode_prompt(&pair.source)?)?);
        let plain = Arc::new(wanted);
        let source = self.pipeline.encode(&pair.source, None, size)?;
        let mut source = self.start(Arc::new(source), source_seed, size)?;
        let mut pictures = vec![(None, self.start(Arc::clone(&plain), seed, size)?)];
        let last = self.settings.ks.last().copied().unwrap_or(0);
        for taken in 1..=self.settings.steps {
            let mut batch: Vec<&mut Trajectory> = pictures.iter_mut().map(|(_, picture)| picture).collect();
            if taken <= last {
                batch.push(&mut source);
            }
            self.pipeline.step(&mut batch)?;
            if self.settings.ks.contains(&taken) {
                let state = source.snapshot()?;
                for (resume, conditioning) in [(Resume::Steered, &steered), (Resume::Plain, &plain)] {
                    let resumed = self.resume(resume, &state, Arc::clone(conditioning), seed)?;
                    pictures.push((Some((resume, taken)), resumed));
                }
            }
        }
        let score = |picture: &Trajectory| -> anyhow::Result<f64> {
            let picture = self.pipeline.finish(picture)?;
            Ok(self.scorer.score(&pair.prompt, pair.named.as_ref(), &picture)?)
        };
        let mut row =
            Row { pair: pair.clone(), similarity: self.similarity(pair)?, scratch: 0.0, resumed: Vec::new() };
        for (how, picture) in &pictures {
            let score = score(picture)?;
            match how {
                None => row.scratch = score,
                Some((resume, k)) => row.resumed.push(Resumed { resume: *resume, k: *k, score }),
            }
        }
        Ok(row)
    }

    fn start(&self, conditioning: Arc<Conditioning>, seed: u64, size: Size) -> anyhow::Result<Trajectory> {
        Ok(self.pipeline.start(conditioning, seed, NoiseSource::default(), size, self.full.clone())?)
    }

    fn resume(
        &self,
        resume: Resume,
        state: &DenoisingState,
        conditioning: Arc<Conditioning>,
        seed: u64,
    ) -> anyhow::Result<Trajectory> {
        let plan = match resume {
            Resume::Steered => ResumeSteering::DEFAULT.plan(&self.full, state.timestep)?,
            Resume::Plain => self.full.after(state.timestep),
        };
        Ok(self.pipeline.resume(state, conditioning, seed, plan)?)
    }

    fn similarity(&self, pair: &Pair) -> anyhow::Result<f32> {
        let (wanted, source) = (self.embedder.embed(&pair.prompt)?, self.embedder.embed(&pair.source)?);
        Ok(wanted.iter().zip(&source).map(|(a, b)| a * b).sum())
    }

    /// What a table learns from: of each row, each resume of this kind. A loss is relative to the mean score of
    /// the pictures from scratch, and held against the pair's own one.
    pub fn learned(&self, rows: &[Row], resume: Resume) -> anyhow::Result<Vec<Measured>> {
        let mean = mean_scratch(rows);
        let mut measured = Vec::new();
        for row in rows {
            let Seen { wanted, source, difference } = self.seen(&row.pair)?;
            let of_kind = row.resumed.iter().filter(|resumed| resumed.resume == resume);
            measured.extend(of_kind.map(|resumed| Measured {
                wanted: wanted.clone(),
                source: source.clone(),
                difference,
                share: self.settings.share(resumed.k),
                loss: ((row.scratch - resumed.score) / mean) as f32,
            }));
        }
        Ok(measured)
    }

    /// What a policy sees of a pair.
    pub fn seen(&self, pair: &Pair) -> anyhow::Result<Seen> {
        let content = |prompt: &str| Content::of(prompt, ANY_KEY);
        Ok(Seen {
            wanted: self.embedder.embed(&pair.prompt)?,
            source: self.embedder.embed(&pair.source)?,
            difference: Difference::between(&content(&pair.source), &content(&pair.prompt)),
        })
    }
}

/// What a policy sees of a pair: both embeddings, and how the words differ.
pub struct Seen {
    pub wanted: Vec<f32>,
    pub source: Vec<f32>,
    pub difference: Difference,
}

/// The mean score of the pictures from scratch.
pub fn mean_scratch(rows: &[Row]) -> f64 {
    rows.iter().map(|row| row.scratch).sum::<f64>() / rows.len().max(1) as f64
}

/// The source's seed, the wanted prompt's, and a number that chooses the size: a pair has the same wherever it stands in
/// a file.
fn numbers(pair: &Pair) -> [u64; 3] {
    let digest =
        Sha256::new().chain_update(&pair.source).chain_update([0]).chain_update(&pair.prompt).finalize();
    let seed = |at: usize| digest[at..at + 8].iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    [seed(0), seed(8), seed(16)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_pairs_have_the_first_size_and_the_others_the_rest() {
        let sizes = [(128, 128), (64, 64), (96, 64)].map(|(width, height)| Size { width, height });
        let settings = Settings {
            embedder: String::new(),
            latent_space: String::new(),
            noise_schedule: String::new(),
            model: String::new(),
            weights: String::new(),
            sizes: sizes.to_vec(),
            guidance_scale: 5.0,
            steps: 50,
            scorer: String::new(),
            ks: vec![25],
        };
        let pair = |i: usize| Pair {
            source: "a red house".into(),
            prompt: format!("{i} houses"),
            named: None,
            class: String::new(),
        };
        let of = |size: &Size| (0..1000).filter(|i| settings.size(&pair(*i)) == *size).count();
        let [first, second, third] = sizes.each_ref().map(of);
        assert!((400..600).contains(&first), "{first} of 1000");
        assert!((150..350).contains(&second) && first + second + third == 1000, "{second}, {third}");
        let one = Settings { sizes: vec![sizes[1]], ..settings };
        assert_eq!(one.size(&pair(1)), sizes[1]);
    }
}
