//! By which policy pictures get their steps, and what it goes by.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{Admin, policy};
use crate::api::{ApiError, ErrorBody, body};
use crate::plan::{PlanPolicyConfig, PlanPolicyError, Planner};

/// The plan policy in force, and what it sees of the load.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlanObject {
    /// The policy and its settings: {"policy": "adaptive", "replan": true}.
    #[schema(value_type = Object)]
    plan: PlanPolicyConfig,
    /// Pictures asked for that take steps, per second.
    arrival_rate: f64,
    /// Pictures being painted.
    in_flight: usize,
    /// Refused clients who were told when to come again, and are still awaited.
    promises: usize,
    /// What a step of each model takes at its own size.
    step_times: Vec<ModelStepTimes>,
}

/// What a step of a model takes.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelStepTimes {
    /// The model's id.
    model: String,
    /// Whether its quality frontier was measured.
    frontier_measured: bool,
    /// By the rows of a batch.
    steps: Vec<RowsTime>,
}

/// What a step of so many rows takes.
#[derive(Debug, Serialize, ToSchema)]
pub struct RowsTime {
    /// Rows of the batch.
    rows: usize,
    /// Predicted milliseconds.
    ms: f64,
}

/// Another plan policy.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanChange {
    /// `policy`: `adaptive` (`replan`: whether pictures in flight are replanned), `per-model`, or `fixed` (`steps`: of a
    /// whole plan; null: each picture's best).
    #[schema(value_type = Option<Object>)]
    plan: Option<Map<String, Value>>,
}

impl PlanObject {
    fn of(planner: &Planner) -> Self {
        let model = |(id, measured): (&str, bool)| ModelStepTimes {
            model: id.to_owned(),
            frontier_measured: measured,
            steps: planner
                .step_times(id)
                .into_iter()
                .map(|(rows, s)| RowsTime { rows, ms: s * 1000.0 })
                .collect(),
        };
        let seen = planner.seen();
        Self {
            plan: planner.policy(),
            arrival_rate: seen.arrival_rate,
            in_flight: seen.flying,
            promises: seen.promises,
            step_times: planner.models().map(model).collect(),
        }
    }
}

/// The plan policy in force, and what it sees of the load.
#[utoipa::path(get, path = "/admin/v1/plan", tag = "plan",
    responses((status = 200, body = PlanObject), (status = 401, body = ErrorBody)))]
pub async fn get(State(admin): State<Arc<Admin>>) -> Json<PlanObject> {
    Json(PlanObject::of(&admin.gateway.planner))
}

/// Plans by another policy from now on, until the server ends.
#[utoipa::path(put, path = "/admin/v1/plan", tag = "plan", request_body = PlanChange,
    responses(
        (status = 200, description = "The policy now in force", body = PlanObject),
        (status = 400, description = "A setting is wrong; `param` names it", body = ErrorBody),
        (status = 401, body = ErrorBody)))]
pub async fn put(State(admin): State<Arc<Admin>>, request: Request) -> Result<Json<PlanObject>, ApiError> {
    let change: PlanChange = body::nested_json(request, admin.max_body_bytes, admin.read_timeout).await?;
    let config = policy::parse("plan", change.plan.ok_or_else(|| ApiError::missing("plan"))?)?;
    let planner = &admin.gateway.planner;
    planner.set_policy(config).map_err(|PlanPolicyError::OutOfBounds { field, must }| {
        ApiError::invalid(format!("plan.{field}"), &format!("must be {must}"))
    })?;
    tracing::info!(plan = ?planner.policy(), "the plan policy was set");
    Ok(Json(PlanObject::of(planner)))
}
