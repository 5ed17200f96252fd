//! The one matrix product behind every layer: `out = bias + Σ over taps of gathered rows × packed weights`.
//!
//! A linear layer has one tap; a convolution has one per kernel position, which finds its row of channels at
//! another pixel. Nothing is copied together beforehand (no im2col). An element's sum runs in one fixed order,
//! whatever tile, task or batch it falls into.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::op::{Kind, count};
use super::parallel::{Shared, parallel, threads};
use super::simd::{Isa, Kernel, Simd};
use super::tile::{MOST_ROWS, RowPointers, Start, Tile};
use crate::precision::Precision;

/// Taps of a 3×3 kernel.
const MOST_TAPS: usize = 9;
/// Input channels per pass, so that a panel's weights stay in the second-level cache.
pub(super) const CHUNK: usize = 256;
/// Bytes of weights that one sweep over the rows keeps there.
pub(super) const RESIDENT: usize = 1 << 20;

/// `n` into equal parts of at most `most`, differing by one.
pub(super) fn even(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (n, from) = (range.len(), range.start);
    let parts = n.div_ceil(most.max(1)).max(1);
    (0..parts).map(move |i| from + n * i / parts..from + n * (i + 1) / parts)
}

/// Weights in the order in which the tiles read them.
#[derive(Debug)]
enum Weights {
    /// Chunk of input channels, panel of output channels, tap, input channel, output channel within the panel.
    F32(Vec<f32>),
    #[cfg(target_arch = "x86_64")]
    Bf16(amx::Weights),
}

/// Weights and bias.
#[derive(Debug)]
pub(super) struct Packed {
    kind: Kind,
    precision: Precision,
    pub(super) isa: Isa,
    pub(super) taps: usize,
    pub(super) inner: usize,
    pub(super) outer: usize,
    weights: Weights,
    /// Padded to whole panels.
    bias: Vec<f32>,
}

impl Packed {
    /// `weight` says the value at (output channel, tap, input channel).
    pub(super) fn new(
        kind: Kind,
        (isa, precision): (Isa, Precision),
        (outer, taps, inner): (usize, usize, usize),
        weight: impl Fn(usize, usize, usize) -> f32,
        bias: Option<&[f32]>,
    ) -> Self {
        assert!(
            outer > 0 && inner > 0 && (1..=MOST_TAPS).contains(&taps),
            "{outer} × {taps} × {inner} weights"
        );
        let dims = (outer, taps, inner);
        let weights = match precision {
            Precision::F32 => Weights::F32(floats(isa.panel(), dims, weight)),
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 if isa == Isa::Amx => Weights::Bf16(amx::Weights::new(dims, weight)),
            Precision::Bf16 => {
                let rounded = |c, tap, k| bf16::from_f32(weight(c, tap, k)).to_f32();
                Weights::F32(floats(isa.panel(), dims, rounded))
            }
        };
        let mut padded_bias = vec![0.0; outer.next_multiple_of(isa.panel())];
        if let Some(bias) = bias {
            padded_bias[..outer].copy_from_slice(bias);
        }
        Self { kind, precision, isa, taps, inner, outer, weights, bias: padded_bias }
    }

    pub(super) fn panels(&self) -> usize {
        self.bias.len() / self.isa.panel()
    }

    /// The bias from a column on, good for a whole panel where the column begins one.
    pub(super) fn bias(&self, column: usize) -> *const f32 {
        self.bias[column..].as_ptr()
    }

    /// The input as a product is to be given it.
    pub(super) fn input<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        match (self.precision, &self.weights) {
            // Where tiles do not round it themselves.
            (Precision::Bf16, Weights::F32(_)) => x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
            _ => x.into(),
        }
    }

    /// Rows of a tile.
    fn rows(&self) -> usize {
        match self.weights {
            Weights::F32(_) => self.isa.rows(),
            #[cfg(target_arch = "x86_64")]
            Weights::Bf16(_) => amx::TILE,
        }
    }
}

/// See [`Weights::F32`].
fn floats(
    panel: usize,
    (outer, taps, inner): (usize, usize, usize),
    weight: impl Fn(usize, usize, usize) -> f32,
) -> Vec<f32> {
    let mut data = Vec::with_capacity(outer.next_multiple_of(panel) * taps * inner);
    for from in (0..inner).step_by(CHUNK) {
        for column in (0..outer).step_by(panel) {
            for tap in 0..taps {
                for k in from..inner.min(from + CHUNK) {
                    let value = |c| if c < outer { weight(c, tap, k) } else { 0.0 };
                    data.extend((column..column + panel).map(value));
                }
            }
        }
    }
    data
}

/// Where a product's rows of input lie.
pub(super) trait Source: Sync {
    /// Points to the input rows that this tap adds to output rows `rows`, each good for [`Packed::inner`] reads.
    fn point(&self, tap: usize, rows: Range<usize>, pointers: &mut [*const f32]);
}

/// Rows that lie one after another.
pub(super) struct Dense<'a> {
    pub(super) data: &'a [f32],
    pub(super) width: usize,
}

impl Source for Dense<'_> {
    #[inline(always)]
    fn point(&self, _: usize, rows: Range<usize>, pointers: &mut [*const f32]) {
        for (pointer, row) in pointers.iter_mut().zip(rows) {
            *pointer = self.data[row * self.width..(row + 1) * self.width].as_ptr();
        }
    }
}

/// What is added to the product: row i / `rows` of `data`, as wide as the output.
#[derive(Clone, Copy)]
pub(super) struct Addend<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
}

/// One product, all of it.
pub(super) struct Product<'a, Src> {
    pub(super) packed: &'a Packed,
    pub(super) source: Src,
    pub(super) add: Option<Addend<'a>>,
    pub(super) rows: usize,
}

impl<Src: Source> Product<'_, Src> {
    /// The product, row after row.
    pub(super) fn compute(&self) -> Vec<f32> {
        let packed = self.packed;
        let len = self.rows * packed.outer;
        if let Some(add) = self.add {
            let wanted = self.rows.div_ceil(add.rows) * packed.outer;
            assert_eq!(add.data.len(), wanted, "floats added to {} rows", self.rows);
        }
        let mut out = Vec::with_capacity(len);
        if len > 0 {
            let shared = Shared(out.as_mut_ptr());
            let cost = 2 * len * packed.taps * packed.inner;
            count(packed.kind, cost);
            let wanted = threads(cost);
            let by_rows = wanted.min(self.rows.div_ceil(packed.rows()));
            let by_panels = wanted.div_ceil(by_rows).min(packed.panels());
            let parts = |n: usize, parts: usize, i: usize| n * i / parts..n * (i + 1) / parts;
            parallel(by_rows * by_panels, |task| {
                let rows = parts(self.rows, by_rows, task / by_panels);
                let panels = parts(packed.panels(), by_panels, task % by_panels);
                let (product, out) = (self, shared.get());
                // SAFETY: tasks write distinct parts of the capacity just reserved.
                unsafe {
                    match &packed.weights {
                        Weights::F32(weights) => packed.isa.run(Task { product, weights, rows, panels, out }),
                        #[cfg(target_arch = "x86_64")]
                        Weights::Bf16(weights) => {
                            packed.isa.run(amx::Task { product, weights, rows, panels, out })
                        }
                    }
                }
            });
        }
        // SAFETY: the tasks together wrote every row and column.
        unsafe { out.set_len(len) };
        out
    }
}

/// One thread's part of a product.
struct Task<'a, Src> {
    product: &'a Product<'a, Src>,
    weights: &'a [f32],
    rows: Range<usize>,
    panels: Range<usize>,
    out: *mut f32,
}

impl<Src: Source> Kernel for Task<'_, Src> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let packed = self.product.packed;
        let panel_bytes = 4 * packed.taps * packed.inner.min(CHUNK) * 2 * S::LANES;
        let mut taps = [[std::ptr::null(); MOST_ROWS]; MOST_TAPS];
        for panels in even(self.panels.clone(), (RESIDENT / panel_bytes).max(1)) {
            for from in (0..packed.inner).step_by(CHUNK) {
                let chunk = from..packed.inner.min(from + CHUNK);
                for rows in even(self.rows.clone(), S::ROWS) {
                    for (tap, pointers) in taps[..packed.taps].iter_mut().enumerate() {
                        self.product.source.point(tap, rows.clone(), pointers);
                        pointers[..rows.len()].iter_mut().for_each(|p| *p = p.wrapping_add(from));
                    }
                    for panel in panels.clone() {
                        // SAFETY: the pointers are the source's, the output's and `packed`'s own.
                        unsafe { self.tile::<S>(&taps[..packed.taps], &chunk, &rows, panel) };
                    }
                }
            }
        }
    }
}

impl<Src: Source> Task<'_, Src> {
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        taps: &[RowPointers],
        chunk: &Range<usize>,
        rows: &Range<usize>,
        panel: usize,
    ) {
        let packed = self.product.packed;
        let column = panel * 2 * S::LANES;
        let last = chunk.end == packed.inner;
        let before = chunk.start * packed.taps * packed.bias.len();
        let add = self.product.add.filter(|_| last).map(|add| {
            let mut pointers = [std::ptr::null(); MOST_ROWS];
            for (pointer, row) in pointers.iter_mut().zip(rows.clone()) {
                *pointer = add.data[row / add.rows * packed.outer + column..].as_ptr();
            }
            pointers
        });
        // SAFETY: `compute` reserved rows × outer floats; the column lies within; the bias is padded.
        unsafe {
            S::call(Tile {
                taps,
                rows: rows.len(),
                len: chunk.len(),
                b: self.weights[before + column * packed.taps * chunk.len()..].as_ptr(),
                start: if chunk.start == 0 { Start::Row(packed.bias(column)) } else { Start::Output },
                add,
                out: self.out.add(rows.start * packed.outer + column),
                stride: packed.outer,
                columns: (packed.outer - column).min(2 * S::LANES),
            });
        }
    }
}
