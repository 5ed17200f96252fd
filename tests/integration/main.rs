//! The service as its users see it: HTTP, the command line, clients' own packages. One binary, so that it is linked once.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

mod common;

mod admin;
mod cache;
mod cache_command;
mod calibrate;
mod embedder;
mod errors;
mod frontier;
mod generate;
mod jobs;
mod load;
mod openai_client;
mod quality;
mod replay;
mod serve;
mod webhooks;
