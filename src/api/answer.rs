//! What a client wants to hear of his pictures, and what answers and events say of them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::ApiError;
use super::wire::{
    Appearance, Background, ImageData, ImageProvenance, ImageRequest, ImagesResponse, OutputFormat, PlanGot,
    Provenance, Quality, ResponseFormat, Reuse, TimingsMs, Usage,
};
use crate::gateway::{AnsweredPicture, PictureRequest, Tier};
use crate::picture::PaintTimings;

/// Bytes of an end user's name, which every event repeats.
const MAX_IDENTIFIER: usize = 512;

/// What the client wants to hear, other than what is painted.
pub struct Answer {
    /// As events.
    pub stream: bool,
    urls: bool,
    quality: Quality,
    output_format: OutputFormat,
    safety_identifier: Option<String>,
}

impl Answer {
    /// Of a request.
    ///
    /// # Errors
    /// [`ApiError`], for what cannot be had together.
    pub fn new(request: &ImageRequest) -> Result<Self, ApiError> {
        if request.prompt.is_none() {
            return Err(ApiError::missing("prompt"));
        }
        if request.background == Some(Background::Transparent) {
            return Err(ApiError::invalid(
                "background",
                "'transparent' is not possible, the models paint opaque pictures",
            ));
        }
        let stream = request.stream.unwrap_or(false);
        let urls = request.response_format == Some(ResponseFormat::Url);
        if stream && urls {
            return Err(ApiError::invalid("response_format", "'url' is not possible with stream"));
        }
        for (name, text) in [("user", &request.user), ("safety_identifier", &request.safety_identifier)] {
            if text.as_ref().is_some_and(|text| text.len() > MAX_IDENTIFIER) {
                return Err(ApiError::invalid(name, &format!("must be at most {MAX_IDENTIFIER} bytes long")));
            }
        }
        let named = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        Ok(Self {
            stream,
            urls,
            quality: request.quality.unwrap_or(Quality::Auto),
            output_format: request.output_format.unwrap_or(OutputFormat::Png),
            safety_identifier: named(&request.safety_identifier).or_else(|| named(&request.user)),
        })
    }
}

/// What answers and events say of a request's pictures.
pub struct About {
    /// Looks.
    pub appearance: Appearance,
    urls: bool,
    model: String,
    tier: Tier,
    objective: Duration,
    seeds: Vec<u64>,
    started: Instant,
    look_up: Duration,
}

impl About {
    /// Of a request that was accepted, after it was looked up in the cache for `look_up`.
    pub fn new(answer: Answer, request: &PictureRequest, look_up: Duration, started: Instant) -> Self {
        Self {
            appearance: Appearance {
                size: request.first().size.to_string(),
                quality: answer.quality.echo(),
                background: "opaque",
                output_format: answer.output_format,
                safety_identifier: answer.safety_identifier,
            },
            urls: answer.urls,
            model: request.first().model.clone(),
            tier: request.tier(),
            objective: request.objective().time,
            seeds: request.specs().iter().map(|spec| spec.seed).collect(),
            started,
            look_up,
        }
    }

    /// How pictures came about: all, or the one of an index.
    pub fn provenance(&self, one: Option<usize>, painted: &[AnsweredPicture], ended: Instant) -> Provenance {
        let seeds = match one {
            Some(index) => self.seeds.iter().skip(index).take(1).copied().collect(),
            None => self.seeds.clone(),
        };
        let timings = || painted.iter().map(|picture| &picture.timings);
        let sum = |part: fn(&PaintTimings) -> Duration| milliseconds(timings().map(part).sum());
        let least = painted.iter().min_by_key(|picture| (picture.skipped_steps, picture.hit.is_some()));
        let fewest = painted.iter().min_by_key(|picture| picture.steps);
        Provenance {
            reuse: least.map_or_else(Reuse::default, Reuse::of),
            model: self.model.clone(),
            tier: self.tier.name(),
            objective_ms: milliseconds(self.objective),
            plan: fewest.map(PlanGot::of).unwrap_or_default(),
            seeds,
            image_index: one,
            timings_ms: TimingsMs {
                lookup: milliseconds(self.look_up),
                queue: milliseconds(painted.iter().map(|picture| picture.queue).min().unwrap_or_default()),
                load: sum(|t| t.load),
                encode: sum(|t| t.encode),
                wait: sum(|t| t.wait),
                denoise: sum(|t| t.denoise),
                decode: sum(|t| t.decode),
                total: milliseconds(ended.saturating_duration_since(self.started)),
            },
        }
    }

    /// The answer without `stream`, of pictures that were all painted at `ended`. `url` puts a picture, by its number,
    /// where an url leads to.
    ///
    /// # Errors
    /// Those of `url`.
    pub fn response(
        &self,
        painted: &[AnsweredPicture],
        ended: Instant,
        created: SystemTime,
        url: impl Fn(usize, &AnsweredPicture) -> Result<String, ApiError>,
    ) -> Result<ImagesResponse, ApiError> {
        let data = painted.iter().enumerate().map(|(index, picture)| {
            let pentimento = ImageProvenance { reuse: Reuse::of(picture), plan: PlanGot::of(picture) };
            if !self.urls {
                return Ok(ImageData { b64_json: Some(base64(&picture.file)), url: None, pentimento });
            }
            Ok(ImageData { b64_json: None, url: Some(url(index, picture)?), pentimento })
        });
        Ok(ImagesResponse {
            created: unix_seconds(created),
            data: data.collect::<Result<_, ApiError>>()?,
            appearance: self.appearance.clone(),
            usage: Usage::default(),
            pentimento: self.provenance(None, painted, ended),
        })
    }
}

/// A file as answers carry it.
pub fn base64(file: &[u8]) -> String {
    STANDARD.encode(file)
}

/// As OpenAI tells time.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
