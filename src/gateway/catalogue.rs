//! The models served, by id and by alias.

use std::collections::BTreeMap;

use pentimento_pipelines::{Defaults, Pipeline, SizeRange};

use super::Rejection;

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

/// A name that requests may use, and the model behind it.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The name.
    pub name: String,
    /// The model's id.
    pub id: String,
    /// What it paints, in a line.
    pub description: String,
    /// The values it paints best with.
    pub defaults: Defaults,
    /// The sizes it can paint.
    pub sizes: SizeRange,
}

/// The models served; the first is the default.
pub struct Catalogue {
    models: Vec<Pipeline>,
    aliases: BTreeMap<String, usize>,
}

impl Catalogue {
    /// Of loaded models and their aliases.
    ///
    /// # Errors
    /// [`CatalogueError`] where a name would mean two models, or none.
    pub fn new(models: Vec<Pipeline>, aliases: &BTreeMap<String, String>) -> Result<Self, CatalogueError> {
        if models.is_empty() {
            return Err(CatalogueError::Empty);
        }
        let position = |id: &str| models.iter().position(|m| m.id() == id);
        if let Some((_, twice)) = models.iter().enumerate().find(|(i, m)| position(m.id()) != Some(*i)) {
            return Err(CatalogueError::Twice(twice.id().to_owned()));
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

    /// The model of an id or an alias; without one, the default.
    ///
    /// # Errors
    /// [`Rejection::UnknownModel`].
    pub fn find(&self, name: Option<&str>) -> Result<&Pipeline, Rejection> {
        let Some(name) = name else { return Ok(&self.models[0]) };
        let by_id = self.models.iter().find(|m| m.id() == name);
        by_id
            .or_else(|| self.aliases.get(name).map(|&at| &self.models[at]))
            .ok_or_else(|| Rejection::UnknownModel(name.to_owned()))
    }

    /// What there is to know about a name: an id or an alias.
    ///
    /// # Errors
    /// [`Rejection::UnknownModel`].
    pub fn describe(&self, name: &str) -> Result<ModelInfo, Rejection> {
        let model = self.find(Some(name))?;
        Ok(ModelInfo {
            name: name.to_owned(),
            id: model.id().to_owned(),
            description: model.model().description().to_owned(),
            defaults: model.defaults().clone(),
            sizes: model.sizes(),
        })
    }

    /// Every name a request may use: ids first, then aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let aliases = self.aliases.keys().map(String::as_str);
        self.models.iter().map(Pipeline::id).chain(aliases)
    }
}
