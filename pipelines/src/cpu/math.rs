//! Exponential functions of vectors, accurate to a few units in the last place.

use super::simd::Simd;

/// e^x by Cody and Waite's reduction and Cephes' polynomial; arguments are clamped to ±87.
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    const P: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // SAFETY: the caller's promise. There are no pointers.
    unsafe {
        let x = S::min(S::max(x, S::splat(-87.0)), S::splat(87.0));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts. The first one is short enough for its product with n to be exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(P[0]);
        for c in &P[1..] {
            p = S::fma(p, r, S::splat(*c));
        }
        let p = S::fma(p, S::mul(r, r), S::add(r, S::splat(1.0)));
        S::mul(p, S::pow2(n))
    }
}

/// x / (1 + e^-x)
#[inline(always)]
pub(super) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))) }
}

/// x Φ(x). erf is Abramowitz and Stegun's 7.1.26, with an error of at most 1.5e-7.
#[inline(always)]
pub(super) unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    const A: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    // SAFETY: the caller's promise.
    unsafe {
        let zero = S::splat(0.0);
        let size = S::max(x, S::sub(zero, x));
        let scaled = S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(S::splat(1.0), S::fma(scaled, S::splat(0.327_591_1), S::splat(1.0)));
        let mut p = S::splat(A[0]);
        for a in &A[1..] {
            p = S::fma(p, t, S::splat(*a));
        }
        let tail = S::mul(S::mul(p, t), exp::<S>(S::mul(scaled, S::sub(zero, scaled))));
        S::fma(S::mul(size, S::splat(-0.5)), tail, S::max(x, zero))
    }
}

/// The sum of the lanes, added in their order.
#[inline(always)]
pub(super) unsafe fn sum<S: Simd>(v: S::V) -> f32 {
    let mut lanes = [0f32; 16];
    // SAFETY: no instruction set has more lanes.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    lanes[..S::LANES].iter().sum()
}

/// The largest lane.
#[inline(always)]
pub(super) unsafe fn largest<S: Simd>(v: S::V) -> f32 {
    let mut lanes = [0f32; 16];
    // SAFETY: as above.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    lanes[..S::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Loads the first `n` floats at `p`; the other lanes are `rest`.
#[inline(always)]
pub(super) unsafe fn load_part<S: Simd>(p: *const f32, n: usize, rest: f32) -> S::V {
    // SAFETY: the caller promises `n` floats at `p`. The copy is as large as the largest vector.
    unsafe {
        if n >= S::LANES {
            return S::load(p);
        }
        let mut lanes = [rest; 16];
        std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
        S::load(lanes.as_ptr())
    }
}

/// Stores the first `n` lanes.
#[inline(always)]
pub(super) unsafe fn store_part<S: Simd>(p: *mut f32, v: S::V, n: usize) {
    // SAFETY: as above.
    unsafe {
        if n >= S::LANES {
            return S::store(p, v);
        }
        let mut lanes = [0f32; 16];
        S::store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
    }
}
