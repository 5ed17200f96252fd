//! Pictures on their way into the cache.

use serde::{Deserialize, Serialize};

use crate::config::CacheError;
use crate::content::Content;
use crate::entry::{Compatibility, Entry, EntryId, Kept, Scope};
use crate::index::check_embedding;
use crate::shared::now;
use crate::store::State;

/// Most states that are kept of one picture.
pub(crate) const MAX_STATES: usize = 64;

/// A picture on its way into the cache: its entry without sizes, and its states in the same order.
pub(crate) struct Picture {
    pub entry: Entry,
    pub states: Vec<State>,
}

/// A picture just painted from scratch with a full plan, to be kept. Without its states it can travel with the
/// order to paint it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct NewPicture {
    /// Who may see it.
    pub scope: Scope,
    /// Whom its states can serve.
    pub compatibility: Compatibility,
    /// The model that painted it.
    pub model: String,
    /// Guidance scale it was painted with.
    pub guidance_scale: f32,
    /// The prompt's embedding, of length 1.
    pub embedding: Vec<f32>,
    /// The prompt, where the operator lets it be stored.
    pub prompt: Option<String>,
    /// Hash of the prompt.
    pub prompt_hash: String,
    /// The prompt's content words.
    pub content: Content,
    /// See [`Entry::exact`].
    pub exact: String,
    /// The seed it was painted from.
    pub seed: u64,
    /// Its states, each with the share of the plan that lay before it (see [`Kept::share`]).
    #[serde(skip)]
    pub states: Vec<(State, f32)>,
}

impl NewPicture {
    /// With a name, and its states in order.
    pub(crate) fn into_picture(mut self) -> Result<Picture, CacheError> {
        check_embedding(&self.embedding)?;
        if self.states.is_empty() || self.states.len() > MAX_STATES {
            return Err(CacheError::Picture("has no states, or too many"));
        }
        self.states.sort_by(|(a, _), (b, _)| b.timestep.total_cmp(&a.timestep));
        let shares = self.states.iter().all(|(_, share)| (0.0..=1.0).contains(share));
        if !shares || !self.guidance_scale.is_finite() {
            return Err(CacheError::Picture("has a guidance scale or a share that is none"));
        }
        if self.states.windows(2).any(|pair| pair[0].0.timestep == pair[1].0.timestep) {
            return Err(CacheError::Picture("has two states of one timestep"));
        }
        let kept = |(state, share): &(State, f32)| Kept {
            timestep: state.timestep,
            share: *share,
            bytes: 0,
            uses: 0,
        };
        let created = now();
        let entry = Entry {
            id: new_id()?,
            states: self.states.iter().map(kept).collect(),
            scope: self.scope,
            compatibility: self.compatibility,
            model: self.model,
            guidance_scale: self.guidance_scale,
            embedding: self.embedding,
            prompt: self.prompt,
            prompt_hash: self.prompt_hash,
            content: self.content,
            exact: self.exact,
            seed: self.seed,
            created,
            last_used: created,
        };
        Ok(Picture { entry, states: self.states.into_iter().map(|(state, _)| state).collect() })
    }
}

/// A name that nobody has and nobody can guess.
pub(crate) fn new_id() -> Result<EntryId, CacheError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|_| CacheError::Picture("no random numbers to be had"))?;
    Ok(EntryId::new(u128::from_le_bytes(random)))
}
