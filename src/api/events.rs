//! Streaming answers: server-sent events with OpenAI's names.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use axum::response::sse::{Event as ServerSentEvent, KeepAlive, Sse};
use futures_util::Stream;
use serde::Serialize;

use super::ApiError;
use super::answer::{About, base64, unix_seconds};
use super::wire::{CompletedEvent, PartialImageEvent, PartialProvenance, Usage};
use crate::gateway::{AnsweredPicture, PictureEvent, PictureFailure, Pictures};
use crate::scheduler::messages::Failure;

const PARTIAL: &str = "image_generation.partial_image";
const COMPLETED: &str = "image_generation.completed";

/// After so much silence a comment keeps proxies awake.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A request's pictures on their way out, one after the other. Dropped (the client hung up), it cancels
/// those that are not finished.
struct Streaming {
    about: About,
    pictures: Pictures,
    /// The picture whose events go out now; `None` after an error.
    current: Option<usize>,
    /// Events of later pictures: a few previews and an end each.
    early: VecDeque<PictureEvent>,
    deadline: Instant,
}

/// The events of a request's pictures: each picture's previews, then the picture.
pub fn stream(
    about: About,
    pictures: Pictures,
    deadline: Instant,
) -> Sse<impl Stream<Item = Result<ServerSentEvent, Infallible>>> {
    let streaming = Streaming { about, pictures, current: Some(0), early: VecDeque::new(), deadline };
    let events = futures_util::stream::unfold(streaming, |mut streaming| async {
        let event = streaming.next().await?;
        Some((Ok(event), streaming))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// The picture that an event is of.
fn picture_of(event: &PictureEvent) -> usize {
    match event {
        PictureEvent::Begun { picture }
        | PictureEvent::Preview { picture, .. }
        | PictureEvent::Done { picture, .. }
        | PictureEvent::Failed { picture, .. } => *picture,
    }
}

impl Streaming {
    async fn next(&mut self) -> Option<ServerSentEvent> {
        loop {
            let current = self.current.filter(|current| *current < self.pictures.count())?;
            match self.next_of(current).await {
                Ok(PictureEvent::Begun { .. }) => {}
                Ok(PictureEvent::Preview { number, file, .. }) => {
                    return Some(self.partial(current, number, &file));
                }
                Ok(PictureEvent::Done { answer, .. }) => {
                    self.current = Some(current + 1);
                    return Some(self.completed(current, &answer));
                }
                Ok(PictureEvent::Failed { failure, .. }) => return Some(self.failed(&failure.into())),
                Err(error) => return Some(self.failed(&error)),
            }
        }
    }

    /// The next event of a picture. The end of any other that fails goes before: the answer is whole or none.
    async fn next_of(&mut self, current: usize) -> Result<PictureEvent, ApiError> {
        if let Some(event) = self
            .early
            .iter()
            .position(|event| picture_of(event) == current)
            .and_then(|at| self.early.remove(at))
        {
            return Ok(event);
        }
        loop {
            let next = tokio::time::timeout_at(self.deadline.into(), self.pictures.next()).await;
            match next.map_err(|_| ApiError::timeout())? {
                None => return Err(PictureFailure::Painting(Failure::Stopped).into()),
                Some(event) if picture_of(&event) == current => return Ok(event),
                Some(PictureEvent::Failed { failure, .. }) => return Err(failure.into()),
                Some(event) => self.early.push_back(event),
            }
        }
    }

    fn failed(&mut self, error: &ApiError) -> ServerSentEvent {
        self.current = None;
        json("error", &error.body())
    }

    fn partial(&self, image_index: usize, preview: usize, file: &[u8]) -> ServerSentEvent {
        let event = PartialImageEvent {
            kind: PARTIAL,
            b64_json: base64(file),
            created_at: unix_seconds(SystemTime::now()),
            partial_image_index: preview,
            appearance: self.about.appearance.of_preview(),
            pentimento: PartialProvenance { image_index },
        };
        json(PARTIAL, &event)
    }

    fn completed(&self, image_index: usize, answer: &AnsweredPicture) -> ServerSentEvent {
        let event = CompletedEvent {
            kind: COMPLETED,
            b64_json: base64(&answer.file),
            created_at: unix_seconds(SystemTime::now()),
            appearance: self.about.appearance.clone(),
            usage: Usage::default(),
            pentimento: self.about.provenance(
                Some(image_index),
                std::slice::from_ref(answer),
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
