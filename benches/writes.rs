//! Whether keeping states delays a step: pictures painted while the cache writes the one before and they are kept
//! themselves, and pictures of which nothing is kept while nothing is written, in turn.
//!
//! `cargo bench --bench writes -- [PAIRS]` prints the median time of a step either way and their ratio, pair by pair,
//! with its 95 % bootstrap interval.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pentimento::gateway::{CacheMode, GenerationRequest, Limits, Reuse, ReuseOptions, Wanted};
use pentimento::plan::Terms;
use pentimento::queue::Job;
use pentimento::worker::{Beginning, Painting};
use pentimento_cache::{Cache, CacheConfig, PolicyConfig};
use pentimento_pipelines::{Components, Device, Model, Pipeline};

fn main() -> anyhow::Result<()> {
    let pairs: u64 = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(100);
    let model = Pipeline::load(&Model::find("storybook")?, &Components::default(), &Device::Cpu)?;
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let reuse = open(folder.path(), &model)?;
    let mut ratios = Vec::new();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for seed in 0..pairs + 2 {
        let kept = runtime.block_on(job(&model, &reuse, 2 * seed, CacheMode::Refresh))?;
        let next = runtime.block_on(job(&model, &reuse, 2 * seed + 1, CacheMode::Refresh))?;
        let plain = runtime.block_on(job(&model, &reuse, 2 * seed, CacheMode::Off))?;
        // With writes: snapshots are taken, and the states of the picture before are written meanwhile.
        let busy = || {
            step_time(&model, &kept, &reuse)?;
            step_time(&model, &next, &reuse)
        };
        let quiet = || {
            runtime.block_on(reuse.cache().flush())?;
            step_time(&model, &plain, &reuse)
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
    println!("{pairs} pairs of pictures, 50 steps, 8 states and the finished latent of those that are kept");
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
        patience: std::time::Duration::from_secs(1),
    };
    let cache = Cache::open(CacheConfig::new(dir))?;
    Ok(Reuse::new(cache, [7; 16], std::slice::from_ref(model), vec![], PolicyConfig::Exact {}, options)?)
}

async fn job(model: &Pipeline, reuse: &Reuse, seed: u64, cache: CacheMode) -> anyhow::Result<Arc<Job>> {
    let wanted = Wanted { prompt: Some("a red house in the snow".to_owned()), cache, ..Wanted::default() };
    let limits = Limits { prompt_bytes: 1000, n: 1, steps: 1000 };
    let request =
        GenerationRequest::new(wanted, model, &limits, |_, _, asked| Terms::unhurried(asked, 50), seed)?;
    let mut jobs = request.jobs("bench", "bench");
    reuse.prepare(&request, "bench", &mut jobs).await?;
    Ok(Arc::new(jobs.remove(0)))
}

/// Seconds per step, the hand-over to the cache included.
fn step_time(model: &Pipeline, job: &Arc<Job>, reuse: &Reuse) -> anyhow::Result<f64> {
    let mut painting = Painting::begin(model, job, job.plan.steps().len(), &Beginning::Noise, None)?;
    let started = Instant::now();
    while !painting.is_finished() {
        painting.step()?;
    }
    let mut time = started.elapsed();
    let picture = painting.picture()?;
    let (_, keeping) = painting.finish(&picture)?;
    let started = Instant::now();
    if let Some(keeping) = keeping {
        keeping.into_cache(reuse.cache());
    }
    time += started.elapsed();
    Ok(time.as_secs_f64() / job.plan.steps().len() as f64)
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
