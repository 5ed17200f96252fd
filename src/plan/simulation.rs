//! One machine under load, in simulated time: what policies and admission promise, checked on whole runs.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{
    AdaptiveConfig, Admission, Arrivals, Expected, FixedConfig, Frontier, Load, PlanPolicy, PlanPolicyConfig,
    Verdict, Work,
};

/// A step takes so long, and so much longer with each picture in its batch, seconds.
const STEP: f64 = 0.0005;
const PICTURE: f64 = 0.002;
/// Pictures of a batch at most.
const PLACES: usize = 8;
const FLOOR: usize = 10;
const BEST: usize = 50;
/// Time from arrival to answer, seconds: 2.4 times what 50 steps take alone.
const OBJECTIVE: f64 = 0.3;
/// Machine seconds of a step in a full batch.
const COST: f64 = (STEP + PLACES as f64 * PICTURE) / PLACES as f64;

/// Somebody who wants a picture.
#[derive(Debug, Clone, Copy)]
struct Client {
    id: u64,
    at: f64,
    /// When he was told to come again.
    told: Option<f64>,
}

#[derive(Debug, Clone)]
struct Picture {
    deadline: f64,
    done: f64,
    taken: usize,
    /// Steps still to be taken, once it is begun.
    left: usize,
    /// All plans that it had.
    plans: Vec<usize>,
    end: Option<f64>,
}

impl Picture {
    /// As plans see it among `open` pictures.
    fn work(&self, now: f64, open: usize, frontier: &Arc<Frontier>, replans: bool) -> Work {
        let planned = self.plans.last().copied();
        Work {
            cost: COST,
            latency: STEP + (open + 1).min(PLACES) as f64 * PICTURE,
            overhead: 0.0,
            aside: 0.0,
            best: BEST,
            floor: FLOOR,
            done: self.done,
            skipped: 0.0,
            taken: self.taken,
            slack: self.deadline - now,
            planned,
            replannable: replans,
            frontier: frontier.clone(),
        }
    }

    fn is_over(&self) -> bool {
        self.done >= 1.0 - 1e-9
    }

    fn is_late(&self) -> bool {
        self.end.is_none_or(|end| end > self.deadline)
    }
}

/// What became of everybody.
#[derive(Debug, Default)]
struct Outcome {
    pictures: Vec<Picture>,
    refused: usize,
    /// Of those who came again when they were told to: how many were let in, and how many not.
    came_back: (usize, usize),
}

impl Outcome {
    fn late(&self) -> usize {
        self.pictures.iter().filter(|picture| picture.is_late()).count()
    }

    /// Quality delivered in time, per picture asked for.
    fn quality(&self) -> f64 {
        let frontier = Frontier::flat(BEST);
        let in_time = self.pictures.iter().filter(|picture| !picture.is_late());
        let quality: f64 = in_time.map(|picture| frontier.quality(picture.taken, 0.0)).sum();
        quality / (self.pictures.len() + self.refused).max(1) as f64
    }
}

/// Paints for all who come. With `patient`, those refused come again when they are told to, once.
fn run(clients: &[Client], policy: &dyn PlanPolicy, admits: bool, patient: bool) -> Outcome {
    let frontier = Arc::new(Frontier::flat(BEST));
    let mut clients: Vec<Client> = clients.to_vec();
    let (mut arrivals, mut admission, mut level) = (Arrivals::default(), Admission::default(), None);
    let (mut outcome, mut open, mut now) = (Outcome::default(), Vec::<Picture>::new(), 0.0f64);
    clients.sort_by(|a, b| b.at.total_cmp(&a.at));
    while !clients.is_empty() || !open.is_empty() {
        if open.is_empty() {
            now = now.max(clients.last().map_or(now, |client| client.at));
        }
        while let Some(client) = clients.pop_if(|client| client.at <= now) {
            let (picture, at) = (fresh(client.at), Duration::from_secs_f64(client.at.max(0.0)));
            arrivals.arrive(at, 1);
            let work = |p: &Picture| p.work(now, open.len(), &frontier, policy.replans());
            let (works, new): (Vec<Work>, Work) = (open.iter().map(work).collect(), work(&picture));
            let now = Duration::from_secs_f64(now);
            let verdict = if admits { admission.ask(now, client.id, &new, &works) } else { Verdict::Admit };
            let is_in = verdict == Verdict::Admit;
            if client.told.is_some() {
                outcome.came_back.0 += usize::from(is_in);
                outcome.came_back.1 += usize::from(!is_in);
            }
            match verdict {
                Verdict::Admit => open.push(picture),
                Verdict::Later(wait) if patient && client.told.is_none() => {
                    let at = (now + wait).as_secs_f64();
                    let place = clients.partition_point(|other| other.at > at);
                    clients.insert(place, Client { at, told: Some(at), ..client });
                }
                _ => outcome.refused += 1,
            }
        }
        let typical = fresh(0.0).work(0.0, open.len(), &frontier, policy.replans());
        let expected = Expected { rate: arrivals.rate(Duration::from_secs_f64(now)), typical };
        let flying = open.iter().filter(|picture| !picture.plans.is_empty()).count();
        let works: Vec<Work> =
            open.iter().map(|p| p.work(now, flying.max(1) - 1, &frontier, policy.replans())).collect();
        let plans = policy.plan(&Load { works: &works, expected: Some(expected), level });
        level = plans.level;
        let lefts: Vec<usize> = works.iter().zip(&plans.steps).map(|(work, plan)| work.left(*plan)).collect();
        now += step(&mut open, &plans.steps, &lefts, policy.replans());
        open.iter_mut().filter(|picture| picture.is_over()).for_each(|picture| picture.end = Some(now));
        outcome.pictures.extend(open.extract_if(.., |picture| picture.is_over()));
    }
    outcome
}

fn fresh(at: f64) -> Picture {
    Picture { deadline: at + OBJECTIVE, done: 0.0, taken: 0, left: 0, plans: vec![], end: None }
}

/// The most urgent take a step, with the plans that they have now, of which so many steps are left. How long it takes.
fn step(open: &mut [Picture], plans: &[usize], lefts: &[usize], replans: bool) -> f64 {
    let mut order: BinaryHeap<(std::cmp::Reverse<u64>, usize)> = open
        .iter()
        .enumerate()
        // Whoever is begun keeps his place; then by deadline, in microseconds.
        .map(|(i, p)| {
            let begun = if p.plans.is_empty() { 1 << 40 } else { 0 };
            (std::cmp::Reverse(begun + (p.deadline * 1e6) as u64), i)
        })
        .collect();
    let mut pictures = 0;
    while let Some((_, i)) = order.pop().filter(|_| pictures < PLACES) {
        let picture = &mut open[i];
        if picture.plans.is_empty() || replans && picture.plans.last() != Some(&plans[i]) {
            picture.plans.push(plans[i]);
            picture.left = lefts[i];
        }
        picture.done += (1.0 - picture.done) / picture.left.max(1) as f64;
        picture.left = picture.left.saturating_sub(1);
        picture.taken += 1;
        pictures += 1;
    }
    STEP + pictures as f64 * PICTURE
}

/// Poisson arrivals, at each rate for its seconds.
fn trace(seed: u64, phases: &[(f64, f64)]) -> Vec<Client> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut clients, mut start) = (Vec::new(), 0.0);
    for (rate, seconds) in phases {
        let mut at = start;
        loop {
            let uniform = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            at -= (1.0 - uniform).ln() / rate;
            if at >= start + seconds {
                break;
            }
            clients.push(Client { id: clients.len() as u64, at, told: None });
        }
        start += seconds;
    }
    clients
}

/// Pictures per second that the machine paints with so many steps.
fn capacity(steps: usize) -> f64 {
    1.0 / (steps as f64 * COST)
}

/// Mostly calm, with bursts of one and a half seconds.
fn bursty(seed: u64, calm: f64, burst: f64) -> Vec<Client> {
    trace(seed, &[(calm, 4.0), (burst, 1.5), (calm, 4.0), (burst, 1.5), (calm, 4.0)])
}

fn adaptive(replan: bool) -> Box<dyn PlanPolicy> {
    PlanPolicyConfig::Adaptive(AdaptiveConfig { replan }).build().unwrap()
}

fn per_model() -> Box<dyn PlanPolicy> {
    PlanPolicyConfig::PerModel {}.build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_comes_nobody_gets_fewer_steps_than_the_floor_or_more_than_the_best(
        seed in any::<u64>(),
        rates in prop::collection::vec((1.0..400.0f64, 0.1..0.8f64), 1..4),
        which in 0..4usize,
        admits in any::<bool>(),
    ) {
        let policy = match which {
            0 => adaptive(true),
            1 => adaptive(false),
            2 => per_model(),
            _ => PlanPolicyConfig::Fixed(FixedConfig { steps: Some(20) }).build().unwrap(),
        };
        let clients = trace(seed, &rates);
        let outcome = run(&clients, policy.as_ref(), admits, false);
        prop_assert_eq!(outcome.pictures.len() + outcome.refused, clients.len());
        for picture in &outcome.pictures {
            prop_assert!(picture.plans.iter().all(|plan| (FLOOR..=BEST).contains(plan)), "{:?}", picture);
            prop_assert!((FLOOR..=BEST).contains(&picture.taken), "{:?}", picture);
            prop_assert!(policy.replans() || picture.plans.len() == 1);
        }
    }

    /// At a fifth of what the machine can do with full plans, no picture is other than without a planner.
    #[test]
    fn with_little_load_everybody_gets_the_best_and_nobody_is_replanned(seed in any::<u64>()) {
        // One after the other: what chance brings together is load.
        let mut clients = trace(seed, &[(0.2 * capacity(BEST), 5.0)]);
        let mut before = -1.0;
        clients.iter_mut().for_each(|client| {
            client.at = client.at.max(before + 0.2);
            before = client.at;
        });
        let outcome = run(&clients, adaptive(true).as_ref(), true, false);
        prop_assert_eq!((outcome.refused, outcome.late()), (0, 0));
        prop_assert!(outcome.pictures.iter().all(|picture| picture.plans == [BEST]));
    }
}

/// In all seeds together: a single run may go either way.
fn together(policy: &dyn PlanPolicy, admits: bool, clients: impl Fn(u64) -> Vec<Client>) -> (f64, f64) {
    let outcomes: Vec<Outcome> = (0..6).map(|seed| run(&clients(seed), policy, admits, false)).collect();
    let quality = outcomes.iter().map(Outcome::quality).sum::<f64>() / 6.0;
    (outcomes.iter().map(|o| (o.late() + o.refused) as f64).sum(), quality)
}

#[test]
fn replanning_saves_deadlines_in_a_burst() {
    let burst = |seed| bursty(seed, 0.5 * capacity(BEST), 3.5 * capacity(BEST));
    let ((with, _), (without, _)) =
        (together(adaptive(true).as_ref(), false, burst), together(adaptive(false).as_ref(), false, burst));
    println!("late: {with} with replanning, {without} without");
    assert!(2.0 * with <= without, "{with} late with, {without} without");
}

#[test]
fn adaptive_is_worth_more_than_the_same_steps_for_everybody() {
    let burst = |seed| bursty(seed, 0.6 * capacity(BEST), 2.5 * capacity(BEST));
    let (ours, quality) = together(adaptive(true).as_ref(), true, burst);
    let (theirs, other) = together(per_model().as_ref(), true, burst);
    println!("violations and quality: {ours} {quality:.3}, per-model {theirs} {other:.3}");
    assert!(ours <= theirs && quality > other, "{ours} {quality} against {theirs} {other}");
}

#[test]
fn in_tenfold_overload_who_is_admitted_is_in_time_and_who_comes_again_is_admitted() {
    let clients = trace(3, &[(10.0 * capacity(FLOOR), 6.0)]);
    let outcome = run(&clients, adaptive(true).as_ref(), true, true);
    let (late, admitted) = (outcome.late(), outcome.pictures.len());
    assert!(admitted as f64 > 5.0 * capacity(FLOOR), "{admitted} of {}", clients.len());
    assert!(late * 100 <= admitted, "{late} of {admitted} are late");
    let (kept, broken) = outcome.came_back;
    println!("{admitted} admitted, {late} late; {kept} promises kept, {broken} broken");
    assert!(kept > 100 && kept >= 9 * broken, "{kept} promises kept, {broken} broken");
}
