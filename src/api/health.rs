//! Whether the server lives, and whether it should be sent work.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;

/// What the server is doing with its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The first steps have not been taken yet, or failed.
    Starting,
    /// It paints.
    Ready,
    /// A step takes ten times its time, and a minute at least: the process should be restarted.
    Hanging,
    /// It finishes what it has accepted, and accepts nothing more.
    Draining,
}

/// An answer to a probe.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    status: Phase,
}

/// The process answers, and no step hangs.
#[utoipa::path(get, path = "/healthz", tag = "operation",
    responses((status = 200, body = Health), (status = 503, description = "A step hangs", body = Health)))]
pub async fn healthz(State(app): State<Arc<App>>) -> Response {
    let status = *app.phase.borrow();
    let code = if status == Phase::Hanging { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(Health { status })).into_response()
}

/// The same under another usual name.
#[utoipa::path(get, path = "/health", tag = "operation",
    responses((status = 200, body = Health), (status = 503, description = "A step hangs", body = Health)))]
pub async fn health(state: State<Arc<App>>) -> Response {
    healthz(state).await
}

/// Every model has taken a warm-up step, and the server is not shutting down.
#[utoipa::path(get, path = "/readyz", tag = "operation",
    responses((status = 200, body = Health), (status = 503, description = "Not now", body = Health)))]
pub async fn readyz(State(app): State<Arc<App>>) -> Response {
    let status = *app.phase.borrow();
    let code = if status == Phase::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Health { status })).into_response()
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain")))]
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
        .into_response()
}
