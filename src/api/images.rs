//! `POST /v1/images/generations`.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};

use super::answer::{About, Answer};
use super::observe::RequestId;
use super::wire::{ImageRequest, ImagesResponse, Quality};
use super::{ApiError, App, ErrorBody, body, events};
use crate::gateway::{AnsweredPicture, CacheMode, Client, PictureEvent, PictureFailure, Pictures, Wanted};
use crate::scheduler::messages::Failure;

/// Paints pictures.
#[utoipa::path(post, path = "/v1/images/generations", tag = "images", request_body = ImageRequest,
    responses(
        (status = 200, description = "The pictures; with `stream`, server-sent events instead: `PartialImageEvent`s and `CompletedEvent`s",
            content((ImagesResponse = "application/json"), (String = "text/event-stream"))),
        (status = 400, description = "A field is wrong; `param` names it", body = ErrorBody),
        (status = 401, description = "No API key, or a wrong one", body = ErrorBody),
        (status = 404, description = "No such model, or `cache_miss`", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not application/json", body = ErrorBody),
        (status = 429, description = "Too much is waiting, or being painted to answer in time; see `Retry-After`", body = ErrorBody),
        (status = 500, description = "The server's fault", body = ErrorBody),
        (status = 503, description = "Shutting down", body = ErrorBody),
        (status = 504, description = "Not finished in time", body = ErrorBody)))]
pub async fn generate(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(RequestId(id)): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let request: ImageRequest = body::json(request, app.max_body_bytes, app.read_timeout).await?;
    let answer = Answer::new(&request)?;
    only_for_jobs_or_streams(&request)?;
    // Short enough to be typed again.
    let random = u64::from(getrandom::u32().map_err(|e| ApiError::internal(&e))?);
    let request = app.gateway.validate(wanted(request), random)?;
    let accepted = app.gateway.accept(request, &client, &id, started, app.request_timeout).await?;
    let deadline = started + app.request_timeout;
    let stream = answer.stream;
    let about = About::new(answer, &accepted.request, accepted.look_up, started);
    if stream {
        return Ok(events::stream(about, accepted.pictures, deadline).into_response());
    }
    let painted = tokio::time::timeout_at(deadline.into(), collect(accepted.pictures)).await;
    let painted = painted.map_err(|_| ApiError::timeout())??;
    let keep = |_, picture: &AnsweredPicture| {
        let name = app.files.put(&picture.file, about.appearance.output_format, Instant::now())?;
        Ok(app.file_url(&name))
    };
    let answer = about.response(&painted, Instant::now(), SystemTime::now(), keep)?;
    Ok((answer.pentimento.headers(), Json(answer)).into_response())
}

/// Refuses what makes sense elsewhere.
fn only_for_jobs_or_streams(request: &ImageRequest) -> Result<(), ApiError> {
    if request.stream != Some(true) && request.partial_images.is_some_and(|n| n > 0) {
        return Err(ApiError::invalid("partial_images", "needs stream to be true"));
    }
    if request.pentimento.as_ref().is_some_and(|ours| ours.webhook.is_some()) {
        return Err(ApiError::invalid("pentimento.webhook", "is for POST /v1/jobs"));
    }
    Ok(())
}

/// Waits for every picture. Dropped half-way (the client hung up, or time ran out), it cancels the rest.
async fn collect(mut pictures: Pictures) -> Result<Vec<AnsweredPicture>, ApiError> {
    let mut answered: Vec<Option<AnsweredPicture>> = vec![None; pictures.count()];
    while answered.iter().any(Option::is_none) {
        match pictures.next().await {
            Some(PictureEvent::Begun { .. } | PictureEvent::Preview { .. }) => {}
            Some(PictureEvent::Done { picture, answer }) => answered[picture] = Some(answer),
            Some(PictureEvent::Failed { failure, .. }) => return Err(failure.into()),
            None => return Err(PictureFailure::Painting(Failure::Stopped).into()),
        }
    }
    Ok(answered.into_iter().flatten().collect())
}

/// What the gateway is asked for.
pub fn wanted(request: ImageRequest) -> Wanted {
    let ours = request.pentimento.unwrap_or_default();
    Wanted {
        model: request.model,
        prompt: request.prompt,
        negative_prompt: request.negative_prompt,
        n: request.n,
        size: request.size,
        steps: request.num_inference_steps,
        tier: request.quality.unwrap_or(Quality::Auto).into(),
        max_latency_ms: ours.max_latency_ms,
        min_quality: ours.min_quality,
        guidance_scale: request.guidance_scale,
        seed: request.seed,
        previews: request.partial_images,
        format: request.output_format.map(Into::into),
        compression: request.output_compression,
        cache: ours.cache.map_or(CacheMode::Auto, Into::into),
        namespace: ours.namespace,
        ..Wanted::default()
    }
}
