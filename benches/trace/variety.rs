//! Do ten pictures of one prompt still differ when the cache answers?

use std::path::Path;

use pentimento::gateway::embedder::CachedEmbedder;
use pentimento::quality::ratio;
use pentimento_pipelines::{DenoisingState, Picture};

use crate::replay::{Desk, Setting};
use crate::studio::{How, Request, STEPS, Studio};

const PICTURES: u64 = 10;

/// Mean absolute difference of two pictures' values, 0 to 1.
fn distance(a: &Picture, b: &Picture) -> f64 {
    let sum: u64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / (255.0 * a.rgb.len() as f64)
}

/// Mean distance over all pairs.
fn variety(pictures: &[Picture]) -> f64 {
    let distances: Vec<f64> = pictures
        .iter()
        .enumerate()
        .flat_map(|(i, a)| pictures[i + 1..].iter().map(move |b| distance(a, b)))
        .collect();
    distances.iter().sum::<f64>() / distances.len() as f64
}

/// Prints, per setting, the variety of ten requests without a seed for each of the first fresh prompts, relative to
/// that without a cache.
pub async fn print(
    studio: &Studio,
    embedder: &CachedEmbedder,
    requests: &[Request],
    settings: &[Setting],
    prompts: usize,
    work: &Path,
) {
    let fresh: Vec<&Request> = requests.iter().filter(|r| r.class == "fresh").take(prompts).collect();
    let mut reference = Vec::new();
    println!("| setting | mean pairwise distance | ÷ off | steps skipped |");
    println!("|---|---|---|---|");
    let off = Setting::parse("off");
    for setting in std::iter::once(&off).chain(settings) {
        let (mut values, mut skipped) = (Vec::new(), 0);
        for request in &fresh {
            let desk = Desk::open(studio, embedder, setting, &work.join("cache-variety"));
            let (pictures, k) = ten(studio, &desk, request).await;
            values.push(variety(&pictures));
            skipped += k;
        }
        if reference.is_empty() {
            reference.clone_from(&values);
        }
        let pairs: Vec<(f64, f64)> = values.iter().copied().zip(reference.iter().copied()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let of_all = fresh.len() as f64 * PICTURES as f64 * STEPS as f64;
        println!(
            "| {} | {mean:.3} | {:.3} | {:.3} |",
            setting.name,
            ratio(&pairs).unwrap(),
            skipped as f64 / of_all
        );
    }
}

/// Ten pictures of a prompt, one after another, and the steps that they were spared.
async fn ten(studio: &Studio, desk: &Desk<'_>, request: &Request) -> (Vec<Picture>, usize) {
    let mut states: Vec<Vec<(usize, DenoisingState)>> = Vec::new();
    let (mut pictures, mut skipped) = (Vec::new(), 0);
    for n in 0..PICTURES {
        let seed = request.seed + n;
        let (found, _) = desk.ask(&request.prompt, None, seed).await;
        let chosen = desk.chosen(&found);
        let scratch = chosen.is_none();
        let mut trajectory = match chosen {
            None => studio.begin_scratch(&request.prompt, seed),
            Some((name, k)) => {
                skipped += k;
                let source: usize = name.rsplit(' ').next().unwrap().parse().unwrap();
                let state = &states[source].iter().find(|(at, _)| *at == k).unwrap().1;
                // The source's prompt is the same: there is nothing to steer away from.
                studio.go_on(&request.prompt, &request.prompt, seed, state, k, How::Plain)
            }
        };
        let mut kept = Vec::new();
        while !trajectory.is_finished() {
            studio.pipeline.step(&mut [&mut trajectory]).unwrap();
            let taken = STEPS - trajectory.plan().steps().len();
            if scratch {
                kept.push((taken, trajectory.snapshot().unwrap()));
            }
        }
        if scratch {
            let shape = kept[0].1.shape;
            let latent = |k: usize| kept[k - 1].1.latent.clone();
            desk.keep(&request.prompt, states.len() as u64, latent, shape).await;
            states.push(kept);
        }
        pictures.push(studio.pipeline.finish(&trajectory).unwrap());
    }
    (pictures, skipped)
}
