//! A picture's identity.

use hmac::{Hmac, KeyInit, Mac};
use pentimento_pipelines::{NoiseSource, Size};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// The hash of a [`PictureSpec`].
pub type PictureHash = [u8; 32];

/// Everything that decides a picture's pixels, except the plan.
///
/// It is built and compared as a whole: no pattern over it has `..`, so that a field that is added later cannot be
/// forgotten. A specification with a field that this version does not know is refused, never cut. Fields at their
/// default are not written, so that a field of a later version leaves the hashes of older pictures as they are.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PictureSpec {
    /// The model's id.
    pub model: String,
    /// Digest of the model's weights, and the precision that they are used in.
    pub weights: String,
    /// The prompt.
    pub prompt: String,
    /// The negative prompt. An empty one is another picture than none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Size in pixels.
    pub size: Size,
    /// Seed of the initial noise.
    pub seed: u64,
    /// Generator of the initial noise.
    #[serde(default, skip_serializing_if = "is_default")]
    pub noise: NoiseSource,
    /// Guidance scale of guided steps.
    pub guidance_scale: f32,
    /// The number of steps that the client named; `None` leaves the plan to the scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl PictureSpec {
    /// The picture's name: HMAC-SHA256 of the specification. Without the secret the hash does not tell whether a guessed
    /// prompt is right.
    ///
    /// # Errors
    /// The specification has a number that JSON does not know.
    pub fn hash(&self, secret: &[u8; 16]) -> Result<PictureHash, serde_json::Error> {
        let text = serde_json::to_vec(self)?;
        // HMAC takes a key of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap_or_else(|_| unreachable!());
        mac.update(b"picture\0");
        mac.update(&text);
        Ok(mac.finalize().into_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> PictureSpec {
        PictureSpec {
            model: "storybook".into(),
            weights: "digest f32".into(),
            prompt: "a red house".into(),
            negative_prompt: None,
            size: Size { width: 64, height: 32 },
            seed: 7,
            noise: NoiseSource::default(),
            guidance_scale: 5.0,
            steps: None,
        }
    }

    #[test]
    fn every_field_is_in_the_hash() {
        let changes: [fn(&mut PictureSpec); 10] = [
            |spec| spec.model.push('2'),
            |spec| spec.weights.push('2'),
            |spec| spec.prompt.push('s'),
            |spec| spec.negative_prompt = Some(String::new()),
            |spec| spec.negative_prompt = Some("fog".into()),
            |spec| spec.size = Size { width: 32, height: 64 },
            |spec| spec.seed = 8,
            |spec| spec.noise = NoiseSource::Torch,
            |spec| spec.guidance_scale = 5.5,
            |spec| spec.steps = Some(20),
        ];
        let mut hashes = vec![spec().hash(&[1; 16]).unwrap(), spec().hash(&[2; 16]).unwrap()];
        for change in changes {
            let mut changed = spec();
            change(&mut changed);
            hashes.push(changed.hash(&[1; 16]).unwrap());
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), changes.len() + 2);
    }

    #[test]
    fn a_specification_survives_the_wire_and_is_never_cut() {
        let wire = serde_json::to_string(&spec()).unwrap();
        assert_eq!(serde_json::from_str::<PictureSpec>(&wire).unwrap(), spec());
        assert!(!wire.contains("negative_prompt") && !wire.contains("noise") && !wire.contains("steps"));
        let later = wire.replacen('{', "{\"adapters\":[],", 1);
        assert!(serde_json::from_str::<PictureSpec>(&later).is_err());
    }
}
