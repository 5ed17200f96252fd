//! A painting on its way: how far it says it is, and what a change of plans leaves of it.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

use std::sync::Arc;
use std::time::Duration;

use pentimento::plan::{Terms, Tier};
use pentimento::queue::{Encoding, Format, Hit, Job, Reused, Start};
use pentimento::worker::{Beginning, Painting};
use pentimento_cache::EntryId;
use pentimento_pipelines::{Components, DenoisingState, Device, Model, NoiseSource, Pipeline, Size};

const STEPS: usize = 20;

fn model() -> Pipeline {
    Pipeline::load(&Model::find("storybook").unwrap(), &Components::default(), &Device::Cpu).unwrap()
}

fn job(model: &Pipeline) -> Arc<Job> {
    Arc::new(Job {
        request_id: "r".to_owned(),
        index: 0,
        client: "c".to_owned(),
        model: model.id().to_owned(),
        prompt: "a red house in the snow".to_owned(),
        negative_prompt: String::new(),
        size: Size { width: 64, height: 64 },
        seed: 1,
        noise: NoiseSource::Pentimento,
        plan: model.plan(STEPS, model.defaults().guidance_scale).unwrap(),
        terms: Terms { tier: Tier::Auto, floor: 4, best: STEPS, objective: Duration::from_secs(1) },
        spent: Duration::ZERO,
        start: Start::Noise,
        keep: None,
        previews: vec![5, 10, 15],
        encoding: Encoding { format: Format::Png, quality: 100 },
    })
}

fn steps(painting: &mut Painting, count: usize) {
    (0..count).for_each(|_| painting.step().unwrap());
}

/// Takes what is left; how many that were.
fn rest(painting: &mut Painting) -> usize {
    let mut taken = 0;
    while !painting.is_finished() {
        painting.step().unwrap();
        taken += 1;
    }
    taken
}

#[test]
fn progress_is_kept_through_changes_of_plans() {
    let model = model();
    let mut painting = Painting::begin(&model, &job(&model), STEPS, &Beginning::Noise, None).unwrap();
    let begun = painting.progress();
    assert_eq!((begun.done, begun.skipped, begun.taken, begun.planned), (0.0, 0.0, 0, Some(STEPS)));
    assert!(begun.replannable);
    steps(&mut painting, 5);
    assert!((painting.progress().done - 0.25).abs() < 1e-9);

    painting.replan(8, 6).unwrap();
    let now = painting.progress();
    assert!((now.done - 0.25).abs() < 1e-9, "another plan is no progress: {}", now.done);
    assert_eq!((now.taken, now.planned), (5, Some(8)));
    assert!((11..=12).contains(&painting.steps()), "six are left, or one more: {}", painting.steps());
    let left = painting.steps() - 5;
    steps(&mut painting, 1);
    assert!((painting.progress().done - (0.25 + 0.75 / left as f64)).abs() < 1e-9);

    let all = painting.steps();
    assert_eq!(rest(&mut painting), all - 6);
    assert_eq!((painting.progress().done, painting.progress().taken), (1.0, all));
    let picture = painting.picture().unwrap();
    let (painted, kept) = painting.finish(&picture).unwrap();
    assert_eq!((painted.steps, painted.skipped_steps), (all, 0));
    assert!(painted.file.starts_with(b"\x89PNG") && kept.is_none());
}

#[test]
fn what_a_state_spared_is_progress_but_no_step_taken() {
    let model = model();
    let job = job(&model);
    let conditioning = Arc::new(model.encode("a blue house in the snow", None, job.size).unwrap());
    let mut source = model.start(conditioning, 7, job.noise, job.size, job.plan.clone()).unwrap();
    (0..10).for_each(|_| model.step(&mut [&mut source]).unwrap());
    let state: DenoisingState = source.snapshot().unwrap();
    let reused = Reused {
        hit: Hit::State,
        source: EntryId::new(1),
        timestep: state.timestep,
        similarity: 0.95,
        source_prompt: None,
        varied: false,
    };
    let mut painting =
        Painting::begin(&model, &job, STEPS, &Beginning::State(&reused, &state), None).unwrap();
    let begun = painting.progress();
    assert_eq!((begun.done, begun.skipped, begun.taken), (0.5, 0.5, 0));
    steps(&mut painting, 2);
    assert!((painting.progress().done - 0.6).abs() < 1e-9 && painting.progress().taken == 2);

    painting.replan(10, 4).unwrap();
    let taken = rest(&mut painting);
    assert!((4..=5).contains(&taken), "{taken}");
    let end = painting.progress();
    assert_eq!((end.done, end.skipped, end.taken), (1.0, 0.5, 2 + taken));
}
