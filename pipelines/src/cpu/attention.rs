//! Attention, and GEGLU.
//!
//! Attention reads the projections as they are, with the heads side by side in a row. It computes scores, their softmax and
//! the output for a few queries at a time, so that the scores stay in the processor's cache.

use candle_core::{Result, Shape, Tensor, bail};

use super::math::{exp, gelu, largest, load_part, store_part, sum};
use super::op::{OpResult, OperatorKind, View, apply1, apply3, count};
use super::parallel::{OutputPointer, parallel, parallel_items, threads};
use super::product::even;
use super::simd::{Isa, Kernel, Simd};
use super::tile::{MOST_ROWS, RowPointers, Tile, TileStart};

/// softmax(q kᵀ / √width) v for each head: (B, T, C), (B, S, C), (B, S, C) -> (B, T, C). If `causal`, a query attends only
/// to keys up to its own position.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    attention_on(Isa::best(), [q, k, v], heads, causal)
}

pub(super) fn attention_on(isa: Isa, qkv: [&Tensor; 3], heads: usize, causal: bool) -> Result<Tensor> {
    apply3(OperatorKind::Attention, qkv, |[q, k, v]| attend(isa, [q, k, v], heads, causal))
}

fn attend(isa: Isa, [q, k, v]: [View; 3], heads: usize, causal: bool) -> OpResult {
    let (&[batch, queries, width], &[b, keys, w]) = (q.dims, k.dims) else {
        bail!("attention: {:?} to {:?}", q.dims, k.dims);
    };
    if b != batch || w != width || k.dims != v.dims || heads == 0 || width % heads != 0 || keys == 0 {
        bail!("attention of {heads} heads: {:?} to {:?} and {:?}", q.dims, k.dims, v.dims);
    }
    if q.data.is_empty() {
        return Ok((Vec::new(), Shape::from(q.dims)));
    }
    let mut out = Vec::with_capacity(q.data.len());
    let shared = OutputPointer(out.as_mut_ptr());
    let cost = 4 * batch * queries * keys * width;
    count(OperatorKind::Attention, cost);
    // A task has one head. If there are fewer heads than threads, the queries are divided too, although then each task
    // packs the keys again.
    let parts = threads(cost).div_ceil((batch * heads).max(1)).min(queries.max(1));
    let each = cost / (batch * heads * parts).max(1);
    parallel_items(batch * heads * parts, each, |item| {
        let (head, part) = (item / parts, item % parts);
        let (picture, column) = (head / heads, head % heads * (width / heads));
        let queries = queries * part / parts..queries * (part + 1) / parts;
        let of = |view: View, rows: usize| view.data[picture * rows * width + column..].as_ptr();
        // SAFETY: each item writes its own columns of its own rows. The pointers are at the head's first feature of the
        // picture's first row.
        unsafe {
            isa.run(HeadKernel {
                q: of(q, q.dims[1]),
                k: of(k, keys),
                v: of(v, keys),
                out: shared.get().add(picture * q.dims[1] * width + column),
                queries,
                keys,
                stride: width,
                width: width / heads,
                causal,
            });
        }
    });
    // SAFETY: the items together wrote the whole output.
    unsafe { out.set_len(q.data.len()) };
    Ok((out, Shape::from(q.dims)))
}

/// Attention of some queries of one head of one picture. Rows are `stride` floats apart, and `width` of them are the head's.
struct HeadKernel {
    q: *const f32,
    k: *const f32,
    v: *const f32,
    out: *mut f32,
    queries: std::ops::Range<usize>,
    keys: usize,
    stride: usize,
    width: usize,
    causal: bool,
}

impl Kernel for HeadKernel {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let panel = 2 * S::LANES;
        let padded = self.keys.next_multiple_of(panel);
        // SAFETY: the promises of the fields. `scores` has `padded` floats per row.
        unsafe {
            let keys = pack(self.width, self.keys, panel, |i, j| *self.k.add(j * self.stride + i));
            let values = pack(self.keys, self.width, panel, |i, j| *self.v.add(i * self.stride + j));
            let mut scores = vec![0f32; S::ROWS * padded];
            for rows in even(self.queries.clone(), S::ROWS) {
                let pointers = |from: *const f32, stride: usize, first: usize| {
                    let mut pointers: RowPointers = [std::ptr::null(); MOST_ROWS];
                    for (i, pointer) in pointers[..rows.len()].iter_mut().enumerate() {
                        *pointer = from.add((first + i) * stride);
                    }
                    pointers
                };
                let queries = pointers(self.q, self.stride, rows.start);
                self.product::<S>(
                    &queries,
                    rows.len(),
                    self.width,
                    &keys,
                    scores.as_mut_ptr(),
                    padded,
                    self.keys,
                );
                let mut totals = [0f32; MOST_ROWS];
                for (i, row) in rows.clone().enumerate() {
                    let seen = if self.causal { self.keys.min(row + 1) } else { self.keys };
                    totals[i] = self.shares::<S>(&mut scores[i * padded..(i + 1) * padded], seen);
                }
                let shares = pointers(scores.as_ptr(), padded, 0);
                let out = self.out.add(rows.start * self.stride);
                self.product::<S>(&shares, rows.len(), self.keys, &values, out, self.stride, self.width);
                for (i, total) in totals[..rows.len()].iter().enumerate() {
                    self.scale::<S>(out.add(i * self.stride), 1.0 / total);
                }
            }
        }
    }
}

impl HeadKernel {
    /// Multiplies `rows` × `len` by packed `len` × `columns`.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    unsafe fn product<S: Simd>(
        &self,
        pointers: &RowPointers,
        rows: usize,
        len: usize,
        packed: &[f32],
        out: *mut f32,
        stride: usize,
        columns: usize,
    ) {
        let panel = 2 * S::LANES;
        for column in (0..columns).step_by(panel) {
            // SAFETY: the caller's promise. `packed` has whole panels.
            unsafe {
                S::call(Tile {
                    taps: std::slice::from_ref(pointers),
                    rows,
                    len,
                    b: packed[column * len..].as_ptr(),
                    start: TileStart::Zero,
                    add: None,
                    out: out.add(column),
                    stride,
                    columns: (columns - column).min(panel),
                });
            }
        }
    }

    /// Replaces the first `seen` scores by e^(score - largest) and the others by zero. Returns their sum. The division by the
    /// sum comes later, because the output's `width` numbers are fewer than the `keys` scores.
    #[inline(always)]
    unsafe fn shares<S: Simd>(&self, scores: &mut [f32], seen: usize) -> f32 {
        scores[seen..].fill(0.0);
        let p = scores.as_mut_ptr();
        // SAFETY: `seen` is within the scores.
        unsafe {
            let scale = S::splat(1.0 / (self.width as f32).sqrt());
            let mut most = S::splat(f32::NEG_INFINITY);
            for c in (0..seen).step_by(S::LANES) {
                most = S::max(most, load_part::<S>(p.add(c), seen - c, f32::NEG_INFINITY));
            }
            let most = S::mul(S::splat(largest::<S>(most)), scale);
            let mut total = 0f32;
            let mut whole = S::splat(0.0);
            for c in (0..seen).step_by(S::LANES) {
                let score = load_part::<S>(p.add(c), seen - c, 0.0);
                let share = exp::<S>(S::sub(S::mul(score, scale), most));
                store_part::<S>(p.add(c), share, seen - c);
                if seen - c >= S::LANES {
                    whole = S::add(whole, share);
                } else {
                    total = scores[c..seen].iter().sum();
                }
            }
            total + sum::<S>(whole)
        }
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, row: *mut f32, by: f32) {
        for c in (0..self.width).step_by(S::LANES) {
            // SAFETY: `row` has `width` floats.
            unsafe {
                let scaled = S::mul(load_part::<S>(row.add(c), self.width - c, 0.0), S::splat(by));
                store_part::<S>(row.add(c), scaled, self.width - c);
            }
        }
    }
}

/// Packs `len` × `columns` values into panels.
#[inline(always)]
fn pack(len: usize, columns: usize, panel: usize, at: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut packed = vec![0f32; len * columns.next_multiple_of(panel)];
    for (first, panel_of) in (0..columns).step_by(panel).zip(packed.chunks_exact_mut(len * panel)) {
        for (i, row) in panel_of.chunks_exact_mut(panel).enumerate() {
            for (j, value) in row.iter_mut().take(columns - first).enumerate() {
                *value = at(i, first + j);
            }
        }
    }
    packed
}

/// (…, 2 C) -> (…, C): the first half times the GELU of the second.
pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    geglu_on(Isa::best(), x)
}

pub(super) fn geglu_on(isa: Isa, x: &Tensor) -> Result<Tensor> {
    apply1(OperatorKind::Geglu, x, |[x]| {
        let Some((&both, outside)) = x.dims.split_last().filter(|(both, _)| *both % 2 == 0 && **both > 0)
        else {
            bail!("geglu: {:?}", x.dims);
        };
        let (half, rows) = (both / 2, x.data.len() / both);
        let mut out = Vec::with_capacity(rows * half);
        let shared = OutputPointer(out.as_mut_ptr());
        let parts = threads(40 * rows * half).min(rows.max(1));
        parallel(parts, |part| {
            let rows = rows * part / parts..rows * (part + 1) / parts;
            let from = &x.data[rows.start * both..rows.end * both];
            // SAFETY: each part writes its own rows.
            unsafe { isa.run(GegluKernel { x: from, half, out: shared.get().add(rows.start * half) }) };
        });
        // SAFETY: the parts together wrote the whole output.
        unsafe { out.set_len(rows * half) };
        Ok((out, Shape::from([outside, &[half]].concat())))
    })
}

/// GEGLU of rows of 2 · `half` floats. `out` can be written for half as many floats as `x` has.
struct GegluKernel<'a> {
    x: &'a [f32],
    half: usize,
    out: *mut f32,
}

impl Kernel for GegluKernel<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, row) in self.x.chunks_exact(2 * self.half).enumerate() {
            let (value, gate) = row.split_at(self.half);
            for c in (0..self.half).step_by(S::LANES) {
                let n = self.half - c;
                // SAFETY: `n` floats are left in each half.
                unsafe {
                    let part = |of: &[f32]| load_part::<S>(of.as_ptr().add(c), n, 0.0);
                    let y = S::mul(part(value), gelu::<S>(part(gate)));
                    store_part::<S>(self.out.add(i * self.half + c), y, n);
                }
            }
        }
    }
}
