//! What a client asks for, in the words of its request.

use pentimento_pipelines::NoiseSource;

use super::Tier;
use crate::picture::file::Format;

/// What a client asks for, as it wrote it.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// A model's id or alias.
    pub model: Option<String>,
    /// The prompt.
    pub prompt: Option<String>,
    /// The negative prompt. An empty one is another than none.
    pub negative_prompt: Option<String>,
    /// How many pictures.
    pub n: Option<i64>,
    /// `WIDTHxHEIGHT` or `auto`.
    pub size: Option<String>,
    /// How many steps.
    pub steps: Option<i64>,
    /// What quality is tolerated.
    pub tier: Tier,
    /// The time that an answer may take, in milliseconds; the tier's objective where there is none.
    pub max_latency_ms: Option<f64>,
    /// The least quality, 0 to 1, in place of the tier's.
    pub min_quality: Option<f64>,
    /// Guidance scale.
    pub guidance_scale: Option<f64>,
    /// The first picture's seed; each further one has the next.
    pub seed: Option<i64>,
    /// The generator of the initial noise.
    pub noise: NoiseSource,
    /// How many previews of each picture.
    pub previews: Option<i64>,
    /// The image files' format.
    pub format: Option<Format>,
    /// JPEG's quality, 0 to 100.
    pub compression: Option<i64>,
    /// How to use the cache.
    pub cache: CacheMode,
    /// Whose pictures within the tenant's may be reused, and who may reuse this one.
    pub namespace: Option<String>,
}

/// How a request uses the cache. It can only narrow what the operator's policy allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Whatever fits.
    #[default]
    Auto,
    /// Not at all: nothing is looked up, nothing is kept.
    Off,
    /// No look-up; the result replaces what is stored.
    Refresh,
    /// Nothing is painted from noise: a rejection where nothing fits.
    Only,
}

impl CacheMode {
    /// Whether stored pictures and states may be used.
    pub fn reads(self) -> bool {
        matches!(self, Self::Auto | Self::Only)
    }

    /// Its name in the scope of pictures that are joined: requests are painted together only where the cache gives and keeps
    /// the same.
    pub(super) fn keeping(self) -> &'static str {
        match self {
            Self::Auto => "keep",
            // A picture that must start from a stored state is no answer to a request that may be painted from noise, and
            // the other way round.
            Self::Only => "only",
            Self::Off => "off",
            Self::Refresh => "refresh",
        }
    }
}
