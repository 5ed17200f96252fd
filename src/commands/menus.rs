//! The models that are served, each with its plan menu.

use anyhow::{Context, anyhow};
use pentimento_pipelines::Pipeline;

use super::Failure;
use super::frontier::{checked_menu, menu_of};
use crate::config::Config;
use crate::gateway::ServedModel;
use crate::menu::MenuFile;

/// Each of these models with its menu, in their order: one that the configuration names, or else the model's own; where
/// there is none, or the model's own cannot be used, a menu of assumed qualities.
///
/// # Errors
/// [`Failure::Misuse`] where a file that the configuration names cannot be used.
pub fn served_models(config: &Config, models: &[Pipeline]) -> Result<Vec<ServedModel>, Failure> {
    let named = read_named(config, models).map_err(Failure::Misuse)?;
    let served = |model| Ok(ServedModel::new(model, measured(model, &named), config.max_steps)?);
    models.iter().map(served).collect()
}

fn measured(model: &Pipeline, named: &[MenuFile]) -> Option<MenuFile> {
    let named = named.iter().find(|menu| menu.measured_for().model == model.id()).cloned();
    named.or_else(|| {
        menu_of(model).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "a model's own menu is not used");
            None
        })
    })
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
