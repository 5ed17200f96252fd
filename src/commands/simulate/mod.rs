//! `pentimento simulate`: scheduler and workers in simulated time, under a trace or drawn requests, with faults
//! (docs/load.md).

mod report;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use pentimento_pipelines::NoiseSchedule;

use self::report::{Report, Row};
use super::offered::{Offered, between};
use super::{Failure, policy_json};
use crate::menu::MenuFile;
use crate::scheduler::core::{Config, Limits, Policy, Tuning};
use crate::scheduler::menu::Menu;
use crate::simulation::{Drawn, Faults, Machine, Recorded, Requests, Scenario, TIERS, menu, run as simulate};
use crate::trace::{Arrival, Quality, Request};

/// What `simulate` is given.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// JSON lines or GenTD26's CSV, as `replay` reads them. Without a trace and --synthetic, --seeds runs small
    /// installations that are drawn by their seeds and full of faults.
    #[arg(conflicts_with = "synthetic")]
    trace: Option<PathBuf>,
    /// Draw the requests instead: as many as --requests says (100,000), of --clients clients.
    #[arg(long, value_name = "poisson:RATE", value_parser = poisson)]
    synthetic: Option<f64>,
    #[command(flatten)]
    offered: Offered,
    /// Run each of these seeds, in place of --seed.
    #[arg(long, value_name = "FROM..TO", value_parser = seeds)]
    seeds: Option<Range<u64>>,
    /// Workers.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workers: u32,
    /// Rows of a worker's batch; a guided picture takes two.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    rows: u32,
    /// Models. A trace's models are spread over them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    models: u32,
    /// How many models fit into a worker's memory; 0: all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    model_places: u32,
    /// Clients of --synthetic, of which the first makes half of the requests.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    clients: u32,
    /// The part of the pictures that may start from a stored state; of a trace's, of those that follow another one.
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = between::<0, 1000>)]
    stored: f64,
    /// The menu, as `pentimento frontier` writes it; its steps are spaced by Stable Diffusion's noise schedule. Without
    /// one: 4 to 32 steps of assumed quality.
    #[arg(long, value_name = "FILE")]
    menu: Option<PathBuf>,
    /// The plan policy: adaptive, per-model, fixed, or JSON with its settings.
    #[arg(long, value_name = "NAME|JSON", default_value = "adaptive", value_parser = policy)]
    policy: Policy,
    /// Milliseconds of a step without rows.
    #[arg(long, value_name = "MS", default_value = "2", value_parser = between::<1, 60_000_000>)]
    step_ms: f64,
    /// Milliseconds that each row adds to a step.
    #[arg(long, value_name = "MS", default_value = "1", value_parser = between::<1, 60_000_000>)]
    row_ms: f64,
    /// Milliseconds from the last step to the file.
    #[arg(long, value_name = "MS", default_value = "5", value_parser = between::<0, 60_000_000>)]
    finish_ms: f64,
    /// The part of --synthetic's requests that ask for four pictures; the others ask for one.
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = between::<0, 1000>)]
    batches: f64,
    /// Seconds to the deadline of tier auto; the others' are proportional. Default: three times what the best option
    /// takes alone.
    #[arg(long, value_name = "SECONDS", value_parser = between::<1, 86_400_000>)]
    deadline_seconds: Option<f64>,
    /// The most pictures that wait or are painted.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pictures: usize,
    /// Set a number of the scheduler's that is set by hand, as planned=0.4; docs/planning.md has them all.
    #[arg(long, value_name = "NAME=VALUE", value_parser = tuned)]
    tune: Vec<(String, f64)>,
    /// What goes wrong.
    #[arg(long, value_enum, default_value = "none")]
    faults: WhatFails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum WhatFails {
    None,
    /// A bad day of a cluster: now and then a message is lost or late, a worker dies or stalls.
    Mild,
    /// As the seed says, up to a fifth of all messages.
    Drawn,
}

const EXAMPLES: &str = "\
Examples:
  pentimento simulate --seeds 0..1000
  pentimento simulate --synthetic poisson:100 --workers 4 --policy per-model
  pentimento simulate --synthetic poisson:20000 --requests 10000000 --workers 1000
  pentimento simulate trace.jsonl --workers 2 --menu menu.json --faults mild
  pentimento simulate lora_request_trace.csv --rate 200 --free-steps --stored 0.8";

/// The requests of --synthetic where --requests is not given.
const SYNTHETIC: u64 = 100_000;

fn poisson(text: &str) -> Result<f64, String> {
    let rate = text.strip_prefix("poisson:").ok_or("must be poisson:RATE")?;
    between::<1, 1_000_000_000>(rate)
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parse = |(from, to): (&str, &str)| Some(from.parse().ok()?..to.parse().ok()?);
    let seeds = text.split_once("..").and_then(parse).filter(|seeds| !seeds.is_empty());
    seeds.ok_or_else(|| "must be FROM..TO, FROM below TO".to_owned())
}

fn policy(text: &str) -> Result<Policy, String> {
    policy_json(text).and_then(serde_json::from_value).map_err(|error| error.to_string())
}

fn tuned(text: &str) -> Result<(String, f64), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    let value = value.parse().ok().filter(|value: &f64| (0.0..=1e6).contains(value));
    let value = value.ok_or("the value must be a number between 0 and 1000000")?;
    set(&mut Tuning::default(), name, value)?;
    Ok((name.to_owned(), value))
}

fn set(tuning: &mut Tuning, name: &str, value: f64) -> Result<(), String> {
    match name {
        "headroom" => tuning.headroom = value,
        "planned" => tuning.planned = value,
        "reprice_seconds" => tuning.reprice_seconds = value,
        "falls_after_seconds" => tuning.falls_after_seconds = value,
        "overcommit" => tuning.overcommit = value as u32,
        "memory" => tuning.memory = value,
        "outlier" => tuning.outlier = value,
        _ => return Err(format!("there is no {name:?}")),
    }
    Ok(())
}

/// Simulates, and reports.
///
/// # Errors
/// [`Failure`]; also where an invariant broke.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let fixed = scenario(&arguments).map_err(Failure::Misuse)?;
    let seed = arguments.offered.seed;
    let seeds = match &arguments.seeds {
        Some(seeds) => seeds.clone(),
        None if fixed.is_none() => {
            return Err(Failure::Misuse(anyhow!("a TRACE, --synthetic or --seeds must be given")));
        }
        None => seed..seed + 1,
    };
    let mut report = Report::default();
    let bar = bar(&seeds, fixed.as_ref());
    for seed in seeds {
        let scenario = of_seed(&arguments, fixed.as_ref(), seed);
        let before = bar.position();
        let begun = Instant::now();
        let outcome = simulate(seed, &scenario, &mut |requests| bar.set_position(before + requests as u64));
        let outcome = outcome.map_err(|violation| {
            let again = again(std::env::args(), seed);
            anyhow!("seed {seed}: {violation}\nIt is repeated by: {again}")
        })?;
        bar.set_position(before + outcome.requests as u64);
        report.add(Row { seed, outcome, wall_seconds: begun.elapsed().as_secs_f64() });
    }
    bar.finish_and_clear();
    print!("{}", report.table());
    Ok(())
}

/// The scenario that all seeds run; `None`: each seed draws its own.
fn scenario(arguments: &Arguments) -> anyhow::Result<Option<Scenario>> {
    let requests = match (&arguments.trace, arguments.synthetic) {
        (Some(path), _) => {
            let (requests, arrivals) = arguments.offered.read(path)?;
            Requests::Recorded(recorded(&requests, &arrivals, arguments.stored))
        }
        (None, Some(per_second)) => Requests::Drawn(Drawn {
            requests: arguments.offered.requests.unwrap_or(SYNTHETIC) as usize,
            per_second,
            clients: arguments.clients as usize,
            batches: arguments.batches,
            stored: arguments.stored,
        }),
        (None, None) => return Ok(None),
    };
    let menu = arguments.menu.as_ref().map_or_else(|| Ok(menu()), read_menu)?;
    let machine = Machine {
        step_seconds: arguments.step_ms / 1e3,
        row_seconds: arguments.row_ms / 1e3,
        finish_seconds: arguments.finish_ms / 1e3,
        ..Machine::default()
    };
    let limits =
        Limits { pictures: arguments.pictures, pictures_per_client: arguments.pictures, ..Limits::default() };
    let mut tuning = Tuning::default();
    for (name, value) in &arguments.tune {
        set(&mut tuning, name, *value).map_err(|error| anyhow!("--tune: {error}"))?;
    }
    Ok(Some(Scenario {
        config: Config { policy: arguments.policy.clone(), limits, tuning, ..Config::default() },
        deadline_seconds: arguments.deadline_seconds.unwrap_or_else(|| 3.0 * alone(&menu, &machine)),
        menu: Arc::new(menu),
        machine,
        workers: arguments.workers as usize,
        rows: arguments.rows,
        models: arguments.models as usize,
        model_places: arguments.model_places,
        requests,
        faults: Faults::default(),
    }))
}

fn of_seed(arguments: &Arguments, fixed: Option<&Scenario>, seed: u64) -> Scenario {
    let drawn = Scenario::drawn(seed);
    let Some(fixed) = fixed else { return drawn };
    let faults = match arguments.faults {
        WhatFails::None => Faults::default(),
        WhatFails::Mild => Faults::mild(),
        WhatFails::Drawn => drawn.faults,
    };
    Scenario { faults, ..fixed.clone() }
}

/// Seconds that the best option of a menu takes on a machine with nothing else to do.
fn alone(menu: &Menu, machine: &Machine) -> f64 {
    let best = menu.iter().max_by(|a, b| a.quality_at(1.0).total_cmp(&b.quality_at(1.0)));
    let steps = best.into_iter().flat_map(|option| &option.steps);
    steps.map(|step| machine.seconds(step.rows)).sum::<f64>() + machine.finish_seconds
}

fn read_menu(path: &PathBuf) -> anyhow::Result<Menu> {
    // Stable Diffusion's noise schedule.
    const SCHEDULE: &[u8] =
        br#"{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}"#;
    let read = || {
        let file = MenuFile::from_json(&std::fs::read_to_string(path)?)?;
        let guidance_scale = file.measured_for().guidance_scale;
        Ok(file.offered(&NoiseSchedule::from_json(SCHEDULE)?, guidance_scale)?)
    };
    read().map_err(|error: anyhow::Error| error.context(format!("--menu: {}", path.display())))
}

/// The requests of a trace as the simulation takes them. Of those that follow another one of their session, `stored` is
/// the part that may start from a stored state.
fn recorded(requests: &[Request], arrivals: &[Arrival], stored: f64) -> Arc<[Recorded]> {
    let one = |(number, arrival): (usize, &Arrival)| {
        let request = &requests[arrival.request];
        let follows = ["edit", "paraphrase", "variation"].map(Some).contains(&request.class.as_deref());
        let quality = match request.quality {
            Some(Quality::Low | Quality::Standard) => "low",
            Some(Quality::Medium) => "medium",
            Some(Quality::High | Quality::Hd) => "high",
            Some(Quality::Auto) | None => "auto",
        };
        Recorded {
            at: arrival.at,
            client: request.client.as_deref().or(request.namespace.as_deref()).unwrap_or("client").into(),
            pictures: request.n.unwrap_or(1),
            model: request.checkpoint,
            tier: TIERS.iter().position(|tier| tier.name == quality).unwrap_or(0),
            steps: request.num_inference_steps,
            deadline_seconds: request.max_latency_ms.map(|ms| ms / 1e3),
            // The golden ratio's multiples spread evenly.
            stored: follows && (number as f64 * 0.618_033_988_75).fract() < stored,
        }
    };
    arrivals.iter().enumerate().map(one).collect()
}

/// The command line that runs one seed alone.
fn again(arguments: impl Iterator<Item = String>, seed: u64) -> String {
    let mut words = vec![];
    let mut skip = false;
    for word in arguments {
        let named = ["--seeds", "--seed"].contains(&word.as_str());
        if !skip && !named && !word.starts_with("--seeds=") && !word.starts_with("--seed=") {
            words.push(if word.contains([' ', '"', '{']) { format!("'{word}'") } else { word });
        }
        skip = named;
    }
    format!("{} --seeds {seed}..{}", words.join(" "), seed + 1)
}

/// Shown on a terminal only.
fn bar(seeds: &Range<u64>, fixed: Option<&Scenario>) -> ProgressBar {
    let each = fixed.map_or_else(|| Scenario::drawn(0).requests.count(), |fixed| fixed.requests.count());
    let bar = ProgressBar::new((seeds.end - seeds.start).saturating_mul(each as u64));
    // The template is a constant; where it were wrong, indicatif's own look would do.
    match ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} requests, {per_sec}, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_rates_and_policies_are_read() {
        assert_eq!(seeds("3..5"), Ok(3..5));
        assert!([".", "5..3", "3..3", "a..b", "7"].into_iter().all(|text| seeds(text).is_err()));
        assert_eq!(poisson("poisson:2.5"), Ok(2.5));
        assert!(["2.5", "poisson:", "poisson:0", "bursty:2"].into_iter().all(|text| poisson(text).is_err()));
        assert_eq!(policy("per-model"), Ok(Policy::PerModel));
        assert_eq!(
            policy(r#"{"policy": "adaptive", "replan": false}"#),
            Ok(Policy::Adaptive { replan: false })
        );
        assert!(policy("none").is_err());
        assert_eq!(tuned("planned=0.4"), Ok(("planned".to_owned(), 0.4)));
        assert!(
            ["planned", "planned=x", "planned=-1", "none=1"].into_iter().all(|text| tuned(text).is_err())
        );
    }

    #[test]
    fn the_command_that_repeats_a_seed_keeps_all_else() {
        let words = [
            "pentimento",
            "simulate",
            "--seeds",
            "0..9",
            "--seed=3",
            "--policy",
            "{\"a\": 1}",
            "--rows",
            "4",
        ];
        let again = again(words.into_iter().map(str::to_owned), 7);
        assert_eq!(again, "pentimento simulate --policy '{\"a\": 1}' --rows 4 --seeds 7..8");
    }

    #[test]
    fn a_traces_requests_keep_their_client_steps_and_tier() {
        let request = |client: &str, class: &str, quality| Request {
            client: Some(client.to_owned()),
            class: Some(class.to_owned()),
            quality,
            n: Some(4),
            num_inference_steps: Some(30),
            ..Request::default()
        };
        let requests = [request("a", "fresh", Some(Quality::Hd)), request("b", "edit", None)];
        let arrivals = [Arrival { at: 1.0, request: 1 }, Arrival { at: 2.0, request: 0 }];
        let recorded = recorded(&requests, &arrivals, 1.0);
        let [first, second] = &recorded[..] else { panic!("{recorded:?}") };
        assert_eq!((first.at, &*first.client, first.pictures, first.steps), (1.0, "b", 4, Some(30)));
        assert_eq!((TIERS[first.tier].name, first.stored), ("auto", true));
        assert_eq!((TIERS[second.tier].name, second.stored), ("high", false));
    }
}
