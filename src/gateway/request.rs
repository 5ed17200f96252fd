//! From what a client asks for to the pictures that will be painted: validated, and complete.

use std::sync::Arc;
use std::time::Duration;

use pentimento_pipelines::{PlanOption, Size};

use super::catalogue::ServedModel;
use super::terms::{Objective, QualityRange, Tolerance};
use super::{CacheMode, Rejection, Tier, Wanted};
use crate::config::Config;
use crate::menu::menu_option;
use crate::picture::PictureSpec;
use crate::picture::file::{Encoding, Format};
use crate::scheduler::menu::{Measured, MenuOption};
use crate::scheduler::messages::{MenuChoice, Shape};

/// The largest seed: the largest integer that every JSON implementation carries unharmed.
pub const MAX_SEED: u64 = (1 << 53) - 1;
const MAX_GUIDANCE: f64 = 100.0;
const MAX_PREVIEWS: i64 = 3;
const MAX_NAMESPACE: usize = 64;
/// The namespace of requests that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// The bounds of a request, and the operator's objective, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Bytes of a prompt.
    pub prompt_bytes: usize,
    /// Pictures.
    pub n: usize,
    /// Steps of a picture.
    pub steps: usize,
    /// The latency objective of the tier `auto`; `None`: as measured.
    pub objective: Option<Duration>,
}

impl From<&Config> for RequestLimits {
    fn from(config: &Config) -> Self {
        Self {
            prompt_bytes: config.max_prompt_bytes,
            n: config.max_n,
            steps: config.max_steps,
            objective: Some(Duration::from_millis(config.latency_objective_ms))
                .filter(|time| !time.is_zero()),
        }
    }
}

/// What each listener of a picture wants for itself: it decides nothing of the pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileWishes {
    /// The image file.
    pub encoding: Encoding,
    /// How many previews of each picture.
    pub previews: u32,
}

/// A valid request. All of its pictures are of one model, size and prompt.
#[derive(Debug, Clone)]
pub struct PictureRequest {
    model: Arc<ServedModel>,
    specs: Vec<PictureSpec>,
    has_seed: bool,
    tolerance: Tolerance,
    range: QualityRange,
    objective: Objective,
    menu: MenuChoice,
    wishes: FileWishes,
    cache: CacheMode,
    namespace: String,
}

impl PictureRequest {
    /// Validates what is wanted of `model`; what is left open takes the model's own values. `unloaded` is the time of the
    /// model's full plan at a size on an idle machine, if it is known.
    ///
    /// # Errors
    /// [`Rejection::Invalid`], naming the field.
    pub fn new(
        wanted: Wanted,
        model: &Arc<ServedModel>,
        limits: &RequestLimits,
        unloaded: impl FnOnce(Shape) -> Option<f64>,
        random_seed: u64,
    ) -> Result<Self, Rejection> {
        let prompt = checked_prompt("prompt", wanted.prompt.unwrap_or_default(), limits)?;
        if prompt.trim().is_empty() {
            return invalid("prompt", "must not be empty");
        }
        let negative = wanted.negative_prompt.map(|text| checked_prompt("negative_prompt", text, limits));
        let negative = negative.transpose()?;
        let n = within("n", wanted.n.unwrap_or(1), 1, limits.n as i64)? as usize;
        let size = match wanted.size.as_deref() {
            None | Some("auto") => model.defaults.size,
            Some(text) => text.parse()?,
        };
        model.sizes.check(size)?;
        let guidance_scale = guidance_scale(wanted.guidance_scale, model)?;
        let most = limits.steps.min(model.schedule.num_train_timesteps()) as i64;
        let steps = wanted.steps.map(|steps| within("num_inference_steps", steps, 1, most)).transpose()?;
        let steps = steps.map(|steps| steps as usize);
        let tolerance = Tolerance::new(wanted.tier, wanted.min_quality, wanted.max_latency_ms)?;
        let (menu, range) = match steps {
            None => (MenuChoice::Whole, QualityRange::of_menu(&tolerance, &model.menu)),
            Some(steps) => {
                let (menu, quality) = named_plan(steps, guidance_scale, model)?;
                (menu, QualityRange::of_plan(&tolerance, quality))
            }
        };
        let full = model.defaults.steps;
        let longer = n as f64 * (steps.unwrap_or(full) as f64 / full as f64).max(1.0);
        let unloaded = unloaded(shape(size)).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let spec = |seed| PictureSpec {
            model: model.id.as_str().to_owned(),
            weights: model.weights.clone(),
            prompt: prompt.clone(),
            // At a scale of 1 and below the negative prompt has no effect, and the picture is the same with any.
            negative_prompt: negative.clone().filter(|_| guidance_scale > 1.0),
            size,
            seed,
            noise: wanted.noise,
            guidance_scale,
            steps,
        };
        Ok(Self {
            specs: seeds(wanted.seed, n, random_seed)?.into_iter().map(spec).collect(),
            has_seed: wanted.seed.is_some(),
            objective: Objective::new(&tolerance, unloaded, limits.objective, longer),
            tolerance,
            range,
            menu,
            wishes: FileWishes {
                encoding: encoding(wanted.format.unwrap_or_default(), wanted.compression)?,
                previews: within("partial_images", wanted.previews.unwrap_or(0), 0, MAX_PREVIEWS)? as u32,
            },
            cache: wanted.cache,
            namespace: namespace(wanted.namespace)?,
            model: Arc::clone(model),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<ServedModel> {
        &self.model
    }

    /// What is to be painted: one for each picture, by rising seed.
    pub fn specs(&self) -> &[PictureSpec] {
        &self.specs
    }

    /// What all pictures have in common.
    pub fn first(&self) -> &PictureSpec {
        // `n` is at least 1.
        &self.specs[0]
    }

    /// Whether the client named the seed.
    pub fn has_seed(&self) -> bool {
        self.has_seed
    }

    /// The tier.
    pub fn tier(&self) -> Tier {
        self.tolerance.tier
    }

    /// Whether the client named the least quality.
    pub fn names_quality(&self) -> bool {
        self.tolerance.min_quality.is_some()
    }

    /// The qualities that it accepts.
    pub fn range(&self) -> QualityRange {
        self.range
    }

    /// The time within which it is wanted.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// The options that its pictures may get.
    pub fn menu(&self) -> &MenuChoice {
        &self.menu
    }

    /// Whether the quality of its options was measured.
    pub fn is_measured(&self) -> bool {
        self.model.menu.is_measured() && !matches!(self.menu, MenuChoice::Own { .. })
    }

    /// Steps of its full plan: those that the client named, or the model's own.
    pub fn full_steps(&self) -> usize {
        self.first().steps.unwrap_or(self.model.defaults.steps)
    }

    /// What its listener wants for itself.
    pub fn wishes(&self) -> FileWishes {
        self.wishes
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
    pub fn shape(&self) -> Shape {
        shape(self.first().size)
    }
}

fn shape(size: Size) -> Shape {
    Shape { width: size.width, height: size.height }
}

fn invalid<T>(field: &'static str, reason: impl Into<String>) -> Result<T, Rejection> {
    Err(Rejection::Invalid { field, reason: reason.into() })
}

/// The plan of a number of steps that the client named, all of them guided, and its expected quality: measured where the
/// model's menu has that option, otherwise that of a menu without measurements.
fn named_plan(
    steps: usize,
    guidance_scale: f32,
    model: &ServedModel,
) -> Result<(MenuChoice, f64), Rejection> {
    let option = PlanOption::guided(steps);
    if let Some(known) = model.menu.get(&option.id).filter(|known| known.option == option) {
        let quality = known.from[0].quality.mean.clamp(0.0, 1.0);
        return Ok((MenuChoice::Only { options: vec![option.id.as_str().into()] }, quality));
    }
    let assumed = 1.0 - (1.0 / steps as f64 - 1.0 / model.defaults.steps as f64);
    let quality = assumed.clamp(0.0, 1.0);
    let measured = Measured { noise_level: 1.0, mean: quality, low: quality, high: quality };
    let own: MenuOption = menu_option(&option, vec![measured], &model.schedule, guidance_scale)
        .map_err(|error| Rejection::Invalid { field: "num_inference_steps", reason: error.to_string() })?;
    Ok((MenuChoice::Own { option: Box::new(own) }, quality))
}

fn guidance_scale(wanted: Option<f64>, model: &ServedModel) -> Result<f32, Rejection> {
    let scale = wanted.unwrap_or_else(|| f64::from(model.defaults.guidance_scale));
    if !(0.0..=MAX_GUIDANCE).contains(&scale) {
        return invalid(
            "guidance_scale",
            format!("must be a number between 0 and {MAX_GUIDANCE}, not {scale}"),
        );
    }
    Ok(scale as f32)
}

fn within(field: &'static str, value: i64, least: i64, most: i64) -> Result<i64, Rejection> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    invalid(field, format!("must be between {least} and {most}, not {value}"))
}

fn checked_prompt(field: &'static str, text: String, limits: &RequestLimits) -> Result<String, Rejection> {
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

#[cfg(test)]
pub(super) mod tests {
    use pentimento_pipelines::{Defaults, NoiseSchedule, SizeRange};

    use super::*;
    use crate::menu::MenuFile;

    /// A model without a measured menu.
    pub fn model() -> Arc<ServedModel> {
        let json = br#"{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}"#;
        let schedule = NoiseSchedule::from_json(json).unwrap();
        let size = Size { width: 64, height: 64 };
        let menu = MenuFile::unmeasured("m", "w", size, 50, 5.0).unwrap();
        Arc::new(ServedModel {
            id: "m".into(),
            description: String::new(),
            defaults: Defaults { steps: 50, guidance_scale: 5.0, size },
            sizes: SizeRange { grid: 16, min: 64, max: 128 },
            weights: "w f32".into(),
            offered: menu.offered(&schedule, 5.0).unwrap(),
            full: menu_option(&PlanOption::guided(50), vec![], &schedule, 5.0).unwrap(),
            menu,
            schedule,
        })
    }

    /// A request for what is wanted.
    pub fn request(wanted: Wanted) -> Result<PictureRequest, Rejection> {
        let wanted = Wanted { prompt: wanted.prompt.or(Some("a house".into())), ..wanted };
        let limits = RequestLimits { prompt_bytes: 100, n: 10, steps: 1000, objective: None };
        PictureRequest::new(wanted, &model(), &limits, |_| None, 7)
    }

    #[test]
    fn pictures_differ_in_their_seed_alone() {
        let request = request(Wanted { n: Some(3), seed: Some(5), ..Wanted::default() }).unwrap();
        let seeds: Vec<u64> = request.specs().iter().map(|spec| spec.seed).collect();
        assert_eq!(seeds, [5, 6, 7]);
        let other = PictureSpec { seed: 5, ..request.specs()[2].clone() };
        assert_eq!(other, request.specs()[0]);
        assert_eq!((request.full_steps(), request.menu()), (50, &MenuChoice::Whole));
        assert!(request.has_seed() && !request.is_measured());
    }

    #[test]
    fn no_negative_prompt_is_another_than_an_empty_one_and_without_guidance_there_is_none() {
        let of = |negative: Option<&str>, guidance_scale| {
            let negative_prompt = negative.map(str::to_owned);
            let wanted = Wanted { negative_prompt, guidance_scale, ..Wanted::default() };
            request(wanted).unwrap().first().negative_prompt.clone()
        };
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some(""), None), Some(String::new()));
        assert_eq!(of(Some("fog"), None), Some("fog".to_owned()));
        assert_eq!(of(Some("fog"), Some(1.0)), None);
    }

    #[test]
    fn named_steps_are_one_option_all_of_it_guided() {
        let of = |steps| request(Wanted { steps: Some(steps), ..Wanted::default() });
        let known = of(20).unwrap();
        assert_eq!(known.menu(), &MenuChoice::Only { options: vec!["ddim-20".into()] });
        assert!((known.range().best - 0.97).abs() < 1e-9 && (known.range().floor - 0.92).abs() < 1e-9);
        let MenuChoice::Own { option } = of(33).unwrap().menu().clone() else {
            panic!("it is not in the menu")
        };
        assert_eq!((option.id.as_str(), option.steps.len()), ("ddim-33", 33));
        assert!(option.steps.iter().all(|step| step.rows == 2));
        let more = of(100).unwrap();
        assert_eq!((more.range().best, more.first().steps, more.full_steps()), (1.0, Some(100), 100));
        let twice = more.objective().time.as_secs_f64() / of(50).unwrap().objective().time.as_secs_f64();
        assert!((1.8..2.2).contains(&twice), "{twice}");
        assert!(matches!(of(0), Err(Rejection::Invalid { field: "num_inference_steps", .. })));
        assert!(of(1000).is_ok() && of(1001).is_err());
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
