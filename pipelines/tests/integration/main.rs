//! The engine's integration tests. They are one binary, so that the crate is linked once; `allocations.rs` alone is another
//! one, because it needs a global allocator of its own.
#![allow(clippy::unwrap_used)] // A failed test panics.

mod goldens;
#[cfg(feature = "embedded-model")]
mod storybook;
mod support;
mod trajectories;
#[cfg(feature = "embedded-model")]
mod verbs;
