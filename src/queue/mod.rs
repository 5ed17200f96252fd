//! Between the gateway, which accepts, and the worker, which paints: jobs as data, and who is next.

#[cfg(test)]
mod conformance;
mod contract;
mod event;
mod job;
mod lines;
mod local;
mod turns;
mod urgency;

pub use contract::{Busy, JobLease, JobQueue, JobSubscription, Pulled, QueueLimits};
pub use event::{Event, Failure, Painted, Timings};
pub use job::{Encoding, Format, Hit, Job, Keep, Line, Reused, Start};
pub use local::{Lease, LocalQueue, Subscription};
