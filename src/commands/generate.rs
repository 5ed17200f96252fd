//! `pentimento generate`: a picture without a server.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use pentimento_pipelines::{NoiseSource, Pipeline, Precision};

use super::open_cache::{open_cache, stored};
use super::{ConfigFile, Failure, load_models, use_threads};
use super::{latents, terminal};
use crate::config::{Config, Flags};
use crate::gateway::{ANONYMOUS, GenerationRequest, Limits, Rejection, Wanted};
use crate::plan::Terms;
use crate::queue::{Format, Job, Painted};
use crate::worker::{self, Beginning, Painting, Stored};

/// What `generate` is given.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// What to paint.
    prompt: String,
    /// The file to write: PNG, or JPEG or WebP by its extension. With -n, numbers are added to its name.
    /// Without it the file is named after the seed, and never replaces another.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Seed of the initial noise; random if not given. Further pictures take the next ones.
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<i64>,
    /// Steps to take; the model's own number if not given.
    #[arg(long, allow_negative_numbers = true)]
    steps: Option<i64>,
    /// How closely to follow the prompt; the model's own value if not given.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    guidance_scale: Option<f64>,
    /// What not to paint.
    #[arg(long, value_name = "PROMPT")]
    negative_prompt: Option<String>,
    /// Size in pixels; the model's own if not given.
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    size: Option<String>,
    /// A built-in id, a manifest's path or a diffusers folder.
    #[arg(long, value_name = "ID|PATH")]
    model: Option<String>,
    /// How many pictures, 1 to 10.
    #[arg(short, value_name = "N", allow_negative_numbers = true)]
    n: Option<i64>,
    /// The generator of the initial noise; torch is PyTorch's on a CPU.
    #[arg(long, value_enum, default_value = "pentimento")]
    noise: Noise,
    /// Take the initial noise from a safetensors file: tensor `latent`, (C, H, W) or (1, C, H, W).
    #[arg(long, value_name = "FILE")]
    latents_in: Option<PathBuf>,
    /// Write the latent after the last step, before VAE scaling, to a safetensors file: tensor `latent`.
    #[arg(long, value_name = "FILE")]
    latents_out: Option<PathBuf>,
    /// Directory of a cache: start from the states it holds of similar pictures, and keep this one's. One process
    /// at a time can use it.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// What the cache is used for: combined, calibrated, nirvana, semantic, exact, off, or a policy with its settings as JSON.
    #[arg(long, value_name = "POLICY|JSON")]
    reuse_policy: Option<String>,
    /// Threads that paint; 0 takes one per core.
    #[arg(long)]
    threads: Option<usize>,
    /// What convolutions and linear layers multiply: f32, or numbers rounded to bf16. That pays on processors with AMX
    /// (Intel Xeon since Sapphire Rapids); on others it works, and gains nothing.
    #[arg(long, value_name = "f32|bf16")]
    precision: Option<Precision>,
    #[command(flatten)]
    file: ConfigFile,
}

const EXAMPLES: &str = "\
Examples:
  pentimento generate \"a large red house on the left in the snow at night\" -o house.png --seed 7
  pentimento generate \"a windmill at dawn\" -n 4 --steps 20 -o windmill.webp
  pentimento generate \"a boat\" --model ./my-diffusers-folder --size 512x512 --negative-prompt fog
  pentimento generate \"a red house at night\" --cache-dir ./cache
  pentimento generate \"a boat\" --noise torch --seed 0 --latents-out boat.safetensors";

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Noise {
    Pentimento,
    Torch,
}

/// Paints, writes and shows the pictures.
///
/// # Errors
/// [`Failure`].
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let flags = Flags {
        model: arguments.model.clone().map(|model| vec![model]),
        threads: arguments.threads,
        precision: arguments.precision,
        cache_dir: arguments.cache_dir.clone(),
        reuse_policy: arguments.reuse_policy.clone(),
        ..Flags::default()
    };
    let config = Config::load(arguments.file.config.as_deref(), &flags)?;
    let format = format_of(arguments.output.as_deref())?;
    use_threads(config.threads)?;
    let models = load_models(&config.model[..1], config.precision)?;
    let [model] = models.as_slice() else { return Err(anyhow!("no model was loaded").into()) };
    let request = request(&arguments, format, model, &config)?;
    let mut jobs = request.jobs("", "");
    let latents = arguments.latents_in.is_some() || arguments.latents_out.is_some();
    if jobs.len() > 1 && latents {
        return Err(Failure::Misuse(anyhow!(
            "--latents-in and --latents-out are for one picture, not -n {}",
            jobs.len()
        )));
    }
    if config.cache_dir.as_os_str().is_empty() {
        return jobs
            .iter()
            .try_for_each(|job| paint(model, &Arc::new(job.clone()), &arguments, jobs.len(), None));
    }
    if latents {
        return Err(Failure::Misuse(anyhow!("--latents-in and --latents-out cannot be had with a cache")));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let reuse = runtime.block_on(open_cache(&config, &config.cache_dir, &models))?;
    runtime.block_on(reuse.prepare(&request, ANONYMOUS, &mut jobs))?;
    let stored = stored(&config, &reuse, runtime.handle().clone());
    let paint = |job: &Job| paint(model, &Arc::new(job.clone()), &arguments, jobs.len(), Some(&stored));
    let painted = jobs.iter().try_for_each(paint);
    if let Err(error) = runtime.block_on(reuse.cache().close()) {
        eprintln!("warning: the cache did not write all that it was to keep: {error}");
    }
    // A read from a store that hangs would be waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    painted
}

fn request(
    arguments: &Arguments,
    format: Format,
    model: &Pipeline,
    config: &Config,
) -> Result<GenerationRequest, Failure> {
    let wanted = Wanted {
        prompt: Some(arguments.prompt.clone()),
        negative_prompt: arguments.negative_prompt.clone(),
        n: arguments.n,
        size: arguments.size.clone(),
        steps: arguments.steps,
        guidance_scale: arguments.guidance_scale,
        seed: arguments.seed,
        noise: match arguments.noise {
            Noise::Pentimento => NoiseSource::Pentimento,
            Noise::Torch => NoiseSource::Torch,
        },
        format: Some(format),
        // 95 is where JPEG's losses stop being seen; files are half as large as at 100.
        compression: (format == Format::Jpeg).then_some(95),
        ..Wanted::default()
    };
    // Short enough to be typed again.
    let random = u64::from(getrandom::u32()?);
    let terms = |_, _, asked: &_| Terms::unhurried(asked, model.defaults().steps);
    let request = GenerationRequest::new(wanted, model, &Limits::from(config), terms, random);
    request.map_err(|rejection| match rejection {
        Rejection::Invalid { field, reason } => Failure::Misuse(anyhow!("{} {reason}", flag_of(field))),
        other => other.into(),
    })
}

/// What the command line calls a field of the API.
fn flag_of(field: &str) -> String {
    match field {
        "prompt" => "PROMPT".to_owned(),
        "n" => "-n".to_owned(),
        "num_inference_steps" => "--steps".to_owned(),
        other => format!("--{}", other.replace('_', "-")),
    }
}

/// The format that a file's name asks for. Its folder must be there: better said now than after painting.
fn format_of(output: Option<&Path>) -> Result<Format, Failure> {
    let Some(path) = output else { return Ok(Format::Png) };
    if path.parent().is_some_and(|folder| folder != Path::new("") && !folder.is_dir()) {
        return Err(Failure::Misuse(anyhow!("--output {}: there is no such folder", path.display())));
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("png") => Ok(Format::Png),
        Some("jpg" | "jpeg") => Ok(Format::Jpeg),
        Some("webp") => Ok(Format::Webp),
        _ => Err(Failure::Misuse(anyhow!(
            "--output {}: the extension must be png, jpg, jpeg or webp",
            path.display()
        ))),
    }
}

fn paint(
    model: &Pipeline,
    job: &Arc<Job>,
    arguments: &Arguments,
    pictures: usize,
    cache: Option<&Stored>,
) -> Result<(), Failure> {
    let mut painting = begin(model, job, arguments, cache)?;
    let bar = progress_bar(job.plan.steps().len(), job.index, pictures);
    bar.inc(painting.skipped_steps() as u64);
    while !painting.is_finished() {
        painting.step()?;
        bar.inc(1);
    }
    if let Some(path) = &arguments.latents_out {
        latents::write(path, &painting.trajectory().snapshot()?)?;
    }
    let picture = painting.picture()?;
    let (painted, keeping) = painting.finish(&picture)?;
    bar.finish_and_clear();
    let path = match &arguments.output {
        Some(output) if pictures > 1 => numbered(output, job.index + 1),
        Some(output) => output.clone(),
        None => free_name(job.seed)?,
    };
    std::fs::write(&path, &painted.file).with_context(|| format!("cannot write {}", path.display()))?;
    if let (Some(keeping), Some(stored)) = (keeping, cache) {
        keeping.into_cache(&stored.cache);
    }
    show(&painted.file);
    // Whoever closed stdout does not want to know.
    let _ = writeln!(std::io::stdout(), "{} (seed {}{})", path.display(), job.seed, reused(&painted, job));
    Ok(())
}

fn begin(
    model: &Pipeline,
    job: &Arc<Job>,
    arguments: &Arguments,
    cache: Option<&Stored>,
) -> Result<Painting, Failure> {
    if let Some(path) = &arguments.latents_in {
        let latent = latents::read(path, job).map_err(Failure::Misuse)?;
        return Painting::begin(model, job, job.plan.steps().len(), &Beginning::Latent(&latent), None)
            .map_err(|error| Failure::Misuse(anyhow!(error).context("--latents-in")));
    }
    worker::begin(model, job, cache)?.ok_or_else(|| anyhow!("the stored state is gone").into())
}

/// What of the cache a picture was made from, in a few words.
fn reused(painted: &Painted, job: &Job) -> String {
    painted.reused.as_ref().map_or_else(String::new, |reused| {
        let (name, steps) = (reused.hit.name(), job.plan.steps().len());
        format!(", {name} hit: {} of {steps} steps skipped", painted.skipped_steps)
    })
}

/// Drawn on stderr, and only where that is a terminal.
fn progress_bar(steps: usize, index: usize, pictures: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    // The template is a constant; where it were wrong, indicatif's own look would do.
    if let Ok(style) = ProgressStyle::with_template("{msg}{bar:40} {pos}/{len} steps, {eta} left") {
        bar.set_style(style);
    }
    if pictures > 1 {
        bar.set_message(format!("{}/{pictures} ", index + 1));
    }
    bar
}

/// `name.png` to `name-2.png`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{number}.{extension}"))
}

/// A name in the working directory that no file has: the seed's, numbered where that is taken.
fn free_name(seed: u64) -> Result<PathBuf, Failure> {
    let first = PathBuf::from(format!("pentimento-{seed}.png"));
    let mut names = std::iter::once(first.clone()).chain((2..10_000).map(|i| numbered(&first, i)));
    names
        .find(|name| !name.exists())
        .ok_or_else(|| anyhow!("every name from {} on is taken", first.display()).into())
}

/// Shows the picture where stdout is a terminal that can.
fn show(file: &[u8]) {
    if !terminal::can_show() {
        return;
    }
    if let Ok(picture) = image::load_from_memory(file) {
        print!("{}", terminal::half_blocks(&picture.into_rgb8()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(numbered(Path::new("a/b.c.png"), 2), Path::new("a/b.c-2.png"));
        assert_eq!(flag_of("num_inference_steps"), "--steps");
        assert_eq!(flag_of("guidance_scale"), "--guidance-scale");
        assert!(format_of(Some(Path::new("x.JPG"))).is_ok_and(|f| f == Format::Jpeg));
        assert!(format_of(Some(Path::new("x.gif"))).is_err() && format_of(Some(Path::new("x"))).is_err());
    }
}
