//! The matrix product of every layer: `out = bias + Σ over taps of input rows × packed weights`.
//!
//! A linear layer has one tap. A convolution has one tap per kernel position, which reads its rows of channels at other
//! pixels. The input is not copied into a matrix first (no im2col). Every element's sum has a fixed order, which does not
//! depend on the tile, the task or the batch.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::op::{OperatorKind, count};
use super::parallel::{OutputPointer, parallel, threads};
use super::product::{Addend, CHUNK, Layout, MAX_TAPS, Product, RESIDENT, RowSource, even};
use super::simd::{Isa, Kernel, Simd};
use super::tile::{MOST_ROWS, RowPointers, Tile, TileStart};
use crate::precision::Precision;

/// Weights in the order in which the tiles read them.
#[derive(Debug)]
enum PackedWeights {
    /// Chunk of input channels, panel of output channels, tap, input channel, output channel within the panel.
    F32(Vec<f32>),
    #[cfg(target_arch = "x86_64")]
    Bf16(amx::AmxWeights),
}

/// A layer's packed weights and bias.
#[derive(Debug)]
pub(super) struct Packed {
    kind: OperatorKind,
    precision: Precision,
    layout: Layout,
    weights: PackedWeights,
}

impl Packed {
    /// Packs weights. `weight` returns the value at (output channel, tap, input channel).
    pub(super) fn new(
        kind: OperatorKind,
        (isa, precision): (Isa, Precision),
        dims: (usize, usize, usize),
        weight: impl Fn(usize, usize, usize) -> f32,
        bias: Option<&[f32]>,
    ) -> Self {
        let layout = Layout::new(isa, dims, bias);
        let weights = match precision {
            Precision::F32 => PackedWeights::F32(floats(isa.panel(), dims, weight)),
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 if isa == Isa::Amx => PackedWeights::Bf16(amx::AmxWeights::new(dims, weight)),
            Precision::Bf16 => {
                let rounded = |c, tap, k| bf16::from_f32(weight(c, tap, k)).to_f32();
                PackedWeights::F32(floats(isa.panel(), dims, rounded))
            }
        };
        Self { kind, precision, layout, weights }
    }

    /// Input channels.
    pub(super) fn inner(&self) -> usize {
        self.layout.inner
    }

    /// Output channels.
    pub(super) fn outer(&self) -> usize {
        self.layout.outer
    }

    /// The input as [`Self::multiply`] takes it: rounded to bf16 if that is the precision and the tiles do not round.
    pub(super) fn input<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        match (self.precision, &self.weights) {
            (Precision::Bf16, PackedWeights::F32(_)) => {
                x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
            }
            _ => x.into(),
        }
    }

    /// Rows of a tile.
    fn tile_rows(&self) -> usize {
        match self.weights {
            PackedWeights::F32(_) => self.layout.isa.rows(),
            #[cfg(target_arch = "x86_64")]
            PackedWeights::Bf16(_) => amx::TILE,
        }
    }

    /// Multiplies `rows` rows of `source` and adds `add`. Returns the output row by row.
    ///
    /// # Panics
    /// If `add` does not have the output's size.
    pub(super) fn multiply<Src: RowSource>(
        &self,
        source: Src,
        add: Option<Addend<'_>>,
        rows: usize,
    ) -> Vec<f32> {
        let layout = &self.layout;
        let len = rows * layout.outer;
        if let Some(add) = add {
            let wanted = rows.div_ceil(add.rows) * layout.outer;
            assert_eq!(add.data.len(), wanted, "floats added to {rows} rows");
        }
        let mut out = Vec::with_capacity(len);
        if len > 0 {
            let product = &Product { layout, source, add };
            let pointer = OutputPointer(out.as_mut_ptr());
            let cost = 2 * len * layout.taps * layout.inner;
            count(self.kind, cost);
            let wanted = threads(cost);
            let by_rows = wanted.min(rows.div_ceil(self.tile_rows()));
            let by_panels = wanted.div_ceil(by_rows).min(layout.panels());
            let parts = |n: usize, parts: usize, i: usize| n * i / parts..n * (i + 1) / parts;
            parallel(by_rows * by_panels, |task| {
                let rows = parts(rows, by_rows, task / by_panels);
                let panels = parts(layout.panels(), by_panels, task % by_panels);
                let out = pointer.get();
                // SAFETY: tasks write distinct parts of the capacity just reserved.
                unsafe {
                    match &self.weights {
                        PackedWeights::F32(weights) => {
                            layout.isa.run(F32Task { product, weights, rows, panels, out });
                        }
                        #[cfg(target_arch = "x86_64")]
                        PackedWeights::Bf16(weights) => {
                            layout.isa.run(amx::AmxTask { product, weights, rows, panels, out });
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

/// Packs weights as [`PackedWeights::F32`].
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

/// One thread's part of a product with f32 weights.
struct F32Task<'a, Src> {
    product: &'a Product<'a, Src>,
    weights: &'a [f32],
    rows: Range<usize>,
    panels: Range<usize>,
    out: *mut f32,
}

impl<Src: RowSource> Kernel for F32Task<'_, Src> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let layout = self.product.layout;
        let panel_bytes = 4 * layout.taps * layout.inner.min(CHUNK) * 2 * S::LANES;
        let mut taps = [[std::ptr::null(); MOST_ROWS]; MAX_TAPS];
        for panels in even(self.panels.clone(), (RESIDENT / panel_bytes).max(1)) {
            for from in (0..layout.inner).step_by(CHUNK) {
                let chunk = from..layout.inner.min(from + CHUNK);
                for rows in even(self.rows.clone(), S::ROWS) {
                    for (tap, pointers) in taps[..layout.taps].iter_mut().enumerate() {
                        self.product.source.point(tap, rows.clone(), pointers);
                        pointers[..rows.len()].iter_mut().for_each(|p| *p = p.wrapping_add(from));
                    }
                    for panel in panels.clone() {
                        // SAFETY: the pointers are the source's, the output's and the layout's own.
                        unsafe { self.tile::<S>(&taps[..layout.taps], &chunk, &rows, panel) };
                    }
                }
            }
        }
    }
}

impl<Src: RowSource> F32Task<'_, Src> {
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        taps: &[RowPointers],
        chunk: &Range<usize>,
        rows: &Range<usize>,
        panel: usize,
    ) {
        let layout = self.product.layout;
        let column = panel * 2 * S::LANES;
        let last = chunk.end == layout.inner;
        let before = chunk.start * layout.taps * layout.padded_outer();
        let add = self.product.add.filter(|_| last).map(|add| {
            let mut pointers = [std::ptr::null(); MOST_ROWS];
            for (pointer, row) in pointers.iter_mut().zip(rows.clone()) {
                *pointer = add.data[row / add.rows * layout.outer + column..].as_ptr();
            }
            pointers
        });
        // SAFETY: `multiply` reserved rows × outer floats; the column lies within; the bias is padded.
        unsafe {
            S::call(Tile {
                taps,
                rows: rows.len(),
                len: chunk.len(),
                b: self.weights[before + column * layout.taps * chunk.len()..].as_ptr(),
                start: if chunk.start == 0 { TileStart::Row(layout.bias(column)) } else { TileStart::Output },
                add,
                out: self.out.add(rows.start * layout.outer + column),
                stride: layout.outer,
                columns: (layout.outer - column).min(2 * S::LANES),
            });
        }
    }
}
