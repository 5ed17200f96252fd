//! Plan menus and quality frontiers as files: those that come with a model, and those that were measured of it.

use anyhow::{Context, bail};
use pentimento_pipelines::Pipeline;

use crate::menu::Menu;
use crate::plan::FrontierFile;

/// A frontier's file within its model's folder: what the planner goes by until it chooses from menus.
const FILE: &str = "calibration/frontier.json";
/// A menu's file within its model's folder.
const MENU: &str = "calibration/menu.json";

/// The menu that comes with a model, if any.
///
/// # Errors
/// It is damaged, or was measured of other weights.
pub fn menu_of(pipeline: &Pipeline) -> anyhow::Result<Option<Menu>> {
    let Some(bytes) = pipeline.model().files().read(MENU)? else { return Ok(None) };
    checked_menu(&String::from_utf8_lossy(&bytes), pipeline).context(MENU).map(Some)
}

/// A menu, if it was measured of this model's weights.
///
/// # Errors
/// It is damaged, or was measured of other weights.
pub fn checked_menu(text: &str, pipeline: &Pipeline) -> anyhow::Result<Menu> {
    let menu = Menu::from_json(text)?;
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
    use crate::plan::Frontier;

    #[test]
    fn the_embedded_models_frontier_is_its_own() {
        let model = Model::find("storybook").unwrap();
        let model = Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap();
        let file = frontier_of(&model).unwrap().unwrap();
        assert_eq!(file.measured_for.steps, model.defaults().steps);
        assert_eq!(file.measured_for.guidance_scale, model.defaults().guidance_scale);
        let frontier = Frontier::from(&file);
        assert!(frontier.quality(1, 0.0) < 0.9 && frontier.quality(model.defaults().steps, 0.0) > 0.999);
        let other = file.to_json().unwrap().replace(&file.measured_for.weights, "0000");
        let error = checked(&other, &model).unwrap_err().to_string();
        assert!(error.contains("0000") && error.contains(&file.measured_for.weights), "{error}");
    }
}
