//! The scheduler: owns every picture that waits or is painted, and decides what runs next, where, and with which plan.
//!
//! [`core`] is a pure state machine: values and times go in, decisions come out. [`messages`] is what gateway, scheduler
//! and worker say to each other. [`menu`] is what the scheduler chooses from, [`batch`] the one decision that is left to
//! a worker.
//!
//! Absent on purpose: clock, thread, lock, channel, tensor, HTTP. Nothing here imports another module of the service.

pub mod batch;
pub mod core;
mod ids;
pub mod local;
pub mod menu;
pub mod messages;
mod time;

pub use ids::{ClientId, ModelId, OptionId, RequestId, TaskId, WorkerId};
pub use time::Time;
