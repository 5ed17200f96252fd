//! The register tile: the kernel that computes some rows of one panel of a product.

use super::simd::{Kernel, Simd};

/// The rows of the largest register tile of all instruction sets.
pub(super) const MOST_ROWS: usize = 14;

/// The first element of each row of a tile.
pub(super) type RowPointers = [*const f32; MOST_ROWS];

/// The initial values of a tile's sums.
#[derive(Clone, Copy)]
pub(super) enum TileStart {
    Zero,
    /// The same values for every row. A whole panel of columns can be read.
    Row(*const f32),
    /// The output's present values.
    Output,
}

/// A register tile of `rows` rows and at most a panel of columns.
///
/// # Safety
/// To run it:
/// - each row pointer of each tap can be read for `len` floats, and `b` for taps × `len` × panel floats;
/// - each pointer of `add`, which points to the tile's first column, can be read for `columns` floats;
/// - `out` can be written for `columns` floats at each of `rows` strides;
/// - 0 < `rows` <= [`Simd::ROWS`] and 0 < `columns` <= panel.
pub(super) struct Tile<'a> {
    pub(super) taps: &'a [RowPointers],
    pub(super) rows: usize,
    pub(super) len: usize,
    pub(super) b: *const f32,
    pub(super) start: TileStart,
    pub(super) add: Option<RowPointers>,
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    pub(super) columns: usize,
}

impl Kernel for Tile<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        macro_rules! by_rows {
            ($($m:literal)*) => {
                match self.rows {
                    // The guard is a constant, so tiles that do not fit into the registers are not compiled.
                    $($m if $m <= S::ROWS => unsafe {
                        if self.columns <= S::LANES {
                            self.sum::<S, $m, 1>()
                        } else {
                            self.sum::<S, $m, 2>()
                        }
                    },)*
                    other => unreachable!("a tile of {other} rows"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn sum<S: Simd, const M: usize, const N: usize>(&self) {
        let panel = 2 * S::LANES;
        // The rows are written out, because in a loop that the compiler does not unroll the sums would be in memory.
        macro_rules! each_row {
            ($do:ident $(, $arg:tt)*) => {
                each_row!(@ $do ($($arg)*) 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
            };
            (@ $do:ident $args:tt $($i:literal)*) => {
                $(if $i < M { $do!($i $args); })*
            };
        }
        // SAFETY: the struct's contract. In a partial panel `load` and `store` access `columns` floats only.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            macro_rules! begin {
                ($i:literal ()) => {
                    match self.start {
                        TileStart::Zero => {}
                        TileStart::Row(row) => sums[$i] = load::<S, N>(row, N * S::LANES),
                        TileStart::Output => {
                            sums[$i] = load::<S, N>(self.out.add($i * self.stride), self.columns)
                        }
                    }
                };
            }
            each_row!(begin);
            let mut b = self.b;
            for tap in self.taps {
                let rows: &[*const f32; M] = &*tap.as_ptr().cast();
                let mut k = 0;
                macro_rules! multiply {
                    ($i:literal ($u:literal $first:ident $second:ident)) => {
                        let x = S::splat(*rows[$i].add(k + $u));
                        sums[$i][0] = S::fma(x, $first, sums[$i][0]);
                        if N > 1 {
                            sums[$i][N - 1] = S::fma(x, $second, sums[$i][N - 1]);
                        }
                    };
                }
                macro_rules! step {
                    ($u:literal) => {
                        let first = S::load(b.add($u * panel));
                        let second = if N > 1 { S::load(b.add($u * panel + S::LANES)) } else { first };
                        each_row!(multiply, $u, first, second);
                    };
                }
                while k + 4 <= self.len {
                    step!(0);
                    step!(1);
                    step!(2);
                    step!(3);
                    k += 4;
                    b = b.add(4 * panel);
                }
                while k < self.len {
                    step!(0);
                    k += 1;
                    b = b.add(panel);
                }
            }
            macro_rules! end {
                ($i:literal ()) => {
                    if let Some(add) = &self.add {
                        let more = load::<S, N>(add[$i], self.columns);
                        for j in 0..N {
                            sums[$i][j] = S::add(sums[$i][j], more[j]);
                        }
                    }
                    store::<S, N>(self.out.add($i * self.stride), &sums[$i], self.columns);
                };
            }
            each_row!(end);
        }
    }
}

/// Loads the first `n` floats at `p`, followed by zeros.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, const N: usize>(p: *const f32, n: usize) -> [S::V; N] {
    let mut edge = [0f32; 32];
    // SAFETY: the caller promises `n` floats at `p`. The copy is as large as the largest panel.
    unsafe {
        let mut from = p;
        if n < N * S::LANES {
            std::ptr::copy_nonoverlapping(p, edge.as_mut_ptr(), n);
            from = edge.as_ptr();
        }
        // A closure here would be compiled without the instruction set and not be inlined.
        let mut v = [S::splat(0.0); N];
        for (j, v) in v.iter_mut().enumerate() {
            *v = S::load(from.add(j * S::LANES));
        }
        v
    }
}

/// Stores the first `n` floats of `v`.
#[inline(always)]
pub(super) unsafe fn store<S: Simd, const N: usize>(p: *mut f32, v: &[S::V; N], n: usize) {
    let mut edge = [0f32; 32];
    // SAFETY: as above.
    unsafe {
        let whole = n == N * S::LANES;
        let to = if whole { p } else { edge.as_mut_ptr() };
        for (j, v) in v.iter().enumerate() {
            S::store(to.add(j * S::LANES), *v);
        }
        if !whole {
            std::ptr::copy_nonoverlapping(edge.as_ptr(), p, n);
        }
    }
}
