//! What every request gets: an id, a span, a line in the log, a place in the metrics.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::telemetry;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: in its answer, in the log, and wherever its pictures are spoken of.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

impl RequestId {
    /// The client's own where it is sane, else a new one.
    fn of(headers: &HeaderMap) -> Self {
        let sane = |id: &&str| {
            (1..=128).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let given = headers.get(X_REQUEST_ID).and_then(|v| v.to_str().ok()).filter(sane);
        match given {
            Some(id) => Self(id.into()),
            // Without randomness ids repeat; nothing but the log suffers.
            None => Self(format!("req_{:016x}", getrandom::u64().unwrap_or_default()).into()),
        }
    }
}

/// Wraps every request.
pub async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    let path = request.extensions().get::<MatchedPath>();
    let route = path.map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let method = method_name(request.method());
    let span = tracing::info_span!("request", id = &*id.0, method, route);
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).instrument(span.clone()).await;
    let (status, time) = (response.status().as_u16(), started.elapsed());
    telemetry::request(&route, method, status, time);
    span.in_scope(|| tracing::info!(status, seconds = time.as_secs_f64(), "answered"));
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}

/// A client can make up methods, but no metrics.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sane_ids_are_taken_over() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, value.parse().unwrap());
            RequestId::of(&headers).0.to_string()
        };
        assert_eq!(of("abc-1.2_X"), "abc-1.2_X");
        let long = "x".repeat(129);
        for odd in ["", "a b", "a\"b", "<script>", &long] {
            assert!(of(odd).starts_with("req_"), "{odd}");
        }
    }
}
