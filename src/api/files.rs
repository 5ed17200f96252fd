//! Pictures behind urls: in memory, unguessable, expiring, bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::wire::OutputFormat;
use super::{ApiError, App, ErrorBody};

/// Where the pictures are. The router and the urls agree on it.
pub const PATH: &str = "/v1/images/files";

struct File {
    name: String,
    format: OutputFormat,
    bytes: Bytes,
    expires: Instant,
}

/// The pictures that urls lead to, oldest first. All live equally long, so the oldest expires first.
pub struct FileStore {
    lifetime: Duration,
    budget: usize,
    files: Mutex<VecDeque<File>>,
}

impl FileStore {
    /// An empty store whose pictures live for `lifetime` and fill at most `budget` bytes.
    pub fn new(lifetime: Duration, budget: usize) -> Self {
        Self { lifetime, budget, files: Mutex::default() }
    }

    /// Keeps a picture; the name is all that leads back to it.
    ///
    /// # Errors
    /// Where the system has no randomness, or the picture alone is beyond the budget.
    pub fn put(&self, bytes: &Bytes, format: OutputFormat, now: Instant) -> Result<String, ApiError> {
        let mut secret = [0; 24];
        getrandom::fill(&mut secret).map_err(|e| ApiError::internal(&e))?;
        self.put_as(&secret, bytes, format, now)
    }

    /// Keeps a picture that belongs to a secret. It may have been put before: it lives anew, under the same name.
    ///
    /// # Errors
    /// Where the picture alone is beyond the budget.
    pub fn put_as(
        &self,
        secret: &[u8; 24],
        bytes: &Bytes,
        format: OutputFormat,
        now: Instant,
    ) -> Result<String, ApiError> {
        if bytes.len() > self.budget {
            return Err(ApiError::internal(&"a picture is larger than url_store_bytes"));
        }
        let name = format!("{}.{}", URL_SAFE_NO_PAD.encode(secret), format.name());
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|f| f.name != name);
        let mut total: usize = bytes.len() + files.iter().map(|f| f.bytes.len()).sum::<usize>();
        while files.front().is_some_and(|f| f.expires <= now || total > self.budget) {
            total -= files.pop_front().map_or(0, |f| f.bytes.len());
        }
        let expires = now + self.lifetime;
        files.push_back(File { name: name.clone(), format, bytes: bytes.clone(), expires });
        Ok(name)
    }

    fn get(&self, name: &str, now: Instant) -> Option<(OutputFormat, Bytes, Duration)> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let file = files.iter().find(|f| f.name == name && f.expires > now)?;
        Some((file.format, file.bytes.clone(), file.expires - now))
    }
}

/// A picture that an answer's url leads to. Needs no API key: the url is the secret.
#[utoipa::path(get, path = "/v1/images/files/{name}", tag = "images",
    params(("name" = String, Path, description = "As the url has it")),
    responses((status = 200, description = "The picture", content_type = "image/*"),
        (status = 404, description = "Expired, gave way to newer ones, or never was", body = ErrorBody)))]
pub async fn file(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::file())?;
    let (format, bytes, left) = app.files.get(&name, Instant::now()).ok_or_else(ApiError::file)?;
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(value) = HeaderValue::try_from(format!("private, max-age={}", left.as_secs())) {
        headers.insert(header::CACHE_CONTROL, value);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_expire_and_the_oldest_give_way() {
        let store = FileStore::new(Duration::from_secs(10), 100);
        let start = Instant::now();
        let put =
            |bytes, at| store.put(&vec![0; bytes].into(), OutputFormat::Png, start + Duration::from_secs(at));
        let there = |name: &str, at| store.get(name, start + Duration::from_secs(at)).is_some();
        let a = put(40, 0).unwrap();
        let b = put(40, 1).unwrap();
        assert!(a.len() > 30 && a != b && there(&a, 9) && !there(&a, 10) && there(&b, 10));
        let c = put(60, 2).unwrap();
        assert!(!there(&a, 2) && there(&b, 2) && there(&c, 2), "a gave way, b still fits");
        assert!(put(101, 3).is_err() && there(&c, 3));
        let put_again = |at| {
            store
                .put_as(&[7; 24], &vec![0; 40].into(), OutputFormat::Png, start + Duration::from_secs(at))
                .unwrap()
        };
        let again = put_again(4);
        assert_eq!(put_again(9), again);
        assert!(there(&again, 18) && there(&c, 11), "it is there once, and lives anew");
    }
}
