//! Vectors of three instruction sets behind one trait, and the choice of the best set.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::features;

/// The vector operations that kernels use.
///
/// # Safety
/// For every function: the processor has the instruction set, and pointers can be accessed for `LANES` elements. The
/// functions are only called from [`Isa::run`], through `#[inline(always)]` code.
pub(super) trait Simd: 'static {
    type V: Copy;
    const LANES: usize;
    /// The rows of the largest tile of two vectors per row that fits into the registers.
    const ROWS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Rounds to the nearest integer.
    unsafe fn round(a: Self::V) -> Self::V;
    /// Two to the power of `n`, an integer from -126 to 127.
    unsafe fn pow2(n: Self::V) -> Self::V;
    /// Runs a kernel compiled for this instruction set.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out;
}

/// Code that is compiled for every instruction set. Implementations must be `#[inline(always)]`.
pub(super) trait Kernel {
    type Out;
    /// # Safety
    /// Those of [`Simd`]'s functions, and those that the kernel's fields document for their pointers.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isa {
    /// AVX-512, and the matrix unit for bf16.
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// All instruction sets that this processor has, the best first.
    pub(super) fn all() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let sets = [
                (Self::Amx, features::has_amx()),
                (Self::Avx512, features::has_avx512()),
                (Self::Avx2, features::has_avx2()),
            ];
            found.extend(sets.into_iter().filter_map(|(isa, has)| has.then_some(isa)));
        }
        found.push(Self::Portable);
        found
    }

    /// The best instruction set. It is detected once.
    pub(super) fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::all()[0])
    }

    /// The columns of a panel, which are two vectors.
    pub(super) fn panel(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx | Self::Avx512 => 2 * x86::Avx512::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 2 * x86::Avx2::LANES,
            Self::Portable => 2 * Portable::LANES,
        }
    }

    /// The rows of a register tile.
    pub(super) fn rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx | Self::Avx512 => x86::Avx512::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::Avx2::ROWS,
            Self::Portable => Portable::ROWS,
        }
    }

    /// Runs a kernel on this instruction set.
    ///
    /// # Safety
    /// Those that the kernel's fields document for their pointers.
    #[inline]
    pub(super) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Out {
        // SAFETY: values other than `Portable` are only made by `all`, which detects the instruction sets.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Amx | Self::Avx512 => x86::Avx512::call(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => x86::Avx2::call(kernel),
                Self::Portable => Portable::call(kernel),
            }
        }
    }
}

/// The peak of this thread in multiplications and additions per second. It is measured in registers only, so no kernel can
/// exceed it.
pub(crate) fn peak_flops() -> f64 {
    const ROUNDS: usize = 4_000_000;
    struct Peak;
    impl Kernel for Peak {
        type Out = (usize, f32);

        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Self::Out {
            // SAFETY: the only pointer is to 16 floats on the stack.
            unsafe {
                let (x, y) = (S::splat(std::hint::black_box(0.5)), S::splat(std::hint::black_box(1.0)));
                let mut sums = [y; 12];
                for _ in 0..ROUNDS {
                    for sum in &mut sums {
                        *sum = S::fma(*sum, x, y);
                    }
                }
                let mut lanes = [0f32; 16];
                let mut total = x;
                for sum in sums {
                    total = S::add(total, sum);
                }
                S::store(lanes.as_mut_ptr(), total);
                (2 * 12 * S::LANES * ROUNDS, lanes[0])
            }
        }
    }
    let start = std::time::Instant::now();
    // SAFETY: see above.
    let (flops, sum) = unsafe { Isa::best().run(Peak) };
    std::hint::black_box(sum);
    flops as f64 / start.elapsed().as_secs_f64()
}

/// Four lanes of plain Rust, which compilers vectorise.
pub(super) struct Portable;

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Without the instruction `mul_add` would be a slow library call.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            lanes(|i| a[i].mul_add(b[i], c[i]))
        } else {
            lanes(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23: the sum has no bits left for a fraction
        lanes(|i| (a[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::V) -> Self::V {
        lanes(|i| f32::from_bits(((n[i] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
        unsafe { kernel.run::<Self>() }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, Simd};

    pub(in super::super) struct Avx512;
    pub(in super::super) struct Avx2;

    #[target_feature(enable = "avx512f,fma")]
    unsafe fn call512<K: Kernel>(kernel: K) -> K::Out {
        unsafe { kernel.run::<Avx512>() }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn call2<K: Kernel>(kernel: K) -> K::Out {
        unsafe { kernel.run::<Avx2>() }
    }

    /// The functions that differ only in the intrinsics' prefix.
    macro_rules! common {
        ($v:ty, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $div:ident,
         $max:ident, $min:ident, $fma:ident, $call:ident) => {
            type V = $v;
            common!(@ splat, $splat, x: f32);
            common!(@ load, $load, p: *const f32);
            common!(@ add, $add, a: $v, b: $v);
            common!(@ sub, $sub, a: $v, b: $v);
            common!(@ mul, $mul, a: $v, b: $v);
            common!(@ div, $div, a: $v, b: $v);
            common!(@ max, $max, a: $v, b: $v);
            common!(@ min, $min, a: $v, b: $v);
            common!(@ fma, $fma, a: $v, b: $v, c: $v);
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: $v) {
                unsafe { $store(p, v) }
            }
            #[inline(always)]
            unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
                unsafe { $call(kernel) }
            }
        };
        (@ $name:ident, $intrinsic:ident, $($arg:ident: $t:ty),*) => {
            #[inline(always)]
            unsafe fn $name($($arg: $t),*) -> Self::V {
                unsafe { $intrinsic($($arg),*) }
            }
        };
    }

    impl Simd for Avx512 {
        common!(
            __m512,
            _mm512_set1_ps,
            _mm512_loadu_ps,
            _mm512_storeu_ps,
            _mm512_add_ps,
            _mm512_sub_ps,
            _mm512_mul_ps,
            _mm512_div_ps,
            _mm512_max_ps,
            _mm512_min_ps,
            _mm512_fmadd_ps,
            call512
        );
        const LANES: usize = 16;
        const ROWS: usize = 14;

        #[inline(always)]
        unsafe fn round(a: __m512) -> __m512 {
            unsafe { _mm512_roundscale_ps::<0>(a) }
        }
        #[inline(always)]
        unsafe fn pow2(n: __m512) -> __m512 {
            unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
        }
    }

    impl Simd for Avx2 {
        common!(
            __m256,
            _mm256_set1_ps,
            _mm256_loadu_ps,
            _mm256_storeu_ps,
            _mm256_add_ps,
            _mm256_sub_ps,
            _mm256_mul_ps,
            _mm256_div_ps,
            _mm256_max_ps,
            _mm256_min_ps,
            _mm256_fmadd_ps,
            call2
        );
        const LANES: usize = 8;
        const ROWS: usize = 6;

        #[inline(always)]
        unsafe fn round(a: __m256) -> __m256 {
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        unsafe fn pow2(n: __m256) -> __m256 {
            unsafe {
                let bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bits))
            }
        }
    }
}
