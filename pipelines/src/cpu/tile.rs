//! The register tile: some rows of a product by a panel of its columns.

use super::simd::{Kernel, Simd};

/// Rows of the largest register tile of any instruction set.
pub(super) const MOST_ROWS: usize = 14;

/// Where each row of a tile begins.
pub(super) type RowPointers = [*const f32; MOST_ROWS];

/// What a tile's sums begin with.
#[derive(Clone, Copy)]
pub(super) enum Start {
    Zero,
    /// The same for every row; good for a whole panel of columns.
    Row(*const f32),
    /// What the output holds.
    Output,
}

/// One register tile: `rows` × at most a panel of columns.
///
/// # Safety
/// Of running it: every row pointer of every tap is good for `len` reads, `b` for taps × `len` × panel, `add`'s
/// (per row, already at the tile's first column) for `columns`; `out` for `columns` writes at each of `rows`
/// strides. 0 < `rows` <= [`Simd::ROWS`], 0 < `columns` <= panel.
pub(super) struct Tile<'a> {
    pub(super) taps: &'a [RowPointers],
    pub(super) rows: usize,
    pub(super) len: usize,
    pub(super) b: *const f32,
    pub(super) start: Start,
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
                    // The guard is a constant: tiles that the registers do not hold are not compiled.
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
        // Written out row by row: in a loop that the compiler does not unroll the sums would live in memory.
        macro_rules! each_row {
            ($do:ident $(, $arg:tt)*) => {
                each_row!(@ $do ($($arg)*) 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
            };
            (@ $do:ident $args:tt $($i:literal)*) => {
                $(if $i < M { $do!($i $args); })*
            };
        }
        // SAFETY: the struct's contract; `load` and `store` keep to `columns` in a partial panel.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            macro_rules! begin {
                ($i:literal ()) => {
                    match self.start {
                        Start::Zero => {}
                        Start::Row(row) => sums[$i] = load::<S, N>(row, N * S::LANES),
                        Start::Output => {
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

/// The first `n` floats at `p`, zeros after them.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, const N: usize>(p: *const f32, n: usize) -> [S::V; N] {
    let mut edge = [0f32; 32];
    // SAFETY: `n` reads are the caller's promise; the copy is as large as the largest panel.
    unsafe {
        let mut from = p;
        if n < N * S::LANES {
            std::ptr::copy_nonoverlapping(p, edge.as_mut_ptr(), n);
            from = edge.as_ptr();
        }
        // No closure: it would be compiled without the instruction set, and called.
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
