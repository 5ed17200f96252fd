//! Who may use the admin API: whoever has the token or, where there is none, whoever is on this machine.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Admin;
use crate::api::ApiError;
use crate::api::auth::bearer;
use crate::config::{Config, ConfigError};

/// The admin API's token. Shows itself to nobody who prints it.
#[derive(Clone)]
pub struct AdminToken(String);

impl AdminToken {
    /// The environment's variable. There is no flag: a command line is everybody's to read.
    pub const VARIABLE: &str = "PENTIMENTO_ADMIN_TOKEN";

    /// The token of the environment, or else of the file that the configuration names.
    ///
    /// # Errors
    /// [`ConfigError`], where it is empty or no header can carry it.
    pub fn load(config: &Config) -> Result<Option<Self>, ConfigError> {
        if let Some(value) = std::env::var_os(Self::VARIABLE) {
            // What is not UTF-8 becomes what is not ASCII.
            let token = Self::new(&value.to_string_lossy());
            return token.map(Some).map_err(|reason| ConfigError::Value { key: Self::VARIABLE, reason });
        }
        let path = &config.admin_token_file;
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.clone(), source })?;
        Self::new(&text).map(Some).map_err(|reason| ConfigError::File { path: path.clone(), reason })
    }

    fn new(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Err("holds no token".to_owned()),
            token if token.bytes().all(|b| b.is_ascii_graphic()) => Ok(Self(token.to_owned())),
            _ => Err("a token is made of letters, digits and signs of ASCII, without spaces".to_owned()),
        }
    }

    /// What `Authorization` must say.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Takes as long for a wrong token as for the right one.
    fn is(&self, given: &str) -> bool {
        let (ours, given) = (Sha256::digest(&self.0), Sha256::digest(given));
        ours[..].ct_eq(&given[..]).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("AdminToken(…)")
    }
}

/// How the admin API is guarded.
#[derive(Debug)]
pub enum Access {
    /// By a token.
    Token(AdminToken),
    /// By listening on loopback only, and by answering no web page.
    Loopback,
}

impl Access {
    /// As the configuration has it.
    ///
    /// # Errors
    /// [`ConfigError`]: the token, or an address beyond loopback without one.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        match AdminToken::load(config)? {
            Some(token) => Ok(Self::Token(token)),
            None if config.admin_listen.ip().is_loopback() => Ok(Self::Loopback),
            None => Err(ConfigError::Value {
                key: "admin_listen",
                reason: format!(
                    "{}: without a token only loopback addresses can be listened on; set {}, or give \
                     --admin-token-file",
                    config.admin_listen,
                    AdminToken::VARIABLE
                ),
            }),
        }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match self {
            Self::Token(token) => match bearer(headers) {
                Ok(given) if token.is(given) => Ok(()),
                Ok(_) => Err(ApiError::admin_token(true)),
                Err(given) => Err(ApiError::admin_token(given)),
            },
            Self::Loopback => check_origin(headers),
        }
    }
}

/// On loopback without a token, the danger is the browser of whoever sits at the machine. A page of another site
/// sends `Origin`, or at least says so in `Sec-Fetch-Site`, so that is refused; a page whose own name was made to lead here (DNS rebinding) sends that
/// name as `Host`.
fn check_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(header::ORIGIN) {
        return Err(ApiError::forbidden("without a token, web pages are not answered (header Origin)"));
    }
    // An image of a page is asked for without Origin.
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"none" | b"same-origin")) {
        return Err(ApiError::forbidden(
            "without a token, web pages are not answered (header Sec-Fetch-Site)",
        ));
    }
    let mut hosts = headers.get_all(header::HOST).iter().peekable();
    if hosts.peek().is_some() && hosts.all(is_loopback) {
        return Ok(());
    }
    Err(ApiError::forbidden("without a token, the header Host must be localhost or a loopback address"))
}

fn is_loopback(host: &HeaderValue) -> bool {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Lets a request through that has the right to ask.
pub async fn authorize(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    admin.access.check(request.headers())?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn status(access: &Access, pairs: &[(&'static str, &str)]) -> u16 {
        access.check(&headers(pairs)).map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn without_a_token_only_this_machine_s_own_names_are_answered() {
        let ask = |pairs: &[(&'static str, &str)]| status(&Access::Loopback, pairs);
        for host in ["127.0.0.1:8081", "localhost:8081", "LOCALHOST", "[::1]:8081", "127.9.9.9"] {
            assert_eq!(ask(&[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8081", "10.0.0.7", ""]
        {
            assert_eq!(ask(&[("host", host)]), 403, "{host}");
        }
        assert_eq!(ask(&[]), 403);
        assert_eq!(ask(&[("host", "localhost"), ("host", "evil.example")]), 403);
        assert_eq!(ask(&[("host", "localhost"), ("origin", "http://localhost")]), 403);
    }

    #[test]
    fn a_token_must_be_the_right_one() {
        let access = Access::Token(AdminToken::new(" correct-horse\n").unwrap());
        assert_eq!(status(&access, &[("authorization", "Bearer correct-horse"), ("host", "any")]), 200);
        for wrong in ["Bearer correct-hors", "Bearer correct-horse2", "Bearer ", "Basic correct-horse", "x"] {
            assert_eq!(status(&access, &[("authorization", wrong), ("host", "localhost")]), 401, "{wrong}");
        }
        assert_eq!(status(&access, &[("host", "localhost")]), 401);
    }

    #[test]
    fn a_token_is_never_empty_and_never_shown() {
        for wrong in ["", " \n", "two words", "tök"] {
            let error = AdminToken::new(wrong).unwrap_err();
            assert!(wrong.trim().is_empty() || !error.contains(wrong.trim()), "{error}");
        }
        assert!(!format!("{:?}", AdminToken::new("hush").unwrap()).contains("hush"));
    }
}
