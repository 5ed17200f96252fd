//! What comes: the request, OpenAI's fields and ours.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::jobs::WebhookRequest;
use crate::gateway::{CacheMode, Tier};
use crate::picture::file::Format;

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
    /// What quality is tolerated: how cheap a plan it may get when much is asked for, and by when it is wanted. Published
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
    /// The least quality, relative to the full plan from noise, plan and reuse together; the tier's where there is none.
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
    /// Nothing is painted from noise: 404 `cache_miss` where nothing fits.
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
