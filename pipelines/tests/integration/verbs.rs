//! Properties of the seven verbs, tested on the embedded model. They hold for any weights.

mod options;

use std::sync::Arc;

use pentimento_pipelines::{
    Components, Conditioning, DenoisingState, Device, FINISHED, Model, NoiseSource, Picture, Pipeline,
    Precision, Size, Steering, StepPlan, Trajectory,
};

const SIZE: Size = Size { width: 64, height: 64 };

fn pipeline() -> Pipeline {
    pipeline_of(Precision::F32)
}

fn pipeline_of(precision: Precision) -> Pipeline {
    Pipeline::load(&Model::find("storybook").unwrap(), &Components::of(precision), &Device::Cpu).unwrap()
}

fn conditioning(p: &Pipeline, prompt: &str) -> Arc<Conditioning> {
    Arc::new(p.encode(prompt, None, SIZE).unwrap())
}

fn start(p: &Pipeline, prompt: &str, seed: u64, plan: StepPlan) -> Trajectory {
    p.start(conditioning(p, prompt), seed, NoiseSource::default(), SIZE, plan).unwrap()
}

fn run(p: &Pipeline, t: &mut Trajectory, steps: usize) {
    for _ in 0..steps {
        p.step(&mut [&mut *t]).unwrap();
    }
}

fn run_out(p: &Pipeline, mut t: Trajectory) -> DenoisingState {
    let left = t.plan().steps().len();
    run(p, &mut t, left);
    assert!(t.is_finished());
    t.snapshot().unwrap()
}

fn distance(a: &DenoisingState, b: &DenoisingState) -> f32 {
    assert_eq!((a.timestep, a.shape), (b.timestep, b.shape));
    a.latent.iter().zip(&b.latent).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn a_trajectory_does_not_depend_on_its_batch() {
    for precision in [Precision::F32, Precision::Bf16] {
        check_independence(&pipeline_of(precision));
    }
}

fn check_independence(p: &Pipeline) {
    let plan = |n| p.plan(n, 3.0).unwrap();
    let alone = run_out(p, start(p, "a red house at night", 7, plan(6)));

    // The same trajectory in batches with others of other timesteps, guidances and step counts.
    let mut mine = start(p, "a red house at night", 7, plan(6));
    let mut early = start(p, "a boat on the sea", 8, plan(9));
    let mut unguided = start(p, "a castle", 9, p.plan(4, 1.0).unwrap());
    assert_eq!(unguided.rows(), 1);
    run(p, &mut early, 2);
    p.step(&mut [&mut early, &mut mine]).unwrap();
    for _ in 0..4 {
        p.step(&mut [&mut unguided, &mut mine, &mut early]).unwrap();
    }
    assert!(unguided.is_finished() && unguided.rows() == 0 && unguided.batch_key().is_none());
    p.step(&mut [&mut mine]).unwrap();
    let together = mine.snapshot().unwrap();
    assert_eq!(alone, together);
    let unguided_alone = run_out(p, start(p, "a castle", 9, p.plan(4, 1.0).unwrap()));
    assert_eq!(unguided_alone, unguided.snapshot().unwrap());
}

#[test]
fn rounded_weights_paint_nearly_the_same() {
    let paint = |precision| {
        let p = pipeline_of(precision);
        run_out(&p, start(&p, "a red house at night", 7, p.plan(6, 3.0).unwrap()))
    };
    let exact = paint(Precision::F32);
    let apart = distance(&exact, &paint(Precision::Bf16));
    println!("{apart} apart");
    let largest = exact.latent.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(apart > 0.0 && apart < 0.1 * largest, "{apart} of {largest}");
}

#[test]
fn resuming_a_snapshot_continues_the_trajectory_exactly() {
    let p = pipeline();
    for eta in [0.0, 0.7] {
        let plan = p.plan(8, 3.0).unwrap().with_eta(eta).unwrap();
        let whole = run_out(&p, start(&p, "a green tree in the snow", 3, plan.clone()));
        let mut t = start(&p, "a green tree in the snow", 3, plan.clone());
        run(&p, &mut t, 3);
        let json = serde_json::to_string(&t.snapshot().unwrap()).unwrap();
        let state: DenoisingState = serde_json::from_str(&json).unwrap();
        let rest = plan.after(state.timestep);
        assert_eq!(rest.steps().len(), 5);
        let again = p.resume(&state, conditioning(&p, "a green tree in the snow"), 3, rest).unwrap();
        assert_eq!(run_out(&p, again), whole, "eta {eta}");
    }
}

#[test]
fn another_plan_resumes_a_state_from_its_own_timestep() {
    let p = pipeline();
    let mut donor = start(&p, "a yellow tent", 1, p.plan(50, 3.0).unwrap());
    run(&p, &mut donor, 11);
    let state = donor.snapshot().unwrap();
    let mine = p.plan(20, 3.0).unwrap();
    let rest = mine.after(state.timestep);
    let skipped = mine.steps().len() - rest.steps().len();
    assert!(skipped > 0 && rest.steps()[0].timestep <= state.timestep);
    let t = p.resume(&state, conditioning(&p, "a blue tent"), 1, rest.clone()).unwrap();
    assert_eq!(t.timestep(), state.timestep);
    assert_eq!(
        t.next_step().unwrap().timestep,
        state.timestep,
        "the first step is taken from the state's noise level"
    );
    assert_eq!(t.plan().steps()[1..], rest.steps()[1..]);
    assert_eq!(run_out(&p, t).timestep, FINISHED);
}

#[test]
fn a_cleaner_state_gets_noise_up_to_the_plans_first_step() {
    let p = pipeline();
    let done = run_out(&p, start(&p, "a white boat", 5, p.plan(4, 3.0).unwrap()));
    assert_eq!(done.timestep, FINISHED);
    let rest = p.plan(10, 3.0).unwrap().after(500.0);
    let noised = |seed| p.resume(&done, conditioning(&p, "a white boat"), seed, rest.clone()).unwrap();
    let t = noised(1);
    assert_eq!(t.timestep(), rest.steps()[0].timestep);
    assert!(distance(&t.snapshot().unwrap(), &noised(1).snapshot().unwrap()) == 0.0);
    assert!(distance(&t.snapshot().unwrap(), &noised(2).snapshot().unwrap()) > 0.1);

    let as_it_is = p.resume(&done, conditioning(&p, ""), 1, p.plan(4, 3.0).unwrap().after(FINISHED)).unwrap();
    assert!(as_it_is.is_finished());
    assert_eq!(as_it_is.snapshot().unwrap(), done);
}

#[test]
fn replan_replaces_the_remaining_steps() {
    let p = pipeline();
    let mut t = start(&p, "a purple windmill", 2, p.plan(50, 3.0).unwrap());
    run(&p, &mut t, 7);
    let at = t.timestep();
    let shorter = p.plan(10, 3.0).unwrap().after(at);
    t.replan(shorter.clone()).unwrap();
    assert_eq!((t.timestep(), t.plan().steps().len()), (at, shorter.steps().len()));
    assert!(t.replan(shorter.after(FINISHED)).unwrap_err().to_string().starts_with("plan:"), "no step left");
    assert!(
        t.replan(p.plan(10, 3.0).unwrap()).unwrap_err().to_string().starts_with("plan:"),
        "noisier than the trajectory"
    );
    assert_eq!(run_out(&p, t).timestep, FINISHED);
}

#[test]
fn forks_share_a_prefix_and_then_differ() {
    let p = pipeline();
    let mut trunk = start(&p, "a lighthouse", 4, p.plan(6, 3.0).unwrap());
    run(&p, &mut trunk, 3);
    let same = trunk.fork(trunk.conditioning().clone(), 4).unwrap();
    let other = trunk.fork(conditioning(&p, "a black lighthouse by day"), 4).unwrap();
    let (trunk, same, other) = (run_out(&p, trunk), run_out(&p, same), run_out(&p, other));
    assert_eq!(trunk, same);
    assert!(distance(&trunk, &other) > 0.0);
}

const STEERINGS: [Steering; 2] =
    [Steering::Extrapolated { strength: 1.0 }, Steering::Contrastive { strength: 1.0 }];

/// The state after two of ten steps.
fn early_state(p: &Pipeline) -> DenoisingState {
    let mut donor = start(p, "a red house at night", 7, p.plan(10, 3.0).unwrap());
    run(p, &mut donor, 2);
    donor.snapshot().unwrap()
}

/// Resumes a state of `source` with `prompt`, with the first two steps steered.
fn steered(
    p: &Pipeline,
    state: &DenoisingState,
    [source, prompt]: [&str; 2],
    steering: Steering,
) -> Trajectory {
    let conditioning = p.encode(prompt, None, SIZE).unwrap();
    let conditioning = conditioning.with_source(p.encode_prompt(source).unwrap()).unwrap();
    let plan = p.plan(10, 3.0).unwrap().after(state.timestep).steered(2, steering, 1.0).unwrap();
    p.resume(state, Arc::new(conditioning), 1, plan).unwrap()
}

#[test]
fn steering_changes_the_picture_if_the_prompts_differ() {
    let p = pipeline();
    let state = early_state(&p);
    let prompts = ["a red house at night", "a blue house at night"];
    let plain = run_out(&p, steered(&p, &state, prompts, Steering::Prompts));
    for steering in STEERINGS {
        let theirs = run_out(&p, steered(&p, &state, prompts, steering));
        assert!(distance(&plain, &theirs) > 0.01, "{steering:?}");
        assert_eq!(theirs, run_out(&p, steered(&p, &state, prompts, steering)), "{steering:?}");
        let same = run_out(&p, steered(&p, &state, [prompts[1]; 2], steering));
        assert_eq!(plain, same, "{steering:?} with equal prompts");
    }
}

#[test]
fn a_steered_trajectory_does_not_change_its_batch() {
    let p = pipeline();
    let state = early_state(&p);
    let prompts = ["a red house at night", "a blue boat at night"];
    let fresh = || start(&p, "a castle", 9, p.plan(8, 3.0).unwrap());
    let alone = run_out(&p, fresh());
    for steering in STEERINGS {
        let rows = if matches!(steering, Steering::Contrastive { .. }) { 3 } else { 2 };
        let steered_alone = run_out(&p, steered(&p, &state, prompts, steering));
        let (mut member, mut company) = (steered(&p, &state, prompts, steering), fresh());
        assert_eq!(member.batch_key(), company.batch_key());
        for step in 0..8 {
            assert_eq!(member.rows(), if step < 2 { rows } else { 2 });
            p.step(&mut [&mut member, &mut company]).unwrap();
        }
        for (alone, together) in [(&alone, &company), (&steered_alone, &member)] {
            assert!(distance(alone, &together.snapshot().unwrap()) < 1e-4, "{steering:?}");
        }
    }
}

#[test]
fn steering_without_a_source_is_refused() {
    let p = pipeline();
    let state = early_state(&p);
    let c = conditioning(&p, "a blue house");
    for steering in STEERINGS {
        let plan = p.plan(10, 3.0).unwrap().after(state.timestep).steered(2, steering, 1.0).unwrap();
        let refusals = [
            p.resume(&state, c.clone(), 1, plan.clone()).err(),
            p.start(c.clone(), 1, NoiseSource::default(), SIZE, plan.clone()).err(),
            p.resume(&state, c.clone(), 1, p.plan(10, 3.0).unwrap().after(state.timestep))
                .unwrap()
                .replan(plan)
                .err(),
            steered(&p, &state, ["a red house", "a blue house"], steering).fork(c.clone(), 1).err(),
        ];
        for refusal in refusals {
            assert!(refusal.unwrap().to_string().starts_with("source: "), "{steering:?}");
        }
    }
    let mut foreign = p.encode_prompt("a red house").unwrap();
    foreign.ids = [1, 2].into();
    let error = p.encode("a blue house", None, SIZE).unwrap().with_source(foreign).unwrap_err().to_string();
    assert!(error.starts_with("source: "), "{error}");
}

#[test]
fn finish_previews_an_unfinished_trajectory() {
    let p = pipeline();
    let mut t = start(&p, "a red castle", 6, p.plan(5, 3.0).unwrap());
    run(&p, &mut t, 3);
    let preview = p.finish(&t).unwrap();
    run(&p, &mut t, 2);
    let picture = p.finish(&t).unwrap();
    assert_eq!((preview.width, preview.height, preview.rgb.len()), (64, 64, 64 * 64 * 3));
    assert_ne!(preview, picture);
}

#[test]
fn a_picture_can_be_encoded_and_resumed() {
    let p = pipeline();
    let mut t = start(&p, "a red castle", 6, p.plan(5, 3.0).unwrap());
    run(&p, &mut t, 5);
    let (done, picture) = (t.snapshot().unwrap(), p.finish(&t).unwrap());
    let encoded = p.encode_picture(&picture).unwrap();
    assert_eq!((encoded.timestep, encoded.shape), (FINISHED, done.shape));
    let again = p.resume(&encoded, conditioning(&p, ""), 6, p.plan(10, 3.0).unwrap().after(300.0)).unwrap();
    assert!(again.timestep() <= 300.0 && !again.is_finished());
    assert_eq!(run_out(&p, again).timestep, FINISHED);
    let small = Picture { width: 8, height: 8, rgb: vec![0; 192] };
    assert!(p.encode_picture(&small).unwrap_err().to_string().starts_with("size:"));
}

#[test]
fn impossible_arguments_are_named() {
    let p = pipeline();
    let plan = p.plan(3, 3.0).unwrap();
    let c = conditioning(&p, "");
    let odd = Size { width: 63, height: 64 };
    let error = p.start(c.clone(), 1, NoiseSource::default(), odd, plan.clone()).unwrap_err().to_string();
    assert!(error.starts_with("size: 63x64"), "{error}");
    let nothing = plan.after(FINISHED);
    assert!(
        p.start(c.clone(), 1, NoiseSource::default(), SIZE, nothing)
            .unwrap_err()
            .to_string()
            .starts_with("plan:")
    );
    let foreign = DenoisingState { timestep: 500.0, shape: [16, 16, 16], latent: vec![0.0; 4096] };
    assert!(p.resume(&foreign, c.clone(), 1, plan.clone()).unwrap_err().to_string().starts_with("state:"));
    let short = DenoisingState { timestep: 500.0, shape: [4, 16, 16], latent: vec![0.0; 7] };
    assert!(p.resume(&short, c.clone(), 1, plan.clone()).is_err());

    let refused = |state: &DenoisingState, plan: &StepPlan| {
        p.resume(state, c.clone(), 1, plan.clone()).unwrap_err().to_string()
    };
    let good = DenoisingState { timestep: 500.0, shape: [4, 16, 16], latent: vec![0.0; 1024] };
    let nan = DenoisingState { latent: vec![f32::NAN; 1024], ..good.clone() };
    assert!(refused(&nan, &plan).contains("finite"));
    assert!(refused(&DenoisingState { timestep: 1000.0, ..good.clone() }, &plan).starts_with("state:"));
    let large = DenoisingState { timestep: 500.0, shape: [4, 64, 64], latent: vec![0.0; 4 * 64 * 64] };
    assert!(refused(&large, &plan).starts_with("size:"));
    let nothing_left = plan.after(FINISHED);
    assert!(
        refused(&good, &nothing_left).starts_with("plan:"),
        "otherwise noise would be returned as a picture"
    );

    let (mut a, mut b) = (start(&p, "x", 1, plan.clone()), start(&p, "y", 1, plan));
    run(&p, &mut a, 3);
    let before = b.snapshot().unwrap();
    assert!(p.step(&mut [&mut a, &mut b]).unwrap_err().to_string().starts_with("batch:"));
    assert_eq!(before, b.snapshot().unwrap(), "a refused batch does not change its members");
    assert!(p.step(&mut []).is_ok());
    assert!(p.plan(0, 3.0).unwrap_err().to_string().starts_with("num_inference_steps:"));
}

#[test]
fn an_unknown_model_is_named() {
    let error = Model::find("no-such-model").unwrap_err().to_string();
    assert!(error.starts_with("model:") && error.contains("no-such-model"), "{error}");
}
