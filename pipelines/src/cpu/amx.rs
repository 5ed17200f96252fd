//! Products of factors in bf16 with sums in f32, on the matrix unit of x86 processors (AMX).
//!
//! A matrix register holds 16 rows of 64 bytes. One instruction multiplies 16 × 32 input numbers by 32 × 16 weights and
//! adds the product to 16 × 16 sums. The input rows are gathered and rounded once for all output columns.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;

use super::product::{CHUNK, Product, RESIDENT, RowSource, even};
use super::simd::{Kernel, Simd};
use super::tile::{load, store};

/// The rows of a matrix register.
const SIDE: usize = 16;
/// The input channels of one instruction.
const BLOCK: usize = 32;
/// The rows and columns of a tile of output: two by two registers.
pub(super) const TILE: usize = 2 * SIDE;
/// The register rows that a tile reads per block of channels, of the input and of the weights alike.
const PER_BLOCK: usize = 2 * SIDE;

/// A row of a matrix register.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct TileRow([bf16; BLOCK]);

/// The configured matrix registers. They are released when this is dropped, so that the kernel need not save them.
struct Registers;

impl Registers {
    /// # Safety
    /// [`features::has_amx`](super::features::has_amx)
    unsafe fn configure() -> Self {
        #[repr(C, align(64))]
        struct Layout([u8; 64]);
        /// Palette 1; every register has 64 bytes in each of 16 rows.
        const LAYOUT: Layout = {
            let mut bytes = [0; 64];
            bytes[0] = 1;
            let mut register = 0;
            while register < 8 {
                bytes[16 + 2 * register] = 64;
                bytes[48 + register] = SIDE as u8;
                register += 1;
            }
            Layout(bytes)
        };
        // SAFETY: the instruction reads 64 bytes. The compiler never uses these registers itself.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &LAYOUT, options(nostack, readonly)) };
        Self
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: `configure` has run, so the instruction exists.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// AmxWeights in the order in which the tiles read them.
#[derive(Debug)]
pub(super) struct AmxWeights(Vec<TileRow>);

impl AmxWeights {
    /// Packs weights. `weight` returns the value at (output channel, tap, input channel).
    pub(super) fn new(
        (outer, taps, inner): (usize, usize, usize),
        weight: impl Fn(usize, usize, usize) -> f32,
    ) -> Self {
        let blocks = outer.div_ceil(TILE) * taps * inner.div_ceil(BLOCK);
        let mut rows = Vec::with_capacity(blocks * PER_BLOCK);
        for from in (0..inner).step_by(CHUNK) {
            let to = inner.min(from + CHUNK);
            for panel in (0..outer).step_by(TILE) {
                for tap in 0..taps {
                    for block in (from..to).step_by(BLOCK) {
                        for (column, pair) in (0..PER_BLOCK).map(|row| (row / SIDE * SIDE, row % SIDE)) {
                            // Two neighbouring channels of 16 columns.
                            rows.push(TileRow(std::array::from_fn(|i| {
                                let (c, k) = (panel + column + i / 2, block + 2 * pair + i % 2);
                                bf16::from_f32(if c < outer && k < to { weight(c, tap, k) } else { 0.0 })
                            })));
                        }
                    }
                }
            }
        }
        Self(rows)
    }
}

/// One thread's part of a product with bf16 weights. It runs on [`Isa::Amx`](super::simd::Isa::Amx) only.
pub(super) struct AmxTask<'a, Src> {
    pub(super) product: &'a Product<'a, Src>,
    pub(super) weights: &'a AmxWeights,
    pub(super) rows: Range<usize>,
    pub(super) panels: Range<usize>,
    pub(super) out: *mut f32,
}

impl<Src: RowSource> Kernel for AmxTask<'_, Src> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let layout = self.product.layout;
        // SAFETY: `Isa::Amx` exists only on processors with this unit.
        let _registers = unsafe { Registers::configure() };
        let most = layout.taps * layout.inner.min(CHUNK).div_ceil(BLOCK) * PER_BLOCK;
        let mut gathered: Vec<TileRow> = Vec::with_capacity(most);
        for panels in even(self.panels.clone(), (RESIDENT / (most * size_of::<TileRow>())).max(1)) {
            for from in (0..layout.inner).step_by(CHUNK) {
                let chunk = from..layout.inner.min(from + CHUNK);
                for rows in even(self.rows.clone(), TILE) {
                    // SAFETY: there is room for a whole chunk.
                    unsafe { self.gather(&chunk, rows.clone(), gathered.as_mut_ptr()) };
                    for panel in panels.clone() {
                        // SAFETY: rows beyond the gathered ones only contribute to sums beyond the output rows.
                        unsafe { self.tile::<S>(gathered.as_ptr(), &chunk, &rows, panel) };
                    }
                }
            }
        }
    }
}

impl<Src: RowSource> AmxTask<'_, Src> {
    /// Copies the input of `rows`, rounded, in the order in which the tiles read it.
    #[inline(always)]
    unsafe fn gather(&self, chunk: &Range<usize>, rows: Range<usize>, to: *mut TileRow) {
        let blocks = chunk.len().div_ceil(BLOCK);
        let mut pointers = [std::ptr::null(); TILE];
        for tap in 0..self.product.layout.taps {
            self.product.source.point(tap, rows.clone(), &mut pointers);
            // SAFETY: the source's rows can be read for the chunk. `to` has taps × blocks × rows.
            unsafe { round(&pointers[..rows.len()], chunk, to.add(tap * blocks * PER_BLOCK)) };
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        a: *const TileRow,
        chunk: &Range<usize>,
        rows: &Range<usize>,
        panel: usize,
    ) {
        let layout = self.product.layout;
        let column = panel * TILE;
        let columns = (layout.outer - column).min(TILE);
        let per_panel = layout.taps * chunk.len().div_ceil(BLOCK) * PER_BLOCK;
        let before = chunk.start / BLOCK * layout.taps * layout.panels() * PER_BLOCK;
        let b = &self.weights.0[before + panel * per_panel..][..per_panel];
        let add = self.product.add.filter(|_| chunk.end == layout.inner);
        let whole = rows.len().is_multiple_of(SIDE) && columns == TILE;
        let mut edge = MaybeUninit::<[f32; TILE * TILE]>::uninit();
        // SAFETY: `multiply` reserved rows × outer floats, and only this task writes these rows and panels. A partial tile
        // is computed in `edge`.
        unsafe {
            let out = self.out.add(rows.start * layout.outer + column);
            let (sums, stride) = if whole { (out, layout.outer) } else { (edge.as_mut_ptr().cast(), TILE) };
            let start = if chunk.start == 0 {
                (layout.bias(column), 0)
            } else {
                if !whole {
                    for row in 0..rows.len() {
                        std::ptr::copy_nonoverlapping(
                            out.add(row * layout.outer),
                            sums.add(row * TILE),
                            columns,
                        );
                    }
                }
                (sums.cast_const(), stride)
            };
            multiply(rows.len() > SIDE, (a, b), start, (sums, stride));
            if whole && add.is_none() {
                return;
            }
            for (i, row) in rows.clone().enumerate() {
                let mut v = load::<S, 2>(sums.add(i * stride), TILE);
                if let Some(add) = add {
                    let from = &add.data[row / add.rows * layout.outer + column..][..columns];
                    let more = load::<S, 2>(from.as_ptr(), columns);
                    v = [S::add(v[0], more[0]), S::add(v[1], more[1])];
                }
                store::<S, 2>(out.add(i * layout.outer), &v, columns);
            }
        }
    }
}

/// Rounds a chunk of every row to bf16, to the nearest with ties to even, and pads the last block with zeros.
///
/// # Safety
/// The processor has the instruction set. Each pointer can be read for the chunk, and `to` written for its blocks.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round(rows: &[*const f32], chunk: &Range<usize>, to: *mut TileRow) {
    for (row, from) in rows.iter().enumerate() {
        let mut to = to.wrapping_add(row);
        for at in chunk.clone().step_by(BLOCK) {
            // SAFETY: the masks restrict the loads to the chunk.
            unsafe {
                let mask = u32::MAX >> (BLOCK - (chunk.end - at).min(BLOCK));
                let low = _mm512_maskz_loadu_ps(mask as u16, from.add(at));
                let high = _mm512_maskz_loadu_ps((mask >> SIDE) as u16, from.wrapping_add(at + SIDE));
                to.cast::<__m512bh>().write(_mm512_cvtne2ps_pbh(high, low));
            }
            to = to.wrapping_add(PER_BLOCK);
        }
    }
}

/// Computes `out` = `start` + `a` × `b` for 32 rows if `tall`, otherwise for 16. `a` and `b` have equally many blocks. The
/// strides are the distances between rows, in floats.
///
/// # Safety
/// The registers are configured. `a` has as many rows as `b`; `start` and `out` have 32 or 16 rows of 32 floats.
unsafe fn multiply(
    tall: bool,
    (a, b): (*const TileRow, &[TileRow]),
    (start, start_stride): (*const f32, usize),
    (out, out_stride): (*mut f32, usize),
) {
    // SAFETY: the caller's promise. The registers' contents are not used after a block of instructions.
    unsafe {
        if tall {
            asm!(
                "tileloadd tmm0, [{start} + {from}]",
                "tileloadd tmm1, [{start} + {from} + 64]",
                "tileloadd tmm2, [{start2} + {from}]",
                "tileloadd tmm3, [{start2} + {from} + 64]",
                "2:",
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm6, [{b} + {row}]",
                "tileloadd tmm7, [{b} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a} + {row} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "cmp {b}, {end}",
                "jb 2b",
                "tilestored [{out} + {to}], tmm0",
                "tilestored [{out} + {to} + 64], tmm1",
                "tilestored [{out2} + {to}], tmm2",
                "tilestored [{out2} + {to} + 64], tmm3",
                a = inout(reg) a => _, b = inout(reg) b.as_ptr() => _, end = in(reg) b.as_ptr_range().end,
                start = in(reg) start, start2 = in(reg) start.add(SIDE * start_stride), from = in(reg) 4 * start_stride,
                out = in(reg) out, out2 = in(reg) out.add(SIDE * out_stride), to = in(reg) 4 * out_stride,
                row = in(reg) size_of::<TileRow>(), options(nostack)
            );
        } else {
            asm!(
                "tileloadd tmm0, [{start} + {from}]",
                "tileloadd tmm1, [{start} + {from} + 64]",
                "2:",
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm6, [{b} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {row} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "cmp {b}, {end}",
                "jb 2b",
                "tilestored [{out} + {to}], tmm0",
                "tilestored [{out} + {to} + 64], tmm1",
                a = inout(reg) a => _, b = inout(reg) b.as_ptr() => _, end = in(reg) b.as_ptr_range().end,
                start = in(reg) start, from = in(reg) 4 * start_stride,
                out = in(reg) out, to = in(reg) 4 * out_stride,
                row = in(reg) size_of::<TileRow>(), options(nostack)
            );
        }
    }
}
