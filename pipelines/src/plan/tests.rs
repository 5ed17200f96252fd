use super::*;
use crate::schedule::{FINISHED, ScheduleConfig};

fn plan(n: usize) -> StepPlan {
    StepPlan::ddim(&NoiseSchedule::new(ScheduleConfig::default()).unwrap(), n, 3.0).unwrap()
}

#[test]
fn a_state_leaves_the_later_steps_of_any_plan() {
    let rest = plan(20).after(655.0);
    assert_eq!(rest.steps()[0].timestep, 650.0);
    assert_eq!(rest.steps().len(), 14);
    assert_eq!(plan(20).after(650.0).steps().len(), 14);
    assert_eq!(plan(20).after(f64::INFINITY), plan(20));
    assert!(plan(20).after(-1.0).steps().is_empty());
}

#[test]
fn the_share_done_rises_from_noise_to_the_finished_latent() {
    let plan = plan(4); // 750, 500, 250, 0
    let shares = [999.0, 750.0, 625.0, 500.0, 250.0, 0.0, FINISHED].map(|timestep| plan.share_done(timestep));
    assert_eq!(shares, [0.0, 0.0, 0.125, 0.25, 0.5, 0.75, 1.0]);
    assert_eq!(plan.after(FINISHED).share_done(500.0), 0.0, "no steps, no share");
}

#[test]
fn a_state_cleaner_than_the_last_step_still_leaves_one() {
    let trailing =
        ScheduleConfig { timestep_spacing: crate::schedule::Spacing::Trailing, ..Default::default() };
    let plan = StepPlan::ddim(&NoiseSchedule::new(trailing).unwrap(), 4, 3.0).unwrap();
    assert_eq!(plan.steps()[3].timestep, 249.0);
    let rest = plan.after(98.0);
    assert_eq!(rest.steps().len(), 1);
    assert_eq!(rest.steps()[0].timestep, 98.0, "it starts from the state");
    assert_eq!(plan.after(249.0).steps(), &plan.steps()[3..]);
}

#[test]
fn steering_adds_no_row_and_fits_any_guidance() {
    let schedule = NoiseSchedule::new(ScheduleConfig::default()).unwrap();
    for (scale, steered) in [(0.8, 0.8), (1.0, 1.0), (4.0, 6.0), (90.0, 100.0), (100.0, 100.0)] {
        let full = StepPlan::ddim(&schedule, 50, scale).unwrap();
        let rest = ResumeSteering::DEFAULT.plan(&full, full.steps()[25].timestep).unwrap();
        assert_eq!(rest.steps()[0].guidance.scale, steered);
        assert_eq!(rest.steps()[0].guidance.rows(), full.steps()[0].guidance.rows());
        assert_eq!(rest.steps()[8..], full.steps()[33..]);
    }
}

#[test]
fn an_impossible_plan_in_json_is_refused() {
    let good = serde_json::to_string(&plan(3)).unwrap();
    assert_eq!(serde_json::from_str::<StepPlan>(&good).unwrap(), plan(3));
    for bad in [
        r#"{"steps":[{"timestep":1,"guidance":{"scale":2}},{"timestep":5,"guidance":{"scale":2}}]}"#,
        r#"{"steps":[{"timestep":-3,"guidance":{"scale":2}}]}"#,
        r#"{"steps":[{"timestep":3,"guidance":{"scale":2000}}]}"#,
        r#"{"steps":[{"timestep":3,"guidance":{"scale":2,"steering":{"extrapolated":{"strength":9}}}}]}"#,
        r#"{"steps":[{"timestep":3,"guidance":{"scale":2,"steering":{"contrastive":{"strength":-1}}}}]}"#,
        r#"{"steps":[{"timestep":3,"guidance":{"scale":2},"reuse_deep_features":true}]}"#,
        r#"{"steps":[{"timestep":3,"guidance":{"scale":2},"denoiser":5}]}"#,
        r#"{"steps":[],"eta":1.5}"#,
    ] {
        assert!(serde_json::from_str::<StepPlan>(bad).is_err(), "{bad}");
    }
}

#[test]
fn rows_are_the_prompts_that_guidance_uses() {
    let rows = |steering| [0.0, 1.0, 1.01, 7.5].map(|scale| Guidance { scale, steering }.rows());
    assert_eq!(rows(Steering::Prompts), [1, 1, 2, 2]);
    assert_eq!(rows(Steering::Extrapolated { strength: 1.0 }), [1, 1, 2, 2]);
    assert_eq!(rows(Steering::Contrastive { strength: 1.0 }), [2, 2, 3, 3]);
}

#[test]
fn the_first_steps_are_steered_and_the_others_stay() {
    let steering = Steering::Extrapolated { strength: 1.0 };
    let steered = plan(6).steered(2, steering, 1.5).unwrap();
    assert_eq!(steered.steps()[1].guidance, Guidance { scale: 4.5, steering });
    assert_eq!(steered.steps()[2..], plan(6).steps()[2..]);
    assert_eq!(plan(6).steered(9, steering, 1.0).unwrap().steps().len(), 6);
    assert_eq!(plan(6).steered(2, Steering::Prompts, 1.0).unwrap(), plan(6));
    for strength in [f32::NAN, f32::INFINITY, -0.1, 8.1] {
        for steering in [Steering::Extrapolated { strength }, Steering::Contrastive { strength }] {
            let error = plan(6).steered(2, steering, 1.0).unwrap_err().to_string();
            assert!(error.starts_with("plan: steering strength"), "{error}");
        }
    }
    for factor in [f32::NAN, -1.0, 1e9] {
        assert!(plan(6).steered(2, steering, factor).is_err(), "{factor}");
    }
}

#[test]
fn a_resume_is_steered_for_its_share_of_the_full_plan() {
    let ResumeSteering { steering, .. } = ResumeSteering::DEFAULT;
    let steered = |n: usize| {
        let rest = ResumeSteering::DEFAULT.plan(&plan(n), 700.0).unwrap();
        assert_eq!(rest.steps().len(), plan(n).after(700.0).steps().len());
        rest.steps().iter().filter(|s| s.guidance.steering == steering).count()
    };
    assert_eq!([50, 20, 2].map(steered), [8, 3, 0]);
}

#[test]
fn plans_of_json_without_steering_still_read() {
    let step = |guidance: &str| format!(r#"{{"steps":[{{"timestep":3,"guidance":{{{guidance}}}}}]}}"#);
    let read = |guidance| serde_json::from_str::<StepPlan>(&step(guidance)).unwrap().steps()[0].guidance;
    let plain = Guidance { scale: 2.0, steering: Steering::Prompts };
    assert_eq!(read(r#""scale":2"#), plain);
    assert_eq!(read(r#""scale":2,"steering":"prompts""#), plain);
    assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"scale":2.0,"steering":"prompts"}"#);
    let steering = Steering::Contrastive { strength: 0.5 };
    assert_eq!(read(r#""scale":2,"steering":{"contrastive":{"strength":0.5}}"#).steering, steering);
}
