//! Who is asking: an API key's tenant, or an address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::{ApiError, App};
use crate::config::{Config, ConfigError};
use crate::gateway::{ANONYMOUS, Client};

/// The address at the connection's other end.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The API keys' digests and their tenants. The keys themselves are nowhere kept.
#[derive(Debug, Default)]
pub struct Keys(HashMap<[u8; 32], Client>);

impl Keys {
    /// The keys of the configuration and of the file that it names.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file's line, or the key of the configuration.
    pub fn load(config: &Config) -> Result<Self, ConfigError> {
        let mut keys = Self::default();
        keys.add(config.api_keys.0.clone())
            .map_err(|reason| ConfigError::Value { key: "api_keys", reason })?;
        let path = &config.api_keys_file;
        if !path.as_os_str().is_empty() {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Io { path: path.clone(), source })?;
            parse_lines(&text)
                .and_then(|pairs| keys.add(pairs))
                .map_err(|reason| ConfigError::File { path: path.clone(), reason })?;
        }
        Ok(keys)
    }

    /// Whether anybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, pairs: impl IntoIterator<Item = (String, String)>) -> Result<(), String> {
        for (digest, tenant) in pairs {
            if tenant == ANONYMOUS {
                return Err(format!(
                    "no tenant can be called {ANONYMOUS:?}: so are all where there are no keys"
                ));
            }
            let turn = format!("tenant:{tenant}").into();
            let client = Client { turn, tenant: tenant.as_str().into() };
            if self.0.insert(parse_digest(&digest)?, client).is_some() {
                return Err(format!("the key of tenant {tenant:?} is there twice"));
            }
        }
        Ok(())
    }

    /// The client that these headers and this address speak for.
    fn client(&self, headers: &HeaderMap, peer: Option<SocketAddr>) -> Result<Client, ApiError> {
        if self.is_empty() {
            let address = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.ip().to_string());
            return Ok(Client { turn: format!("address:{address}").into(), tenant: ANONYMOUS.into() });
        }
        let key = bearer(headers).map_err(ApiError::key)?;
        // Looked up by digest: how long that takes says nothing about a key.
        let digest: [u8; 32] = Sha256::digest(key).into();
        self.0.get(&digest).cloned().ok_or_else(|| ApiError::key(true))
    }
}

/// What `Authorization: Bearer …` carries.
///
/// # Errors
/// Whether there was such a header, if of another kind.
pub fn bearer(headers: &HeaderMap) -> Result<&str, bool> {
    let given = headers.get(header::AUTHORIZATION).ok_or(false)?;
    let (scheme, key) = given.to_str().ok().and_then(|v| v.split_once(' ')).ok_or(true)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(key.trim()) } else { Err(true) }
}

/// The pairs of a key file. One without any is a mistake, such as a secret that was not mounted: it must
/// not mean that everybody may ask.
fn parse_lines(text: &str) -> Result<Vec<(String, String)>, String> {
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
    let pairs: Vec<_> = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            let (digest, tenant) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            parse_digest(digest).map_err(|e| format!("line {number}: {e}"))?;
            match tenant.trim() {
                "" => Err(format!("line {number}: the tenant's name is missing")),
                tenant => Ok((digest.to_owned(), tenant.to_owned())),
            }
        })
        .collect::<Result<_, String>>()?;
    if pairs.is_empty() { Err("holds no API key".to_owned()) } else { Ok(pairs) }
}

fn parse_digest(text: &str) -> Result<[u8; 32], String> {
    let mut digest = [0; 32];
    // The message must not repeat the text: it may be a key that somebody forgot to hash.
    let wrong = || "an API key must be given as its sha256, 64 hexadecimal digits".to_owned();
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    for (i, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
    }
    Ok(digest)
}

/// Lets a request through that has the right to ask, with its [`Client`].
pub async fn authenticate(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let client = app.keys.client(request.headers(), peer.map(|Extension(Peer(address))| address))?;
    request.extensions_mut().insert(client);
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    // printf %s secret | sha256sum
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn keys() -> Keys {
        let mut keys = Keys::default();
        keys.add(parse_lines(&format!("# ours\n\n{SECRET}  studio\n")).unwrap()).unwrap();
        keys
    }

    fn ask(keys: &Keys, value: Option<&str>) -> Result<String, &'static str> {
        let mut headers = HeaderMap::new();
        if let Some(value) = value {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        let peer = Some(SocketAddr::from(([10, 0, 0, 7], 999)));
        keys.client(&headers, peer)
            .map(|c| format!("{} {}", c.turn, c.tenant))
            .map_err(|e| e.detail.code.unwrap())
    }

    #[test]
    fn a_key_names_its_tenant_and_no_key_the_address() {
        assert_eq!(ask(&keys(), Some("Bearer secret")).unwrap(), "tenant:studio studio");
        assert_eq!(ask(&keys(), Some("bearer  secret")).unwrap(), "tenant:studio studio");
        for wrong in [None, Some("Bearer Secret"), Some("Bearer"), Some("Basic secret"), Some("secret")] {
            assert_eq!(ask(&keys(), wrong), Err("invalid_api_key"), "{wrong:?}");
        }
        assert_eq!(ask(&Keys::default(), Some("Bearer any")).unwrap(), "address:10.0.0.7 anonymous");
    }

    #[test]
    fn a_key_file_names_its_bad_line_but_no_key() {
        let error = parse_lines("\nsecret studio").unwrap_err();
        assert!(error.starts_with("line 2") && !error.contains("secret"), "{error}");
        assert!(parse_lines(SECRET).unwrap_err().contains("tenant"));
    }

    #[test]
    fn a_key_file_without_keys_does_not_let_everybody_in() {
        assert!(parse_lines("# nothing mounted here\n").unwrap_err().contains("no API key"));
    }

    #[test]
    fn a_key_cannot_name_two_tenants() {
        let twice = format!("{SECRET} a\n{} b\n", SECRET.to_uppercase());
        let error = Keys::default().add(parse_lines(&twice).unwrap()).unwrap_err();
        assert!(error.contains("twice") && !error.contains(SECRET), "{error}");
    }
}
