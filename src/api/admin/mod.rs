//! The admin API: what operators may see of the cache and the plans, and do to them. On a listener of its own.

mod access;
mod entries;
mod errors;
mod look_up;
mod plan;
mod policy;
mod transfer;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::{Json, Router};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use access::{Access, AdminToken};
pub use plan::PlanPolicy;

use super::{ApiError, observed, with_fallbacks};
use crate::config::Config;
use crate::gateway::{Gateway, Reuse};

/// Scans, exports and imports at a time; further ones wait.
const LONG_AT_ONCE: usize = 4;
/// An archive holds, beside the states that the cache may hold, their entries and tar's headers.
const ARCHIVE_PER_STATES: u64 = 2;

/// What the handlers share.
pub struct Admin {
    access: Access,
    gateway: Arc<Gateway>,
    reuse: Arc<Reuse>,
    long: Arc<Semaphore>,
    max_entries: u64,
    max_bytes: u64,
    max_body_bytes: usize,
    read_timeout: Duration,
    request_timeout: Duration,
    description: utoipa::openapi::OpenApi,
}

impl Admin {
    /// Puts together what the handlers need.
    pub fn new(config: &Config, access: Access, gateway: Arc<Gateway>, reuse: Arc<Reuse>) -> Self {
        Self {
            access,
            gateway,
            reuse,
            long: Arc::new(Semaphore::new(LONG_AT_ONCE)),
            max_entries: config.cache_max_entries as u64,
            max_bytes: config.cache_max_bytes,
            max_body_bytes: config.max_body_bytes,
            read_timeout: Duration::from_secs(config.read_timeout_seconds),
            request_timeout: Duration::from_secs(config.request_timeout_seconds),
            description: utoipa::openapi::OpenApi::default(),
        }
    }

    fn max_archive_bytes(&self) -> u64 {
        self.max_bytes.saturating_mul(ARCHIVE_PER_STATES)
    }

    /// Does what takes long on a thread of its own: the async threads are the painting clients' too.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Handle, &Reuse) -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, ApiError> {
        let permit = Arc::clone(&self.long).acquire_owned().await.map_err(|e| ApiError::internal(&e))?;
        let (runtime, reuse) = (Handle::current(), Arc::clone(&self.reuse));
        Ok(tokio::task::spawn_blocking(move || {
            let _permit = permit; // held to the end, whoever has gone meanwhile
            work(&runtime, &reuse)
        }))
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Pentimento: admin API", description = "What operators may see of the cache and the plans, and do to them."),
    security((), ("admin_token" = [])),
    modifiers(&Token)
)]
struct Description;

struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        api.components.get_or_insert_default().add_security_scheme("admin_token", scheme);
    }
}

/// Every route, and their description.
pub fn router(mut admin: Admin) -> Router {
    let quick = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(openapi))
        .routes(routes!(entries::stats))
        .routes(routes!(entries::list))
        .routes(routes!(entries::one, entries::delete))
        .routes(routes!(entries::purge))
        .routes(routes!(look_up::look_up))
        .routes(routes!(policy::get, policy::put))
        .routes(routes!(plan::get, plan::put))
        .routes(routes!(transfer::export));
    let slow = OpenApiRouter::new().routes(routes!(transfer::import));
    let mut description = quick.get_openapi().clone();
    description.merge(slow.get_openapi().clone());
    admin.description = description;
    let admin = Arc::new(admin);
    let quick = quick.route_layer(from_fn_with_state(admin.clone(), in_time));
    let (router, _) = quick.merge(slow).split_for_parts();
    let guarded = with_fallbacks(router).layer(from_fn_with_state(admin.clone(), access::authorize));
    observed(guarded).with_state(admin)
}

/// Bounds the time until an answer's head. The work itself has bounds of its own.
async fn in_time(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let answer = tokio::time::timeout(admin.request_timeout, next.run(request)).await;
    answer.map_err(|_| ApiError::too_slow())
}

/// What a query says, or which of its parameters is wrong.
fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    query.map(|Query(query)| query).map_err(|rejection| {
        let text = rejection.body_text();
        let text = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, reason)| reason);
        match text.split_once(": ") {
            Some((name, reason)) if reason.starts_with("unknown field") => ApiError::unknown_parameter(name),
            Some((name, reason)) => ApiError::invalid(name, reason),
            None => ApiError::invalid("query", text),
        }
    })
}

/// This description.
#[utoipa::path(get, path = "/admin/v1/openapi.json", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")))]
async fn openapi(State(admin): State<Arc<Admin>>) -> Json<utoipa::openapi::OpenApi> {
    Json(admin.description.clone())
}
