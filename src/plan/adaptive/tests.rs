use proptest::prelude::*;

use super::super::work::example;
use super::*;

fn plan(works: &[Work], expected: Option<Expected>, replan: bool) -> Vec<usize> {
    Adaptive { replan }.plan(&Load { works, expected, level: None }).steps
}

fn due(slack: f64) -> Work {
    Work { slack, ..example() }
}

/// What works need with these steps, by deadline.
fn needs(works: &[Work], steps: &[usize]) -> Vec<Need> {
    let mut needs: Vec<Need> = works.iter().zip(steps).map(|(work, steps)| Need::of(work, *steps)).collect();
    needs.sort_by(|a, b| a.slack.total_cmp(&b.slack));
    needs
}

#[test]
fn without_load_everybody_gets_the_best() {
    let works = [due(0.1), due(0.2), due(f64::INFINITY), Work { best: 7, floor: 3, ..due(0.1) }];
    assert_eq!(plan(&works, None, true), [50, 50, 50, 7]);
    assert_eq!(plan(&[], None, true), [0usize; 0]);
    let some = Expected { rate: 5.0, typical: due(0.2) };
    assert_eq!(plan(&works, Some(some), true), [50, 50, 50, 7]);
}

#[test]
fn one_picture_after_the_other_is_no_load() {
    // The machine is never idle: 20 pictures of 50 ms a second, with an objective of 150 ms.
    let one = Work { cost: 0.001, ..due(0.15) };
    let expected = Some(Expected { rate: 20.0, typical: one.clone() });
    assert_eq!(plan(std::slice::from_ref(&one), expected.clone(), true), [50]);
    assert!(plan(&vec![one; 4], expected, true).iter().all(|steps| *steps < 50));
}

#[test]
fn under_load_all_get_a_part_and_those_with_time_the_most() {
    let mut works = vec![due(0.5); 40];
    works.push(due(f64::INFINITY));
    let steps = plan(&works, None, true);
    let given = &steps[..40];
    assert!(given.iter().all(|steps| (16..30).contains(steps)), "{steps:?}");
    assert_eq!(steps[40], 50, "who has no deadline waits");
}

#[test]
fn who_is_late_gets_the_floor_and_holds_nobody_back() {
    let steps = plan(&[due(-0.1), due(0.005), due(0.4)], None, true);
    assert_eq!(steps, [10, 10, 50]);
}

#[test]
fn what_is_expected_takes_its_part() {
    let works = vec![due(0.5); 10];
    assert!(plan(&works, None, true).iter().all(|steps| *steps == 50));
    let crowd = Expected { rate: 100.0, typical: due(0.5) };
    let steps = plan(&works, Some(crowd), true);
    assert!(steps.iter().all(|steps| *steps < 50), "{steps:?}");
}

#[test]
fn in_a_crowd_the_fewest_steps_serve_the_most() {
    let works = vec![due(0.5); 4];
    // 10 steps of 0.5 ms: 180 pictures a second take nine tenths of the machine.
    let crowd = |rate| plan(&works, Some(Expected { rate, typical: due(0.5) }), true);
    assert_eq!(crowd(400.0), [10; 4]);
    assert!(crowd(170.0).iter().all(|steps| *steps > 10), "{:?}", crowd(170.0));
}

#[test]
fn what_is_begun_is_raised_only_by_much_and_lowered_at_once() {
    let begun = |planned| Work { planned: Some(planned), done: 0.2, taken: planned / 5, ..due(0.5) };
    assert_eq!(plan(&[begun(45), begun(34), begun(33)], None, true), [45, 34, 50]);
    let mut works = vec![due(0.5); 60];
    works.push(begun(11));
    assert_eq!(plan(&works, None, true)[60], 11, "while others want, it stays");
    works[60] = begun(50);
    assert!(plan(&works, None, true)[60] < 50);
    assert_eq!(plan(&works, None, false)[60], 50);
    works[60].replannable = false;
    assert_eq!(plan(&works, None, true)[60], 50);
}

#[test]
fn who_may_come_beyond_what_is_expected_finds_room() {
    let works = vec![due(0.5); 10];
    let expected = Some(Expected { rate: 100.0, typical: due(0.5) });
    let mut line = Line::new(&Load { works: &works, expected, level: None }, true);
    assert!(!line.all_at_best() && line.raise(0.0) > 0);
    let (mut used, mut least) = (0.0, f64::INFINITY);
    for place in &line.places {
        let Need { slack, seconds, tail } = place.rungs[place.rung].need;
        used += seconds;
        if place.work.is_none() {
            // 10 steps of 0.5 ms for each that comes until then beyond what is expected.
            let more = 3.0 * (100.0 * (slack - 0.5)).sqrt() * 0.005;
            least = least.min(HEADROOM * slack - used - tail - more);
        }
    }
    assert!((-1e-6..0.1).contains(&least), "{least}");
}

#[test]
fn a_plan_of_as_many_steps_still_to_be_taken_is_no_change() {
    let begun = Work { planned: Some(6), done: 5.0 / 6.0, taken: 5, best: 6, floor: 4, ..due(0.5) };
    let mut works = vec![due(0.5); 200];
    works.push(begun);
    assert_eq!(plan(&works, None, true)[200], 6);
    works[200] = Work { done: 0.5, taken: 3, ..works[200].clone() };
    assert_eq!(plan(&works, None, true)[200], 4);
}

/// Each work's rungs are tried once at most, however many works there are: 300 take some thousand changes of the tree.
#[test]
fn the_work_of_planning_is_bounded() {
    let works: Vec<Work> = (0..300).map(|i| due(0.5 + 0.01 * f64::from(i))).collect();
    let expected = Some(Expected { rate: 100.0, typical: due(0.5) });
    let mut line = Line::new(&Load { works: &works, expected, level: None }, true);
    assert!(!line.all_at_best());
    let rungs: usize = line.places.iter().map(|place| place.rungs.len() - 1).sum();
    let tried = line.raise(0.0);
    assert!(line.places.len() <= 332 && 300 < tried && tried <= rungs, "{tried} {rungs}");
}

prop_compose! {
    fn work()(
        slack in prop_oneof![4 => -0.1..2.0f64, 1 => Just(f64::INFINITY)],
        (floor, best) in (1usize..30).prop_flat_map(|floor| (Just(floor), floor..80)),
        done in prop_oneof![Just(0.0), 0.0..1.0f64],
        taken in 0usize..40,
        planned in prop::option::of(0.0..=1.0f64),
        replannable in any::<bool>(),
        cost in 0.0001..0.003f64,
        places in 1.0..8.0f64,
    ) -> Work {
        let planned = planned.map(|at| floor + ((best - floor) as f64 * at) as usize);
        Work { slack, floor, best, done, taken, planned, replannable, cost, latency: cost * places, overhead: 0.001, ..example() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn plans_keep_their_bounds(
        works in prop::collection::vec(work(), 0..50),
        rate in 0.0..200.0f64,
        replan in any::<bool>(),
    ) {
        let expected = Some(Expected { rate, typical: due(0.5) });
        let steps = plan(&works, expected.clone(), replan);
        prop_assert_eq!(steps.len(), works.len());
        for (work, steps) in works.iter().zip(&steps) {
            prop_assert!((work.floor..=work.best).contains(steps), "{} {:?}", steps, work);
            match work.planned {
                Some(planned) if !(replan && work.replannable) => prop_assert_eq!(*steps, planned),
                Some(planned) if *steps > planned => {
                    prop_assert!(*steps as f64 >= WORTH_A_RAISE * planned as f64, "{} {:?}", steps, work);
                }
                _ => {}
            }
        }
        prop_assert_eq!(&steps, &plan(&works, expected, replan), "the same load, the same plans");
    }

    /// Nobody misses a deadline who would make it with everybody at the floor.
    #[test]
    fn no_steps_are_given_that_cannot_be_afforded(works in prop::collection::vec(work(), 0..50)) {
        let steps = plan(&works, None, true);
        let floors: Vec<usize> = works.iter().map(|w| w.kept(true).unwrap_or(w.floor)).collect();
        let limits = limits(&needs(&works, &floors));
        prop_assert!(all_within(&needs(&works, &steps), &limits), "{:?} {:?}", works, steps);
    }
}
