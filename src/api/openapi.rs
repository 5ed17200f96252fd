//! The API's description. Routes and schemas come from the handlers and types themselves.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

use super::App;
use super::jobs::JobEvent;
use super::wire::{CompletedEvent, PartialImageEvent};

/// What no handler says. The events are in no response's type, so they are named here.
#[derive(OpenApi)]
#[openapi(
    info(title = "Pentimento", description = "Text-to-image diffusion, compatible with OpenAI's Images API."),
    components(schemas(PartialImageEvent, CompletedEvent, JobEvent)),
    security((), ("api_key" = [])),
    modifiers(&ApiKey)
)]
pub struct Description;

struct ApiKey;

impl utoipa::Modify for ApiKey {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("api_key", scheme);
    }
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")))]
pub async fn openapi(State(app): State<Arc<App>>) -> Json<utoipa::openapi::OpenApi> {
    Json(app.description.clone())
}
