//! Our own CPU operators, for f32 tensors and weights of either [`Precision`](crate::Precision). CUDA, Metal and other types
//! use candle's operators. `layers.rs` chooses between them.
//!
//! A denoising step with candle's CPU operators takes three to six times as long. The files:
//!
//! | file | replaces | how |
//! |---|---|---|
//! | `conv.rs` | candle's im2col and matmul | a product of *gathered* rows: each kernel position reads its rows of channels in place, without copying them into a matrix; it includes resizing, bias, time embedding and residual |
//! | `linear.rs` | matmul, then bias, then residual | the same product with one kernel position |
//! | `norm.rs` | some ten elementwise operators | group norm and SiLU in two passes, layer norm in one |
//! | `attention.rs` | head transposes, softmax, two batched matmuls | reads the heads as the projections wrote them, and keeps the scores of a few queries in cache; GEGLU |
//! | `gemm.rs`, `product.rs`, `tile.rs` | the `gemm` crate | the product: weights packed when they are loaded, register tiles of 14 × 32 sums (AVX-512) |
//! | `amx.rs` | | the product of factors rounded to bf16, on the matrix unit |
//! | `simd.rs`, `features.rs`, `math.rs` | | three instruction sets behind one trait; their detection; exp, SiLU, GELU |
//! | `parallel.rs` | a fork and join per operator | helper threads that spin between the operators of one network call |
//! | `op.rs` | | functions of slices as candle operators; profiles |
//!
//! Pictures have their channels last in memory, so that a pixel's channels are one row of a product. An element's sum has a
//! fixed order, so that results depend neither on the batch nor on the number of threads.
//!
//! `pipelines/benches/compare.py` measures the gain and shows where a step's time goes (docs/benchmarks/). If one kind of
//! operators is candle's, a storybook picture takes so many times as long on one / two threads: convolutions 3.7 / 5.4,
//! linear layers 1.4 / 2.3, group norm 1.3 / 1.6, GEGLU 1.3 / 1.6, attention 1.1 / 1.3, layer norm 1.02 / 1.16.
//!
//! **bf16.** On a processor with a matrix unit (AMX) weights are stored in bf16, inputs are rounded when they are gathered,
//! and all sums are f32. On other processors the f32 tiles multiply the same rounded factors, stored as f32. The pictures are
//! then the same except for the order of sums, but not faster. AVX-512's bf16 product is not used, because on processors with
//! AMX it is slower than f32.
//!
//! **When to remove it.** This folder can be removed when candle's CPU operators take at most 1.2 times as long in that bench,
//! or when serving on CPUs is not wanted any more. Then delete it and the `Own` variants in `layers.rs`. `amx.rs` can be
//! removed when that bench shows no gain of bf16. It has one arm in two `match`es of `gemm.rs`, and one variant of `Isa`.
#![allow(unsafe_code)] // every unsafe block has a proof

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod conv;
#[cfg(target_arch = "x86_64")]
mod features;
mod gemm;
mod linear;
mod math;
mod norm;
mod op;
mod parallel;
mod product;
mod simd;
#[cfg(test)]
mod tests;
mod tile;

pub(crate) use self::attention::{attention, geglu};
pub(crate) use self::conv::{Conv, Geometry};
pub(crate) use self::linear::PackedLinear;
pub(crate) use self::norm::Norm;
pub(crate) use self::op::take_profile;
pub use self::op::{OperatorKind, OperatorProfile};
pub use self::parallel::HelperThreads;
pub(crate) use self::parallel::with_helpers;
pub(crate) use self::simd::peak_flops;
