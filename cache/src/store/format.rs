//! The file format of a state: a `.safetensors` file that any safetensors library can read.
//!
//! The tensor `latent` has the shape (channels, height, width). It is stored in f16, except for a finished latent, which
//! is stored in f32 so that it decodes to exactly the same picture. The metadata describe the state. A SHA-256 covers the
//! metadata and the tensor.

use std::collections::{BTreeMap, HashMap};

use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};

use crate::entry::{Entry, FINISHED};

/// The format's version, as the metadata state it.
pub const FORMAT: &str = "1";
/// The most numbers that a latent may have: those of 16 channels at an eighth of 8192 by 8192 pixels.
pub const MAX_NUMBERS: usize = 16 << 20;
/// The largest file that is read, in bytes: the largest latent and its header.
pub const MAX_BYTES: u64 = 4 * MAX_NUMBERS as u64 + (64 << 10);
/// The longest header that is read, in bytes.
const MAX_HEADER: u64 = 64 << 10;

const LATENT: &str = "latent";
const CHECKSUM: &str = "checksum";

/// A denoising state: a latent at one timestep.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The latent's timestep; [`FINISHED`] for a finished latent.
    pub timestep: f64,
    /// The standard deviation of the latent's noise, from 0 to 1; 0 for a finished latent.
    pub noise_level: f64,
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// The latent's numbers in C order.
    pub latent: Vec<f32>,
}

impl State {
    /// The bytes that the state takes in memory.
    pub fn bytes(&self) -> usize {
        self.latent.len() * size_of::<f32>() + size_of::<Self>()
    }

    /// Checks that shape, timestep and numbers are possible.
    ///
    /// # Errors
    /// [`StateError::Invalid`] naming what is impossible.
    pub fn check(&self) -> Result<(), StateError> {
        let numbers = self.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        match numbers {
            Some(n) if n > 0 && n <= MAX_NUMBERS && n == self.latent.len() => {}
            _ => return Err(StateError::Invalid("shape")),
        }
        if !(self.timestep == FINISHED || (0.0..1e9).contains(&self.timestep)) {
            return Err(StateError::Invalid("timestep"));
        }
        if !self.noise_level.is_finite() {
            return Err(StateError::Invalid("noise level"));
        }
        if !self.latent.iter().all(|x| x.is_finite()) {
            return Err(StateError::Invalid("latent: not finite"));
        }
        Ok(())
    }
}

/// Why a stored state or picture cannot be used. For a request it is a miss.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no such state or picture.
    #[error("there is none")]
    Missing,
    /// The file is not a safetensors file, or it is truncated.
    #[error("not a whole safetensors file: {0}")]
    Unreadable(String),
    /// The file is no denoising state, or no picture that this cache wrote.
    #[error("not a denoising state: {0}")]
    Foreign(&'static str),
    /// The file was written in another version of the format.
    #[error("format version {0:?}, this program reads {FORMAT:?}")]
    Version(String),
    /// The checksum does not match the contents.
    #[error("damaged: the checksum does not agree")]
    Damaged,
    /// The state belongs to another picture or to another timestep.
    #[error("belongs elsewhere: {0}")]
    Elsewhere(&'static str),
    /// The latent cannot be a sampler's: see [`State::check`].
    #[error("impossible {0}")]
    Invalid(&'static str),
    /// The store did not answer within the time limit.
    #[error("the store did not answer in time")]
    Timeout,
    /// The store failed.
    #[error("store: {0}")]
    Store(String),
}

/// Encodes a state of an entry as a file.
///
/// # Errors
/// [`StateError::Invalid`] if the state is impossible or has a number beyond f16.
pub fn encode(entry: &Entry, state: &State) -> Result<Vec<u8>, StateError> {
    state.check()?;
    let (dtype, data) = if state.timestep == FINISHED {
        (Dtype::F32, state.latent.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    } else {
        let halves: Vec<f16> = state.latent.iter().map(|&x| f16::from_f32(x)).collect();
        if !halves.iter().all(|x| x.is_finite()) {
            return Err(StateError::Invalid("latent: beyond f16"));
        }
        (Dtype::F16, halves.iter().flat_map(|x| x.to_le_bytes()).collect())
    };
    let mut metadata = describe(entry, state);
    metadata.insert(CHECKSUM.into(), checksum(&metadata, dtype, &state.shape, &data));
    let view = TensorView::new(dtype, state.shape.to_vec(), &data).map_err(unreadable)?;
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    safetensors::serialize([(LATENT, view)], Some(metadata)).map_err(unreadable)
}

/// Decodes a file as the state of `entry` at `timestep`.
///
/// # Errors
/// [`StateError`] for every fault of the file.
pub fn decode(bytes: &[u8], entry: &Entry, timestep: f64) -> Result<State, StateError> {
    let header = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    if header.is_none_or(|length| length > MAX_HEADER) {
        return Err(StateError::Unreadable("header".into()));
    }
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let mut metadata: BTreeMap<String, String> =
        header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    let version = metadata.get("format_version").ok_or(StateError::Foreign("no format version"))?;
    if version != FORMAT {
        return Err(StateError::Version(version.clone()));
    }
    let claimed = metadata.remove(CHECKSUM).ok_or(StateError::Foreign("no checksum"))?;

    let tensors = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let tensor = tensors.tensor(LATENT).map_err(|_| StateError::Foreign("no latent"))?;
    let shape: [usize; 3] = tensor.shape().try_into().map_err(|_| StateError::Foreign("not three axes"))?;
    if claimed != checksum(&metadata, tensor.dtype(), &shape, tensor.data()) {
        return Err(StateError::Damaged);
    }
    let latent = numbers(&tensor)?;
    let noise_level = metadata.get("noise_level").and_then(|level| level.parse().ok());
    let noise_level = noise_level.ok_or(StateError::Foreign("no noise level"))?;
    let state = State { timestep, noise_level, shape, latent };
    state.check()?;
    for (key, wanted) in describe(entry, &state) {
        if metadata.get(&key) != Some(&wanted) {
            return Err(StateError::Elsewhere("of another picture, or another state of it"));
        }
    }
    Ok(state)
}

fn numbers(tensor: &TensorView<'_>) -> Result<Vec<f32>, StateError> {
    let halves = |pair: &[u8]| f16::from_le_bytes([pair[0], pair[1]]).to_f32();
    let floats = |four: &[u8]| f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    match tensor.dtype() {
        Dtype::F16 => Ok(tensor.data().chunks_exact(2).map(halves).collect()),
        Dtype::F32 => Ok(tensor.data().chunks_exact(4).map(floats).collect()),
        _ => Err(StateError::Foreign("neither f16 nor f32")),
    }
}

/// The metadata of a state, except the checksum.
fn describe(entry: &Entry, state: &State) -> BTreeMap<String, String> {
    let to = &entry.compatibility;
    let pairs = [
        ("format_version", FORMAT.to_owned()),
        ("entry", entry.id.as_str().to_owned()),
        ("timestep", state.timestep.to_string()),
        ("noise_level", state.noise_level.to_string()),
        ("latent_space", to.latent_space.clone()),
        ("noise_schedule", to.noise_schedule.clone()),
        ("size", format!("{}x{}", to.width, to.height)),
        ("guidance_scale", entry.guidance_scale.to_string()),
        ("negative_prompt_hash", to.negative_prompt.clone()),
        ("prompt_hash", entry.prompt_hash.clone()),
        ("embedder", to.embedder.clone()),
        ("created", entry.created.to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The SHA-256, in hex, of metadata and tensor. Each text is hashed with its length, so that no two contents are hashed
/// as the same bytes.
fn checksum(metadata: &BTreeMap<String, String>, dtype: Dtype, shape: &[usize; 3], data: &[u8]) -> String {
    let mut hash = Sha256::new();
    for (key, value) in metadata {
        for text in [key, value] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
    }
    hash.update(format!("{dtype:?}{shape:?}"));
    hash.update(data);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unreadable(error: safetensors::SafeTensorError) -> StateError {
    StateError::Unreadable(error.to_string())
}
