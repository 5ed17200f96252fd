//! What travels of a job.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::api::answer::{About, unix_seconds};
use crate::api::errors::ErrorDetail;
use crate::api::wire::ImagesResponse;
use crate::api::{ApiError, App};
use crate::gateway::{AnsweredPicture, End, Job, Outcome, PictureProgress, Progress, Status};

/// Whom to tell of a job's end.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookRequest {
    /// Where a notice is posted to: an `https` URL whose host the operator allows.
    #[schema(required = true, nullable = false, max_length = 2048)]
    pub url: Option<String>,
}

/// A job.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobObject {
    /// Its name, which nobody can guess.
    pub id: String,
    /// Always `job`.
    pub object: &'static str,
    /// `queued`, `painting`, `completed`, `failed` or `cancelled`.
    pub status: &'static str,
    /// When it was accepted, in Unix seconds.
    pub created: u64,
    /// When it ended, in Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<u64>,
    /// While it is queued: how many pictures are to be begun before its first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// While it is queued: when its last picture should be painted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_seconds: Option<f64>,
    /// How far each of its pictures is.
    pub pictures: Vec<PictureObject>,
    /// Once it is completed: what `POST /v1/images/generations` would have answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<ImagesResponse>,
    /// Once it has failed: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
}

/// How far a picture is.
#[derive(Debug, Serialize, ToSchema)]
pub struct PictureObject {
    /// `queued`, `painting` or `completed`.
    pub status: &'static str,
    /// While it is queued: how many pictures are to be begun before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// How many previews there are of it.
    pub previews: usize,
}

/// An event of a job's status: `job.queued`, `job.painting`, `job.completed`, `job.failed` or `job.cancelled`.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobEvent {
    /// The event's name.
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub job: JobObject,
}

impl JobObject {
    /// A job as far as it is.
    ///
    /// # Errors
    /// [`ApiError`], where a picture cannot be kept for its url.
    pub fn of(app: &App, job: &Job<About>, progress: &Progress) -> Result<Self, ApiError> {
        let status = progress.status();
        let end = progress.end.as_deref();
        let (result, error) = match end {
            Some(End { outcome: Outcome::Completed(pictures), at, time }) => {
                let keep = |index, picture: &AnsweredPicture| {
                    let secret = file_secret(job.id.as_str(), index);
                    app.files.put_as(
                        &secret,
                        &picture.file,
                        job.about.appearance.output_format,
                        Instant::now(),
                    )
                };
                let keep =
                    |index, picture: &AnsweredPicture| keep(index, picture).map(|name| app.file_url(&name));
                (Some(job.about.response(pictures, *at, *time, keep)?), None)
            }
            Some(End { outcome: Outcome::Failed(failure), .. }) => {
                (None, Some(ApiError::of_job(failure).detail))
            }
            _ => (None, None),
        };
        let queued = status == Status::Queued;
        Ok(Self {
            id: job.id.as_str().to_owned(),
            object: "job",
            status: status.name(),
            created: unix_seconds(job.created),
            finished: end.map(|end| unix_seconds(end.time)),
            position: progress.ahead(),
            expected_seconds: app.jobs.expected(progress).filter(|_| queued).map(tenths),
            pictures: pictures(progress),
            result,
            error,
        })
    }
}

fn pictures(progress: &Progress) -> Vec<PictureObject> {
    let picture = |(index, picture): (usize, &PictureProgress)| {
        let (status, position) = match *picture {
            PictureProgress::Waiting { ahead } => ("queued", Some(ahead)),
            PictureProgress::Painting => ("painting", None),
            PictureProgress::Painted => ("completed", None),
        };
        let previews = progress.previews.iter().filter(|preview| preview.picture == index).count();
        PictureObject { status, position, previews }
    };
    progress.pictures.iter().enumerate().map(picture).collect()
}

/// By which a picture of a job is found behind its url: always the same, and known only to who knows the job.
fn file_secret(id: &str, index: usize) -> [u8; 24] {
    let digest: [u8; 32] = Sha256::digest(format!("picture {index} of {id}")).into();
    let mut secret = [0; 24];
    secret.copy_from_slice(&digest[..24]);
    secret
}

/// An estimate has no more digits than it deserves.
fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}
