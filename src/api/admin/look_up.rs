//! A look-up that is not followed by painting: what would be decided, and why.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, Request, State};
use pentimento_cache::{Decision, FINISHED, LookUp};
use pentimento_pipelines::PlanOption;

use super::Admin;
use super::wire::{DecisionObject, LookUpAnswer, LookUpRequest, NeighbourObject, Outcome};
use crate::api::observe::RequestId;
use crate::api::{ApiError, ErrorBody, body};
use crate::gateway::{ANONYMOUS, PictureRequest, Wanted};

/// Looks a request up as if it were to be painted. Nothing is painted, counted or kept.
#[utoipa::path(post, path = "/admin/v1/cache/lookup", tag = "cache", request_body = LookUpRequest,
    responses(
        (status = 200, body = LookUpAnswer),
        (status = 400, description = "A field is wrong; `param` names it", body = ErrorBody),
        (status = 401, body = ErrorBody),
        (status = 404, description = "No such model", body = ErrorBody)))]
pub async fn look_up(
    State(admin): State<Arc<Admin>>,
    Extension(RequestId(id)): Extension<RequestId>,
    request: Request,
) -> Result<Json<LookUpAnswer>, ApiError> {
    let received = Instant::now();
    let mut asked: LookUpRequest = body::json(request, admin.max_body_bytes, admin.read_timeout).await?;
    let tenant = asked.tenant.take().unwrap_or_else(|| ANONYMOUS.to_owned());
    if asked.prompt.is_none() {
        return Err(ApiError::missing("prompt"));
    }
    // Chance breaks ties among neighbours where there is no seed; here always in the same way.
    let gateway = &admin.gateway;
    let request = gateway.validate(wanted(asked), 0).map_err(|rejection| {
        let mut error = ApiError::from(rejection);
        // Here it stands beside the other fields.
        if error.detail.param.as_deref() == Some("pentimento.namespace") {
            error.detail.param = Some("namespace".to_owned());
        }
        error
    })?;
    let tasks = gateway.tasks(&request, &tenant, &id, received, admin.request_timeout)?;
    let task = tasks.first().ok_or_else(|| ApiError::internal(&"a request without a picture"))?;
    let now = |task: &_| gateway.scheduler.quality_now(task);
    let found = admin.reuse.explain(&request, &tenant, task, &now).await?;
    Ok(Json(answer(found, &request)?))
}

fn wanted(asked: LookUpRequest) -> Wanted {
    Wanted {
        model: asked.model,
        prompt: asked.prompt,
        negative_prompt: asked.negative_prompt,
        size: asked.size,
        steps: asked.num_inference_steps,
        guidance_scale: asked.guidance_scale,
        seed: asked.seed,
        namespace: asked.namespace,
        ..Wanted::default()
    }
}

fn answer(found: LookUp, request: &PictureRequest) -> Result<LookUpAnswer, ApiError> {
    let (outcome, entry, state, why) = match found.decision {
        Decision::Miss { why } => (Outcome::Miss, None, None, why),
        Decision::State { entry, timestep, why, .. } => (Outcome::State, Some(entry), Some(timestep), why),
        Decision::Semantic { entry, why, .. } => (Outcome::Semantic, Some(entry), Some(FINISHED), why),
        Decision::Exact { entry, why } => (Outcome::Exact, Some(entry), Some(FINISHED), why),
    };
    let steps = request.full_steps();
    let option = PlanOption::guided(steps);
    let left =
        |timestep: f64| option.rest(&request.model().schedule, request.first().guidance_scale, timestep);
    let skipped_steps = match state {
        None => 0,
        Some(FINISHED) => steps,
        Some(timestep) => {
            let left = left(timestep).map_err(|error| ApiError::internal(&error))?;
            steps - left.steps().len().min(steps)
        }
    };
    let decision = DecisionObject {
        outcome,
        why,
        entry: entry.map(String::from),
        timestep: state.filter(|timestep| *timestep != FINISHED),
        skipped_steps,
        steps,
    };
    let neighbours = found.neighbours.into_iter().map(NeighbourObject::from).collect();
    Ok(LookUpAnswer { decision, neighbours })
}
