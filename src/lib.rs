//! Pentimento, the service: text-to-image diffusion behind OpenAI's Images API, or on the command line.
//!
//! A request's way: [`api`] parses it, [`gateway`] validates and plans it, [`queue`] hands its pictures
//! out in turn, [`worker`] paints them. `gateway` and `worker` know nothing of each other.

pub mod api;
pub mod commands;
pub mod config;
pub mod gateway;
pub mod menu;
pub mod picture;
pub mod plan;
pub mod quality;
pub mod queue;
pub mod scheduler;
pub mod simulation;
pub mod telemetry;
pub mod trace;
pub mod worker;
