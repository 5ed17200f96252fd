//! What every queue must pass. `suite!` makes the tests of one implementation.

mod any_order;

use std::time::{Duration, Instant};

use pentimento_pipelines::{NoiseSource, Size};

use super::event::MOST_LISTENERS;
use super::{
    Busy, Encoding, Event, Failure, Format, Job, JobLease, JobQueue, JobSubscription, Line, Painted, Pulled,
    QueueLimits, Reused, Start, Timings,
};
use crate::plan::{Terms, Tier};

pub(super) use any_order::what_is_accepted_is_never_lost;

/// Every check as a test of the queues that `$make` makes of their limits.
macro_rules! suite {
    ($make:expr) => {
        crate::queue::conformance::suite!($make;
            a_request_is_accepted_whole_or_not_at_all,
            a_dropped_subscription_cancels_waiting_and_leased_jobs,
            whatever_happens_the_subscriber_hears_an_end,
            what_one_client_asks_for_twice_is_painted_once,
            what_nobody_can_join_is_painted_anew,
            within_a_client_the_most_urgent_goes_first_and_everybody_knows_his_place,
            a_flood_of_one_clients_pictures_delays_anothers_by_one_at_most,
            who_does_not_listen_holds_no_worker_up,
            whoever_waits_for_work_is_woken,
            what_is_only_shown_waits_for_no_step,
            what_cannot_be_shown_is_painted,
            what_is_accepted_is_never_lost,
        );
    };
    ($make:expr; $($check:ident),+ $(,)?) => {
        $(#[test]
        fn $check() {
            crate::queue::conformance::$check($make);
        })+
    };
}
pub(super) use suite;

/// Time for what happens at once within a process, and a little later between hosts.
const PATIENCE: Duration = Duration::from_secs(10);

fn jobs(client: &str, n: usize) -> Vec<Job> {
    (0..n).map(|index| job(client, index)).collect()
}

fn job(client: &str, index: usize) -> Job {
    Job {
        request_id: format!("request-of-{client}"),
        index,
        client: client.to_owned(),
        model: "m".into(),
        prompt: "p".into(),
        negative_prompt: String::new(),
        size: Size { width: 64, height: 64 },
        seed: index as u64,
        noise: NoiseSource::Pentimento,
        plan: serde_json::from_str(r#"{"steps":[]}"#).unwrap(),
        spent: Duration::ZERO,
        start: Start::Noise,
        terms: terms(60),
        keep: None,
        previews: vec![],
        encoding: Encoding { format: Format::Png, quality: 100 },
    }
}

/// A stored picture.
fn stored(client: &str, index: usize) -> Job {
    Job { start: Start::StateOrNoise(Reused::exact()), ..job(client, index) }
}

fn terms(seconds: u64) -> Terms {
    Terms { tier: Tier::Auto, floor: 1, best: 1, objective: Duration::from_secs(seconds) }
}

fn pull<Q: JobQueue>(queue: &Q) -> Option<Q::Lease> {
    pull_from(queue, Line::Paint)
}

fn pull_from<Q: JobQueue>(queue: &Q, line: Line) -> Option<Q::Lease> {
    let nothing_waits = queue.waiting(line, |_, _| ()).is_empty();
    match queue.pull(line, Some(if nothing_waits { Duration::ZERO } else { PATIENCE })) {
        Pulled::Lease(lease) => Some(lease),
        Pulled::Nothing | Pulled::Closed => None,
    }
}

fn painted(file: &str) -> Painted {
    let (timings, reused) = (Timings::default(), None);
    Painted { file: file.into(), timings, reused, skipped_steps: 0, steps: 1, expected_quality: None }
}

/// The next event, which must come.
fn hear(subscription: &mut impl JobSubscription) -> Event {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let heard = runtime.block_on(async { tokio::time::timeout(PATIENCE, subscription.next()).await });
    heard.expect("nothing is heard")
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn few<Q>(make: impl Fn(QueueLimits) -> Q) -> Q {
    make(QueueLimits { length: 4, length_per_client: 3 })
}

pub(super) fn a_request_is_accepted_whole_or_not_at_all<Q: JobQueue>(make: impl Fn(QueueLimits) -> Q) {
    let queue = few(make);
    let _three = queue.submit(jobs("a", 3)).unwrap();
    assert!(matches!(queue.submit(jobs("a", 1)), Err(Busy::ClientFull { .. })));
    assert!(matches!(queue.submit(jobs("b", 2)), Err(Busy::Full { .. })));
    assert!(queue.has_room("b", 2).is_err() && queue.has_room("b", 1).is_ok());
    assert_eq!(queue.len(), 3);
    let _one = queue.submit(jobs("b", 1)).unwrap();
    queue.close();
    assert!(queue.is_closed() && matches!(queue.submit(jobs("b", 1)), Err(Busy::Closed)));
    let clients: Vec<_> =
        std::iter::from_fn(|| pull(&queue)).map(|lease| lease.job().client.clone()).collect();
    assert_eq!(clients, ["a", "b", "a", "a"], "what was accepted is handed out, in turn");
    assert!(matches!(queue.pull(Line::Paint, None), Pulled::Closed));
}

pub(super) fn a_dropped_subscription_cancels_waiting_and_leased_jobs<Q: JobQueue>(
    make: impl Fn(QueueLimits) -> Q,
) {
    let queue = few(make);
    let mut subscriptions = queue.submit(jobs("a", 3)).unwrap();
    let lease = pull(&queue).unwrap();
    drop(subscriptions.pop());
    eventually("one waits", || queue.len() == 1);
    assert!(!lease.is_cancelled());
    drop(subscriptions);
    eventually("none is wanted", || queue.is_empty() && lease.is_cancelled());
}

pub(super) fn whatever_happens_the_subscriber_hears_an_end<Q: JobQueue>(make: impl Fn(QueueLimits) -> Q) {
    let queue = few(make);
    let mut subscriptions = queue.submit(jobs("a", 3)).unwrap();
    pull(&queue).unwrap().complete(painted("a0"));
    drop(pull(&queue)); // as a worker that dies
    let mut others = queue.submit(jobs("b", 1)).unwrap();
    let lease = pull(&queue).unwrap();
    assert!(!lease.is_cancelled());
    queue.stop(); // with one being painted and one waiting
    eventually("all is cancelled", || lease.is_cancelled());
    assert!(pull(&queue).is_none());
    drop(lease);
    let stopped = Event::Failed(Failure::Stopped);
    let ends = [Event::Done(painted("a0")), stopped.clone(), stopped.clone(), stopped];
    for (subscription, end) in subscriptions.iter_mut().chain(&mut others).zip(ends) {
        assert_eq!(hear(subscription), end);
    }
}

pub(super) fn what_one_client_asks_for_twice_is_painted_once<Q: JobQueue>(make: impl Fn(QueueLimits) -> Q) {
    let queue = few(make);
    let mut first = queue.submit(jobs("a", 1)).unwrap();
    assert!(queue.has_all(&jobs("a", 1)) && !queue.has_all(&jobs("a", 2)) && !queue.has_all(&jobs("b", 1)));
    let mut again = queue.submit(jobs("a", 1)).unwrap();
    let _others = queue.submit(jobs("b", 1)).unwrap();
    assert_eq!(queue.len(), 2, "another client's stays his own");
    let lease = pull(&queue).unwrap();
    let mut while_painted = queue.submit(jobs("a", 1)).unwrap();
    drop(first.pop());
    assert!(!lease.is_cancelled() && queue.len() == 1);
    let hour = Timings { denoise: Duration::from_secs(3600), ..Timings::default() };
    lease.complete(Painted { timings: hour, ..painted("a0") });
    for subscription in [&mut again[0], &mut while_painted[0]] {
        let Event::Done(heard) = hear(subscription) else { panic!("it was painted") };
        assert_eq!(heard.file, b"a0");
        assert!(heard.timings.denoise < PATIENCE, "what was before is not told: {:?}", heard.timings);
    }
    let _later = queue.submit(jobs("a", 1)).unwrap();
    assert_eq!(queue.len(), 2, "what is over is painted anew");
}

pub(super) fn what_nobody_can_join_is_painted_anew<Q: JobQueue>(make: impl Fn(QueueLimits) -> Q) {
    let queue = make(QueueLimits { length: 9, length_per_client: 9 });
    let first = queue.submit(jobs("a", 1)).unwrap();
    let lease = pull(&queue).unwrap();
    assert!(queue.has_all(&jobs("a", 1)));
    drop(first);
    assert!(lease.is_cancelled() && !queue.has_all(&jobs("a", 1)), "nobody wants it any more");
    let mut listeners = queue.submit(jobs("a", 1)).unwrap();
    while queue.has_all(&jobs("a", 1)) {
        listeners.extend(queue.submit(jobs("a", 1)).unwrap());
    }
    assert_eq!((listeners.len(), queue.len()), (MOST_LISTENERS, 1));
    listeners.extend(queue.submit(jobs("a", 1)).unwrap());
    assert!(queue.has_all(&jobs("a", 1)) && queue.len() == 2, "the next ones join the next painting");
}

pub(super) fn within_a_client_the_most_urgent_goes_first_and_everybody_knows_his_place<Q: JobQueue>(
    make: impl Fn(QueueLimits) -> Q,
) {
    let queue = few(make);
    let mut late = jobs("a", 2);
    late[1].terms = terms(5);
    let late = queue.submit(late).unwrap();
    let other = queue.submit(jobs("b", 1)).unwrap();
    assert_eq!([late[0].ahead(), late[1].ahead(), other[0].ahead()], [Some(2), Some(0), Some(1)]);
    let lease = pull(&queue).unwrap();
    assert_eq!((lease.job().index, late[1].ahead()), (1, None));
    assert_eq!([late[0].ahead(), other[0].ahead()], [Some(1), Some(0)]);
    let than = lease.deadline();
    assert!(matches!(queue.pull_if(|_, due| due < than), Pulled::Nothing), "nobody is more urgent");
    let Pulled::Lease(other) = queue.pull_if(|_, due| due > than) else { panic!("all are less urgent") };
    assert_eq!(other.job().client, "b", "in turn all the same");
    assert_eq!(pull(&queue).unwrap().job().client, "a");
    assert_eq!(queue.waiting(Line::Paint, |job, _| job.index), [0usize; 0]);
}

pub(super) fn a_flood_of_one_clients_pictures_delays_anothers_by_one_at_most<Q: JobQueue>(
    make: impl Fn(QueueLimits) -> Q,
) {
    for begun in [0, 1, 7] {
        let queue = make(QueueLimits { length: 61, length_per_client: 60 });
        let _flood = queue.submit(jobs("a", 60)).unwrap();
        for _ in 0..begun {
            assert_eq!(pull(&queue).unwrap().job().client, "a");
        }
        let single = queue.submit(jobs("b", 1)).unwrap();
        let ahead = single[0].ahead().unwrap();
        assert!(ahead <= 1, "{ahead} are served first");
        for _ in 0..ahead {
            assert_eq!(pull(&queue).unwrap().job().client, "a");
        }
        assert_eq!(pull(&queue).unwrap().job().client, "b");
    }
}

pub(super) fn who_does_not_listen_holds_no_worker_up<Q: JobQueue>(make: impl Fn(QueueLimits) -> Q) {
    let queue = few(make);
    let wanted = Job { previews: (1..=50).collect(), ..job("a", 0) };
    let mut subscriptions = queue.submit(vec![wanted]).unwrap();
    let lease = pull(&queue).unwrap();
    let began = Instant::now();
    for index in 0..50 {
        lease.preview(index, vec![0; 9]);
    }
    lease.complete(painted("a0"));
    assert!(began.elapsed() < PATIENCE);
    for index in 0..50 {
        assert_eq!(hear(&mut subscriptions[0]), Event::Preview { index, file: vec![0; 9] });
    }
    assert_eq!(hear(&mut subscriptions[0]), Event::Done(painted("a0")));
}

pub(super) fn whoever_waits_for_work_is_woken<Q: JobQueue>(make: impl Fn(QueueLimits) -> Q) {
    let queue = few(make);
    let worker = queue.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || {
        while let Pulled::Lease(lease) = worker.pull(Line::Paint, None) {
            tell.send(lease.job().client.clone()).unwrap();
        }
    });
    let _subscription = queue.submit(jobs("a", 1)).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "a");
    queue.close();
    assert!(told.recv_timeout(PATIENCE).is_err(), "nothing more is handed out");
    eventually("the worker ends", || worker.is_finished());
}

pub(super) fn what_is_only_shown_waits_for_no_step<Q: JobQueue>(make: impl Fn(QueueLimits) -> Q) {
    let queue = few(make);
    let painted_first = queue.submit(jobs("a", 2)).unwrap();
    let shown = queue.submit(vec![stored("a", 2)]).unwrap();
    assert!(queue.has_room("a", 1).is_err(), "they share the room");
    assert_eq!([painted_first[1].ahead(), shown[0].ahead()], [Some(1), Some(0)]);
    assert_eq!(queue.waiting(Line::Show, |job, _| job.index), [2]);
    assert_eq!(queue.waiting(Line::Paint, |job, _| job.index), [0, 1]);
    assert_eq!(pull_from(&queue, Line::Show).unwrap().job().index, 2);
    assert_eq!((queue.len(), shown[0].ahead()), (2, None));
    assert!(matches!(queue.pull(Line::Show, Some(Duration::ZERO)), Pulled::Nothing));
    assert_eq!(pull(&queue).unwrap().job().index, 0);
}

pub(super) fn what_cannot_be_shown_is_painted<Q: JobQueue>(make: impl Fn(QueueLimits) -> Q) {
    let queue = few(&make);
    let mut asked = queue.submit(vec![stored("a", 0), stored("a", 1)]).unwrap();
    let [first, second] = [(); 2].map(|()| pull_from(&queue, Line::Show).unwrap());
    let deadline = first.deadline();
    first.paint_instead();
    assert_eq!(asked[0].ahead(), Some(0), "it waits again");
    asked.extend(queue.submit(vec![stored("a", 0)]).unwrap());
    assert_eq!(queue.len(), 1, "who asks for it now joins");
    let lease = pull(&queue).unwrap();
    assert_eq!((lease.job().index, lease.deadline()), (0, deadline));
    asked.extend(queue.submit(vec![stored("a", 0)]).unwrap());
    assert!(queue.is_empty(), "and while it is painted");
    queue.close();
    assert!(matches!(queue.pull(Line::Show, None), Pulled::Closed));
    assert!(matches!(queue.pull(Line::Paint, Some(Duration::ZERO)), Pulled::Nothing), "one may come");
    let painter = queue.clone();
    let painter = std::thread::spawn(move || {
        lease.complete(painted("a0"));
        assert!(matches!(painter.pull(Line::Paint, None), Pulled::Closed));
    });
    for place in [0, 2, 3] {
        assert_eq!(hear(&mut asked[place]), Event::Done(painted("a0")));
    }
    second.complete(painted("a1"));
    painter.join().unwrap();
    assert_eq!(hear(&mut asked[1]), Event::Done(painted("a1")));

    // A worker that takes it at once.
    let queue = few(&make);
    let _asked = queue.submit(vec![stored("a", 0)]).unwrap();
    let lease = pull_from(&queue, Line::Show).unwrap();
    let worker = queue.clone();
    let worker = std::thread::spawn(move || {
        loop {
            if let Pulled::Lease(lease) = worker.pull(Line::Paint, Some(Duration::ZERO)) {
                return lease;
            }
        }
    });
    lease.paint_instead();
    let _lease = worker.join().unwrap();
    assert!(queue.has_all(&[stored("a", 0)]), "who asks for it now joins");

    // Nobody wants what would have been shown: nothing more will come.
    let queue = few(&make);
    let asked = queue.submit(vec![stored("a", 0)]).unwrap();
    queue.close();
    let painter = queue.clone();
    let painter = std::thread::spawn(move || painter.pull(Line::Paint, None));
    std::thread::sleep(Duration::from_millis(20)); // until it waits, mostly
    drop(asked);
    assert!(matches!(painter.join().unwrap(), Pulled::Closed));

    let queue = few(make);
    let mut asked = queue.submit(vec![stored("a", 0)]).unwrap();
    let lease = pull_from(&queue, Line::Show).unwrap();
    queue.stop();
    lease.paint_instead();
    assert_eq!(hear(&mut asked[0]), Event::Failed(Failure::Stopped));
    assert!(matches!(queue.pull(Line::Paint, None), Pulled::Closed));
}
