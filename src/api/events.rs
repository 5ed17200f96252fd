//! Streaming answers: server-sent events with OpenAI's names.

use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use axum::response::sse::{Event as ServerSentEvent, KeepAlive, Sse};
use futures_util::Stream;
use serde::Serialize;

use super::ApiError;
use super::answer::{About, base64, unix_seconds};
use super::wire::{CompletedEvent, PartialImageEvent, PartialProvenance, Usage};
use crate::queue::{Event, JobSubscription, Painted, Subscription};

const PARTIAL: &str = "image_generation.partial_image";
const COMPLETED: &str = "image_generation.completed";

/// After so much silence a comment keeps proxies awake.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A request's pictures on their way out, one after the other. Dropped (the client hung up), it cancels
/// those that are not finished.
struct Streaming {
    about: About,
    pictures: std::iter::Enumerate<std::vec::IntoIter<Subscription>>,
    current: Option<(usize, Subscription)>,
    deadline: Instant,
}

/// The events of a request's pictures: each picture's previews, then the picture.
pub fn stream(
    about: About,
    pictures: Vec<Subscription>,
    deadline: Instant,
) -> Sse<impl Stream<Item = Result<ServerSentEvent, Infallible>>> {
    let mut pictures = pictures.into_iter().enumerate();
    let current = pictures.next();
    let streaming = Streaming { about, pictures, current, deadline };
    let events = futures_util::stream::unfold(streaming, |mut streaming| async {
        let event = streaming.next().await?;
        Some((Ok(event), streaming))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

impl Streaming {
    async fn next(&mut self) -> Option<ServerSentEvent> {
        let (index, picture) = self.current.as_mut()?;
        let index = *index;
        let event = match tokio::time::timeout_at(self.deadline.into(), picture.next()).await {
            Ok(Event::Preview { index: preview, file }) => return Some(self.partial(index, preview, &file)),
            Ok(Event::Done(painted)) => {
                let event = self.completed(index, &painted);
                self.current = self.pictures.next();
                return Some(event);
            }
            Ok(Event::Failed(failure)) => ApiError::from(failure),
            Err(_) => ApiError::timeout(),
        };
        self.current = None;
        Some(json("error", &event.body()))
    }

    fn partial(&self, image_index: usize, preview: usize, file: &[u8]) -> ServerSentEvent {
        let event = PartialImageEvent {
            kind: PARTIAL,
            b64_json: base64(file),
            created_at: unix_seconds(SystemTime::now()),
            partial_image_index: preview,
            appearance: self.about.appearance.clone(),
            pentimento: PartialProvenance { image_index },
        };
        json(PARTIAL, &event)
    }

    fn completed(&self, image_index: usize, painted: &Painted) -> ServerSentEvent {
        let event = CompletedEvent {
            kind: COMPLETED,
            b64_json: base64(&painted.file),
            created_at: unix_seconds(SystemTime::now()),
            appearance: self.about.appearance.clone(),
            usage: Usage::default(),
            pentimento: self.about.provenance(
                Some(image_index),
                std::slice::from_ref(painted),
                Instant::now(),
            ),
        };
        json(COMPLETED, &event)
    }
}

/// An event of this name.
pub fn json(name: &str, data: &impl Serialize) -> ServerSentEvent {
    // Serialising our own types into memory does not fail.
    ServerSentEvent::default().event(name).data(serde_json::to_string(data).unwrap_or_default())
}
