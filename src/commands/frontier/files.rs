//! Plan menus and quality frontiers as files: those that come with a model, and those that were measured of it.

use anyhow::{Context, bail};
use pentimento_pipelines::Pipeline;

use crate::menu::MenuFile;
use crate::plan::FrontierFile;

/// A frontier's file within its model's folder: what the planner goes by until it chooses from menus.
const FILE: &str = "calibration/frontier.json";
/// A menu's file within its model's folder.
const MENU: &str = "calibration/menu.json";

/// The menu that comes with a model, if any.
///
/// # Errors
/// It is damaged, or was measured of other weights.
pub fn menu_of(pipeline: &Pipeline) -> anyhow::Result<Option<MenuFile>> {
    let Some(bytes) = pipeline.model().files().read(MENU)? else { return Ok(None) };
    checked_menu(&String::from_utf8_lossy(&bytes), pipeline).context(MENU).map(Some)
}

/// A menu, if it was measured of this model's weights.
///
/// # Errors
/// It is damaged, or was measured of other weights.
pub fn checked_menu(text: &str, pipeline: &Pipeline) -> anyhow::Result<MenuFile> {
    let menu = MenuFile::from_json(text)?;
    let (of, weights) = (menu.measured_for(), pipeline.model().digest()?);
    if of.weights != weights {
        bail!(
            "was measured of the model {} with weights {}, not of {} with {weights}",
            of.model,
            of.weights,
            pipeline.id()
        );
    }
    Ok(menu)
}

/// The frontier that comes with a model, if any.
///
/// # Errors
/// It is damaged, or was measured of other weights.
pub fn frontier_of(pipeline: &Pipeline) -> anyhow::Result<Option<FrontierFile>> {
    let Some(bytes) = pipeline.model().files().read(FILE)? else { return Ok(None) };
    checked(&String::from_utf8_lossy(&bytes), pipeline).context(FILE).map(Some)
}

/// A frontier, if it was measured of this model's weights.
///
/// # Errors
/// It is damaged, or was measured of other weights.
pub fn checked(text: &str, pipeline: &Pipeline) -> anyhow::Result<FrontierFile> {
    let frontier = FrontierFile::from_json(text)?;
    let weights = pipeline.model().digest()?;
    if frontier.measured_for.weights != weights {
        bail!(
            "was measured of the model {} with weights {}, not of {} with {weights}",
            frontier.measured_for.model,
            frontier.measured_for.weights,
            pipeline.id()
        );
    }
    Ok(frontier)
}

#[cfg(test)]
#[cfg(feature = "embedded-model")]
mod tests {
    use pentimento_pipelines::{Components, Device, Model};

    use super::*;
    use crate::plan::{Curve, FrontierFor, Point};

    #[test]
    fn a_frontier_of_other_weights_is_refused() {
        let model = Model::find("storybook").unwrap();
        let model = Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap();
        let of = |weights: &str| {
            let point = |steps, quality| Point {
                steps,
                quality,
                low: quality,
                high: quality,
                fidelity: None,
                clip_score: None,
            };
            let measured_for = FrontierFor {
                model: "storybook".into(),
                weights: weights.into(),
                steps: 50,
                guidance_scale: 5.0,
                prompts: 2,
            };
            let curve = Curve { skipped: 0.0, points: vec![point(4, 0.9), point(50, 1.0)] };
            FrontierFile::new(measured_for, vec![curve]).unwrap().to_json().unwrap()
        };
        let own = model.model().digest().unwrap();
        assert!(checked(&of(own), &model).is_ok());
        let error = checked(&of("0000"), &model).unwrap_err().to_string();
        assert!(error.contains("0000") && error.contains(own), "{error}");
    }
}
