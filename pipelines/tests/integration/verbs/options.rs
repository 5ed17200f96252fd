//! Plan options, tested on the embedded model.

use std::sync::Arc;

use pentimento_pipelines::{DenoisingState, Pipeline, PlanOption, Precision, ResumeSteering, Trajectory};

use super::{SIZE, conditioning, early_state, pipeline, pipeline_of, run, run_out, start};

/// `steps` DDIM steps, the first `guided` of them with guidance.
fn option(p: &Pipeline, steps: usize, guided: usize) -> PlanOption {
    PlanOption::ddim(p.schedule(), steps, guided).unwrap()
}

/// Resumes a state of `source` with `prompt` by an option, as a cache hit does.
fn resumed_under(
    p: &Pipeline,
    state: &DenoisingState,
    [source, prompt]: [&str; 2],
    option: &PlanOption,
) -> Trajectory {
    let conditioning = p.encode(prompt, None, SIZE).unwrap();
    let conditioning = conditioning.with_source(p.encode_prompt(source).unwrap()).unwrap();
    let plan = p.steered_rest_of(option, 3.0, state.timestep, &ResumeSteering::DEFAULT).unwrap();
    p.resume(state, Arc::new(conditioning), 1, plan).unwrap()
}

#[test]
fn trajectories_with_different_rows_share_a_batch() {
    for precision in [Precision::F32, Precision::Bf16] {
        let p = &pipeline_of(precision);
        let state = early_state(p);
        let plan = |steps, guided| p.plan_of(&option(p, steps, guided), 3.0).unwrap();
        let members = || {
            let guided = start(p, "a castle", 9, plan(6, 6));
            let half = start(p, "a white boat", 5, plan(8, 4));
            let unguided = start(p, "a green tree", 2, plan(4, 0));
            let prompts = ["a red house at night", "a blue boat at night"];
            let steered = resumed_under(p, &state, prompts, &option(p, 10, 3));
            [guided, half, unguided, steered]
        };
        let alone = members().map(|member| run_out(p, member));
        let mut together = members();
        let mut rows = Vec::new();
        while together.iter().any(|member| !member.is_finished()) {
            let mut batch: Vec<&mut Trajectory> = together.iter_mut().filter(|m| !m.is_finished()).collect();
            rows.push(batch.iter().map(|member| member.rows()).sum::<usize>());
            p.step(&mut batch).unwrap();
        }
        // The option guides three steps from noise, of which the state leaves one. Two steps are steered and therefore
        // guided.
        assert_eq!(rows, [7, 7, 6, 6, 4, 4, 2, 2], "{precision}");
        for (alone, member) in alone.iter().zip(together) {
            assert_eq!(alone, &member.snapshot().unwrap(), "{precision}");
        }
    }
}

#[test]
fn an_option_means_the_same_after_a_resume_and_a_replan() {
    let p = pipeline();
    let option = option(&p, 8, 5);
    let plan = p.plan_of(&option, 3.0).unwrap();
    let whole = run_out(&p, start(&p, "a yellow tent", 1, plan.clone()));
    for taken in [3, 6] {
        let mut t = start(&p, "a yellow tent", 1, plan.clone());
        run(&p, &mut t, taken);
        let state = t.snapshot().unwrap();
        let rest = p.rest_of(&option, 3.0, state.timestep).unwrap();
        assert_eq!(rest, *t.plan());
        let resumed = p.resume(&state, conditioning(&p, "a yellow tent"), 1, rest.clone()).unwrap();
        t.replan(rest).unwrap();
        assert_eq!((run_out(&p, t), run_out(&p, resumed)), (whole.clone(), whole.clone()));
    }
}

/// Whether a step is guided depends on the noise level of the latent, not on the timestep that the step was planned for.
#[test]
fn a_replan_to_another_option_guides_down_to_its_noise_level() {
    let p = pipeline();
    let (first, second) = (option(&p, 50, 50), option(&p, 8, 5));
    let mut t = start(&p, "a yellow tent", 1, p.plan_of(&first, 3.0).unwrap());
    run(&p, &mut t, 29);
    let at = t.timestep();
    t.replan(p.rest_of(&second, 3.0, at).unwrap()).unwrap();
    let level = |timestep| p.schedule().noise_level(timestep);
    let next = t.plan().steps().iter().map(|step| (step.timestep, step.guidance.has_negative()));
    let next: Vec<(f64, bool)> = next.collect();
    assert_eq!(next[0].0, at);
    assert!(next.iter().all(|(timestep, guided)| *guided == (level(*timestep) > second.guided_until)));
    assert_eq!(t.rows(), 2, "{next:?}: planned for 376, taken from 421");
    let state = t.snapshot().unwrap();
    let resumed = p.resume(&state, t.conditioning().clone(), 1, t.plan().clone()).unwrap();
    assert_eq!(run_out(&p, t), run_out(&p, resumed));
}
