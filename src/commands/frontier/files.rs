//! Plan menus as files: those that come with a model, and those that were measured of it.

use anyhow::{Context, bail};
use pentimento_pipelines::Pipeline;

use crate::menu::MenuFile;

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

#[cfg(test)]
#[cfg(feature = "embedded-model")]
mod tests {
    use pentimento_pipelines::{Components, Defaults, Device, Model};

    use super::*;

    #[test]
    fn a_menu_of_other_weights_is_refused() {
        let model = Model::find("storybook").unwrap();
        let model = Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap();
        let of = |weights: &str| {
            let Defaults { steps, guidance_scale, size } = *model.defaults();
            let menu = MenuFile::unmeasured("storybook", weights, size, steps, guidance_scale).unwrap();
            menu.to_json().unwrap()
        };
        let own = model.model().digest().unwrap();
        assert!(checked_menu(&of(own), &model).is_ok());
        let error = checked_menu(&of("0000"), &model).unwrap_err().to_string();
        assert!(error.contains("0000") && error.contains(own), "{error}");
    }
}
