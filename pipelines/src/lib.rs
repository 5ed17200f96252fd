//! Prompt, seed and step plan to pixels: text-to-image diffusion as *trajectories*.
//!
//! [`Pipeline`] is a loaded model; [`Trajectory`] is one picture on its way. The seven verbs:
//! [`Pipeline::start`], [`Trajectory::snapshot`], [`Pipeline::resume`], [`Trajectory::replan`],
//! [`Trajectory::fork`], [`Pipeline::step`] and [`Pipeline::finish`].
//!
//! No async, no network, no cache: one trajectory's result depends on its own prompt, seed, plan and
//! start, never on its batch company.

mod conditioning;
mod cpu;
mod ddim;
#[cfg(feature = "embedded-model")]
mod embedded;
mod error;
mod files;
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
pub use conditioning::{Conditioning, EncodedPrompt, Source};
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
