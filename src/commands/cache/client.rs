//! The admin API from the other side.

use std::io::{self, Read};
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body, SendBody};

use crate::api::admin::AdminToken;
use crate::commands::Failure;

/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// The longest answer that is read as a whole, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// A server's admin API.
pub struct Client {
    agent: Agent,
    url: String,
    token: Option<AdminToken>,
}

/// An error as the API answers it, as far as it is shown.
#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    message: String,
}

impl Client {
    /// For the server at `http://ADDRESS`.
    ///
    /// # Errors
    /// [`Failure::Misuse`] for another kind of URL.
    pub fn new(url: &str, token: Option<AdminToken>) -> Result<Self, Failure> {
        if !url.starts_with("http://") {
            return Err(Failure::Misuse(anyhow!(
                "--admin: {url:?} does not begin with http://; reach a server elsewhere through a tunnel \
                 (ssh -L 8081:127.0.0.1:8081 HOST)"
            )));
        }
        // No proxy and no redirection: the token goes where the user said and nowhere else.
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .build()
            .into();
        Ok(Self { agent, url: url.trim_end_matches('/').to_owned(), token })
    }

    /// Where the server is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `GET` of a path under `/admin/v1/cache/`. Parameters without a value are left out.
    ///
    /// # Errors
    /// [`Failure`]: what the server answers, or that it does not.
    pub fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, Option<String>)],
    ) -> Result<T, Failure> {
        read(self.getting(path, query)?)
    }

    /// `POST` of JSON.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let request = self.authorized(self.agent.post(self.path(path)));
        read(self.answered(request.send_json(body))?)
    }

    /// `PUT` of JSON.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let request = self.authorized(self.agent.put(self.path(path)));
        read(self.answered(request.send_json(body))?)
    }

    /// `GET` of what is too long to be read as a whole.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn download(
        &self,
        path: &str,
        query: &[(&str, Option<String>)],
    ) -> Result<impl Read + use<>, Failure> {
        Ok(self.getting(path, query)?.into_body().into_reader())
    }

    /// `POST` of an archive.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn upload<T: DeserializeOwned>(&self, path: &str, archive: &mut impl Read) -> Result<T, Failure> {
        let request = self.authorized(self.agent.post(self.path(path)));
        let request = request.header(header::CONTENT_TYPE, "application/x-tar");
        read(self.answered(request.send(SendBody::from_reader(archive)))?)
    }

    fn getting(&self, path: &str, query: &[(&str, Option<String>)]) -> Result<Response<Body>, Failure> {
        let given = query.iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let request = self.authorized(self.agent.get(self.path(path)));
        self.answered(given.fold(request, |request, (name, value)| request.query(name, value)).call())
    }

    fn path(&self, path: &str) -> String {
        format!("{}/admin/v1/cache/{path}", self.url)
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, token.header()),
            None => request,
        }
    }

    fn answered(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
        let mut answer = answer.map_err(|error| self.unreachable(error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        let message = serde_json::from_str(&text).map(|body: ErrorBody| body.error.message);
        let error = match (message, status) {
            (Ok(message), StatusCode::UNAUTHORIZED) => {
                anyhow!("{message} Set {}, or give --admin-token-file", AdminToken::VARIABLE)
            }
            (Ok(message), _) => anyhow!("{}", message.trim_end_matches('.')),
            (Err(_), _) => anyhow!("{} answered {status}: not the admin API of Pentimento?", self.url),
        };
        let misuse = matches!(status.as_u16(), 400 | 401 | 403 | 404 | 413);
        Err(if misuse { Failure::Misuse(error) } else { Failure::Other(error) })
    }

    fn unreachable(&self, error: ureq::Error) -> Failure {
        let refused = matches!(&error, ureq::Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused);
        let url = &self.url;
        let error = anyhow!(error);
        Failure::Other(match refused {
            true => error.context(format!(
                "no admin API at {url}: start `pentimento serve`, which says its address, or give --admin"
            )),
            false => error.context(format!("the admin API at {url} cannot be asked; --admin names another")),
        })
    }
}

fn read<T: DeserializeOwned>(mut answer: Response<Body>) -> Result<T, Failure> {
    let body = answer.body_mut().with_config().limit(MAX_ANSWER);
    Ok(body.read_json().context("the admin API's answer cannot be read")?)
}
