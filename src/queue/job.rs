//! One picture to be painted, as data.

use std::time::Duration;

use pentimento_cache::{EntryId, NewPicture};
use pentimento_pipelines::{NoiseSource, Size, StepPlan};
use serde::{Deserialize, Serialize};

use crate::plan::Terms;

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

/// What of the cache a picture was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hit {
    /// A denoising state of another picture: the later steps are painted.
    State,
    /// The stored picture itself, of a prompt that means the same.
    Semantic,
    /// The stored picture itself, of the same prompt, seed and parameters.
    Exact,
}

impl Hit {
    /// Its name in answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Semantic => "semantic",
            Self::Exact => "exact",
        }
    }
}

/// A stored state to start from, by its key.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Reused {
    /// What it is to this picture.
    pub hit: Hit,
    /// The entry in the cache.
    pub source: EntryId,
    /// The state's timestep; -1 for the finished latent.
    pub timestep: f64,
    /// Cosine of both prompts' embeddings.
    pub similarity: f32,
    /// The entry's prompt, to steer away from, where it is stored.
    pub source_prompt: Option<String>,
    /// Whether the seed must tell in the picture: several ask for it, or the entry's own prompt is asked for again. A
    /// resume is otherwise the same picture for every seed.
    pub varied: bool,
}

/// Where a picture starts.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// The seed's noise.
    #[default]
    Noise,
    /// A stored state; the seed's noise where it cannot be had.
    StateOrNoise(Reused),
    /// A stored state, or there is no picture.
    State(Reused),
}

#[cfg(test)]
impl Reused {
    /// A stored picture, for tests.
    pub(crate) fn exact() -> Self {
        Self {
            hit: Hit::Exact,
            source: EntryId::new(1),
            timestep: pentimento_cache::FINISHED,
            similarity: 1.0,
            source_prompt: None,
            varied: false,
        }
    }
}

impl Start {
    /// The stored state, if one is meant.
    pub fn reused(&self) -> Option<&Reused> {
        match self {
            Self::Noise => None,
            Self::StateOrNoise(reused) | Self::State(reused) => Some(reused),
        }
    }
}

/// What the cache keeps of a picture, if it is painted from noise.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Keep {
    /// What is known of it before it is painted; its states are not.
    pub picture: NewPicture,
    /// After how many steps a state is kept, ascending. The finished latent is kept anyway.
    pub after_steps: Vec<usize>,
}

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Steps.
    Paint,
    /// Nothing but its file: it is a stored picture.
    Show,
}

impl Line {
    /// Where those of a request's jobs wait that keep it waiting longest.
    pub fn of(jobs: &[Job]) -> Self {
        if jobs.iter().all(|job| job.line() == Self::Show) { Self::Show } else { Self::Paint }
    }
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
    /// All steps from noise to picture, as many as it gets at best; those before the state that it starts from are
    /// skipped.
    pub plan: StepPlan,
    /// How few steps it may get, and its time budget.
    pub terms: Terms,
    /// What of its time budget was spent before it came to the queue.
    pub spent: Duration,
    /// Where it starts.
    pub start: Start,
    /// What the cache keeps of it; `None`: nothing.
    pub keep: Option<Box<Keep>>,
    /// After how many steps previews are wanted, ascending.
    pub previews: Vec<usize>,
    /// The file to make of it.
    pub encoding: Encoding,
}

impl Job {
    /// The state of another picture that it goes on from where it is painted: a stored picture that comes to be painted
    /// could not be shown.
    pub fn source(&self) -> Option<&Reused> {
        self.start.reused().filter(|reused| reused.hit == Hit::State)
    }

    /// What it waits for at first.
    pub fn line(&self) -> Line {
        match self.start.reused() {
            Some(reused) if reused.hit != Hit::State => Line::Show,
            _ => Line::Paint,
        }
    }

    /// The time that it has, from when it comes to the queue.
    pub fn budget(&self) -> Duration {
        self.terms.objective.saturating_sub(self.spent)
    }

    /// Whether the other job asks for the very same picture, in the same file, under the same terms, and the cache is to
    /// keep the same of it.
    pub fn is_same_picture(&self, other: &Self) -> bool {
        let Self { request_id: _, index: _, spent: _, client, model, prompt, negative_prompt, .. } = self;
        let Self { size, seed, noise, plan, terms, start, keep, previews, encoding, .. } = self;
        *seed == other.seed
            && *prompt == other.prompt
            && *negative_prompt == other.negative_prompt
            && (client, model, size, noise) == (&other.client, &other.model, &other.size, &other.noise)
            && (terms, previews, encoding) == (&other.terms, &other.previews, &other.encoding)
            && *start == other.start
            && *plan == other.plan
            && *keep == other.keep
    }
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
            terms: Terms {
                tier: crate::plan::Tier::Auto,
                floor: 1,
                best: 1,
                objective: Duration::from_millis(1500),
            },
            spent: Duration::from_millis(3),
            start: Start::Noise,
            keep: None,
            previews: vec![1],
            encoding: Encoding { format: Format::Jpeg, quality: 90 },
        };
        let wire = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&wire).unwrap(), job);
    }
}
