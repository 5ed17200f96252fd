//! Telling a client's server that a job has ended: signed, retried, bounded, and only where the operator allows.

mod address;
mod secret;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use ureq::Agent;
use ureq::unversioned::transport::DefaultConnector;
use url::{Host, Url};

use crate::config::{Config, ConfigError};
use crate::telemetry;
use address::{CheckedResolver, Refused, is_public};
use secret::WebhookSecret;

/// The longest address, in bytes.
const MAX_URL: usize = 2048;
/// Webhooks that are under way or wait to be tried again; further ones are dropped.
const MOST_KEPT: usize = 1024;
/// Webhooks that are under way.
const MOST_AT_A_TIME: usize = 16;
const TRIES: u32 = 5;
/// Time of a try, the name's resolution included.
const TRY_TIME: Duration = Duration::from_secs(10);
/// The header with the signature.
const SIGNATURE: &str = "pentimento-signature";

/// Why an address is not one to send to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// The operator did not provide for webhooks.
    #[error("this server sends no webhooks: webhook_hosts and a secret are not configured")]
    Off,
    /// Too long.
    #[error("must be at most {MAX_URL} bytes long")]
    TooLong,
    /// It does not parse.
    #[error("is not a URL: {0}")]
    Broken(url::ParseError),
    /// Another protocol.
    #[error("must begin with https://")]
    Scheme,
    /// A user's name, a password, a fragment.
    #[error("must have neither a user's name nor a fragment")]
    Parts,
    /// The configuration does not name its host.
    #[error("the server's webhook_hosts do not name this host and port")]
    Host,
    /// The host is a private address.
    #[error("webhooks are not sent to private addresses")]
    Private,
}

/// Where to tell of a job's end.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// The client's server, checked by [`Webhooks::check`].
    pub url: Url,
    /// Where the job can be had.
    pub link: String,
}

/// What is told.
#[derive(Debug, Clone, Copy)]
pub struct Notice<'a> {
    /// The job.
    pub id: &'a str,
    /// How it ended.
    pub status: &'static str,
    /// When it was accepted.
    pub created: SystemTime,
    /// When it ended.
    pub finished: SystemTime,
}

/// A notice as it is sent.
#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    status: &'static str,
    created: u64,
    finished: u64,
    url: &'a str,
}

/// A host that webhooks may go to, with its port where that is not the protocol's own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AllowedHost {
    host: Host,
    port: Option<u16>,
}

impl AllowedHost {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not HOST or HOST:PORT");
        // As a URL's host, so that both are spelt the same.
        let url = Url::parse(&format!("https://{text}/")).map_err(|_| wrong())?;
        let only_host = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let host = url.host().filter(|_| only_host && url.username().is_empty()).ok_or_else(wrong)?;
        Ok(Self { host: host.to_owned(), port: url.port() })
    }

    fn is(&self, url: &Url) -> bool {
        let port = match self.port {
            None => url.port().is_none(),
            port => url.port_or_known_default() == port,
        };
        port && url.host().is_some_and(|host| host.to_owned() == self.host)
    }
}

/// Sends webhooks.
pub struct Webhooks {
    hosts: Vec<AllowedHost>,
    allow_private: bool,
    /// Without one nothing is sent.
    secret: Option<Arc<WebhookSecret>>,
    retry: Duration,
    close: Duration,
    agent: Agent,
    kept: Arc<Semaphore>,
    under_way: Arc<Semaphore>,
}

impl Webhooks {
    /// As the configuration wants it; the secret comes from the environment or a file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let hosts = config.webhook_hosts.iter().map(|host| AllowedHost::parse(host));
        let hosts = hosts
            .collect::<Result<Vec<_>, _>>()
            .map_err(|reason| ConfigError::Value { key: "webhook_hosts", reason })?;
        let secret = WebhookSecret::load(config)?;
        if secret.is_none() && !hosts.is_empty() {
            tracing::warn!("webhook_hosts without a secret: no webhooks are sent");
        }
        // No proxy and no redirection: both lead elsewhere than to the address that was checked. A connection that
        // were kept would outlive the check.
        let allow_private = config.webhook_allow_private;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!allow_private)
            .proxy(None)
            .max_redirects(0)
            .max_idle_connections(0)
            .timeout_global(Some(TRY_TIME))
            .user_agent(concat!("pentimento/", env!("CARGO_PKG_VERSION")))
            .build();
        let resolver = CheckedResolver::new(allow_private);
        Ok(Self {
            hosts,
            allow_private,
            secret: secret.map(Arc::new),
            retry: Duration::from_secs(config.webhook_retry_seconds),
            close: Duration::from_secs(config.drain_seconds),
            agent: Agent::with_parts(agent, DefaultConnector::default(), resolver),
            kept: Arc::new(Semaphore::new(MOST_KEPT)),
            under_way: Arc::new(Semaphore::new(MOST_AT_A_TIME)),
        })
    }

    /// Whether webhooks may go there, as far as can be said without asking for the name's addresses. Those are checked
    /// whenever a connection is opened.
    ///
    /// # Errors
    /// [`WebhookError`]
    pub fn check(&self, text: &str) -> Result<Url, WebhookError> {
        if self.secret.is_none() || self.hosts.is_empty() {
            return Err(WebhookError::Off);
        }
        if text.len() > MAX_URL {
            return Err(WebhookError::TooLong);
        }
        let url = Url::parse(text).map_err(WebhookError::Broken)?;
        if url.scheme() != "https" && !(self.allow_private && url.scheme() == "http") {
            return Err(WebhookError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Err(WebhookError::Parts);
        }
        if !self.hosts.iter().any(|host| host.is(&url)) {
            return Err(WebhookError::Host);
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            _ => None,
        };
        if address.is_some_and(|address| !self.allow_private && !is_public(address)) {
            return Err(WebhookError::Private);
        }
        Ok(url)
    }

    /// Sends a notice, on tasks of its own; where too many are being sent it is dropped, and counted.
    pub fn send(&self, webhook: &Webhook, notice: &Notice<'_>) {
        let (Some(secret), Ok(place)) = (&self.secret, self.kept.clone().try_acquire_owned()) else {
            return telemetry::webhook("dropped");
        };
        let body = Body {
            id: notice.id,
            object: "job",
            status: notice.status,
            created: unix_seconds(notice.created),
            finished: unix_seconds(notice.finished),
            url: &webhook.link,
        };
        let delivery = Delivery {
            url: webhook.url.clone(),
            // Serialising our own types into memory does not fail.
            body: serde_json::to_vec(&body).unwrap_or_default().into(),
            secret: secret.clone(),
            agent: self.agent.clone(),
        };
        tokio::spawn(delivery.deliver(self.retry, self.under_way.clone(), place));
    }

    /// Waits until all are sent or given up, but no longer than the configuration's `drain_seconds`.
    pub async fn close(&self) {
        let all = self.kept.acquire_many(MOST_KEPT as u32);
        if tokio::time::timeout(self.close, all).await.is_err() {
            let left = MOST_KEPT - self.kept.available_permits();
            tracing::warn!(left, "some webhooks were not delivered in time");
        }
    }
}

/// One notice on its way.
struct Delivery {
    url: Url,
    body: Arc<[u8]>,
    secret: Arc<WebhookSecret>,
    agent: Agent,
}

impl Delivery {
    async fn deliver(self, retry: Duration, under_way: Arc<Semaphore>, place: OwnedSemaphorePermit) {
        let mut outcome = "failed";
        for number in 1..=TRIES {
            if number > 1 {
                // Without randomness all come at the same time; they still come.
                let random = getrandom::u32().unwrap_or_default();
                tokio::time::sleep(delay(retry, number - 1, random)).await;
            }
            let Ok(_one_of_few) = under_way.acquire().await else { break };
            match self.attempt().await {
                Ok(status @ 200..300) => {
                    tracing::info!(status, number, "a webhook was delivered");
                    outcome = "delivered";
                    break;
                }
                Ok(status) => tracing::warn!(status, number, "a webhook was not accepted"),
                Err(error) => {
                    tracing::warn!(%error, number, "a webhook could not be delivered");
                    if is_refusal(&error) {
                        outcome = "refused";
                        break;
                    }
                }
            }
        }
        telemetry::webhook(outcome);
        drop(place);
    }

    /// Answers the status. The answer's body is not read.
    async fn attempt(&self) -> Result<u16, ureq::Error> {
        let signature = self.secret.header(unix_seconds(SystemTime::now()), &self.body);
        let (agent, url, body) = (self.agent.clone(), self.url.clone(), self.body.clone());
        let request = move || {
            let request = agent.post(url.as_str()).content_type("application/json");
            request.header(SIGNATURE, signature).send(&body[..]).map(|answer| answer.status().as_u16())
        };
        tokio::task::spawn_blocking(request)
            .await
            .unwrap_or_else(|error| Err(ureq::Error::Other(Box::new(error))))
    }
}

fn is_refusal(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Other(reason) if reason.is::<Refused>())
}

/// How long to wait after so many tries: one `retry`, 4, 16, 64 of them, each half as long to one and a half times as
/// long, so that what failed together does not come again together.
fn delay(retry: Duration, tries: u32, random: u32) -> Duration {
    let jitter = 0.5 + f64::from(random) / f64::from(u32::MAX);
    retry.mul_f64(f64::from(4u32.saturating_pow(tries.saturating_sub(1))) * jitter)
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhooks(hosts: &[&str], allow_private: bool, secret: bool) -> Webhooks {
        let config = Config {
            webhook_hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            webhook_allow_private: allow_private,
            ..Config::default()
        };
        let mut webhooks = Webhooks::new(&config).unwrap();
        webhooks.secret = secret.then(|| Arc::new(WebhookSecret::new("0123456789abcdef").unwrap()));
        webhooks
    }

    #[test]
    fn only_listed_hosts_are_sent_to() {
        use WebhookError::*;
        let listed =
            webhooks(&["hooks.example.org", "other.example.org:8443", "10.0.0.7", "[::1]"], false, true);
        for (url, outcome) in [
            ("https://hooks.example.org/a?b=c", Ok(())),
            ("https://HOOKS.example.org:443/", Ok(())),
            ("https://other.example.org:8443/", Ok(())),
            ("https://other.example.org/", Err(Host)),
            ("https://hooks.example.org:8443/", Err(Host)),
            ("https://hooks.example.org.evil.org/", Err(Host)),
            ("https://example.org/", Err(Host)),
            ("https://hooks.example.org@evil.org/", Err(Parts)),
            ("https://me:pw@hooks.example.org/", Err(Parts)),
            ("https://hooks.example.org/#x", Err(Parts)),
            ("http://hooks.example.org/", Err(Scheme)),
            ("ftp://hooks.example.org/", Err(Scheme)),
            ("https://10.0.0.7/", Err(Private)),
            ("https://0x0a000007/", Err(Private)),
            ("https://[::1]/", Err(Private)),
            ("/relative", Err(Broken(url::ParseError::RelativeUrlWithoutBase))),
            (&format!("https://hooks.example.org/{}", "a".repeat(MAX_URL)), Err(TooLong)),
        ] {
            assert_eq!(listed.check(url).map(|_| ()), outcome, "{url}");
        }
        let private = webhooks(&["10.0.0.7:80"], true, true);
        assert!(private.check("http://10.0.0.7/").is_ok() && private.check("https://10.0.0.7/").is_err());
        for off in [webhooks(&[], false, true), webhooks(&["hooks.example.org"], false, false)] {
            assert_eq!(off.check("https://hooks.example.org/"), Err(Off));
        }
    }

    #[test]
    fn a_list_that_names_more_than_hosts_is_refused() {
        for host in ["", "a b", "example.org/x", "me@example.org", "https://example.org", "example.org:99999"]
        {
            let config = Config { webhook_hosts: vec![host.to_owned()], ..Config::default() };
            let error = Webhooks::new(&config).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with("webhook_hosts"), "{host:?}: {error}");
        }
    }

    #[test]
    fn every_wait_is_longer_and_none_is_the_same() {
        let second = Duration::from_secs(1);
        for (tries, wait) in [(1, 1.0), (2, 4.0), (3, 16.0), (4, 64.0)] {
            assert_eq!(delay(second, tries, 0).as_secs_f64(), wait * 0.5);
            assert_eq!(delay(second, tries, u32::MAX).as_secs_f64(), wait * 1.5);
        }
        assert_eq!(delay(Duration::ZERO, 4, u32::MAX), Duration::ZERO);
    }
}
