//! One job: who it belongs to, how far it is, how it ended.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::gateway::answered::AnsweredPicture;
use crate::gateway::pictures::{PictureEvent, PictureFailure, Pictures};
use crate::gateway::webhook::Webhook;
use crate::scheduler::messages::Failure;

/// How often a waiting job's place in the queue is looked up.
const PLACE_EVERY: Duration = Duration::from_secs(1);

/// A job's name, which nobody can guess: 128 random bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobId(Arc<str>);

impl JobId {
    /// A new one.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits)?;
        Ok(Self(format!("job_{:032x}", u128::from_be_bytes(bits)).into()))
    }

    /// As clients write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for JobId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Status {
    Queued,
    Painting,
    Completed,
    Failed,
    Cancelled,
}

impl Status {
    /// Every one, in the order of its number.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Painting, Self::Completed, Self::Failed, Self::Cancelled];

    /// Its name in answers, events and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Painting => "painting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How far one picture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureProgress {
    /// So many pictures are to be begun before it.
    Waiting {
        /// How many.
        ahead: usize,
    },
    /// It is begun.
    Painting,
    /// It is painted.
    Painted,
}

impl PictureProgress {
    /// Of a picture that is not painted.
    pub fn of(pictures: &Pictures, picture: usize) -> Self {
        pictures.ahead(picture).map_or(Self::Painting, |ahead| Self::Waiting { ahead })
    }

    fn ahead(self) -> Option<usize> {
        if let Self::Waiting { ahead } = self { Some(ahead) } else { None }
    }
}

/// An early look at a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    /// Which of the job's pictures.
    pub picture: usize,
    /// Which of the picture's previews.
    pub index: usize,
    /// A JPEG.
    pub file: Bytes,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobFailure {
    /// A picture was not painted.
    #[error(transparent)]
    Picture(#[from] PictureFailure),
    /// It took longer than `job_timeout_seconds`.
    #[error("the job was not finished in time")]
    TimedOut,
    /// `job_store_bytes` are full of this and other running jobs' pictures.
    #[error("there is no room for the job's pictures")]
    NoRoom,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All its pictures.
    Completed(Vec<AnsweredPicture>),
    /// None.
    Failed(JobFailure),
    /// Its client did not want it any more.
    Cancelled,
}

/// A job's end.
#[derive(Debug)]
pub struct End {
    /// What became of it.
    pub outcome: Outcome,
    /// When.
    pub at: Instant,
    /// When, by the calendar.
    pub time: SystemTime,
}

impl End {
    /// The status that it is.
    pub fn status(&self) -> Status {
        match self.outcome {
            Outcome::Completed(_) => Status::Completed,
            Outcome::Failed(_) => Status::Failed,
            Outcome::Cancelled => Status::Cancelled,
        }
    }
}

/// All that is known of how far a job is. It only grows, so whoever comes late, or reads slowly, misses nothing.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Each of its pictures.
    pub pictures: Vec<PictureProgress>,
    /// In the order in which they came.
    pub previews: Vec<Preview>,
    /// Its end, once it has ended.
    pub end: Option<Arc<End>>,
}

impl Progress {
    /// In one word.
    pub fn status(&self) -> Status {
        match &self.end {
            Some(end) => end.status(),
            None if self.pictures.iter().all(|picture| picture.ahead().is_some()) => Status::Queued,
            None => Status::Painting,
        }
    }

    /// How many pictures are to be begun before its first; `None` once that is begun.
    pub fn ahead(&self) -> Option<usize> {
        if self.status() != Status::Queued {
            return None;
        }
        self.pictures.iter().filter_map(|picture| picture.ahead()).min()
    }

    /// How many pictures are to be begun before its last.
    pub fn furthest(&self) -> Option<usize> {
        self.pictures.iter().filter_map(|picture| picture.ahead()).max()
    }

    /// Bytes of image files.
    pub fn bytes(&self) -> usize {
        let pictures = match self.end.as_deref() {
            Some(End { outcome: Outcome::Completed(pictures), .. }) => {
                pictures.iter().map(|picture| picture.file.len()).sum()
            }
            _ => 0,
        };
        pictures + self.previews.iter().map(|preview| preview.file.len()).sum::<usize>()
    }
}

/// A job.
pub struct Job<A> {
    /// Its name.
    pub id: JobId,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// What the API says of its pictures.
    pub about: A,
    /// When it was accepted.
    pub created: SystemTime,
    /// Who hears of its end.
    pub(super) webhook: Option<Webhook>,
    progress: watch::Sender<Progress>,
}

impl<A> Job<A> {
    pub(super) fn new(
        id: JobId,
        tenant: Arc<str>,
        about: A,
        webhook: Option<Webhook>,
        pictures: Vec<PictureProgress>,
    ) -> Self {
        let progress = Progress { pictures, previews: Vec::new(), end: None };
        let progress = watch::Sender::new(progress);
        Self { id, tenant, about, created: SystemTime::now(), webhook, progress }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// How far it is, now and whenever that changes.
    pub fn follow(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Resolves once it has ended.
    pub async fn ended(&self) {
        // Fails only where the sender is gone, which is ours.
        let _ = self.follow().wait_for(|progress| progress.end.is_some()).await;
    }

    /// Ends it. `None` where it has ended already.
    pub(super) fn end(&self, outcome: Outcome) -> Option<Arc<End>> {
        let mut ended = None;
        self.progress.send_if_modified(|progress| {
            if progress.end.is_some() {
                return false;
            }
            let end = Arc::new(End { outcome, at: Instant::now(), time: SystemTime::now() });
            progress.end = Some(end.clone());
            ended = Some(end);
            true
        });
        ended
    }

    /// Follows its pictures until all are painted, or one cannot be. `room` says whether so many bytes more may be held.
    pub(super) async fn paint(
        &self,
        mut pictures: Pictures,
        room: impl Fn(usize) -> bool,
    ) -> Result<Vec<AnsweredPicture>, JobFailure> {
        let held = |file: &[u8]| if room(file.len()) { Ok(()) } else { Err(JobFailure::NoRoom) };
        let mut painted: Vec<Option<AnsweredPicture>> = vec![None; pictures.count()];
        let mut every = tokio::time::interval(PLACE_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waits = true;
        while painted.iter().any(Option::is_none) {
            tokio::select! {
                event = pictures.next() => match event {
                    Some(PictureEvent::Begun { picture }) => self.set(picture, PictureProgress::Painting, None),
                    Some(PictureEvent::Preview { picture, number, file }) => {
                        held(&file)?;
                        let preview = Preview { picture, index: number, file };
                        self.set(picture, PictureProgress::Painting, Some(preview));
                    }
                    Some(PictureEvent::Done { picture, answer }) => {
                        held(&answer.file)?;
                        self.set(picture, PictureProgress::Painted, None);
                        painted[picture] = Some(answer);
                    }
                    Some(PictureEvent::Failed { failure, .. }) => return Err(failure.into()),
                    None => return Err(PictureFailure::Painting(Failure::Stopped).into()),
                },
                _ = every.tick(), if waits => waits = self.look_up_places(&pictures),
            }
        }
        Ok(painted.into_iter().flatten().collect())
    }

    fn set(&self, picture: usize, to: PictureProgress, preview: Option<Preview>) {
        self.change(|progress| {
            progress.pictures[picture] = to;
            progress.previews.extend(preview);
        });
    }

    /// Says whether some picture still waits.
    fn look_up_places(&self, pictures: &Pictures) -> bool {
        let before = self.progress().pictures;
        let place = |(picture, before): (usize, &PictureProgress)| match before {
            PictureProgress::Waiting { .. } => PictureProgress::of(pictures, picture),
            begun => *begun,
        };
        let now: Vec<_> = before.iter().enumerate().map(place).collect();
        let waits = now.iter().any(|picture| picture.ahead().is_some());
        if now != before {
            self.change(|progress| progress.pictures = now);
        }
        waits
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_if_modified(|progress| {
            let open = progress.end.is_none();
            if open {
                change(progress);
            }
            open
        });
    }
}
