//! Text-to-image diffusion: from prompt, seed and step plan to pixels.
//!
//! [`Pipeline`] is a loaded model. [`Trajectory`] is one picture between noise and pixels. It has seven verbs:
//! [`Pipeline::start`], [`Trajectory::snapshot`], [`Pipeline::resume`], [`Trajectory::replan`], [`Trajectory::fork`],
//! [`Pipeline::step`] and [`Pipeline::finish`].
//!
//! This crate contains no async code, no network and no cache. A trajectory's result depends on its own prompt, seed, plan
//! and start, not on the other members of its batch.

mod conditioning;
mod cpu;
mod ddim;
#[cfg(feature = "embedded-model")]
mod embedded;
mod error;
mod files;
mod json_config;
#[doc(hidden)]
pub mod layers;
mod manifest;
mod model;
mod noise;
mod picture;
mod pipeline;
mod plan;
mod plan_option;
mod precision;
mod prompt_encoder;
mod schedule;
pub mod text;
mod trajectory;
pub mod unet;
pub mod vae;
mod weights;

pub use candle_core::Device;
pub use conditioning::{Conditioning, EncodedPrompt, ResumeSource};
pub use cpu::HelperThreads;
pub use error::{Error, Result};
pub use files::{EmbeddedFiles, ModelFiles};
pub use manifest::{Defaults, Manifest, Size, SizeRange};
pub use model::{Components, Model};
pub use noise::NoiseSource;
pub use picture::Picture;
pub use pipeline::Pipeline;
pub use plan::{Denoiser, Guidance, MAX_STEPS, MAX_STRENGTH, ResumeSteering, Steering, Step, StepPlan};
pub use plan_option::{PlanOption, Sampler};
pub use precision::Precision;
pub use schedule::{FINISHED, NoiseSchedule, Prediction, ScheduleConfig, Spacing};
pub use trajectory::{BatchKey, DenoisingState, Trajectory};
