//! Noise schedules: the shares of picture and noise in a latent at each timestep.
//!
//! A latent at timestep `t` is `sqrt(ᾱ(t))·x₀ + sqrt(1 − ᾱ(t))·ε` (Ho et al., 2020, eq. 4). Names and
//! defaults are those of diffusers' `scheduler_config.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::json_config::{check_rest, parse};
use crate::weights::hex;

const FILE: &str = "scheduler/scheduler_config.json";

/// Keys of other schedulers that do not affect the noise schedule.
const HARMLESS: &[(&str, &str)] = &[
    ("skip_prk_steps", "any"),
    ("dynamic_thresholding_ratio", "any"),
    ("sample_max_value", "any"),
    ("interpolation_type", "any"),
    ("solver_order", "any"),
    ("solver_type", "any"),
    ("algorithm_type", "any"),
    ("lower_order_final", "any"),
    ("variance_type", "any"),
    ("final_sigmas_type", "any"),
    ("timestep_type", "any"),
    ("lambda_min_clipped", "any"),
];

/// The timestep of a finished latent. It is the one before 0, as in diffusers. Its ᾱ is 1, or ᾱ(0) if the configuration has
/// `set_alpha_to_one = false`.
pub const FINISHED: f64 = -1.0;

/// What the denoiser predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise ε (Ho et al., 2020).
    Epsilon,
    /// The velocity `v = sqrt(ᾱ)·ε − sqrt(1 − ᾱ)·x₀` (Salimans and Ho, 2022).
    VPrediction,
}

/// How the variance β grows over the training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// β grows linearly (Ho et al., 2020).
    Linear,
    /// sqrt(β) grows linearly (Stable Diffusion).
    ScaledLinear,
    /// ᾱ follows a squared cosine (Nichol and Dhariwal, 2021).
    SquaredcosCapV2,
}

/// The choice of training timesteps for a plan of N steps (Lin et al., 2023, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// 0, T/N, 2T/N, … plus `steps_offset`.
    Leading,
    /// N timesteps from 0 to T−1, both included.
    Linspace,
    /// T−1, T−1−T/N, …, which always starts at the noisiest timestep.
    Trailing,
}

/// The keys of a diffusers `scheduler_config.json` that DDIM uses.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ScheduleConfig {
    /// T, the number of timesteps in training.
    pub num_train_timesteps: usize,
    /// β at the first timestep.
    pub beta_start: f64,
    /// β at the last timestep.
    pub beta_end: f64,
    /// How β grows in between.
    pub beta_schedule: BetaSchedule,
    /// The β of every timestep, instead of the three values above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the denoiser predicts.
    pub prediction_type: Prediction,
    /// Added to the timesteps of `leading` spacing.
    pub steps_offset: usize,
    /// Whether a finished latent has ᾱ = 1 rather than ᾱ(0).
    pub set_alpha_to_one: bool,
    /// The spacing of a plan's timesteps.
    pub timestep_spacing: Spacing,
    /// Zero terminal SNR: shifts ᾱ so that the last timestep is pure noise (Lin et al., 2023, algorithm 1).
    pub rescale_betas_zero_snr: bool,
    /// Whether the predicted x₀ is clamped to ±`clip_sample_range`, for pixel-space models. The default here is false, because
    /// latents have no such range; diffusers' default is true.
    pub clip_sample: bool,
    /// See `clip_sample`.
    pub clip_sample_range: f64,
    /// Imagen's dynamic thresholding, which is not supported.
    pub thresholding: bool,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: Prediction::Epsilon,
            steps_offset: 0,
            set_alpha_to_one: true,
            timestep_spacing: Spacing::Leading,
            rescale_betas_zero_snr: false,
            clip_sample: false,
            clip_sample_range: 1.0,
            thresholding: false,
        }
    }
}

/// The configuration, and the file's other keys.
#[derive(Deserialize)]
struct ScheduleFile {
    #[serde(flatten)]
    config: ScheduleConfig,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A noise schedule: ᾱ at every timestep.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    config: ScheduleConfig,
    alpha_bars: Vec<f64>,
    final_alpha_bar: f64,
}

impl NoiseSchedule {
    /// The schedule of a `scheduler_config.json`, of any of diffusers' schedulers. Only the noise schedule is used.
    ///
    /// # Errors
    /// [`Error::Config`], if the file does not parse or needs what this DDIM does not support.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let file: ScheduleFile = parse(FILE, json, |_| Ok(()))?;
        check_rest(FILE, &file.rest, HARMLESS)?;
        Self::new(file.config)
    }

    /// The schedule of a configuration.
    ///
    /// # Errors
    /// [`Error::Config`] for values that give no decreasing ᾱ, for thresholding, and for ε-prediction with zero terminal SNR,
    /// because then x₀ cannot be computed from pure noise.
    pub fn new(config: ScheduleConfig) -> Result<Self> {
        let bad = |reason: &str| Error::config(FILE, reason);
        if config.thresholding {
            return Err(bad("thresholding is for pixel-space models and is not supported"));
        }
        if config.rescale_betas_zero_snr && config.prediction_type == Prediction::Epsilon {
            return Err(bad("rescale_betas_zero_snr needs prediction_type v_prediction"));
        }
        if !(2..=100_000).contains(&config.num_train_timesteps) {
            return Err(bad("num_train_timesteps must be between 2 and 100000"));
        }
        let betas = match &config.trained_betas {
            Some(betas) if betas.len() == config.num_train_timesteps => betas.clone(),
            Some(_) => return Err(bad("trained_betas must have num_train_timesteps values")),
            None => betas(&config),
        };
        if !betas.iter().all(|b| *b > 0.0 && *b < 1.0) {
            return Err(bad("every beta must lie between 0 and 1"));
        }
        if config.steps_offset >= config.num_train_timesteps {
            return Err(bad("steps_offset must be less than num_train_timesteps"));
        }
        let mut alpha_bars: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        if config.rescale_betas_zero_snr {
            rescale_to_zero_terminal_snr(&mut alpha_bars);
        }
        let noisiest = alpha_bars[alpha_bars.len() - 1];
        if !config.rescale_betas_zero_snr && noisiest < 1e-12 {
            return Err(bad("the betas leave nothing of the picture: ᾱ falls to 0"));
        }
        let final_alpha_bar = if config.set_alpha_to_one { 1.0 } else { alpha_bars[0] };
        Ok(Self { config, alpha_bars, final_alpha_bar })
    }

    /// The schedule's configuration.
    pub fn config(&self) -> &ScheduleConfig {
        &self.config
    }

    /// The schedule's id, 16 hex digits. Schedules of the same id have the same noise level at every timestep, so that one can
    /// resume states of the other. The id is a digest of the values that ᾱ is computed from, because ᾱ's own last bits differ
    /// between machines. It does not include prediction type and spacing.
    pub fn id(&self) -> String {
        let config = &self.config;
        let mut hash = Sha256::new();
        match &config.trained_betas {
            Some(betas) => betas.iter().for_each(|beta| hash.update(beta.to_le_bytes())),
            None => {
                let name = match config.beta_schedule {
                    BetaSchedule::Linear => "linear",
                    BetaSchedule::ScaledLinear => "scaled_linear",
                    BetaSchedule::SquaredcosCapV2 => "squaredcos_cap_v2",
                };
                hash.update(format!("{name} {}", config.num_train_timesteps));
                // The cosine schedule does not use these two.
                if config.beta_schedule != BetaSchedule::SquaredcosCapV2 {
                    hash.update(config.beta_start.to_le_bytes());
                    hash.update(config.beta_end.to_le_bytes());
                }
            }
        }
        hash.update([u8::from(config.rescale_betas_zero_snr), u8::from(config.set_alpha_to_one)]);
        hex(&hash.finalize()[..8])
    }

    /// T, the number of training timesteps.
    pub fn num_train_timesteps(&self) -> usize {
        self.alpha_bars.len()
    }

    /// ᾱ at a timestep, interpolated linearly. Below 0 it is that of a finished latent, above T−1 that of T−1.
    pub fn alpha_bar(&self, timestep: f64) -> f64 {
        if timestep < 0.0 {
            return self.final_alpha_bar;
        }
        let last = self.alpha_bars.len() - 1;
        let below = (timestep.floor() as usize).min(last);
        let above = (below + 1).min(last);
        let share = (timestep - below as f64).clamp(0.0, 1.0);
        self.alpha_bars[below] * (1.0 - share) + self.alpha_bars[above] * share
    }

    /// The noise level of a latent at a timestep, which is sqrt(1 − ᾱ), from 0 to 1. It is 0 for a finished latent.
    ///
    /// Unlike a timestep it means the same in every schedule. Its last bits differ between machines, as ᾱ's do.
    pub fn noise_level(&self, timestep: f64) -> f64 {
        if timestep < 0.0 { 0.0 } else { (1.0 - self.alpha_bar(timestep)).max(0.0).sqrt() }
    }

    /// The timesteps of a plan of `steps` steps, noisiest first, with the configured spacing. They are rounded half to even, as
    /// numpy and diffusers do.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `num_inference_steps`, if it is 0 or more than the number of timesteps.
    pub fn timesteps(&self, steps: usize) -> Result<Vec<f64>> {
        let total = self.num_train_timesteps();
        if steps == 0 || steps > total {
            return Err(Error::invalid("num_inference_steps", format!("must be between 1 and {total}")));
        }
        let (t, n) = (total as f64, steps as f64);
        let timesteps: Vec<f64> = match self.config.timestep_spacing {
            Spacing::Leading => {
                let ratio = total / steps;
                (0..steps).rev().map(|i| (i * ratio + self.config.steps_offset) as f64).collect()
            }
            Spacing::Linspace if steps == 1 => vec![0.0],
            // The operations are those of numpy's linspace and arange, so that rounding errors near a half are the same.
            Spacing::Linspace => {
                let stride = (t - 1.0) / (n - 1.0);
                (0..steps).rev().map(|i| (i as f64 * stride).round_ties_even()).collect()
            }
            Spacing::Trailing => {
                let stride = (t - t / n) - t;
                (0..steps).map(|i| (t + i as f64 * stride).round_ties_even() - 1.0).collect()
            }
        };
        // With as many steps as timesteps, the offset would lead beyond the last timestep.
        Ok(timesteps.into_iter().map(|x| x.min(t - 1.0)).collect())
    }
}

fn betas(config: &ScheduleConfig) -> Vec<f64> {
    let n = config.num_train_timesteps;
    let line = |from: f64, to: f64, i: usize| from + (to - from) * i as f64 / (n - 1) as f64;
    (0..n)
        .map(|i| match config.beta_schedule {
            BetaSchedule::Linear => line(config.beta_start, config.beta_end, i),
            BetaSchedule::ScaledLinear => line(config.beta_start.sqrt(), config.beta_end.sqrt(), i).powi(2),
            BetaSchedule::SquaredcosCapV2 => {
                let bar = |x: f64| ((x + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                (1.0 - bar((i + 1) as f64 / n as f64) / bar(i as f64 / n as f64)).min(0.999)
            }
        })
        .collect()
}

/// Lin et al., 2023, algorithm 1: shifts sqrt(ᾱ) so that it ends at 0, and scales it so that its first value is unchanged.
fn rescale_to_zero_terminal_snr(alpha_bars: &mut [f64]) {
    let (first, last) = (alpha_bars[0].sqrt(), alpha_bars[alpha_bars.len() - 1].sqrt());
    for a in alpha_bars {
        *a = ((a.sqrt() - last) * first / (first - last)).powi(2);
    }
}

#[cfg(test)]
mod tests;
