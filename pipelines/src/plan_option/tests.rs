use super::*;
use crate::schedule::{FINISHED, ScheduleConfig, Spacing};

const SCALE: f32 = 5.0;

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig::default()).unwrap()
}

fn option(steps: usize, guided: usize) -> PlanOption {
    PlanOption::ddim(&schedule(), steps, guided).unwrap()
}

/// `g` for a guided step, `-` for an unguided one.
fn guided(plan: &StepPlan) -> String {
    plan.steps().iter().map(|step| if step.guidance.has_negative() { 'g' } else { '-' }).collect()
}

#[test]
fn the_first_steps_are_guided_and_the_others_take_one_row() {
    for (steps, of, wanted, rows) in
        [(5, 3, "ggg--", 8), (8, 5, "ggggg---", 13), (4, 4, "gggg", 8), (3, 0, "---", 3)]
    {
        let plan = option(steps, of).plan(&schedule(), SCALE).unwrap();
        assert_eq!((guided(&plan).as_str(), plan.rows()), (wanted, rows));
    }
    let ids = [option(20, 20), option(20, 12), option(20, 0)].map(|option| option.id);
    assert_eq!(ids, ["ddim-20", "ddim-20-g12", "ddim-20-g0"]);
}

#[test]
fn every_share_of_every_step_count_and_spacing_is_met() {
    for timestep_spacing in [Spacing::Leading, Spacing::Linspace, Spacing::Trailing] {
        let config = ScheduleConfig { timestep_spacing, ..Default::default() };
        let schedule = NoiseSchedule::new(config).unwrap();
        for steps in [1, 2, 3, 10, 50, 333] {
            for guided in 0..=steps {
                let plan =
                    PlanOption::ddim(&schedule, steps, guided).unwrap().plan(&schedule, SCALE).unwrap();
                assert_eq!(plan.rows(), steps + guided, "{timestep_spacing:?} {steps} {guided}");
            }
        }
    }
}

#[test]
fn a_fully_guided_option_is_the_full_plan() {
    let schedule = schedule();
    for (steps, scale) in [(1, 5.0), (20, 5.0), (50, 0.5)] {
        let full = StepPlan::ddim(&schedule, steps, scale).unwrap();
        let option = option(steps, steps);
        assert_eq!(option, PlanOption::guided(steps));
        assert_eq!(option.plan(&schedule, scale).unwrap(), full);
        assert_eq!(option.guided_until, 0.0);
    }
    let unguided = option(20, 12).plan(&schedule, 1.0).unwrap();
    assert_eq!(unguided.rows(), 20, "without guidance every step takes one row");
}

/// The noise level alone decides whether a step is guided, for any start of the remaining steps.
#[test]
fn the_rest_is_guided_down_to_the_same_noise_level() {
    let (schedule, option) = (schedule(), option(10, 6));
    let whole = option.plan(&schedule, SCALE).unwrap();
    for (i, step) in whole.steps().iter().enumerate() {
        let rest = option.rest(&schedule, SCALE, step.timestep).unwrap();
        assert_eq!(rest.steps(), &whole.steps()[i..], "a state of the option's own plan");
    }
    for timestep in [999.0, 777.7, 451.0, 449.0, 399.5, 120.0, 3.0, 0.0] {
        let rest = option.rest(&schedule, SCALE, timestep).unwrap();
        assert_eq!(rest.steps()[0].timestep, timestep);
        for step in rest.steps() {
            let level = schedule.noise_level(step.timestep);
            assert_eq!(step.guidance.has_negative(), level > option.guided_until, "{step:?}");
        }
    }
    // The steps are 900, 800, … 0, and the last guided one is 400. The step planned for 300 starts from the latent's timestep.
    assert_eq!(guided(&option.rest(&schedule, SCALE, 380.0).unwrap()), "g---");
    assert_eq!(guided(&option.rest(&schedule, SCALE, 320.0).unwrap()), "----");
    assert!(option.rest(&schedule, SCALE, FINISHED).unwrap().steps().is_empty());
    assert!(option.rest(&schedule, SCALE, f64::NAN).is_err());
}

#[test]
fn steered_steps_are_guided_and_later_ones_by_their_level() {
    let (schedule, option) = (schedule(), option(50, 30));
    let steering = ResumeSteering::DEFAULT;
    let steered = |timestep| option.steered_rest(&schedule, SCALE, timestep, &steering).unwrap();
    // At 720, 17 of the 30 guided steps remain. 8 of 50 steps are steered.
    let early = steered(720.0);
    assert_eq!(guided(&early), "g".repeat(17) + &"-".repeat(20));
    assert_eq!(early.steps()[8..], option.rest(&schedule, SCALE, 720.0).unwrap().steps()[8..]);
    // At 200 no guided step remains, but the steered steps are guided.
    let late = steered(200.0);
    assert_eq!(guided(&late), "gggggggg---");
    assert_eq!(late.rows(), 19);
    for plan in [early, late] {
        for (i, step) in plan.steps().iter().enumerate() {
            let (by, scale) = (step.guidance.steering, step.guidance.scale);
            assert_eq!(by == steering.steering, i < 8);
            assert_eq!(scale == SCALE * steering.guidance_factor, i < 8);
        }
    }
    let fully = PlanOption::ddim(&schedule, 50, 50).unwrap();
    let full = StepPlan::ddim(&schedule, 50, SCALE).unwrap();
    for timestep in [720.0, 200.0] {
        let steered = fully.steered_rest(&schedule, SCALE, timestep, &steering).unwrap();
        assert_eq!(steered, steering.plan(&full, timestep).unwrap(), "as without options");
    }
}

#[test]
fn an_option_is_plain_data() {
    let json = serde_json::to_string(&option(20, 20)).unwrap();
    assert_eq!(json, r#"{"id":"ddim-20","steps":20}"#, "defaults are not written");
    for option in [option(20, 20), option(20, 12)] {
        let json = serde_json::to_string(&option).unwrap();
        assert_eq!(serde_json::from_str::<PlanOption>(&json).unwrap(), option);
    }
    let unknown = r#"{"id":"a","steps":3,"resolution":0.5}"#;
    assert!(serde_json::from_str::<PlanOption>(unknown).unwrap_err().to_string().contains("resolution"));
}

#[test]
fn a_wrong_field_is_named() {
    let good = option(20, 12);
    let error = |option: PlanOption| option.plan(&schedule(), SCALE).unwrap_err().to_string();
    for id in ["", "a b", "ü", &"a".repeat(65)] {
        assert!(error(PlanOption { id: id.into(), ..good.clone() }).starts_with("id:"), "{id}");
    }
    for steps in [0, 1001] {
        assert!(error(PlanOption { steps, ..good.clone() }).starts_with("steps:"));
    }
    for guided_until in [-0.1, 1.1, f64::NAN] {
        assert!(error(PlanOption { guided_until, ..good.clone() }).starts_with("guided_until:"));
    }
    for token_merging in [-0.5, 1.0] {
        assert!(error(PlanOption { token_merging, ..good.clone() }).starts_with("token_merging:"));
    }
    for unbuilt in [
        PlanOption { token_merging: 0.5, ..good.clone() },
        PlanOption { denoiser: Denoiser(1), ..good.clone() },
        PlanOption { reuse_deep_features: true, ..good.clone() },
    ] {
        assert!(error(unbuilt).contains("not built yet"));
    }
    assert!(PlanOption::ddim(&schedule(), 3, 4).unwrap_err().to_string().starts_with("guided:"));
    assert!(PlanOption::ddim(&schedule(), 0, 0).unwrap_err().to_string().starts_with("steps:"));
    assert!(good.plan(&schedule(), 101.0).unwrap_err().to_string().starts_with("plan: guidance scale"));
}
