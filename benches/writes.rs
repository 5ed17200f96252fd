//! Whether keeping states delays a step: pictures painted while the cache writes the one before and they are kept
//! themselves, and pictures of which nothing is kept while nothing is written, in turn.
//!
//! `cargo bench --bench writes -- [PAIRS]` prints the median time of a step either way and their ratio, pair by pair,
//! with its 95 % bootstrap interval.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use pentimento::picture::{KeepOrder, PaintTask, PictureSpec};
use pentimento::scheduler::TaskId;
use pentimento::scheduler::messages::{Assignment, Beginning, Rank};
use pentimento::worker::{Painting, Pipelines, Stages, Stored};
use pentimento_cache::{
    Cache, CacheConfig, Compatibility, Content, NewPicture, PaintedPlan, Scope, SpecificationHash,
};
use pentimento_pipelines::{Components, Device, Model, NoiseSource, Pipeline, PlanOption};

const STEPS: usize = 50;

fn main() -> anyhow::Result<()> {
    let pairs: u64 = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(100);
    let model = Pipeline::load(&Model::find("storybook")?, &Components::default(), &Device::Cpu)?;
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let cache = Cache::open(CacheConfig::new(folder.path()))?;
    let stored = Stored::new(cache.clone(), Duration::from_secs(1));
    let engine = Pipelines::new(vec![(model.clone(), vec![PlanOption::guided(STEPS)])], Some(stored));
    let mut ratios = Vec::new();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for seed in 0..pairs + 2 {
        // With writes: snapshots are taken, and the states of the picture before are written meanwhile.
        let busy = || {
            step_time(&engine, task(&model, 2 * seed, true))?;
            step_time(&engine, task(&model, 2 * seed + 1, true))
        };
        let quiet = || {
            runtime.block_on(cache.flush())?;
            step_time(&engine, task(&model, 2 * seed, false))
        };
        // The order changes with every pair.
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
    runtime.block_on(cache.flush())?;
    let stats = cache.stats();
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

fn task(model: &Pipeline, seed: u64, keep: bool) -> PaintTask {
    let size = model.defaults().size;
    let spec = PictureSpec {
        model: model.id().to_owned(),
        weights: String::new(),
        prompt: "a red house in the snow".to_owned(),
        negative_prompt: None,
        size,
        seed,
        noise: NoiseSource::default(),
        guidance_scale: model.defaults().guidance_scale,
        steps: Some(STEPS),
    };
    let mut specification = [0; 32];
    specification[..8].copy_from_slice(&seed.to_le_bytes());
    let picture = NewPicture {
        scope: Scope { tenant: "bench".to_owned(), namespace: "bench".to_owned() },
        compatibility: Compatibility {
            latent_space: "bench".to_owned(),
            noise_schedule: model.schedule().id(),
            width: size.width,
            height: size.height,
            embedder: "bench".to_owned(),
            negative_prompt: String::new(),
        },
        model: model.id().to_owned(),
        guidance_scale: spec.guidance_scale,
        embedding: vec![1.0, 0.0],
        prompt: None,
        prompt_hash: "bench".to_owned(),
        content: Content::of(&spec.prompt, &[0; 16]),
        specification: SpecificationHash::new(specification),
        seed,
        plan: PaintedPlan::guided(STEPS as u32),
        expected_quality: None,
        resumed: None,
        refresh: true,
        file: None,
        states: vec![],
    };
    let shares = vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
    let order = keep.then(|| Box::new(KeepOrder { picture, shares }));
    PaintTask { request: "bench".to_owned(), spec, start: None, keep: order }
}

/// Seconds per step, the hand-over to the cache included.
fn step_time(engine: &Pipelines, task: PaintTask) -> anyhow::Result<f64> {
    let assignment = Assignment {
        task: TaskId { request: "bench".into(), index: 0 },
        attempt: 1,
        model: task.spec.model.as_str().into(),
        spec: task,
        option: PlanOption::guided(STEPS).id.into(),
        beginning: Beginning::Noise,
        rank: Rank { yields: false, tag: 0.0 },
        paused: false,
        previews: 0,
        deadline_seconds: 60.0,
    };
    let mut painting = engine.begin(&assignment, None, Duration::ZERO)?;
    let started = Instant::now();
    while painting.rows() > 0 {
        engine.step(&mut [&mut painting]).map_err(|why| anyhow!(why))?;
    }
    let mut time = started.elapsed();
    let picture = engine.finish(&mut painting).map_err(|why| anyhow!(why))?;
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
