//! `pentimento generate`: a picture without a server.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use pentimento_cache::Scope;
use pentimento_pipelines::{NoiseSource, Pipeline, Precision};
use tokio::runtime::Handle;

use super::menus::served_models;
use super::open_cache::{open_cache, stored};
use super::workers::{scheduler, start_workers};
use super::{ConfigFile, Failure, load_models, use_threads};
use super::{latents, terminal};
use crate::config::{Config, Flags};
use crate::gateway::{
    ANONYMOUS, AnsweredPicture, PictureEvent, PictureRequest, PictureScheduler, Prepared, QualityRange,
    Rejection, RequestLimits, Transcoder, Wanted, submit, tasks,
};
use crate::picture::file::{Format, parameters, transcode, write_png};
use crate::scheduler::core::Policy;
use crate::scheduler::messages::{NewTask, Terms};
use crate::worker::FleetOptions;

/// 95 is where JPEG's losses stop being seen; files are half as large as at 100.
const JPEG_QUALITY: i64 = 95;
/// Seconds to a deadline that keeps nothing from being painted in full.
const DAY: f64 = 86_400.0;

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

impl Noise {
    fn source(self) -> NoiseSource {
        match self {
            Self::Pentimento => NoiseSource::Pentimento,
            Self::Torch => NoiseSource::Torch,
        }
    }
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
    let output = Output { arguments: &arguments, pictures: request.specs().len() };
    if arguments.latents_in.is_some() || arguments.latents_out.is_some() {
        if output.pictures > 1 {
            let reason = "--latents-in and --latents-out are for one picture, not -n";
            return Err(Failure::Misuse(anyhow!("{reason} {}", output.pictures)));
        }
        if !config.cache_dir.as_os_str().is_empty() {
            return Err(Failure::Misuse(anyhow!(
                "--latents-in and --latents-out cannot be had with a cache"
            )));
        }
        return paint_latents(model, &request, &output);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let painted = runtime.block_on(paint(&config, model, &request, &output));
    // A read from a store that hangs would be waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    painted
}

fn request(
    arguments: &Arguments,
    format: Format,
    model: &Pipeline,
    config: &Config,
) -> Result<PictureRequest, Failure> {
    let wanted = Wanted {
        prompt: Some(arguments.prompt.clone()),
        negative_prompt: arguments.negative_prompt.clone(),
        n: arguments.n,
        size: arguments.size.clone(),
        steps: arguments.steps,
        guidance_scale: arguments.guidance_scale,
        seed: arguments.seed,
        noise: arguments.noise.source(),
        format: Some(format),
        compression: (format == Format::Jpeg).then_some(JPEG_QUALITY),
        ..Wanted::default()
    };
    // Short enough to be typed again.
    let random = u64::from(getrandom::u32()?);
    let served = Arc::new(served_models(config, std::slice::from_ref(model))?.remove(0));
    let request = PictureRequest::new(wanted, &served, &RequestLimits::from(config), |_| None, random);
    request.map_err(|rejection| match rejection {
        Rejection::Invalid { field, reason } => Failure::Misuse(anyhow!("{} {reason}", flag_of(field))),
        other => other.into(),
    })
}

/// Paints with a scheduler and one worker in this process.
async fn paint(
    config: &Config,
    model: &Pipeline,
    request: &PictureRequest,
    output: &Output<'_>,
) -> Result<(), Failure> {
    let served = request.model();
    let scheduler = scheduler(config)?;
    // There is no hurry.
    scheduler.set_policy(Policy::Fixed { option: None });
    scheduler.set_menu(served.id.clone(), served.offered.clone());
    let reuse = match config.cache_dir.as_os_str().is_empty() {
        true => None,
        false => Some(open_cache(config, &config.cache_dir, std::slice::from_ref(model)).await?),
    };
    let QualityRange { floor, best } = request.range();
    let terms = Terms { tier: String::new(), floor, best, deadline_seconds: DAY, firm: false };
    let prepared = match &reuse {
        None => {
            let tasks = tasks(
                request,
                "generate",
                &Scope { tenant: String::new(), namespace: String::new() },
                &[0; 16],
                &terms,
            )?;
            tasks.into_iter().map(|task| Prepared::Paint(Box::new(task))).collect()
        }
        Some(reuse) => {
            let scope = reuse.scope(ANONYMOUS, request.namespace());
            let tasks = tasks(request, "generate", &scope, reuse.secret(), &terms)?;
            // Whatever it starts from, it is painted as well as can be.
            let now = |task: &NewTask<_>| Some(best - task.start.map_or(0.0, |start| start.loss));
            reuse.prepare(request, ANONYMOUS, tasks, &now).await?
        }
    };
    let threads = config.threads;
    let fleet = FleetOptions { workers: 1, threads, rows: config.max_batch_rows as u32, warm_up: false };
    let stored = reuse.as_ref().map(|reuse| stored(config, reuse));
    let workers =
        start_workers(fleet, vec![(model.clone(), &**served)], stored, &scheduler, &Handle::current())?;
    let painted = write_pictures(&scheduler, prepared, request, output).await;
    scheduler.stop();
    let joined = tokio::task::spawn_blocking(|| workers.join()).await; // the last picture is in the cache's queue then
    joined.context("a worker's thread panicked")?;
    if let Some(reuse) = &reuse
        && let Err(error) = reuse.cache().close().await
    {
        eprintln!("warning: the cache did not write all that it was to keep: {error}");
    }
    painted
}

/// Submits the pictures, and writes each as it comes.
async fn write_pictures(
    scheduler: &PictureScheduler,
    prepared: Vec<Prepared>,
    request: &PictureRequest,
    output: &Output<'_>,
) -> Result<(), Failure> {
    let mut pictures = submit(prepared, request, ANONYMOUS, scheduler, Transcoder::default())?;
    let bar = spinner(pictures.count());
    while let Some(event) = pictures.next().await {
        let (index, answer) = match event {
            PictureEvent::Done { picture, answer } => (picture, answer),
            PictureEvent::Failed { failure, .. } => return Err(failure.into()),
            PictureEvent::Begun { .. } | PictureEvent::Preview { .. } => continue,
        };
        let AnsweredPicture { file, hit, steps, skipped_steps, .. } = answer;
        let hit =
            hit.map(|hit| format!(", {} hit: {skipped_steps} of {steps} steps skipped", hit.kind.name()));
        let seed = request.specs().get(index).map_or(0, |spec| spec.seed);
        bar.suspend(|| output.write(&file, seed, index, &hit.unwrap_or_default()))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Paints one picture with the pipeline itself, from a given latent or to one.
fn paint_latents(model: &Pipeline, request: &PictureRequest, output: &Output<'_>) -> Result<(), Failure> {
    let (arguments, spec, steps) = (output.arguments, request.first(), request.full_steps());
    let plan = model.plan(steps, spec.guidance_scale)?;
    let conditioning = model.encode(&spec.prompt, spec.negative_prompt.as_deref(), spec.size)?;
    let conditioning = Arc::new(conditioning);
    let mut trajectory = match &arguments.latents_in {
        None => model.start(conditioning, spec.seed, spec.noise, spec.size, plan)?,
        Some(path) => {
            let first = plan.steps().first().map_or(0.0, |step| step.timestep);
            let latent = latents::read(path, first).map_err(Failure::Misuse)?;
            let wanted = model.latent_shape(spec.size)?;
            if latent.shape != wanted {
                let (found, size) = (latent.shape, spec.size);
                let reason = format!("its shape is {found:?}, a picture of {size} takes {wanted:?}");
                return Err(Failure::Misuse(anyhow!("--latents-in: {reason}")));
            }
            let begun = model.resume(&latent, conditioning, spec.seed, plan);
            begun.map_err(|error| Failure::Misuse(anyhow!(error).context("--latents-in")))?
        }
    };
    while !trajectory.is_finished() {
        model.step(&mut [&mut trajectory])?;
    }
    if let Some(path) = &arguments.latents_out {
        latents::write(path, &trajectory.snapshot()?)?;
    }
    let file = write_png(&model.finish(&trajectory)?, &parameters(spec, steps, None, 0))?;
    output.write(&transcode(&file, request.wishes().encoding)?, spec.seed, 0, "")
}

/// Where pictures go.
struct Output<'a> {
    arguments: &'a Arguments,
    pictures: usize,
}

impl Output<'_> {
    /// Writes a picture's file, shows it, and says where it is.
    fn write(&self, file: &[u8], seed: u64, index: usize, reused: &str) -> Result<(), Failure> {
        let path = match &self.arguments.output {
            Some(output) if self.pictures > 1 => numbered(output, index + 1),
            Some(output) => output.clone(),
            None => free_name(seed)?,
        };
        std::fs::write(&path, file).with_context(|| format!("cannot write {}", path.display()))?;
        show(file);
        // A closed stdout is no failure.
        let _ = writeln!(std::io::stdout(), "{} (seed {seed}{reused})", path.display());
        Ok(())
    }
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

/// Drawn on stderr, and only where that is a terminal.
fn spinner(pictures: usize) -> ProgressBar {
    let bar = ProgressBar::new(pictures as u64);
    // The template is a constant; where it were wrong, indicatif's own look would do.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} pictures, {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
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
