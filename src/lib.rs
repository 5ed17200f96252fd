//! Pentimento, the service: text-to-image diffusion behind OpenAI's Images API, or on the command line.
//!
//! A request's way: [`api`] parses it, [`gateway`] validates it and answers what the cache has, [`scheduler`] decides when,
//! where and with which plan the rest is painted, [`worker`] paints it. `gateway` and `worker` know nothing of each other.

pub mod api;
pub mod commands;
pub mod config;
pub mod gateway;
pub mod menu;
pub mod picture;
pub mod quality;
pub mod scheduler;
pub mod simulation;
pub mod telemetry;
pub mod trace;
pub mod worker;
