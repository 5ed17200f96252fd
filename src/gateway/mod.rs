//! What happens to a request before a worker sees it: validated, planned, queued.

mod archive;
mod catalogue;
pub mod embedder;
mod jobs;
mod request;
mod reuse;
pub mod webhook;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::plan::{Planner, Verdict};
use crate::queue::{self, Busy, JobQueue, Line, LocalQueue, Subscription};

use crate::telemetry;

pub use archive::MoveError;
pub use catalogue::{Catalogue, CatalogueError, ModelInfo};
pub use jobs::{
    End, Idempotency, Job, JobError, JobFailure, JobId, Jobs, NewJob, Outcome, PictureProgress, Preview,
    Progress, Status,
};
pub use request::{CacheMode, GenerationRequest, Limits, MAX_SEED, Wanted};
pub use reuse::{LookUpError, Reuse, ReuseError, ReuseOptions};

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
    /// It could not be painted in time.
    #[error("too much is being painted to answer in time")]
    Overloaded {
        /// When it could be.
        retry_after: Duration,
    },
    /// Not now.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The engine's failure.
    #[error(transparent)]
    Engine(pentimento_pipelines::Error),
}

impl From<pentimento_pipelines::Error> for Rejection {
    fn from(error: pentimento_pipelines::Error) -> Self {
        match error {
            pentimento_pipelines::Error::Invalid { field, reason } => Self::Invalid { field, reason },
            other => Self::Engine(other),
        }
    }
}

/// A request that is in the queue.
pub struct Accepted {
    /// The request.
    pub request: GenerationRequest,
    /// One subscription per picture, in order.
    pub pictures: Vec<Subscription>,
    /// How long the look-up in the cache took.
    pub look_up: Duration,
}

/// The tenant of all clients where there are no API keys.
pub const ANONYMOUS: &str = "anonymous";

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Who is served in turn: a tenant, or an address.
    pub turn: Arc<str>,
    /// Whose pictures may be reused.
    pub tenant: Arc<str>,
}

/// The way from a client's wishes to queued jobs.
pub struct Gateway {
    /// The models served.
    pub catalogue: Catalogue,
    /// The cache, where there is one.
    pub reuse: Option<Arc<Reuse>>,
    /// Who decides how many steps pictures get.
    pub planner: Arc<Planner>,
    limits: Limits,
    queue: LocalQueue,
}

impl Gateway {
    /// A gateway to a queue.
    pub fn new(
        catalogue: Catalogue,
        reuse: Option<Arc<Reuse>>,
        planner: Arc<Planner>,
        config: &Config,
        queue: LocalQueue,
    ) -> Self {
        Self { catalogue, reuse, planner, limits: Limits::from(config), queue }
    }

    /// Validates what is wanted. `random_seed` serves where no seed is named.
    ///
    /// # Errors
    /// [`Rejection`], naming the field.
    pub fn validate(&self, wanted: Wanted, random_seed: u64) -> Result<GenerationRequest, Rejection> {
        let model = self.catalogue.find(wanted.model.as_deref())?;
        let terms = |size, n, asked: &_| self.planner.terms(model.id(), size, n, asked);
        GenerationRequest::new(wanted, model, &self.limits, terms, random_seed)
    }

    /// Finds what a request can start from, and queues its pictures if they can be painted in time: counted from when it
    /// was `received`, and within `timeout`, after which nobody waits for them.
    ///
    /// # Errors
    /// [`Rejection`]
    pub async fn accept(
        &self,
        request: GenerationRequest,
        client: &Client,
        request_id: &str,
        received: Instant,
        timeout: Duration,
    ) -> Result<Accepted, Rejection> {
        let started = Instant::now();
        let mut jobs = request.jobs(&client.turn, request_id);
        // Who is refused anyway costs no look-up.
        self.queue.has_room(&client.turn, jobs.len())?;
        match &self.reuse {
            Some(reuse) => reuse.prepare(&request, &client.tenant, &mut jobs).await?,
            None if request.cache() == CacheMode::Only => return Err(Rejection::CacheMiss),
            None => {}
        }
        let look_up = started.elapsed();
        let states: Vec<_> = jobs.iter().filter_map(|job| job.start.reused().cloned()).collect();
        // The same for all: their deadlines are one.
        let spent = received.elapsed();
        for job in &mut jobs {
            job.terms.objective = job.terms.objective.min(timeout);
            job.spent = spent;
        }
        // Who named more time than there is insists on nothing.
        let insists = request.has_max_latency() && request.terms().objective <= timeout;
        // What is painted for this client already costs nothing more.
        if !self.queue.has_all(&jobs) {
            self.admit(&request, &jobs, insists)?;
        }
        let pictures = self.queue.submit(jobs)?;
        if let Some(reuse) = &self.reuse {
            reuse.prefetch(&states);
        }
        Ok(Accepted { request, pictures, look_up })
    }

    /// Whether all of a request's pictures can be painted in time.
    fn admit(
        &self,
        request: &GenerationRequest,
        jobs: &[queue::Job],
        insists: bool,
    ) -> Result<(), Rejection> {
        // What is painted and what is shown do not wait for each other.
        let line = self.planner.line(jobs);
        let mut waiting = self.queue.waiting(line, |job, deadline| self.planner.in_line(line, job, deadline));
        if line == Line::Paint && self.planner.store_fails() {
            let painted = |job: &queue::Job, deadline| self.planner.in_line(line, job, deadline);
            waiting.extend(self.queue.waiting(Line::Show, painted));
        }
        match self.planner.admit(key(request, jobs), line, jobs, waiting, insists) {
            Verdict::Admit => Ok(()),
            Verdict::Later(retry_after) => {
                telemetry::overloaded();
                Err(Rejection::Overloaded { retry_after })
            }
            Verdict::Never => {
                let reason = "is less than the fewest steps that the quality allows take on an idle machine";
                Err(Rejection::Invalid { field: "pentimento.max_latency_ms", reason: reason.into() })
            }
        }
    }

    /// Whether new requests are refused because the server is shutting down.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

/// Knows a client and his request again, when he comes back after a refusal.
fn key(request: &GenerationRequest, jobs: &[queue::Job]) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.has_seed().then(|| request.seeds()).hash(&mut hasher);
    if let Some(queue::Job { client, model, prompt, negative_prompt, size, terms, .. }) = jobs.first() {
        (jobs.len(), client, model, prompt, negative_prompt, size.width, size.height).hash(&mut hasher);
        (terms.tier, terms.floor, terms.best, terms.objective).hash(&mut hasher);
    }
    hasher.finish()
}
