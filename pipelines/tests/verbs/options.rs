//! Plan options on the embedded model.

use std::sync::Arc;

use pentimento_pipelines::{DenoisingState, Pipeline, PlanOption, Precision, ResumeSteering, Trajectory};

use super::{SIZE, conditioning, early_state, pipeline, pipeline_of, run, run_out, start};

/// `steps` DDIM steps, the first `guided` of them with guidance.
fn option(p: &Pipeline, steps: usize, guided: usize) -> PlanOption {
    PlanOption::ddim(p.schedule(), steps, guided).unwrap()
}

/// Goes on from a state of `source` with `prompt` under an option, as the cache does it.
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
fn a_batch_of_all_rows_gives_each_its_own_result() {
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
        // Of the resumed picture two steps are steered, and so guided, though only the option's third step is.
        assert_eq!(rows, [7, 7, 6, 6, 4, 4, 2, 2], "{precision}");
        for (alone, member) in alone.iter().zip(together) {
            assert_eq!(alone, &member.snapshot().unwrap(), "{precision}");
        }
    }
}

#[test]
fn an_option_goes_on_the_same_after_a_resume_and_a_replan() {
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

/// A step taken from a latent noisier than its own timestep is guided where the latent is.
#[test]
fn a_switch_of_options_guides_down_to_the_same_noise_level() {
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
