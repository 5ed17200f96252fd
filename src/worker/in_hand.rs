//! What the painting thread has in hand: pictures whose prompts or states are on their way, and pictures that take
//! steps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use pentimento_pipelines::DenoisingState;

use super::aside::Prompting;
use super::painting::Painting;
use super::report::cancelled;
use super::stored::{Coming, Stored};
use crate::plan::{Planner, Work};
use crate::queue::{Job, JobLease, Lease};

/// Rows that a picture with guidance takes.
pub(super) const PICTURE_ROWS: usize = 2;

/// A lease, and who went before it.
pub(super) struct Held {
    pub lease: Lease,
    /// When its turn came.
    pub since: Instant,
    /// Other clients of whom a picture with an earlier deadline was leased later.
    overtaken_by: Vec<String>,
}

/// A leased job whose prompts are being encoded, or whose state is on its way, or both.
pub(super) struct Loading {
    pub held: Held,
    pub prompts: Option<Prompting>,
    pub state: Result<Option<Coming>, String>,
}

impl Loading {
    /// The state, or why there is none, once nothing more is waited for; `Ok(None)` where none is wanted. Waits so long
    /// at most, for each.
    pub fn arrived(
        &mut self,
        stored: Option<&Stored>,
        wait: Duration,
    ) -> Option<Result<Option<DenoisingState>, String>> {
        if self.prompts.as_mut().is_some_and(|prompts| !prompts.is_over(wait)) {
            return None;
        }
        match (&self.state, stored) {
            (Err(error), _) => Some(Err(error.clone())),
            (Ok(Some(coming)), Some(stored)) => {
                match catch_unwind(AssertUnwindSafe(|| stored.arrived(coming, wait))) {
                    Ok(arrived) => Some(arrived?.map(Some).map_err(|error| error.to_string())),
                    Err(_) => Some(Err("the cache panicked".to_owned())),
                }
            }
            (Ok(_), _) => Some(Ok(None)),
        }
    }
}

/// A picture being painted.
pub(super) struct Flying {
    pub held: Held,
    pub painting: Painting,
}

impl Flying {
    pub fn rows(&self) -> usize {
        self.painting.trajectory().rows()
    }

    pub fn job(&self) -> &Job {
        self.held.lease.job()
    }

    pub fn deadline(&self) -> Instant {
        self.held.lease.deadline()
    }

    pub fn work(&self, planner: &Planner) -> Work {
        let mut work = planner.work(self.job(), self.deadline(), &self.painting.progress());
        if work.skipped > 0.0 {
            work.floor = planner.resumed_floor(self.job());
        }
        work
    }
}

#[derive(Default)]
pub(super) struct InHand {
    pub loading: Vec<Loading>,
    pub flying: Vec<Flying>,
}

impl InHand {
    fn held(&self) -> impl Iterator<Item = &Held> {
        self.flying.iter().map(|f| &f.held).chain(self.loading.iter().map(|l| &l.held))
    }

    /// Rows in hand, and those of a full batch.
    pub fn rows(&self, planner: &Planner) -> (usize, usize) {
        let flying = self.flying.iter().map(|f| (f.rows(), &f.held));
        let loading = self.loading.iter().map(|l| (rows(&l.held.lease), &l.held));
        let (mut taken, mut best) = (0, planner.max_rows());
        for (rows, held) in flying.chain(loading) {
            taken += rows;
            best = best.min(planner.rows(&held.lease.job().model, held.lease.job().size));
        }
        (taken, best)
    }

    /// The latest deadline of the next batch, which has so many rows.
    pub fn last_of_batch(&self, rows: usize) -> Instant {
        let mut deadlines: Vec<Instant> = self.held().map(|held| held.lease.deadline()).collect();
        deadlines.sort_unstable();
        let pictures = (rows / PICTURE_ROWS).clamp(1, deadlines.len().max(1));
        deadlines.get(pictures - 1).copied().unwrap_or_else(Instant::now)
    }

    /// Whether a client's picture may go before those in hand that are less urgent. None waits for more than one picture
    /// of each other client: turns hold, however urgent one client's pictures are.
    pub fn may_overtake(&self, client: &str, deadline: Instant) -> bool {
        let mut overtaken = self.held().filter(|held| held.lease.deadline() > deadline);
        overtaken.all(|held| !held.overtaken_by.iter().any(|other| other == client))
    }

    /// Takes a lease into hand; it goes before what is less urgent.
    pub fn hold(&mut self, lease: Lease) -> Held {
        let flying = self.flying.iter_mut().map(|f| &mut f.held);
        for held in flying.chain(self.loading.iter_mut().map(|l| &mut l.held)) {
            let client = &lease.job().client;
            let overtaken = held.lease.deadline() > lease.deadline() && held.lease.job().client != *client;
            if overtaken && !held.overtaken_by.contains(client) {
                held.overtaken_by.push(client.clone());
            }
        }
        Held { lease, since: Instant::now(), overtaken_by: vec![] }
    }

    /// Lets go what nobody wants any more. Whether there was any.
    pub fn drop_cancelled(&mut self) -> bool {
        let before = self.flying.len() + self.loading.len();
        self.flying.retain(|flying| {
            let gone = flying.held.lease.is_cancelled();
            if gone {
                cancelled(&flying.held.lease, flying.held.since.elapsed());
            }
            !gone
        });
        self.loading.retain(|loading| {
            let gone = loading.held.lease.is_cancelled();
            if gone {
                cancelled(&loading.held.lease, loading.held.since.elapsed());
            }
            !gone
        });
        self.flying.len() + self.loading.len() < before
    }

    /// Tells the planner what is in hand.
    pub fn publish(&self, planner: &Planner) {
        let flying = self.flying.iter().map(|f| (f.work(planner), f.deadline()));
        let loading = self.loading.iter().map(|Loading { held: Held { lease, .. }, .. }| {
            (planner.waiting(lease.job(), lease.deadline()), lease.deadline())
        });
        planner.set_flying(flying.chain(loading).collect());
    }
}

/// Rows of a step of a job's plan.
fn rows(lease: &Lease) -> usize {
    lease.job().plan.steps().first().map_or(1, |step| step.guidance.rows())
}
