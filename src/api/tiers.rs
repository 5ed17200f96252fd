//! `GET /v1/tiers`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{App, ErrorBody};
use crate::gateway::{QualityRange, ServedModel, Tier, Tolerance};
use crate::menu::MeasuredOption;

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
    /// The least quality that a picture gets, whatever the load, 0 to 1 relative to the model's full plan.
    min_quality: f64,
    /// The plan menu's cheapest option that reaches it.
    min_option: String,
    /// That option's steps.
    min_steps: usize,
    /// The quality beyond which more is worth nothing to this tier.
    max_quality: f64,
    /// The option that a picture gets without load: the cheapest that reaches it.
    max_option: String,
    /// That option's steps.
    max_steps: usize,
    /// Whether the options of this model were measured; otherwise their qualities are a careful guess.
    measured: bool,
    /// Time from a request's arrival within which its answer should be there.
    objective_ms: f64,
}

/// What `quality` means: options, expected quality and latency objective of each tier and model.
#[utoipa::path(get, path = "/v1/tiers", tag = "models",
    responses((status = 200, body = TierList), (status = 401, body = ErrorBody)))]
pub async fn list(State(app): State<Arc<App>>) -> Json<TierList> {
    let models = app.gateway.catalogue.models();
    let data = models.iter().flat_map(|model| Tier::ALL.map(|tier| object(&app, model, tier)));
    Json(TierList { object: "list", data: data.collect() })
}

fn object(app: &App, model: &ServedModel, tier: Tier) -> TierObject {
    let tolerance = Tolerance { tier, ..Tolerance::default() };
    let QualityRange { floor, best } = QualityRange::of_menu(&tolerance, &model.menu);
    let [least, most]: [&MeasuredOption; 2] = [floor, best].map(|quality| model.menu.cheapest(quality));
    TierObject {
        object: "tier",
        model: model.id.as_str().to_owned(),
        quality: tier.name(),
        min_quality: floor,
        min_option: least.option.id.clone(),
        min_steps: least.option.steps,
        max_quality: best,
        max_option: most.option.id.clone(),
        max_steps: most.option.steps,
        measured: model.menu.is_measured(),
        objective_ms: app.gateway.objective(model, &tolerance).time.as_micros() as f64 / 1000.0,
    }
}
