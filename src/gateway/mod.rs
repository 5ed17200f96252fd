//! What happens to a request before a worker sees it: validated, planned, queued.

mod catalogue;
pub mod embedder;
mod request;

use crate::config::Config;
use crate::queue::{Busy, LocalQueue, Subscription};

pub use catalogue::{Catalogue, CatalogueError, ModelInfo};
pub use request::{GenerationRequest, Limits, MAX_SEED, Wanted};

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
}

/// The way from a client's wishes to queued jobs.
pub struct Gateway {
    /// The models served.
    pub catalogue: Catalogue,
    limits: Limits,
    queue: LocalQueue,
}

impl Gateway {
    /// A gateway to a queue.
    pub fn new(catalogue: Catalogue, config: &Config, queue: LocalQueue) -> Self {
        Self { catalogue, limits: Limits::from(config), queue }
    }

    /// Validates and queues what `client` wants. `random_seed` serves where he names none.
    ///
    /// # Errors
    /// [`Rejection`], naming the field.
    pub fn accept(
        &self,
        wanted: Wanted,
        client: &str,
        request_id: &str,
        random_seed: u64,
    ) -> Result<Accepted, Rejection> {
        let model = self.catalogue.find(wanted.model.as_deref())?;
        let cached_only = wanted.cached_only;
        let request = GenerationRequest::new(wanted, model, &self.limits, random_seed)?;
        if cached_only {
            return Err(Rejection::CacheMiss); // nothing is cached so far
        }
        let pictures = self.queue.submit(request.jobs(client, request_id))?;
        Ok(Accepted { request, pictures })
    }

    /// Whether new requests are refused because the server is shutting down.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}
