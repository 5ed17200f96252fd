//! `GET /v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{ApiError, App, ErrorBody};
use crate::gateway::ServedModel;

/// A model, as OpenAI lists it, and what it can do.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelObject {
    /// What requests call it; an alias is listed under its own name.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// When this server loaded it, in Unix seconds.
    created: u64,
    /// Always `pentimento`.
    owned_by: &'static str,
    /// Ours.
    pentimento: ModelAbilities,
}

/// What a model can do.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelAbilities {
    /// The model's own id, where `id` is an alias.
    model: String,
    /// One line about it.
    description: String,
    /// Its own size.
    default_size: String,
    /// Sides must be multiples of this,
    size_grid: u32,
    /// at least this,
    min_side: u32,
    /// and at most this.
    max_side: u32,
    /// Steps of its full plan.
    default_steps: usize,
    /// Its own guidance scale.
    default_guidance_scale: f32,
}

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    object: &'static str,
    /// The models, the default one first, aliases last.
    data: Vec<ModelObject>,
}

/// A model as a name of its own calls it.
fn object(app: &App, name: &str, model: &ServedModel) -> ModelObject {
    ModelObject {
        id: name.to_owned(),
        object: "model",
        created: app.started,
        owned_by: "pentimento",
        pentimento: ModelAbilities {
            model: model.id.as_str().to_owned(),
            description: model.description.clone(),
            default_size: model.defaults.size.to_string(),
            size_grid: model.sizes.grid,
            min_side: model.sizes.min,
            max_side: model.sizes.max,
            default_steps: model.defaults.steps,
            default_guidance_scale: model.defaults.guidance_scale,
        },
    }
}

/// The models served, and their aliases.
#[utoipa::path(get, path = "/v1/models", tag = "models",
    responses((status = 200, body = ModelList), (status = 401, body = ErrorBody)))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    let catalogue = &app.gateway.catalogue;
    let data = catalogue.names().map(|name| Ok(object(&app, name, catalogue.find(Some(name))?)));
    Ok(Json(ModelList { object: "list", data: data.collect::<Result<_, ApiError>>()? }))
}

/// One model, by id or alias.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "models",
    params(("id" = String, Path, description = "A model's id or alias")),
    responses((status = 200, body = ModelObject), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn one(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>, ApiError> {
    let Path(id) = id.unwrap_or_else(|_| Path(String::new())); // not UTF-8: no model is called that
    Ok(Json(object(&app, &id, app.gateway.catalogue.find(Some(&id))?)))
}
