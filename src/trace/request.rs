//! A request of a trace, and what is sent for it.

use pentimento_pipelines::MAX_STEPS;
use serde::{Deserialize, Serialize};

use crate::gateway::MAX_SEED;
use crate::quality::Attributes;

/// Bytes of a prompt.
const MAX_PROMPT: usize = 32_000;
/// Characters of a class or a namespace, and of a size.
const MAX_NAME: usize = 64;
/// The longest run of `replay`, and the longest deadline: a day.
pub const MAX_SECONDS: f64 = 86_400.0;
/// The longest trace: a year.
pub(super) const MAX_AT: f64 = 366.0 * 86_400.0;
/// The most pictures of a request.
pub(super) const MAX_PICTURES: usize = 10;

/// A request of a trace.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Seconds from the start. Recorded arrivals need it; drawn ones do not look at it.
    #[serde(default)]
    pub at: Option<f64>,
    /// The prompt.
    pub prompt: String,
    /// The seed.
    #[serde(default)]
    pub seed: Option<u64>,
    /// How many pictures.
    #[serde(default)]
    pub n: Option<usize>,
    /// The size, as `64x64`.
    #[serde(default)]
    pub size: Option<String>,
    /// The tier.
    #[serde(default)]
    pub quality: Option<Quality>,
    /// The steps of the plan.
    #[serde(default)]
    pub num_inference_steps: Option<usize>,
    /// The namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The deadline.
    #[serde(default)]
    pub max_latency_ms: Option<f64>,
    /// What the cache is used for.
    #[serde(default)]
    pub cache: Option<CacheUse>,
    /// The attributes that the prompt names, for scoring.
    #[serde(default)]
    pub named: Option<Attributes>,
    /// What kind of request it is; goes into the report's rows as it is.
    #[serde(default)]
    pub class: Option<String>,
    /// Which user or session asked. `simulate` takes it for the client whose turn it is; it is not sent.
    #[serde(default)]
    pub client: Option<String>,
    /// Which of the recorded service's models was asked for. `simulate` spreads them over its models; it is not sent.
    #[serde(skip)]
    pub checkpoint: usize,
}

/// The Images API's `quality`.
#[allow(missing_docs)] // the API's own words
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Quality {
    Low,
    Medium,
    High,
    Auto,
    Standard,
    Hd,
}

/// The Images API's `cache`.
#[allow(missing_docs)] // the API's own words
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheUse {
    Auto,
    Off,
    Refresh,
    Only,
}

/// The body of a request to the Images API.
#[derive(Serialize)]
struct Body<'a> {
    prompt: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quality: Option<Quality>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_inference_steps: Option<usize>,
    pentimento: Extensions<'a>,
}

#[derive(Serialize)]
struct Extensions<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<CacheUse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_latency_ms: Option<f64>,
}

impl Request {
    /// What is sent.
    ///
    /// # Errors
    /// serde_json's.
    pub fn body(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Body {
            prompt: &self.prompt,
            seed: self.seed,
            n: self.n,
            size: self.size.as_deref(),
            quality: self.quality,
            num_inference_steps: self.num_inference_steps,
            pentimento: Extensions {
                cache: self.cache,
                namespace: self.namespace.as_deref(),
                max_latency_ms: self.max_latency_ms,
            },
        })
    }

    /// The first field whose value makes no sense, and why. What a server supports, it says itself.
    pub(super) fn wrong(&self) -> Option<(&'static str, String)> {
        let within = |name, value: Option<u64>, least: u64, most: u64| {
            let value = value.filter(|value| !(least..=most).contains(value))?;
            Some((name, format!("must be between {least} and {most}, not {value}")))
        };
        let positive = |name, value: Option<f64>, least: f64, most: f64| {
            let value = value.filter(|value| !(least..=most).contains(value))?;
            Some((name, format!("must be between {least} and {most}, not {value}")))
        };
        let named = |name, text: &Option<String>| {
            let length = text.as_ref()?.chars().count();
            let reason = format!("must be 1 to {MAX_NAME} characters long, not {length}");
            (!(1..=MAX_NAME).contains(&length)).then_some((name, reason))
        };
        let prompt = || {
            let length = self.prompt.len();
            let reason = format!("must be 1 to {MAX_PROMPT} bytes long, not {length}");
            (!(1..=MAX_PROMPT).contains(&length)).then_some(("prompt", reason))
        };
        let steps = self.num_inference_steps.map(|steps| steps as u64);
        positive("at", self.at, 0.0, MAX_AT)
            .or_else(prompt)
            .or_else(|| within("seed", self.seed, 0, MAX_SEED))
            .or_else(|| within("n", self.n.map(|n| n as u64), 1, MAX_PICTURES as u64))
            .or_else(|| within("num_inference_steps", steps, 1, MAX_STEPS as u64))
            .or_else(|| positive("max_latency_ms", self.max_latency_ms, 1.0, MAX_SECONDS * 1e3))
            .or_else(|| named("size", &self.size))
            .or_else(|| named("namespace", &self.namespace))
            .or_else(|| named("class", &self.class))
            .or_else(|| named("client", &self.client))
    }
}
