//! What the cache knows of a painted picture.

use serde::{Deserialize, Serialize};

use crate::content::Content;

/// Who may see an entry: a tenant, and a namespace within it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Scope {
    /// The tenant, from the API key; never from a request's body.
    pub tenant: String,
    /// The tenant's namespace.
    pub namespace: String,
}

/// What must be equal for a state of one picture to serve another. There is one index per scope and
/// compatibility.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Compatibility {
    /// The VAE's id: whose latents these are.
    pub latent_space: String,
    /// The noise schedule's id.
    pub noise_schedule: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Digest of what made the embeddings.
    pub embedder: String,
    /// Hash of the negative prompt.
    pub negative_prompt: String,
}

/// An entry's name: 32 hex digits, random.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryId(String);

impl EntryId {
    /// From 128 random bits.
    pub fn new(random: u128) -> Self {
        Self(format!("{random:032x}"))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EntryId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if text.len() == 32 && digits { Ok(Self(text)) } else { Err("an entry id is 32 hex digits".into()) }
    }
}

impl From<EntryId> for String {
    fn from(id: EntryId) -> Self {
        id.0
    }
}

/// The timestep under which a finished latent is kept.
pub const FINISHED: f64 = -1.0;

/// A state that is kept of a picture.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Kept {
    /// Its timestep; -1 for the finished latent.
    pub timestep: f64,
    /// The share of the source's plan that lay before it: NIRVANA's K of N is K/N; 1 for the finished latent.
    pub share: f32,
    /// Bytes in the store.
    pub bytes: u64,
    /// How often it was resumed.
    pub uses: u64,
}

impl Kept {
    /// Whether this is the finished latent.
    pub fn is_finished(&self) -> bool {
        self.timestep == FINISHED
    }
}

/// A picture that the cache holds states of.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
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
    /// Hash of the prompt, by which its entries are found again where the prompt itself is not stored.
    pub prompt_hash: String,
    /// The prompt's content words, as keyed hashes.
    pub content: Content,
    /// Names model, prompt, negative prompt, seed, size and plan at once: equal for equal pictures only.
    pub exact: String,
    /// The seed it was painted from.
    pub seed: u64,
    /// What is kept of it, noisiest first.
    pub states: Vec<Kept>,
    /// When it was painted, in seconds since 1970.
    pub created: u64,
    /// When it was last reused, in seconds since 1970.
    pub last_used: u64,
}

impl Entry {
    /// What is kept at a timestep.
    pub fn kept(&self, timestep: f64) -> Option<&Kept> {
        self.states.iter().find(|kept| kept.timestep == timestep)
    }
}
