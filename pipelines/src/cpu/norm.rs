//! Group norm of channels-last pictures, optionally followed by SiLU, and layer norm.

use candle_core::{Result, Shape, Tensor, bail};

use super::math::{load_part, silu, store_part, sum};
use super::op::{OpResult, OperatorKind, View, apply1};
use super::parallel::{OutputPointer, parallel_items};
use super::simd::{Isa, Kernel, Simd};

/// Pixels per partial sum. The number is fixed, so that the sums do not depend on the number of threads.
const BLOCK: usize = 256;

/// A norm's parameters.
#[derive(Debug)]
pub(crate) struct Norm {
    isa: Isa,
    weight: Vec<f32>,
    bias: Vec<f32>,
    groups: usize,
    eps: f64,
}

impl Norm {
    /// A norm of weight (C,) and bias (C,). `groups` is for group norm; layer norm does not use it.
    pub(crate) fn new(weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Self> {
        Self::on(Isa::best(), weight, bias, groups, eps)
    }

    pub(super) fn on(isa: Isa, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Self> {
        let (weight, bias) = (weight.to_vec1::<f32>()?, bias.to_vec1::<f32>()?);
        if weight.len() != bias.len() || weight.is_empty() || groups == 0 || weight.len() % groups != 0 {
            bail!("norm: {groups} groups of {} channels", weight.len());
        }
        Ok(Self { isa, weight, bias, groups, eps })
    }

    /// Group norm of (B, H, W, C), followed by SiLU if `with_silu`.
    pub(crate) fn group_norm(&self, x: &Tensor, with_silu: bool) -> Result<Tensor> {
        apply1(OperatorKind::GroupNorm, x, |[x]| self.groups(x, with_silu))
    }

    fn groups(&self, x: View, with_silu: bool) -> OpResult {
        let channels = self.weight.len();
        let &[batch, h, w, c] = x.dims else { bail!("group norm: {:?}", x.dims) };
        if c != channels || h * w == 0 {
            bail!("group norm: {:?}, {channels} channels expected", x.dims);
        }
        let blocks = (h * w).div_ceil(BLOCK);
        let block = |item: usize| {
            let from = item % blocks * BLOCK;
            let picture = item / blocks * h * w;
            (picture, (picture + from) * c..(picture + (from + BLOCK).min(h * w)) * c)
        };
        let mut sums = vec![0f32; batch * blocks * 2 * c];
        let shared = OutputPointer(sums.as_mut_ptr());
        let isa = self.isa;
        parallel_items(batch * blocks, 4 * BLOCK * c, |item| {
            let (picture, range) = block(item);
            let base = &x.data[picture * c..(picture + 1) * c];
            let (x, base) = (&x.data[range], base);
            // SAFETY: each item writes its own 2 · c floats of the sums.
            unsafe { isa.run(Moments { x, base, sums: shared.get().add(item * 2 * c) }) };
        });
        let lines: Vec<f32> = (0..batch)
            .flat_map(|b| {
                let base = &x.data[b * h * w * c..][..c];
                self.lines(base, &sums[b * blocks * 2 * c..(b + 1) * blocks * 2 * c], h * w)
            })
            .collect();
        let mut out = Vec::with_capacity(x.data.len());
        let shared = OutputPointer(out.as_mut_ptr());
        parallel_items(batch * blocks, if with_silu { 30 } else { 4 } * BLOCK * c, |item| {
            let (_, range) = block(item);
            let lines = &lines[item / blocks * 2 * c..][..2 * c];
            // SAFETY: each item writes its own range of the capacity.
            unsafe {
                let out = shared.get().add(range.start);
                isa.run(Scale { x: &x.data[range], lines, with_silu, out });
            }
        });
        // SAFETY: the ranges cover the whole output.
        unsafe { out.set_len(x.data.len()) };
        Ok((out, Shape::from(x.dims)))
    }

    /// The coefficients of y = a x + b for each channel of one picture: all a, then all b. `sums` are blocks of the channels'
    /// sums and sums of squares, relative to `base`.
    fn lines(&self, base: &[f32], sums: &[f32], pixels: usize) -> Vec<f32> {
        let channels = base.len();
        let per_group = channels / self.groups;
        let total = |at: usize| sums.chunks(2 * channels).map(|block| f64::from(block[at])).sum::<f64>();
        let n = pixels as f64;
        let mut lines = vec![0.0; 2 * channels];
        for group in 0..self.groups {
            let of_group = group * per_group..(group + 1) * per_group;
            let means: Vec<f64> = of_group.clone().map(|c| f64::from(base[c]) + total(c) / n).collect();
            let mean = means.iter().sum::<f64>() / per_group as f64;
            // Chan's formula: the sum of the channels' own variances and of the squared distances of their means.
            let squares: f64 = of_group
                .clone()
                .zip(&means)
                .map(|(c, m)| total(channels + c) / n - (total(c) / n).powi(2) + (m - mean).powi(2))
                .sum();
            let scale = 1.0 / (squares.max(0.0) / per_group as f64 + self.eps).sqrt();
            for c in of_group {
                let a = f64::from(self.weight[c]) * scale;
                lines[c] = a as f32;
                lines[channels + c] = (f64::from(self.bias[c]) - a * mean) as f32;
            }
        }
        lines
    }

    /// Layer norm over the last dimension.
    pub(crate) fn layer_norm(&self, x: &Tensor) -> Result<Tensor> {
        apply1(OperatorKind::LayerNorm, x, |[x]| {
            let c = self.weight.len();
            if x.dims.last() != Some(&c) {
                bail!("layer norm: {:?}, {c} channels expected", x.dims);
            }
            let mut out = Vec::with_capacity(x.data.len());
            let shared = OutputPointer(out.as_mut_ptr());
            parallel_items(x.data.len() / c, 8 * c, |row| {
                let x = &x.data[row * c..(row + 1) * c];
                // SAFETY: each row writes its own part of the capacity.
                unsafe { self.isa.run(LayerNormRow { norm: self, x, out: shared.get().add(row * c) }) };
            });
            // SAFETY: the rows cover the whole output.
            unsafe { out.set_len(x.data.len()) };
            Ok((out, Shape::from(x.dims)))
        })
    }
}

/// Computes the sums and sums of squares of x - base per channel. `sums` can be written for twice the channels.
struct Moments<'a> {
    x: &'a [f32],
    base: &'a [f32],
    sums: *mut f32,
}

impl Kernel for Moments<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.base.len();
        let mut c = 0;
        // SAFETY: every access is within a row of `channels` floats, from `c` on.
        unsafe {
            while c < channels {
                let left = channels - c;
                if left >= 4 * S::LANES {
                    self.columns::<S, 4>(c, S::LANES);
                    c += 4 * S::LANES;
                } else {
                    self.columns::<S, 1>(c, left.min(S::LANES));
                    c += S::LANES;
                }
            }
        }
    }
}

impl Moments<'_> {
    #[inline(always)]
    unsafe fn columns<S: Simd, const N: usize>(&self, c: usize, lanes: usize) {
        let channels = self.base.len();
        // SAFETY: see `run`.
        unsafe {
            let zero = S::splat(0.0);
            let (mut first, mut second) = ([zero; N], [zero; N]);
            let mut base = [zero; N];
            for (j, base) in base.iter_mut().enumerate() {
                *base = load_part::<S>(self.base.as_ptr().add(c + j * S::LANES), lanes, 0.0);
            }
            for row in self.x.chunks_exact(channels) {
                for j in 0..N {
                    let x = load_part::<S>(row.as_ptr().add(c + j * S::LANES), lanes, 0.0);
                    let d = S::sub(x, base[j]);
                    first[j] = S::add(first[j], d);
                    second[j] = S::fma(d, d, second[j]);
                }
            }
            for j in 0..N {
                let to = self.sums.add(c + j * S::LANES);
                store_part::<S>(to, first[j], lanes);
                store_part::<S>(to.add(channels), second[j], lanes);
            }
        }
    }
}

/// Computes y = a x + b per channel, and SiLU if `with_silu`. `out` can be written for as many floats as `x` has.
struct Scale<'a> {
    x: &'a [f32],
    lines: &'a [f32],
    with_silu: bool,
    out: *mut f32,
}

impl Kernel for Scale<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.lines.len() / 2;
        let (a, b) = self.lines.split_at(channels);
        for (i, row) in self.x.chunks_exact(channels).enumerate() {
            for c in (0..channels).step_by(S::LANES) {
                let n = (channels - c).min(S::LANES);
                // SAFETY: `n` floats from `c` on are within a row of `channels` floats.
                unsafe {
                    let part = |of: &[f32]| load_part::<S>(of.as_ptr().add(c), n, 0.0);
                    let y = S::fma(part(row), part(a), part(b));
                    let y = if self.with_silu { silu::<S>(y) } else { y };
                    store_part::<S>(self.out.add(i * channels + c), y, n);
                }
            }
        }
    }
}

/// Layer norm of one row. `out` can be written for the row.
struct LayerNormRow<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    out: *mut f32,
}

impl Kernel for LayerNormRow<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.x.len();
        let part = |of: &[f32], c: usize, rest: f32| {
            // SAFETY: `n - c` floats are left in the row.
            unsafe { load_part::<S>(of.as_ptr().add(c), n - c, rest) }
        };
        // SAFETY: `store_part` writes only the floats that are left in the row.
        unsafe {
            let mut total = S::splat(0.0);
            for c in (0..n).step_by(S::LANES) {
                total = S::add(total, part(self.x, c, 0.0));
            }
            let mean = sum::<S>(total) / n as f32;
            let mut squares = S::splat(0.0);
            for c in (0..n).step_by(S::LANES) {
                let d = S::sub(part(self.x, c, mean), S::splat(mean));
                squares = S::fma(d, d, squares);
            }
            let variance = f64::from(sum::<S>(squares)) / n as f64;
            let scale = S::splat((1.0 / (variance + self.norm.eps).sqrt()) as f32);
            for c in (0..n).step_by(S::LANES) {
                let d = S::mul(S::sub(part(self.x, c, mean), S::splat(mean)), scale);
                let y = S::fma(d, part(&self.norm.weight, c, 0.0), part(&self.norm.bias, c, 0.0));
                store_part::<S>(self.out.add(c), y, n - c);
            }
        }
    }
}
