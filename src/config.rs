//! The one configuration: a flag goes before `PENTIMENTO_<KEY>`, that before the TOML file, that before
//! the default. Everything that can grow has its bound here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use pentimento_pipelines::Precision;
use serde::{Deserialize, Serialize};

/// `NAME=VALUE,NAME=VALUE` on the command line and in the environment, a table in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Pairs(pub BTreeMap<String, String>);

impl FromStr for Pairs {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let pair = |item: &str| match item.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() && !value.trim().is_empty() => {
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(format!("{item:?} is not NAME=VALUE")),
        };
        text.split(',').filter(|item| !item.trim().is_empty()).map(pair).collect::<Result<_, _>>().map(Self)
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that the configuration names cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not parse; the reason names line and key.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A value that makes no sense.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
}

/// Declares every key once: its documentation (the flag's help too), name, type and default.
macro_rules! settings {
    ($( $(#[doc = $doc:literal])+ $(#[arg($($arg:tt)+)])? $key:ident: $type:ty = $default:expr; )+) => {
        /// Every configuration key, with its value.
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config {
            $( $(#[doc = $doc])+ pub $key: $type, )+
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $( $key: $default, )+ }
            }
        }

        impl Config {
            /// The name of every key.
            pub const KEYS: &[&str] = &[$( stringify!($key), )+];
        }

        /// The keys that the command line or the environment gives.
        #[derive(Debug, Clone, Default, clap::Args, Serialize)]
        pub struct Flags {
            $( $(#[doc = $doc])+ #[arg(long, $($($arg)+)?)] pub $key: Option<$type>, )+
        }
    };
}

settings! {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(value_name = "ADDR:PORT")]
    listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080));
    /// A model to serve: a built-in id, a manifest's path or a diffusers folder. May be repeated; the
    /// first is the default.
    #[arg(value_name = "ID|PATH", value_delimiter = ',')]
    model: Vec<String> = vec!["storybook".to_owned()];
    /// Threads that paint; 0 takes one per core.
    threads: usize = 0;
    /// Workers that share these threads.
    workers: usize = 1;
    /// What convolutions and linear layers multiply: f32, or numbers rounded to bf16. That pays on processors with AMX
    /// (Intel Xeon since Sapphire Rapids); on others it works, and gains nothing.
    #[arg(value_name = "f32|bf16")]
    precision: Precision = Precision::F32;
    /// Base of the urls of `response_format: "url"`, as clients reach this server. Without it they name
    /// the address listened on.
    #[arg(value_name = "URL")]
    public_url: String = String::new();
    /// Other names of models, `NAME=MODEL,…`; `default` stands for the default model.
    #[arg(value_name = "NAME=MODEL,…")]
    aliases: Pairs = default_aliases();
    /// API keys as `SHA256=TENANT,…`, the digest in hex (printf %s KEY | sha256sum).
    #[arg(value_name = "SHA256=TENANT,…", hide_env_values = true)]
    api_keys: Pairs = Pairs::default();
    /// A file with an API key per line: the key's sha256 in hex, a space, the tenant's name.
    #[arg(value_name = "FILE")]
    api_keys_file: PathBuf = PathBuf::new();
    /// Listen beyond loopback though there are no API keys.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    allow_anonymous: bool = false;
    /// The largest request body.
    max_body_bytes: usize = 256 * 1024;
    /// The longest prompt and the longest negative prompt.
    max_prompt_bytes: usize = 32_000;
    /// The most pictures of one request, at most 10.
    max_n: usize = 10;
    /// The most steps of one picture.
    max_steps: usize = 1000;
    /// The most pictures that wait or are painted.
    queue_length: usize = 256;
    /// The most pictures of one client that wait or are painted.
    queue_length_per_client: usize = 64;
    /// The most rows of a batch; a picture with guidance takes two.
    max_batch_rows: usize = 16;
    /// Which plans pictures get: `adaptive`, `per-model`, `fixed`, or such a policy with its settings, as in
    /// {"policy": "adaptive", "replan": false}.
    #[arg(value_name = "POLICY|JSON")]
    plan_policy: String = "adaptive".to_owned();
    /// The time within which pictures of the tier `auto` should be answered; the other tiers keep their proportion to
    /// it. 0: three times what a full plan takes without load.
    latency_objective_ms: u64 = 0;
    /// Plan menus, as `pentimento frontier` writes them, in place of those that come with a model.
    #[arg(value_name = "FILE,…", value_delimiter = ',')]
    menu: Vec<PathBuf> = Vec::new();
    /// The most connections at a time; further ones wait.
    max_connections: usize = 1024;
    /// Time for a request's head to arrive, and for its body.
    read_timeout_seconds: u64 = 15;
    /// Time for a client to take the next piece of an answer.
    write_timeout_seconds: u64 = 30;
    /// Time for an answer, waiting included.
    request_timeout_seconds: u64 = 600;
    /// Time to finish accepted pictures after SIGTERM or SIGINT.
    drain_seconds: u64 = 30;
    /// How long a picture's url works.
    url_lifetime_seconds: u64 = 3600;
    /// Memory for pictures behind urls; the oldest go first.
    url_store_bytes: usize = 256 * 1024 * 1024;
    /// Time for a job, waiting included.
    job_timeout_seconds: u64 = 3600;
    /// How long a finished job is kept.
    job_lifetime_seconds: u64 = 3600;
    /// Memory for jobs' pictures and previews. The oldest finished jobs go first; a job that still has no room fails.
    job_store_bytes: usize = 256 * 1024 * 1024;
    /// The most jobs kept, running ones included; finished ones give way, the oldest first.
    max_jobs: usize = 1024;
    /// Hosts that webhooks may go to. Without any, and without a secret, none are sent.
    #[arg(value_name = "HOST[:PORT],…", value_delimiter = ',')]
    webhook_hosts: Vec<String> = Vec::new();
    /// File with the secret that signs webhooks; PENTIMENTO_WEBHOOK_SECRET, the secret itself, goes before it.
    #[arg(value_name = "FILE")]
    webhook_secret_file: PathBuf = PathBuf::new();
    /// Whether webhooks may go to private addresses, loopback and link-local ones included, and by http.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    webhook_allow_private: bool = false;
    /// Time before a webhook is tried again for the first time; each further time it is four times as long.
    webhook_retry_seconds: u64 = 1;
    /// Directory of the cache, which one process at a time can use. Without it `serve` uses the platform's
    /// cache directory, `generate` no cache.
    #[arg(value_name = "DIR")]
    cache_dir: PathBuf = PathBuf::new();
    /// Where the cache's states lie, if not in its directory: `s3://BUCKET/PREFIX`, `gs://…`, `az://…`,
    /// `file:///…`. Nobody else may use the prefix.
    #[arg(value_name = "URL")]
    cache_states: String = String::new();
    /// Memory for states of the cache.
    cache_memory_bytes: usize = 256 * 1024 * 1024;
    /// Memory for pictures' files of the cache.
    cache_picture_memory_bytes: usize = 64 * 1024 * 1024;
    /// The most bytes of states and pictures' files that the cache holds.
    cache_max_bytes: u64 = 10 * 1024 * 1024 * 1024;
    /// The most pictures that the cache holds states of.
    cache_max_entries: usize = 100_000;
    /// How long the cache holds a picture; 0 is for ever.
    cache_lifetime_seconds: u64 = 0;
    /// The most pictures that wait to be written to the cache; further ones are not kept.
    cache_queue_length: usize = 64;
    /// Time that a picture waits for a look-up, and for a state; then it is painted from scratch.
    cache_timeout_ms: u64 = 1000;
    /// The shares of a plan after which states are kept.
    #[arg(value_name = "SHARE,…", value_delimiter = ',')]
    cache_shares: Vec<f32> = vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
    /// What the cache is used for: `combined`, `calibrated`, `nirvana`, `semantic`, `exact`, `off`, or such a policy
    /// with its settings, as in {"policy": "calibrated", "max_quality_loss": 0.02}. `auto` is `combined` where a model
    /// has a calibration table, otherwise `exact`.
    #[arg(value_name = "POLICY|JSON")]
    reuse_policy: String = "auto".to_owned();
    /// What goes first when the cache is full: `lcbfu`, `lru`, `lfu` or `fifo`.
    #[arg(value_name = "POLICY")]
    eviction_policy: String = "lcbfu".to_owned();
    /// Calibration tables, as `pentimento calibrate` writes them, beside those that come with a model.
    #[arg(value_name = "FILE,…", value_delimiter = ',')]
    calibration: Vec<PathBuf> = Vec::new();
    /// Whether the cache may hold prompts as text. Without them a picture that starts from a stored state
    /// cannot be steered away from that state's prompt.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    store_prompt_text: bool = true;
    /// Namespaces in which all tenants share the cache.
    #[arg(value_name = "NAME,…", value_delimiter = ',')]
    shared_namespaces: Vec<String> = Vec::new();
    /// Address and port of the admin API; port 0 takes a free one.
    #[arg(value_name = "ADDR:PORT")]
    admin_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8081));
    /// File with the admin API's token; PENTIMENTO_ADMIN_TOKEN, the token itself, goes before it. Beyond
    /// loopback there must be one.
    #[arg(value_name = "FILE")]
    admin_token_file: PathBuf = PathBuf::new();
    /// What is logged, as tracing's filter directives.
    #[arg(value_name = "FILTER")]
    log: String = "info".to_owned();
    /// How log lines look.
    log_format: LogFormat = LogFormat::Text;
}

/// Names that OpenAI's clients send by habit.
fn default_aliases() -> Pairs {
    let names = ["gpt-image-1", "dall-e-3", "dall-e-2"];
    Pairs(names.map(|name| (name.to_owned(), "default".to_owned())).into())
}

impl Config {
    /// Puts flags (and environment) over a file over the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file or the key.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Self, ConfigError> {
        let mut table = match file {
            Some(path) => read_file(path)?,
            None => toml::Table::new(),
        };
        let flags = toml::Table::try_from(flags)
            .map_err(|e| ConfigError::Value { key: "flags", reason: e.to_string() })?;
        table.extend(flags);
        let config: Self = table
            .try_into()
            .map_err(|e| ConfigError::Value { key: "configuration", reason: e.to_string() })?;
        config.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let wrong = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        if self.model.is_empty() || self.model.iter().any(|m| m.is_empty()) {
            return wrong("model", "names no model");
        }
        if !(1..=10).contains(&self.max_n) {
            return wrong("max_n", "must be between 1 and 10");
        }
        if self.queue_length_per_client < self.max_n || self.queue_length < self.queue_length_per_client {
            return wrong(
                "queue_length",
                "must be at least queue_length_per_client, and that at least max_n",
            );
        }
        const BYTES: u64 = 1 << 40;
        const COUNT: u64 = 1_000_000;
        const YEAR: u64 = 365 * 24 * 3600;
        let bounds = [
            ("max_body_bytes", self.max_body_bytes as u64, 1, BYTES),
            ("max_prompt_bytes", self.max_prompt_bytes as u64, 1, BYTES),
            ("max_steps", self.max_steps as u64, 1, COUNT),
            ("queue_length", self.queue_length as u64, 1, COUNT),
            ("max_batch_rows", self.max_batch_rows as u64, 1, 1024),
            ("latency_objective_ms", self.latency_objective_ms, 0, 24 * 3600 * 1000),
            ("max_connections", self.max_connections as u64, 1, COUNT),
            ("threads", self.threads as u64, 0, 4096),
            ("workers", self.workers as u64, 1, 64),
            ("read_timeout_seconds", self.read_timeout_seconds, 1, YEAR),
            ("write_timeout_seconds", self.write_timeout_seconds, 1, YEAR),
            ("request_timeout_seconds", self.request_timeout_seconds, 1, YEAR),
            ("drain_seconds", self.drain_seconds, 0, YEAR),
            ("url_lifetime_seconds", self.url_lifetime_seconds, 1, YEAR),
            ("url_store_bytes", self.url_store_bytes as u64, 1 << 20, BYTES),
            ("job_timeout_seconds", self.job_timeout_seconds, 1, YEAR),
            ("job_lifetime_seconds", self.job_lifetime_seconds, 1, YEAR),
            ("job_store_bytes", self.job_store_bytes as u64, 1 << 20, BYTES),
            ("max_jobs", self.max_jobs as u64, 1, COUNT),
            ("webhook_hosts", self.webhook_hosts.len() as u64, 0, 1024),
            ("webhook_retry_seconds", self.webhook_retry_seconds, 0, 3600),
            ("cache_memory_bytes", self.cache_memory_bytes as u64, 0, BYTES),
            ("cache_picture_memory_bytes", self.cache_picture_memory_bytes as u64, 0, BYTES),
            ("cache_max_bytes", self.cache_max_bytes, 0, 1 << 50),
            ("cache_max_entries", self.cache_max_entries as u64, 0, 100_000_000),
            ("cache_lifetime_seconds", self.cache_lifetime_seconds, 0, 100 * YEAR),
            ("cache_queue_length", self.cache_queue_length as u64, 1, COUNT),
            ("cache_timeout_ms", self.cache_timeout_ms, 1, 60_000),
        ];
        for (key, value, least, most) in bounds {
            if !(least..=most).contains(&value) {
                return wrong(key, &format!("must be between {least} and {most}"));
            }
        }
        let shares = &self.cache_shares;
        if shares.len() > 32 || !shares.iter().all(|share| *share > 0.0 && *share < 1.0) {
            return wrong("cache_shares", "must be at most 32 numbers between 0 and 1");
        }
        let url = &self.public_url;
        if !url.is_empty() && !url.starts_with("http://") && !url.starts_with("https://") {
            return wrong("public_url", "must start with http:// or https://");
        }
        Ok(self)
    }
}

fn read_file(path: &Path) -> Result<toml::Table, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    let wrong = |e: toml::de::Error| ConfigError::File { path: path.to_owned(), reason: e.to_string() };
    toml::from_str::<Config>(&text).map_err(wrong)?; // here, where an error still knows its line
    toml::from_str(&text).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> PathBuf {
        let name = format!("pentimento-config-{}-{:x}.toml", std::process::id(), text.len());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_flag_goes_before_the_file_before_the_default() {
        let path = file("max_n = 4\nmax_steps = 20\n[aliases]\n\"sd\" = \"default\"");
        let flags = Flags { max_steps: Some(30), ..Default::default() };
        let config = Config::load(Some(&path), &flags).unwrap();
        assert_eq!((config.max_n, config.max_steps, config.max_connections), (4, 30, 1024));
        assert_eq!(config.aliases, "sd=default".parse().unwrap());
        assert_eq!(Config::load(None, &Flags::default()).unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = Config::load(Some(&file("max_n = 4\nmax_m = 5")), &Flags::default()).unwrap_err();
        assert!(error.to_string().contains("max_m") && error.to_string().contains("line 2"), "{error}");
        let error =
            Config::load(Some(&file("precision = \"f16\"")), &Flags::default()).unwrap_err().to_string();
        assert!(error.contains("`f16`") && error.contains("`bf16`") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn values_without_meaning_are_refused() {
        for (text, key) in [
            ("max_n = 11", "max_n"),
            ("queue_length = 3", "queue_length"),
            ("max_connections = 0", "max_connections"),
            ("max_connections = 9000000000000000000", "max_connections"),
            ("request_timeout_seconds = 9223372036854775807", "request_timeout_seconds"),
            ("url_store_bytes = 0", "url_store_bytes"),
            ("public_url = \"ftp://x\"", "public_url"),
            ("model = []", "model"),
            ("cache_shares = [0.5, 1.0]", "cache_shares"),
            ("cache_timeout_ms = 0", "cache_timeout_ms"),
        ] {
            let error = Config::load(Some(&file(text)), &Flags::default()).unwrap_err().to_string();
            assert!(error.starts_with(key), "{text}: {error}");
        }
        assert!("a".parse::<Pairs>().is_err() && "a=".parse::<Pairs>().is_err());
    }
}
