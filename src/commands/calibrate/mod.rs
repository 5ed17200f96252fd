//! `pentimento calibrate`: measures what resuming another prompt's picture costs, and writes the tables that the
//! `calibrated` policy goes by.

mod map;
mod measure;
mod tables;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use pentimento_cache::{Calibration, Resume};
use pentimento_pipelines::{MAX_STEPS, Pipeline, Size};

use super::rows::Rows;
use super::{ConfigFile, Failure, load_models, use_threads};
use crate::config::{Config, Flags};
use measure::{Measure, Pair, Row};
pub use tables::{checked, tables_in, tables_of};

/// The file of measured pairs in `--out`.
const MEASURED: &str = "measured.jsonl";
/// The pairs that come with a model.
const PAIRS: &str = "calibration/pairs.jsonl";

/// What `calibrate` is given.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// A built-in id, a manifest's path or a diffusers folder.
    #[arg(long, value_name = "ID|PATH")]
    model: Option<String>,
    /// JSON lines {"source": PROMPT, "prompt": PROMPT}: the picture of `source` is resumed for `prompt`. With
    /// "named", the attributes that `prompt` names, a model's attribute classifier judges the pictures, otherwise
    /// its CLIP score; "class" says what changed, for the report. The model's own pairs if not given.
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// Measure only this many of the pairs.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Shares of the plan after which a state is resumed.
    #[arg(
        long,
        value_name = "SHARES",
        value_delimiter = ',',
        default_value = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8"
    )]
    shares: Vec<f32>,
    /// Steps of the full plan; the model's own number if not given.
    #[arg(long)]
    steps: Option<usize>,
    /// Sizes that the pairs are painted at: half of the pairs at the first, the others at the rest. The tables serve
    /// these sizes. The model's default size if not given.
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    sizes: Vec<Size>,
    /// How closely to follow the prompts; the model's own value if not given.
    #[arg(long, value_name = "SCALE")]
    guidance_scale: Option<f32>,
    /// The folder for steered.json, plain.json and measured.jsonl. What is measured there already is not
    /// measured again.
    #[arg(long, value_name = "DIR", default_value = "calibration")]
    out: PathBuf,
    /// Measure nothing: print, as Markdown, what was measured, and what the tables of --tables make of it.
    #[arg(long)]
    report: bool,
    /// The folder of the tables that --report holds against what was measured; the model's own if not given.
    #[arg(long, value_name = "DIR", requires = "report")]
    tables: Option<PathBuf>,
    /// Threads that paint; 0 takes one per core.
    #[arg(long)]
    threads: Option<usize>,
    #[command(flatten)]
    file: ConfigFile,
}

const EXAMPLES: &str = "\
It can be stopped at any time and goes on where it was: a cut costs one pair.

Examples:
  pentimento calibrate
  pentimento calibrate --limit 200 --shares 0.2,0.4,0.6 --out quick
  pentimento calibrate --sizes 128x128,64x64,128x64
  pentimento calibrate --model ./my-diffusers-folder --pairs pairs.jsonl --out my-calibration
  pentimento calibrate --report > map.md
  pentimento serve --reuse-policy calibrated --calibration calibration/steered.json";

/// Measures, or reports, and writes the tables.
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
    let pairs = pairs(&arguments, model).map_err(Failure::Misuse)?;
    let defaults = model.defaults();
    let measure = Measure::new(
        model,
        pairs.iter().all(|pair| pair.named.is_some()),
        sizes(&arguments, model).map_err(Failure::Misuse)?,
        arguments.steps.unwrap_or(defaults.steps),
        arguments.guidance_scale.unwrap_or(defaults.guidance_scale),
        &arguments.shares,
    )?;
    let (mut file, rows) =
        Rows::open(&arguments.out.join(MEASURED), &measure.settings).map_err(Failure::Misuse)?;
    if arguments.report {
        let tables = match &arguments.tables {
            Some(folder) => tables_in(folder, model)?,
            None => tables_of(model)?,
        };
        return Ok(map::print(&measure, &rows, &tables)?);
    }
    let rows = measure_missing(&measure, &pairs, rows, &mut file)?;
    for resume in Resume::ALL {
        write_table(&measure, &rows, resume, &arguments.out.join(tables::file(resume)))?;
    }
    Ok(())
}

fn check(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.shares.is_empty() || !arguments.shares.iter().all(|share| *share > 0.0 && *share < 1.0) {
        return Err(anyhow!("--shares: every share must lie between 0 and 1"));
    }
    match arguments.steps {
        Some(steps) if !(2..=MAX_STEPS).contains(&steps) => {
            Err(anyhow!("--steps: must be between 2 and {MAX_STEPS}"))
        }
        _ => Ok(()),
    }
}

fn sizes(arguments: &Arguments, model: &Pipeline) -> anyhow::Result<Vec<Size>> {
    if arguments.sizes.is_empty() {
        return Ok(vec![model.defaults().size]);
    }
    arguments.sizes.iter().try_for_each(|size| model.sizes().check(*size)).context("--sizes")?;
    Ok(arguments.sizes.clone())
}

fn pairs(arguments: &Arguments, model: &Pipeline) -> anyhow::Result<Vec<Pair>> {
    let (name, text) = match &arguments.pairs {
        Some(path) => {
            let name = format!("--pairs {}", path.display());
            let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
            (name, text)
        }
        None => match model.model().files().read(PAIRS)? {
            Some(bytes) => (PAIRS.to_owned(), String::from_utf8_lossy(&bytes).into_owned()),
            None => return Err(anyhow!("the model {} comes without pairs: give --pairs", model.id())),
        },
    };
    let read = |(i, line)| serde_json::from_str(line).with_context(|| format!("{name}: line {}", i + 1));
    let pairs: Vec<Pair> = text.lines().enumerate().map(read).collect::<Result<_, _>>()?;
    if pairs.is_empty() {
        return Err(anyhow!("{name}: no pairs"));
    }
    Ok(pairs.into_iter().take(arguments.limit.unwrap_or(usize::MAX)).collect())
}

/// Measures what `rows` has not, and adds it to them and to the file.
fn measure_missing(
    measure: &Measure,
    pairs: &[Pair],
    mut rows: Vec<Row>,
    file: &mut Rows,
) -> anyhow::Result<Vec<Row>> {
    let key = |pair: &Pair| (pair.source.clone(), pair.prompt.clone());
    let mut done: HashSet<_> = rows.iter().map(|row| key(&row.pair)).collect();
    let missing: Vec<&Pair> = pairs.iter().filter(|pair| done.insert(key(pair))).collect();
    let bar = ProgressBar::new(pairs.len() as u64);
    // The template is a constant; where it were wrong, indicatif's own look would do.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} pairs, {eta} left") {
        bar.set_style(style);
    }
    bar.inc(pairs.len().saturating_sub(missing.len()) as u64);
    for pair in missing {
        let row = measure.pair(pair)?;
        file.add(&row)?;
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// Whole or not at all.
fn write_table(measure: &Measure, rows: &[Row], resume: Resume, path: &Path) -> anyhow::Result<()> {
    let learned = measure.learned(rows, resume)?;
    let table = Calibration::fit(measure.settings.measured_for(resume), &learned)
        .with_context(|| format!("{} pairs were measured and are kept, but make no table", rows.len()))?;
    let unfinished = path.with_extension("new");
    std::fs::write(&unfinished, table.to_json()? + "\n")
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| path.display().to_string())?;
    println!("{}: {} pairs", path.display(), rows.len());
    Ok(())
}
