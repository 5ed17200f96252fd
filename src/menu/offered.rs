//! From the file to the menu that the scheduler chooses from: each option's cost curve under the model's noise schedule.

use pentimento_pipelines::{NoiseSchedule, PlanOption};

use super::file::{MenuFile, MenuPoint};
use super::{Estimate, MenuStart};
use crate::scheduler::menu::{Measured, Menu, MenuError, MenuOption, OptionStep};

/// Why there is no menu.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// An option cannot be planned under the model's noise schedule.
    #[error(transparent)]
    Plan(#[from] pentimento_pipelines::Error),
    /// The scheduler does not take it.
    #[error(transparent)]
    Menu(#[from] MenuError),
}

impl MenuFile {
    /// The menu as the scheduler sees it.
    ///
    /// # Errors
    /// [`OfferError`]
    pub fn offered(&self, schedule: &NoiseSchedule, guidance_scale: f32) -> Result<Menu, OfferError> {
        let options = self.options().iter().map(|measured| {
            let quality = |(start, point): (&MenuStart, &MenuPoint)| {
                let Estimate { mean, low, high } = point.quality;
                let [mean, low, high] = [mean, low, high].map(|quality| quality.clamp(0.0, 1.0));
                Measured { noise_level: start.noise_level, mean, low, high }
            };
            let quality = self.starts().iter().zip(&measured.from).map(quality).collect();
            menu_option(&measured.option, quality, schedule, guidance_scale)
        });
        Ok(Menu::new(options.collect::<Result<_, OfferError>>()?)?)
    }
}

/// An option with its cost curve.
///
/// # Errors
/// [`OfferError::Plan`] where it cannot be planned.
pub fn menu_option(
    option: &PlanOption,
    quality: Vec<Measured>,
    schedule: &NoiseSchedule,
    guidance_scale: f32,
) -> Result<MenuOption, OfferError> {
    let plan = option.plan(schedule, guidance_scale)?;
    let step = |(i, step): (usize, &pentimento_pipelines::Step)| OptionStep {
        // The first step is taken from pure noise, whatever the schedule calls its level.
        noise_level: if i == 0 { 1.0 } else { schedule.noise_level(step.timestep) },
        rows: step.guidance.rows() as u32,
    };
    let steps = plan.steps().iter().enumerate().map(step).collect();
    Ok(MenuOption { id: option.id.as_str().into(), denoiser: String::new(), steps, quality })
}

#[cfg(test)]
mod tests {
    use super::super::Size;
    use super::*;

    #[test]
    fn an_assumed_menu_is_offered_with_its_rows() {
        let json = br#"{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}"#;
        let schedule = NoiseSchedule::from_json(json).unwrap();
        let size = Size { width: 64, height: 64 };
        let file = MenuFile::unmeasured("m", "w", size, 50, 5.0).unwrap();
        let menu = file.offered(&schedule, 5.0).unwrap();
        let best = menu.find(&"ddim-50".into()).unwrap();
        assert_eq!((menu.len(), menu.remaining(best, 1.0).rows), (file.options().len(), 100));
        let half = PlanOption::ddim(&schedule, 12, 7).unwrap();
        let option = menu_option(&half, vec![], &schedule, 5.0).unwrap();
        assert_eq!(option.steps.iter().map(|step| step.rows).sum::<u32>(), 19);
    }
}
