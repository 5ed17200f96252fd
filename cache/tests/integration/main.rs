//! The cache's integration tests. They are one binary, so that the crate is linked once.
#![allow(clippy::unwrap_used)] // A failed test panics.

mod archive;
mod basics;
mod crash;
mod expiry;
#[cfg(target_os = "linux")]
mod full_disk;
mod hard_negatives;
mod lifetime;
mod pictures;
mod policies;
mod policy_support;
mod support;
