//! The CPU's own operators.
#![allow(unsafe_code)] // every block with its proof

mod attention;
mod conv;
mod gemm;
mod linear;
mod math;
mod norm;
mod op;
mod parallel;
mod simd;
#[cfg(test)]
mod tests;

pub(crate) use self::attention::{attention, geglu};
pub(crate) use self::conv::{Conv, Geometry};
pub(crate) use self::linear::Linear;
pub(crate) use self::norm::Norm;
pub(crate) use self::op::take_profile;
pub use self::op::{Kind, Spent};
pub(crate) use self::parallel::with_helpers;
pub(crate) use self::simd::peak_flops;
