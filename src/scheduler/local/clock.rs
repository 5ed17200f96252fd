//! The time, as it is handed to those that have no clock.

use std::sync::Arc;
use std::time::Instant;

use crate::scheduler::Time;

/// Tells the time. Clones tell the same.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Time + Send + Sync>);

impl Clock {
    /// The machine's monotonic clock, from now on.
    pub fn real() -> Self {
        let began = Instant::now();
        Self::new(move || Time::from_nanos(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)))
    }

    /// A clock that tells what `now` returns: for tests.
    pub fn new(now: impl Fn() -> Time + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now.
    pub fn now(&self) -> Time {
        (self.0)()
    }
}
