//! Executes what the scheduler assigns, and reports. Decides nothing but which tasks share the next step.
//!
//! [`core`] is the worker's state machine: no clock, no thread, no engine. [`Worker`] runs it with the threads of its
//! stages, [`Pipelines`] is the engine. A simulation runs the same core with an [`Engine`] that lets time pass.

pub mod core;
mod driver;
mod engine;
mod fleet;
mod painting;
mod pipelines;
mod stored;
#[cfg(test)]
mod tests;
mod warm_up;
mod watch;

pub use driver::{Options, Worker};
pub use engine::{BeginError, Engine, Measured, Painting, Stages};
pub use fleet::{Fleet, FleetOptions};
pub use painting::PipelinePainting;
pub use pipelines::{LoadedState, Pipelines};
pub use stored::{StateError, Stored};
pub use watch::StepWatch;
