//! The models served, by id and by alias: what is known of them as data.

use std::collections::BTreeMap;
use std::sync::Arc;

use pentimento_pipelines::{Defaults, NoiseSchedule, Pipeline, PlanOption, SizeRange};

use super::Rejection;
use crate::menu::{MenuFile, MenuFileError, OfferError, menu_option};
use crate::scheduler::ModelId;
use crate::scheduler::menu::{Menu, MenuOption};

/// What an alias calls the default model.
const DEFAULT: &str = "default";

/// Why there is no catalogue.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// Nothing to serve.
    #[error("model: no model is to be served")]
    Empty,
    /// Two models answer to one name.
    #[error("model: two models are called {0:?}")]
    Twice(String),
    /// An alias of nothing.
    #[error("aliases: {alias:?} stands for {model:?}, which is not served")]
    Alias {
        /// The alias.
        alias: String,
        /// What it stands for.
        model: String,
    },
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServedModelError {
    /// Its weights have no digest, or its full plan cannot be.
    #[error(transparent)]
    Engine(#[from] pentimento_pipelines::Error),
    /// Its menu.
    #[error(transparent)]
    Menu(#[from] MenuFileError),
    /// Its menu does not fit its noise schedule.
    #[error(transparent)]
    Offer(#[from] OfferError),
}

/// What the gateway knows of a model.
#[derive(Debug, Clone)]
pub struct ServedModel {
    /// Its id.
    pub id: ModelId,
    /// What it paints, in a line.
    pub description: String,
    /// The values it paints best with.
    pub defaults: Defaults,
    /// The sizes it can paint.
    pub sizes: SizeRange,
    /// Its noise schedule.
    pub schedule: NoiseSchedule,
    /// Digest of its weights, and the precision that they are used in.
    pub weights: String,
    /// Its plan menu.
    pub menu: MenuFile,
    /// The same as the scheduler sees it.
    pub offered: Menu,
    /// The full plan, all of its steps guided.
    pub full: MenuOption,
}

impl ServedModel {
    /// A loaded model with its measured menu; without one it gets a menu of assumed qualities. No option has more than
    /// `max_steps` steps.
    ///
    /// # Errors
    /// [`ServedModelError`]
    pub fn new(
        pipeline: &Pipeline,
        menu: Option<MenuFile>,
        max_steps: usize,
    ) -> Result<Self, ServedModelError> {
        let Defaults { steps, guidance_scale, size } = *pipeline.defaults();
        let steps = steps.min(max_steps).max(1);
        let schedule = pipeline.schedule().clone();
        let digest = pipeline.model().digest()?.to_owned();
        let assumed = || MenuFile::unmeasured(pipeline.id(), &digest, size, steps, guidance_scale);
        let menu = match menu.map(|menu| at_most(&menu, max_steps)).transpose()?.flatten() {
            Some(menu) => menu,
            None => assumed()?,
        };
        let full = menu_option(&PlanOption::guided(steps), vec![], &schedule, guidance_scale)?;
        Ok(Self {
            id: pipeline.id().into(),
            description: pipeline.model().description().to_owned(),
            defaults: Defaults { steps, guidance_scale, size },
            sizes: pipeline.sizes(),
            weights: format!("{digest} {}", pipeline.precision()),
            offered: menu.offered(&schedule, guidance_scale)?,
            schedule,
            menu,
            full,
        })
    }
}

/// The options of a menu that have so many steps at most; `None` where there is none.
fn at_most(menu: &MenuFile, steps: usize) -> Result<Option<MenuFile>, MenuFileError> {
    let options: Vec<_> =
        menu.options().iter().filter(|option| option.option.steps <= steps).cloned().collect();
    if options.is_empty() {
        return Ok(None);
    }
    MenuFile::new(menu.measured_for().clone(), menu.starts().to_vec(), options).map(Some)
}

/// The models served; the first is the default.
pub struct Catalogue {
    models: Vec<Arc<ServedModel>>,
    aliases: BTreeMap<String, usize>,
}

impl Catalogue {
    /// Of models and their aliases.
    ///
    /// # Errors
    /// [`CatalogueError`] where a name would mean two models, or none.
    pub fn new(models: Vec<ServedModel>, aliases: &BTreeMap<String, String>) -> Result<Self, CatalogueError> {
        let models: Vec<Arc<ServedModel>> = models.into_iter().map(Arc::new).collect();
        if models.is_empty() {
            return Err(CatalogueError::Empty);
        }
        let position = |id: &str| models.iter().position(|model| model.id.as_str() == id);
        if let Some((_, twice)) =
            models.iter().enumerate().find(|(i, model)| position(model.id.as_str()) != Some(*i))
        {
            return Err(CatalogueError::Twice(twice.id.as_str().to_owned()));
        }
        let mut known = BTreeMap::new();
        for (alias, model) in aliases {
            let found = position(model).or((model == DEFAULT).then_some(0));
            let at =
                found.ok_or_else(|| CatalogueError::Alias { alias: alias.clone(), model: model.clone() })?;
            known.insert(alias.clone(), at);
        }
        Ok(Self { models, aliases: known })
    }

    /// The models, the default one first.
    pub fn models(&self) -> &[Arc<ServedModel>] {
        &self.models
    }

    /// The model of an id or an alias; without one, the default.
    ///
    /// # Errors
    /// [`Rejection::UnknownModel`].
    pub fn find(&self, name: Option<&str>) -> Result<&Arc<ServedModel>, Rejection> {
        let Some(name) = name else { return Ok(&self.models[0]) };
        let by_id = self.models.iter().find(|model| model.id.as_str() == name);
        by_id
            .or_else(|| self.aliases.get(name).map(|&at| &self.models[at]))
            .ok_or_else(|| Rejection::UnknownModel(name.to_owned()))
    }

    /// Every name a request may use: ids first, then aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let aliases = self.aliases.keys().map(String::as_str);
        self.models.iter().map(|model| model.id.as_str()).chain(aliases)
    }
}
