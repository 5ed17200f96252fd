//! A request's pictures on their way to its listener: stored ones at once, painted ones as the scheduler tells of them,
//! all of them in the file format that the listener wants.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;

use super::answered::{AnsweredPicture, Hit, HitKind};
use super::reuse::{Prepared, StoredPicture};
use super::{PictureRequest, PictureScheduler, Rejection};
use crate::picture::FinishedPicture;
use crate::picture::file::{Encoding, Format, transcode};
use crate::scheduler::local::{Listener, NotAccepted, RequestEvent};
use crate::scheduler::messages::{Busy, Failure, Notice, PictureResult, Submit};
use crate::telemetry;

/// Why a picture is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PictureFailure {
    /// It was not painted.
    #[error(transparent)]
    Painting(#[from] Failure),
    /// Its file could not be made; the reason is for the log.
    #[error("cannot write the picture's file: {0}")]
    File(String),
}

/// What is heard of a request's pictures.
#[derive(Debug, Clone, PartialEq)]
pub enum PictureEvent {
    /// It was given to a worker.
    Begun {
        /// Which of the request's pictures.
        picture: usize,
    },
    /// An early look at it.
    Preview {
        /// Which of the request's pictures.
        picture: usize,
        /// Which of its previews, from 0.
        number: usize,
        /// A JPEG.
        file: Bytes,
    },
    /// Its end: there it is.
    Done {
        /// Which of the request's pictures.
        picture: usize,
        /// The picture.
        answer: AnsweredPicture,
    },
    /// Its end: there is none.
    Failed {
        /// Which of the request's pictures.
        picture: usize,
        /// Why.
        failure: PictureFailure,
    },
}

/// Makes files of other formats from lossless ones, as many at a time as there are cores: further ones wait.
#[derive(Debug, Clone)]
pub struct Transcoder(Arc<Semaphore>);

impl Default for Transcoder {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, |cores| cores.get()))))
    }
}

impl Transcoder {
    async fn file(self, file: Bytes, encoding: Encoding) -> Result<Bytes, PictureFailure> {
        let failed = |error: &dyn std::fmt::Display| PictureFailure::File(error.to_string());
        let permit = self.0.acquire_owned().await.map_err(|error| failed(&error))?;
        let made = tokio::task::spawn_blocking(move || {
            let _permit = permit; // until it is done, whether or not the listener is still there
            transcode(&file, encoding)
        });
        Ok(made.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?.into())
    }
}

type Transcoding = Pin<Box<dyn Future<Output = PictureEvent> + Send>>;

/// The pictures of an accepted request. Dropped before their end, those that are not painted are cancelled.
pub struct Pictures {
    count: usize,
    encoding: Encoding,
    transcoder: Transcoder,
    /// Whether expected qualities were measured.
    is_measured: bool,
    submitted: Instant,
    /// Events that wait to be heard.
    ready: VecDeque<PictureEvent>,
    transcoding: FuturesUnordered<Transcoding>,
    listener: Option<Listener<FinishedPicture>>,
    /// Which of the request's pictures each of the submitted tasks is.
    painted: Vec<usize>,
}

impl Pictures {
    /// `stored` pictures, and those that `listener` will tell of: its task `i` is the request's picture `painted[i]`.
    pub(super) fn new(
        encoding: Encoding,
        transcoder: Transcoder,
        is_measured: bool,
        stored: Vec<(usize, StoredPicture)>,
        listener: Option<Listener<FinishedPicture>>,
        painted: Vec<usize>,
    ) -> Self {
        let mut pictures = Self {
            count: stored.len() + painted.len(),
            encoding,
            transcoder,
            is_measured,
            submitted: Instant::now(),
            ready: VecDeque::new(),
            transcoding: FuturesUnordered::new(),
            listener,
            painted,
        };
        for (picture, stored) in stored {
            pictures.finish(picture, stored.answer(is_measured));
        }
        pictures
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many pictures are likely begun before this one; `None` once it is begun, and for a stored one.
    pub fn ahead(&self, picture: usize) -> Option<usize> {
        let task = self.painted.iter().position(|of| *of == picture)?;
        self.listener.as_ref()?.ahead(task as u32)
    }

    /// The next event; `None` once each picture's end was told, or no more will be. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> Option<PictureEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let listener = &mut self.listener;
            let has_listener = listener.is_some();
            let heard = async {
                match listener {
                    Some(listener) => listener.next().await,
                    None => std::future::pending().await,
                }
            };
            let transcodes = !self.transcoding.is_empty();
            if !transcodes && !has_listener {
                return None;
            }
            tokio::select! {
                Some(event) = self.transcoding.next(), if transcodes => return Some(event),
                event = heard => match event {
                    Some(event) => self.hear(event),
                    None => self.listener = None,
                },
            }
        }
    }

    fn hear(&mut self, event: RequestEvent<FinishedPicture>) {
        let picture = |task: u32| self.painted.get(task as usize).copied();
        match event {
            RequestEvent::Begun { index } => {
                self.ready.extend(picture(index).map(|picture| PictureEvent::Begun { picture }));
            }
            RequestEvent::Preview { index, number, file } => {
                let number = number as usize;
                let preview = picture(index).map(|picture| PictureEvent::Preview { picture, number, file });
                self.ready.extend(preview);
            }
            RequestEvent::End(Notice { index, result, .. }) => match (picture(index), result) {
                (None, _) => {}
                (Some(picture), PictureResult::Done { option, expected_quality, picture: finished }) => {
                    let quality = self.is_measured.then_some(expected_quality);
                    let answer = answered(finished, option.as_str(), quality, self.submitted.elapsed());
                    telemetry::queue_wait(answer.queue);
                    self.finish(picture, answer);
                }
                (Some(picture), PictureResult::Failed { why }) => {
                    self.ready.push_back(PictureEvent::Failed { picture, failure: why.into() });
                }
            },
        }
    }

    /// Tells a picture's end, once its file is in the wanted encoding.
    fn finish(&mut self, picture: usize, answer: AnsweredPicture) {
        if let Some(Hit { kind, .. }) = &answer.hit {
            telemetry::hit(kind.name(), answer.skipped_steps, answer.steps);
        }
        if self.encoding.format == Format::Png {
            return self.ready.push_back(PictureEvent::Done { picture, answer });
        }
        let (transcoder, encoding, started) = (self.transcoder.clone(), self.encoding, Instant::now());
        self.transcoding.push(Box::pin(async move {
            match transcoder.file(answer.file.clone(), encoding).await {
                Ok(file) => {
                    let mut answer = AnsweredPicture { file, ..answer };
                    answer.timings.decode += started.elapsed();
                    PictureEvent::Done { picture, answer }
                }
                Err(failure) => PictureEvent::Failed { picture, failure },
            }
        }));
    }
}

/// Answers what of a request is stored, and submits the rest as a request of `client`: all of it is accepted, or none.
///
/// # Errors
/// [`Rejection`]
pub fn submit(
    prepared: Vec<Prepared>,
    request: &PictureRequest,
    client: &str,
    scheduler: &PictureScheduler,
    transcoder: Transcoder,
) -> Result<Pictures, Rejection> {
    let (mut stored, mut painted, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
    for (index, picture) in prepared.into_iter().enumerate() {
        match picture {
            Prepared::Stored(picture) => stored.push((index, picture)),
            Prepared::Paint(task) => {
                painted.push(index);
                tasks.push(*task);
            }
        }
    }
    let listener = if tasks.is_empty() {
        None
    } else {
        // Not the request's id in the log: a client may name that, and a second request of one name is not painted.
        let random = getrandom::u64().map_err(|error| Rejection::Internal(error.to_string()))?;
        let submit = Submit { request: format!("{random:016x}").into(), client: client.into(), tasks };
        let accepted = scheduler.submit(submit).inspect_err(|answer| {
            if matches!(answer, NotAccepted::Later { why: Busy::Overloaded, .. }) {
                telemetry::overloaded();
            }
        });
        Some(accepted?)
    };
    let encoding = request.wishes().encoding;
    Ok(Pictures::new(encoding, transcoder, request.is_measured(), stored, listener, painted))
}

/// A painted picture as it is answered, `since` it was submitted.
fn answered(
    finished: FinishedPicture,
    option: &str,
    expected_quality: Option<f64>,
    since: Duration,
) -> AnsweredPicture {
    let FinishedPicture { file, steps, skipped_steps, started_from, timings } = finished;
    let hit = |start: crate::picture::StartState| Hit {
        kind: HitKind::State,
        source: start.entry,
        similarity: start.similarity,
    };
    AnsweredPicture {
        file,
        hit: started_from.map(hit),
        option: Some(option.to_owned()),
        steps,
        skipped_steps,
        expected_quality,
        queue: since.saturating_sub(timings.total()),
        timings,
    }
}

#[cfg(test)]
mod tests {
    use pentimento_cache::EntryId;

    use pentimento_pipelines::Picture;

    use super::*;
    use crate::picture::PaintTimings;
    use crate::picture::file::{read_png, write_png};

    fn stored() -> StoredPicture {
        let picture = Picture { width: 16, height: 8, rgb: vec![200; 16 * 8 * 3] };
        StoredPicture {
            hit: Hit { kind: HitKind::Exact, source: EntryId::new(1), similarity: 1.0 },
            plan: pentimento_cache::PaintedPlan::guided(25),
            expected_quality: Some(0.975),
            file: write_png(&picture, "a").unwrap().into(),
            load: Duration::from_millis(3),
        }
    }

    fn pictures(format: Format, stored: Vec<(usize, StoredPicture)>) -> Pictures {
        let encoding = Encoding { format, quality: 90 };
        Pictures::new(encoding, Transcoder::default(), true, stored, None, vec![])
    }

    #[tokio::test]
    async fn stored_pictures_are_answered_without_a_scheduler() {
        let mut png = pictures(Format::Png, vec![(0, stored()), (1, stored())]);
        assert_eq!((png.count(), png.ahead(0)), (2, None));
        for wanted in [0, 1] {
            let Some(PictureEvent::Done { picture, answer }) = png.next().await else { panic!() };
            assert_eq!((picture, answer.steps, answer.skipped_steps), (wanted, 25, 25));
            assert!((answer.expected_quality.unwrap() - 0.975).abs() < 1e-6);
            assert_eq!(answer.file, stored().file, "the stored file itself");
        }
        assert_eq!(png.next().await, None);
    }

    #[tokio::test]
    async fn other_formats_are_made_of_the_lossless_file() {
        let mut jpeg = pictures(Format::Jpeg, vec![(0, stored())]);
        let Some(PictureEvent::Done { answer, .. }) = jpeg.next().await else { panic!() };
        let decoded = image::load_from_memory(&answer.file).unwrap().into_rgb8();
        assert!(read_png(&answer.file).is_err() && decoded.dimensions() == (16, 8));
        let damaged = StoredPicture { file: Bytes::from_static(b"no png"), ..stored() };
        let mut damaged = pictures(Format::Webp, vec![(0, damaged)]);
        let event = damaged.next().await;
        assert!(
            matches!(event, Some(PictureEvent::Failed { picture: 0, failure: PictureFailure::File(_) })),
            "{event:?}"
        );
        assert_eq!(damaged.next().await, None);
    }

    #[test]
    fn the_wait_is_what_the_worker_did_not_take() {
        let timings = PaintTimings { denoise: Duration::from_millis(70), ..PaintTimings::default() };
        let finished = |timings| FinishedPicture {
            file: Bytes::new(),
            steps: 8,
            skipped_steps: 0,
            started_from: None,
            timings,
        };
        let wait = |milliseconds| {
            answered(finished(timings), "ddim-8", None, Duration::from_millis(milliseconds)).queue.as_millis()
        };
        assert_eq!((wait(100), wait(50)), (30, 0), "one that joined late waited for nothing");
    }
}
