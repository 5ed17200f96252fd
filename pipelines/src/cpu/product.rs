//! What a matrix product consists of, apart from its weights: sizes, bias, input rows and addend. `gemm.rs` multiplies it.

use std::ops::Range;

use super::simd::Isa;

/// The most taps: those of a 3×3 kernel.
pub(super) const MAX_TAPS: usize = 9;
/// Input channels per pass. A panel's weights for so many channels fit into the second-level cache.
pub(super) const CHUNK: usize = 256;
/// Bytes of weights that one pass over the rows keeps in the second-level cache.
pub(super) const RESIDENT: usize = 1 << 20;

/// Divides `range` into the fewest parts of at most `max` elements. Their lengths differ by at most one.
pub(super) fn even(range: Range<usize>, max: usize) -> impl Iterator<Item = Range<usize>> {
    let (n, from) = (range.len(), range.start);
    let parts = n.div_ceil(max.max(1)).max(1);
    (0..parts).map(move |i| from + n * i / parts..from + n * (i + 1) / parts)
}

/// The sizes of a layer's weights, and its bias.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) isa: Isa,
    pub(super) taps: usize,
    /// Input channels.
    pub(super) inner: usize,
    /// Output channels.
    pub(super) outer: usize,
    /// The bias, padded with zeros to whole panels.
    bias: Vec<f32>,
}

impl Layout {
    /// # Panics
    /// If a size is 0 or there are too many taps.
    pub(super) fn new(isa: Isa, (outer, taps, inner): (usize, usize, usize), bias: Option<&[f32]>) -> Self {
        assert!(
            outer > 0 && inner > 0 && (1..=MAX_TAPS).contains(&taps),
            "{outer} × {taps} × {inner} weights"
        );
        let mut padded = vec![0.0; outer.next_multiple_of(isa.panel())];
        if let Some(bias) = bias {
            padded[..outer].copy_from_slice(bias);
        }
        Self { isa, taps, inner, outer, bias: padded }
    }

    /// Output channels, padded to whole panels.
    pub(super) fn padded_outer(&self) -> usize {
        self.bias.len()
    }

    pub(super) fn panels(&self) -> usize {
        self.padded_outer() / self.isa.panel()
    }

    /// The bias from `column` on. If a panel begins there, a whole panel can be read.
    pub(super) fn bias(&self, column: usize) -> *const f32 {
        self.bias[column..].as_ptr()
    }
}

/// The input rows of a product.
pub(super) trait RowSource: Sync {
    /// Sets `pointers` to the input rows that tap `tap` contributes to the output rows `rows`. Each can be read for
    /// [`Layout::inner`] floats.
    fn point(&self, tap: usize, rows: Range<usize>, pointers: &mut [*const f32]);
}

/// Input rows that lie one after another.
pub(super) struct DenseRows<'a> {
    pub(super) data: &'a [f32],
    pub(super) width: usize,
}

impl RowSource for DenseRows<'_> {
    #[inline(always)]
    fn point(&self, _: usize, rows: Range<usize>, pointers: &mut [*const f32]) {
        for (pointer, row) in pointers.iter_mut().zip(rows) {
            *pointer = self.data[row * self.width..(row + 1) * self.width].as_ptr();
        }
    }
}

/// What is added to a product: to output row i the row i / `rows` of `data`, which is as wide as the output.
#[derive(Clone, Copy)]
pub(super) struct Addend<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
}

/// A product without its weights.
pub(super) struct Product<'a, Src> {
    pub(super) layout: &'a Layout,
    pub(super) source: Src,
    pub(super) add: Option<Addend<'a>>,
}
