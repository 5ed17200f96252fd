//! How many messages a second one core of the scheduler takes, with 100, 10,000 and 100,000 tasks waiting.
//!
//! `cargo bench --bench scheduler -- [SECONDS]` keeps so many tasks waiting for 1,000 workers of eight rows each, for
//! SECONDS (3) per row, and prints submits, polls and ends per second of wall time. A finished task is replaced by a new
//! one. Polls report the four tasks that a worker holds, one of which has ended. The workers' clock runs as fast as their
//! messages come: a worker polls every half second.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::time::Instant;

use pentimento::scheduler::core::{Config, Core, Limits};
use pentimento::scheduler::messages::{
    Change, Held, MenuChoice, NewTask, Outcome, PictureId, Place, Poll, Report, Shape, StepTimes, Submit,
    SubmitAnswer, TaskEnd, Terms,
};
use pentimento::scheduler::{TaskId, Time};
use pentimento::simulation::menu;

const WORKERS: usize = 1000;
const CLIENTS: usize = 100;
const SHAPE: Shape = Shape { width: 64, height: 64 };
/// Seconds between two polls of a worker.
const EVERY: f64 = 0.5;

type Scheduler = Core<(), ()>;

fn main() {
    let seconds = std::env::args().skip(1).find_map(|a| a.parse::<f64>().ok()).unwrap_or(3.0);
    println!("{WORKERS} workers, {CLIENTS} clients\n");
    println!("| waiting | messages per second | submits | polls | ends | µs per message | buckets |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for waiting in [100, 10_000, 100_000] {
        measure(waiting, seconds);
    }
}

/// What a worker holds, as it reports it.
struct Worker {
    held: VecDeque<Held>,
    sequence: u64,
}

fn measure(waiting: usize, seconds: f64) {
    let limits = Limits { pictures: 200_000, pictures_per_client: 200_000, ..Limits::default() };
    let mut core: Scheduler = Core::new(Config { limits, ..Config::default() });
    core.set_menu("m".into(), menu());
    let mut workers: Vec<Worker> =
        (0..WORKERS).map(|_| Worker { held: VecDeque::new(), sequence: 0 }).collect();
    let (mut now, mut asked) = (Time::from_nanos(1_000_000_000), 0);
    for (index, worker) in workers.iter_mut().enumerate() {
        poll(&mut core, worker, index, now);
    }
    // A worker of eight rows holds four guided pictures, and up to four that are paused.
    (0..waiting + 4 * WORKERS).for_each(|_| submit(&mut core, now, &mut asked));
    for (index, worker) in workers.iter_mut().enumerate() {
        poll(&mut core, worker, index, now);
        poll(&mut core, worker, index, now);
    }
    let running = core.load().running;
    (core.load().tasks - running..waiting).for_each(|_| submit(&mut core, now, &mut asked));
    let (mut submits, mut polls, mut ends) = (0, 0, 0);
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < seconds {
        for (index, worker) in workers.iter_mut().enumerate() {
            now = now.after(EVERY / WORKERS as f64);
            if let Some(held) = worker.held.pop_front() {
                let outcome = Outcome::Done { option: held.option, machine_seconds: Some(0.1), picture: () };
                core.end(now, TaskEnd { task: held.task, attempt: held.attempt, outcome });
                submit(&mut core, now, &mut asked);
                (submits, ends) = (submits + 1, ends + 1);
            }
            poll(&mut core, worker, index, now);
            polls += 1;
        }
        core.take_notices();
        core.take_woken();
    }
    let (elapsed, messages) = (started.elapsed().as_secs_f64(), f64::from(submits + polls + ends));
    println!(
        "| {} | {:.0} | {submits} | {polls} | {ends} | {:.1} | {} |",
        core.load().tasks - core.load().running,
        messages / elapsed,
        1e6 * elapsed / messages,
        core.load().buckets
    );
}

fn submit(core: &mut Scheduler, now: Time, asked: &mut u64) {
    *asked += 1;
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&asked.to_le_bytes());
    let (tier, floor) = [("low", 0.9), ("auto", 0.95), ("high", 0.99)][(*asked % 3) as usize];
    let task = NewTask {
        spec: (),
        model: "m".into(),
        shape: SHAPE,
        picture: PictureId { scope: "s".to_owned(), hash },
        // So long that 100,000 tasks are no reason to refuse one.
        terms: Terms {
            tier: tier.to_owned(),
            floor,
            best: 1.0,
            deadline_seconds: 1000.0 + (*asked % 1000) as f64,
            firm: false,
        },
        menu: MenuChoice::Whole,
        start: None,
        previews: 0,
    };
    let client = format!("client-{}", *asked as usize % CLIENTS);
    let submit = Submit { request: format!("r{asked}").into(), client: client.into(), tasks: vec![task] };
    let answer = core.submit(now, submit);
    assert!(matches!(answer, SubmitAnswer::Accepted { .. }), "{answer:?}");
}

fn poll(core: &mut Scheduler, worker: &mut Worker, index: usize, now: Time) {
    worker.sequence += 1;
    for held in &mut worker.held {
        if let Place::Stepping { noise_level } = &mut held.place {
            *noise_level *= 0.8;
        }
    }
    let times = StepTimes {
        model: "m".into(),
        denoiser: String::new(),
        shape: SHAPE,
        rows: 8,
        steps: 4,
        seconds: 0.01,
    };
    let report = Report {
        rows: 8,
        loadable: vec!["m".into()],
        resident: vec!["m".into()],
        held: worker.held.iter().cloned().collect(),
        step_times: vec![times],
        ..Report::default()
    };
    let name = format!("worker-{index:04}");
    let answer =
        core.poll(now, Poll { worker: name.into(), incarnation: 1, sequence: worker.sequence, report });
    for assignment in answer.assignments {
        let task: TaskId = assignment.task;
        worker.held.push_back(Held {
            task,
            attempt: assignment.attempt,
            option: assignment.option,
            place: Place::Stepping { noise_level: 1.0 },
            rank: assignment.rank,
            paused: assignment.paused,
            previews: assignment.previews,
            checkpoint: None,
        });
    }
    for change in answer.changes {
        let (Change::Plan { task, attempt, .. }
        | Change::Rank { task, attempt, .. }
        | Change::Pause { task, attempt, .. }
        | Change::Cancel { task, attempt }) = &change
        else {
            continue;
        };
        let place = worker.held.iter().position(|held| held.task == *task && held.attempt == *attempt);
        let Some(place) = place else { continue };
        match change {
            Change::Plan { option, .. } => worker.held[place].option = option,
            Change::Rank { rank, .. } => worker.held[place].rank = rank,
            Change::Pause { paused, .. } => worker.held[place].paused = paused,
            _ => drop(worker.held.remove(place)),
        }
    }
}
