//! What every queue promises, be it in this process or between hosts; `conformance` holds them to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::{Event, Failure, Painted};
use super::{Job, Line};

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Pictures in all.
    pub length: usize,
    /// Pictures of one client.
    pub length_per_client: usize,
}

/// Why nothing more is accepted.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Busy {
    /// The queue is full.
    #[error("too many pictures are waiting")]
    Full {
        /// When there should be room again.
        retry_after: Duration,
    },
    /// This client has too many pictures waiting.
    #[error("too many of your pictures are waiting")]
    ClientFull {
        /// When there should be room again.
        retry_after: Duration,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Closed,
}

/// What a worker gets that asks for work.
pub enum Pulled<L> {
    /// A job.
    Lease(L),
    /// Nothing, in the time that it had.
    Nothing,
    /// Nothing any more: the queue is closed and empty.
    Closed,
}

/// Between the gateway, which submits jobs, and the worker, which pulls them; clones are the same queue.
///
/// - Order: what is to be painted and what is only to be shown wait in a line each, for workers of their own. In a line
///   clients are served in turn, a picture each; within a client the earliest deadline goes first, of equal ones who
///   came first. A job's deadline is its `budget()` after it was submitted.
/// - An accepted job is handed out once, and once more where it could not be shown, unless nobody wants it any more or
///   the queue is stopped. Every subscription hears exactly one end.
/// - What one client asks for several times is painted once, as long as the first painting is not over; who joined hears
///   of the time that it took since then. What others ask for shows nowhere.
/// - Only [`JobQueue::pull`] waits; all else is quick enough for an async task.
pub trait JobQueue: Clone + Send + Sync + 'static {
    /// What a worker holds of a job that it paints.
    type Lease: JobLease;
    /// What a job's owner holds.
    type Subscription: JobSubscription;

    /// Whether so many jobs of a client would be accepted now.
    ///
    /// # Errors
    /// [`Busy`] where there is no room, or no time.
    fn has_room(&self, client: &str, jobs: usize) -> Result<(), Busy>;

    /// Whether each of these is painted for its client already, or waits for it: they cost nothing more.
    fn has_all(&self, jobs: &[Job]) -> bool;

    /// Accepts the jobs of a request, which has one client: all or none. A subscription for each, in their order.
    ///
    /// # Errors
    /// [`Busy`] where there is no room, or no time.
    fn submit(&self, jobs: Vec<Job>) -> Result<Vec<Self::Subscription>, Busy>;

    /// The next job of a line, waited for so long; `None` waits until there is one, or the queue is closed and the line
    /// stays empty: that of what is to be painted only does once nothing is shown any more.
    fn pull(&self, line: Line, patience: Option<Duration>) -> Pulled<Self::Lease>;

    /// The job to be painted whose turn is next, if it is wanted, of which the deadline is told, too; nothing is waited
    /// for.
    fn pull_if(&self, wanted: impl FnOnce(&Job, Instant) -> bool) -> Pulled<Self::Lease>;

    /// What waits in a line, as `see` sees it with its deadline. It must be quick: the queue may stand still meanwhile.
    fn waiting<T>(&self, line: Line, see: impl FnMut(&Job, Instant) -> T) -> Vec<T>;

    /// Seconds from one picture's end to the next one's while there is work.
    fn picture_seconds(&self) -> f64;

    /// Accepts nothing more; what was accepted is still handed out.
    fn close(&self);

    /// Forgets what waits and cancels what is being painted: its subscribers hear [`Failure::Stopped`].
    fn stop(&self);

    /// Whether nothing more is accepted.
    fn is_closed(&self) -> bool;

    /// Jobs that wait.
    fn len(&self) -> usize;

    /// Whether no job waits.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a job's owner holds. Dropped before the end, it cancels the job, be it waiting or half painted, unless
/// somebody else waits for the same picture.
pub trait JobSubscription: Send + 'static {
    /// The next event; the last one is [`Event::Done`] or [`Event::Failed`]. After that it is [`Failure::Stopped`].
    fn next(&mut self) -> impl Future<Output = Event> + Send;

    /// How many pictures of its line will be begun before this one; `None` while it is in hand, and once it is over.
    fn ahead(&self) -> Option<usize>;
}

/// A job being painted. Dropped without an outcome, as by a worker that dies, it is heard as [`Failure::Stopped`].
/// Nothing here waits for whoever listens.
pub trait JobLease: Send + 'static {
    /// The job.
    fn job(&self) -> &Arc<Job>;

    /// How long it waited.
    fn waited(&self) -> Duration;

    /// When it should be done.
    fn deadline(&self) -> Instant;

    /// Whether nobody waits for the picture any more. Asked before every step.
    fn is_cancelled(&self) -> bool;

    /// Sends a preview: at most as many as the job has `previews`.
    fn preview(&self, index: usize, file: Vec<u8>);

    /// Sends the picture.
    fn complete(self, painted: Painted);

    /// Says why there is none.
    fn fail(self, failure: Failure);

    /// Gives it back, to be painted, from noise: what was stored is not to be had. It keeps its deadline, and whoever asks
    /// for the same meanwhile joins.
    fn paint_instead(self);
}
