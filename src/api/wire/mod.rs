//! What travels of the Images API, in JSON.

mod answer;
mod request;

pub use answer::{
    Appearance, CompletedEvent, ImageData, ImageProvenance, ImagesResponse, PartialImageEvent,
    PartialProvenance, PlanGot, Provenance, Reuse, TimingsMs, Usage,
};
pub use request::{Background, ImageRequest, OutputFormat, Quality, ResponseFormat};
