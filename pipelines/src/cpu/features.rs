//! Detection of the processor's instruction sets.

/// Whether the processor has a matrix unit (AMX) with bf16, and the operating system allows this process to use it.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_amx() -> bool {
    // The standard library detects these two only on nightly.
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    let found = std::arch::x86_64::__cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES;
    found && is_x86_feature_detected!("avx512bf16") && has_avx512() && amx_is_granted()
}

/// Whether the processor has AVX-512's foundation, and AVX2 with FMA.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx512() -> bool {
    has_avx2() && is_x86_feature_detected!("avx512f")
}

/// Whether the processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Asks the kernel for the matrix registers, for all threads of the process.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_is_granted() -> bool {
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and accesses no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_is_granted() -> bool {
    false
}
