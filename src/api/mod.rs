//! HTTP, and only HTTP: parse, ask the gateway, shape the answer.

pub mod admin;
mod answer;
mod auth;
mod body;
mod errors;
mod events;
mod files;
mod health;
mod images;
mod jobs;
mod models;
mod observe;
mod openapi;
mod server;
mod tiers;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use auth::{Keys, Peer};
pub use errors::{ApiError, ErrorBody, ErrorDetail};
pub use health::Phase;
pub use server::{ConnectionLimits, run};

use crate::config::Config;
use crate::gateway::{Gateway, Jobs};

/// What the handlers share.
pub struct App {
    gateway: Arc<Gateway>,
    jobs: Arc<Jobs<answer::About>>,
    keys: Keys,
    files: files::FileStore,
    phase: watch::Receiver<Phase>,
    metrics: PrometheusHandle,
    /// Without a slash at its end.
    public_url: String,
    max_body_bytes: usize,
    read_timeout: Duration,
    request_timeout: Duration,
    /// When the models were loaded, in Unix seconds.
    started: u64,
    description: utoipa::openapi::OpenApi,
}

impl App {
    /// Puts together what the handlers need. `address` is where clients are without a `public_url`.
    pub fn new(
        config: &Config,
        address: SocketAddr,
        gateway: Arc<Gateway>,
        jobs: Arc<Jobs<answer::About>>,
        keys: Keys,
        phase: watch::Receiver<Phase>,
        metrics: PrometheusHandle,
    ) -> Self {
        let public_url = match config.public_url.trim_end_matches('/') {
            "" => format!("http://{address}"),
            url => url.to_owned(),
        };
        Self {
            gateway,
            jobs,
            keys,
            files: files::FileStore::new(
                Duration::from_secs(config.url_lifetime_seconds),
                config.url_store_bytes,
            ),
            phase,
            metrics,
            public_url,
            max_body_bytes: config.max_body_bytes,
            read_timeout: Duration::from_secs(config.read_timeout_seconds),
            request_timeout: Duration::from_secs(config.request_timeout_seconds),
            started: answer::unix_seconds(SystemTime::now()),
            description: utoipa::openapi::OpenApi::default(),
        }
    }

    fn file_url(&self, name: &str) -> String {
        format!("{}{}/{name}", self.public_url, files::PATH)
    }
}

/// Every route, and their description.
pub fn router(mut app: App) -> Router {
    let open = OpenApiRouter::with_openapi(openapi::Description::openapi())
        .routes(routes!(files::file))
        .routes(routes!(health::healthz))
        .routes(routes!(health::health))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(openapi::openapi));
    let keyed = OpenApiRouter::new()
        .routes(routes!(images::generate))
        .routes(routes!(jobs::create))
        .routes(routes!(jobs::one, jobs::remove))
        .routes(routes!(jobs::events))
        .routes(routes!(models::list))
        .routes(routes!(models::one))
        .routes(routes!(tiers::list));
    let description = open.get_openapi().clone();
    let mut all = description;
    all.merge(keyed.get_openapi().clone());
    app.description = all;
    let app = Arc::new(app);
    let keyed = keyed.route_layer(from_fn_with_state(app.clone(), auth::authenticate));
    let (router, _) = open.merge(keyed).split_for_parts();
    observed(with_fallbacks(router)).with_state(app)
}

/// Answers what no route does.
fn with_fallbacks<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .method_not_allowed_fallback(async |request: Request| {
            ApiError::method(request.method().as_str(), request.uri().path())
        })
        .fallback(async |request: Request| ApiError::route(request.method().as_str(), request.uri().path()))
}

/// Wraps every request; goes around all else.
fn observed<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            ApiError::internal(&"a handler panicked").into_response()
        }))
        .layer(from_fn(observe::observe))
}
