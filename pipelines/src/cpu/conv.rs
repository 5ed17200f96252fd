//! 2-D convolutions of channels-last pictures, computed as products of gathered rows.

use std::ops::Range;

use candle_core::{Result, Shape, Tensor, bail};

use super::gemm::Packed;
use super::op::{OpResult, OperatorKind, View, apply1, apply2};
use super::product::{Addend, RowSource};
use super::simd::Isa;
use crate::precision::Precision;

/// The stride and padding of a convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) stride: usize,
    /// Rows and columns of zeros added at the top and left.
    pub(crate) near: usize,
    /// Rows and columns of zeros added at the bottom and right.
    pub(crate) far: usize,
}

/// A convolution's packed weights.
#[derive(Debug)]
pub(crate) struct Conv {
    packed: Packed,
    side: usize,
    geometry: Geometry,
    zeros: Vec<f32>,
}

/// The sizes of one call, as (height, width).
#[derive(Clone, Copy)]
struct Sizes {
    /// The input in memory.
    stored: (usize, usize),
    /// The input after resizing by nearest neighbour.
    seen: (usize, usize),
    out: (usize, usize),
}

/// The stored row or column at a padded position; `None` in the padding.
fn along(at: usize, near: usize, stored: usize, seen: usize) -> Option<usize> {
    let at = at.checked_sub(near)?;
    (at < seen).then(|| at * stored / seen)
}

impl Conv {
    /// Packs a kernel (outer, inner, side, side), where side is 1 or 3, and a bias (outer,).
    pub(crate) fn new(
        precision: Precision,
        weight: &Tensor,
        bias: Option<&Tensor>,
        geometry: Geometry,
    ) -> Result<Self> {
        Self::on((Isa::best(), precision), weight, bias, geometry)
    }

    pub(super) fn on(
        how: (Isa, Precision),
        weight: &Tensor,
        bias: Option<&Tensor>,
        geometry: Geometry,
    ) -> Result<Self> {
        let (outer, inner, side, _) = weight.dims4()?;
        if !matches!(weight.dims(), [_, _, 1, 1] | [_, _, 3, 3]) {
            bail!("convolution: a kernel of {:?}", weight.dims());
        }
        let weight = weight.flatten_all()?.to_vec1::<f32>()?;
        let bias = bias.map(|b| b.to_vec1::<f32>()).transpose()?;
        let taps = side * side;
        let at = |o, tap, i| weight[(o * inner + i) * taps + tap];
        let packed = Packed::new(OperatorKind::Convolution, how, (outer, taps, inner), at, bias.as_deref());
        Ok(Self { packed, side, geometry, zeros: vec![0.0; inner] })
    }

    /// (B, H, W, inner) -> (B, H', W', outer). If `resize` is given, the input is first resized to it by nearest neighbour.
    /// `add`, of shape (B, outer) or of the output's shape, is added to the output.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        resize: Option<(usize, usize)>,
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        match add {
            None => apply1(OperatorKind::Convolution, x, |[x]| self.compute(x, resize, None)),
            Some(add) => {
                apply2(OperatorKind::Convolution, x, add, |[x, add]| self.compute(x, resize, Some(add)))
            }
        }
    }

    fn sizes(&self, stored: (usize, usize), resize: Option<(usize, usize)>) -> Result<Sizes> {
        let seen = resize.unwrap_or(stored);
        let Geometry { stride, near, far } = self.geometry;
        let out = |n: usize| (n + near + far).checked_sub(self.side).map(|n| n / stride + 1);
        match (out(seen.0), out(seen.1)) {
            (Some(h), Some(w)) => Ok(Sizes { stored, seen, out: (h, w) }),
            _ => bail!("convolution: a picture of {seen:?} under a kernel of {}", self.side),
        }
    }

    fn compute(&self, x: View, resize: Option<(usize, usize)>, add: Option<View>) -> OpResult {
        let &[batch, h, w, inner] = x.dims else { bail!("convolution: {:?}", x.dims) };
        let outer = self.packed.outer();
        if inner != self.packed.inner() {
            bail!("convolution: {inner} channels, the kernel has {}", self.packed.inner());
        }
        let sizes = self.sizes((h, w), resize)?;
        let out = sizes.out;
        let dims = [batch, out.0, out.1, outer];
        let add = match add {
            None => None,
            Some(View { data, dims: d }) if d == dims => Some(Addend { data, rows: 1 }),
            Some(View { data, dims: d }) if d == [batch, outer] => Some(Addend { data, rows: out.0 * out.1 }),
            Some(other) => bail!("convolution: {:?} added to {dims:?}", other.dims),
        };
        let source = Pixels {
            data: &self.packed.input(x.data),
            zeros: &self.zeros,
            stored: h * w,
            table: self.table(&sizes),
            out: out.0 * out.1,
        };
        let product = self.packed.multiply(source, add, batch * out.0 * out.1);
        Ok((product, Shape::from(dims.to_vec())))
    }

    /// For every tap and output pixel, the input pixel that the tap reads; `u32::MAX` if it reads zeros.
    fn table(&self, sizes: &Sizes) -> Vec<u32> {
        let (side, Geometry { stride, near, .. }) = (self.side, self.geometry);
        let Sizes { stored, seen, out } = *sizes;
        let mut table = Vec::with_capacity(side * side * out.0 * out.1);
        for tap in 0..side * side {
            let column = |x| along(x * stride + tap % side, near, stored.1, seen.1);
            let columns: Vec<Option<usize>> = (0..out.1).map(column).collect();
            for y in 0..out.0 {
                let row = along(y * stride + tap / side, near, stored.0, seen.0);
                let pixel = |x: &Option<usize>| Some((row? * stored.1 + (*x)?) as u32);
                table.extend(columns.iter().map(|x| pixel(x).unwrap_or(u32::MAX)));
            }
        }
        table
    }
}

/// Input rows of channels, found through [`Conv::table`].
struct Pixels<'a> {
    data: &'a [f32],
    zeros: &'a [f32],
    /// Pixels per input picture.
    stored: usize,
    /// Pixels per output picture.
    out: usize,
    table: Vec<u32>,
}

impl RowSource for Pixels<'_> {
    #[inline(always)]
    fn point(&self, tap: usize, rows: Range<usize>, pointers: &mut [*const f32]) {
        let inner = self.zeros.len();
        let (mut picture, mut pixel) = (rows.start / self.out, rows.start % self.out);
        for pointer in &mut pointers[..rows.len()] {
            let from = self.table[tap * self.out + pixel] as usize;
            *pointer = if from == u32::MAX as usize {
                self.zeros.as_ptr()
            } else {
                let at = (picture * self.stored + from) * inner;
                self.data[at..at + inner].as_ptr()
            };
            pixel += 1;
            if pixel == self.out {
                (picture, pixel) = (picture + 1, 0);
            }
        }
    }
}
