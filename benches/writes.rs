//! Whether keeping states delays a step: pictures painted while the cache writes the one before and they are kept
//! themselves, and pictures of which nothing is kept while nothing is written, in turn.
//!
//! `cargo bench --bench writes -- [PAIRS]` prints the median time of a step either way and their ratio, pair by pair,
//! with its 95 % bootstrap interval.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pentimento::gateway::{
    CacheMode, PictureRequest, Prepared, RequestLimits, Reuse, ReuseOptions, ServedModel, Wanted, tasks,
};
use pentimento::picture::PaintTask;
use pentimento::scheduler::TaskId;
use pentimento::scheduler::messages::{Assignment, Beginning, Rank, Terms};
use pentimento::worker::{Painting, Pipelines, Stages, Stored};
use pentimento_cache::{Cache, CacheConfig, PolicyConfig};
use pentimento_pipelines::{Components, Device, Model, Pipeline, PlanOption};

/// Steps of each picture.
const STEPS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<()> {
    let pairs: u64 = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(100);
    let model = Pipeline::load(&Model::find("storybook")?, &Components::default(), &Device::Cpu)?;
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let reuse = open(folder.path(), &model)?;
    let stored = Stored::new(reuse.cache().clone(), PATIENCE);
    let engine = Pipelines::new(vec![(model.clone(), vec![PlanOption::guided(STEPS)])], Some(stored));
    let served = Arc::new(ServedModel::new(&model, None, STEPS)?);
    let mut ratios = Vec::new();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for seed in 0..pairs + 2 {
        let kept = runtime.block_on(task(&served, &reuse, 2 * seed, CacheMode::Refresh))?;
        let next = runtime.block_on(task(&served, &reuse, 2 * seed + 1, CacheMode::Refresh))?;
        let plain = runtime.block_on(task(&served, &reuse, 2 * seed, CacheMode::Off))?;
        // With writes: snapshots are taken, and the states of the picture before are written meanwhile.
        let busy = || {
            step_time(&engine, &kept)?;
            step_time(&engine, &next)
        };
        let quiet = || {
            runtime.block_on(reuse.cache().flush())?;
            step_time(&engine, &plain)
        };
        // Who goes first changes with every pair.
        let (a, b) = match seed % 2 {
            0 => (busy()?, quiet()?),
            _ => {
                let quiet = quiet()?;
                (busy()?, quiet)
            }
        };
        if seed >= 2 {
            with.push(a);
            without.push(b);
            ratios.push(a / b);
        }
    }
    runtime.block_on(reuse.cache().flush())?;
    let stats = reuse.cache().stats();
    let (low, high) = interval(&ratios);
    println!("{pairs} pairs of pictures, {STEPS} steps, 8 states and the file of those that are kept");
    println!("kept: {} pictures, {} dropped, {} bytes", stats.entries, stats.insert_drops, stats.bytes);
    println!(
        "ms per step: {:.4} with writes, {:.4} without",
        1e3 * median(&mut with),
        1e3 * median(&mut without)
    );
    println!("ratio {:.4} (95 % interval of the median {low:.4} to {high:.4})", median(&mut ratios));
    Ok(())
}

fn open(dir: &Path, model: &Pipeline) -> anyhow::Result<Reuse> {
    let options = ReuseOptions {
        store_prompt_text: true,
        shares: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        shared_namespaces: Default::default(),
        patience: PATIENCE,
    };
    let cache = Cache::open(CacheConfig::new(dir))?;
    Ok(Reuse::new(cache, [7; 16], std::slice::from_ref(model), vec![], PolicyConfig::Exact {}, options)?)
}

async fn task(
    model: &Arc<ServedModel>,
    reuse: &Reuse,
    seed: u64,
    cache: CacheMode,
) -> anyhow::Result<Assignment<PaintTask>> {
    let wanted = Wanted { prompt: Some("a red house in the snow".to_owned()), cache, ..Wanted::default() };
    let limits = RequestLimits { prompt_bytes: 1000, n: 1, steps: STEPS, objective: None };
    let request = PictureRequest::new(wanted, model, &limits, |_| None, seed)?;
    let terms = Terms { tier: String::new(), floor: 0.0, best: 1.0, deadline_seconds: 60.0, firm: false };
    let scope = reuse.scope("bench", request.namespace());
    let tasks = tasks(&request, "bench", &scope, reuse.secret(), &terms)?;
    let prepared = reuse.prepare(&request, "bench", tasks, &|_| None).await?.pop();
    let Some(Prepared::Paint(task)) = prepared else { anyhow::bail!("it is not to be painted") };
    Ok(Assignment {
        task: TaskId { request: "bench".into(), index: 0 },
        attempt: 1,
        spec: task.spec,
        model: task.model,
        option: PlanOption::guided(STEPS).id.into(),
        beginning: Beginning::Noise,
        rank: Rank { yields: false, tag: 0.0 },
        paused: false,
        previews: 0,
        deadline_seconds: 60.0,
    })
}

/// Seconds per step, the hand-over to the cache included.
fn step_time(engine: &Pipelines, assignment: &Assignment<PaintTask>) -> anyhow::Result<f64> {
    let failed = anyhow::Error::msg;
    let mut painting = engine.begin(assignment, None, Duration::ZERO)?;
    let started = Instant::now();
    while painting.rows() > 0 {
        engine.step(&mut [&mut painting]).map_err(failed)?;
    }
    let mut time = started.elapsed();
    let picture = engine.finish(&mut painting).map_err(failed)?;
    let started = Instant::now();
    engine.keep(painting, picture, Some(1.0));
    time += started.elapsed();
    Ok(time.as_secs_f64() / STEPS as f64)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Of the median, by 2000 resamples.
fn interval(values: &[f64]) -> (f64, f64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values[(state >> 33) as usize % values.len()]
    };
    let mut medians: Vec<f64> =
        (0..2000).map(|_| median(&mut (0..values.len()).map(|_| draw()).collect::<Vec<_>>())).collect();
    medians.sort_by(f64::total_cmp);
    (medians[50], medians[1949])
}
