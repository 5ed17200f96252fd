//! Do ten pictures of one prompt still differ when the cache answers?

use std::path::Path;

use pentimento::gateway::embedder::CachedEmbedder;
use pentimento::quality::ratio;
use pentimento_pipelines::{Picture, Trajectory};

use crate::replay::{Desk, Setting, by_specification};
use crate::studio::{Request, STEPS, Studio, canonical};

const PICTURES: u64 = 10;

/// Mean absolute difference of two pictures' values, 0 to 1.
fn distance(a: &Picture, b: &Picture) -> f64 {
    let sum: u64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / (255.0 * a.rgb.len() as f64)
}

/// The mean distance over all pairs, and the share of pairs that are one picture.
fn variety(pictures: &[Picture]) -> (f64, f64) {
    let distances: Vec<f64> = pictures
        .iter()
        .enumerate()
        .flat_map(|(i, a)| pictures[i + 1..].iter().map(move |b| distance(a, b)))
        .collect();
    let count = distances.len() as f64;
    (distances.iter().sum::<f64>() / count, distances.iter().filter(|d| **d == 0.0).count() as f64 / count)
}

/// Prints, per setting, the variety, and the fidelity, of ten requests without a seed for each of `prompts` edits of the trace, relative to
/// those without a cache. The cache holds every picture of the trace, painted from scratch, and takes in no more.
pub async fn print(
    studio: &Studio,
    embedder: &CachedEmbedder,
    requests: &[Request],
    settings: &[Setting],
    prompts: usize,
    work: &Path,
) {
    let asked: Vec<&Request> = requests.iter().filter(|r| r.class == "edit").take(prompts).collect();
    let (mut reference, mut best) = (Vec::new(), Vec::new());
    println!(
        "| setting | mean pairwise distance | ÷ off | pairs that are one picture | fidelity ÷ off | steps skipped |"
    );
    println!("|---|---|---|---|---|---|");
    let off = Setting::parse("off");
    for setting in std::iter::once(&off).chain(settings) {
        let desk = Desk::open(studio, embedder, setting, &work.join("cache-variety"));
        for i in (0..requests.len()).filter(|i| canonical(requests, *i).request == *i) {
            let shape = studio.state(i, STEPS).shape;
            desk.keep(&requests[i].prompt, requests[i].seed, |k| studio.state(i, k).latent, shape).await;
        }
        let (mut values, mut scores, mut same, mut skipped) = (Vec::new(), Vec::new(), 0.0, 0);
        for request in &asked {
            let (pictures, steps) = ten(studio, &desk, setting, requests, request).await;
            let (distance, identical) = variety(&pictures);
            values.push(distance);
            let fidelity = pictures.iter().map(|picture| studio.judge(request, picture).fidelity);
            scores.push(fidelity.sum::<f64>() / pictures.len() as f64);
            same += identical;
            skipped += steps;
        }
        if reference.is_empty() {
            reference.clone_from(&values);
            best.clone_from(&scores);
        }
        let pairs = |of: &[f64], to: &[f64]| -> Vec<(f64, f64)> {
            of.iter().copied().zip(to.iter().copied()).collect()
        };
        let count = asked.len() as f64;
        println!(
            "| {} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
            setting.name,
            values.iter().sum::<f64>() / count,
            ratio(&pairs(&values, &reference)).unwrap(),
            same / count,
            ratio(&pairs(&scores, &best)).unwrap(),
            skipped as f64 / (count * PICTURES as f64 * STEPS as f64)
        );
    }
}

/// Ten pictures of a prompt, and the steps that they were spared.
async fn ten(
    studio: &Studio,
    desk: &Desk<'_>,
    setting: &Setting,
    requests: &[Request],
    request: &Request,
) -> (Vec<Picture>, usize) {
    let (mut painting, mut skipped) = (Vec::new(), 0);
    for seed in request.seed + 1..=request.seed + PICTURES {
        let (found, _) = desk.ask(&request.prompt, None, seed).await;
        painting.push(match desk.chosen(&found) {
            None => studio.begin_scratch(&request.prompt, seed),
            Some((name, k)) => {
                skipped += k;
                let source = by_specification(requests, name);
                let state = studio.state(source, k);
                studio.go_on(
                    &request.prompt,
                    &requests[source].prompt,
                    seed,
                    &state,
                    k,
                    setting.how,
                    setting.eta,
                )
            }
        });
    }
    while painting.iter().any(|trajectory| !trajectory.is_finished()) {
        let mut unfinished: Vec<&mut Trajectory> = painting.iter_mut().filter(|t| !t.is_finished()).collect();
        studio.pipeline.step(&mut unfinished).unwrap();
    }
    (painting.iter().map(|trajectory| studio.pipeline.finish(trajectory).unwrap()).collect(), skipped)
}
