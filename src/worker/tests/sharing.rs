//! Pictures of several models, sizes and workers, and what listeners hear of them.

use super::fake::{At, Fault, SHAPE, Sketch, sketch, task};
use super::{Room, results};
use crate::scheduler::local::RequestEvent;
use crate::scheduler::messages::{NewTask, Shape};

#[tokio::test(flavor = "multi_thread")]
async fn two_models_and_two_sizes_are_painted_and_share_no_step() {
    let room = Room::new();
    let worker = room.worker_of("w", &["m", "n"], false);
    let wide = Sketch { shape: Shape { width: 128, ..SHAPE }, ..sketch("wide") };
    let other = NewTask { model: "n".into(), ..task(sketch("other")) };
    let tasks = vec![task(sketch("a")), task(wide), other, task(sketch("b"))];
    let results = results(room.submit("r", tasks)).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    worker.join();
    let lines = room.studio.lines();
    assert!(lines.contains(&"LoadModel n".to_owned()), "it was not in memory");
    for batch in lines.iter().filter(|line| line.starts_with("Batch")) {
        let alone = |name: &str| !batch.contains(name) || !batch.contains('+');
        assert!(alone("wide") && alone("other"), "{batch}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_the_load() {
    let room = Room::new();
    let workers = [room.worker("one"), room.worker("two")];
    // Each has room for four, and two beyond that wait with their prompts encoded.
    let hangs = |i: usize| task(Sketch { fault: Some((At::Step, Fault::Hang)), ..sketch(&format!("p{i}")) });
    let listener = room.submit("r", (0..8).map(hangs).collect());
    room.studio.wait_for("Batch", 2).await;
    let lines = room.studio.lines();
    for name in [" one", " two"] {
        assert!(lines.iter().any(|line| line.starts_with("Batch") && line.ends_with(name)), "{lines:?}");
    }
    room.studio.open_gate();
    assert!(results(listener).await.iter().all(Result::is_ok));
    workers.into_iter().for_each(crate::worker::Worker::join);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_workers_pictures_are_painted_by_the_other() {
    let room = Room::new();
    let lost = room.worker("lost");
    let hangs = |name: &str| task(Sketch { fault: Some((At::Step, Fault::Hang)), ..sketch(name) });
    let listener = room.submit("r", vec![hangs("a"), hangs("b")]);
    room.studio.wait_for("Batch", 1).await;
    lost.stop(); // it hangs with both in hand, and says nothing any more
    room.pass(11);
    room.scheduler.tick();
    room.studio.open_gate();
    let other = room.worker("other");
    let results = results(listener).await;
    assert_eq!(results, [Ok("4 of a".to_owned()), Ok("4 of b".to_owned())]);
    let lines = room.studio.lines();
    assert!(lines.contains(&"Encode a other".to_owned()) && lines.contains(&"Encode b other".to_owned()));
    assert!(!lines.iter().any(|line| line.starts_with("Kept") && line.ends_with("lost")));
    other.join();
    lost.join();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_hears_of_the_beginning_the_previews_and_the_end() {
    let room = Room::new();
    let picture = |previews| NewTask { previews, ..task(sketch("a")) };
    let mut three = room.submit("three", vec![picture(3)]);
    let mut one = room.submit("one", vec![picture(1)]);
    let worker = room.worker("w");
    for (listener, wanted) in [(&mut three, vec!["a 1", "a 2", "a 3"]), (&mut one, vec!["a 2"])] {
        assert!(matches!(listener.next().await, Some(RequestEvent::Begun { index: 0 })));
        for (place, wanted) in (0..).zip(wanted) {
            let Some(RequestEvent::Preview { index: 0, number, file }) = listener.next().await else {
                panic!("no preview {wanted}")
            };
            assert_eq!((number, file.as_ref()), (place, wanted.as_bytes()));
        }
        assert!(matches!(listener.next().await, Some(RequestEvent::End(_))));
        assert_eq!(listener.next().await, None);
    }
    worker.join();
    let encoded = room.studio.lines().iter().filter(|line| line.starts_with("Encode")).count();
    assert_eq!(encoded, 1, "they shared one painting");
}
