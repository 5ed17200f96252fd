//! What is heard of a job, and how it ends.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Reused;

/// Where a picture's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for its turn.
    pub queue: Duration,
    /// Getting the state that it starts from.
    pub load: Duration,
    /// Encoding the prompts.
    pub encode: Duration,
    /// Beside the batch while others took steps, and for whoever decodes.
    pub wait: Duration,
    /// All its steps, those of the pictures that shared its batches included.
    pub denoise: Duration,
    /// Latent to image file, previews included.
    pub decode: Duration,
}

impl Timings {
    /// What of it fell into the last `time` before the end, as whoever joined then sees it. Waits beside the batch are
    /// taken as the last of the steps.
    pub fn within(self, mut time: Duration) -> Self {
        let mut last = |part: Duration| {
            let within = part.min(time);
            time -= within;
            within
        };
        let Self { queue, load, encode, wait, denoise, decode } = self;
        // From the end on.
        let [decode, wait, denoise, encode, load, queue] =
            [decode, wait, denoise, encode, load, queue].map(&mut last);
        Self { queue, load, encode, wait, denoise, decode }
    }
}

/// A finished picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Painted {
    /// The image file.
    pub file: Vec<u8>,
    /// Where the time went.
    pub timings: Timings,
    /// What of the cache it was made from; `None`: it was painted from noise.
    pub reused: Option<Reused>,
    /// The steps of its plan that this spared.
    pub skipped_steps: usize,
    /// Steps of the plan that it got, skipped ones included.
    pub steps: usize,
    /// What such a picture is worth on average, 0 to 1, relative to the model's full plan; `None` where that was not
    /// measured.
    pub expected_quality: Option<f64>,
}

/// Why an accepted picture was not painted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The engine failed; the reason is for the log.
    #[error("{0}")]
    Engine(String),
    /// The state to start from was gone when its turn came, and nothing else was wanted.
    #[error("the stored state is gone")]
    StateGone,
    /// The worker is gone, or had no time left to shut down in.
    #[error("the worker stopped before the picture was finished")]
    Stopped,
}

/// What a subscriber hears of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The predicted picture, as an image file; `index` counts previews from 0.
    Preview {
        /// Which of the job's previews.
        index: usize,
        /// The image file.
        file: Vec<u8>,
    },
    /// The end: the picture.
    Done(Painted),
    /// The end: none.
    Failed(Failure),
}

/// The most requests that are answered by one painting.
pub(super) const MOST_LISTENERS: usize = 64;

/// Whoever waits for one picture: mostly one, more where several asked for the same.
#[derive(Debug, Clone)]
pub(super) struct Listeners(Arc<Mutex<Vec<Listener>>>);

#[derive(Debug)]
struct Listener {
    sender: mpsc::Sender<Event>,
    /// When it came, where others had asked for the picture before.
    joined: Option<Instant>,
}

/// What [`Listeners`] are known again by. It keeps nobody's channel open: one that is dropped without an end is heard.
#[derive(Debug)]
pub(super) struct Mark(Weak<Mutex<Vec<Listener>>>);

impl Listeners {
    /// The first one, with room for all that a job of so many previews can say: the worker never waits for a reader.
    pub(super) fn new(previews: usize) -> (mpsc::Receiver<Event>, Self) {
        let (sender, receiver) = mpsc::channel(previews + 1);
        (receiver, Self(Arc::new(Mutex::new(vec![Listener { sender, joined: None }]))))
    }

    /// Whether one more may listen: not where there are too many, nor where all who waited are gone and so is the
    /// picture.
    pub(super) fn have_room(&self) -> bool {
        has_room(&self.0.lock())
    }

    /// One more; `None` where there is no room.
    pub(super) fn add(&self, previews: usize) -> Option<mpsc::Receiver<Event>> {
        let mut listeners = self.0.lock();
        if !has_room(&listeners) {
            return None;
        }
        let (sender, receiver) = mpsc::channel(previews + 1);
        listeners.push(Listener { sender, joined: Some(Instant::now()) });
        Some(receiver)
    }

    /// What they are known again by.
    pub(super) fn mark(&self) -> Mark {
        Mark(Arc::downgrade(&self.0))
    }

    /// Whether the mark is theirs.
    pub(super) fn are(&self, mark: &Mark) -> bool {
        Weak::ptr_eq(&Arc::downgrade(&self.0), &mark.0)
    }

    /// Whether nobody waits any more.
    pub(super) fn are_gone(&self) -> bool {
        are_gone(&self.0.lock())
    }

    /// Tells everybody; who joined, of the time since then.
    pub(super) fn hear(&self, event: &Event) {
        for Listener { sender, joined } in self.0.lock().iter() {
            let mut event = event.clone();
            if let (Event::Done(painted), Some(joined)) = (&mut event, joined) {
                painted.timings = painted.timings.within(joined.elapsed());
            }
            // Fails only where nobody listens: the channel has room for every event of a job.
            let _ = sender.try_send(event);
        }
    }
}

fn has_room(listeners: &[Listener]) -> bool {
    listeners.len() < MOST_LISTENERS && !are_gone(listeners)
}

fn are_gone(listeners: &[Listener]) -> bool {
    listeners.iter().all(|listener| listener.sender.is_closed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_joins_hears_of_the_end_only() {
        let [queue, load, encode, wait, denoise, decode] =
            [40, 5, 10, 20, 100, 30].map(Duration::from_millis);
        let all = Timings { queue, load, encode, wait, denoise, decode };
        let none = Timings::default();
        let within = |milliseconds| all.within(Duration::from_millis(milliseconds));
        assert_eq!(within(0), none);
        assert_eq!(within(10), Timings { decode: Duration::from_millis(10), ..none });
        assert_eq!(within(60), Timings { decode, wait, denoise: Duration::from_millis(10), ..none });
        assert_eq!(within(162), Timings { queue: Duration::ZERO, load: Duration::from_millis(2), ..all });
        assert_eq!(within(9999), all);
    }
}
