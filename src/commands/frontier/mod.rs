//! `pentimento frontier`: measures the options of a model, and writes the plan menu of those that are worth their cost.

mod files;
mod fit;
mod grid;
mod judge;
mod measure;
mod pictures;
mod report;
mod tree;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use pentimento_pipelines::{MAX_STEPS, Pipeline, PlanOption, Precision, Size};

use super::rows::Rows;
use super::{ConfigFile, Failure, load_models, use_threads};
use crate::config::{Config, Flags};
pub use files::{checked_menu, menu_of};
use measure::{Measure, Prompt, Row, Settings};

/// The files in `--out`.
const MEASURED: &str = "measured.jsonl";
const MENU: &str = "menu.json";
/// The prompts that come with a model: those of its calibration.
const PROMPTS: &str = "calibration/pairs.jsonl";

/// Prompts to measure. So many tell options apart whose quality differs by one or two hundredths.
const LIMIT: usize = 128;

/// What `frontier` is given.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// A built-in id, a manifest's path or a diffusers folder.
    #[arg(long, value_name = "ID|PATH")]
    model: Option<String>,
    /// JSON lines {"prompt": PROMPT}. With "named", the attributes that it names, a model's attribute classifier
    /// judges the pictures, otherwise its CLIP score. Those that come with the model if not given.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Paint only this many of the prompts, evenly spread over the file: 128 if not given, and with --pictures all.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Numbers of steps to measure beside the full plan's.
    #[arg(long, value_name = "STEPS", value_delimiter = ',', default_value = "3,4,5,6,8,10,12,16,20,25,35")]
    steps: Vec<usize>,
    /// Shares of the steps that are guided, the first ones of each plan: each number of steps is measured with each.
    #[arg(long, value_name = "SHARES", value_delimiter = ',', default_value = "1,0.8,0.6,0.4")]
    guided: Vec<f64>,
    /// Shares of the full plan after which its states are gone on from with every option.
    #[arg(long, value_name = "SHARES", value_delimiter = ',', default_value = "0.25,0.5,0.75")]
    shares: Vec<f64>,
    /// Size in pixels; the model's own if not given.
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    size: Option<String>,
    /// The folder for menu.json and measured.jsonl. What is measured there already is not measured again.
    #[arg(long, value_name = "DIR", default_value = "frontier")]
    out: PathBuf,
    /// Measure nothing: print, as Markdown, the menu in --out and all that was measured there or, where there is none,
    /// the model's own menu.
    #[arg(long)]
    report: bool,
    /// Measure nothing: paint pictures that a critic can be trained on, each prompt with the options of one number of
    /// steps in turn, and write pictures.rgb and pictures.jsonl to this folder. It can be stopped and goes on, too.
    #[arg(long, value_name = "DIR", requires = "prompts", conflicts_with = "report")]
    pictures: Option<PathBuf>,
    /// Threads that paint; 0 takes one per core.
    #[arg(long)]
    threads: Option<usize>,
    /// What convolutions and linear layers multiply: f32, or numbers rounded to bf16.
    #[arg(long, value_name = "f32|bf16")]
    precision: Option<Precision>,
    #[command(flatten)]
    file: ConfigFile,
}

const EXAMPLES: &str = "\
An option is a number of steps and the share of them that is guided: unguided steps cost half as much. Options that
cost no less than others and are no better are left out. Measuring can be stopped at any time and goes on where it was:
a cut costs one prompt's pictures.

Examples:
  pentimento frontier
  pentimento frontier --limit 16 --steps 4,8,16 --guided 1,0.6 --shares 0.5 --out quick
  pentimento frontier --model ./my-diffusers-folder --prompts prompts.jsonl --out my-menu
  pentimento frontier --report > menu.md
  pentimento frontier --prompts prompts.jsonl --pictures painted";

/// Measures, paints or reports.
///
/// # Errors
/// [`Failure`].
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let flags = Flags {
        model: arguments.model.clone().map(|model| vec![model]),
        threads: arguments.threads,
        precision: arguments.precision,
        ..Flags::default()
    };
    let config = Config::load(arguments.file.config.as_deref(), &flags)?;
    check(&arguments).map_err(Failure::Misuse)?;
    use_threads(config.threads)?;
    let models = load_models(&config.model[..1], config.precision)?;
    let [model] = models.as_slice() else { return Err(anyhow!("no model was loaded").into()) };
    if arguments.report {
        return Ok(print(model, &arguments.out)?);
    }
    let prompts = prompts(&arguments, model).map_err(Failure::Misuse)?;
    let size = size(&arguments, model).map_err(Failure::Misuse)?;
    let options = options(&arguments, model).map_err(Failure::Misuse)?;
    if let Some(folder) = &arguments.pictures {
        return Ok(pictures::paint(model, options, &prompts, size, folder)?);
    }
    let known = prompts.iter().all(|prompt| prompt.named.is_some());
    let measure = Measure::new(model, options, &arguments.shares, size, known)?;
    let (mut file, rows) =
        Rows::open(&arguments.out.join(MEASURED), &measure.settings).map_err(Failure::Misuse)?;
    measure_missing(&measure, &prompts, &rows, &mut file)?;
    // What was just measured is read again: numbers from the file may differ in the last bit, and a menu must not.
    let (_, rows) = Rows::read::<Settings, Row>(&arguments.out.join(MEASURED))?;
    let path = arguments.out.join(MENU);
    let menu = fit::fitted(&measure.settings, &rows)?.menu(&measure.settings, rows.len())?;
    write(&path, &(menu.to_json()? + "\n"))?;
    println!("{}: {} options, {} prompts", path.display(), menu.options().len(), rows.len());
    Ok(())
}

fn check(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.limit == Some(0) {
        bail!("--limit: must be at least 1");
    }
    if arguments.steps.is_empty() || !arguments.steps.iter().all(|steps| (1..=MAX_STEPS).contains(steps)) {
        bail!("--steps: every number must be between 1 and {MAX_STEPS}");
    }
    if arguments.guided.is_empty() || !arguments.guided.iter().all(|share| *share > 0.0 && *share <= 1.0) {
        bail!("--guided: every share must be above 0 and at most 1");
    }
    if !arguments.shares.iter().all(|share| *share > 0.0 && *share < 1.0) {
        bail!("--shares: every share must lie between 0 and 1");
    }
    Ok(())
}

fn size(arguments: &Arguments, model: &Pipeline) -> anyhow::Result<Size> {
    let Some(text) = &arguments.size else { return Ok(model.defaults().size) };
    let size = text.parse().and_then(|size| model.sizes().check(size).map(|()| size));
    size.map_err(|error| anyhow!("--{error}"))
}

fn options(arguments: &Arguments, model: &Pipeline) -> anyhow::Result<Vec<PlanOption>> {
    let defaults = model.defaults();
    let (scale, full) = (defaults.guidance_scale, defaults.steps);
    let options = grid::options(model.schedule(), scale, full, &arguments.steps, &arguments.guided);
    options.context("--steps")
}

fn prompts(arguments: &Arguments, model: &Pipeline) -> anyhow::Result<Vec<Prompt>> {
    let (name, text) = match &arguments.prompts {
        Some(path) => {
            let name = format!("--prompts {}", path.display());
            let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
            (name, text)
        }
        None => match model.model().files().read(PROMPTS)? {
            Some(bytes) => (PROMPTS.to_owned(), String::from_utf8_lossy(&bytes).into_owned()),
            None => bail!("the model {} comes without prompts: give --prompts", model.id()),
        },
    };
    let read = |(i, line)| serde_json::from_str(line).with_context(|| format!("{name}: line {}", i + 1));
    let mut all: Vec<Prompt> = text.lines().enumerate().map(read).collect::<Result<_, _>>()?;
    // The places of pictures' prompts are those in the file; measured prompts count once each.
    if arguments.pictures.is_none() {
        let mut seen = HashSet::new();
        all.retain(|prompt| seen.insert(prompt.prompt.clone()));
    }
    if all.is_empty() {
        bail!("{name}: no prompts");
    }
    let measured = if arguments.pictures.is_some() { all.len() } else { LIMIT };
    let count = arguments.limit.unwrap_or(measured).min(all.len());
    Ok((0..count).map(|i| all[i * all.len() / count].clone()).collect())
}

/// Measures what `rows` has not, and adds it to the file.
fn measure_missing(
    measure: &Measure<'_>,
    prompts: &[Prompt],
    rows: &[Row],
    file: &mut Rows,
) -> anyhow::Result<()> {
    let done: HashSet<&str> = rows.iter().map(|row| row.prompt.prompt.as_str()).collect();
    let bar = progress(prompts.len());
    for prompt in prompts {
        if !done.contains(prompt.prompt.as_str()) {
            file.add(&measure.prompt(prompt)?)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn progress(prompts: usize) -> ProgressBar {
    let bar = ProgressBar::new(prompts as u64);
    // The template is a constant; where it were wrong, indicatif's own look would do.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} prompts, {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// Prints the menu of a folder and all that was measured there or, where there is none, the model's own menu.
fn print(model: &Pipeline, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(MENU);
    let menu = match std::fs::read_to_string(&path) {
        Ok(text) => checked_menu(&text, model).with_context(|| path.display().to_string())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let none = || anyhow!("{}: not there, and the model comes without a menu", path.display());
            print!("{}", report::menu(&menu_of(model)?.ok_or_else(none)?));
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    print!("{}", report::menu(&menu));
    let measured = folder.join(MEASURED);
    if measured.is_file() {
        let (settings, rows) = Rows::read::<Settings, Row>(&measured)?;
        print!("\n{}", report::all(menu.starts(), &fit::fitted(&settings, &rows)?));
    }
    Ok(())
}

/// Whole or not at all.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let unfinished = path.with_extension("new");
    std::fs::write(&unfinished, text)
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| path.display().to_string())
}
