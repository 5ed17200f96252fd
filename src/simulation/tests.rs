//! Whole runs from seeds. A failure prints its seed.

use std::sync::Arc;

use super::*;
use crate::scheduler::core::Config;

fn calm(requests: usize, per_second: f64) -> Scenario {
    Scenario {
        config: Config::default(),
        menu: Arc::new(menu()),
        machine: Machine::default(),
        workers: 3,
        rows: 8,
        models: 1,
        model_places: 0,
        requests: Requests::Drawn(Drawn { requests, per_second, clients: 5, batches: 0.2, stored: 0.25 }),
        deadline_seconds: 2.0,
        faults: Faults::default(),
    }
}

fn run(seed: u64, scenario: &Scenario) -> Result<Outcome, Violation> {
    super::run(seed, scenario, &mut |_| {})
}

#[test]
fn without_load_all_get_the_best_in_time() {
    let outcome = run(1, &calm(100, 2.0)).unwrap();
    assert_eq!((outcome.later, outcome.never, outcome.failed), (0, 0, 0), "{outcome:?}");
    assert_eq!(outcome.in_time, outcome.painted, "{outcome:?}");
    assert!(outcome.quality / outcome.painted as f64 > 0.99, "{outcome:?}");
}

#[test]
fn under_load_quality_gives_way_and_deadlines_hold() {
    for seed in 0..5 {
        let outcome = run(seed, &calm(1000, 60.0)).unwrap();
        let (in_time, quality) = (outcome.in_time_share(), outcome.mean_quality());
        assert!(in_time > 0.98 && quality < 0.995, "seed {seed}: {in_time} {quality} {outcome:?}");
        assert!(outcome.longest_seconds < 10.0, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    for seed in [3, 1023] {
        assert_eq!(run(seed, &Scenario::drawn(seed)), run(seed, &Scenario::drawn(seed)), "seed {seed}");
    }
    assert_ne!(run(3, &Scenario::drawn(3)), run(4, &Scenario::drawn(3)));
}

#[test]
fn nothing_is_lost_whatever_goes_wrong() {
    for seed in 0..1000 {
        match run(seed, &Scenario::drawn(seed)) {
            Ok(outcome) => assert!(outcome.most_tasks <= 200),
            Err(violation) => {
                panic!("{violation}; `pentimento simulate --seeds {seed}..{}` repeats it", seed + 1)
            }
        }
    }
}
