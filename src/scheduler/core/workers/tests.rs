use super::*;

fn at(seconds: f64) -> Time {
    Time::ZERO.after(seconds)
}

fn report(pool: &str, rows: u32, models: &[&str]) -> Report<()> {
    let loadable = models.iter().map(|model| ModelId::from(*model)).collect();
    Report { pool: pool.into(), rows, loadable, ..Report::default() }
}

fn poll(workers: &mut Workers, id: &str, sequence: u64, now: f64, report: &Report<()>) -> WorkerKey {
    let received = workers.receive(&id.into(), 1, sequence, at(now), 99);
    let Received::Newest(key) = received else { panic!("{received:?}") };
    workers.update(key, report, &Tuning::default());
    key
}

#[test]
fn interchangeable_workers_share_a_set() {
    let mut workers = Workers::default();
    let a = poll(&mut workers, "a", 1, 0.0, &report("p", 8, &["m", "n"]));
    let b = poll(&mut workers, "b", 1, 0.0, &report("p", 16, &["n", "m"]));
    poll(&mut workers, "c", 1, 0.0, &report("p", 8, &["m"]));
    let sets: Vec<(usize, f64)> = workers.sets().map(|(_, set)| (set.workers, set.full_rows())).collect();
    assert_eq!(sets, [(2, 12.0), (1, 8.0)]);
    assert_eq!(workers.serving(&"m".into()).count(), 2);
    let shares: Vec<f64> = workers.sets().map(|(_, set)| 3.0 * workers.share(&"m".into(), set)).collect();
    assert_eq!(shares, [2.0, 1.0]);
    workers.set_free(a, 3);
    workers.set_free(b, 5);
    let set = workers.get(a).unwrap().set;
    assert_eq!(workers.set(set).unwrap().freest(), Some(b));
    poll(&mut workers, "c", 2, 1.0, &report("p", 8, &["m", "n"]));
    assert_eq!((workers.sets().count(), workers.set_of.len()), (1, 1));
    assert_eq!(workers.lose(at(100.0), 10.0).len(), 3);
    assert!(workers.len() == 0 && workers.sets.is_empty() && workers.by_model.is_empty());
}

#[test]
fn old_polls_are_stale_and_new_processes_restart() {
    let mut workers = Workers::default();
    let mut receive =
        |incarnation, sequence, most| workers.receive(&"a".into(), incarnation, sequence, at(0.0), most);
    assert_eq!(receive(3, 5, 0), Received::Refused);
    assert_eq!(receive(3, 5, 1), Received::Newest(0));
    assert_eq!(
        (receive(3, 5, 1), receive(3, 4, 1), receive(2, 9, 1)),
        (Received::Stale, Received::Stale, Received::Stale)
    );
    assert_eq!((receive(3, 6, 1), receive(4, 1, 1)), (Received::Newest(0), Received::Restarted(0)));
}

#[test]
fn a_worker_that_does_not_poll_is_lost_and_many_together_are_no_ones_fault() {
    let mut workers = Workers::default();
    for id in ["a", "b", "c", "d"] {
        poll(&mut workers, id, 1, 0.0, &report("p", 8, &["m"]));
    }
    for id in ["a", "b", "c"] {
        poll(&mut workers, id, 2, 9.0, &report("p", 8, &["m"]));
    }
    let lost = workers.lose(at(10.5), 10.0);
    assert_eq!(lost.iter().map(|(_, worker)| worker.id.as_str()).collect::<Vec<_>>(), ["d"]);
    assert!(!workers.most_vanished(at(10.5), 10.0), "one of four");
    assert_eq!(workers.lose(at(19.5), 10.0).len(), 3);
    assert!(workers.most_vanished(at(19.5), 10.0));
    poll(&mut workers, "e", 1, 20.0, &report("p", 8, &["m"]));
    assert_eq!((workers.len(), workers.workers.len()), (1, 4), "a lost one's place is used again");
    let mut single = Workers::default();
    poll(&mut single, "a", 1, 0.0, &report("p", 8, &["m"]));
    assert_eq!(single.lose(at(11.0), 10.0).len(), 1);
    assert!(!single.most_vanished(at(11.0), 10.0), "the only one may well be to blame");
}
