//! Which plans each model offers.

use anyhow::{Context, anyhow};
use pentimento_pipelines::{Defaults, Pipeline};

use super::Failure;
use super::frontier::{checked_menu, menu_of};
use crate::config::Config;
use crate::menu::MenuFile;

/// The menu of each model, in their order: one that the configuration names, or else the model's own; where there is none,
/// or the model's own cannot be used, a menu of assumed qualities.
///
/// # Errors
/// [`Failure::Misuse`] where a file that the configuration names cannot be used.
pub fn menus(config: &Config, models: &[Pipeline]) -> Result<Vec<MenuFile>, Failure> {
    let named = read_named(config, models).map_err(Failure::Misuse)?;
    models.iter().map(|model| menu(config, model, &named)).collect()
}

fn menu(config: &Config, model: &Pipeline, named: &[MenuFile]) -> Result<MenuFile, Failure> {
    if let Some(named) = named.iter().find(|menu| menu.measured_for().model == model.id()) {
        return Ok(named.clone());
    }
    let own = menu_of(model).unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "a model's own menu is not used");
        None
    });
    if let Some(own) = own {
        return Ok(own);
    }
    let Defaults { steps, guidance_scale, size } = *model.defaults();
    let (steps, weights) = (steps.min(config.max_steps), model.model().digest()?);
    Ok(MenuFile::unmeasured(model.id(), weights, size, steps, guidance_scale)?)
}

/// The menus that the configuration names, each measured of the weights of one of these models.
fn read_named(config: &Config, models: &[Pipeline]) -> anyhow::Result<Vec<MenuFile>> {
    let read = |path: &std::path::PathBuf| {
        let context = || format!("menu: {}", path.display());
        let text = std::fs::read_to_string(path).with_context(context)?;
        let model = MenuFile::from_json(&text).with_context(context)?.measured_for().model.clone();
        let model = models.iter().find(|known| known.id() == model);
        let model = model.ok_or_else(|| anyhow!("it was measured of a model that is not served"));
        checked_menu(&text, model.with_context(context)?).with_context(context)
    };
    config.menu.iter().map(read).collect()
}
