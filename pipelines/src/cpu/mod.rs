//! The CPU's own operators, for f32 tensors and weights of either [`Precision`](crate::Precision); CUDA, Metal and other types
//! keep candle's. `layers.rs` decides which.
//!
//! A denoising step on candle's CPU operators takes three to six times as long as it need. What each file replaces:
//!
//! | file | instead of | what it does otherwise |
//! |---|---|---|
//! | `conv.rs` | candle's im2col and matmul | a product of *gathered* rows: each kernel position finds its row of channels in place, nothing is copied together; resizing, bias, time embedding and residual are part of it |
//! | `linear.rs` | matmul, then bias, then residual | the same product with one kernel position |
//! | `norm.rs` | some ten elementwise operators | group norm and SiLU in two passes, layer norm in one |
//! | `attention.rs` | head transposes, softmax, two batched matmuls | reads the heads where the projections left them, a few queries at a time in cache; GEGLU |
//! | `gemm.rs`, `tile.rs` | the `gemm` crate | the product itself: weights packed once at load, register tiles of 14 × 32 sums (AVX-512) |
//! | `amx.rs` | | the product of factors rounded to bf16, on the matrix unit |
//! | `simd.rs`, `math.rs` | | three instruction sets behind one trait, chosen once; exp, SiLU, GELU |
//! | `parallel.rs` | a fork and join per operator | helpers that spin between the operators of one network call |
//! | `op.rs` | | slices as candle operators; how long each kind took |
//!
//! Pictures lie channels last in memory, so that a pixel's channels are one row of a product. An element's sum has one fixed
//! order, so that results depend neither on the batch nor on the number of threads.
//!
//! What it gains is printed by `pipelines/benches/compare.py`, which also says where a step's time goes (docs/benchmarks/). With candle's
//! operators of one kind alone, a storybook picture on one / two threads takes so many times as long: convolutions 3.7 / 5.4, linear layers
//! 1.4 / 2.3, group norm 1.3 / 1.6, GEGLU 1.3 / 1.6, attention 1.1 / 1.3, layer norm 1.02 / 1.16.
//!
//! **bf16.** With a matrix unit (AMX) weights are kept in bf16 and inputs are rounded as they are gathered; all sums are f32. Any other
//! processor multiplies the same rounded factors, kept as f32, with the f32 tiles: the same pictures but for the order of sums, and
//! nothing gained. AVX-512's own bf16 product is not used: on the processors that have AMX it is slower than f32.
//!
//! **When it may go:** when candle's CPU operators are within 1.2 times of these in that bench, or when serving on CPUs is no
//! longer wanted. Delete this folder and the `Own` variants of `layers.rs`; nothing else knows of it. `amx.rs` alone may go when
//! that bench no longer shows a gain of bf16; it is one arm of two `match`es in `gemm.rs`, and of `Isa`.
#![allow(unsafe_code)] // every block with its proof

#[cfg(target_arch = "x86_64")]
mod amx;
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
mod tile;

pub(crate) use self::attention::{attention, geglu};
pub(crate) use self::conv::{Conv, Geometry};
pub(crate) use self::linear::Linear;
pub(crate) use self::norm::Norm;
pub(crate) use self::op::take_profile;
pub use self::op::{Kind, Spent};
pub use self::parallel::HelperThreads;
pub(crate) use self::parallel::with_helpers;
pub(crate) use self::simd::peak_flops;
