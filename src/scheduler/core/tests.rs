//! The core as gateways and workers see it, message by message.

mod placement;

use super::super::menu::MenuOption;
use super::super::messages::*;
use super::super::{RequestId, TaskId};
use super::options::tests::menu;
use super::*;

type Scheduler = Core<&'static str, &'static str>;

const SHAPE: Shape = Shape { width: 64, height: 64 };

fn core() -> Scheduler {
    let limits = Limits { pictures: 40, pictures_per_client: 30, remembered: 4, ..Limits::default() };
    let mut core = Core::new(Config { limits, ..Config::default() });
    core.set_menu("m".into(), menu());
    core
}

fn at(seconds: f64) -> Time {
    Time::ZERO.after(100.0 + seconds)
}

fn picture(hash: u8, deadline_seconds: f64) -> NewTask<&'static str> {
    NewTask {
        spec: "spec",
        model: "m".into(),
        shape: SHAPE,
        picture: PictureId { scope: "s".into(), hash: [hash; 32] },
        terms: Terms { tier: String::new(), floor: 0.9, best: 1.0, deadline_seconds, firm: false },
        menu: MenuChoice::Whole,
        start: None,
        previews: 0,
    }
}

fn submit(request: &str, client: &str, tasks: Vec<NewTask<&'static str>>) -> Submit<&'static str> {
    Submit { request: request.into(), client: client.into(), tasks }
}

fn accepted(answer: &SubmitAnswer) -> Vec<TaskId> {
    match answer {
        SubmitAnswer::Accepted { tasks } => tasks.clone(),
        other => panic!("{other:?}"),
    }
}

/// A worker that does what it is told, and takes no steps by itself.
struct Worker {
    name: &'static str,
    incarnation: u64,
    sequence: u64,
    rows: u32,
    /// Beyond rows, held and ended.
    report: Report<&'static str>,
    held: Vec<Held>,
    ended: Vec<TaskEnd<&'static str>>,
}

impl Worker {
    fn new(name: &'static str, rows: u32) -> Self {
        let models = || vec!["m".into()];
        let report = Report { loadable: models(), resident: models(), ..Report::default() };
        Self { name, incarnation: 1, sequence: 0, rows, report, held: vec![], ended: vec![] }
    }

    fn message(&mut self) -> Poll<&'static str> {
        self.sequence += 1;
        let report = Report {
            rows: self.rows,
            held: self.held.clone(),
            ended: self.ended.clone(),
            ..self.report.clone()
        };
        Poll { worker: self.name.into(), incarnation: self.incarnation, sequence: self.sequence, report }
    }

    fn poll(&mut self, core: &mut Scheduler, now: Time) -> PollAnswer<&'static str> {
        let message = self.message();
        let answer = core.poll(now, message);
        self.apply(&answer);
        answer
    }

    fn apply(&mut self, answer: &PollAnswer<&'static str>) {
        self.ended.retain(|end| !answer.acknowledged.iter().any(|id| id.task == end.task));
        for change in &answer.changes {
            let held = &mut self.held;
            let of = |task: &TaskId| held.iter().position(|held| held.task == *task);
            match change {
                Change::Plan { task, option, .. } => drop(of(task).map(|i| held[i].option = option.clone())),
                Change::Rank { task, rank, .. } => drop(of(task).map(|i| held[i].rank = *rank)),
                Change::Pause { task, paused, .. } => drop(of(task).map(|i| held[i].paused = *paused)),
                Change::Previews { task, previews, .. } => {
                    if let Some(i) = of(task) {
                        held[i].previews = *previews;
                    }
                }
                Change::Cancel { task, .. } => drop(of(task).map(|i| held.remove(i))),
                _ => {}
            }
        }
        for new in &answer.assignments {
            self.held.push(Held {
                task: new.task.clone(),
                attempt: new.attempt,
                option: new.option.clone(),
                place: Place::Preparing,
                rank: new.rank,
                paused: new.paused,
                previews: new.previews,
                checkpoint: None,
            });
        }
    }

    fn done(&mut self, place: usize) -> TaskEnd<&'static str> {
        let Held { task, attempt, option, .. } = self.held.remove(place);
        let end = TaskEnd {
            task,
            attempt,
            outcome: Outcome::Done { option, machine_seconds: Some(0.01), picture: "png" },
        };
        self.ended.push(end.clone());
        end
    }
}

fn told(core: &mut Scheduler) -> Vec<(RequestId, u32, bool)> {
    let done = |notice: &Notice<&str>| matches!(notice.result, PictureResult::Done { .. });
    core.take_notices().iter().map(|notice| (notice.request.clone(), notice.index, done(notice))).collect()
}

#[test]
fn submit_and_end_are_idempotent() {
    let (mut core, mut worker) = (core(), Worker::new("w", 8));
    let tasks = accepted(&core.submit(at(0.0), submit("r", "c", vec![picture(1, 9.0), picture(2, 9.0)])));
    assert_eq!(accepted(&core.submit(at(0.1), submit("r", "c", vec![picture(1, 9.0)]))), tasks);
    assert_eq!((tasks.len(), core.load().tasks), (2, 2));
    assert_eq!(worker.poll(&mut core, at(0.2)).assignments.len(), 2);
    let end = worker.done(0);
    assert!(core.end(at(0.3), end.clone()).counted);
    assert!(!core.end(at(0.4), end).counted);
    let answer = worker.poll(&mut core, at(0.5));
    assert_eq!(
        (answer.acknowledged.len(), worker.ended.len()),
        (1, 0),
        "a reported end is acknowledged, too"
    );
    worker.done(0);
    worker.poll(&mut core, at(0.6));
    assert_eq!(told(&mut core), [("r".into(), 0, true), ("r".into(), 1, true)]);
    assert_eq!(accepted(&core.submit(at(1.0), submit("r", "c", vec![picture(1, 9.0)]))), tasks);
    assert!(core.is_idle() && told(&mut core).is_empty(), "what is over is not painted again");
}

#[test]
fn a_request_is_accepted_whole_or_not_at_all() {
    let mut core = core();
    let many = |from: u8, n: u8| (from..from + n).map(|hash| picture(hash, 9.0)).collect::<Vec<_>>();
    accepted(&core.submit(at(0.0), submit("a", "c", many(0, 20))));
    let busy = |answer: &SubmitAnswer| match answer {
        SubmitAnswer::Later { why, after_seconds } => (*why, *after_seconds >= 1.0),
        other => panic!("{other:?}"),
    };
    assert_eq!(busy(&core.submit(at(0.0), submit("b", "c", many(50, 11)))), (Busy::ClientFull, true));
    assert_eq!(busy(&core.submit(at(0.0), submit("b", "d", many(50, 21)))), (Busy::Full, true));
    assert_eq!(core.load().tasks, 20);
    for wrong in [
        vec![],
        many(0, 65),
        vec![NewTask { model: "other".into(), ..picture(1, 9.0) }],
        vec![picture(1, f64::NAN)],
        vec![NewTask { menu: MenuChoice::Only { options: vec!["none".into()] }, ..picture(1, 9.0) }],
    ] {
        let answer = core.submit(at(0.0), submit("b", "d", wrong));
        assert!(matches!(answer, SubmitAnswer::Never { .. }), "{answer:?}");
    }
    core.close();
    assert_eq!(busy(&core.submit(at(0.0), submit("b", "d", many(50, 1)))).0, Busy::Closing);
    core.stop();
    assert!(told(&mut core).len() == 20 && core.is_idle());
}

#[test]
fn equal_pictures_are_painted_once_and_all_are_told() {
    let (mut core, mut worker) = (core(), Worker::new("w", 8));
    let first = accepted(&core.submit(at(0.0), submit("a", "c", vec![picture(1, 9.0), picture(1, 9.0)])));
    assert_eq!(first[0], first[1]);
    let joined = accepted(&core.submit(at(0.1), submit("b", "d", vec![picture(2, 9.0), picture(1, 9.0)])));
    assert!(joined[1] == first[0] && core.load().tasks == 2);
    let other = accepted(&core.submit(at(0.1), submit("e", "d", vec![picture(1, 8.0)])));
    assert_ne!(other[0], first[0], "other terms");
    core.cancel(at(0.2), &Cancel { request: "a".into() });
    assert_eq!((core.load().tasks, core.load().pictures), (3, 3), "b still wants it");
    worker.poll(&mut core, at(0.3));
    while !worker.held.is_empty() {
        let end = worker.done(0);
        core.end(at(0.4), end);
    }
    let mut told = told(&mut core);
    told.sort_by_key(|(request, index, _)| (request.to_string(), *index));
    assert_eq!(told, [("b".into(), 0, true), ("b".into(), 1, true), ("e".into(), 0, true)]);
    assert!(core.is_idle());
}

#[test]
fn nothing_is_sent_only_once() {
    let (mut core, mut worker) = (core(), Worker::new("w", 4));
    core.submit(at(0.0), submit("a", "c", vec![picture(1, 9.0), picture(2, 9.0)]));
    let lost = worker.message();
    let answer = core.poll(at(0.1), lost.clone());
    assert_eq!(answer.assignments.len(), 2);
    assert!(core.poll(at(0.1), lost).is_empty(), "an old poll is not answered");
    let tasks = |answer: &PollAnswer<_>| {
        answer.assignments.iter().map(|a| (a.task.clone(), a.attempt)).collect::<Vec<_>>()
    };
    assert_eq!(tasks(&worker.poll(&mut core, at(0.2))), tasks(&answer));
    assert!(worker.poll(&mut core, at(0.3)).is_empty());
    core.cancel(at(0.4), &Cancel { request: "a".into() });
    assert_eq!(core.take_woken(), ["w".into()]);
    for _ in 0..2 {
        let message = worker.message();
        assert_eq!(core.poll(at(0.5), message).changes.len(), 2, "until the worker has dropped them");
    }
    worker.poll(&mut core, at(0.6));
    assert!(worker.held.is_empty() && core.is_idle());
}

#[test]
fn a_lost_workers_tasks_are_assigned_again_from_their_checkpoints() {
    let (mut core, mut first, mut second) = (core(), Worker::new("a", 2), Worker::new("b", 2));
    core.submit(at(0.0), submit("r", "c", vec![picture(1, 99.0)]));
    first.poll(&mut core, at(0.0));
    first.held[0].place = Place::Stepping { noise_level: 0.4 };
    first.held[0].checkpoint = Some(Checkpoint { noise_level: 0.5, key: "k".into() });
    first.poll(&mut core, at(1.0));
    assert!(second.poll(&mut core, at(8.0)).assignments.is_empty());
    let again = second.poll(&mut core, at(12.0)).assignments;
    assert_eq!((again[0].attempt, &again[0].beginning), (2, &Beginning::Checkpoint { key: "k".into() }));
    // The first one was only slow: its success counts, its failure does not.
    let failed = TaskEnd { outcome: Outcome::Failed { why: "late".into() }, ..first.done(0) };
    assert!(!core.end(at(12.5), failed).counted);
    assert!(core.end(at(13.0), first.ended[0].clone()).counted);
    assert_eq!(told(&mut core), [("r".into(), 0, true)]);
    let dropped = second.poll(&mut core, at(14.0));
    assert!(matches!(dropped.changes[..], [Change::Cancel { attempt: 2, .. }]));
}

#[test]
fn a_worker_that_comes_back_in_time_goes_on() {
    let (mut core, mut worker) = (core(), Worker::new("a", 2));
    core.submit(at(0.0), submit("r", "c", vec![picture(1, 99.0)]));
    worker.poll(&mut core, at(0.0));
    core.tick(at(20.0));
    assert_eq!((core.load().workers, core.load().running), (0, 0));
    assert!(worker.poll(&mut core, at(21.0)).is_empty(), "as if nothing had been");
    assert_eq!(core.load().running, 1);
}

#[test]
fn a_task_that_lost_three_workers_fails() {
    let (mut core, mut worker) = (core(), Worker::new("a", 2));
    core.submit(at(0.0), submit("r", "c", vec![picture(1, 99.0)]));
    for incarnation in 1..=4 {
        worker = Worker { incarnation, ..Worker::new("a", 2) };
        let answer = worker.poll(&mut core, at(incarnation as f64));
        assert_eq!(answer.assignments.len(), usize::from(incarnation < 4));
    }
    assert!(worker.held.is_empty());
    let notices = core.take_notices();
    assert!(matches!(notices[0].result, PictureResult::Failed { why: Failure::WorkersLost { losses: 3 } }));
}

#[test]
fn a_long_picture_is_paused_for_another_clients_first_one() {
    let (mut core, mut worker) = (core(), Worker::new("w", 4));
    core.submit(at(0.0), submit("a", "greedy", (0..6).map(|hash| picture(hash, 99.0)).collect()));
    assert_eq!(worker.poll(&mut core, at(0.0)).assignments.len(), 2);
    core.submit(at(0.1), submit("b", "modest", vec![picture(9, 99.0)]));
    let answer = worker.poll(&mut core, at(0.2));
    assert_eq!(answer.assignments[0].task.request, "b".into());
    assert!(!answer.assignments[0].paused);
    assert!(matches!(answer.changes[..], [Change::Pause { paused: true, .. }]));
    let place = worker.held.iter().position(|held| held.task.request == "b".into()).unwrap();
    worker.done(place);
    let answer = worker.poll(&mut core, at(0.3));
    assert!(
        answer.changes.iter().any(|change| matches!(change, Change::Pause { paused: false, .. })),
        "{answer:?}"
    );
}

#[test]
fn a_more_urgent_picture_of_the_same_client_goes_first() {
    let (mut core, mut worker) = (core(), Worker::new("w", 2));
    core.submit(at(0.0), submit("a", "c", vec![picture(1, 99.0)]));
    worker.poll(&mut core, at(0.0));
    core.submit(at(0.1), submit("b", "c", vec![picture(2, 5.0)]));
    worker.poll(&mut core, at(0.2));
    let paused: Vec<bool> = worker.held.iter().map(|held| held.paused).collect();
    assert_eq!(paused, [true, false]);
    assert!(worker.held[1].rank < worker.held[0].rank);
}

#[test]
fn in_flight_plans_only_get_cheaper_and_keep_their_floor() {
    let (mut core, mut worker) = (core(), Worker::new("w", 4));
    core.submit(at(0.0), submit("a", "c", vec![picture(1, 20.0)]));
    worker.poll(&mut core, at(0.0));
    assert_eq!(worker.held[0].option, "16".into(), "without load the best");
    worker.held[0].place = Place::Stepping { noise_level: 0.75 };
    core.submit(at(0.1), submit("b", "d", (10..38).map(|hash| picture(hash, 0.3)).collect()));
    let before = core.price(&"m".into());
    let answer = worker.poll(&mut core, at(0.2));
    assert!(core.price(&"m".into()) > before, "{answer:?}");
    let held = worker.held.iter().find(|held| held.task.request == "a".into()).unwrap();
    assert_ne!(held.option, "16".into());
    let cheaper = held.option.clone();
    core.cancel(at(0.3), &Cancel { request: "b".into() });
    for seconds in [3.0, 6.0] {
        worker.poll(&mut core, at(seconds));
    }
    assert_eq!(core.price(&"m".into()), Some(0.0), "two seconds later it has fallen");
    assert_eq!(worker.held[0].option, cheaper, "but the plan stays");
    worker.done(0);
    worker.poll(&mut core, at(6.1));
    let notices = core.take_notices();
    let PictureResult::Done { expected_quality, .. } = &notices[0].result else { panic!("{notices:?}") };
    assert!((0.9..1.0).contains(expected_quality), "{expected_quality}");
}

#[test]
fn a_quote_says_what_would_be_given_and_how_long_it_would_take() {
    let (mut core, mut worker) = (core(), Worker::new("w", 4));
    let eight = MenuOption::even("8", 8, 0.0, vec![]);
    let unloaded = |core: &Scheduler| core.unloaded_seconds(&"m".into(), SHAPE, &eight);
    assert_eq!(
        (core.quality_now(&picture(9, 20.0)), unloaded(&core)),
        (None, None),
        "no worker serves the model"
    );
    let mut message = worker.message();
    let times = StepTimes {
        model: "m".into(),
        denoiser: String::new(),
        shape: SHAPE,
        rows: 2,
        steps: 20,
        seconds: 0.01,
    };
    message.report.step_times = vec![times];
    core.poll(at(0.0), message);
    assert!((unloaded(&core).unwrap() - 0.08).abs() < 1e-9);
    assert_eq!(core.load().sets[0].step_times[0].rows, 2);
    let (best, floor) = (core.quality_now(&picture(9, 20.0)).unwrap(), 0.9);
    assert_eq!(best, 1.0, "without load the best");
    accepted(&core.submit(at(0.1), submit("b", "d", (10..18).map(|hash| picture(hash, 1.0)).collect())));
    worker.poll(&mut core, at(0.2));
    let now = core.quality_now(&picture(9, 20.0)).unwrap();
    assert!((floor..best).contains(&now), "{now}");
    let unknown = NewTask { model: "other".into(), ..picture(9, 20.0) };
    assert_eq!(core.quality_now(&unknown), None);
}

#[test]
fn a_late_task_yields_and_takes_its_turn_again() {
    let (mut core, mut worker) = (core(), Worker::new("w", 2));
    core.submit(at(0.0), submit("late", "c", vec![picture(1, 1.0)]));
    core.submit(at(0.0), submit("soon", "d", vec![picture(2, 50.0), picture(3, 50.0)]));
    worker.poll(&mut core, at(1.5));
    assert_eq!(worker.held[0].task.request, "soon".into(), "the late one yields");
    worker.done(0);
    core.tick(at(2.5));
    let answer = worker.poll(&mut core, at(2.5));
    assert_eq!(
        answer.assignments[0].task.request,
        "late".into(),
        "it has yielded as long as was promised to it"
    );
    assert!(!answer.assignments[0].rank.yields);
}

#[test]
fn nothing_is_left_behind() {
    let (mut core, mut worker) = (core(), Worker::new("w", 8));
    for round in 0..50 {
        let request = format!("r{round}");
        let now = at(f64::from(round));
        core.submit(now, submit(&request, &request, vec![picture(1, 9.0), picture(2, 0.01)]));
        worker.poll(&mut core, now);
        if round % 3 == 0 {
            core.cancel(now, &Cancel { request: request.as_str().into() });
        }
        while !worker.held.is_empty() {
            worker.done(0);
        }
        worker.poll(&mut core, now.after(0.5));
    }
    core.take_notices();
    assert!(core.is_idle());
    assert_eq!(core.tasks.sizes(), [0, 0, 0]);
    assert_eq!(core.requests.sizes(), [4, 4, 0]);
    assert_eq!((core.order.len(), core.demand.buckets(), core.yielding.len()), ((0, 0, 0), 0, 0));
    let load = core.load();
    assert_eq!((load.tasks, load.running, load.pictures, load.clients), (0, 0, 0, 0));
}
