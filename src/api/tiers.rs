//! `GET /v1/tiers`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{ApiError, App, ErrorBody};
use crate::plan::{Asked, Tier};

/// What each quality means, by model.
#[derive(Debug, Serialize, ToSchema)]
pub struct TierList {
    /// Always `list`.
    object: &'static str,
    /// The tiers of the default model first.
    data: Vec<TierObject>,
}

/// What a request with this `quality` gets of a model, at the model's own size.
#[derive(Debug, Serialize, ToSchema)]
pub struct TierObject {
    /// Always `tier`.
    object: &'static str,
    /// The model's id.
    model: String,
    /// The value of `quality`.
    quality: &'static str,
    /// Steps of the plan that a picture gets at least, whatever the load.
    min_steps: usize,
    /// Steps of the plan that a picture gets without load.
    max_steps: usize,
    /// What a picture of `min_steps` is worth on average, 0 to 1 relative to the model's full plan.
    min_quality: f64,
    /// What a picture of `max_steps` is worth.
    max_quality: f64,
    /// Whether these were measured of this model; otherwise they are a careful guess.
    measured: bool,
    /// Time from a request's arrival within which its answer should be there.
    objective_ms: f64,
}

/// What `quality` means: steps, expected quality and latency objective of each tier and model.
#[utoipa::path(get, path = "/v1/tiers", tag = "models",
    responses((status = 200, body = TierList), (status = 401, body = ErrorBody)))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<TierList>, ApiError> {
    let gateway = &app.gateway;
    let mut data: Vec<TierObject> = Vec::new();
    for name in gateway.catalogue.names() {
        let model = gateway.catalogue.describe(name)?.id;
        let Some(offer) = gateway.planner.offer(&model) else { continue };
        if data.iter().any(|known| known.model == model) {
            continue; // an alias
        }
        for tier in Tier::ALL {
            let asked = Asked { tier, ..Asked::default() };
            let terms =
                gateway.planner.terms(&model, offer.size, 1, &asked).map_err(|e| ApiError::internal(&e))?;
            let quality = |steps| offer.frontier.quality(steps, 0.0);
            data.push(TierObject {
                object: "tier",
                model: model.clone(),
                quality: tier.name(),
                min_steps: terms.floor,
                max_steps: terms.best,
                min_quality: quality(terms.floor),
                max_quality: quality(terms.best),
                measured: offer.measured,
                objective_ms: terms.objective.as_micros() as f64 / 1000.0,
            });
        }
    }
    Ok(Json(TierList { object: "list", data }))
}
