//! From what a client asks for to what will be painted.

use std::time::Duration;

use pentimento_pipelines::{NoiseSource, Pipeline, Size, StepPlan};

use super::Rejection;
use crate::config::Config;
use crate::plan::{Asked, Terms, TermsError, Tier};
use crate::queue::{Encoding, Format, Job, Start};

/// The largest seed: the largest integer that every JSON implementation carries unharmed.
pub const MAX_SEED: u64 = (1 << 53) - 1;
const MAX_GUIDANCE: f64 = 100.0;
const MAX_PREVIEWS: i64 = 3;
const MAX_NAMESPACE: usize = 64;
/// The namespace of requests that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// The bounds of a request, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a prompt.
    pub prompt_bytes: usize,
    /// Pictures.
    pub n: usize,
    /// Steps of a picture.
    pub steps: usize,
}

impl From<&Config> for Limits {
    fn from(config: &Config) -> Self {
        Self { prompt_bytes: config.max_prompt_bytes, n: config.max_n, steps: config.max_steps }
    }
}

/// What a client asks for, as he wrote it.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// A model's id or alias.
    pub model: Option<String>,
    /// The prompt.
    pub prompt: Option<String>,
    /// The negative prompt.
    pub negative_prompt: Option<String>,
    /// How many pictures.
    pub n: Option<i64>,
    /// `WIDTHxHEIGHT` or `auto`.
    pub size: Option<String>,
    /// How many steps.
    pub steps: Option<i64>,
    /// What quality is tolerated.
    pub tier: Tier,
    /// The time that an answer may take, in milliseconds; the tier's objective where there is none.
    pub max_latency_ms: Option<f64>,
    /// The least quality, 0 to 1, in place of the tier's.
    pub min_quality: Option<f64>,
    /// Guidance scale.
    pub guidance_scale: Option<f64>,
    /// The first picture's seed; each further one has the next.
    pub seed: Option<i64>,
    /// The generator of the initial noise.
    pub noise: NoiseSource,
    /// How many previews of each picture.
    pub previews: Option<i64>,
    /// The image files' format.
    pub format: Option<Format>,
    /// JPEG's quality, 0 to 100.
    pub compression: Option<i64>,
    /// How to use the cache.
    pub cache: CacheMode,
    /// Whose pictures within the tenant's may be reused, and who may reuse this one.
    pub namespace: Option<String>,
}

/// How a request uses the cache. It can only narrow what the operator's policy allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Whatever fits.
    #[default]
    Auto,
    /// Not at all: nothing is looked up, nothing is kept.
    Off,
    /// No look-up; the result replaces what is stored.
    Refresh,
    /// Nothing is painted from scratch: a rejection where nothing fits.
    Only,
}

/// A request that a worker can fulfil: whatever this holds is possible.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationRequest {
    model: String,
    prompt: String,
    negative_prompt: String,
    size: Size,
    seeds: Vec<u64>,
    has_seed: bool,
    noise: NoiseSource,
    plan: StepPlan,
    terms: Terms,
    min_quality: Option<f64>,
    has_max_latency: bool,
    previews: Vec<usize>,
    encoding: Encoding,
    cache: CacheMode,
    namespace: String,
}

impl GenerationRequest {
    /// Validates what is wanted of `model`; what is left open takes the model's own values. `terms` says how many steps
    /// it gets, and by when.
    ///
    /// # Errors
    /// [`Rejection::Invalid`], naming the field.
    pub fn new(
        wanted: Wanted,
        model: &Pipeline,
        limits: &Limits,
        terms: impl FnOnce(Size, usize, &Asked) -> Result<Terms, TermsError>,
        random_seed: u64,
    ) -> Result<Self, Rejection> {
        let defaults = model.defaults();
        let prompt = checked_prompt("prompt", wanted.prompt.unwrap_or_default(), limits)?;
        if prompt.trim().is_empty() {
            return invalid("prompt", "must not be empty");
        }
        let negative_prompt =
            checked_prompt("negative_prompt", wanted.negative_prompt.unwrap_or_default(), limits)?;
        let n = within("n", wanted.n.unwrap_or(1), 1, limits.n as i64)? as usize;
        let size = match wanted.size.as_deref() {
            None | Some("auto") => defaults.size,
            Some(text) => text.parse()?,
        };
        model.sizes().check(size)?;
        let most = limits.steps.min(model.schedule().num_train_timesteps()) as i64;
        let steps = wanted.steps.map(|steps| within("num_inference_steps", steps, 1, most)).transpose()?;
        let asked = asked(wanted.tier, steps, wanted.max_latency_ms, wanted.min_quality)?;
        let terms = terms(size, n, &asked).map_err(wrong_terms)?;
        let steps = terms.best.min(limits.steps);
        let guidance = wanted.guidance_scale.unwrap_or_else(|| f64::from(defaults.guidance_scale));
        if !(0.0..=MAX_GUIDANCE).contains(&guidance) {
            let reason = format!("must be a number between 0 and {MAX_GUIDANCE}, not {guidance}");
            return invalid("guidance_scale", reason);
        }
        let plan = model.plan(steps, guidance as f32)?;
        // Without guidance a negative prompt has no effect, and the picture's metadata must not say that it had.
        let guided = plan.steps().iter().any(|step| step.guidance.rows() > 1);
        let negative_prompt = if guided { negative_prompt } else { String::new() };
        let previews = within("partial_images", wanted.previews.unwrap_or(0), 0, MAX_PREVIEWS)? as usize;
        Ok(Self {
            model: model.id().to_owned(),
            prompt,
            negative_prompt,
            size,
            seeds: seeds(wanted.seed, n, random_seed)?,
            has_seed: wanted.seed.is_some(),
            noise: wanted.noise,
            previews: preview_steps(plan.steps().len(), previews),
            // A plan of as many steps as the model has timesteps may have one less.
            terms: Terms { floor: terms.floor.min(plan.steps().len()), best: plan.steps().len(), ..terms },
            min_quality: wanted.min_quality,
            has_max_latency: wanted.max_latency_ms.is_some(),
            plan,
            encoding: encoding(wanted.format.unwrap_or(Format::Png), wanted.compression)?,
            cache: wanted.cache,
            namespace: namespace(wanted.namespace)?,
        })
    }

    /// One job per picture, from noise.
    pub fn jobs(&self, client: &str, request_id: &str) -> Vec<Job> {
        let job = |(index, &seed)| Job {
            request_id: request_id.to_owned(),
            index,
            client: client.to_owned(),
            model: self.model.clone(),
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            size: self.size,
            seed,
            noise: self.noise,
            plan: self.plan.clone(),
            terms: self.terms,
            spent: Duration::ZERO,
            start: Start::Noise,
            keep: None,
            previews: self.previews.clone(),
            encoding: self.encoding,
        };
        self.seeds.iter().enumerate().map(job).collect()
    }

    /// The model's id.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The prompt.
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// The negative prompt; empty where there is none.
    pub fn negative_prompt(&self) -> &str {
        &self.negative_prompt
    }

    /// Whether the client gave the seed.
    pub fn has_seed(&self) -> bool {
        self.has_seed
    }

    /// How it uses the cache.
    pub fn cache(&self) -> CacheMode {
        self.cache
    }

    /// Its namespace within the tenant's.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pictures' size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Each picture's seed.
    pub fn seeds(&self) -> &[u64] {
        &self.seeds
    }

    /// Steps of each picture.
    pub fn steps(&self) -> usize {
        self.plan.steps().len()
    }

    /// How few steps it may get, and its time budget.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether the client gave the time that an answer may take.
    pub fn has_max_latency(&self) -> bool {
        self.has_max_latency
    }

    /// The quality that may be lost to reuse, where the client says what he tolerates: half of it, the other half is
    /// for plans of fewer steps.
    pub fn tolerated_loss(&self) -> Option<f64> {
        self.min_quality.map(|quality| (1.0 - quality) / 2.0)
    }

    /// The image files' format.
    pub fn format(&self) -> Format {
        self.encoding.format
    }
}

fn invalid<T>(field: &'static str, reason: impl Into<String>) -> Result<T, Rejection> {
    Err(Rejection::Invalid { field, reason: reason.into() })
}

/// What a client says of his plan.
fn asked(
    tier: Tier,
    steps: Option<i64>,
    max_latency_ms: Option<f64>,
    min_quality: Option<f64>,
) -> Result<Asked, Rejection> {
    let max_latency = match max_latency_ms {
        None => None,
        Some(ms) => match Duration::try_from_secs_f64(ms / 1000.0) {
            Ok(time) => Some(time),
            Err(_) => {
                return invalid("pentimento.max_latency_ms", "must be a number of milliseconds above 0");
            }
        },
    };
    if !min_quality.is_none_or(|quality| (0.0..=1.0).contains(&quality)) {
        return invalid("pentimento.min_quality", "must be between 0 and 1");
    }
    let min_quality = min_quality.map(|quality| 1.0 - (1.0 - quality) / 2.0);
    Ok(Asked { tier, steps: steps.map(|steps| steps as usize), max_latency, min_quality })
}

fn wrong_terms(error: TermsError) -> Rejection {
    let field = match error.field {
        "max_latency_ms" => "pentimento.max_latency_ms",
        "min_quality" => "pentimento.min_quality",
        other => other,
    };
    Rejection::Invalid { field, reason: format!("must be {}", error.must) }
}

fn within(field: &'static str, value: i64, least: i64, most: i64) -> Result<i64, Rejection> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    invalid(field, format!("must be between {least} and {most}, not {value}"))
}

fn checked_prompt(field: &'static str, text: String, limits: &Limits) -> Result<String, Rejection> {
    let most = limits.prompt_bytes;
    if text.len() > most {
        return invalid(field, format!("must be at most {most} bytes long, not {}", text.len()));
    }
    if text.contains('\0') {
        return invalid(field, "must not contain a NUL character"); // image metadata cannot hold one
    }
    Ok(text)
}

/// Consecutive seeds from the one asked for.
fn seeds(first: Option<i64>, n: usize, random: u64) -> Result<Vec<u64>, Rejection> {
    let last_first = MAX_SEED - (n as u64 - 1);
    let first = match first {
        Some(seed) => within("seed", seed, 0, last_first as i64)? as u64,
        None => random % (last_first + 1),
    };
    Ok((first..).take(n).collect())
}

fn namespace(wanted: Option<String>) -> Result<String, Rejection> {
    let name = wanted.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let sane = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !(1..=MAX_NAMESPACE).contains(&name.len()) || !name.bytes().all(sane) {
        let reason = format!("must be 1 to {MAX_NAMESPACE} letters, digits, '-', '_' or '.'");
        return invalid("pentimento.namespace", reason);
    }
    Ok(name)
}

fn encoding(format: Format, compression: Option<i64>) -> Result<Encoding, Rejection> {
    let compression = within("output_compression", compression.unwrap_or(100), 0, 100)?;
    if format == Format::Png && compression < 100 {
        return invalid("output_compression", "less than 100 is not possible with output_format png");
    }
    Ok(Encoding { format, quality: compression.max(1) as u8 })
}

/// After which steps `previews` previews of a plan of `steps` steps are made: evenly spread, none after
/// the last step, fewer where there are not enough steps.
fn preview_steps(steps: usize, previews: usize) -> Vec<usize> {
    let previews = previews.min(steps.saturating_sub(1));
    (1..=previews).map(|i| i * steps / (previews + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_spread_and_never_the_last_step() {
        assert_eq!(preview_steps(50, 3), [12, 25, 37]);
        assert!(preview_steps(50, 0).is_empty());
        assert_eq!(preview_steps(3, 3), [1, 2]);
        assert!(preview_steps(1, 3).is_empty());
        for steps in 1..60 {
            for previews in 0..=3 {
                let at = preview_steps(steps, previews);
                assert_eq!(at.len(), previews.min(steps - 1));
                assert!(at.windows(2).all(|w| w[0] < w[1]) && at.iter().all(|s| (1..steps).contains(s)));
            }
        }
    }

    #[test]
    fn seeds_follow_each_other_and_stay_in_range() {
        assert_eq!(seeds(Some(7), 3, 0).unwrap(), [7, 8, 9]);
        assert!(seeds(Some(MAX_SEED as i64), 1, 0).is_ok());
        for (seed, n) in [(-1, 1), (MAX_SEED as i64, 2), (i64::MAX, 1), (i64::MIN, 1)] {
            assert!(matches!(seeds(Some(seed), n, 0), Err(Rejection::Invalid { field: "seed", .. })));
        }
        assert!(seeds(None, 10, u64::MAX).unwrap().iter().all(|&s| s <= MAX_SEED));
    }

    #[test]
    fn png_cannot_be_compressed_harder() {
        assert!(encoding(Format::Png, Some(80)).is_err() && encoding(Format::Jpeg, Some(101)).is_err());
        assert_eq!(encoding(Format::Jpeg, Some(0)).unwrap().quality, 1);
        assert_eq!(encoding(Format::Webp, None).unwrap().quality, 100);
    }
}
