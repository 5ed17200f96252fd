//! Pictures on their way into the cache.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::CacheError;
use crate::content::Content;
use crate::entry::{
    Compatibility, Entry, EntryId, Kept, KeptPicture, PaintedPlan, ResumedFrom, Scope, SpecificationHash,
};
use crate::index::check_embedding;
use crate::shared::now;
use crate::store::{MAX_PICTURE_BYTES, State, sha256};

/// Most states that are kept of one picture.
pub(crate) const MAX_STATES: usize = 64;
/// How every PNG file begins.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A picture on its way into the cache: its entry without sizes of states, its file, and its states in the entry's
/// order.
pub(crate) struct Picture {
    pub entry: Entry,
    pub file: Option<Bytes>,
    pub states: Vec<State>,
    /// Whether it replaces any picture of its specification.
    pub refresh: bool,
}

/// A picture just painted, to be kept. Without its file and its states it can travel with the order to paint it.
///
/// A worker calls [`Cache::insert`](crate::Cache::insert) with it after it has answered the request, whatever the
/// plan was. It chooses which states it passes: those of a plan cheaper than the full one serve others only where a
/// calibration table was measured on such sources (see
/// [`Calibration::for_sources_of`](crate::Calibration::for_sources_of)).
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
    /// What the picture is of.
    pub specification: SpecificationHash,
    /// The seed it was painted from.
    pub seed: u64,
    /// The plan that painted it.
    pub plan: PaintedPlan,
    /// See [`Entry::expected_quality`]. Of two pictures of one specification the better is kept, and an unknown quality
    /// is the lowest.
    pub expected_quality: Option<f32>,
    /// What it was resumed from. Of a resumed picture no states are kept: its losses would add up in others.
    pub resumed: Option<ResumedFrom>,
    /// Whether it replaces the stored picture of its specification, however good that is.
    #[serde(default)]
    pub refresh: bool,
    /// Its lossless file, a PNG, of [`MAX_PICTURE_BYTES`] at most.
    #[serde(skip)]
    pub file: Option<Bytes>,
    /// Its states, each with the share of the plan that lay before it (see [`Kept::share`]).
    #[serde(skip)]
    pub states: Vec<(State, f32)>,
}

impl NewPicture {
    /// With a name, and its states in order.
    pub(crate) fn into_picture(mut self) -> Result<Picture, CacheError> {
        check_embedding(&self.embedding)?;
        if self.resumed.is_some() {
            self.states.clear();
        }
        self.states.sort_by(|(a, _), (b, _)| b.timestep.total_cmp(&a.timestep));
        let kept = |(state, share): &(State, f32)| Kept {
            timestep: state.timestep,
            share: *share,
            bytes: 0,
            uses: 0,
        };
        let picture = self.file.as_ref().map(|file| KeptPicture::new(file.len() as u64, sha256(file)));
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
            specification: self.specification,
            seed: self.seed,
            plan: self.plan,
            expected_quality: self.expected_quality,
            resumed: self.resumed,
            picture,
            created,
            last_used: created,
        };
        check(&entry).map_err(CacheError::Picture)?;
        if let Some(file) = &self.file {
            check_file(file).map_err(CacheError::Picture)?;
        }
        let states = self.states.into_iter().map(|(state, _)| state).collect();
        Ok(Picture { entry, file: self.file, states, refresh: self.refresh })
    }
}

/// Refuses an entry that no picture can have, be it a new picture's or an archive's. The embedding is not looked at.
pub(crate) fn check(entry: &Entry) -> Result<(), &'static str> {
    let unit = |number: f32| (0.0..=1.0).contains(&number);
    let states = &entry.states;
    match () {
        () if entry.picture.is_none() && states.is_empty() => Err("has neither a file nor states"),
        () if states.len() > MAX_STATES => Err("has too many states"),
        () if states.windows(2).any(|pair| pair[0].timestep <= pair[1].timestep) => {
            Err("has states out of order, or two of one timestep")
        }
        () if !states.iter().all(|kept| unit(kept.share)) => Err("has a share that is none"),
        () if !entry.guidance_scale.is_finite() => Err("has a guidance scale that is none"),
        () if !entry.expected_quality.is_none_or(unit) => Err("has a quality that is none"),
        () if entry.plan.guided_steps > entry.plan.steps => Err("has more guided steps than steps"),
        () if entry.resumed.as_ref().is_some_and(|from| !unit(from.loss)) => Err("has a loss that is none"),
        () if entry.resumed.is_some() && !states.is_empty() => Err("was resumed, and has states"),
        () => Ok(()),
    }
}

/// Refuses a file that is no picture's.
pub(crate) fn check_file(file: &[u8]) -> Result<(), &'static str> {
    match () {
        () if file.len() as u64 > MAX_PICTURE_BYTES => Err("its file is too large"),
        () if !file.starts_with(PNG) => Err("its file is no PNG"),
        () => Ok(()),
    }
}

/// A name that nobody has and nobody can guess.
pub(crate) fn new_id() -> Result<EntryId, CacheError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|_| CacheError::Picture("no random numbers to be had"))?;
    Ok(EntryId::new(u128::from_le_bytes(random)))
}
