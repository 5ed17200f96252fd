//! What goes wrong at a stage costs the picture that it belongs to, and no other.

use super::fake::{At, Fault, Sketch, from_state, sketch, task};
use super::{Room, results};
use crate::scheduler::messages::NewTask;

fn faulty(at: At, fault: Fault) -> Sketch {
    Sketch { fault: Some((at, fault)), ..sketch("faulty") }
}

/// Paints a faulty picture among two others; what came of each.
async fn among_others(faulty: NewTask<Sketch>) -> (Vec<Result<String, String>>, Vec<String>) {
    let room = Room::new();
    let worker = room.worker("w");
    let results = results(room.submit("r", vec![task(sketch("a")), faulty, task(sketch("b"))])).await;
    worker.join();
    (results, room.studio.lines())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_an_error_or_nan_at_a_stage_fails_one_picture() {
    for at in [At::Encode, At::Step, At::Decode, At::File] {
        for fault in [Fault::Panic, Fault::Error, Fault::NotFinite] {
            let (results, lines) = among_others(task(faulty(at, fault))).await;
            assert_eq!(
                (&results[0], &results[2]),
                (&Ok("4 of a".into()), &Ok("4 of b".into())),
                "{at:?} {fault:?}"
            );
            let why = results[1].as_ref().unwrap_err();
            let wanted = if fault == Fault::Panic { "panicked".to_owned() } else { format!("{at:?}") };
            assert!(why.contains(&wanted), "{at:?} {fault:?}: {why}");
            assert!(
                !lines.iter().any(|line| line.starts_with("Kept") && line.contains("faulty")),
                "{lines:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_not_to_be_had_costs_its_steps_or_the_picture_that_insists() {
    let whole = among_others(from_state(sketch("state"))).await.0;
    assert_eq!(whole[1], Ok("4 of state".into()), "two steps were spared, and count");
    for fault in [Fault::Panic, Fault::Error] {
        let (results, lines) = among_others(from_state(faulty(At::Load, fault))).await;
        assert_eq!(results[1], Ok("4 of faulty".into()), "from noise");
        assert!(lines.iter().any(|line| line.starts_with("Load faulty")));
        let insists = Sketch { required: true, ..faulty(At::Load, fault) };
        let (results, _) = among_others(from_state(insists)).await;
        assert!(results[1].as_ref().unwrap_err().contains("gone"), "{results:?}");
        assert!(results[0].is_ok() && results[2].is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_panics_costs_no_picture() {
    let (results, _) = among_others(task(faulty(At::Keep, Fault::Panic))).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_at_a_stage_goes_on_when_it_is_let_go() {
    for at in [At::Load, At::Encode, At::Step, At::Decode, At::File] {
        let room = Room::new();
        let worker = room.worker("w");
        let hanging = room.submit("hangs", vec![from_state(faulty(at, Fault::Hang))]);
        room.studio.wait_for(&format!("{at:?} faulty"), 1).await;
        let others = room.submit("r", vec![task(sketch("a"))]);
        if at == At::Load {
            assert_eq!(results(others).await, [Ok("4 of a".to_owned())], "others do not wait for a state");
            room.studio.open_gate();
        } else {
            room.studio.open_gate();
            assert!(results(others).await[0].is_ok());
        }
        assert!(results(hanging).await[0].is_ok(), "{at:?}");
        room.scheduler.idle().await;
        worker.join();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_step_is_seen() {
    let room = Room::new();
    let worker = room.worker("w");
    let hanging = room.submit("hangs", vec![task(faulty(At::Step, Fault::Hang))]);
    room.studio.wait_for("Step faulty", 1).await;
    assert!(!worker.hangs());
    room.pass(60);
    assert!(!worker.hangs(), "a minute at least");
    room.pass(1);
    assert!(worker.hangs());
    room.studio.open_gate();
    assert!(results(hanging).await[0].is_ok());
    assert!(!worker.hangs());
}

#[tokio::test(flavor = "multi_thread")]
async fn first_steps_that_fail_are_told_and_pictures_are_answered_all_the_same() {
    let room = Room::new();
    let mut worker = room.worker_of("w", &["m"], true);
    assert!(worker.warm().await.unwrap_err().contains("not finite"));
    assert_eq!(results(room.submit("r", vec![task(sketch("a"))])).await, [Ok("4 of a".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_dropped_wherever_it_is_cancelled() {
    for at in [At::Load, At::Encode, At::Step, At::Decode, At::File] {
        let room = Room::new();
        let worker = room.worker("w");
        let listener = room.submit("r", vec![from_state(faulty(at, Fault::Hang))]);
        room.studio.wait_for(&format!("{at:?} faulty"), 1).await;
        drop(listener);
        room.scheduler.idle().await;
        // The worker hears of it while it works.
        room.studio.open_gate();
        assert!(results(room.submit("next", vec![task(sketch("a"))])).await[0].is_ok());
        worker.join();
        let kept: Vec<String> =
            room.studio.lines().into_iter().filter(|line| line.starts_with("Kept")).collect();
        assert_eq!(kept, ["Kept 4 of a 1"], "{at:?}");
        assert_eq!(room.scheduler.cancelled(), 1);
    }
    let room = Room::new();
    drop(room.submit("waits", vec![task(sketch("a")), task(sketch("b"))]));
    room.scheduler.idle().await;
    assert_eq!((room.scheduler.waiting(), room.scheduler.cancelled()), (0, 2));
}
