//! What goes: answers and events, OpenAI's fields and ours.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use utoipa::ToSchema;

use super::OutputFormat;
use crate::gateway::{AnsweredPicture, Hit};

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

impl Appearance {
    /// Of an early look: workers send JPEGs, whatever the format of the finished picture.
    pub fn of_preview(&self) -> Self {
        Self { output_format: OutputFormat::Jpeg, ..self.clone() }
    }
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
    pub fn of(picture: &AnsweredPicture) -> Self {
        let Some(Hit { kind, source, similarity }) = &picture.hit else { return Self::default() };
        Self {
            outcome: kind.name(),
            skipped_steps: picture.skipped_steps,
            similarity: Some(*similarity),
            source: Some(source.as_str().to_owned()),
        }
    }
}

/// The plan that a picture got.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct PlanGot {
    /// The plan menu's option whose steps it took last; of a named number of steps `ddim-STEPS`. `null` for a stored
    /// picture whose option is not known.
    pub option: Option<String>,
    /// Steps of all plans that it had, skipped ones included; of a stored picture those that painted it.
    pub steps: usize,
    /// The quality that is expected of it, 0 to 1 relative to the model's full plan, with what its plans and the state it
    /// started from are expected to cost; `null` where the model's menu, or the named number of steps, was not measured.
    pub expected_quality: Option<f64>,
}

impl PlanGot {
    /// Of a picture.
    pub fn of(picture: &AnsweredPicture) -> Self {
        let AnsweredPicture { option, steps, expected_quality, .. } = picture;
        Self { option: option.clone(), steps: *steps, expected_quality: *expected_quality }
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
            ("pentimento-option", self.plan.option.clone()),
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
    /// The predicted picture, a JPEG whatever the request's `output_format`, in base64.
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
