//! What happens to a request before a worker sees it: validated, looked up, answered from the cache or submitted.

mod answered;
mod archive;
mod catalogue;
pub mod embedder;
mod jobs;
mod pictures;
mod request;
mod reuse;
mod tasks;
mod terms;
mod wanted;
pub mod webhook;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::picture::{FinishedPicture, PaintTask};
use crate::scheduler::local::{LocalScheduler, NotAccepted};
use crate::scheduler::messages::{Busy, NewTask, Refusal, Shape};
pub use answered::{AnsweredPicture, Hit, HitKind};
pub use archive::MoveError;
pub use catalogue::{Catalogue, CatalogueError, ServedModel, ServedModelError};
pub use jobs::{
    End, Idempotency, Job, JobError, JobFailure, JobId, Jobs, NewJob, Outcome, PictureProgress, Preview,
    Progress, Status,
};
pub use pictures::{PictureEvent, PictureFailure, Pictures, Transcoder, submit};
pub use request::{FileWishes, MAX_SEED, PictureRequest, RequestLimits};
pub use reuse::{LookUpError, Prepared, Reuse, ReuseError, ReuseOptions, StoredPicture};
pub use tasks::tasks;
pub use terms::{Objective, QualityRange, Tier, Tolerance, terms};
pub use wanted::{CacheMode, Wanted};

/// The scheduler of pictures, as the gateway uses it.
pub type PictureScheduler = LocalScheduler<PaintTask, FinishedPicture>;

/// Why a request is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// A field's value.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, as the API calls it.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No such model is served.
    #[error("the model {0:?} does not exist")]
    UnknownModel(String),
    /// Nothing cached fits, and nothing else was wanted.
    #[error("nothing in the cache fits this request, and pentimento.cache is \"only\"")]
    CacheMiss,
    /// Not now.
    #[error("{why}")]
    Later {
        /// When there is room, as predicted. No place is kept.
        after: Duration,
        /// What is full.
        why: Busy,
    },
    /// The server's fault.
    #[error("{0}")]
    Internal(String),
}

impl From<pentimento_pipelines::Error> for Rejection {
    fn from(error: pentimento_pipelines::Error) -> Self {
        match error {
            pentimento_pipelines::Error::Invalid { field, reason } => Self::Invalid { field, reason },
            other => Self::Internal(other.to_string()),
        }
    }
}

impl From<NotAccepted> for Rejection {
    fn from(answer: NotAccepted) -> Self {
        let refusal = match answer {
            NotAccepted::Later { after, why } => return Self::Later { after, why },
            NotAccepted::Never(refusal) => refusal,
            // The gateway names its requests itself.
            NotAccepted::Known => return Self::Internal(answer.to_string()),
        };
        let (field, reason) = match &refusal {
            Refusal::Pictures { .. } => ("n", refusal.to_string()),
            Refusal::Model { model } => return Self::UnknownModel(model.as_str().to_owned()),
            Refusal::Menu { reason } => ("num_inference_steps", reason.clone()),
            Refusal::Deadline => (
                "pentimento.max_latency_ms",
                "is less than the fewest steps that the quality allows take on an idle machine".to_owned(),
            ),
            // Terms are the gateway's own, and within their bounds.
            Refusal::Terms { .. } => return Self::Internal(refusal.to_string()),
        };
        Self::Invalid { field, reason }
    }
}

/// A request that was accepted.
pub struct Accepted {
    /// The request.
    pub request: PictureRequest,
    /// Its pictures, as they come.
    pub pictures: Pictures,
    /// How long the look-ups in the cache took.
    pub look_up: Duration,
}

/// The tenant of all clients where there are no API keys.
pub const ANONYMOUS: &str = "anonymous";

/// The sender of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The name by which it takes turns: a tenant, or an address.
    pub turn: Arc<str>,
    /// The tenant whose pictures may be reused.
    pub tenant: Arc<str>,
}

/// The way from a client's wishes to pictures.
pub struct Gateway {
    /// The models served.
    pub catalogue: Catalogue,
    /// The cache.
    pub reuse: Arc<Reuse>,
    /// The scheduler that has the rest painted.
    pub scheduler: PictureScheduler,
    limits: RequestLimits,
    transcoder: Transcoder,
}

impl Gateway {
    /// A gateway to a scheduler, which is told the models' menus.
    pub fn new(
        catalogue: Catalogue,
        reuse: Arc<Reuse>,
        config: &Config,
        scheduler: PictureScheduler,
    ) -> Self {
        for model in catalogue.models() {
            scheduler.set_menu(model.id.clone(), model.offered.clone());
        }
        let limits = RequestLimits::from(config);
        Self { catalogue, reuse, scheduler, limits, transcoder: Transcoder::default() }
    }

    /// Validates what is wanted. `random_seed` serves where no seed is named.
    ///
    /// # Errors
    /// [`Rejection`], naming the field.
    pub fn validate(&self, wanted: Wanted, random_seed: u64) -> Result<PictureRequest, Rejection> {
        let model = self.catalogue.find(wanted.model.as_deref())?;
        PictureRequest::new(wanted, model, &self.limits, |shape| self.unloaded(model, shape), random_seed)
    }

    /// A tier's objective for one picture of a model at its own size.
    pub fn objective(&self, model: &ServedModel, tolerance: &Tolerance) -> Objective {
        let shape = Shape { width: model.defaults.size.width, height: model.defaults.size.height };
        let unloaded = self.unloaded(model, shape).and_then(|s| Duration::try_from_secs_f64(s).ok());
        Objective::new(tolerance, unloaded, self.limits.objective, 1.0)
    }

    fn unloaded(&self, model: &ServedModel, shape: Shape) -> Option<f64> {
        self.scheduler.unloaded_seconds(&model.id, shape, &model.full)
    }

    /// A request's pictures as tasks from noise. It was `received` a while ago, and is waited for `timeout` at most.
    ///
    /// # Errors
    /// [`Rejection::Internal`]
    pub fn tasks(
        &self,
        request: &PictureRequest,
        tenant: &str,
        request_id: &str,
        received: Instant,
        timeout: Duration,
    ) -> Result<Vec<NewTask<PaintTask>>, Rejection> {
        let terms = terms(request.tier(), request.range(), request.objective(), received.elapsed(), timeout);
        let scope = self.reuse.scope(tenant, request.namespace());
        tasks(request, request_id, &scope, self.reuse.secret(), &terms)
    }

    /// Answers what is stored, and submits the rest: all of it is accepted, or none.
    ///
    /// # Errors
    /// [`Rejection`]
    pub async fn accept(
        &self,
        request: PictureRequest,
        client: &Client,
        request_id: &str,
        received: Instant,
        timeout: Duration,
    ) -> Result<Accepted, Rejection> {
        if self.scheduler.is_closed() {
            return Err(Rejection::Later { after: Duration::ZERO, why: Busy::Closing });
        }
        let started = Instant::now();
        let tasks = self.tasks(&request, &client.tenant, request_id, received, timeout)?;
        let now = |task: &_| self.scheduler.quality_now(task);
        let prepared = self.reuse.prepare(&request, &client.tenant, tasks, &now).await?;
        let look_up = started.elapsed();
        let pictures = submit(prepared, &request, &client.turn, &self.scheduler, self.transcoder.clone())?;
        Ok(Accepted { request, pictures, look_up })
    }

    /// Whether new requests are refused because the server is shutting down.
    pub fn is_closed(&self) -> bool {
        self.scheduler.is_closed()
    }
}
