//! What the cache knows of a painted picture.

use std::fmt;

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

/// SHA-256, or another hash of 32 bytes, in text 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
struct Digits([u8; 32]);

impl fmt::Debug for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TryFrom<String> for Digits {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || "a hash is 64 hex digits".to_owned();
        let digits: Vec<u8> =
            text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>().ok_or_else(wrong)?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        if digits.len() == 64 { bytes.try_into().map(Self).map_err(|_| wrong()) } else { Err(wrong()) }
    }
}

impl From<Digits> for String {
    fn from(digits: Digits) -> Self {
        digits.to_string()
    }
}

/// The hash of a picture's specification: of everything that decides the picture's pixels, except the plan.
/// Together with its [`Scope`] it is the picture's identity. The caller computes it; in text it is 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(transparent)]
pub struct SpecificationHash(Digits);

impl SpecificationHash {
    /// From the hash's bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Digits(bytes))
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

/// The plan that painted a picture, as far as reuse is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct PaintedPlan {
    /// Id of the plan menu's option; `None` for a plan that is no option, because the request pinned its steps.
    pub option: Option<String>,
    /// Steps from noise to picture, those that a resume skipped included.
    pub steps: u32,
    /// Of these, the steps that were guided. A guided step takes two rows, the others one.
    pub guided_steps: u32,
}

impl PaintedPlan {
    /// A plan of `steps` guided steps that is no option of a menu.
    pub fn guided(steps: u32) -> Self {
        Self { option: None, steps, guided_steps: steps }
    }

    /// Rows that the whole plan takes: what it costs, and what calibration tables tell cheap plans from full ones by.
    pub fn rows(&self) -> u32 {
        self.steps.saturating_add(self.guided_steps)
    }
}

/// What a resumed picture was resumed from. It is a record: the source may be gone by now.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct ResumedFrom {
    /// The source's entry.
    pub entry: EntryId,
    /// Quality lost against the same plan from noise, from 0 to 1, expected at most: the resume's own loss and
    /// whatever the source had lost already.
    pub loss: f32,
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

/// The file that is kept of a picture: lossless, as the worker made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct KeptPicture {
    /// Bytes in the store.
    pub bytes: u64,
    /// How often it was served.
    pub uses: u64,
    sha256: Digits,
}

impl KeptPicture {
    /// Of a file with this SHA-256; not used yet.
    pub(crate) fn new(bytes: u64, sha256: [u8; 32]) -> Self {
        Self { bytes, uses: 0, sha256: Digits(sha256) }
    }
}

/// Names a stored picture, and says what its file must be: so it is read and checked without a look into the index.
/// It is data, and means the same in another process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct PictureKey {
    /// The picture's entry.
    pub entry: EntryId,
    /// Who may see it.
    pub scope: Scope,
    /// The picture's specification.
    pub specification: SpecificationHash,
    /// Bytes of its file.
    pub bytes: u64,
    sha256: Digits,
}

impl PictureKey {
    /// SHA-256 of the file.
    pub(crate) fn sha256(&self) -> &[u8; 32] {
        &self.sha256.0
    }
}

/// A file that the store holds of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The picture's file.
    Picture,
    /// The state at a timestep.
    State(f64),
}

impl Part {
    /// Tells the parts of one entry apart. No timestep has all bits set: that is not a number.
    pub(crate) fn key(self) -> u64 {
        match self {
            Self::Picture => u64::MAX,
            Self::State(timestep) => timestep.to_bits(),
        }
    }
}

/// A picture that the cache holds: its file, states of it, or both.
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
    /// What the picture is of. A scope holds one entry of each specification.
    pub specification: SpecificationHash,
    /// The seed it was painted from.
    pub seed: u64,
    /// The plan that painted it.
    pub plan: PaintedPlan,
    /// Quality that is expected of it, relative to the full plan from noise, from 0 to 1; `None` where it is not known.
    pub expected_quality: Option<f32>,
    /// What it was resumed from; `None` for a picture painted from noise. States of a resumed picture serve no other.
    pub resumed: Option<ResumedFrom>,
    /// The picture's file, if it is kept.
    pub picture: Option<KeptPicture>,
    /// Which states are kept of it, noisiest first.
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

    /// What is kept of it, the picture first.
    pub fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        let states = self.states.iter().map(|kept| Part::State(kept.timestep));
        self.picture.map(|_| Part::Picture).into_iter().chain(states)
    }

    /// Names the picture's file; `None` where it is not kept.
    pub fn picture_key(&self) -> Option<PictureKey> {
        let KeptPicture { bytes, sha256, .. } = self.picture?;
        let (entry, scope, specification) = (self.id.clone(), self.scope.clone(), self.specification);
        Some(PictureKey { entry, scope, specification, bytes, sha256 })
    }

    /// Whether the whole picture is kept: as a file, or as the latent that it can be decoded from.
    pub fn is_whole(&self) -> bool {
        self.picture.is_some() || self.kept(FINISHED).is_some()
    }

    /// Whether other pictures may be resumed from its states.
    pub fn is_source(&self) -> bool {
        self.resumed.is_none() && self.states.iter().any(|kept| !kept.is_finished())
    }

    /// Counts uses of a part at `now`, in seconds since 1970. Whether there is such a part.
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
    fn a_hash_is_64_hex_digits_and_comes_back() {
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
