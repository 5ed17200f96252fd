//! Jobs: requests whose client comes back for the pictures.

mod events;
mod wire;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

pub use wire::{JobEvent, JobObject, WebhookRequest};

use super::answer::{About, Answer};
use super::images::wanted;
use super::observe::RequestId;
use super::wire::ImageRequest;
use super::{ApiError, App, ErrorBody, body};
use crate::gateway::webhook::Webhook;
use crate::gateway::{Client, Idempotency, Job, JobId, NewJob};

/// Where jobs are.
const PATH: &str = "/v1/jobs";
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Bytes of an idempotency key.
const MAX_KEY: usize = 255;

/// Accepts a request whose pictures are fetched later.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", request_body = ImageRequest,
    params(("Idempotency-Key" = Option<String>, Header,
        description = "The client's own name for this request, 1 to 255 visible ASCII characters: sent again with the same body it makes no second job")),
    responses(
        (status = 202, description = "The job, to be had at `Location`", body = JobObject),
        (status = 400, description = "A field is wrong; `param` names it", body = ErrorBody),
        (status = 401, description = "No API key, or a wrong one", body = ErrorBody),
        (status = 404, description = "No such model, or `cache_miss`", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time", body = ErrorBody),
        (status = 409, description = "The idempotency key came with another body before", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not application/json", body = ErrorBody),
        (status = 429, description = "Too much is waiting; see `Retry-After`", body = ErrorBody),
        (status = 500, description = "The server's fault", body = ErrorBody),
        (status = 503, description = "Shutting down", body = ErrorBody)))]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let key = idempotency_key(request.headers())?;
    let bytes = body::bytes(request, app.max_body_bytes, app.read_timeout).await?;
    let idempotency = key.map(|key| Idempotency { key, body: Sha256::digest(&bytes).into() });
    let request: ImageRequest = body::parse(&bytes)?;
    if request.stream == Some(true) {
        let reason = "a job is not streamed; GET /v1/jobs/{id}/events streams its events";
        return Err(ApiError::invalid("stream", reason));
    }
    let id = JobId::random().map_err(|e| ApiError::internal(&e))?;
    let webhook = webhook(&app, &request, &id)?;
    let answer = Answer::new(&request)?;
    let refused = |error| ApiError::job_refused(error, app.jobs.retry_after());
    if let Some(known) = app.jobs.before(&client.tenant, idempotency.as_ref()).map_err(refused)? {
        return accepted(&app, &known);
    }
    let random = u64::from(getrandom::u32().map_err(|e| ApiError::internal(&e))?);
    let request = app.gateway.validate(wanted(request), random)?;
    let taken = app.gateway.accept(request, &client, &request_id, started, app.jobs.timeout()).await?;
    let about = About::new(answer, &taken.request, taken.look_up, started);
    let new = NewJob { id, tenant: client.tenant, about, idempotency, webhook };
    let job = app.jobs.start(new, taken.pictures).map_err(refused)?;
    accepted(&app, &job)
}

fn accepted(app: &App, job: &Job<About>) -> Result<Response, ApiError> {
    let location = HeaderValue::try_from(format!("{PATH}/{}", job.id)).map_err(|e| ApiError::internal(&e))?;
    let job = JobObject::of(app, job, &job.progress())?;
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(job)).into_response())
}

/// How far a job is; its pictures, once it is completed.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "As `POST /v1/jobs` answered it")),
    responses((status = 200, description = "The job", body = JobObject),
        (status = 401, description = "No API key, or a wrong one", body = ErrorBody),
        (status = 404, description = "Somebody else's, forgotten, or never was", body = ErrorBody)))]
pub async fn one(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<JobObject>, ApiError> {
    let job = find(&app, &client, id)?;
    JobObject::of(&app, &job, &job.progress()).map(Json)
}

/// A job's events: how far it is now, then what follows, until it ends.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "jobs",
    params(("id" = String, Path, description = "As `POST /v1/jobs` answered it")),
    responses((status = 200, content_type = "text/event-stream", body = String,
            description = "Server-sent events: `JobEvent`s `job.queued`, `job.painting` and one of `job.completed`, `job.failed`, `job.cancelled`; `PartialImageEvent`s `job.partial_image`"),
        (status = 401, description = "No API key, or a wrong one", body = ErrorBody),
        (status = 404, description = "Somebody else's, forgotten, or never was", body = ErrorBody)))]
pub async fn events(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let job = find(&app, &client, id)?;
    Ok(events::stream(app, job).into_response())
}

/// Cancels a job, or forgets one that has ended.
#[utoipa::path(delete, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "As `POST /v1/jobs` answered it")),
    responses((status = 200, description = "It is cancelled", body = JobObject),
        (status = 204, description = "It had ended, and is forgotten"),
        (status = 401, description = "No API key, or a wrong one", body = ErrorBody),
        (status = 404, description = "Somebody else's, forgotten, or never was", body = ErrorBody)))]
pub async fn remove(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let job = find(&app, &client, id)?;
    if app.jobs.remove(&job) {
        return Ok(Json(JobObject::of(&app, &job, &job.progress())?).into_response());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The client's job. Others' are as if they were not.
fn find(
    app: &App,
    client: &Client,
    id: Result<Path<String>, PathRejection>,
) -> Result<Arc<Job<About>>, ApiError> {
    // No id: the path is not UTF-8.
    let job = id.ok().and_then(|Path(id)| app.jobs.get(&client.tenant, &id));
    job.ok_or_else(ApiError::job_not_found)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let sane = |key: &&str| (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
    let key = value.to_str().ok().filter(sane).ok_or_else(|| {
        ApiError::invalid("Idempotency-Key", &format!("must be 1 to {MAX_KEY} visible ASCII characters"))
    })?;
    Ok(Some(key.to_owned()))
}

/// Who hears of the job's end.
fn webhook(app: &App, request: &ImageRequest, id: &JobId) -> Result<Option<Webhook>, ApiError> {
    let Some(webhook) = request.pentimento.as_ref().and_then(|ours| ours.webhook.as_ref()) else {
        return Ok(None);
    };
    const FIELD: &str = "pentimento.webhook.url";
    let url = webhook.url.as_deref().ok_or_else(|| ApiError::missing(FIELD))?;
    let checked = app.jobs.webhooks().check(url);
    let url = checked.map_err(|error| ApiError::invalid(FIELD, &error.to_string()))?;
    Ok(Some(Webhook { url, link: format!("{}{PATH}/{id}", app.public_url) }))
}
