//! Between the gateway, which accepts, and the worker, which paints: jobs as data, and who is next.

mod job;
mod local;
mod turns;

pub use job::{Encoding, Format, Hit, Job, Keep, Reused, Start};
pub use local::{Busy, Event, Failure, Lease, LocalQueue, Painted, QueueLimits, Subscription, Timings};
