//! `pentimento frontier`: measures what a step is worth, and writes the quality frontier that plans go by.

mod files;
mod measure;
mod report;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use pentimento_pipelines::{MAX_STEPS, Pipeline};

use super::rows::Rows;
use super::{ConfigFile, Failure, load_models, use_threads};
use crate::config::{Config, Flags};
pub use files::{checked, frontier_of};
use measure::{Measure, Prompt, Row};

/// The files in `--out`.
const MEASURED: &str = "measured.jsonl";
const FRONTIER: &str = "frontier.json";
/// The prompts that come with a model: those of its calibration.
const PROMPTS: &str = "calibration/pairs.jsonl";

/// What `frontier` is given.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// A built-in id, a manifest's path or a diffusers folder.
    #[arg(long, value_name = "ID|PATH")]
    model: Option<String>,
    /// JSON lines {"prompt": PROMPT}. With "named", the attributes that it names, a model's attribute classifier
    /// judges the pictures beside its CLIP score. Those that come with the model if not given.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Measure only this many of the prompts, evenly spread over the file.
    #[arg(long, value_name = "N", default_value_t = 128)]
    limit: usize,
    /// Numbers of steps to measure beside the full plan's.
    #[arg(
        long,
        value_name = "STEPS",
        value_delimiter = ',',
        default_value = "1,2,3,4,5,6,8,10,12,16,20,25,35"
    )]
    steps: Vec<usize>,
    /// Shares of the full plan after which a state is gone on from with fewer steps.
    #[arg(long, value_name = "SHARES", value_delimiter = ',', default_value = "0.4,0.6")]
    shares: Vec<f64>,
    /// The folder for frontier.json and measured.jsonl. What is measured there already is not measured again.
    #[arg(long, value_name = "DIR", default_value = "frontier")]
    out: PathBuf,
    /// Measure nothing: print, as Markdown, the frontier in --out or, where there is none, the model's own.
    #[arg(long)]
    report: bool,
    /// Threads that paint; 0 takes one per core.
    #[arg(long)]
    threads: Option<usize>,
    #[command(flatten)]
    file: ConfigFile,
}

const EXAMPLES: &str = "\
It can be stopped at any time and goes on where it was: a cut costs one prompt's pictures.

Examples:
  pentimento frontier
  pentimento frontier --limit 16 --steps 4,8,16,25 --out quick
  pentimento frontier --model ./my-diffusers-folder --prompts prompts.jsonl --out my-frontier
  pentimento frontier --report > frontier.md
  pentimento serve --frontier my-frontier/frontier.json";

/// Measures, or reports, and writes the frontier.
///
/// # Errors
/// [`Failure`].
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let flags = Flags {
        model: arguments.model.clone().map(|model| vec![model]),
        threads: arguments.threads,
        ..Flags::default()
    };
    let config = Config::load(arguments.file.config.as_deref(), &flags)?;
    check(&arguments).map_err(Failure::Misuse)?;
    use_threads(config.threads)?;
    let models = load_models(&config.model[..1], config.precision)?;
    let [model] = models.as_slice() else { return Err(anyhow!("no model was loaded").into()) };
    if arguments.report {
        return Ok(report::print(model, &arguments.out.join(FRONTIER))?);
    }
    let prompts = prompts(&arguments, model).map_err(Failure::Misuse)?;
    let measure = Measure::new(model, &prompts, &arguments.steps, &arguments.shares)?;
    let (mut file, rows) =
        Rows::open(&arguments.out.join(MEASURED), &measure.settings).map_err(Failure::Misuse)?;
    let rows = measure_missing(&measure, &prompts, rows, &mut file)?;
    let path = arguments.out.join(FRONTIER);
    write(&path, &(measure.fitted(&rows)?.to_json()? + "\n"))?;
    println!("{}: {} prompts", path.display(), rows.len());
    Ok(())
}

fn check(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.limit == 0 {
        return Err(anyhow!("--limit: must be at least 1"));
    }
    if arguments.steps.is_empty() || !arguments.steps.iter().all(|steps| (1..=MAX_STEPS).contains(steps)) {
        return Err(anyhow!("--steps: every number must be between 1 and {MAX_STEPS}"));
    }
    if !arguments.shares.iter().all(|share| *share > 0.0 && *share < 1.0) {
        return Err(anyhow!("--shares: every share must lie between 0 and 1"));
    }
    Ok(())
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
            None => return Err(anyhow!("the model {} comes without prompts: give --prompts", model.id())),
        },
    };
    let read = |(i, line)| serde_json::from_str(line).with_context(|| format!("{name}: line {}", i + 1));
    let mut all: Vec<Prompt> = text.lines().enumerate().map(read).collect::<Result<_, _>>()?;
    let mut seen = HashSet::new();
    all.retain(|prompt| seen.insert(prompt.prompt.clone()));
    if all.is_empty() {
        return Err(anyhow!("{name}: no prompts"));
    }
    let count = arguments.limit.min(all.len());
    Ok((0..count).map(|i| all[i * all.len() / count].clone()).collect())
}

/// Measures what `rows` has not, and adds it to them and to the file.
fn measure_missing(
    measure: &Measure,
    prompts: &[Prompt],
    mut rows: Vec<Row>,
    file: &mut Rows,
) -> anyhow::Result<Vec<Row>> {
    let done: HashSet<String> = rows.iter().map(|row| row.prompt.prompt.clone()).collect();
    let bar = ProgressBar::new(prompts.len() as u64);
    // The template is a constant; where it were wrong, indicatif's own look would do.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} prompts, {eta} left") {
        bar.set_style(style);
    }
    for prompt in prompts {
        if !done.contains(&prompt.prompt) {
            let row = measure.prompt(prompt)?;
            file.add(&row)?;
            rows.push(row);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// Whole or not at all.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let unfinished = path.with_extension("new");
    std::fs::write(&unfinished, text)
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| path.display().to_string())
}
