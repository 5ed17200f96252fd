//! The order of look-ups: the exact picture, before any embedding; then what lies near the prompt.

use std::sync::Arc;
use std::time::Instant;

use pentimento_cache::{Decision, LookUp, Query, ReusePolicy, SAME_PROMPT, Scope, SpecificationHash};
use pentimento_pipelines::PlanOption;
use tokio::runtime::Handle;
use tracing::Instrument;

use super::place::Place;
use super::stored::{ROUNDING, is_entry, is_good_enough};
use super::{LookUpError, Reuse, StoredPicture};
use crate::gateway::{CacheMode, PictureRequest, Rejection};
use crate::picture::{PaintTask, StartState};
use crate::scheduler::messages::{NewTask, StoredStart};
use crate::telemetry;

/// A state serves guidance scales this many times as small or as large as its own, at most.
const GUIDANCE_TOLERANCE: f32 = 1.25;
/// A picture goes on from another one's state with a plan of at least this share of the model's full one. What a state
/// saves was measured with plans of half the full one's length; in the few steps of a short one the other picture is not
/// painted over (docs/benchmarks/load.md).
const RESUMED: f64 = 0.25;

/// What the scheduler would give a task now: see
/// [`LocalScheduler::quality_now`](crate::scheduler::local::LocalScheduler::quality_now).
pub type QualityNow<'a> = dyn Fn(&NewTask<PaintTask>) -> Option<f64> + Sync + 'a;

/// A request's picture, looked up.
#[derive(Debug)]
pub enum Prepared {
    /// It is stored.
    Stored(StoredPicture),
    /// It is to be painted, from noise or from a stored state.
    Paint(Box<NewTask<PaintTask>>),
}

impl Reuse {
    /// Looks a request's pictures up. Those that are stored are there; the others know the state that they may start from,
    /// and what is kept of them.
    ///
    /// # Errors
    /// [`Rejection::CacheMiss`] where the request wants nothing painted from noise and something would be.
    pub async fn prepare(
        &self,
        request: &PictureRequest,
        tenant: &str,
        tasks: Vec<NewTask<PaintTask>>,
        now: &QualityNow<'_>,
    ) -> Result<Vec<Prepared>, Rejection> {
        let mut pictures: Vec<Prepared> =
            tasks.into_iter().map(|task| Prepared::Paint(Box::new(task))).collect();
        if request.cache() != CacheMode::Off && !self.policy.read().is_off() {
            let started = Instant::now();
            let find = self.find(request, tenant, &mut pictures, now);
            if let Err(error) = find.instrument(tracing::info_span!("look_up")).await {
                tracing::warn!(%error, "the cache was not asked; painting from noise");
                telemetry::look_up_failed();
            }
            telemetry::look_up_time(started.elapsed());
        }
        let from_noise =
            |picture: &Prepared| matches!(picture, Prepared::Paint(task) if task.start.is_none());
        if request.cache() == CacheMode::Only && pictures.iter().any(from_noise) {
            return Err(Rejection::CacheMiss);
        }
        Ok(pictures)
    }

    async fn find(
        &self,
        request: &PictureRequest,
        tenant: &str,
        pictures: &mut [Prepared],
        now: &QualityNow<'_>,
    ) -> Result<(), LookUpError> {
        let scope = self.scope(tenant, request.namespace());
        let policy = self.policy.read().of(request.names_quality());
        let exact = request.cache().reads() && request.has_seed() && policy.exact_hits();
        if exact {
            for picture in pictures.iter_mut() {
                self.find_exact(request, &scope, picture, now).await;
            }
        }
        if pictures.iter().all(|picture| matches!(picture, Prepared::Stored(_))) {
            return Ok(());
        }
        let near = async {
            let place = Arc::new(self.place(request, scope.clone()).await?);
            for (index, picture) in pictures.iter_mut().enumerate() {
                self.find_near(request, &policy, &place, index, picture, now).await?;
                let starts = matches!(picture, Prepared::Paint(task) if task.start.is_some());
                if exact && starts {
                    // Now it is known that it would start from a state, which costs quality: the stored picture may be
                    // as good as that.
                    self.find_exact(request, &scope, picture, now).await;
                }
            }
            Ok(())
        };
        tokio::time::timeout(self.options.patience, near).await.map_err(|_| LookUpError::Timeout)?
    }

    /// Answers a picture by the stored one of its own specification, where that is good enough.
    async fn find_exact(
        &self,
        request: &PictureRequest,
        scope: &Scope,
        picture: &mut Prepared,
        now: &QualityNow<'_>,
    ) {
        let Prepared::Paint(task) = picture else { return };
        let specification = SpecificationHash::new(task.picture.hash);
        let now = || if request.cache() == CacheMode::Only { None } else { now(task) };
        let found = self.stored(scope, specification, None, |hit| is_good_enough(hit, request.range(), now));
        if let Some(mut stored) = found.await {
            if !self.options.store_prompt_text {
                stored.tell_parameters(&task.spec.spec);
            }
            telemetry::looked_up(stored.hit.kind.name());
            tracing::info!("the same picture is stored");
            *picture = Prepared::Stored(stored);
        }
    }

    /// Looks for what lies near a picture's prompt: a stored picture that answers it, or a state to start from.
    async fn find_near(
        &self,
        request: &PictureRequest,
        policy: &Arc<dyn ReusePolicy>,
        place: &Arc<Place>,
        index: usize,
        picture: &mut Prepared,
        now: &QualityNow<'_>,
    ) -> Result<(), LookUpError> {
        let Prepared::Paint(task) = picture else { return Ok(()) };
        task.spec.keep = Some(Box::new(self.keep_order(request, place, task)));
        if !request.cache().reads() {
            return Ok(());
        }
        let range = request.range();
        // A request that may not be painted from noise is not compared with what noise would give.
        let now = if request.cache() == CacheMode::Only { None } else { now(task) };
        let wanted = now.map_or(range.floor, |now| now.clamp(range.floor, range.best));
        let found = self.look_up(request, policy, place, index, task.spec.spec.seed, wanted).await?;
        tracing::info!(picture = index, decision = found.decision.why(), "looked up");
        if let (Decision::Semantic { entry, similarity, .. }, Some(source)) =
            (&found.decision, found.source())
        {
            let (scope, specification) = (&source.entry.scope, source.entry.specification);
            let stored = self.stored(scope, specification, Some(*similarity), is_entry(entry)).await;
            telemetry::looked_up(if stored.is_some() { "semantic" } else { "miss" });
            if let Some(stored) = stored {
                *picture = Prepared::Stored(stored);
            }
            return Ok(());
        }
        match start(found, request, index) {
            Some((state, stored)) => {
                telemetry::looked_up("state");
                self.cache.prefetch(&state.entry, state.timestep);
                (task.spec.start, task.start) = (Some(state), Some(stored));
            }
            None => telemetry::looked_up("miss"),
        }
        Ok(())
    }

    /// What `policy` makes of the nearest entries. Not on an async thread: a scan of a large index takes up to some
    /// milliseconds, and a disk may hang.
    pub(super) async fn look_up(
        &self,
        request: &PictureRequest,
        policy: &Arc<dyn ReusePolicy>,
        place: &Arc<Place>,
        index: usize,
        seed: u64,
        least_quality: f64,
    ) -> Result<LookUp, LookUpError> {
        let timesteps = full_timesteps(request)?;
        let (model, scale) = (request.first().model.clone(), request.first().guidance_scale);
        let (seeded, whole) = (request.has_seed(), index == 0);
        let most_loss = (request.range().slack() + ROUNDING) as f32;
        let (cache, policy, place) = (self.cache.clone(), Arc::clone(policy), Arc::clone(place));
        let runtime = Handle::current();
        let found = tokio::task::spawn_blocking(move || {
            let query = Query {
                model: &model,
                embedding: &place.embedding,
                content: &place.content,
                seeded,
                whole,
                least_quality: (least_quality - ROUNDING) as f32,
                most_loss,
                timesteps: &timesteps,
                // The same request decides alike as long as the cache is the same; without a seed chance does.
                chance: seed,
            };
            let near = scale / GUIDANCE_TOLERANCE..=scale * GUIDANCE_TOLERANCE;
            runtime.block_on(cache.look_up(&place.scope, &place.compatibility, &query, &*policy, near))
        });
        Ok(found.await.map_err(|_| LookUpError::Lost)??)
    }
}

/// Timesteps of the request's full plan: what a state saves was measured with such plans.
fn full_timesteps(request: &PictureRequest) -> Result<Vec<f64>, LookUpError> {
    let option = PlanOption::guided(request.full_steps());
    let plan = option.plan(&request.model().schedule, request.first().guidance_scale);
    let plan = plan.map_err(|error| LookUpError::Embed(error.into()))?;
    Ok(plan.steps().iter().map(|step| step.timestep).collect())
}

/// A decision for a state, as the worker and as the scheduler are told of it.
fn start(found: LookUp, request: &PictureRequest, index: usize) -> Option<(StartState, StoredStart)> {
    let source_prompt = found.source().and_then(|near| near.entry.prompt.clone());
    let Decision::State { entry, timestep, similarity, loss, .. } = found.decision else { return None };
    // Where the policy does not know what is lost, nothing is held against it: the operator chose it.
    let loss = loss.unwrap_or(0.0).clamp(0.0, 1.0);
    // Without noise of its own a resume is the same picture for every seed. A request that names no seed, asks for
    // several pictures, or repeats a stored prompt, wants another picture than that.
    let varied = !request.has_seed() || index > 0 || similarity >= SAME_PROMPT;
    let full = request.model().defaults.steps as f64;
    let stored = StoredStart {
        noise_level: request.model().schedule.noise_level(timestep).clamp(0.0, 1.0),
        loss: f64::from(loss),
        // A client that names its steps gets them.
        least_steps: if request.first().steps.is_some() { 0 } else { (RESUMED * full).ceil() as u32 },
        required: request.cache() == CacheMode::Only,
    };
    let required = stored.required;
    Some((StartState { entry, timestep, similarity, source_prompt, varied, loss, required }, stored))
}
