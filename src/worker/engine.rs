//! What a worker needs of an engine.
//!
//! [`Engine`] and [`Painting`] are what the worker's core sees: types that it moves from stage to stage, and a painting's
//! rows, noise level and batch key. [`Stages`] is the work itself, which the core never calls: the driver does, on the
//! threads of the stages, and a simulation instead lets time pass.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::scheduler::messages::{Assignment, Beginning, OverheadTime, Shape, StepTimes};
use crate::scheduler::{ModelId, OptionId};

/// The types of an engine.
pub trait Engine {
    /// What is to be painted, as the scheduler hands it on.
    type Spec: Clone;
    /// A finished picture, as the scheduler is handed it.
    type Picture: Clone;
    /// A stored state that a painting begins from.
    type State;
    /// A picture on its way.
    type Painting: Painting;
}

/// A picture on its way, from its first step to its last.
pub trait Painting {
    /// Paintings of one model with equal keys may share a step.
    type Key: Ord + Clone;
    /// What a preview is made of.
    type Preview;

    /// The key of its next step.
    fn batch_key(&self) -> Self::Key;
    /// The picture's size.
    fn shape(&self) -> Shape;
    /// Rows that its next step takes; 0 once no step is left.
    fn rows(&self) -> u32;
    /// Where it is: 1 is pure noise, 0 the finished picture.
    fn noise_level(&self) -> f64;
    /// Goes on with the steps of another option, from where it is. Takes microseconds.
    ///
    /// # Errors
    /// Why it cannot; it then goes on as before.
    fn replan(&mut self, option: &OptionId) -> Result<(), String>;
    /// Previews that are wanted of it, over all its steps. Those of steps that are taken are not made up for.
    fn set_previews(&mut self, previews: u32);
    /// The preview that is due after the step just taken, if any: its number, from 1, and what it is made of.
    fn due_preview(&mut self) -> Option<(u32, Self::Preview)>;
}

/// Why a painting did not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    /// It had to begin from a stored state that is not to be had.
    #[error("the stored state is gone")]
    StateGone,
    /// The engine's reason.
    #[error("{0}")]
    Failed(String),
}

/// What a worker measured before its first task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// What steps take.
    pub step_times: Vec<StepTimes>,
    /// What a picture takes beside its steps.
    pub overhead_times: Vec<OverheadTime>,
}

/// The work of an engine, stage by stage. Each method but [`Stages::load`] is called on the thread of its stage and may
/// block it. All may panic: that costs the picture that they work for.
pub trait Stages:
    Engine<Spec: Send + Sync, Picture: Send, State: Send, Painting: Painting<Preview: Send, Key: Send> + Send>
    + Send
    + Sync
    + 'static
{
    /// The models in memory at the start.
    fn models(&self) -> Vec<ModelId>;

    /// Takes first steps with each model in memory, of up to `rows` rows, so that weights are paged in and threads
    /// started; measures what they take.
    ///
    /// # Errors
    /// The engine's reason, such as latents that are not finite.
    fn warm_up(&self, rows: u32) -> Result<Measured, String>;

    /// Loads the stored state that a painting is to begin from.
    ///
    /// # Errors
    /// Why there is none; the painting then begins with noise, unless that is not wanted.
    fn load(
        &self,
        spec: &Self::Spec,
        beginning: &Beginning,
    ) -> impl Future<Output = Result<Self::State, String>> + Send;

    /// Encodes the prompts, and begins from the state or with noise. `since` the assignment arrived so much time has
    /// passed.
    ///
    /// # Errors
    /// [`BeginError`]
    fn begin(
        &self,
        assignment: &Assignment<Self::Spec>,
        state: Option<Self::State>,
        since: Duration,
    ) -> Result<Self::Painting, BeginError>;

    /// Takes the next step of each painting, in one batch.
    ///
    /// # Errors
    /// The engine's reason; none of them has then taken a step.
    fn step(&self, batch: &mut [&mut Self::Painting]) -> Result<(), String>;

    /// Makes a preview's file.
    ///
    /// # Errors
    /// Why there is none.
    fn preview(&self, preview: <Self::Painting as Painting>::Preview) -> Result<Bytes, String>;

    /// Decodes a painting without steps left, and writes its file.
    ///
    /// # Errors
    /// Why there is no picture: it is not finite, among others.
    fn finish(&self, painting: &mut Self::Painting) -> Result<Self::Picture, String>;

    /// A picture's end was told: what the cache is to keep of it is handed over. Waits for nothing.
    fn keep(&self, painting: Self::Painting, picture: Self::Picture, expected_quality: Option<f64>);

    /// Loads a model into memory.
    ///
    /// # Errors
    /// Why it cannot.
    fn load_model(&self, model: &ModelId) -> Result<(), String>;

    /// Drops a model from memory.
    fn unload_model(&self, model: &ModelId);
}
