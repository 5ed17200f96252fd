//! The DDIM sampler (Song, Meng and Ermon, 2021): a pure function of latent, prediction and schedule.

use candle_core::Tensor;

use crate::error::Result;
use crate::noise::{self, Purpose};
use crate::schedule::{NoiseSchedule, Prediction};

/// The result of a step.
pub struct Stepped {
    /// The latent at the step's target timestep.
    pub latent: Tensor,
    /// The finished latent that this step predicts, which a preview decodes.
    pub predicted: Tensor,
}

/// Takes one step from timestep `from` to the cleaner timestep `to`. By eq. 12 it adds the predicted x₀, the direction towards
/// x_t, and for η > 0 noise that is a function of (`seed`, `from`).
///
/// `latent` and `prediction`, the guided output of the denoiser, have the same shape. `to` may be any cleaner timestep or
/// [`crate::schedule::FINISHED`].
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor), if the shapes differ.
pub fn step(
    schedule: &NoiseSchedule,
    latent: &Tensor,
    prediction: &Tensor,
    (from, to): (f64, f64),
    eta: f32,
    seed: u64,
) -> Result<Stepped> {
    let (a, a_to) = (schedule.alpha_bar(from), schedule.alpha_bar(to));
    let (signal, noise_level) = (a.sqrt(), (1.0 - a).sqrt());
    let (x0, epsilon) = match schedule.config().prediction_type {
        Prediction::Epsilon => (((latent - (prediction * noise_level)?)? / signal)?, prediction.clone()),
        Prediction::VPrediction => (
            ((latent * signal)? - (prediction * noise_level)?)?,
            ((prediction * signal)? + (latent * noise_level)?)?,
        ),
    };
    let x0 = if schedule.config().clip_sample {
        let range = schedule.config().clip_sample_range;
        x0.clamp(-range, range)?
    } else {
        x0
    };
    // Eq. 16. This form is also the limit for ᾱ = 0 (zero terminal SNR).
    let sigma = f64::from(eta) * ((1.0 - a_to) / (1.0 - a) * (1.0 - a / a_to)).max(0.0).sqrt();
    let direction = (1.0 - a_to - sigma * sigma).max(0.0).sqrt();
    let next = ((&x0 * a_to.sqrt())? + (epsilon * direction)?)?;
    if sigma == 0.0 {
        return Ok(Stepped { latent: next, predicted: x0 });
    }
    let fresh = noise::at_timestep(Purpose::Step, seed, from, latent.elem_count());
    let fresh = Tensor::from_vec(fresh, latent.shape(), latent.device())?;
    Ok(Stepped { latent: (next + (fresh * sigma)?)?, predicted: x0 })
}

/// Adds forward noise to a latent at timestep `from`, up to the noisier or same timestep `to`. The noise is a function of
/// (`seed`, `to`).
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor).
pub fn add_noise(
    schedule: &NoiseSchedule,
    latent: &Tensor,
    (from, to): (f64, f64),
    seed: u64,
) -> Result<Tensor> {
    if from == to {
        return Ok(latent.clone());
    }
    let keep = schedule.alpha_bar(to) / schedule.alpha_bar(from);
    let fresh = noise::at_timestep(Purpose::Forward, seed, to, latent.elem_count());
    let fresh = Tensor::from_vec(fresh, latent.shape(), latent.device())?;
    Ok(((latent * keep.sqrt())? + (fresh * (1.0 - keep).max(0.0).sqrt())?)?)
}

#[cfg(test)]
#[path = "../tests/integration/support/hash_weights.rs"]
#[allow(dead_code)] // the integration tests use the rest
mod hash_weights;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use candle_core::{DType, Device};
    use serde_json::Value;

    use super::hash_weights::normal_like;
    use super::*;
    use crate::plan::StepPlan;
    use crate::schedule::{FINISHED, ScheduleConfig};

    /// The tolerance relative to the golden's largest value. diffusers stores ᾱ in f32, the engine in f64.
    const TOLERANCE: f32 = 1e-5;
    const SEED: u64 = 7;
    const LATENT: (usize, usize, usize) = (4, 8, 8);

    fn schedule(prediction_type: Prediction) -> NoiseSchedule {
        NoiseSchedule::new(ScheduleConfig { prediction_type, ..Default::default() }).unwrap()
    }

    fn tensor(values: Vec<f32>) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn golden_file(file: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/scheduler").join(file))
            .unwrap()
    }

    fn goldens() -> HashMap<String, Tensor> {
        candle_core::safetensors::load_buffer(&golden_file("golden.safetensors"), &Device::Cpu).unwrap()
    }

    /// Prints and checks max |ours − golden| / max |golden|.
    fn check(name: &str, ours: &Tensor, golden: &Tensor) {
        let largest =
            |x: &Tensor| x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let error = largest(&(ours - golden).unwrap()) / largest(golden);
        println!("scheduler  {name:40} {error:.2e}");
        assert!(error <= TOLERANCE, "{name}: {error:.2e} > {TOLERANCE:.0e}");
    }

    /// Tests every spacing, prediction type, β schedule and η without a network. `make_goldens.py` ran diffusers' DDIMScheduler
    /// with the same hashes as predictions and with this engine's noise. If diffusers does not step to the plan's next
    /// timestep (`to_next_timestep` in cases.json), the golden is a loop of eq. 12.
    #[test]
    fn every_scheduler_setting_matches_diffusers() {
        let goldens = goldens();
        let cases: Vec<Value> = serde_json::from_slice(&golden_file("cases.json")).unwrap();
        for case in &cases {
            let name = case["name"].as_str().unwrap();
            let schedule = NoiseSchedule::from_json(case["scheduler"].to_string().as_bytes()).unwrap();
            let plan = StepPlan::ddim(&schedule, case["steps"].as_u64().unwrap() as usize, 1.0).unwrap();
            let timesteps: Vec<f64> = plan.steps().iter().map(|step| step.timestep).collect();
            let golden = goldens[&format!("{name}.timesteps")].to_dtype(DType::F64).unwrap();
            assert_eq!(timesteps, golden.to_vec1::<f64>().unwrap(), "{name}");

            let eta = case["eta"].as_f64().unwrap_or(0.0) as f32;
            let mut latent = normal_like(&format!("scheduler/{name}.latent"), LATENT).unwrap();
            for (i, &from) in timesteps.iter().enumerate() {
                let to = timesteps.get(i + 1).copied().unwrap_or(FINISHED);
                let prediction = normal_like(&format!("scheduler/{name}.prediction.{i}"), LATENT).unwrap();
                latent = step(&schedule, &latent, &prediction, (from, to), eta, SEED).unwrap().latent;
                let golden = goldens[&format!("{name}.latents")].get(i).unwrap();
                check(&format!("{name}, from {from}"), &latent, &golden);
            }
        }
    }

    #[test]
    fn forward_noise_matches_diffusers() {
        let clean = normal_like("scheduler/forward.latent", LATENT).unwrap();
        let noisy = add_noise(&schedule(Prediction::Epsilon), &clean, (FINISHED, 601.0), SEED).unwrap();
        check("forward, to 601", &noisy, &goldens()["forward"]);
    }

    /// With a perfect denoiser any steps lead to the true picture, with either prediction type.
    #[test]
    fn a_perfect_denoiser_recovers_the_picture() {
        let (x0, noise) = (tensor(vec![0.3, -1.2, 0.9]), tensor(vec![-0.5, 0.1, 1.7]));
        for prediction in [Prediction::Epsilon, Prediction::VPrediction] {
            let s = schedule(prediction);
            let at = |t: f64| {
                let a = s.alpha_bar(t);
                ((&x0 * a.sqrt()).unwrap() + (&noise * (1.0 - a).sqrt()).unwrap()).unwrap()
            };
            let mut x = at(900.0);
            for (from, to) in [(900.0, 433.5), (433.5, 20.0), (20.0, FINISHED)] {
                let a = s.alpha_bar(from);
                let out = match prediction {
                    Prediction::Epsilon => noise.clone(),
                    Prediction::VPrediction => {
                        ((&noise * a.sqrt()).unwrap() - (&x0 * (1.0 - a).sqrt()).unwrap()).unwrap()
                    }
                };
                x = step(&s, &x, &out, (from, to), 0.0, 1).unwrap().latent;
                let error =
                    (&x - at(to)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(error < 1e-4, "{prediction:?} {from}->{to}: {error}");
            }
        }
    }

    #[test]
    fn forward_noise_has_the_variance_of_its_timestep() {
        let s = schedule(Prediction::Epsilon);
        let clean = Tensor::zeros(20_000, candle_core::DType::F32, &Device::Cpu).unwrap();
        let x = add_noise(&s, &clean, (FINISHED, 300.0), 5).unwrap();
        let variance = x.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(variance) - (1.0 - s.alpha_bar(300.0))).abs() < 0.02, "{variance}");
        let same = add_noise(&s, &x, (300.0, 300.0), 5).unwrap();
        assert_eq!(same.to_vec1::<f32>().unwrap(), x.to_vec1::<f32>().unwrap());
    }

    /// The noise of a step is independent of the forward noise that led to its timestep.
    #[test]
    fn forward_and_step_noise_add_up_as_variances() {
        let s = schedule(Prediction::Epsilon);
        let clean = Tensor::zeros(20_000, candle_core::DType::F32, &Device::Cpu).unwrap();
        let x = add_noise(&s, &clean, (FINISHED, 500.0), 5).unwrap();
        let epsilon = (&x / (1.0 - s.alpha_bar(500.0)).sqrt()).unwrap();
        let next = step(&s, &x, &epsilon, (500.0, 400.0), 1.0, 5).unwrap().latent;
        let variance = next.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(variance) - (1.0 - s.alpha_bar(400.0))).abs() < 0.02, "{variance}");
    }

    #[test]
    fn eta_adds_noise_that_only_seed_and_timestep_decide() {
        let s = schedule(Prediction::Epsilon);
        let (x, out) = (tensor(vec![1.0; 64]), tensor(vec![0.5; 64]));
        let go = |eta, seed| {
            step(&s, &x, &out, (500.0, 400.0), eta, seed).unwrap().latent.to_vec1::<f32>().unwrap()
        };
        assert_eq!(go(1.0, 3), go(1.0, 3));
        assert_ne!(go(1.0, 3), go(1.0, 4));
        assert_eq!(go(0.0, 3), go(0.0, 4));
    }
}
