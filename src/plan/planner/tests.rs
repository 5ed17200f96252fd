use pentimento_pipelines::NoiseSource;

use super::super::{Tier, Verdict};
use super::*;
use crate::queue::{Encoding, Format, Line, Reused, Start};

const SIZE: Size = Size { width: 64, height: 64 };

/// Of one model of 50 steps: 1 ms alone, 0.325 ms a row in batches of 8 rows, 1 ms to encode and 1 ms to decode.
fn planner() -> Planner {
    let offer = ModelOffer { steps: 50, size: SIZE, frontier: Arc::new(Frontier::flat(50)), measured: false };
    let planner =
        Planner::new(HashMap::from([("m".to_owned(), offer)]), 16, None, PlanPolicyConfig::default())
            .unwrap();
    let samples = [(2, 0.001), (4, 0.0015), (8, 0.0026), (16, 0.0056)];
    let millisecond = Duration::from_millis(1);
    planner.profiled("m", SIZE, &samples, millisecond, millisecond);
    planner
}

fn job(client: &str, objective_ms: u64) -> Job {
    Job {
        request_id: "r".to_owned(),
        index: 0,
        client: client.to_owned(),
        model: "m".to_owned(),
        prompt: "p".to_owned(),
        negative_prompt: String::new(),
        size: SIZE,
        seed: 0,
        noise: NoiseSource::Pentimento,
        plan: serde_json::from_str(r#"{"steps":[{"timestep":501.0,"guidance":{"scale":4.0}}]}"#).unwrap(),
        terms: Terms {
            tier: Tier::Auto,
            floor: 10,
            best: 50,
            objective: Duration::from_millis(objective_ms),
        },
        spent: Duration::ZERO,
        start: Start::Noise,
        keep: None,
        previews: vec![],
        encoding: Encoding { format: Format::Png, quality: 100 },
    }
}

/// So many pictures that wait, for 10 to 50 steps, with as long as the job has.
fn waiting(planner: &Planner, job: &Job, pictures: usize) -> Vec<Work> {
    vec![planner.waiting(job, Instant::now() + job.budget()); pictures]
}

#[test]
fn who_insists_on_what_no_machine_could_do_is_refused_and_is_no_load() {
    let planner = planner();
    let hasty = job("a", 1);
    for _ in 0..20 {
        assert_eq!(planner.admit(1, Line::Paint, std::slice::from_ref(&hasty), vec![], true), Verdict::Never);
    }
    assert_eq!(planner.seen().arrival_rate, 0.0);
    // Ten steps take 10 ms, and 12 with all else: who does not insist has three times that.
    assert_eq!(planner.admit(1, Line::Paint, std::slice::from_ref(&hasty), vec![], false), Verdict::Admit);
    let others = waiting(&planner, &job("b", 1000), 1);
    assert_eq!(planner.admit(1, Line::Paint, std::slice::from_ref(&hasty), others, false), Verdict::Admit);
    let late = waiting(&planner, &job("b", 20), 4);
    assert!(matches!(planner.admit(1, Line::Paint, &[hasty], late, false), Verdict::Later(_)));
    assert!(planner.seen().arrival_rate > 0.0);
}

#[test]
fn what_was_spent_before_is_missing_from_the_time() {
    let planner = planner();
    let spent = Job { spent: Duration::from_millis(995), ..job("a", 1000) };
    assert_eq!(planner.admit(1, Line::Paint, &[spent], vec![], true), Verdict::Never);
    assert_eq!(planner.admit(1, Line::Paint, &[job("a", 1000)], vec![], true), Verdict::Admit);
}

#[test]
fn who_crowds_others_leaves_room_for_a_newcomer() {
    let planner = planner();
    for i in 0..50 {
        let client = if i % 5 == 0 { "b" } else { "a" };
        assert_eq!(planner.admit(i, Line::Paint, &[job(client, 200)], vec![], false), Verdict::Admit);
    }
    // 15 of 8.5 ms: of 0.9 of 200 ms 52 are left. He needs 12 himself, and a quarter of all is 50.
    let others = || waiting(&planner, &job("b", 200), 15);
    assert!(matches!(planner.admit(100, Line::Paint, &[job("a", 200)], others(), false), Verdict::Later(_)));
    assert_eq!(planner.admit(101, Line::Paint, &[job("c", 200)], others(), false), Verdict::Admit);
}

#[test]
fn a_stored_picture_is_let_in_however_much_is_painted_but_not_behind_more_than_can_be_shown() {
    let planner = planner();
    let stored = Job { start: Start::StateOrNoise(Reused::exact()), previews: vec![1], ..job("a", 200) };
    let painted = job("a", 200);
    let now = Instant::now();
    let due = now + Duration::from_millis(200);
    let full = waiting(&planner, &job("b", 200), 60);
    planner.set_flying(full.into_iter().map(|work| (work, due)).collect());
    let admit = |key, jobs: &[&Job], waiting| {
        let jobs: Vec<Job> = jobs.iter().map(|job| (*job).clone()).collect();
        planner.admit(key, planner.line(&jobs), &jobs, waiting, false)
    };
    // Each is decoded in a millisecond.
    let shown = |pictures| vec![planner.in_line(Line::Show, &stored, due); pictures];
    // Clients that come back when they are told to have places kept, none of them in the other line.
    for key in 0..40 {
        assert!(matches!(admit(key, &[&painted], vec![]), Verdict::Later(_)));
        assert!(matches!(admit(100 + key, &[&stored], shown(200)), Verdict::Later(_)));
    }
    assert_eq!(planner.seen().promises, 80);
    let seen = planner.seen().arrival_rate;
    assert_eq!(admit(200, &[&stored], shown(0)), Verdict::Admit);
    assert_eq!(admit(201, &[&stored], shown(150)), Verdict::Admit);
    assert!(planner.seen().arrival_rate <= seen, "it takes no step");
    // Several pictures are as late as those to be painted.
    assert!(matches!(admit(202, &[&stored, &painted], vec![]), Verdict::Later(_)));
    // A decode of their own, which says nothing of those of painted pictures.
    (0..100).for_each(|_| planner.shown("m", SIZE, Duration::from_millis(10)));
    assert!(matches!(admit(203, &[&stored], shown(150)), Verdict::Later(_)));
    let painted = planner.waiting(&painted, due);
    assert!((painted.overhead - 0.002).abs() < 1e-9, "{painted:?}");

    planner.store_failed();
    assert_eq!(planner.line(std::slice::from_ref(&stored)), Line::Paint);
    assert!(matches!(admit(204, &[&stored], vec![]), Verdict::Later(_)), "it would have to be painted");
    let only = Job { start: Start::State(stored.start.reused().unwrap().clone()), ..stored.clone() };
    assert_eq!(admit(205, &[&only], vec![]), Verdict::Admit, "for this one nothing is painted");
}

#[test]
fn a_picture_that_resumes_gets_a_quarter_of_the_full_plan_at_least() {
    let planner = planner();
    let floor = |floor, best| {
        let job = job("a", 100);
        planner.resumed_floor(&Job { terms: Terms { floor, best, ..job.terms }, ..job })
    };
    assert_eq!([floor(10, 50), floor(20, 50), floor(4, 8)], [13, 20, 8]);
}

#[test]
fn what_stored_states_spare_is_no_reason_to_expect_fewer_steps_than_the_floor() {
    let planner = planner();
    let job = job("a", 1000);
    let noise = planner.from_noise(&job, Instant::now());
    for skipped in [0.0, 0.25, 0.6] {
        let typical = noise.clone().sparing(skipped);
        assert_eq!(typical.left(typical.floor), noise.left(noise.floor), "{skipped}");
        assert!(typical.left(50) <= noise.left(50));
    }
    let painted = noise.sparing(1.0);
    assert_eq!((painted.left(painted.floor), painted.left(50)), (0, 0));
}

#[test]
fn previews_are_decoded_between_steps() {
    let planner = planner();
    let seconds = |job: &Job, done| {
        planner.work(job, Instant::now(), &Progress { done, ..Progress::waiting(0.0) }).overhead
    };
    let plain = job("a", 100);
    let watched = Job { previews: vec![10, 25, 40], ..plain.clone() };
    assert!((seconds(&watched, 0.0) - seconds(&plain, 0.0) - 0.003).abs() < 1e-9);
    assert!((seconds(&watched, 0.5) - seconds(&plain, 0.5) - 0.0015).abs() < 1e-9, "half are made");
}

#[test]
fn a_size_that_was_seen_alone_has_batches_as_the_models_own_has() {
    let planner = planner();
    let large = Size { width: 128, height: 64 };
    assert_eq!((planner.rows("m", SIZE), planner.rows("m", large)), (8, 8), "8 of half as many rows fit");
    planner.stepped("m", large, 2, Duration::from_millis(3));
    assert_eq!(planner.rows("m", large), 8);
    let step = planner.step_time("m", large);
    assert!((step(2) - 0.003).abs() < 1e-9 && (step(8) - 3.0 * 0.0026).abs() < 1e-9);
    let huge = Size { width: 512, height: 512 };
    assert_eq!(planner.rows("m", huge), 2, "memory is as large as it is");
}
