//! The menu of a model that was not measured.

use pentimento_pipelines::{PlanOption, Size};

use super::error::MenuFileError;
use super::estimate::Estimate;
use super::file::{MeasuredOption, MenuFile, MenuFor, MenuPoint, MenuStart};

/// The step counts that are offered, those of `pentimento frontier`'s default grid and the ones below and above it.
const STEPS: [usize; 16] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 35, 50, 100, 300];

impl MenuFile {
    /// A menu of step counts up to the full plan's, all steps guided, of assumed quality 1 − (1/steps − 1/full).
    ///
    /// DDIM is a solver of first order (Lu et al., 2022, DPM-Solver, sec. 4.1), whose error falls with 1/steps. That a
    /// single step is worth nothing is an assumption, and a careful one: it asks for 9 of 50 steps for 0.9, and for 34
    /// for 0.99, where measured models need fewer. States of the full plan are assumed to be worth no more than noise.
    ///
    /// # Errors
    /// [`MenuFileError::OutOfBounds`] for a full plan or a guidance scale out of bounds.
    pub fn unmeasured(
        model: &str,
        weights: &str,
        size: Size,
        full_steps: usize,
        guidance_scale: f32,
    ) -> Result<Self, MenuFileError> {
        let rows_of_a_step = if guidance_scale > 1.0 { 2.0 } else { 1.0 };
        let option = |steps: usize| {
            let point = MenuPoint {
                share: 0.0,
                steps: steps as f64,
                rows: steps as f64 * rows_of_a_step,
                quality: Estimate::exactly(1.0 - (1.0 / steps as f64 - 1.0 / full_steps as f64)),
                fidelity: None,
                realism: None,
                clip_score: None,
                closeness: None,
            };
            MeasuredOption { option: PlanOption::guided(steps), from: vec![point] }
        };
        let measured_for = MenuFor {
            model: model.to_owned(),
            weights: weights.to_owned(),
            size,
            guidance_scale,
            full_steps,
            scorer: "assumed".into(),
            scorer_digest: String::new(),
            prompts: 0,
        };
        let steps = STEPS.into_iter().filter(|steps| *steps < full_steps).chain([full_steps]);
        let options = steps.map(option).collect();
        Self::new(measured_for, vec![MenuStart { share: 0.0, noise_level: 1.0 }], options)
    }
}
