//! The two lines of a queue: what is to be painted, and what is only to be shown.

use std::sync::Arc;
use std::time::Instant;

use super::event::Listeners;
use super::turns::{Parts, Turns};
use super::urgency::{ByDeadline, Urgent};
use super::{Job, Line};

/// A job that waits.
pub(super) struct Waiting {
    pub job: Arc<Job>,
    /// Where it waits: the job's own line, or to be painted where it could not be shown.
    pub line: Line,
    pub listeners: Listeners,
    pub since: Instant,
}

impl Urgent for Waiting {
    fn deadline(&self) -> Instant {
        self.since + self.job.budget()
    }
}

/// Clients in turn; within a client the most urgent picture first.
pub(super) type Clients = Turns<String, ByDeadline<Waiting>>;

/// What waits.
#[derive(Default)]
pub(super) struct Lines {
    pub paint: Clients,
    pub show: Clients,
}

impl Lines {
    /// Each.
    pub fn all(&self) -> [&Clients; 2] {
        [&self.paint, &self.show]
    }

    /// One of them.
    pub fn line(&self, line: Line) -> &Clients {
        match line {
            Line::Paint => &self.paint,
            Line::Show => &self.show,
        }
    }

    /// One of them.
    pub fn line_mut(&mut self, line: Line) -> &mut Clients {
        match line {
            Line::Paint => &mut self.paint,
            Line::Show => &mut self.show,
        }
    }

    /// Adds a job to its line.
    pub fn push(&mut self, waiting: Waiting) {
        let line = self.line_mut(waiting.line);
        line.entry(waiting.job.client.clone()).push(waiting);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.all().into_iter().map(Parts::len).sum()
    }

    /// How many of a client's wait.
    pub fn len_of(&self, client: &str) -> usize {
        self.all().into_iter().map(|line| line.len_of(client)).sum()
    }

    /// Forgets those that nobody wants any more.
    pub fn retain(&mut self, wanted: &mut dyn FnMut(&Waiting) -> bool) {
        self.paint.retain(wanted);
        self.show.retain(wanted);
    }
}
