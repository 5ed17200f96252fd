//! What travels: the request and the answers, OpenAI's fields and ours.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::jobs::WebhookRequest;
use crate::gateway::CacheMode;
use crate::plan::Tier;
use crate::queue::{Format, Painted};

/// `POST /v1/images/generations`. Unknown fields are refused.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRequest {
    /// What to paint.
    #[schema(required = true, nullable = false)]
    pub prompt: Option<String>,
    /// A model's id or alias; the default model where there is none.
    pub model: Option<String>,
    /// How many pictures, 1 (the default) to 10.
    #[schema(minimum = 1, maximum = 10)]
    pub n: Option<i64>,
    /// `WIDTHxHEIGHT`, or `auto` (the default) for the model's own.
    #[schema(example = "auto")]
    pub size: Option<String>,
    /// What quality is tolerated: how few steps it may get when much is asked for, and by when it is wanted. Published
    /// at `GET /v1/tiers`; `standard` is `medium`, `hd` is `high`.
    pub quality: Option<Quality>,
    /// Pictures in the answer (the default), or urls that lead to them.
    pub response_format: Option<ResponseFormat>,
    /// The image files' format, `png` by default.
    pub output_format: Option<OutputFormat>,
    /// JPEG's quality, 100 by default. WebP is always lossless; PNG takes nothing but 100.
    #[schema(minimum = 0, maximum = 100)]
    pub output_compression: Option<i64>,
    /// Whether to answer with server-sent events.
    pub stream: Option<bool>,
    /// How many previews of each picture to stream; of a job they are among its events.
    #[schema(minimum = 0, maximum = 3)]
    pub partial_images: Option<i64>,
    /// `transparent` is refused: the models paint opaque pictures.
    pub background: Option<Background>,
    /// Accepted, without effect: nothing is moderated here.
    pub moderation: Option<Moderation>,
    /// Accepted, without effect.
    pub style: Option<Style>,
    /// Accepted, echoed as `safety_identifier`.
    #[schema(max_length = 512)]
    pub user: Option<String>,
    /// Accepted, echoed.
    #[schema(max_length = 512)]
    pub safety_identifier: Option<String>,
    /// What not to paint.
    pub negative_prompt: Option<String>,
    /// How many steps, whatever the load; the tier's where there is none.
    #[schema(minimum = 1)]
    pub num_inference_steps: Option<i64>,
    /// How closely to follow the prompt; the model's own value where there is none.
    #[schema(minimum = 0, maximum = 100)]
    pub guidance_scale: Option<f64>,
    /// The first picture's seed, 0 to 2^53 - 1; each further picture has the next. Random where there is none.
    #[schema(minimum = 0)]
    pub seed: Option<i64>,
    /// Ours alone.
    pub pentimento: Option<Extensions>,
}

/// What only this server understands.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Extensions {
    /// How to use the cache, `auto` by default. It can only narrow what the operator's policy allows.
    pub cache: Option<CacheUse>,
    /// Whose pictures may be reused, and who may reuse these: requests of the same namespace, and tenant.
    /// 1 to 64 letters, digits, `-`, `_` or `.`; `default` where there is none.
    #[schema(max_length = 64)]
    pub namespace: Option<String>,
    /// The time that an answer may take, in milliseconds; the tier's objective where there is none. A request that
    /// cannot be answered in time is refused.
    pub max_latency_ms: Option<f64>,
    /// The least quality, relative to the full plan from scratch, that steps and reuse may cost; the tier's where there
    /// is none.
    #[schema(minimum = 0, maximum = 1)]
    pub min_quality: Option<f64>,
    /// Of a job: whom to tell when it ends.
    pub webhook: Option<WebhookRequest>,
}

/// How a request uses the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheUse {
    /// Whatever fits.
    Auto,
    /// Not at all: nothing is looked up, nothing is kept.
    Off,
    /// No look-up; the result replaces what is stored.
    Refresh,
    /// Nothing is painted from scratch: 404 `cache_miss` where nothing fits.
    Only,
}

impl From<CacheUse> for CacheMode {
    fn from(cache: CacheUse) -> Self {
        match cache {
            CacheUse::Auto => Self::Auto,
            CacheUse::Off => Self::Off,
            CacheUse::Refresh => Self::Refresh,
            CacheUse::Only => Self::Only,
        }
    }
}

/// A picture's quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Quality {
    Auto,
    Low,
    Medium,
    High,
    Standard,
    Hd,
}

impl Quality {
    /// What the answer says.
    pub fn echo(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium | Self::Standard => "medium",
            Self::Auto | Self::High | Self::Hd => "high",
        }
    }
}

impl From<Quality> for Tier {
    fn from(quality: Quality) -> Self {
        match quality {
            Quality::Auto => Self::Auto,
            Quality::Low => Self::Low,
            Quality::Medium | Quality::Standard => Self::Medium,
            Quality::High | Quality::Hd => Self::High,
        }
    }
}

/// How pictures come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// In the answer.
    B64Json,
    /// Behind a url that expires.
    Url,
}

/// An image file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum OutputFormat {
    Png,
    Jpeg,
    Webp,
}

impl OutputFormat {
    /// Its name, a file extension too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

impl From<OutputFormat> for Format {
    fn from(format: OutputFormat) -> Self {
        match format {
            OutputFormat::Png => Self::Png,
            OutputFormat::Jpeg => Self::Jpeg,
            OutputFormat::Webp => Self::Webp,
        }
    }
}

/// What lies behind the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Background {
    Auto,
    Opaque,
    Transparent,
}

/// OpenAI's moderation levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Moderation {
    Auto,
    Low,
}

/// DALL·E's styles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Style {
    Vivid,
    Natural,
}

/// What every answer and every event says about its pictures.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Appearance {
    /// `WIDTHxHEIGHT`.
    pub size: String,
    /// `low`, `medium` or `high`.
    pub quality: &'static str,
    /// Always `opaque`.
    pub background: &'static str,
    /// The image files' format.
    pub output_format: OutputFormat,
    /// The request's `safety_identifier`, or its `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_identifier: Option<String>,
}

/// OpenAI's token counts. Nothing is metered here: all are 0.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct Usage {
    pub input_tokens: u32,
    pub input_tokens_details: UsageDetails,
    pub output_tokens: u32,
    pub output_tokens_details: UsageDetails,
    pub total_tokens: u32,
}

/// See [`Usage`].
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct UsageDetails {
    pub image_tokens: u32,
    pub text_tokens: u32,
}

/// What of the cache a picture was made from.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Reuse {
    /// `miss`: painted from scratch. `state`: the later steps were painted, from a state of another picture.
    /// `semantic`: the stored picture of a prompt that means the same. `exact`: the stored picture of the same
    /// prompt, seed and parameters.
    pub outcome: &'static str,
    /// Steps of the plan that this spared.
    pub skipped_steps: usize,
    /// Cosine of both prompts' embeddings.
    pub similarity: Option<f32>,
    /// The entry of the cache.
    pub source: Option<String>,
}

impl Default for Reuse {
    fn default() -> Self {
        Self { outcome: "miss", skipped_steps: 0, similarity: None, source: None }
    }
}

impl Reuse {
    /// Of a picture.
    pub fn of(painted: &Painted) -> Self {
        let Some(reused) = &painted.reused else { return Self::default() };
        Self {
            outcome: reused.hit.name(),
            skipped_steps: painted.skipped_steps,
            similarity: Some(reused.similarity),
            source: Some(reused.source.as_str().to_owned()),
        }
    }
}

/// The plan that a picture got.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct PlanGot {
    /// Its steps, skipped ones included.
    pub steps: usize,
    /// What such pictures are worth on average, 0 to 1, relative to the model's full plan, as far as steps tell; `null`
    /// where nothing was painted, or the model's frontier was not measured.
    pub expected_quality: Option<f64>,
}

impl PlanGot {
    /// Of a picture.
    pub fn of(painted: &Painted) -> Self {
        Self { steps: painted.steps, expected_quality: painted.expected_quality }
    }
}

/// How one picture came about.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct ImageProvenance {
    #[serde(flatten)]
    pub reuse: Reuse,
    #[serde(flatten)]
    pub plan: PlanGot,
}

/// How pictures came about.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Provenance {
    /// Of several pictures: of the one that reused least. `data` says it of each.
    #[serde(flatten)]
    pub reuse: Reuse,
    /// The id of the model that painted.
    pub model: String,
    /// Of several pictures: of the one that got the fewest steps.
    #[serde(flatten)]
    pub plan: PlanGot,
    /// The tier asked for.
    pub tier: &'static str,
    /// The time that the answer may take, in milliseconds.
    pub objective_ms: f64,
    /// Each picture's seed.
    pub seeds: Vec<u64>,
    /// In an event: which of the request's pictures, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_index: Option<usize>,
    /// Where the time went.
    pub timings_ms: TimingsMs,
}

impl Provenance {
    /// What was reused, for those who do not read the body.
    pub fn headers(&self) -> HeaderMap {
        let Reuse { outcome, skipped_steps, similarity, source } = &self.reuse;
        let values = [
            ("pentimento-outcome", Some((*outcome).to_owned())),
            ("pentimento-skipped-steps", Some(skipped_steps.to_string())),
            ("pentimento-steps", Some(self.plan.steps.to_string())),
            ("pentimento-similarity", similarity.map(|similarity| format!("{similarity:.4}"))),
            ("pentimento-source", source.clone()),
            ("server-timing", Some(self.timings_ms.server_timing())),
        ];
        // Letters and digits of ours: each of them is a header's value.
        let header = |(name, value): (&'static str, Option<String>)| {
            Some((HeaderName::from_static(name), HeaderValue::try_from(value?).ok()?))
        };
        values.into_iter().filter_map(header).collect()
    }
}

/// Where the time went, in milliseconds. Of several pictures: `lookup` all look-ups, `queue` until the first one's
/// turn, `load`, `encode`, `wait`, `denoise` and `decode` summed up, `total` until the last one's end.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct TimingsMs {
    pub lookup: f64,
    pub queue: f64,
    pub load: f64,
    pub encode: f64,
    pub wait: f64,
    pub denoise: f64,
    pub decode: f64,
    pub total: f64,
}

impl TimingsMs {
    /// As the header that browsers read (W3C Server Timing).
    fn server_timing(&self) -> String {
        let Self { lookup, queue, load, encode, wait, denoise, decode, total } = self;
        format!(
            "lookup;dur={lookup}, queue;dur={queue}, load;dur={load}, encode;dur={encode}, wait;dur={wait}, \
             denoise;dur={denoise}, decode;dur={decode}, total;dur={total}"
        )
    }
}

/// One picture.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageData {
    /// The file, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b64_json: Option<String>,
    /// Where the file is, for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// How it came about.
    pub pentimento: ImageProvenance,
}

/// The answer to a request without `stream`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImagesResponse {
    /// Unix seconds.
    pub created: u64,
    /// The pictures, in the order of their seeds.
    pub data: Vec<ImageData>,
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub appearance: Appearance,
    /// Token counts.
    pub usage: Usage,
    /// Ours.
    pub pentimento: Provenance,
}

/// The event `image_generation.partial_image`.
#[derive(Debug, Serialize, ToSchema)]
pub struct PartialImageEvent {
    /// `image_generation.partial_image`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The predicted picture, in base64.
    pub b64_json: String,
    /// Unix seconds.
    pub created_at: u64,
    /// Which of the picture's previews, from 0.
    pub partial_image_index: usize,
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub appearance: Appearance,
    /// Ours.
    pub pentimento: PartialProvenance,
}

/// What an early picture can say of itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct PartialProvenance {
    /// Which of the request's pictures, from 0.
    pub image_index: usize,
}

/// The event `image_generation.completed`, one per picture.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletedEvent {
    /// `image_generation.completed`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The picture, in base64.
    pub b64_json: String,
    /// Unix seconds.
    pub created_at: u64,
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub appearance: Appearance,
    /// Token counts.
    pub usage: Usage,
    /// Ours.
    pub pentimento: Provenance,
}
