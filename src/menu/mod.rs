//! The plan menu of a model: the ways to paint that are worth choosing from, with measured quality and cost.
//!
//! Plain data: nothing in here knows a tensor, a clock or a queue. `pentimento frontier` measures menus, the
//! scheduler chooses from them, and a worker has `pipelines` turn the chosen option into a step plan.

mod error;
mod estimate;
mod file;
mod offered;
mod unmeasured;

pub use error::MenuFileError;
pub use estimate::Estimate;
pub use file::{MeasuredOption, MenuFile, MenuFor, MenuPoint, MenuStart};
pub use offered::{OfferError, menu_option};
/// An option is data of the engine's that needs nothing of the engine.
pub use pentimento_pipelines::{PlanOption, Sampler, Size};
