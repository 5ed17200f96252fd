//! The loop: takes the next event and hands it to whom it is for.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::engine::{Engine, FINISHING, Painted, Sketch, Then};
use super::gateway::{Asked, ask, model_id, request_id};
use super::ledger::{Ledger, Violation};
use super::network::{Agenda, Event, worker_index};
use super::{Faults, Outcome, Scenario, below, exponential, menu, uniform};
use crate::scheduler::Time;
use crate::scheduler::core::Core;
use crate::scheduler::messages::{AttemptId, Cancel, SubmitAnswer};

/// Seconds within which all must have ended after the faults stopped. A picture that kills its worker is begun 16 times
/// at most, and each time it takes half a minute until the worker is lost and back.
const SETTLING: f64 = 1000.0;

pub(super) struct World<'a> {
    scenario: &'a Scenario,
    random: ChaCha8Rng,
    faults: Faults,
    agenda: Agenda,
    now: Time,
    core: Core<Sketch, Painted>,
    engines: Vec<Engine>,
    /// Requests that are not settled.
    asked: BTreeMap<usize, Asked>,
    requests: usize,
    /// Noise level and loss of every checkpoint.
    stored: BTreeMap<String, (f64, f64)>,
    ledger: Ledger,
}

impl<'a> World<'a> {
    pub fn new(seed: u64, scenario: &'a Scenario) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut core = Core::new(scenario.config.clone());
        let models: Vec<_> = (0..scenario.models).map(model_id).collect();
        for model in &models {
            core.set_menu(model.clone(), menu());
        }
        let shared = Arc::new(menu());
        let engine = |index| {
            let speed = 1.0 + 0.2 * uniform(&mut random);
            Engine::new(index, scenario.rows, speed, shared.clone(), models.clone())
        };
        let engines: Vec<Engine> = (0..scenario.workers).map(engine).collect();
        let mut agenda = Agenda::default();
        for worker in 0..scenario.workers {
            let at = Time::ZERO.after(uniform(&mut random));
            agenda.at(at, Event::PollDue(worker, 1, 0));
        }
        agenda.at(Time::ZERO.after(1.0), Event::Request(0));
        agenda.at(Time::ZERO.after(1.0), Event::Tick);
        if scenario.faults.death_every_seconds > 0.0 {
            agenda.at(Time::ZERO.after(2.0), Event::Die);
        }
        if scenario.faults.stall_every_seconds > 0.0 {
            agenda.at(Time::ZERO.after(2.0), Event::Stall);
        }
        Self {
            scenario,
            random,
            faults: scenario.faults,
            agenda,
            now: Time::ZERO,
            core,
            engines,
            asked: BTreeMap::new(),
            requests: 0,
            stored: BTreeMap::new(),
            ledger: Ledger::new(),
        }
    }

    pub fn run(mut self) -> Result<Outcome, Violation> {
        let mut until = Time::MAX;
        while let Some((now, event)) = self.agenda.next() {
            self.now = now;
            let over = self.requests == self.scenario.requests;
            if over && until == Time::MAX {
                self.faults = Faults::default();
                until = now.after(SETTLING);
            }
            if over && self.asked.is_empty() && self.core.is_idle() || now > until {
                break;
            }
            self.handle(event)?;
            self.after_event()?;
        }
        self.ledger.outcome.seconds = self.now.since(Time::ZERO);
        self.ledger.close()
    }

    /// What the last event led to is handed on, and the bounds are checked.
    fn after_event(&mut self) -> Result<(), Violation> {
        for notice in self.core.take_notices() {
            self.ledger.tell(self.now, &notice)?;
        }
        for worker in self.core.take_woken() {
            if let Some(index) = worker_index(&worker) {
                self.plan_poll(index, 0.0);
            }
        }
        Ok(())
    }

    fn check_bounds(&mut self) -> Result<(), Violation> {
        let load = self.core.load();
        let limits = self.scenario.config.limits;
        let outcome = &mut self.ledger.outcome;
        outcome.most_tasks = outcome.most_tasks.max(load.tasks);
        let held = self.engines.iter().map(Engine::held).max().unwrap_or(0);
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

    fn send(&mut self, event: &Event) {
        self.agenda.send(self.now, event, &self.faults, &mut self.random);
    }

    fn plan_poll(&mut self, worker: usize, seconds: f64) {
        let engine = &mut self.engines[worker];
        if engine.alive {
            engine.planned_poll += 1;
            let due = Event::PollDue(worker, engine.incarnation, engine.planned_poll);
            self.agenda.at(self.now.after(seconds), due);
        }
    }

    /// Whether an event is for a process that lives. What is for one that stands still comes later.
    fn reaches(&mut self, worker: usize, incarnation: u64, event: &Event) -> bool {
        let engine = &self.engines[worker];
        if engine.stalled_until > self.now && engine.alive {
            self.agenda.at(engine.stalled_until, event.clone());
            return false;
        }
        engine.alive && engine.incarnation == incarnation
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Request(_) | Event::Resend(_) | Event::Answered(..) => self.at_gateway(event),
            Event::Submit(..) | Event::Cancel(_) | Event::Poll(..) | Event::End(..) => {
                return self.at_core(event);
            }
            Event::Die | Event::Revive(_) | Event::Stall => self.fault(&event),
            Event::Tick => {
                self.core.tick(self.now);
                self.agenda.at(self.now.after(1.0), Event::Tick);
                return self.check_bounds();
            }
            Event::PollAnswered(worker, incarnation, _)
            | Event::EndAnswered(worker, incarnation, _)
            | Event::PollDue(worker, incarnation, _)
            | Event::Stepped(worker, incarnation)
            | Event::Finished(worker, incarnation, _) => {
                if self.reaches(worker, incarnation, &event) {
                    self.at_worker(worker, event);
                }
            }
        }
        Ok(())
    }

    fn at_gateway(&mut self, event: Event) {
        match event {
            Event::Request(request) if request < self.scenario.requests => {
                let asked = ask(request, self.scenario, &mut self.random);
                self.asked.insert(request, asked);
                self.requests = request + 1;
                self.agenda.at(self.now, Event::Resend(request));
                let next = exponential(&mut self.random, 1.0 / self.scenario.arrivals_per_second);
                self.agenda.at(self.now.after(next), Event::Request(request + 1));
            }
            Event::Resend(request) => {
                if let Some(asked) = self.asked.get(&request).filter(|asked| !asked.answered) {
                    let submit = Event::Submit(request, asked.submit.clone());
                    self.send(&submit);
                    self.agenda.at(self.now.after(2.0), Event::Resend(request));
                }
            }
            Event::Answered(request, accepted) => {
                let Some(asked) = self.asked.remove(&request) else { return };
                if accepted && asked.leaves {
                    // A gateway tells of it until it is heard; here it is heard.
                    let seconds = uniform(&mut self.random) * self.scenario.deadline_seconds;
                    let cancel = Cancel { request: request_id(request) };
                    self.agenda.at(self.now.after(seconds), Event::Cancel(cancel));
                }
            }
            _ => {}
        }
    }

    fn at_core(&mut self, event: Event) -> Result<(), Violation> {
        self.ledger.outcome.messages += 1;
        match event {
            Event::Submit(request, submit) => {
                let known = self.core.knows(&submit.request);
                let answer = self.core.submit(self.now, submit.clone());
                let outcome = &mut self.ledger.outcome;
                match answer {
                    SubmitAnswer::Accepted { .. } if !known => self.ledger.accept(self.now, &submit),
                    SubmitAnswer::Accepted { .. } => {}
                    SubmitAnswer::Later { .. } => outcome.later += 1,
                    SubmitAnswer::Never { .. } => outcome.never += 1,
                }
                let accepted = self.core.knows(&submit.request);
                self.send(&Event::Answered(request, accepted));
            }
            Event::Cancel(cancel) => {
                self.core.cancel(self.now, &cancel);
                // What ended before it was cancelled is told.
                self.after_event()?;
                self.ledger.cancel(&cancel.request);
            }
            Event::Poll(worker, poll) => {
                let incarnation = poll.incarnation;
                let answer = self.core.poll(self.now, poll);
                self.send(&Event::PollAnswered(worker, incarnation, Box::new(answer)));
            }
            Event::End(worker, end) => {
                let id = AttemptId { task: end.task.clone(), attempt: end.attempt };
                self.core.end(self.now, end);
                let incarnation = self.engines[worker].incarnation;
                self.send(&Event::EndAnswered(worker, incarnation, id));
            }
            _ => {}
        }
        Ok(())
    }

    fn at_worker(&mut self, worker: usize, event: Event) {
        match event {
            Event::PollDue(_, _, number) if number == self.engines[worker].planned_poll => {
                let poll = self.engines[worker].poll();
                self.send(&Event::Poll(worker, poll));
                self.plan_poll(worker, 1.0);
            }
            Event::PollAnswered(_, _, answer) => {
                self.engines[worker].apply(*answer, &self.stored);
                let paused = self.engines[worker].paused();
                self.ledger.outcome.paused = self.ledger.outcome.paused.max(paused);
                self.step(worker);
            }
            Event::EndAnswered(_, _, id) => self.engines[worker].acknowledge(&id),
            Event::Stepped(..) => {
                let then = self.engines[worker].stepped();
                let mut stored = std::mem::take(&mut self.engines[worker].stored);
                self.stored.append(&mut stored);
                for then in then {
                    self.then(worker, then);
                }
                self.step(worker);
            }
            Event::Finished(_, _, id) => {
                if let Some(then) = self.engines[worker].finished(id) {
                    self.then(worker, then);
                }
            }
            _ => {}
        }
    }

    fn step(&mut self, worker: usize) {
        if let Some(then) = self.engines[worker].step() {
            self.then(worker, then);
        }
    }

    fn then(&mut self, worker: usize, then: Then) {
        let incarnation = self.engines[worker].incarnation;
        match then {
            Then::Step(seconds) => {
                self.agenda.at(self.now.after(seconds), Event::Stepped(worker, incarnation));
            }
            Then::Finish(id) => {
                self.agenda.at(self.now.after(FINISHING), Event::Finished(worker, incarnation, id));
                // Its rows are free.
                self.plan_poll(worker, 0.0);
            }
            Then::End(end) => {
                self.send(&Event::End(worker, end));
                self.plan_poll(worker, 0.0);
            }
            Then::Die => self.kill(worker),
        }
    }

    fn kill(&mut self, worker: usize) {
        if self.engines[worker].alive {
            self.engines[worker].die();
            let seconds = 0.5 + 20.0 * uniform(&mut self.random);
            self.agenda.at(self.now.after(seconds), Event::Revive(worker));
        }
    }

    fn fault(&mut self, event: &Event) {
        let worker = below(&mut self.random, self.scenario.workers);
        match event {
            Event::Die if self.faults.death_every_seconds > 0.0 => {
                self.kill(worker);
                let next = exponential(&mut self.random, self.faults.death_every_seconds);
                self.agenda.at(self.now.after(next), Event::Die);
            }
            Event::Stall if self.faults.stall_every_seconds > 0.0 => {
                self.engines[worker].stalled_until = self.now.after(20.0 * uniform(&mut self.random));
                let next = exponential(&mut self.random, self.faults.stall_every_seconds);
                self.agenda.at(self.now.after(next), Event::Stall);
            }
            Event::Revive(worker) => {
                self.engines[*worker].revive();
                self.plan_poll(*worker, 0.0);
            }
            _ => {}
        }
    }
}
