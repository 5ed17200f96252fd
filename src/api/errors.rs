//! Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::gateway::{JobError, JobFailure, PictureFailure, Rejection};
use crate::scheduler::messages::{Busy, Failure};

/// An error's answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The request's field at fault, if one is.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
}

pub(super) const INVALID_REQUEST: &str = "invalid_request_error";
const RATE_LIMIT: &str = "rate_limit_error";
pub(super) const SERVER: &str = "server_error";

/// When a client that is refused because the server shuts down may come again: another server may be there.
const CLOSING: Duration = Duration::from_secs(5);

/// As much of the client's own words as an error repeats, in characters.
const MAX_ECHO: usize = 300;

/// A text without its middle where it is long: what is wrong often stands at its end.
pub(super) fn short(text: &str) -> String {
    let length = text.chars().count();
    if length <= MAX_ECHO {
        return text.to_owned();
    }
    let part = |from: usize| text.chars().skip(from).take(MAX_ECHO / 2).collect::<String>();
    format!("{}…{}", part(0), part(length - MAX_ECHO / 2))
}

/// A text with a capital at its beginning.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// An error on its way to the client.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// HTTP's status.
    pub status: StatusCode,
    /// What the body says.
    pub detail: ErrorDetail,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(super) fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let detail = ErrorDetail { message: message.into(), kind, param: None, code: Some(code) };
        Self { status, detail, retry_after: None }
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.detail.param = Some(param.into());
        self
    }

    fn retry_after(mut self, time: Duration) -> Self {
        self.retry_after = Some(time);
        self
    }

    /// A field's value.
    pub fn invalid(param: impl Into<String>, reason: &str) -> Self {
        let param = short(&param.into());
        let message = format!("Invalid value for '{param}': {}.", short(reason));
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, "invalid_value", message).param(param)
    }

    /// A field that must be there.
    pub fn missing(param: &str) -> Self {
        let message = format!("Missing required parameter: '{param}'.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, "missing_required_parameter", message)
            .param(param)
    }

    /// A field that this API does not have.
    pub fn unknown_parameter(param: &str) -> Self {
        let param = short(param);
        let message = format!("Unknown parameter: '{param}'.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, "unknown_parameter", message).param(param)
    }

    /// A body that is not JSON.
    pub fn broken_json(reason: &str) -> Self {
        let message = format!("The request's body cannot be read as a JSON object: {reason}.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, "invalid_json", message)
    }

    /// A body that did not arrive.
    pub fn broken_body() -> Self {
        let message = "The request's body ended early or came too slowly.";
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, "incomplete_body", message)
    }

    /// A body of another type.
    pub fn content_type() -> Self {
        let message = "The header Content-Type must be application/json.";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, "unsupported_content_type", message)
    }

    /// A body beyond the limit.
    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("The request's body is larger than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, "request_too_large", message)
    }

    /// No key, or a wrong one.
    pub fn key(given: bool) -> Self {
        let message = if given {
            "Incorrect API key provided."
        } else {
            "You didn't provide an API key: send the header Authorization: Bearer YOUR_KEY."
        };
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, "invalid_api_key", message)
    }

    /// No such path.
    pub fn route(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID_REQUEST,
            "unknown_url",
            format!("Unknown URL: {} {}.", short(method), short(path)),
        )
    }

    /// No such method on this path.
    pub fn method(method: &str, path: &str) -> Self {
        let message = format!("{} does not answer {}.", short(path), short(method));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, "method_not_supported", message)
    }

    /// No such picture, or no longer.
    pub fn file() -> Self {
        let message = "There is no picture here: it has expired, gave way to newer ones, or never was.";
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "file_not_found", message)
    }

    /// No such job of this client.
    pub fn job_not_found() -> Self {
        let message = "There is no such job: it was forgotten, or never was.";
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "job_not_found", message)
    }

    /// A job that is not taken.
    pub fn job_refused(error: JobError, retry_after: Duration) -> Self {
        match error {
            JobError::Full => {
                let message = "Too many jobs are waiting.";
                Self::new(StatusCode::TOO_MANY_REQUESTS, RATE_LIMIT, "too_many_jobs", message)
                    .retry_after(retry_after)
            }
            JobError::KeyTaken => {
                let message = "This Idempotency-Key came with another body before.";
                Self::new(StatusCode::CONFLICT, INVALID_REQUEST, "idempotency_key_reused", message)
                    .param("Idempotency-Key")
            }
        }
    }

    /// Why a job failed. Asked for again and again, so nothing goes to the log.
    pub fn of_job(failure: &JobFailure) -> Self {
        match failure {
            JobFailure::Picture(PictureFailure::Painting(Failure::Stopped)) => Self::closing(),
            JobFailure::Picture(PictureFailure::Painting(Failure::StateGone)) => {
                Self::from(Rejection::CacheMiss)
            }
            JobFailure::Picture(_) => Self::fault(),
            JobFailure::TimedOut => Self::timeout(),
            JobFailure::NoRoom => {
                let message = "There was no room for the job's pictures beside those of other jobs.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "job_store_full", message)
            }
        }
    }

    /// Too slow.
    pub fn timeout() -> Self {
        let message = "The picture was not finished in time.";
        Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, "timeout", message)
    }

    /// Shutting down.
    fn closing() -> Self {
        let message = "The server is shutting down.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "shutting_down", message).retry_after(CLOSING)
    }

    /// Our fault: the reason goes to the log, not to the client.
    pub fn internal(reason: &dyn std::fmt::Display) -> Self {
        tracing::error!(%reason, "a request failed");
        Self::fault()
    }

    fn fault() -> Self {
        let message =
            "The server failed to process the request. The log has the details under the request's id.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error", message)
    }

    /// The body.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail.clone() }
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let message = format!("{}.", short(&rejection.to_string()));
        match rejection {
            Rejection::Invalid { field, reason } => Self::invalid(field, &reason),
            Rejection::UnknownModel(_) => {
                let message = capitalized(&message);
                Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "model_not_found", message).param("model")
            }
            Rejection::CacheMiss => Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "cache_miss", message)
                .param("pentimento.cache"),
            Rejection::Later { why: Busy::Closing, .. } => Self::closing(),
            Rejection::Later { after, why } => {
                let code = match why {
                    Busy::Full => "queue_full",
                    Busy::ClientFull => "rate_limit_exceeded",
                    Busy::Overloaded | Busy::Closing => "overloaded",
                };
                let message = capitalized(&message);
                Self::new(StatusCode::TOO_MANY_REQUESTS, RATE_LIMIT, code, message).retry_after(after)
            }
            Rejection::Internal(reason) => Self::internal(&reason),
        }
    }
}

impl From<PictureFailure> for ApiError {
    fn from(failure: PictureFailure) -> Self {
        match failure {
            PictureFailure::Painting(Failure::Stopped) => Self::closing(),
            PictureFailure::Painting(Failure::StateGone) => Self::from(Rejection::CacheMiss),
            other => Self::internal(&other),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(time) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(time.as_secs_f64().ceil() as u64));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
