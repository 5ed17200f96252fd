//! The worker's core, message by message and stage by stage.

use super::*;
use crate::scheduler::Time;
use crate::scheduler::messages::{Assignment, Beginning, Change, Place, PollAnswer, Rank, Shape};
use crate::worker::BeginError;
use crate::worker::tests::fake::{Fake, FakePainting, SHAPE, Sketch, sketch};

type Core = WorkerCore<Fake>;

fn core() -> Core {
    let settings = Settings {
        worker: "w".into(),
        incarnation: 1,
        pool: "p".into(),
        rows: 8,
        loadable: vec!["m".into(), "n".into()],
        model_places: 0,
        report_seconds: 1.0,
    };
    WorkerCore::new(settings, vec!["m".into()])
}

fn id(index: u32) -> AttemptId {
    AttemptId { task: crate::scheduler::TaskId { request: "r".into(), index }, attempt: 1 }
}

/// Task `index`, of four steps, whose rank is its index.
fn assignment(index: u32) -> Assignment<Sketch> {
    Assignment {
        task: id(index).task,
        attempt: 1,
        spec: sketch(&format!("p{index}")),
        model: "m".into(),
        option: "4".into(),
        beginning: Beginning::Noise,
        rank: Rank { yields: false, tag: f64::from(index) },
        paused: false,
        previews: 0,
        deadline_seconds: 9.0,
    }
}

/// Polls, and takes over an answer. Whether that was worth another poll at once.
fn answer(core: &mut Core, assignments: Vec<Assignment<Sketch>>, changes: Vec<Change>) -> bool {
    let sequence = core.poll().sequence;
    core.answered(Time::ZERO, PollAnswer { sequence, assignments, changes, acknowledged: vec![] })
}

fn begin_all(core: &mut Core) {
    while let Some(begin) = core.next_begin() {
        let steps = begin.assignment.option.as_str().parse().unwrap();
        core.begun(&begin.id, 0.5, Ok(FakePainting::new(begin.assignment.spec, steps)));
    }
}

/// Steps the next batch, in a second, and returns its members.
fn step(core: &mut Core) -> Vec<u32> {
    let Some(batch) = core.next_batch() else { return vec![] };
    let members = batch.members.iter().map(|member| member.id.task.index).collect();
    give_back(core, batch);
    members
}

fn give_back(core: &mut Core, batch: Batch<Fake>) {
    let Batch { model, shape, rows, members } = batch;
    let step = |Member { id, mut painting }: Member<Fake>| {
        painting.step();
        (id, Ok(painting))
    };
    core.stepped((model, shape, rows), 1.0, true, members.into_iter().map(step).collect());
}

/// Takes over the next picture to finish.
fn finish(core: &mut Core) -> AttemptId {
    let Some(Finish::Picture { id, painting }) = core.next_finish() else { panic!("nothing is finished") };
    core.finished(&id, painting.shape(), 0.25, Ok(painting.sketch.name));
    id
}

fn places(core: &mut Core) -> Vec<Place> {
    core.poll().report.held.iter().map(|held| held.place).collect()
}

#[test]
fn a_task_goes_through_the_stages_and_ends_once() {
    let mut core = core();
    let mut with_state = assignment(0);
    with_state.beginning = Beginning::State;
    assert!(answer(&mut core, vec![with_state.clone()], vec![]));
    assert_eq!(core.ready(), Ready { load: true, ..Ready::default() });
    assert_eq!(core.next_load().map(|load| load.beginning), Some(Beginning::State));
    assert!(core.next_begin().is_none() && core.ready() == Ready::default());
    core.loaded(&id(0), Some(()));
    assert!(core.ready().begin && places(&mut core) == [Place::Preparing]);
    begin_all(&mut core);
    assert!(places(&mut core) == [Place::Stepping { noise_level: 1.0 }] && core.ready().step);
    for level in [0.75, 0.5, 0.25] {
        assert_eq!(step(&mut core), [0]);
        assert_eq!(places(&mut core), [Place::Stepping { noise_level: level }]);
    }
    step(&mut core);
    assert!(core.has_news(), "its rows are free");
    assert_eq!(places(&mut core), [Place::Finishing]);
    finish(&mut core);
    let ends = core.take_ends();
    let Outcome::Done { option, machine_seconds, picture } = &ends[0].outcome else { panic!("{ends:?}") };
    assert_eq!((option.as_str(), *machine_seconds, picture.as_str()), ("4", Some(4.0), "p0"));
    let report = core.poll().report;
    assert_eq!((report.ended.len(), report.held.len(), core.take_ends().len()), (1, 0, 0));
    assert_eq!(report.overhead_times[0].seconds, 0.75, "encoding and decoding");
    assert!(!answer(&mut core, vec![with_state], vec![]), "an ended task is not begun again");
    core.acknowledge(&id(0));
    assert_eq!((core.poll().report.ended.len(), core.held()), (0, 0));
}

#[test]
fn answers_to_older_polls_are_void_and_equal_ones_change_nothing() {
    let mut core = core();
    let old = core.poll().sequence;
    let new = core.poll().sequence;
    let of = |sequence| PollAnswer {
        sequence,
        assignments: vec![assignment(0)],
        changes: vec![],
        acknowledged: vec![],
    };
    assert!(!core.answered(Time::ZERO, of(old)) && core.held() == 0);
    assert!(core.answered(Time::ZERO, of(new)) && core.held() == 1);
    assert!(!core.answered(Time::ZERO, PollAnswer { assignments: vec![assignment(1)], ..of(new) }));
    assert!(!answer(&mut core, vec![assignment(0)], vec![]), "it is held already");
    assert!(answer(&mut core, vec![], vec![]), "nothing to do: poll on");
    let unknown = vec![Change::Unknown, Change::Cancel { task: id(7).task, attempt: 1 }];
    assert!(!answer(&mut core, vec![], unknown));
    let sequence = core.poll().sequence;
    let acknowledged = vec![id(0)];
    let answer = PollAnswer { sequence, assignments: vec![], changes: vec![], acknowledged };
    assert!(!core.answered(Time::ZERO, answer) && core.held() == 1, "it did not end");
}

#[test]
fn batches_take_the_best_rank_and_leave_out_what_is_paused() {
    let mut core = core();
    let wide = Sketch { shape: Shape { width: 128, ..SHAPE }, ..sketch("wide") };
    let mut tasks: Vec<_> = (0..6).map(assignment).collect();
    tasks[1].spec = wide;
    tasks[2].paused = true;
    answer(&mut core, tasks, vec![]);
    begin_all(&mut core);
    let batch = core.next_batch().unwrap();
    assert_eq!(
        (batch.rows, batch.members.len()),
        (8, 4),
        "without one of another size and one that is paused"
    );
    assert!(core.next_batch().is_none() && !core.ready().step, "one batch at a time");
    give_back(&mut core, batch);
    let rank = Rank { yields: false, tag: -1.0 };
    let changes = vec![
        Change::Rank { task: id(1).task, attempt: 1, rank },
        Change::Pause { task: id(2).task, attempt: 1, paused: false },
    ];
    assert!(answer(&mut core, vec![], changes));
    assert_eq!(step(&mut core), [1]);
    let gone = Change::Cancel { task: id(1).task, attempt: 1 };
    answer(&mut core, vec![], vec![gone]);
    assert_eq!(step(&mut core), [0, 2, 3, 4], "eight rows");
}

#[test]
fn an_option_that_is_told_during_a_step_is_taken_after_it() {
    let mut core = core();
    answer(&mut core, vec![assignment(0), assignment(1)], vec![]);
    let plan = |index, option: &str| Change::Plan { task: id(index).task, attempt: 1, option: option.into() };
    assert!(answer(&mut core, vec![], vec![plan(1, "2")]));
    begin_all(&mut core);
    let batch = core.next_batch().unwrap();
    assert_eq!(batch.members[1].painting.levels.len(), 2, "begun with the option that is wanted now");
    assert!(answer(&mut core, vec![], vec![plan(0, "2")]));
    assert!(!answer(&mut core, vec![], vec![plan(0, "2")]), "it is on its way");
    assert_eq!(core.poll().report.held[0].option.as_str(), "2");
    give_back(&mut core, batch);
    let batch = core.next_batch().unwrap();
    assert_eq!(batch.members[0].painting.levels, [0.75, 0.5], "the rest of two steps, from where it is");
    give_back(&mut core, batch);
    assert!(!answer(&mut core, vec![], vec![plan(0, "nonsense")]), "it goes on as before");
    assert_eq!(core.poll().report.held[0].option.as_str(), "2");
    finish(&mut core);
    assert!(matches!(&core.take_ends()[0].outcome, Outcome::Done { option, .. } if option.as_str() == "2"));
}

#[test]
fn what_was_cancelled_is_dropped_in_each_phase() {
    type Reach = fn(&mut Core);
    let phases: [(&str, Reach); 7] = [
        ("to load", |_| ()),
        ("loading", |core| drop(core.next_load())),
        ("to begin", |core| core.loaded(&id(0), None)),
        ("beginning", |core| drop(core.next_begin())),
        ("to step", |core| core.begun(&id(0), 0.0, Ok(FakePainting::new(sketch("p0"), 1)))),
        ("to finish", |core| drop(step(core))),
        ("finishing", |core| drop(core.next_finish())),
    ];
    for reached in 0..phases.len() {
        let mut core = core();
        let with_state = Assignment { beginning: Beginning::State, ..assignment(0) };
        answer(&mut core, vec![with_state], vec![]);
        for (_, reach) in &phases[..=reached] {
            reach(&mut core);
        }
        assert_eq!(core.held(), 1, "{}", phases[reached].0);
        assert!(answer(&mut core, vec![], vec![Change::Cancel { task: id(0).task, attempt: 1 }]));
        // What comes of it later is dropped.
        core.loaded(&id(0), Some(()));
        core.begun(&id(0), 0.0, Ok(FakePainting::new(sketch("p0"), 1)));
        core.finished(&id(0), SHAPE, 0.0, Ok("late".to_owned()));
        assert_eq!((core.held(), core.take_ends().len()), (0, 0), "{}", phases[reached].0);
        assert_eq!(core.ready(), Ready::default(), "{}", phases[reached].0);
    }
    let mut core = core();
    answer(&mut core, vec![assignment(0)], vec![]);
    begin_all(&mut core);
    let batch = core.next_batch().unwrap();
    answer(&mut core, vec![], vec![Change::Cancel { task: id(0).task, attempt: 1 }]);
    give_back(&mut core, batch);
    assert_eq!((core.held(), core.ready()), (0, Ready::default()), "in a batch");
}

#[test]
fn failures_end_their_own_task_alone() {
    let mut core = core();
    answer(&mut core, (0..4).map(assignment).collect(), vec![]);
    let begin = core.next_begin().unwrap();
    core.begun(&begin.id, 0.0, Err(BeginError::StateGone));
    let begin = core.next_begin().unwrap();
    core.begun(&begin.id, 0.0, Err(BeginError::Failed("no tokenizer".to_owned())));
    begin_all(&mut core);
    let Batch { model, shape, rows, members } = core.next_batch().unwrap();
    let fails = |member: Member<Fake>| match member.id.task.index {
        2 => (member.id, Err("the engine panicked".to_owned())),
        _ => (member.id, Ok(member.painting)),
    };
    core.stepped((model, shape, rows), 1.0, false, members.into_iter().map(fails).collect());
    let ends: Vec<Outcome<String>> = core.take_ends().into_iter().map(|end| end.outcome).collect();
    assert!(
        matches!(&ends[..], [Outcome::StateGone, Outcome::Failed { .. }, Outcome::Failed { .. }]),
        "{ends:?}"
    );
    let report = core.poll().report;
    assert_eq!((report.held.len(), report.ended.len(), report.step_times.len()), (1, 3, 0));
    assert_eq!(step(&mut core), [3]);
}

#[test]
fn models_are_loaded_and_dropped_as_they_are_needed() {
    let mut core = core();
    let of_n = Assignment { model: "n".into(), ..assignment(1) };
    assert!(answer(&mut core, vec![of_n.clone()], vec![]));
    assert!(matches!(core.take_ends()[0].outcome, Outcome::HandedBack { .. }), "it is not in memory");
    core.acknowledge(&id(1));
    let load = |model: &str| vec![Change::Load { model: model.into() }];
    assert!(answer(&mut core, vec![], load("n")) && !answer(&mut core, vec![], load("n")));
    assert!(!answer(&mut core, vec![], load("m")) && !answer(&mut core, vec![], load("unknown")));
    assert_eq!(core.next_model(), Some(ModelWork::Load("n".into())));
    core.model_loaded(&"n".into(), false);
    assert!(answer(&mut core, vec![], load("n")), "it is tried again");
    core.model_loaded(&"n".into(), true);
    assert!(core.has_news() && core.poll().report.resident.len() == 2);
    answer(&mut core, vec![of_n], vec![]);
    let drop = |model: &str| vec![Change::Unload { model: model.into() }];
    assert!(!answer(&mut core, vec![], drop("n")), "it holds a task of it");
    assert!(answer(&mut core, vec![], drop("m")));
    core.next_model();
    assert_eq!(core.next_model(), Some(ModelWork::Unload("m".into())));
    assert_eq!(core.poll().report.resident, ["n".into()]);
}

#[test]
fn previews_are_made_before_pictures_and_not_after_them() {
    let mut core = core();
    answer(&mut core, vec![Assignment { previews: 1, ..assignment(0) }], vec![]);
    begin_all(&mut core);
    step(&mut core);
    let three = Change::Previews { task: id(0).task, attempt: 1, previews: 3 };
    assert!(answer(&mut core, vec![], vec![three.clone()]) && !answer(&mut core, vec![], vec![three]));
    assert_eq!(core.poll().report.held[0].previews, 3);
    (0..3).for_each(|_| drop(step(&mut core)));
    let mut made = Vec::new();
    while let Some(Finish::Preview { number, of, .. }) = core.next_finish() {
        made.push((number, of));
    }
    assert_eq!(made, [(1, 1), (2, 3), (3, 3)]);
}

#[test]
fn a_finished_picture_does_not_wait_for_the_previews_of_others() {
    let mut core = core();
    let short = Assignment { option: "1".into(), ..assignment(1) };
    answer(&mut core, vec![Assignment { previews: 1, ..assignment(0) }, short], vec![]);
    begin_all(&mut core);
    assert_eq!(step(&mut core), [0, 1]);
    assert!(matches!(core.next_finish(), Some(Finish::Picture { id: first, .. }) if first == id(1)));
    assert!(matches!(core.next_finish(), Some(Finish::Preview { id: then, .. }) if then == id(0)));
}

#[test]
fn reports_are_due_after_some_seconds_of_steps_and_carry_their_times() {
    let mut core = core();
    core.measured(Measured::default());
    answer(&mut core, vec![assignment(0), assignment(1)], vec![]);
    begin_all(&mut core);
    assert!(!core.has_news());
    step(&mut core);
    assert!(core.has_news(), "a second of steps");
    let report = core.poll().report;
    let times = &report.step_times[0];
    assert_eq!((times.rows, times.steps, times.seconds, times.shape), (4, 1, 1.0, SHAPE));
    assert_eq!((report.rows, report.ahead_rows), (8, 2));
    assert!(core.poll().report.step_times.is_empty() && !core.has_news());
    core.drain();
    assert!(core.poll().report.draining);
}
