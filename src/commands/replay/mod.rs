//! `pentimento replay`: an open-loop load generator. Requests of a trace leave at their times, whatever the server does,
//! and the report says what share was answered within its objective, how fast and how well (docs/load.md).

mod client;
mod drive;
mod plot;
mod report;
mod row;
mod score;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use hyper::Uri;
use hyper::header::HeaderValue;
use indicatif::{ProgressBar, ProgressStyle};
use pentimento_pipelines::{Model, Precision};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use self::client::Client;
use self::drive::{Settings, drive};
use self::report::{Generator, Summary, quantile};
use self::row::Row;
use super::offered::{Offered, between};
use super::{Failure, load_models};
use crate::trace::{Arrival, MAX_SECONDS, Request};

/// What `replay` is given.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// JSON lines, a request each: {"at": SECONDS, "prompt": …}; or GenTD26's CSV. docs/load.md has all fields.
    trace: PathBuf,
    /// The server's Images API.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    target: String,
    #[command(flatten)]
    offered: Offered,
    /// Requests under way at a time; what is due beyond them is not sent, and counted.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = in_flight)]
    max_in_flight: usize,
    /// Time for an answer.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = between::<1, 86_400_000>)]
    timeout_seconds: f64,
    /// The latency within which an answer counts, in place of each answer's own `objective_ms`.
    #[arg(long, value_name = "MS", value_parser = between::<1, 86_400_000_000>)]
    objective_ms: Option<f64>,
    /// A request refused with 429 comes back once, when Retry-After says so; its latency counts from then.
    #[arg(long)]
    obey_retry_after: bool,
    /// The environment variable that holds the API key.
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
    /// Write the report and a row for each request.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the run over time.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Keep the pictures in this folder.
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,
    /// After the run, judge the pictures with this model's scorers: fidelity where the trace has `named`, CLIP score.
    #[arg(long, value_name = "ID|PATH", requires = "pictures")]
    score: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  pentimento replay trace.jsonl
  pentimento replay trace.jsonl --speed 2 --json run.json --svg run.svg
  pentimento replay lora_request_trace.csv --rate 3 --requests 500 --free-steps
  pentimento replay trace.jsonl --arrivals poisson --rate 4 --seconds 120 --objective-ms 2000
  pentimento replay trace.jsonl --arrivals bursty --rate 4 --burst-factor 8 --obey-retry-after
  pentimento replay trace.jsonl --pictures out --score storybook";

fn in_flight(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=100_000).contains(n));
    number.ok_or_else(|| "must be between 1 and 100000".to_owned())
}

/// Open files beside the connections: streams, what the runtime needs, what the run writes.
const OTHER_FILES: u64 = 64;

/// Everything of a run, as `--json` writes it.
#[derive(Serialize)]
struct Report<'a> {
    summary: &'a Summary,
    requests: &'a [Row],
}

/// Sends the trace, and reports.
///
/// # Errors
/// [`Failure`]; also where not one request was completed.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let (trace, arrivals) = scheduled(&arguments).map_err(Failure::Misuse)?;
    let client = client(&arguments).map_err(Failure::Misuse)?;
    allow_open_files(arguments.max_in_flight).map_err(Failure::Misuse)?;
    if let Some(model) = &arguments.score {
        Model::find(model).map_err(|e| Failure::Misuse(anyhow!("--score: {e}")))?;
    }
    let settings = Settings {
        max_in_flight: arguments.max_in_flight,
        timeout: Duration::from_secs_f64(arguments.timeout_seconds),
        objective_ms: arguments.objective_ms,
        obey_retry_after: arguments.obey_retry_after,
    };
    let begun = (Instant::now(), cpu_seconds());
    let progress = bar(arrivals.len(), "{bar:40} {pos}/{len} sent, {msg}");
    // One thread is enough, and leaves the machine to the server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = runtime.block_on(drive(client, &trace, &arrivals, settings, &progress))?;
    progress.finish_and_clear();
    let mut lags: Vec<f64> = rows.iter().filter_map(|row| Some(row.lag? * 1e3)).collect();
    let generator = Generator {
        cpu_seconds: cpu_seconds() - begun.1,
        wall_seconds: begun.0.elapsed().as_secs_f64(),
        lag_p99_ms: quantile(&mut lags, 0.99),
    };
    if let (Some(model), Some(folder)) = (&arguments.score, &arguments.pictures) {
        judge(model, &mut rows, &trace, folder)?;
    }
    let last = arrivals.last().map_or(0.0, |arrival| arrival.at);
    let summary = Summary::new(&rows, arguments.offered.seconds.unwrap_or(last), generator);
    report(&arguments, &summary, &rows)
}

fn scheduled(arguments: &Arguments) -> anyhow::Result<(Vec<Request>, Vec<Arrival>)> {
    let (trace, arrivals) = arguments.offered.read(&arguments.trace)?;
    match arrivals.last() {
        Some(last) if last.at > MAX_SECONDS => Err(anyhow!("the last request is due after {MAX_SECONDS} s")),
        _ => Ok((trace, arrivals)),
    }
}

fn client(arguments: &Arguments) -> anyhow::Result<Client> {
    let target = arguments.target.trim_end_matches('/');
    let uri = format!("{target}/v1/images/generations");
    let uri: Uri = uri.parse().map_err(|e| anyhow!("--target: {target:?}: {e}"))?;
    if uri.scheme_str() != Some("http") || uri.query().is_some() {
        return Err(anyhow!("--target: {target:?} is not http://ADDRESS:PORT"));
    }
    let key = match &arguments.api_key_env {
        Some(name) => {
            let key = std::env::var(name).with_context(|| format!("--api-key-env: {name}"))?;
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))
                .map_err(|_| anyhow!("--api-key-env: {name} holds what no header may"))?;
            value.set_sensitive(true);
            Some(value)
        }
        None => None,
    };
    if let Some(folder) = &arguments.pictures {
        let context = || format!("--pictures: {}", folder.display());
        std::fs::create_dir_all(folder).with_context(context)?;
        // Pictures of another run would be judged as this one's.
        if std::fs::read_dir(folder).with_context(context)?.next().is_some() {
            return Err(anyhow!("--pictures: {} is not empty", folder.display()));
        }
    }
    Ok(Client::new(uri, key, arguments.pictures.clone()))
}

fn judge(model: &str, rows: &mut [Row], trace: &[Request], folder: &Path) -> Result<(), Failure> {
    let models = load_models(&[model.to_owned()], Precision::F32)?;
    let [model] = models.as_slice() else { return Err(anyhow!("no model was loaded").into()) };
    let scorers = score::Scorers::load(model)?;
    let progress = bar(rows.len(), "{bar:40} {pos}/{len} judged");
    scorers.score(rows, trace, folder, &progress)?;
    progress.finish_and_clear();
    Ok(())
}

fn report(arguments: &Arguments, summary: &Summary, rows: &[Row]) -> Result<(), Failure> {
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string(&Report { summary, requests: rows })? + "\n";
        std::fs::write(path, text).with_context(|| format!("--json: {}", path.display()))?;
    }
    if let Some(path) = &arguments.svg {
        let text = plot::svg(rows)?;
        std::fs::write(path, text).with_context(|| format!("--svg: {}", path.display()))?;
    }
    print!("{}", summary.table());
    if summary.completed > 0 {
        return Ok(());
    }
    let first = rows.iter().find_map(|row| row.error.as_deref());
    let reason = first.map_or_else(String::new, |error| format!(": {error}"));
    Err(anyhow!("no request was completed{reason}").into())
}

/// Lets this process hold a connection for each request under way: many systems allow 1,024 files unless asked for more.
fn allow_open_files(connections: usize) -> anyhow::Result<()> {
    let needed = connections as u64 + OTHER_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // No limit at all is `None`.
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(most) = maximum.filter(|most| *most < needed) {
        return Err(anyhow!(
            "--max-in-flight: {connections} connections are more than {most} open files allow"
        ));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum })
        .context("--max-in-flight: this process may not open so many files")
}

/// Processor time of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Shown on a terminal only.
fn bar(length: usize, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    // The template is a constant; where it were wrong, indicatif's own look would do.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
