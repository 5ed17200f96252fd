use super::*;

fn stable_diffusion(spacing: Spacing) -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig {
        beta_start: 0.00085,
        beta_end: 0.012,
        beta_schedule: BetaSchedule::ScaledLinear,
        steps_offset: 1,
        set_alpha_to_one: false,
        timestep_spacing: spacing,
        ..Default::default()
    })
    .unwrap()
}

#[test]
fn alpha_bars_equal_diffusers() {
    let s = stable_diffusion(Spacing::Leading);
    // The values come from diffusers 0.42.1's DDIMScheduler.alphas_cumprod.
    for (t, want) in [(0.0, 0.99915), (500.0, 0.27633), (999.0, 0.00466)] {
        assert!((s.alpha_bar(t) - want).abs() < 1e-5, "ᾱ({t}) = {}", s.alpha_bar(t));
    }
    assert_eq!(s.alpha_bar(FINISHED), s.alpha_bar(0.0));
    assert!(s.alpha_bar(10.5) < s.alpha_bar(10.0) && s.alpha_bar(10.5) > s.alpha_bar(11.0));
}

#[test]
fn timesteps_of_the_three_spacings() {
    assert_eq!(stable_diffusion(Spacing::Leading).timesteps(4).unwrap(), [751.0, 501.0, 251.0, 1.0]);
    assert_eq!(stable_diffusion(Spacing::Linspace).timesteps(4).unwrap(), [999.0, 666.0, 333.0, 0.0]);
    assert_eq!(stable_diffusion(Spacing::Trailing).timesteps(4).unwrap(), [999.0, 749.0, 499.0, 249.0]);
}

#[test]
fn every_step_count_decreases_within_the_schedule() {
    for spacing in [Spacing::Leading, Spacing::Linspace, Spacing::Trailing] {
        let s = stable_diffusion(spacing);
        for n in 1..=1000 {
            let t = s.timesteps(n).unwrap();
            assert_eq!(t.len(), n);
            assert!(t.windows(2).all(|w| w[0] > w[1]) || n == 1000, "{spacing:?} {n}");
            assert!(t[0] <= 999.0 && t[n - 1] >= 0.0);
        }
        assert!(s.timesteps(0).is_err() && s.timesteps(1001).is_err());
    }
}

#[test]
fn other_schedulers_keys_pass_and_unknown_ones_are_named() {
    let pndm = br#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true, "trained_betas": null}"#;
    assert!(NoiseSchedule::from_json(pndm).is_ok());
    for key in ["use_karras_sigmas", "a_key_of_tomorrow"] {
        let json = format!(r#"{{"{key}": true}}"#);
        let error = NoiseSchedule::from_json(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn an_id_depends_on_the_noise_levels_only() {
    let schedule = stable_diffusion(Spacing::Leading);
    assert_eq!(schedule.id(), "6b95b97fa90c6b39", "it must not change, because stored states contain it");
    let id = |change: fn(&mut ScheduleConfig)| {
        let mut config = schedule.config().clone();
        change(&mut config);
        NoiseSchedule::new(config).unwrap().id()
    };
    let same: [fn(&mut ScheduleConfig); 3] = [
        |c| c.timestep_spacing = Spacing::Trailing,
        |c| c.prediction_type = Prediction::VPrediction,
        |c| c.steps_offset = 0,
    ];
    let others: [fn(&mut ScheduleConfig); 6] = [
        |c| c.beta_start = 0.00086,
        |c| c.beta_end = 0.013,
        |c| c.beta_schedule = BetaSchedule::Linear,
        |c| c.beta_schedule = BetaSchedule::SquaredcosCapV2,
        |c| c.num_train_timesteps = 999,
        |c| c.set_alpha_to_one = true,
    ];
    for (i, change) in same.into_iter().enumerate() {
        assert_eq!(id(change), schedule.id(), "{i}");
    }
    let mut ids: Vec<String> = others.into_iter().map(id).chain([schedule.id()]).collect();
    ids.push(id(|c| c.trained_betas = Some(vec![0.01; 1000])));
    ids.push(id(|c| {
        c.prediction_type = Prediction::VPrediction;
        c.rescale_betas_zero_snr = true;
    }));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 9);
}

#[test]
fn zero_terminal_snr_ends_in_pure_noise() {
    let config = ScheduleConfig {
        prediction_type: Prediction::VPrediction,
        rescale_betas_zero_snr: true,
        ..Default::default()
    };
    let s = NoiseSchedule::new(config.clone()).unwrap();
    assert_eq!(s.alpha_bar(999.0), 0.0);
    assert!((s.alpha_bar(0.0) - (1.0 - config.beta_start)).abs() < 1e-12);
    let mut none = config.clone();
    none.trained_betas = Some(vec![0.0; 1000]);
    assert!(NoiseSchedule::new(none).is_err());
    let epsilon = ScheduleConfig { prediction_type: Prediction::Epsilon, ..config };
    assert!(NoiseSchedule::new(epsilon).unwrap_err().to_string().contains("v_prediction"));
}
