//! What rows in a batch are worth, and how well a step's time is known beforehand.
//!
//! `cargo bench --bench batch -- [STEPS] [THREADS]` takes STEPS steps (200) of the storybook model with each number of
//! rows, who is first changing with every round, and prints time and throughput by rows, the p95 spread of identical steps
//! (how far a step's time is from the median of all with its rows) and the p95 error of the predictor, which was
//! profiled as a worker does and corrected by every step.

use std::sync::Arc;
use std::time::Instant;

use pentimento::scheduler::core::{Config, Core};
use pentimento::scheduler::menu::{MenuOption, OptionStep};
use pentimento::scheduler::messages::{Poll, Report, Shape, StepTimes};
use pentimento::scheduler::{ModelId, Time};
use pentimento_pipelines::{Components, Conditioning, Device, Model, NoiseSource, Pipeline, Trajectory};

const ROWS: [usize; 4] = [2, 4, 8, 16];
/// As when a worker starts.
const PROFILED: usize = 3;

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let steps = numbers.next().unwrap_or(200).max(1);
    let threads = numbers.next().unwrap_or(0);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let model = Pipeline::load(&Model::find("storybook")?, &Components::default(), &Device::Cpu)?;
    let encoded = Arc::new(model.encode("a red house in the snow", None, model.defaults().size)?);

    let mut predictor = Predictor::new();
    (0..PROFILED).try_for_each(|_| step(&model, &encoded, 2).map(drop))?; // warms up
    for rows in ROWS {
        for _ in 0..PROFILED {
            predictor.observe(rows, step(&model, &encoded, rows)?);
        }
    }

    let mut times: [Vec<f64>; ROWS.len()] = Default::default();
    let mut errors: [Vec<f64>; ROWS.len()] = Default::default();
    for round in 0..steps {
        for i in (0..ROWS.len()).map(|i| (i + round) % ROWS.len()) {
            let seconds = step(&model, &encoded, ROWS[i])?;
            errors[i].push(predictor.observe(ROWS[i], seconds).abs());
            times[i].push(seconds);
        }
    }

    println!("{steps} steps of each number of rows, {} threads\n", rayon::current_num_threads());
    println!(
        "| rows | ms per step | rows per second | against 2 rows | p95 spread | p95 error | error / spread |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut two = None;
    for ((rows, times), errors) in ROWS.iter().zip(&mut times).zip(&mut errors) {
        let median = quantile(times, 0.5);
        let per_second = *rows as f64 / median;
        let mut spread: Vec<f64> = times.iter().map(|t| (t / median - 1.0).abs()).collect();
        let (spread, error) = (quantile(&mut spread, 0.95), quantile(errors, 0.95));
        println!(
            "| {rows} | {:.3} | {per_second:.1} | {:.2}× | {spread:.3} | {error:.3} | {:.2} |",
            1e3 * median,
            per_second / *two.get_or_insert(per_second),
            error / spread
        );
    }
    Ok(())
}

/// The scheduler's predictions of one model's steps.
struct Predictor {
    core: Core<(), ()>,
    model: ModelId,
    shape: Shape,
    reports: u64,
}

impl Predictor {
    fn new() -> Self {
        let shape = Shape { width: 64, height: 64 };
        Self { core: Core::new(Config::default()), model: "m".into(), shape, reports: 0 }
    }

    /// Predicted seconds of a step.
    fn predict(&self, rows: usize) -> Option<f64> {
        let mut option = MenuOption::even("one", 1, 0.0, vec![]);
        option.steps = vec![OptionStep { noise_level: 1.0, rows: rows as u32 }];
        self.core.unloaded_seconds(&self.model, self.shape, &option)
    }

    /// Takes a step's time in, as a worker reports it. The answer is the relative error of what was predicted before.
    fn observe(&mut self, rows: usize, seconds: f64) -> f64 {
        let error = self.predict(rows).map_or(0.0, |predicted| seconds / predicted - 1.0);
        self.reports += 1;
        let (model, shape) = (self.model.clone(), self.shape);
        let times = StepTimes {
            model: model.clone(),
            denoiser: String::new(),
            shape,
            rows: rows as u32,
            steps: 1,
            seconds,
        };
        let report = Report {
            rows: ROWS[ROWS.len() - 1] as u32,
            loadable: vec![model.clone()],
            resident: vec![model],
            step_times: vec![times],
            ..Report::default()
        };
        let poll = Poll { worker: "w".into(), incarnation: 1, sequence: self.reports, report };
        self.core.poll(Time::ZERO.after(self.reports as f64), poll);
        error
    }
}

/// Seconds of one step with so many rows, two to a picture.
fn step(model: &Pipeline, encoded: &Arc<Conditioning>, rows: usize) -> anyhow::Result<f64> {
    let defaults = model.defaults();
    let plan = model.plan(1, defaults.guidance_scale)?;
    let start =
        |seed| model.start(encoded.clone(), seed, NoiseSource::default(), defaults.size, plan.clone());
    let mut pictures: Vec<Trajectory> = (0..rows as u64 / 2).map(start).collect::<Result<_, _>>()?;
    let mut batch: Vec<&mut Trajectory> = pictures.iter_mut().collect();
    let started = Instant::now();
    model.step(&mut batch)?;
    Ok(started.elapsed().as_secs_f64())
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * q).ceil() as usize).clamp(1, values.len()) - 1]
}
