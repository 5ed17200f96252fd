//! A job's events. The stream keeps no events: it looks at how far the job is and says what it has not said yet, so
//! a late subscriber hears all that matters, and a slow one holds nothing up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use tokio::sync::watch;

use super::wire::{JobEvent, JobObject};
use crate::api::answer::{About, base64, unix_seconds};
use crate::api::events::{KEEP_ALIVE, json};
use crate::api::wire::{PartialImageEvent, PartialProvenance};
use crate::api::{ApiError, App};
use crate::gateway::{Job, Preview, Progress, Status};

const PARTIAL: &str = "job.partial_image";

/// One subscriber.
struct Following {
    app: Arc<App>,
    job: Arc<Job<About>>,
    progress: watch::Receiver<Progress>,
    /// The status and the position that were said last.
    said: Option<(Status, Option<usize>)>,
    previews_said: usize,
}

/// What is said next.
enum Next {
    Status(Progress),
    Preview(Preview),
    Nothing,
    End,
}

/// The events of a job, from how far it is now to its end.
pub fn stream(app: Arc<App>, job: Arc<Job<About>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let following = Following { app, progress: job.follow(), job, said: None, previews_said: 0 };
    let events = futures_util::stream::unfold(following, |mut following| async {
        let event = following.next().await?;
        Some((Ok(event), following))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

impl Following {
    async fn next(&mut self) -> Option<Event> {
        loop {
            let progress = self.progress.borrow_and_update().clone();
            match self.unsaid(progress) {
                Next::Status(progress) => return Some(self.status(&progress)),
                Next::Preview(preview) => return Some(self.partial(&preview)),
                Next::End => return None,
                // Fails only where the job is gone, which is held here.
                Next::Nothing => self.progress.changed().await.ok()?,
            }
        }
    }

    /// First how far it is, then the previews, the end last.
    fn unsaid(&mut self, progress: Progress) -> Next {
        let (now, ended) = ((progress.status(), progress.ahead()), progress.end.is_some());
        let said_end = self.said.is_some_and(|(status, _)| status == now.0) && ended;
        if said_end {
            return Next::End;
        }
        if self.said != Some(now) && !ended {
            self.said = Some(now);
            return Next::Status(progress);
        }
        if let Some(preview) = progress.previews.get(self.previews_said) {
            self.previews_said += 1;
            return Next::Preview(preview.clone());
        }
        if ended {
            self.said = Some(now);
            return Next::Status(progress);
        }
        Next::Nothing
    }

    fn status(&self, progress: &Progress) -> Event {
        let kind = match progress.status() {
            Status::Queued => "job.queued",
            Status::Painting => "job.painting",
            Status::Completed => "job.completed",
            Status::Failed => "job.failed",
            Status::Cancelled => "job.cancelled",
        };
        match JobObject::of(&self.app, &self.job, progress) {
            Ok(job) => json(kind, &JobEvent { kind, job }),
            Err(error) => json("error", &ApiError::body(&error)),
        }
    }

    fn partial(&self, preview: &Preview) -> Event {
        let event = PartialImageEvent {
            kind: PARTIAL,
            b64_json: base64(&preview.file),
            created_at: unix_seconds(SystemTime::now()),
            partial_image_index: preview.index,
            appearance: self.job.about.appearance.of_preview(),
            pentimento: PartialProvenance { image_index: preview.picture },
        };
        json(PARTIAL, &event)
    }
}
