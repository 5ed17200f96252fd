//! The trace through the cache, under one policy: what each request starts from.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pentimento::commands::calibrate::tables_of;
use pentimento::gateway::embedder::{CachedEmbedder, Embedder, for_model};
use pentimento_cache::{
    Cache, CacheConfig, Calibration, Compatibility, Content, Decision, FINISHED, Filter, Kept, LookUp,
    Neighbour, NewPicture, PaintedPlan, Part, PolicyConfig, Query, ReusePolicy, Scope, SpecificationHash,
    State,
};
use sha2::{Digest, Sha256};

use crate::studio::{How, KS, Request, STEPS, Start, Studio, canonical};

/// NIRVANA's K of 50.
const NIRVANA: [usize; 5] = [5, 10, 15, 20, 25];

/// How requests are served; its name is what the command line calls it.
pub struct Setting {
    pub name: String,
    policy: PolicyConfig,
    pub how: How,
    /// η of resumes without a seed.
    pub eta: f32,
    /// States kept of a picture, as K of 50.
    keeps: Vec<usize>,
}

impl Setting {
    /// `off`, `exact`, `semantic=THRESHOLD[,ungated]`, `nirvana=OFFSET[,steered]`, `modm=OFFSET` or
    /// `calibrated=LOSS[,plain][,variety=SHARE][,least=SHARE][,eta=1]`, or `combined=…` with the same settings.
    pub fn parse(name: &str) -> Self {
        let mut words = name.split(',').map(|word| word.split_once('=').unwrap_or((word, "")));
        let (kind, value) = words.next().unwrap();
        let rest: Vec<(&str, &str)> = words.collect();
        let has = |word: &str| rest.iter().any(|(w, _)| *w == word);
        let number = || value.parse::<f32>().unwrap();
        let setting = |word: &str, usual: &'static str| {
            rest.iter().find(|(w, _)| *w == word).map_or(usual, |(_, value)| value).to_owned()
        };
        let with_final = |ks: &[usize]| [ks, &[STEPS]].concat();
        let (policy, how, keeps) = match kind {
            "off" => (r#"{"policy":"off"}"#.to_owned(), How::Plain, vec![]),
            "exact" => (r#"{"policy":"exact"}"#.to_owned(), How::Plain, vec![STEPS]),
            "semantic" => (
                format!(
                    r#"{{"policy":"semantic","threshold":{},"content_gate":{}}}"#,
                    number(),
                    !has("ungated")
                ),
                How::Plain,
                vec![STEPS],
            ),
            "nirvana" | "modm" => {
                let how = match (kind, has("steered")) {
                    ("modm", _) => How::Renoised,
                    (_, true) => How::Steered,
                    (_, false) => How::Plain,
                };
                (format!(r#"{{"policy":"nirvana","offset":{}}}"#, number()), how, with_final(&NIRVANA))
            }
            "calibrated" | "combined" => {
                let how = if has("plain") { How::Plain } else { How::Steered };
                let (variety, least) = (setting("variety", "0.4"), setting("least", "0.4"));
                let settings =
                    format!(r#""max_quality_loss":{},"variety":{variety},"least_share":{least}"#, number());
                let policy = match kind {
                    "combined" => format!(r#"{{"policy":"combined","calibrated":{{{settings}}}}}"#),
                    _ => format!(r#"{{"policy":"calibrated",{settings}}}"#),
                };
                (policy, how, KS.to_vec())
            }
            other => panic!("{other}: no policy"),
        };
        let eta = setting("eta", "0").parse().unwrap();
        Self { name: name.to_owned(), policy: serde_json::from_str(&policy).unwrap(), how, eta, keeps }
    }
}

/// What became of a request.
pub struct Outcome {
    pub start: Start,
    /// Seconds of the look-up, and of reading the state.
    pub lookup: f64,
    pub load: f64,
}

/// What became of the trace.
pub struct Run {
    pub outcomes: Vec<Outcome>,
    pub entries: usize,
    pub bytes: u64,
}

/// A cache and what asks it.
pub struct Desk<'a> {
    studio: &'a Studio,
    cache: Cache,
    policy: Box<dyn ReusePolicy>,
    setting: &'a Setting,
    embedder: &'a CachedEmbedder,
    compatibility: Compatibility,
    scope: Scope,
    key: [u8; 16],
}

impl<'a> Desk<'a> {
    /// An empty cache in `folder`.
    pub fn open(
        studio: &'a Studio,
        embedder: &'a CachedEmbedder,
        setting: &'a Setting,
        folder: &Path,
    ) -> Self {
        let _ = std::fs::remove_dir_all(folder);
        let cache = Cache::open(CacheConfig::new(folder)).unwrap();
        let tables: Vec<Arc<Calibration>> =
            tables_of(&studio.pipeline).unwrap().into_iter().map(Arc::new).collect();
        let key = [0; 16];
        let policy = setting.policy.clone().build(&tables, &key).unwrap();
        let size = studio.pipeline.defaults().size;
        let compatibility = Compatibility {
            latent_space: studio.pipeline.model().latent_space().unwrap(),
            noise_schedule: studio.pipeline.schedule().id(),
            width: size.width,
            height: size.height,
            embedder: embedder.digest().to_owned(),
            negative_prompt: String::new(),
        };
        let scope = Scope { tenant: "trace".into(), namespace: "default".into() };
        Self { studio, cache, policy, setting, embedder, compatibility, scope, key }
    }

    /// What a request starts from; `seed` alone has an exact hit.
    pub async fn ask(&self, prompt: &str, seed: Option<u64>, chance: u64) -> (LookUp, f64) {
        let timesteps: Vec<f64> = self.studio.full.steps().iter().map(|step| step.timestep).collect();
        let (embedding, content) = (self.embedder.embed(prompt).unwrap(), Content::of(prompt, &self.key));
        let query = Query {
            model: self.studio.pipeline.id(),
            embedding: &embedding,
            content: &content,
            seeded: seed.is_some(),
            whole: true,
            least_quality: 0.0,
            most_loss: 1.0,
            timesteps: &timesteps,
            chance,
        };
        let scale = self.studio.pipeline.defaults().guidance_scale;
        let begun = Instant::now();
        if let Some(seed) = seed.filter(|_| self.policy.exact_hits())
            && let Some(hit) =
                self.cache.exact(&self.scope, &specification(&name(prompt, seed))).await.unwrap()
        {
            let entry = self.cache.entry(&hit.entry).await.unwrap().unwrap();
            let decision = Decision::Exact { entry: hit.entry, why: String::new() };
            let neighbours = vec![Neighbour { entry, similarity: 1.0 }];
            return (LookUp { decision, neighbours }, begun.elapsed().as_secs_f64());
        }
        let found =
            self.cache.look_up(&self.scope, &self.compatibility, &query, &*self.policy, scale..=scale).await;
        (found.unwrap(), begun.elapsed().as_secs_f64())
    }

    /// Puts a picture painted from scratch, with its states by K, into the cache, and waits until it is there.
    pub async fn keep(&self, prompt: &str, seed: u64, state: impl Fn(usize) -> Vec<f32>, shape: [usize; 3]) {
        let states = self.setting.keeps.iter().map(|&k| {
            let timestep = self.studio.timestep(k);
            let noise_level = (1.0 - self.studio.pipeline.schedule().alpha_bar(timestep)).sqrt();
            let noise_level = if k == STEPS { 0.0 } else { noise_level };
            (State { timestep, noise_level, shape, latent: state(k) }, k as f32 / STEPS as f32)
        });
        let states: Vec<(State, f32)> = states.collect();
        if states.is_empty() {
            return;
        }
        let picture = NewPicture {
            scope: self.scope.clone(),
            compatibility: self.compatibility.clone(),
            model: self.studio.pipeline.id().to_owned(),
            guidance_scale: self.studio.pipeline.defaults().guidance_scale,
            embedding: self.embedder.embed(prompt).unwrap(),
            prompt: (self.setting.how == How::Steered).then(|| prompt.to_owned()),
            prompt_hash: prompt.to_owned(),
            content: Content::of(prompt, &self.key),
            specification: specification(&name(prompt, seed)),
            seed,
            plan: PaintedPlan::guided(STEPS as u32),
            expected_quality: None,
            resumed: None,
            refresh: false,
            file: None,
            states,
        };
        assert!(self.cache.insert(picture));
        self.cache.flush().await.unwrap();
    }

    /// Reads what was decided for, and says how long that took.
    async fn load(&self, decision: &Decision) -> f64 {
        let (entry, timestep) = match decision {
            Decision::Miss { .. } => return 0.0,
            Decision::State { entry, timestep, .. } => (entry, *timestep),
            Decision::Exact { entry, .. } | Decision::Semantic { entry, .. } => (entry, FINISHED),
        };
        let begun = Instant::now();
        self.cache.state(entry, timestep).await.unwrap();
        self.cache.used(entry, Part::State(timestep));
        begun.elapsed().as_secs_f64()
    }

    /// Entries, and bytes of what the setting needs of them: MoDM's way goes on from finished latents alone, the other
    /// states are there for the policy to choose among.
    async fn stored(&self) -> (usize, u64) {
        let entries = self.cache.entries(&Filter::default(), None, 100_000).await.unwrap();
        let needed = |kept: &&Kept| self.setting.how != How::Renoised || kept.is_finished();
        let bytes =
            entries.iter().flat_map(|entry| entry.states.iter().filter(needed)).map(|kept| kept.bytes).sum();
        (entries.len(), bytes)
    }

    /// The specification of the entry that a look-up decided for, and the K of the state; nothing for a miss.
    pub fn chosen(&self, found: &LookUp) -> Option<(SpecificationHash, usize)> {
        let (id, timestep) = match &found.decision {
            Decision::Miss { .. } => return None,
            Decision::State { entry, timestep, .. } => (entry, *timestep),
            Decision::Exact { entry, .. } | Decision::Semantic { entry, .. } => (entry, -1.0),
        };
        let entry = &found.neighbours.iter().find(|near| near.entry.id == *id).unwrap().entry;
        let k = KS.into_iter().find(|k| self.studio.timestep(*k) == timestep).unwrap();
        Some((entry.specification, k))
    }
}

/// The embedder that the model's cache goes by.
pub fn embedder(studio: &Studio) -> CachedEmbedder {
    CachedEmbedder::new(for_model(&studio.pipeline).unwrap(), 4096.try_into().unwrap())
}

/// Names a request's picture.
fn name(prompt: &str, seed: u64) -> String {
    format!("{prompt} {seed}")
}

fn specification(name: &str) -> SpecificationHash {
    SpecificationHash::new(Sha256::digest(name).into())
}

/// The request whose picture has this specification.
pub fn by_specification(requests: &[Request], wanted: SpecificationHash) -> usize {
    requests.iter().position(|r| specification(&name(&r.prompt, r.seed)) == wanted).unwrap()
}

/// Replays the trace through an empty cache. Pictures from scratch must have been painted.
pub async fn replay(
    studio: &Studio,
    embedder: &CachedEmbedder,
    requests: &[Request],
    setting: &Setting,
    folder: &Path,
) -> Run {
    let desk = Desk::open(studio, embedder, setting, folder);
    let shape = studio.state(0, STEPS).shape;
    let mut outcomes = Vec::with_capacity(requests.len());
    for (i, request) in requests.iter().enumerate() {
        let (found, lookup) = desk.ask(&request.prompt, Some(request.seed), request.seed).await;
        let own = canonical(requests, i).request;
        let mut load = 0.0;
        let start = match desk.chosen(&found) {
            None => {
                desk.keep(&request.prompt, request.seed, |k| studio.state(own, k).latent, shape).await;
                Start::scratch(own)
            }
            Some((name, k)) => {
                load = desk.load(&found.decision).await;
                let how = if k == STEPS { How::Plain } else { setting.how };
                Start { request: own, source: by_specification(requests, name), k, how }
            }
        };
        outcomes.push(Outcome { start, lookup, load });
    }
    let (entries, bytes) = desk.stored().await;
    drop(desk);
    let _ = std::fs::remove_dir_all(folder);
    Run { outcomes, entries, bytes }
}
