//! Which worker gets what: models, draining workers, rows ahead, deadlines that no machine keeps, and paused tasks that move.

use super::*;

/// A step of any number of rows took so many seconds.
fn steps_of(seconds: f64) -> Vec<StepTimes> {
    let times = |rows| StepTimes {
        model: "m".into(),
        denoiser: String::new(),
        shape: SHAPE,
        rows,
        steps: 20,
        seconds,
    };
    vec![times(2), times(4)]
}

fn of_model(model: &str, hash: u8) -> NewTask<&'static str> {
    NewTask { model: model.into(), ..picture(hash, 99.0) }
}

/// The models that an answer wants loaded, and those that it wants dropped.
fn model_changes<'a>(answer: &'a PollAnswer<&'static str>) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut load, mut unload) = (vec![], vec![]);
    for change in &answer.changes {
        match change {
            Change::Load { model } => load.push(model.as_str()),
            Change::Unload { model } => unload.push(model.as_str()),
            _ => {}
        }
    }
    (load, unload)
}

#[test]
fn a_model_that_tasks_wait_for_is_loaded_and_an_unused_one_makes_room() {
    let (mut core, mut worker) = (core(), Worker::new("w", 4));
    core.set_menu("n".into(), menu());
    let models = |names: &[&str]| names.iter().map(|name| ModelId::from(*name)).collect::<Vec<_>>();
    worker.report.loadable = models(&["m", "n"]);
    worker.report.model_places = 1;
    core.submit(at(0.0), submit("a", "c", vec![of_model("m", 1)]));
    core.submit(at(0.0), submit("b", "d", vec![of_model("n", 2)]));
    let answer = worker.poll(&mut core, at(0.1));
    assert_eq!((worker.held.len(), model_changes(&answer)), (1, (vec![], vec![])), "m is in use");
    worker.done(0);
    let answer = worker.poll(&mut core, at(0.2));
    assert_eq!(model_changes(&answer), (vec!["n"], vec!["m"]));
    assert!(worker.held.is_empty(), "nothing of a model that is not there is assigned");
    let again = worker.poll(&mut core, at(0.3));
    assert_eq!(model_changes(&again), (vec!["n"], vec!["m"]), "until the report shows it");
    worker.report.resident = models(&["n"]);
    let answer = worker.poll(&mut core, at(0.4));
    assert_eq!((worker.held.len(), model_changes(&answer)), (1, (vec![], vec![])));
    assert_eq!(answer.assignments[0].model, "n".into());
}

#[test]
fn with_places_left_nothing_is_unloaded_and_without_demand_nothing_is_loaded() {
    let (mut core, mut worker) = (core(), Worker::new("w", 4));
    core.set_menu("n".into(), menu());
    worker.report.loadable = vec!["m".into(), "n".into()];
    worker.report.model_places = 2;
    assert_eq!(model_changes(&worker.poll(&mut core, at(0.0))), (vec![], vec![]));
    core.submit(at(0.1), submit("b", "d", vec![of_model("n", 2)]));
    assert_eq!(model_changes(&worker.poll(&mut core, at(0.2))), (vec!["n"], vec![]));
}

#[test]
fn a_draining_worker_keeps_what_it_has_and_gets_nothing_new() {
    let (mut core, mut drained, mut other) = (core(), Worker::new("a", 4), Worker::new("b", 4));
    core.submit(at(0.0), submit("a", "c", vec![picture(1, 99.0)]));
    drained.poll(&mut core, at(0.0));
    drained.report.draining = true;
    core.submit(at(0.1), submit("b", "c", vec![picture(2, 99.0)]));
    let answer = drained.poll(&mut core, at(0.2));
    assert!(answer.is_empty() && drained.held.len() == 1, "{answer:?}");
    core.take_woken();
    core.submit(at(0.3), submit("c", "c", vec![picture(3, 99.0)]));
    assert!(core.take_woken().is_empty(), "it is not woken for what it does not get");
    assert_eq!(other.poll(&mut core, at(0.4)).assignments.len(), 2);
    let end = drained.done(0);
    assert!(core.end(at(0.5), end).counted);
}

#[test]
fn tasks_are_assigned_ahead_of_free_rows_and_are_not_paused() {
    let assigned = |ahead_rows| {
        let (mut core, mut worker) = (core(), Worker::new("w", 4));
        worker.report.ahead_rows = ahead_rows;
        core.submit(at(0.0), submit("a", "c", (0..9).map(|hash| picture(hash, 99.0)).collect()));
        let answer = worker.poll(&mut core, at(0.0));
        (answer.assignments.len(), answer.assignments.iter().filter(|a| a.paused).count())
    };
    assert_eq!((assigned(0), assigned(2), assigned(4)), ((2, 0), (3, 0), (4, 0)));
}

#[test]
fn a_deadline_that_even_an_idle_machine_misses_is_refused_if_the_client_named_it() {
    let (mut core, mut worker) = (core(), Worker::new("w", 4));
    let asked = |name: &str, deadline_seconds, firm| {
        let mut task = picture(name.as_bytes()[0], deadline_seconds);
        task.terms.firm = firm;
        submit(name, "c", vec![task])
    };
    worker.poll(&mut core, at(0.0));
    accepted(&core.submit(at(0.0), asked("a", 0.01, true))); // nothing is known yet of how long steps take
    core.cancel(at(0.0), &Cancel { request: "a".into() });
    worker.report.step_times = steps_of(0.1);
    worker.poll(&mut core, at(0.1));
    // The cheapest option that reaches the floor takes four steps, 0.4 s.
    let refused = core.submit(at(0.2), asked("b", 0.3, true));
    assert_eq!(refused, SubmitAnswer::Never { why: Refusal::Deadline });
    accepted(&core.submit(at(0.2), asked("c", 0.5, true)));
    accepted(&core.submit(at(0.2), asked("d", 0.3, false)));
}

#[test]
fn a_paused_task_goes_on_at_a_worker_that_finishes_it_sooner() {
    for checkpoint in [None, Some(Checkpoint { noise_level: 0.5, key: "k".into() })] {
        let (mut core, mut first, mut second) = (core(), Worker::new("a", 2), Worker::new("b", 2));
        for worker in [&mut first, &mut second] {
            worker.report.step_times = steps_of(0.1);
            worker.poll(&mut core, at(0.0));
        }
        core.submit(at(0.0), submit("long", "greedy", vec![picture(1, 99.0), picture(2, 99.0)]));
        second.poll(&mut core, at(0.1));
        first.poll(&mut core, at(0.1)); // it gets the one of the worse rank
        core.submit(at(0.2), submit("short", "modest", vec![picture(3, 99.0)]));
        first.held[0].place = Place::Stepping { noise_level: 0.5 };
        first.held[0].checkpoint = checkpoint.clone();
        first.poll(&mut core, at(0.3));
        assert!(first.held[0].paused && first.held.len() == 2 && core.load().paused == 1);
        assert!(second.poll(&mut core, at(0.4)).is_empty(), "it has no room");
        second.done(0);
        let answer = second.poll(&mut core, at(0.5));
        let [moved] = &answer.assignments[..] else { panic!("{answer:?}") };
        // Where it is it waits for the sixteen steps of the other one, and takes eight. Anew it takes sixteen.
        let (beginning, paused) = match &checkpoint {
            None => (Beginning::Noise, false),
            Some(Checkpoint { key, .. }) => (Beginning::Checkpoint { key: key.clone() }, false),
        };
        assert_eq!((&moved.beginning, moved.attempt, moved.paused), (&beginning, 2, paused));
        let dropped = first.poll(&mut core, at(0.6));
        assert!(matches!(dropped.changes[..], [Change::Cancel { attempt: 1, .. }]), "{dropped:?}");
        assert_eq!(core.load().paused, 0);
    }
}

#[test]
fn a_paused_task_stays_where_it_is_finished_sooner() {
    let (mut core, mut first, mut second) = (core(), Worker::new("a", 2), Worker::new("b", 2));
    for worker in [&mut first, &mut second] {
        worker.report.step_times = steps_of(0.1);
        worker.poll(&mut core, at(0.0));
    }
    core.submit(at(0.0), submit("long", "greedy", vec![picture(1, 99.0), picture(2, 99.0)]));
    second.poll(&mut core, at(0.1));
    first.poll(&mut core, at(0.1)); // it gets the one of the worse rank
    first.held[0].place = Place::Stepping { noise_level: 0.0625 };
    core.submit(at(0.2), submit("short", "modest", vec![picture(3, 99.0)]));
    first.poll(&mut core, at(0.3));
    assert!(first.held[0].paused);
    first.held[1].place = Place::Stepping { noise_level: 0.0625 };
    first.poll(&mut core, at(0.4));
    second.done(0);
    let answer = second.poll(&mut core, at(0.5));
    assert!(answer.assignments.is_empty(), "a step after a step here, sixteen there: {answer:?}");
}
