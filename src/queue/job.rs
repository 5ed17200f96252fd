//! One picture to be painted, as data.

use pentimento_pipelines::{NoiseSource, Size, StepPlan};
use serde::{Deserialize, Serialize};

/// An image file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP, lossless.
    Webp,
}

/// The file that a picture becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct Encoding {
    /// Its format.
    pub format: Format,
    /// JPEG's quality, 1 to 100.
    pub quality: u8,
}

/// One picture to be painted. Plain data: it means the same in another process, and later.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Job {
    /// The request it belongs to, as logs and clients know it.
    pub request_id: String,
    /// Which of the request's pictures it is.
    pub index: usize,
    /// Who is served in turn: a tenant, or an address.
    pub client: String,
    /// The model that paints.
    pub model: String,
    /// The prompt.
    pub prompt: String,
    /// The negative prompt; empty where there is none.
    pub negative_prompt: String,
    /// The picture's size.
    pub size: Size,
    /// The seed of the initial noise.
    pub seed: u64,
    /// The generator of the initial noise.
    pub noise: NoiseSource,
    /// The steps to take.
    pub plan: StepPlan,
    /// After how many steps previews are wanted, ascending.
    pub previews: Vec<usize>,
    /// The file to make of it.
    pub encoding: Encoding,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_the_wire() {
        let plan = r#"{"steps":[{"timestep":501.0,"guidance":{"scale":4.0}}]}"#;
        let job = Job {
            request_id: "req-1".into(),
            index: 0,
            client: "tenant:a".into(),
            model: "storybook".into(),
            prompt: "ein rotes Haus".into(),
            negative_prompt: String::new(),
            size: Size { width: 64, height: 32 },
            seed: 7,
            noise: NoiseSource::Pentimento,
            plan: serde_json::from_str(plan).unwrap(),
            previews: vec![1],
            encoding: Encoding { format: Format::Jpeg, quality: 90 },
        };
        let wire = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&wire).unwrap(), job);
    }
}
