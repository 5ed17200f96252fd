//! One request and its answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client as Pool};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;

use super::row::Provenance;

/// Bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;
/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Characters of a server's own words that a row keeps.
const MAX_ECHO: usize = 200;

/// What came back.
pub enum Reply {
    /// Pictures.
    Pictures(Provenance),
    /// 429, and when to come back.
    Refused(Option<Duration>),
    /// 504.
    TimedOut,
    /// Any other status.
    Failed(StatusCode, String),
}

/// Why nothing came back, or nothing that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection.
    #[error("{}", chain(.0))]
    Connection(#[from] legacy::Error),
    /// The answer's body broke off, or is too long.
    #[error("the answer cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// It is not what the Images API answers.
    #[error("the answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
    /// A picture is not base64.
    #[error("a picture cannot be read: {0}")]
    Picture(#[from] base64::DecodeError),
    /// A picture cannot be written.
    #[error("{path}: {source}")]
    Write {
        /// The picture's file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No valid HTTP.
    #[error(transparent)]
    Http(#[from] hyper::http::Error),
}

/// hyper says what failed, its sources why.
fn chain(error: &legacy::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    pentimento: Provenance,
}

/// Read only where pictures are kept.
#[derive(Deserialize)]
struct Pictures {
    data: Vec<Data>,
}

#[derive(Deserialize)]
struct Data {
    b64_json: String,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    message: String,
}

/// The server, by connections that are kept alive.
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
    uri: Uri,
    key: Option<HeaderValue>,
    pictures: Option<PathBuf>,
}

impl Client {
    /// For the Images API at `uri`. With `pictures` every picture is kept in that folder.
    pub fn new(uri: Uri, key: Option<HeaderValue>, pictures: Option<PathBuf>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let pool = Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Self { pool, uri, key, pictures }
    }

    /// Sends a body and reads the whole answer. `number` names the pictures.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&self, body: Bytes, number: usize) -> Result<Reply, SendError> {
        let mut request = Request::post(&self.uri).header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        let answer = self.pool.request(request.body(Full::new(body))?).await?;
        let (head, body) = answer.into_parts();
        // To its end whatever it is: only then can the connection be used again.
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(SendError::Body)?.to_bytes();
        match head.status {
            StatusCode::OK => {
                let Answer { pentimento } = serde_json::from_slice(&body)?;
                if let Some(folder) = &self.pictures {
                    keep(folder, number, &body)?;
                }
                Ok(Reply::Pictures(pentimento))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                Ok(Reply::Refused(after.map(Duration::from_secs)))
            }
            StatusCode::GATEWAY_TIMEOUT => Ok(Reply::TimedOut),
            status => {
                let told = serde_json::from_slice(&body).map(|answer: ErrorAnswer| answer.error.message);
                let told = told.unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned());
                Ok(Reply::Failed(status, told.chars().take(MAX_ECHO).collect()))
            }
        }
    }
}

/// Where the `index`-th picture of the `number`-th request lies, both from 0.
pub fn picture(folder: &Path, number: usize, index: usize) -> PathBuf {
    folder.join(format!("{number:06}-{index}.png"))
}

/// Small files, written at once: the page cache takes them.
fn keep(folder: &Path, number: usize, body: &[u8]) -> Result<(), SendError> {
    let Pictures { data } = serde_json::from_slice(body)?;
    for (index, Data { b64_json }) in data.iter().enumerate() {
        let path = picture(folder, number, index);
        let file = STANDARD.decode(b64_json)?;
        std::fs::write(&path, file).map_err(|source| SendError::Write { path, source })?;
    }
    Ok(())
}
