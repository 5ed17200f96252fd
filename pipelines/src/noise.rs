//! Noise as a pure function of a seed and a timestep.
//!
//! **Pentimento's noise** (version 1) is the same on every machine:
//! 1. A 32-byte key is `SHA-256("pentimento-noise-1" ‖ purpose ‖ seed as u64 LE ‖ timestep as f64 bits LE)`. The purpose is
//!    `"initial"` (the timestep is then +∞), `"forward"` (noise added to a state; the timestep is the one it is brought to) or
//!    `"step"` (a step's own noise; the timestep is the one it starts from).
//! 2. The key seeds ChaCha8 (nonce 0).
//! 3. Each pair of its 64-bit words `a, b` gives `u = ((a >> 11) + 1)·2⁻⁵³` and `v = (b >> 11)·2⁻⁵³`, and by Box and Muller the
//!    two values `sqrt(−2·ln u)·cos(2πv)` and `sqrt(−2·ln u)·sin(2πv)`. They are computed in f64 with portable elementary
//!    functions and rounded to f32.
//! 4. The values are in the order of the latent's elements (C, H, W).
//!
//! **PyTorch's noise** equals `torch.randn(..., generator=torch.Generator().manual_seed(seed))` on a CPU for 16 values or more.
//! It is for comparisons with diffusers.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The generator of a trajectory's initial noise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NoiseSource {
    /// Pentimento's noise, which is the same on every machine.
    #[default]
    Pentimento,
    /// The noise of PyTorch's CPU generator.
    Torch,
}

/// The purpose of noise. For the same seed and timestep each purpose has different noise. Otherwise a step from the timestep
/// that forward noise led to would add the same noise again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The initial latent of a trajectory.
    Initial,
    /// Forward noise, which brings a state to a noisier timestep.
    Forward,
    /// The noise of a step with η > 0.
    Step,
}

impl Purpose {
    fn tag(self) -> &'static [u8] {
        match self {
            Self::Initial => b"initial",
            Self::Forward => b"forward",
            Self::Step => b"step",
        }
    }
}

/// The initial noise of a seed, `len` standard normal values.
pub fn initial(source: NoiseSource, seed: u64, len: usize) -> Vec<f32> {
    match source {
        NoiseSource::Pentimento => at_timestep(Purpose::Initial, seed, f64::INFINITY, len),
        NoiseSource::Torch => torch_randn(seed, len),
    }
}

/// The noise of a seed at a timestep, `len` standard normal values.
pub fn at_timestep(purpose: Purpose, seed: u64, timestep: f64, len: usize) -> Vec<f32> {
    let mut hash = Sha256::new();
    hash.update(b"pentimento-noise-1");
    hash.update(purpose.tag());
    hash.update(seed.to_le_bytes());
    hash.update(timestep.to_bits().to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        let u = ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let v = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let radius = libm::sqrt(-2.0 * libm::log(u));
        let (sin, cos) = libm::sincos(std::f64::consts::TAU * v);
        values.push((radius * cos) as f32);
        values.push((radius * sin) as f32);
    }
    values.truncate(len);
    values
}

/// PyTorch's `normal_` on a CPU tensor. It draws uniform numbers from MT19937 and applies Box and Muller to blocks of 16, whose
/// two halves are the two uniform numbers. If the last block is incomplete, the last 16 values are drawn again.
fn torch_randn(seed: u64, len: usize) -> Vec<f32> {
    const BLOCK: usize = 16;
    let mut mt = Mt19937::new(seed as u32);
    let mut uniform = move || (mt.next() & 0x00FF_FFFF) as f32 / (1u32 << 24) as f32;
    // For fewer than 16 values PyTorch uses another method. No latent is that small.
    let mut values: Vec<f32> = (0..len.max(BLOCK)).map(|_| uniform()).collect();
    let total = values.len();
    let box_muller = |block: &mut [f32]| {
        let (first, second) = block.split_at_mut(BLOCK / 2);
        for (a, b) in first.iter_mut().zip(second) {
            let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
            let theta = std::f32::consts::TAU * *b;
            (*a, *b) = (radius * theta.cos(), radius * theta.sin());
        }
    };
    for block in values.chunks_exact_mut(BLOCK) {
        box_muller(block);
    }
    if !total.is_multiple_of(BLOCK) {
        let tail = &mut values[total - BLOCK..];
        tail.fill_with(uniform);
        box_muller(tail);
    }
    values.truncate(len);
    values
}

/// The Mersenne Twister (Matsumoto and Nishimura, 1998), PyTorch's CPU generator.
struct Mt19937 {
    state: [u32; Self::N],
    next: usize,
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for i in 1..Self::N {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: Self::N }
    }

    fn next(&mut self) -> u32 {
        if self.next == Self::N {
            for i in 0..Self::N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::N] & 0x7FFF_FFFF);
                let twist = if y & 1 == 1 { 0x9908_B0DF } else { 0 };
                self.state[i] = self.state[(i + Self::M) % Self::N] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }
}

#[cfg(test)]
#[allow(clippy::excessive_precision, clippy::type_complexity)] // values as they were printed
mod tests {
    use super::*;

    #[test]
    fn noise_equals_its_documentation() {
        // The values come from tests/goldens/noise.py, an independent implementation of the text above.
        let got = at_timestep(Purpose::Initial, 7, f64::INFINITY, 4);
        assert_eq!(got, NOISE_SEED_7, "seed 7");
        assert_eq!(at_timestep(Purpose::Initial, 7, f64::INFINITY, 3), NOISE_SEED_7[..3]);
        let step = at_timestep(Purpose::Step, 7, 981.0, 4);
        assert_eq!(step, NOISE_STEP_981, "step at 981");
        assert_ne!(at_timestep(Purpose::Forward, 7, 981.0, 4), step);
        assert_ne!(at_timestep(Purpose::Initial, 8, f64::INFINITY, 4), got);
    }

    #[test]
    fn torch_noise_equals_torchs() {
        // torch 2.15: torch.randn(n, generator=torch.Generator().manual_seed(s))
        for (seed, len, want) in TORCH {
            let got = torch_randn(seed, len);
            for (i, value) in want {
                assert!((got[i] - value).abs() < 2e-6, "seed {seed} [{i}]: {} is not {value}", got[i]);
            }
        }
    }

    #[test]
    fn values_are_standard_normal() {
        for source in [NoiseSource::Pentimento, NoiseSource::Torch] {
            let x = initial(source, 3, 100_000);
            let mean = x.iter().sum::<f32>() / x.len() as f32;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / x.len() as f32;
            assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{source:?}: {mean} {variance}");
        }
    }

    const NOISE_SEED_7: [f32; 4] = [0.49407802, -0.62098588, -1.43761273, -2.05600106];
    const NOISE_STEP_981: [f32; 4] = [-0.40131838, 0.56671588, -0.50221755, -1.34366525];
    const TORCH: [(u64, usize, [(usize, f32); 6]); 4] = [
        (
            0,
            16,
            [
                (0, -1.12583983),
                (1, -1.1523602),
                (8, 0.322274923),
                (15, -0.247278154),
                (14, 1.11677718),
                (15, -0.247278154),
            ],
        ),
        (
            42,
            1024,
            [
                (0, 1.92691529),
                (1, 1.48728406),
                (8, -0.752135277),
                (15, 0.76244539),
                (1022, 0.554423332),
                (1023, 1.58175027),
            ],
        ),
        (
            7,
            1001,
            [
                (0, -0.820134521),
                (1, 0.395631164),
                (8, 0.926542997),
                (15, 1.09016514),
                (999, -0.848775506),
                (1000, 0.108160891),
            ],
        ),
        (
            8589934597,
            64,
            [
                (0, 1.84232986),
                (1, 0.518887162),
                (8, 0.39076823),
                (15, -0.782335103),
                (62, 1.27019215),
                (63, 1.32271993),
            ],
        ),
    ];
}
