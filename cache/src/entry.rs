//! Entries: what the cache stores about a painted picture.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::content::Content;

/// The tenant and namespace that may see an entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Scope {
    /// The tenant. It comes from the API key, never from a request's body.
    pub tenant: String,
    /// The tenant's namespace.
    pub namespace: String,
}

/// What two pictures must have in common for one to reuse the other's states. The index has one partition per scope and
/// compatibility.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Compatibility {
    /// The id of the latent space, which the VAE defines.
    pub latent_space: String,
    /// The noise schedule's id.
    pub noise_schedule: String,
    /// The picture's width in pixels.
    pub width: u32,
    /// The picture's height in pixels.
    pub height: u32,
    /// The digest of the network that made the embeddings.
    pub embedder: String,
    /// A hash of the negative prompt.
    pub negative_prompt: String,
}

/// An entry's id: 32 random hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryId(String);

impl EntryId {
    /// The id of 128 random bits.
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

/// A SHA-256 or another hash of 32 bytes. As text it is 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
struct Digest32([u8; 32]);

impl fmt::Debug for Digest32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Digest32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TryFrom<String> for Digest32 {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || "a hash is 64 hex digits".to_owned();
        let digits: Vec<u8> =
            text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>().ok_or_else(wrong)?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        if digits.len() == 64 { bytes.try_into().map(Self).map_err(|_| wrong()) } else { Err(wrong()) }
    }
}

impl From<Digest32> for String {
    fn from(digits: Digest32) -> Self {
        digits.to_string()
    }
}

/// The hash of a picture's specification, which is everything that decides the picture's pixels except the plan.
/// Together with the [`Scope`] it identifies the picture. The caller computes it. As text it is 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(transparent)]
pub struct SpecificationHash(Digest32);

impl SpecificationHash {
    /// The hash of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Digest32(bytes))
    }

    /// The hash's bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
}

impl fmt::Display for SpecificationHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SpecificationHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpecificationHash({self})")
    }
}

/// What reuse needs to know of the plan that painted a picture.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct PaintedPlan {
    /// The id of the plan menu's option; `None` if the request pinned its steps, so that the plan is no option.
    pub option: Option<String>,
    /// Steps from noise to picture, including those that a resume skipped.
    pub steps: u32,
    /// Of these, the guided steps. A guided step takes two rows, another step one.
    pub guided_steps: u32,
}

impl PaintedPlan {
    /// A plan of `steps` guided steps that is no option of a menu.
    pub fn guided(steps: u32) -> Self {
        Self { option: None, steps, guided_steps: steps }
    }

    /// The rows of the whole plan. They are its cost, and calibration tables compare plans by them.
    pub fn rows(&self) -> u32 {
        self.steps.saturating_add(self.guided_steps)
    }
}

/// The source of a resumed picture. It is a record only: the source's entry may have been removed since.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct ResumedFrom {
    /// The source's entry.
    pub entry: EntryId,
    /// An upper bound of the quality lost against the same plan from noise, from 0 to 1: the loss of this resume and the
    /// source's own loss.
    pub loss: f32,
}

/// The timestep of a finished latent.
pub const FINISHED: f64 = -1.0;

/// A stored state of a picture.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Kept {
    /// The state's timestep; [`FINISHED`] for the finished latent.
    pub timestep: f64,
    /// The share of the plan's steps taken before this state, from 0 to 1; 1 for the finished latent. NIRVANA's state K
    /// of N steps has the share K/N.
    pub share: f32,
    /// The file's size in the store, in bytes.
    pub bytes: u64,
    /// How often the state was resumed.
    pub uses: u64,
}

impl Kept {
    /// Whether this is the finished latent.
    pub fn is_finished(&self) -> bool {
        self.timestep == FINISHED
    }
}

/// The stored file of a picture, lossless, as the worker made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct KeptPicture {
    /// The file's size in the store, in bytes.
    pub bytes: u64,
    /// How often the picture was served.
    pub uses: u64,
    sha256: Digest32,
}

impl KeptPicture {
    /// An unused file of this size and SHA-256.
    pub(crate) fn new(bytes: u64, sha256: [u8; 32]) -> Self {
        Self { bytes, uses: 0, sha256: Digest32(sha256) }
    }
}

/// Identifies a stored picture and its file's content, so that the file can be read and checked without the index. It is
/// plain data and valid in other processes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct PictureKey {
    /// The picture's entry.
    pub entry: EntryId,
    /// The entry's scope.
    pub scope: Scope,
    /// The picture's specification.
    pub specification: SpecificationHash,
    /// The file's size in bytes.
    pub bytes: u64,
    sha256: Digest32,
}

impl PictureKey {
    /// SHA-256 of the file.
    pub(crate) fn sha256(&self) -> &[u8; 32] {
        &self.sha256.0
    }
}

/// One of the files that the store holds of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The picture's file.
    Picture,
    /// The state at a timestep.
    State(f64),
}

impl Part {
    /// A number that differs between the parts of an entry. A timestep with all bits set would not be a number.
    pub(crate) fn key(self) -> u64 {
        match self {
            Self::Picture => u64::MAX,
            Self::State(timestep) => timestep.to_bits(),
        }
    }
}

/// Identifies one file in the store.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PartKey {
    pub entry: EntryId,
    pub part: Part,
}

/// A picture in the cache: its file, some of its states, or both.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Entry {
    /// The entry's id.
    pub id: EntryId,
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
    /// A hash of the prompt, by which entries can be found if the prompt itself is not stored.
    pub prompt_hash: String,
    /// The prompt's content words, as keyed hashes.
    pub content: Content,
    /// The picture's specification. A scope holds one entry of each specification.
    pub specification: SpecificationHash,
    /// The seed it was painted from.
    pub seed: u64,
    /// The plan that painted it.
    pub plan: PaintedPlan,
    /// The expected quality relative to the full plan from noise, from 0 to 1; `None` if it is not known.
    pub expected_quality: Option<f32>,
    /// The source that it was resumed from; `None` for a picture painted from noise. States of a resumed picture are not
    /// reused.
    pub resumed: Option<ResumedFrom>,
    /// The picture's file; `None` if it is not stored.
    pub picture: Option<KeptPicture>,
    /// The stored states, noisiest first.
    pub states: Vec<Kept>,
    /// The time when it was painted, in seconds since 1970.
    pub created: u64,
    /// The time of its last use, in seconds since 1970.
    pub last_used: u64,
}

impl Entry {
    /// The stored state at a timestep.
    pub fn kept(&self, timestep: f64) -> Option<&Kept> {
        self.states.iter().find(|kept| kept.timestep == timestep)
    }

    /// The stored parts, the picture first.
    pub fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        let states = self.states.iter().map(|kept| Part::State(kept.timestep));
        self.picture.map(|_| Part::Picture).into_iter().chain(states)
    }

    /// The key of the picture's file; `None` if it is not stored.
    pub fn picture_key(&self) -> Option<PictureKey> {
        let KeptPicture { bytes, sha256, .. } = self.picture?;
        let (entry, scope, specification) = (self.id.clone(), self.scope.clone(), self.specification);
        Some(PictureKey { entry, scope, specification, bytes, sha256 })
    }

    /// Whether the whole picture is stored, as a file or as the finished latent, from which it can be decoded.
    pub fn is_whole(&self) -> bool {
        self.picture.is_some() || self.kept(FINISHED).is_some()
    }

    /// Whether other pictures may resume one of its states.
    pub fn is_source(&self) -> bool {
        self.resumed.is_none() && self.states.iter().any(|kept| !kept.is_finished())
    }

    /// Adds `uses` to a part's count, and sets the last use to `now`, in seconds since 1970. Returns whether the part is
    /// stored.
    pub(crate) fn touch(&mut self, part: Part, uses: u64, now: u64) -> bool {
        let count = match part {
            Part::Picture => self.picture.as_mut().map(|kept| &mut kept.uses),
            Part::State(timestep) => {
                self.states.iter_mut().find(|kept| kept.timestep == timestep).map(|kept| &mut kept.uses)
            }
        };
        let Some(count) = count else { return false };
        *count = count.saturating_add(uses);
        self.last_used = self.last_used.max(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_64_hex_digits_and_survives_the_round_trip() {
        let bytes: [u8; 32] = std::array::from_fn(|i| (i * 9) as u8);
        let hash = SpecificationHash::new(bytes);
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(json, format!("\"{hash}\""));
        assert_eq!(hash.to_string().len(), 64);
        assert_eq!(serde_json::from_str::<SpecificationHash>(&json).unwrap().bytes(), &bytes);
        for wrong in ["", "00", &"g".repeat(64), &"0".repeat(63), &"0".repeat(66), &"é".repeat(64)] {
            assert!(serde_json::from_str::<SpecificationHash>(&format!("\"{wrong}\"")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rows_tell_plans_apart() {
        let plan = PaintedPlan { option: Some("ggggg---".into()), steps: 8, guided_steps: 5 };
        assert_eq!((plan.rows(), PaintedPlan::guided(8).rows()), (13, 16));
    }
}
