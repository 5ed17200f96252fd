//! Whole runs from seeds. A failure prints its seed.

use super::*;
use crate::scheduler::core::{Limits, Policy};

fn calm() -> Scenario {
    Scenario {
        config: Config::default(),
        workers: 3,
        rows: 8,
        models: 1,
        clients: 5,
        requests: 200,
        arrivals_per_second: 10.0,
        deadline_seconds: 2.0,
        faults: Faults::default(),
    }
}

/// A scenario of a seed: small, and full of faults.
fn stormy(seed: u64) -> Scenario {
    let pick = |bit: u64, one: f64, other: f64| if seed >> bit & 1 == 0 { one } else { other };
    let policy = match seed % 5 {
        0 => Policy::PerModel,
        1 => Policy::Fixed { option: Some("8".into()) },
        2 => Policy::Adaptive { replan: false },
        _ => Policy::default(),
    };
    Scenario {
        config: Config {
            policy,
            limits: Limits { pictures: 200, pictures_per_client: 120, remembered: 1000, ..Limits::default() },
            ..Config::default()
        },
        workers: 1 + (seed % 4) as usize,
        models: 1 + (seed % 2) as usize,
        requests: 60,
        arrivals_per_second: pick(0, 4.0, 60.0),
        deadline_seconds: pick(1, 1.0, 4.0),
        faults: Faults {
            lost: pick(2, 0.0, 0.2),
            duplicated: pick(3, 0.0, 0.2),
            delay_seconds: pick(4, 0.01, 0.5),
            cancelled: pick(5, 0.0, 0.2),
            death_every_seconds: pick(6, 0.0, 5.0),
            stall_every_seconds: pick(7, 0.0, 5.0),
            deadly: pick(8, 0.0, 0.01),
            failing: pick(9, 0.0, 0.05),
        },
        ..calm()
    }
}

#[test]
fn without_load_all_get_the_best_in_time() {
    let outcome = run(1, &Scenario { arrivals_per_second: 2.0, requests: 100, ..calm() }).unwrap();
    assert_eq!((outcome.later, outcome.never, outcome.failed), (0, 0, 0), "{outcome:?}");
    assert_eq!(outcome.in_time, outcome.painted, "{outcome:?}");
    assert!(outcome.quality / outcome.painted as f64 > 0.99, "{outcome:?}");
}

#[test]
fn under_load_quality_gives_way_and_deadlines_hold() {
    for seed in 0..5 {
        let outcome = run(seed, &Scenario { arrivals_per_second: 60.0, requests: 1000, ..calm() }).unwrap();
        let in_time = outcome.in_time as f64 / outcome.painted as f64;
        let quality = outcome.quality / outcome.painted as f64;
        assert!(in_time > 0.98 && quality < 0.995, "seed {seed}: {in_time} {quality} {outcome:?}");
        assert!(outcome.longest_seconds < 10.0, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    for seed in [3, 1023] {
        assert_eq!(run(seed, &stormy(seed)), run(seed, &stormy(seed)), "seed {seed}");
    }
    assert_ne!(run(3, &stormy(3)), run(4, &stormy(3)));
}

#[test]
fn nothing_is_lost_whatever_goes_wrong() {
    let seeds = std::env::var("PENTIMENTO_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(300);
    let first = std::env::var("PENTIMENTO_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in first.map_or(0..seeds, |seed| seed..seed + 1) {
        match run(seed, &stormy(seed)) {
            Ok(outcome) => assert!(outcome.most_tasks <= 200),
            Err(violation) => panic!("seed {seed}: {violation}; PENTIMENTO_SEED={seed} repeats it"),
        }
    }
}
