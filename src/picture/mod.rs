//! What is painted, as data: gateway and worker tell each other of it through the scheduler, which does not look inside.
//!
//! [`PictureSpec`] is a picture's identity, [`PaintTask`] all that a worker needs to paint it, [`FinishedPicture`] what
//! the worker hands back. [`file`] makes the lossless file and, from it, files of other formats.

pub mod file;
mod finished;
mod spec;
mod task;

pub use finished::{FinishedPicture, PaintTimings};
pub use spec::{PictureHash, PictureSpec};
pub use task::{KeepOrder, PaintTask, StartState};
