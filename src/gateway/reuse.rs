//! What a request starts from: noise, or a state that the cache holds of a picture already painted.
//!
//! Whatever goes wrong in here, the request starts from noise: it is counted, logged and no more.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use pentimento_cache::{
    Cache, CacheError, CalibratedConfig, Calibration, Compatibility, Content, Decision, LookUp, Neighbour,
    NewPicture, PaintedPlan, PolicyConfig, PolicyError, Query, ReusePolicy, SAME_PROMPT, Scope,
    SpecificationHash,
};
use pentimento_pipelines::Pipeline;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::embedder::{self, CachedEmbedder, EmbedError, Embedder};
use super::{CacheMode, GenerationRequest, Rejection};
use crate::queue::{Hit, Job, Keep, Reused, Start};
use crate::telemetry;

/// Prompts whose embeddings are remembered, of each model.
const EMBEDDINGS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Prompts embedded at a time: the painting needs the cores more.
const EMBEDDING_AT_ONCE: usize = 2;
/// A state serves guidance scales this many times as small or as large as its own, at most.
const GUIDANCE_TOLERANCE: f32 = 1.25;
/// Pictures of fewer than one in so many of the model's own number of steps are not kept: states of hasty pictures would
/// serve all that come after them.
const HASTY: usize = 2;

/// How the gateway uses the cache.
#[derive(Debug, Clone)]
pub struct ReuseOptions {
    /// Whether prompts may be stored.
    pub store_prompt_text: bool,
    /// The shares of a plan after which states are kept.
    pub shares: Vec<f32>,
    /// Namespaces that all tenants share.
    pub shared_namespaces: BTreeSet<String>,
    /// How long a request waits for a look-up.
    pub patience: Duration,
}

/// What the cache must know of a model.
struct Known {
    embedder: Arc<CachedEmbedder>,
    latent_space: String,
    noise_schedule: String,
    /// Names the weights and their precision.
    weights: String,
    /// The fewest steps of a picture that is kept.
    full: usize,
}

struct Live {
    config: PolicyConfig,
    policy: Arc<dyn ReusePolicy>,
}

impl Live {
    fn new(
        config: PolicyConfig,
        calibrations: &[Arc<Calibration>],
        secret: &[u8; 16],
    ) -> Result<Self, PolicyError> {
        let policy = config.clone().build(calibrations, secret)?.into();
        Ok(Self { config, policy })
    }
}

/// The cache with all that deciding needs.
pub struct Reuse {
    cache: Cache,
    /// Keys the hashes of prompts and of their words.
    secret: [u8; 16],
    models: HashMap<String, Known>,
    calibrations: Vec<Arc<Calibration>>,
    live: RwLock<Live>,
    options: ReuseOptions,
    embedding: Arc<Semaphore>,
}

/// A request's place in the cache: whose it is, and what it may be compared with.
struct Place {
    scope: Scope,
    compatibility: Compatibility,
    embedding: Vec<f32>,
    content: Content,
}

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReuseError {
    /// A model's embedder.
    #[error("cache embedder: {0}")]
    Embed(#[from] EmbedError),
    /// The policy.
    #[error("reuse_policy: {0}")]
    Policy(#[from] PolicyError),
}

/// Why a prompt was not looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The prompt has no embedding.
    #[error("embedding: {0}")]
    Embed(#[from] EmbedError),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// The model is not one that the cache was opened for.
    #[error("the cache does not know the model {0:?}")]
    Model(String),
    /// The task was thrown away, or panicked.
    #[error("the look-up came to no end")]
    Lost,
    /// There is no such policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The picture has no name.
    #[error("naming the picture: {0}")]
    Name(#[from] serde_json::Error),
}

impl Reuse {
    /// The cache for these models. `secret` keys the hashes that stand for prompts and must stay the same as long
    /// as the cache does.
    ///
    /// # Errors
    /// A model's embedder cannot be loaded, or there can be no such policy.
    pub fn new(
        cache: Cache,
        secret: [u8; 16],
        models: &[Pipeline],
        calibrations: Vec<Arc<Calibration>>,
        policy: PolicyConfig,
        options: ReuseOptions,
    ) -> Result<Self, ReuseError> {
        let known = models.iter().map(|model| Ok((model.id().to_owned(), Known::new(model)?)));
        let models = known.collect::<Result<_, EmbedError>>()?;
        let live = RwLock::new(Live::new(policy, &calibrations, &secret)?);
        let embedding = Arc::new(Semaphore::new(EMBEDDING_AT_ONCE));
        Ok(Self { cache, secret, models, calibrations, live, options, embedding })
    }

    /// The cache itself.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The reuse policy's configuration.
    pub fn policy(&self) -> PolicyConfig {
        self.live.read().config.clone()
    }

    /// Decides by another policy from now on.
    ///
    /// # Errors
    /// [`PolicyError`], naming the setting; the old policy then stays.
    pub fn set_policy(&self, config: PolicyConfig) -> Result<(), PolicyError> {
        let live = Live::new(config, &self.calibrations, &self.secret)?;
        *self.live.write() = live;
        Ok(())
    }

    /// The hash by which a prompt's entries are found, stored or not.
    pub fn prompt_hash(&self, prompt: &str) -> String {
        self.hash("prompt", prompt)
    }

    /// Gives every job of `request` the state it starts from, and what is kept of it.
    ///
    /// # Errors
    /// [`Rejection::CacheMiss`] where the request wants nothing painted and something would be.
    pub async fn prepare(
        &self,
        request: &GenerationRequest,
        tenant: &str,
        jobs: &mut [Job],
    ) -> Result<(), Rejection> {
        let found = match request.cache() {
            _ if matches!(self.live.read().config, PolicyConfig::Off {}) => Ok(Ok(())),
            CacheMode::Off => return Ok(()),
            _ => {
                let started = Instant::now();
                let find = self.find(request, tenant, jobs).instrument(tracing::info_span!("look_up"));
                let found = tokio::time::timeout(self.options.patience, find).await;
                telemetry::look_up_time(started.elapsed());
                found
            }
        };
        if let Err(error) = found.unwrap_or(Err(LookUpError::Timeout)) {
            tracing::warn!(%error, "the cache was not asked; painting from scratch");
            telemetry::look_up_failed();
        }
        let missing = jobs.iter().any(|job| job.start == Start::Noise);
        if missing && request.cache() == CacheMode::Only { Err(Rejection::CacheMiss) } else { Ok(()) }
    }

    async fn find(
        &self,
        request: &GenerationRequest,
        tenant: &str,
        jobs: &mut [Job],
    ) -> Result<(), LookUpError> {
        let known = self.known(request.model())?;
        let place = self.place(request, tenant).await?;
        for job in jobs {
            let exact = self.exact(known, job)?;
            if request.cache() != CacheMode::Refresh {
                let found = self.look_up(request, &place, job, exact).await?;
                telemetry::looked_up(&found.decision);
                tracing::info!(picture = job.index, decision = found.decision.why(), "looked up");
                job.start = start(found, request, job.index);
            }
            if job.plan.steps().len() >= known.full {
                let refresh = request.cache() == CacheMode::Refresh;
                job.keep = Some(Box::new(self.keep(&place, job, exact, refresh)));
            }
        }
        Ok(())
    }

    /// Begins to load the states that jobs start from, ahead of their turn.
    pub fn prefetch(&self, states: &[Reused]) {
        states.iter().for_each(|Reused { source, timestep, .. }| self.cache.prefetch(source, *timestep));
    }

    /// What would be decided for a request's first picture, and what is near it: for people who want to know.
    ///
    /// # Errors
    /// [`LookUpError`]
    pub async fn explain(
        &self,
        request: &GenerationRequest,
        tenant: &str,
        job: &Job,
    ) -> Result<LookUp, LookUpError> {
        let place = self.place(request, tenant).await?;
        let exact = self.exact(self.known(request.model())?, job)?;
        self.look_up(request, &place, job, exact).await
    }

    /// Not on an async thread: a scan of a large index takes up to some milliseconds, and a disk may hang.
    async fn look_up(
        &self,
        request: &GenerationRequest,
        place: &Arc<Place>,
        job: &Job,
        exact: SpecificationHash,
    ) -> Result<LookUp, LookUpError> {
        let timesteps: Vec<f64> = job.plan.steps().iter().map(|step| step.timestep).collect();
        let (seeded, whole) = (request.has_seed(), job.index == 0);
        // The same request decides alike as long as the cache is the same; without a seed chance does.
        let (model, chance, scale) = (job.model.clone(), job.seed, guidance_scale(job));
        let (cache, place) = (self.cache.clone(), Arc::clone(place));
        let policy = self.policy_for(request)?;
        let runtime = Handle::current();
        let found = tokio::task::spawn_blocking(move || {
            let query = Query {
                model: &model,
                embedding: &place.embedding,
                content: &place.content,
                seeded,
                whole,
                // Where a quality is asked for, `policy_for` has left whole pictures out.
                least_quality: 0.0,
                timesteps: &timesteps,
                chance,
            };
            let near = scale / GUIDANCE_TOLERANCE..=scale * GUIDANCE_TOLERANCE;
            runtime.block_on(async {
                if seeded
                    && policy.exact_hits()
                    && let Some(found) = exact_hit(&cache, &place.scope, exact).await?
                {
                    return Ok(found);
                }
                cache.look_up(&place.scope, &place.compatibility, &query, &*policy, near).await
            })
        });
        Ok(found.await.map_err(|_| LookUpError::Lost)??)
    }

    /// The policy in force, narrowed to what the client tolerates.
    fn policy_for(&self, request: &GenerationRequest) -> Result<Arc<dyn ReusePolicy>, LookUpError> {
        let live = self.live.read();
        let Some(loss) = request.tolerated_loss() else { return Ok(Arc::clone(&live.policy)) };
        let calibrated = |config: CalibratedConfig| {
            let max_quality_loss = config.max_quality_loss.min(loss as f32);
            PolicyConfig::Calibrated(CalibratedConfig { max_quality_loss, ..config })
        };
        let narrowed = match live.config.clone() {
            PolicyConfig::Calibrated(config) => calibrated(config),
            PolicyConfig::Combined(config) => calibrated(config.calibrated),
            // What these lose is not known.
            PolicyConfig::Nirvana(_) | PolicyConfig::Semantic(_) => PolicyConfig::Exact {},
            other => other,
        };
        drop(live);
        Ok(narrowed.build(&self.calibrations, &self.secret)?.into())
    }

    async fn place(&self, request: &GenerationRequest, tenant: &str) -> Result<Arc<Place>, LookUpError> {
        let known = self.known(request.model())?;
        let shared = self.options.shared_namespaces.contains(request.namespace());
        let scope = Scope {
            tenant: if shared { String::new() } else { tenant.to_owned() },
            namespace: request.namespace().to_owned(),
        };
        let negative = request.negative_prompt();
        let compatibility = Compatibility {
            latent_space: known.latent_space.clone(),
            noise_schedule: known.noise_schedule.clone(),
            width: request.size().width,
            height: request.size().height,
            embedder: known.embedder.digest().to_owned(),
            negative_prompt: if negative.is_empty() {
                String::new()
            } else {
                self.hash("negative", negative)
            },
        };
        let span = tracing::info_span!("embed");
        let embedding = self.embed(&known.embedder, request.prompt()).instrument(span).await?;
        let content = Content::of(request.prompt(), &self.secret);
        Ok(Arc::new(Place { scope, compatibility, embedding, content }))
    }

    /// Not on an async thread: a pass of an encoder takes up to some milliseconds.
    async fn embed(&self, embedder: &Arc<CachedEmbedder>, prompt: &str) -> Result<Vec<f32>, LookUpError> {
        let permit = Arc::clone(&self.embedding).acquire_owned().await.map_err(|_| LookUpError::Lost)?;
        let (embedder, prompt) = (Arc::clone(embedder), prompt.to_owned());
        let embedded = tokio::task::spawn_blocking(move || {
            let _permit = permit; // until the pass is over, whoever has stopped waiting for it
            embedder.embed(&prompt)
        })
        .await;
        Ok(embedded.map_err(|_| LookUpError::Lost)??)
    }

    fn keep(&self, place: &Place, job: &Job, specification: SpecificationHash, refresh: bool) -> Keep {
        let steps = job.plan.steps();
        let guided = steps.iter().filter(|step| step.guidance.scale != 1.0).count();
        let picture = NewPicture {
            scope: place.scope.clone(),
            compatibility: place.compatibility.clone(),
            model: job.model.clone(),
            guidance_scale: guidance_scale(job),
            embedding: place.embedding.clone(),
            prompt: self.options.store_prompt_text.then(|| job.prompt.clone()),
            prompt_hash: self.prompt_hash(&job.prompt),
            content: place.content.clone(),
            specification,
            seed: job.seed,
            plan: PaintedPlan { option: None, steps: steps.len() as u32, guided_steps: guided as u32 },
            expected_quality: None,
            resumed: None,
            refresh,
            file: None,
            states: Vec::new(),
        };
        let steps = steps.len();
        let after = |share: &f32| (share * steps as f32).round() as usize;
        let mut after_steps: Vec<usize> =
            self.options.shares.iter().map(after).filter(|after| (1..steps).contains(after)).collect();
        after_steps.dedup();
        Keep { picture, after_steps }
    }

    /// Names a picture by all that it depends on.
    fn exact(&self, known: &Known, job: &Job) -> Result<SpecificationHash, LookUpError> {
        let Job { model, prompt, negative_prompt, size, seed, noise, plan, .. } = job;
        let all = serde_json::to_string(&(
            model,
            &known.weights,
            prompt,
            negative_prompt,
            size,
            seed,
            noise,
            plan,
        ))?;
        Ok(SpecificationHash::new(self.keyed("picture", &all)))
    }

    /// Nobody without the secret can tell from the hash whether a guessed text is right.
    pub(super) fn hash(&self, of: &str, text: &str) -> String {
        self.keyed(of, text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn keyed(&self, of: &str, text: &str) -> [u8; 32] {
        // What stands before the text has a fixed length or an end: no two inputs run together.
        let keyed =
            Sha256::new().chain_update(self.secret).chain_update(of).chain_update([0]).chain_update(text);
        keyed.finalize().into()
    }

    fn known(&self, model: &str) -> Result<&Known, LookUpError> {
        self.models.get(model).ok_or_else(|| LookUpError::Model(model.to_owned()))
    }
}

impl Known {
    fn new(model: &Pipeline) -> Result<Self, EmbedError> {
        Ok(Self {
            embedder: Arc::new(CachedEmbedder::new(embedder::for_model(model)?, EMBEDDINGS)),
            latent_space: model.model().latent_space()?,
            noise_schedule: model.schedule().id(),
            weights: format!("{} {}", model.model().digest()?, model.precision()),
            full: model.defaults().steps.div_ceil(HASTY),
        })
    }
}

/// The stored picture of a specification, as a look-up that found it.
async fn exact_hit(
    cache: &Cache,
    scope: &Scope,
    specification: SpecificationHash,
) -> Result<Option<LookUp>, CacheError> {
    let Some(hit) = cache.exact(scope, &specification).await? else { return Ok(None) };
    let Some(entry) = cache.entry(&hit.entry).await? else { return Ok(None) };
    let why = "the same prompt, seed and parameters were painted before".to_owned();
    let decision = Decision::Exact { entry: hit.entry, why };
    Ok(Some(LookUp { decision, neighbours: vec![Neighbour { entry, similarity: 1.0 }] }))
}

fn guidance_scale(job: &Job) -> f32 {
    job.plan.steps().first().map_or(0.0, |step| step.guidance.scale)
}

/// A decision as a job carries it.
fn start(found: LookUp, request: &GenerationRequest, index: usize) -> Start {
    let (hit, source, timestep, similarity) = match found.decision {
        Decision::Miss { .. } => return Start::Noise,
        Decision::State { entry, timestep, similarity, .. } => (Hit::State, entry, timestep, similarity),
        Decision::Semantic { entry, similarity, .. } => {
            (Hit::Semantic, entry, pentimento_cache::FINISHED, similarity)
        }
        Decision::Exact { entry, .. } => (Hit::Exact, entry, pentimento_cache::FINISHED, 1.0),
    };
    let source_prompt =
        found.neighbours.into_iter().find(|near| near.entry.id == source).and_then(|near| near.entry.prompt);
    // Whoever names no seed, asks for several pictures, or for a stored prompt again, wants another picture than the
    // one that the same state brought before.
    let varied = hit == Hit::State && (!request.has_seed() || index > 0 || similarity >= SAME_PROMPT);
    let reused = Reused { hit, source, timestep, similarity, source_prompt, varied };
    if request.cache() == CacheMode::Only { Start::State(reused) } else { Start::StateOrNoise(reused) }
}
