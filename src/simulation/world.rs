//! The loop: takes the next event and hands it to its receiver.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::agenda::{Agenda, AtWorker, Event, worker_index};
use super::gateway::{Gateway, model_id};
use super::ledger::{Ledger, Violation};
use super::outcome::Outcome;
use super::scenario::{Faults, Scenario};
use super::worker::{Painted, Sketch, Then, Worker};
use super::{below, exponential, uniform};
use crate::scheduler::core::Core;
use crate::scheduler::messages::{AttemptId, Cancel, Submit, SubmitAnswer};
use crate::scheduler::{ModelId, RequestId, Time};

/// Seconds within which all must have ended after the faults stopped. A picture that kills its worker is begun 16 times
/// at most, and each time it takes half a minute until the worker is lost and back.
const SETTLING: f64 = 1000.0;
/// A worker that hears nothing polls again after so many seconds.
const POLL_SECONDS: f64 = 1.0;
/// Events between two reports of progress.
const REPORT_EVERY: usize = 100_000;

pub(super) struct World<'a> {
    scenario: &'a Scenario,
    random: ChaCha8Rng,
    faults: Faults,
    agenda: Agenda,
    now: Time,
    core: Core<Sketch, Painted>,
    gateway: Gateway<'a>,
    workers: Vec<Worker>,
    models: Arc<[ModelId]>,
    /// Requests whose answers have not arrived.
    unanswered: HashMap<RequestId, Rc<Submit<Sketch>>>,
    ledger: Ledger,
    /// Work that stages begin; kept for its memory.
    then: Vec<Then>,
}

impl<'a> World<'a> {
    pub fn new(seed: u64, scenario: &'a Scenario) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut core = Core::new(scenario.config.clone());
        let models: Arc<[ModelId]> = (0..scenario.models).map(model_id).collect();
        for model in &*models {
            core.set_menu(model.clone(), (*scenario.menu).clone());
        }
        let options: Arc<[_]> = scenario.menu.iter().cloned().map(Arc::new).collect();
        let worker = |index| {
            let slower = 1.0 + scenario.machine.spread * uniform(&mut random);
            Worker::new(index, scenario, slower, options.clone(), &models)
        };
        let workers: Vec<Worker> = (0..scenario.workers as u32).map(worker).collect();
        let mut world = Self {
            scenario,
            random,
            faults: scenario.faults,
            agenda: Agenda::default(),
            now: Time::ZERO,
            core,
            gateway: Gateway::new(scenario),
            workers,
            models,
            unanswered: HashMap::new(),
            ledger: Ledger::new(scenario),
            then: vec![],
        };
        world.plan_first_events();
        world
    }

    fn plan_first_events(&mut self) {
        for worker in 0..self.workers.len() as u32 {
            let at = Time::ZERO.after(uniform(&mut self.random));
            self.agenda.at(at, Event::PollDue(worker));
        }
        let second = Time::ZERO.after(1.0);
        self.agenda.at(second, Event::Tick);
        if let Some(first) = self.gateway.next_at(second, &mut self.random) {
            self.agenda.at(first, Event::Request);
        }
        if self.faults.death_every_seconds > 0.0 {
            self.agenda.at(second, Event::Die);
        }
        if self.faults.stall_every_seconds > 0.0 {
            self.agenda.at(second, Event::Stall);
        }
    }

    pub fn run(mut self, progress: &mut dyn FnMut(usize)) -> Result<Outcome, Violation> {
        let mut until = Time::MAX;
        let mut events = 0;
        while let Some((now, event)) = self.agenda.next() {
            self.now = now;
            if self.gateway.is_over() {
                if until == Time::MAX {
                    self.faults = Faults::default();
                    until = now.after(SETTLING);
                    self.note_load(now);
                }
                if self.unanswered.is_empty() && self.core.is_idle() || now > until {
                    break;
                }
            }
            self.handle(event)?;
            self.after_event()?;
            events += 1;
            if events % REPORT_EVERY == 0 {
                progress(self.gateway.made());
            }
        }
        let outcome = &mut self.ledger.outcome;
        outcome.requests = self.gateway.made();
        outcome.seconds = self.now.since(Time::ZERO);
        self.ledger.close()
    }

    /// The last request was made: what the workers had to do until now.
    fn note_load(&mut self, now: Time) {
        let outcome = &mut self.ledger.outcome;
        outcome.loaded_seconds = now.since(Time::ZERO);
        outcome.available_seconds = outcome.loaded_seconds * self.workers.len() as f64;
        outcome.busy_seconds = self.workers.iter().map(|worker| worker.busy_seconds).sum();
    }

    /// What the last event led to is handed on.
    fn after_event(&mut self) -> Result<(), Violation> {
        for notice in self.core.take_notices() {
            self.ledger.tell(self.now, &notice)?;
        }
        for worker in self.core.take_woken() {
            if let Some(index) = worker_index(&worker) {
                self.poll(index);
            }
        }
        Ok(())
    }

    /// Each second: time passes for the scheduler, bounds are checked, the price is noted.
    fn tick(&mut self) -> Result<(), Violation> {
        self.core.tick(self.now);
        self.agenda.at(self.now.after(1.0), Event::Tick);
        // Who has not polled for a second does so within the next, each at a time of its own.
        for worker in 0..self.workers.len() as u32 {
            if self.now.since(self.workers[worker as usize].polled_at) >= POLL_SECONDS {
                let due = self.now.after(POLL_SECONDS * uniform(&mut self.random));
                self.agenda.at(due, Event::PollDue(worker));
            }
        }
        let load = self.core.load();
        let limits = self.scenario.config.limits;
        let outcome = &mut self.ledger.outcome;
        outcome.most_tasks = outcome.most_tasks.max(load.tasks);
        let price = self.models.first().and_then(|model| self.core.price(model)).unwrap_or(0.0);
        if !self.gateway.is_over() {
            outcome.price_sum += price;
            outcome.price_highest = outcome.price_highest.max(price);
        }
        outcome.most_paused = outcome.most_paused.max(load.paused);
        let held = self.workers.iter().map(Worker::held).max().unwrap_or(0);
        let bounds = [
            ("pictures", load.pictures, limits.pictures),
            ("tasks", load.tasks, limits.pictures),
            ("buckets", load.buckets, load.tasks),
            ("clients", load.clients, load.tasks),
            // Each takes a row at least; ends are reported until they are acknowledged.
            ("tasks at a worker", held, 16 * self.scenario.rows as usize + 64),
        ];
        match bounds.into_iter().find(|(_, found, most)| found > most) {
            Some((what, found, most)) => Err(Violation::Unbounded { what, found, most }),
            None => Ok(()),
        }
    }

    fn send(&mut self, event: Event) {
        self.agenda.send(self.now, event, &self.faults, &mut self.random);
    }

    /// A worker polls, if it lives and does not wait for an answer. It waits for a second at most.
    fn poll(&mut self, worker: u32) {
        let now = self.now;
        let at = &mut self.workers[worker as usize];
        let waits = at.polls && now.since(at.polled_at) < POLL_SECONDS;
        if at.alive && at.stalled_until <= now && !waits {
            (at.polls, at.polled_at) = (true, now);
            let poll = at.poll();
            self.send(Event::Poll(worker, Box::new(poll)));
        }
    }

    /// Hands an event on to a process that lives. What is for one that stands still comes later.
    fn reaches(&mut self, worker: u32, incarnation: u32, event: Event) -> Option<Event> {
        let at = &self.workers[worker as usize];
        if at.stalled_until > self.now && at.alive {
            self.agenda.at(at.stalled_until, event);
            return None;
        }
        (at.alive && at.incarnation() == incarnation).then_some(event)
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Request | Event::Resend(_) | Event::Answered(..) => self.at_gateway(event),
            Event::Submit(_) | Event::Cancel(_) | Event::Poll(..) | Event::End(..) => {
                return self.at_core(event);
            }
            Event::Die | Event::Revive(_) | Event::Stall => self.fault(&event),
            Event::Tick => return self.tick(),
            Event::PollDue(worker) => self.poll(worker),
            Event::Worker(worker, incarnation, _) | Event::Done(worker, incarnation, _) => {
                if let Some(event) = self.reaches(worker, incarnation, event) {
                    self.at_worker(worker, event);
                }
            }
        }
        Ok(())
    }

    fn at_gateway(&mut self, event: Event) {
        match event {
            Event::Request => {
                let submit = Rc::new(self.gateway.ask(&mut self.random));
                self.unanswered.insert(submit.request.clone(), submit.clone());
                self.submit(submit);
                if let Some(next) = self.gateway.next_at(self.now, &mut self.random) {
                    self.agenda.at(next, Event::Request);
                }
            }
            Event::Resend(request) => {
                if let Some(submit) = self.unanswered.get(&*request).cloned() {
                    self.submit(submit);
                }
            }
            Event::Answered(request, accepted) => {
                let Some(submit) = self.unanswered.remove(&*request) else { return };
                if accepted && uniform(&mut self.random) < self.scenario.faults.cancelled {
                    // A gateway tells of it until it is heard; here it is heard.
                    let deadline = submit.tasks.first().map_or(0.0, |task| task.terms.deadline_seconds);
                    let seconds = uniform(&mut self.random) * deadline;
                    self.agenda
                        .at(self.now.after(seconds), Event::Cancel(Box::new(Cancel { request: *request })));
                }
            }
            _ => {}
        }
    }

    /// Sends a request, and again after two seconds without an answer.
    fn submit(&mut self, submit: Rc<Submit<Sketch>>) {
        if self.faults != Faults::default() || self.scenario.faults != Faults::default() {
            self.agenda.at(self.now.after(2.0), Event::Resend(Box::new(submit.request.clone())));
        }
        self.send(Event::Submit(submit));
    }

    fn at_core(&mut self, event: Event) -> Result<(), Violation> {
        self.ledger.outcome.messages += 1;
        match event {
            Event::Submit(submit) => {
                let known = self.core.knows(&submit.request);
                let answer = self.core.submit(self.now, (*submit).clone());
                let outcome = &mut self.ledger.outcome;
                match answer {
                    SubmitAnswer::Accepted { .. } if !known => self.ledger.accept(self.now, &submit),
                    SubmitAnswer::Accepted { .. } => {}
                    SubmitAnswer::Later { .. } => outcome.later += 1,
                    SubmitAnswer::Never { .. } => outcome.never += 1,
                }
                let accepted = self.core.knows(&submit.request);
                self.send(Event::Answered(Box::new(submit.request.clone()), accepted));
            }
            Event::Cancel(cancel) => {
                self.core.cancel(self.now, &cancel);
                // What ended before it was cancelled is told.
                self.after_event()?;
                self.ledger.cancel(&cancel.request);
            }
            Event::Poll(worker, poll) => {
                let incarnation = poll.incarnation as u32;
                let answer = self.core.poll(self.now, *poll);
                self.send(Event::Worker(worker, incarnation, Box::new(AtWorker::PollAnswered(answer))));
            }
            Event::End(worker, end) => {
                let id = AttemptId { task: end.task.clone(), attempt: end.attempt };
                self.core.end(self.now, *end);
                let incarnation = self.workers[worker as usize].incarnation();
                self.send(Event::Worker(worker, incarnation, Box::new(AtWorker::EndAnswered(id))));
            }
            _ => {}
        }
        Ok(())
    }

    fn at_worker(&mut self, worker: u32, event: Event) {
        let at = &mut self.workers[worker as usize];
        match event {
            Event::Done(_, _, stage) => at.done(stage),
            Event::Worker(_, _, message) => match *message {
                AtWorker::PollAnswered(answer) => {
                    at.polls = false;
                    at.answered(self.now, answer);
                }
                AtWorker::EndAnswered(id) => return at.acknowledge(&id),
            },
            _ => return,
        }
        self.drive(worker);
    }

    /// What a worker's driver does after each change: it tells of ends, gives work to the stages, and polls if there is
    /// news.
    fn drive(&mut self, worker: u32) {
        for end in self.workers[worker as usize].take_ends() {
            self.send(Event::End(worker, Box::new(end)));
        }
        let mut then = std::mem::take(&mut self.then);
        let at = &mut self.workers[worker as usize];
        let (lives, incarnation, news) =
            (at.start_stages(&mut then).is_some(), at.incarnation(), at.has_news());
        for (stage, seconds) in then.drain(..) {
            self.agenda.at(self.now.after(seconds), Event::Done(worker, incarnation, stage));
        }
        self.then = then;
        if !lives {
            self.kill(worker);
        } else if news {
            self.poll(worker);
        }
    }

    fn kill(&mut self, worker: u32) {
        let at = &mut self.workers[worker as usize];
        if at.alive {
            at.die();
            let seconds = 0.5 + 20.0 * uniform(&mut self.random);
            self.agenda.at(self.now.after(seconds), Event::Revive(worker));
        }
    }

    /// Something goes wrong at a worker, and goes wrong again later.
    fn fault(&mut self, event: &Event) {
        let worker = below(&mut self.random, self.workers.len()) as u32;
        match event {
            Event::Die if self.faults.death_every_seconds > 0.0 => {
                self.kill(worker);
                let next = exponential(&mut self.random, self.faults.death_every_seconds);
                self.agenda.at(self.now.after(next), Event::Die);
            }
            Event::Stall if self.faults.stall_every_seconds > 0.0 => {
                self.workers[worker as usize].stalled_until =
                    self.now.after(20.0 * uniform(&mut self.random));
                let next = exponential(&mut self.random, self.faults.stall_every_seconds);
                self.agenda.at(self.now.after(next), Event::Stall);
            }
            Event::Revive(worker) => {
                self.workers[*worker as usize].revive();
                self.poll(*worker);
            }
            _ => {}
        }
    }
}
