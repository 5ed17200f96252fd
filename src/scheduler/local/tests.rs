//! The local scheduler as gateways and workers see it. It must pass what every scheduler must: order, turns, joining,
//! events, one end each.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::scheduler::Time;
use crate::scheduler::core::Limits;
use crate::scheduler::menu::{Measured, MenuOption};
use crate::scheduler::messages::{
    Assignment, Failure, Held, MenuChoice, NewTask, Outcome, PictureId, PictureResult, Place, Report, Shape,
    Terms,
};

type Scheduler = LocalScheduler<&'static str, String>;

/// A scheduler whose clock stands still unless it is moved.
fn scheduler() -> (Scheduler, Arc<AtomicU64>) {
    let nanoseconds = Arc::new(AtomicU64::new(1_000_000_000));
    let told = Arc::clone(&nanoseconds);
    let limits = Limits { pictures: 40, pictures_per_client: 20, ..Limits::default() };
    let config = Config { limits, ..Config::default() };
    let scheduler =
        LocalScheduler::with_clock(config, Clock::new(move || Time::from_nanos(told.load(Ordering::SeqCst))));
    let full = Measured { noise_level: 1.0, mean: 1.0, low: 1.0, high: 1.0 };
    scheduler.set_menu("m".into(), Menu::new(vec![MenuOption::even("4", 4, 0.0, vec![full])]).unwrap());
    (scheduler, nanoseconds)
}

fn picture(name: &'static str, deadline_seconds: f64) -> NewTask<&'static str> {
    let mut hash = [0; 32];
    hash[..name.len()].copy_from_slice(name.as_bytes());
    NewTask {
        spec: name,
        model: "m".into(),
        shape: Shape { width: 64, height: 64 },
        picture: PictureId { scope: "s".into(), hash },
        terms: Terms { tier: String::new(), floor: 0.5, best: 1.0, deadline_seconds, firm: false },
        menu: MenuChoice::Whole,
        start: None,
        previews: 0,
    }
}

fn submit(
    scheduler: &Scheduler,
    request: &str,
    client: &str,
    tasks: Vec<NewTask<&'static str>>,
) -> Listener<String> {
    scheduler.submit(Submit { request: request.into(), client: client.into(), tasks }).unwrap()
}

/// A worker that has as many pictures as its rows allow, two for each.
struct Worker {
    scheduler: Scheduler,
    name: &'static str,
    sequence: u64,
    rows: u32,
    held: Vec<Assignment<&'static str>>,
}

impl Worker {
    fn new(scheduler: &Scheduler, name: &'static str) -> Self {
        Self { scheduler: scheduler.clone(), name, sequence: 0, rows: 4, held: vec![] }
    }

    fn message(&mut self) -> Poll<String> {
        self.sequence += 1;
        let held = |of: &Assignment<&'static str>| Held {
            task: of.task.clone(),
            attempt: of.attempt,
            option: of.option.clone(),
            place: Place::Preparing,
            rank: of.rank,
            paused: of.paused,
            previews: of.previews,
            checkpoint: None,
        };
        let report = Report {
            rows: self.rows,
            resident: vec!["m".into()],
            held: self.held.iter().map(held).collect(),
            ..Report::default()
        };
        Poll { worker: self.name.into(), incarnation: 1, sequence: self.sequence, report }
    }

    async fn poll(&mut self) -> PollAnswer<&'static str> {
        let message = self.message();
        let answer = self.scheduler.poll(message).await;
        self.held.extend(answer.assignments.clone());
        answer
    }

    /// Ends the first picture that it holds, and returns its name.
    fn paint(&mut self) -> &'static str {
        let Assignment { task, attempt, spec, option, .. } = self.held.remove(0);
        let outcome = Outcome::Done { option, machine_seconds: Some(1.0), picture: spec.to_owned() };
        let answer = self.scheduler.end(TaskEnd { task, attempt, outcome });
        assert_eq!(answer, EndAnswer { counted: true, expected_quality: Some(1.0) });
        spec
    }

    /// Paints so many pictures, one after the other; their names, in order.
    async fn paint_all(&mut self, count: usize) -> Vec<&'static str> {
        let mut painted = Vec::new();
        while painted.len() < count {
            if self.held.is_empty() {
                self.poll().await;
            } else {
                painted.push(self.paint());
            }
        }
        painted
    }
}

async fn end(listener: &mut Listener<String>) -> Option<PictureResult<String>> {
    loop {
        match listener.next().await? {
            RequestEvent::End(notice) => return Some(notice.result),
            RequestEvent::Begun { .. } | RequestEvent::Preview { .. } => {}
        }
    }
}

#[tokio::test]
async fn deadlines_order_within_a_client_and_clients_take_turns() {
    let (scheduler, _) = scheduler();
    let a =
        submit(&scheduler, "a", "flood", vec![picture("a1", 50.0), picture("a2", 40.0), picture("a3", 30.0)]);
    let b = submit(&scheduler, "b", "single", vec![picture("b", 60.0)]);
    let mut worker = Worker { rows: 2, ..Worker::new(&scheduler, "w") };
    let painted = worker.paint_all(4).await;
    let of_a: Vec<&str> = painted.iter().copied().filter(|name| name.starts_with('a')).collect();
    assert_eq!(of_a, ["a3", "a2", "a1"]);
    assert!(painted.iter().position(|name| *name == "b") < Some(3), "{painted:?}");
    drop((a, b));
}

#[tokio::test]
async fn each_event_is_told_once_and_then_nothing() {
    let (scheduler, _) = scheduler();
    let mut two =
        submit(&scheduler, "r", "c", vec![picture("a", 9.0), NewTask { previews: 2, ..picture("b", 9.5) }]);
    assert_eq!((two.ahead(0), two.ahead(1)), (Some(0), Some(1)));
    let mut worker = Worker::new(&scheduler, "w");
    let answer = worker.poll().await;
    assert_eq!(answer.assignments.iter().map(|of| of.previews).collect::<Vec<_>>(), [0, 2]);
    assert_eq!((two.ahead(0), two.ahead(1)), (None, None));
    let task = worker.held[1].task.clone();
    for number in [1, 1, 2] {
        scheduler.preview(&task, number, 2, &Bytes::from_static(b"jpeg")); // a preview that comes twice is told once
    }
    worker.paint();
    worker.paint();
    let mut told = Vec::new();
    while let Some(event) = two.next().await {
        told.push(match event {
            RequestEvent::Begun { index } => format!("begun {index}"),
            RequestEvent::Preview { index, number, .. } => format!("preview {number} of {index}"),
            RequestEvent::End(notice) => format!("end {}", notice.index),
        });
    }
    assert_eq!(told, ["begun 0", "begun 1", "preview 0 of 1", "preview 1 of 1", "end 0", "end 1"]);
    assert_eq!(two.next().await, None);
    let state = scheduler.inner.state.lock();
    assert_eq!((state.subscriptions.sizes(), state.cancelled), ([0, 0, 0], 0));
}

#[tokio::test]
async fn equal_pictures_are_painted_once_and_cancelled_by_the_last_listener() {
    let (scheduler, _) = scheduler();
    let first = submit(&scheduler, "first", "a", vec![picture("same", 9.0)]);
    let mut worker = Worker::new(&scheduler, "w");
    worker.poll().await;
    let mut second = submit(&scheduler, "second", "b", vec![NewTask { previews: 1, ..picture("same", 9.0) }]);
    assert!(matches!(second.next().await, Some(RequestEvent::Begun { index: 0 })), "it is begun already");
    let answer = worker.poll().await;
    assert!(
        matches!(answer.changes[..], [crate::scheduler::messages::Change::Previews { previews: 1, .. }]),
        "{answer:?}"
    );
    drop(first);
    assert_eq!((scheduler.load().tasks, scheduler.cancelled()), (1, 1), "another listener is left");
    worker.held[0].previews = 1;
    worker.paint();
    assert!(matches!(end(&mut second).await, Some(PictureResult::Done { .. })));
    drop(submit(&scheduler, "third", "a", vec![picture("same", 9.0), picture("other", 9.0)]));
    assert_eq!((scheduler.load().tasks, scheduler.cancelled()), (0, 3));
    drop(second);
    assert_eq!(scheduler.cancelled(), 3, "it had ended");
}

#[tokio::test]
async fn a_waiting_poll_is_answered_when_there_is_work_and_the_next_brings_it() {
    let (scheduler, _) = scheduler();
    let mut worker = Worker::new(&scheduler, "w");
    let message = worker.message();
    let waiting = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.poll(message).await }
    });
    while scheduler.inner.state.lock().polls.is_empty() {
        tokio::task::yield_now().await;
    }
    let listener = submit(&scheduler, "r", "c", vec![picture("a", 9.0)]);
    let answer = waiting.await.unwrap();
    assert!(answer.is_empty() && answer.sequence == 1);
    assert_eq!(worker.poll().await.assignments.len(), 1);
    assert!(scheduler.inner.state.lock().polls.is_empty(), "answered polls are forgotten");
    drop(listener);
    let answer = worker.poll().await;
    assert!(matches!(answer.changes[..], [crate::scheduler::messages::Change::Cancel { .. }]), "{answer:?}");
}

#[tokio::test]
async fn refusals_say_why_and_a_name_is_used_once() {
    let (scheduler, _) = scheduler();
    let try_submit = |request: &str, tasks: Vec<NewTask<&'static str>>| {
        scheduler.submit(Submit { request: request.into(), client: "c".into(), tasks }).err()
    };
    let unknown = NewTask { model: "other".into(), ..picture("a", 9.0) };
    assert!(matches!(try_submit("r", vec![unknown]), Some(NotAccepted::Never(Refusal::Model { .. }))));
    let four = NewTask { previews: 4, ..picture("a", 9.0) };
    assert!(matches!(try_submit("r", vec![four]), Some(NotAccepted::Never(Refusal::Terms { .. }))));
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
    let full: Vec<_> = names.iter().map(|name| picture(name, 900.0)).collect();
    let kept = submit(&scheduler, "r", "c", full.clone());
    assert_eq!(try_submit("r", full), Some(NotAccepted::Known));
    let more: Vec<_> = names.iter().map(|name| picture(name, 901.0)).collect();
    let refused = try_submit("more", more);
    assert!(matches!(refused, Some(NotAccepted::Later { why: Busy::ClientFull, .. })), "{refused:?}");
    scheduler.close();
    let refused = try_submit("late", vec![picture("z", 9.0)]);
    assert!(matches!(refused, Some(NotAccepted::Later { why: Busy::Closing, .. })), "{refused:?}");
    assert!(scheduler.is_closed() && scheduler.load().tasks == 11);
    drop(kept);
}

#[tokio::test]
async fn a_silent_worker_is_lost_and_a_stop_ends_what_is_left() {
    let (scheduler, nanoseconds) = scheduler();
    let mut listener = submit(&scheduler, "r", "c", vec![picture("a", 900.0), picture("b", 900.0)]);
    let mut silent = Worker::new(&scheduler, "silent");
    silent.poll().await;
    nanoseconds.fetch_add(11_000_000_000, Ordering::SeqCst);
    scheduler.tick();
    let mut other = Worker::new(&scheduler, "other");
    assert_eq!(other.poll().await.assignments.len(), 2);
    other.paint();
    assert!(matches!(end(&mut listener).await, Some(PictureResult::Done { .. })));
    scheduler.stop();
    scheduler.idle().await;
    let stopped = PictureResult::Failed { why: Failure::Stopped };
    assert_eq!((end(&mut listener).await, listener.next().await), (Some(stopped), None));
}
