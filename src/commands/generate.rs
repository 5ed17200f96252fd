//! `pentimento generate`: a picture without a server.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use pentimento_pipelines::{NoiseSource, Pipeline, PlanOption, Precision};
use tokio::runtime::Handle;

use super::menus::menus;
use super::open_cache::{open_cache, stored};
use super::workers::{PictureScheduler, scheduler, start_workers};
use super::{ConfigFile, Failure, load_models, use_threads};
use super::{latents, terminal};
use crate::config::{Config, Flags};
use crate::gateway::{ANONYMOUS, GenerationRequest, Limits, Rejection, Wanted};
use crate::menu::menu_option;
use crate::picture::file::{Encoding, Format, parameters, transcode, write_png};
use crate::picture::{FinishedPicture, KeepOrder, PaintTask, PictureSpec, StartState};
use crate::queue::{Job, Keep};
use crate::scheduler::core::Policy;
use crate::scheduler::local::RequestEvent;
use crate::scheduler::menu::{Measured, Menu};
use crate::scheduler::messages::{
    MenuChoice, NewTask, Notice, PictureId, PictureResult, Shape, StoredStart, Submit, Terms,
};
use crate::worker::FleetOptions;

/// 95 is where JPEG's losses stop being seen; files are half as large as at 100.
const JPEG_QUALITY: u8 = 95;
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
    let request = request(&arguments, model, &config)?;
    let specs = specs(&request, &arguments, model)?;
    if arguments.latents_in.is_some() || arguments.latents_out.is_some() {
        let [spec] = specs.as_slice() else {
            let reason = "--latents-in and --latents-out are for one picture, not -n";
            return Err(Failure::Misuse(anyhow!("{reason} {}", specs.len())));
        };
        if !config.cache_dir.as_os_str().is_empty() {
            return Err(Failure::Misuse(anyhow!(
                "--latents-in and --latents-out cannot be had with a cache"
            )));
        }
        let output = Output { arguments: &arguments, format, pictures: 1 };
        return paint_latents(model, spec, &arguments, &output);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let painted = runtime.block_on(paint(&arguments, &config, format, model, &request, specs));
    // A read from a store that hangs would be waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    painted
}

fn request(arguments: &Arguments, model: &Pipeline, config: &Config) -> Result<GenerationRequest, Failure> {
    let wanted = Wanted {
        prompt: Some(arguments.prompt.clone()),
        negative_prompt: arguments.negative_prompt.clone(),
        n: arguments.n,
        size: arguments.size.clone(),
        steps: arguments.steps,
        guidance_scale: arguments.guidance_scale,
        seed: arguments.seed,
        noise: arguments.noise.source(),
        ..Wanted::default()
    };
    // Short enough to be typed again.
    let random = u64::from(getrandom::u32()?);
    let terms = |_, _, asked: &_| crate::plan::Terms::unhurried(asked, model.defaults().steps);
    let request = GenerationRequest::new(wanted, model, &Limits::from(config), terms, random);
    request.map_err(|rejection| match rejection {
        Rejection::Invalid { field, reason } => Failure::Misuse(anyhow!("{} {reason}", flag_of(field))),
        other => other.into(),
    })
}

/// What is to be painted, by rising seed.
fn specs(
    request: &GenerationRequest,
    arguments: &Arguments,
    model: &Pipeline,
) -> Result<Vec<PictureSpec>, Failure> {
    let guidance_scale =
        arguments.guidance_scale.map_or(model.defaults().guidance_scale, |scale| scale as f32);
    let weights = format!("{} {}", model.model().digest()?, model.precision());
    let spec = |seed: &u64| PictureSpec {
        model: model.id().to_owned(),
        weights: weights.clone(),
        prompt: request.prompt().to_owned(),
        negative_prompt: arguments.negative_prompt.clone().filter(|_| guidance_scale > 1.0),
        size: request.size(),
        seed: *seed,
        noise: arguments.noise.source(),
        guidance_scale,
        steps: arguments.steps.map(|_| request.steps()),
    };
    Ok(request.seeds().iter().map(spec).collect())
}

/// Paints with a scheduler and one worker in this process.
async fn paint(
    arguments: &Arguments,
    config: &Config,
    format: Format,
    model: &Pipeline,
    request: &GenerationRequest,
    specs: Vec<PictureSpec>,
) -> Result<(), Failure> {
    let models = std::slice::from_ref(model);
    let menu = menus(config, models)?.remove(0);
    let offered = menu.offered(model.schedule(), model.defaults().guidance_scale)?;
    let scheduler = scheduler(config)?;
    scheduler.set_policy(Policy::Fixed { option: None });
    scheduler.set_menu(model.id().into(), offered.clone());
    let reuse = match config.cache_dir.as_os_str().is_empty() {
        true => None,
        false => Some(open_cache(config, &config.cache_dir, models).await?),
    };
    let mut tasks: Vec<NewTask<PaintTask>> =
        specs.iter().map(|spec| task(spec, &offered, model)).collect::<Result<_, Failure>>()?;
    if let Some(reuse) = &reuse {
        let mut jobs = request.jobs("", "");
        reuse.prepare(request, ANONYMOUS, &mut jobs).await?;
        for (task, job) in tasks.iter_mut().zip(jobs) {
            use_cache(task, job, config, model);
        }
    }
    let threads = config.threads;
    let fleet = FleetOptions { workers: 1, threads, rows: config.max_batch_rows as u32, warm_up: false };
    let stored = reuse.as_ref().map(|reuse| stored(config, reuse));
    let workers = start_workers(fleet, vec![(model.clone(), &menu)], stored, &scheduler, &Handle::current())?;
    let output = Output { arguments, format, pictures: specs.len() };
    let submit = Submit { request: "generate".into(), client: ANONYMOUS.into(), tasks };
    let painted = write_pictures(&scheduler, submit, &specs, &output).await;
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

/// A picture as a task that is in no hurry.
fn task(spec: &PictureSpec, menu: &Menu, model: &Pipeline) -> Result<NewTask<PaintTask>, Failure> {
    let menu = match spec.steps.map(PlanOption::guided) {
        None => MenuChoice::Whole,
        Some(named) if menu.find(&named.id.as_str().into()).is_some() => {
            MenuChoice::Only { options: vec![named.id.into()] }
        }
        Some(named) => {
            let full = Measured { noise_level: 1.0, mean: 1.0, low: 1.0, high: 1.0 };
            let option = menu_option(&named, vec![full], model.schedule(), spec.guidance_scale)?;
            MenuChoice::Own { option: Box::new(option) }
        }
    };
    Ok(NewTask {
        model: spec.model.as_str().into(),
        shape: Shape { width: spec.size.width, height: spec.size.height },
        picture: PictureId { scope: String::new(), hash: spec.hash(&[0; 16])? },
        terms: Terms { tier: String::new(), floor: 0.0, best: 1.0, deadline_seconds: DAY, firm: false },
        menu,
        start: None,
        previews: 0,
        spec: PaintTask { request: "generate".to_owned(), spec: spec.clone(), start: None, keep: None },
    })
}

/// Gives a task the state that the cache has for it, and what the cache is to keep of it.
fn use_cache(task: &mut NewTask<PaintTask>, job: Job, config: &Config, model: &Pipeline) {
    if let Some(reused) = job.source() {
        let noise_level = model.schedule().noise_level(reused.timestep);
        task.start = Some(StoredStart { noise_level, loss: 0.0, least_steps: 0, required: true });
        task.spec.start = Some(StartState {
            entry: reused.source.clone(),
            timestep: reused.timestep,
            similarity: reused.similarity,
            source_prompt: reused.source_prompt.clone(),
            varied: reused.varied,
            loss: 0.0,
            required: false,
        });
    }
    let order = |keep: Box<Keep>| KeepOrder { picture: keep.picture, shares: config.cache_shares.clone() };
    task.spec.keep = job.keep.map(order).map(Box::new);
}

/// Submits the pictures, and writes each as it comes.
async fn write_pictures(
    scheduler: &PictureScheduler,
    submit: Submit<PaintTask>,
    specs: &[PictureSpec],
    output: &Output<'_>,
) -> Result<(), Failure> {
    let mut listener = scheduler.submit(submit)?;
    let bar = spinner(specs.len());
    while let Some(event) = listener.next().await {
        let RequestEvent::End(Notice { index, result, .. }) = event else { continue };
        let picture = match result {
            PictureResult::Done { picture, .. } => picture,
            PictureResult::Failed { why } => return Err(why.into()),
        };
        let Some(spec) = specs.get(index as usize) else { continue };
        let FinishedPicture { file, steps, skipped_steps, .. } = picture;
        let reused = match skipped_steps {
            0 => String::new(),
            skipped => format!(", state hit: {skipped} of {steps} steps skipped"),
        };
        bar.suspend(|| output.write(&file, spec.seed, index as usize, &reused))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Paints one picture with the pipeline itself, from a given latent or to one.
fn paint_latents(
    model: &Pipeline,
    spec: &PictureSpec,
    arguments: &Arguments,
    output: &Output<'_>,
) -> Result<(), Failure> {
    let steps = spec.steps.unwrap_or(model.defaults().steps);
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
    output.write(&file, spec.seed, 0, "")
}

/// Where pictures go.
struct Output<'a> {
    arguments: &'a Arguments,
    format: Format,
    pictures: usize,
}

impl Output<'_> {
    /// Writes a picture's lossless file in the wanted format, shows it, and says where it is.
    fn write(&self, png: &[u8], seed: u64, index: usize, reused: &str) -> Result<(), Failure> {
        let path = match &self.arguments.output {
            Some(output) if self.pictures > 1 => numbered(output, index + 1),
            Some(output) => output.clone(),
            None => free_name(seed)?,
        };
        let file = transcode(png, Encoding { format: self.format, quality: JPEG_QUALITY })?;
        std::fs::write(&path, file).with_context(|| format!("cannot write {}", path.display()))?;
        show(png);
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
