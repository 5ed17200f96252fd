//! Pictures that are inserted into the cache, and the checks that they must pass.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::CacheError;
use crate::content::Content;
use crate::entry::{
    Compatibility, Entry, EntryId, Kept, KeptPicture, PaintedPlan, ResumedFrom, Scope, SpecificationHash,
};
use crate::index::check_embedding;
use crate::store::{MAX_PICTURE_BYTES, State, sha256};

/// The most states that are stored of one picture.
pub(crate) const MAX_STATES: usize = 64;
/// The first bytes of every PNG file.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A picture that the writer is to store: its entry, whose states have no sizes yet, its file, and its states in the
/// entry's order.
pub(crate) struct PendingPicture {
    pub entry: Entry,
    pub file: Option<Bytes>,
    pub states: Vec<State>,
    /// Whether it replaces the stored picture of its specification whatever that one's quality.
    pub refresh: bool,
}

/// A painted picture, to be stored by [`Cache::insert`](crate::Cache::insert).
///
/// It is serialised without its file and its states, so that a gateway can send it with the order to paint. The worker
/// adds these and inserts every finished picture, whatever its plan was. States of a plan cheaper than the full one are
/// reused only if a calibration table was measured on such sources: see
/// [`Calibration::for_sources_of`](crate::Calibration::for_sources_of).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct NewPicture {
    /// The tenant and namespace that may see it.
    pub scope: Scope,
    /// What a request must have in common with it to reuse its states.
    pub compatibility: Compatibility,
    /// The model that painted it.
    pub model: String,
    /// The guidance scale that it was painted with.
    pub guidance_scale: f32,
    /// The prompt's embedding, of length 1.
    pub embedding: Vec<f32>,
    /// The prompt; `None` if the operator does not allow it to be stored.
    pub prompt: Option<String>,
    /// A hash of the prompt.
    pub prompt_hash: String,
    /// The prompt's content words.
    pub content: Content,
    /// The picture's specification.
    pub specification: SpecificationHash,
    /// The seed it was painted from.
    pub seed: u64,
    /// The plan that painted it.
    pub plan: PaintedPlan,
    /// See [`Entry::expected_quality`]. Of two pictures of one specification the better one is stored; an unknown quality
    /// counts as the lowest.
    pub expected_quality: Option<f32>,
    /// The source that it was resumed from. No states of a resumed picture are stored, because its loss would add to that
    /// of the pictures resumed from them.
    pub resumed: Option<ResumedFrom>,
    /// Whether it replaces the stored picture of its specification whatever that one's quality.
    #[serde(default)]
    pub refresh: bool,
    /// Its lossless file, a PNG of at most [`MAX_PICTURE_BYTES`].
    #[serde(skip)]
    pub file: Option<Bytes>,
    /// Its states, each with its share (see [`Kept::share`]).
    #[serde(skip)]
    pub states: Vec<(State, f32)>,
}

impl NewPicture {
    /// Checks the picture, gives it an id, and sorts its states. `now` is in seconds since 1970.
    pub(crate) fn into_pending(mut self, now: u64) -> Result<PendingPicture, CacheError> {
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
        let created = now;
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
        check_entry(&entry).map_err(CacheError::Picture)?;
        if let Some(file) = &self.file {
            check_file(file).map_err(CacheError::Picture)?;
        }
        let states = self.states.into_iter().map(|(state, _)| state).collect();
        Ok(PendingPicture { entry, file: self.file, states, refresh: self.refresh })
    }
}

/// Refuses an impossible entry, of a new picture or from an archive. Its embedding is checked elsewhere.
pub(crate) fn check_entry(entry: &Entry) -> Result<(), &'static str> {
    let unit = |number: f32| (0.0..=1.0).contains(&number);
    let states = &entry.states;
    match () {
        () if entry.picture.is_none() && states.is_empty() => Err("has neither a file nor states"),
        () if states.len() > MAX_STATES => Err("has too many states"),
        () if states.windows(2).any(|pair| pair[0].timestep <= pair[1].timestep) => {
            Err("has states out of order, or two of one timestep")
        }
        () if !states.iter().all(|kept| unit(kept.share)) => Err("has a share that is not from 0 to 1"),
        () if !entry.guidance_scale.is_finite() => Err("has a guidance scale that is not finite"),
        () if !entry.expected_quality.is_none_or(unit) => Err("has a quality that is not from 0 to 1"),
        () if entry.plan.guided_steps > entry.plan.steps => Err("has more guided steps than steps"),
        () if entry.resumed.as_ref().is_some_and(|from| !unit(from.loss)) => {
            Err("has a loss that is not from 0 to 1")
        }
        () if entry.resumed.is_some() && !states.is_empty() => Err("was resumed, and has states"),
        () => Ok(()),
    }
}

/// Refuses a file that is too large or no PNG.
pub(crate) fn check_file(file: &[u8]) -> Result<(), &'static str> {
    match () {
        () if file.len() as u64 > MAX_PICTURE_BYTES => Err("its file is too large"),
        () if !file.starts_with(PNG) => Err("its file is no PNG"),
        () => Ok(()),
    }
}

/// Makes an unguessable, unique id.
pub(crate) fn new_id() -> Result<EntryId, CacheError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|_| CacheError::Picture("the system has no random numbers"))?;
    Ok(EntryId::new(u128::from_le_bytes(random)))
}
