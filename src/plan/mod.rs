//! How many steps each picture gets: pure functions of what waits, what is being painted and what it is worth.
//!
//! But for [`Planner`], nothing in here knows a queue or a clock: time is handed in. docs/planning.md says what is
//! decided how.

mod adaptive;
mod admission;
mod arrivals;
mod deadlines;
mod fixed;
mod frontier;
mod per_model;
mod planner;
mod policy;
mod policy_config;
#[cfg(test)]
mod simulation;
mod speeds;
mod step_time;
mod tier;
mod work;

pub use admission::{Admission, MAX_WAIT, Verdict};
pub use arrivals::{Arrivals, Callers};
pub use frontier::{Curve, Frontier, FrontierError, FrontierFile, FrontierFor, Point};
pub use planner::{ModelOffer, Planner, Seen};
pub use policy::{Expected, Load, PlanPolicy, Plans};
pub use policy_config::{AdaptiveConfig, FixedConfig, PlanPolicyConfig, PlanPolicyError};
use speeds::Speeds;
pub use step_time::{Ewma, StepTime};
pub use tier::{Asked, Offer, Terms, TermsError, Tier};
pub use work::{Progress, Work, whole};
