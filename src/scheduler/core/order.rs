//! The order: clients take turns by the machine seconds that they used, deadlines order within a client.
//!
//! This is start-time fair queueing (Goyal, Vin and Cheng, 1996). A task that starts gets its client's tag, and the tag
//! grows by the machine seconds that the task is predicted to take; the end corrects it. A client that had nothing in the
//! system starts at the present minimum, so that it can save up no turns. The present minimum also grows with what is
//! painted, by each active client's part: however many clients come, none waits behind all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::tasks::TaskKey;
use crate::scheduler::time::{Real, Time};
use crate::scheduler::{ClientId, ModelId};

/// Where a waiting task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Among those that can still be in time, as far as is known.
    InTime,
    /// Behind them: it cannot.
    Late,
}

/// The tasks of one model in one lane, by client.
#[derive(Debug, Default)]
struct Queue {
    /// Clients by tag.
    order: BTreeSet<(Real, ClientId)>,
    /// Each client's tasks by deadline, of equal ones the first that came.
    tasks: BTreeMap<ClientId, BTreeSet<(Time, TaskKey)>>,
}

#[derive(Debug, Default)]
struct Client {
    /// Machine seconds used, on the scale of the present minimum.
    tag: f64,
    /// The tag that its next task starts with, if a running one gave up its own.
    lent: Option<f64>,
    waiting: usize,
    running: usize,
    /// The queues it waits in, and with how many tasks.
    queues: BTreeMap<(ModelId, Lane), usize>,
    /// Machine seconds of all its tasks at their floors, as far as they are not taken yet.
    backlog: f64,
}

impl Client {
    fn is_active(&self) -> bool {
        self.waiting + self.running > 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Client(ClientId),
    Task(TaskKey),
}

/// All clients, and what they wait for.
#[derive(Debug, Default)]
pub(super) struct Order {
    clients: BTreeMap<ClientId, Client>,
    queues: BTreeMap<(ModelId, Lane), Queue>,
    /// Tags of running tasks and of clients that wait.
    tags: BTreeSet<(Real, Holder)>,
    /// Clients without tasks that used more than the present minimum.
    idle: BTreeSet<(Real, ClientId)>,
    minimum: f64,
    active: usize,
    /// The most idle clients that are remembered.
    remembered: usize,
}

impl Order {
    pub fn new(remembered: usize) -> Self {
        Self { remembered, ..Self::default() }
    }

    /// Clients with a task that waits or runs.
    pub fn active(&self) -> usize {
        self.active
    }

    /// Whether a client has a task that waits or runs.
    pub fn is_active(&self, client: &ClientId) -> bool {
        self.clients.get(client).is_some_and(Client::is_active)
    }

    /// Machine seconds of a client's tasks at their floors.
    pub fn backlog(&self, client: &ClientId) -> f64 {
        self.clients.get(client).map_or(0.0, |client| client.backlog.max(0.0))
    }

    /// Adds to a client's backlog, or takes from it.
    pub fn change_backlog(&mut self, client: &ClientId, seconds: f64) {
        if let Some(client) = self.clients.get_mut(client) {
            client.backlog += seconds;
        }
    }

    /// A task waits.
    pub fn push(&mut self, client: &ClientId, model: &ModelId, lane: Lane, deadline: Time, task: TaskKey) {
        self.enter(client);
        let Some(of) = self.clients.get_mut(client) else { return };
        of.waiting += 1;
        if of.waiting == 1 {
            self.tags.insert((Real(of.tag), Holder::Client(client.clone())));
        }
        *of.queues.entry((model.clone(), lane)).or_default() += 1;
        let queue = self.queues.entry((model.clone(), lane)).or_default();
        queue.order.insert((Real(of.tag), client.clone()));
        queue.tasks.entry(client.clone()).or_default().insert((deadline, task));
    }

    /// A task waits no longer. Another call says what it does instead; until then its client may count as idle.
    pub fn remove(&mut self, client: &ClientId, model: &ModelId, lane: Lane, deadline: Time, task: TaskKey) {
        let key = (model.clone(), lane);
        let (Some(of), Some(queue)) = (self.clients.get_mut(client), self.queues.get_mut(&key)) else {
            return;
        };
        let Some(tasks) = queue.tasks.get_mut(client) else { return };
        if !tasks.remove(&(deadline, task)) {
            return;
        }
        if tasks.is_empty() {
            queue.tasks.remove(client);
            queue.order.remove(&(Real(of.tag), client.clone()));
        }
        if queue.order.is_empty() {
            self.queues.remove(&key);
        }
        if let Some(count) = of.queues.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                of.queues.remove(&key);
            }
        }
        of.waiting -= 1;
        if of.waiting == 0 {
            self.tags.remove(&(Real(of.tag), Holder::Client(client.clone())));
        }
        self.leave(client);
    }

    /// The next task of a model in a lane: the earliest deadline of the client with the smallest tag.
    pub fn head(&self, model: &ModelId, lane: Lane) -> Option<(f64, TaskKey)> {
        let queue = self.queues.get(&(model.clone(), lane))?;
        let (tag, client) = queue.order.first()?;
        let (_, task) = queue.tasks.get(client)?.first()?;
        Some((tag.0, *task))
    }

    /// A task runs that is predicted to take `seconds` machine seconds. Returns its tag.
    pub fn start(&mut self, client: &ClientId, task: TaskKey, seconds: f64) -> f64 {
        self.enter(client);
        let Some(of) = self.clients.get_mut(client) else { return self.minimum };
        let tag = of.lent.take().unwrap_or(of.tag);
        of.running += 1;
        self.tags.insert((Real(tag), Holder::Task(task)));
        self.charge(client, seconds);
        tag
    }

    /// A running task of `tag` ends, after it used `seconds`; `charged` were predicted.
    pub fn finish(&mut self, client: &ClientId, task: TaskKey, tag: f64, charged: f64, seconds: f64) {
        self.minimum += seconds.max(0.0) / self.active.max(1) as f64;
        self.charge(client, seconds - charged);
        self.tags.remove(&(Real(tag), Holder::Task(task)));
        if let Some(of) = self.clients.get_mut(client) {
            of.running -= 1;
        }
        self.leave(client);
    }

    /// A running task goes behind: its client's next task took its tag. Returns its new one.
    pub fn move_behind(&mut self, client: &ClientId, task: TaskKey, tag: f64) -> f64 {
        let next = self.clients.get(client).map_or(tag, |of| of.tag);
        self.tags.remove(&(Real(tag), Holder::Task(task)));
        self.tags.insert((Real(next), Holder::Task(task)));
        next
    }

    /// The client's next task starts with `tag`, which one of its running tasks gave up; after it the client's tag is what
    /// it would have been.
    pub fn lend_tag(&mut self, client: &ClientId, tag: f64) {
        if let Some(of) = self.clients.get_mut(client) {
            of.lent = Some(tag);
        }
    }

    /// Machine seconds are added to what a client used, or taken from it.
    fn charge(&mut self, client: &ClientId, seconds: f64) {
        let Some(of) = self.clients.get_mut(client) else { return };
        let (before, after) = (Real(of.tag), Real(of.tag + seconds));
        of.tag = after.0;
        if of.waiting > 0 {
            self.tags.remove(&(before, Holder::Client(client.clone())));
            self.tags.insert((after, Holder::Client(client.clone())));
        }
        for key in of.queues.keys() {
            if let Some(queue) = self.queues.get_mut(key) {
                queue.order.remove(&(before, client.clone()));
                queue.order.insert((after, client.clone()));
            }
        }
    }

    fn enter(&mut self, client: &ClientId) {
        if let Some((least, _)) = self.tags.first() {
            self.minimum = self.minimum.max(least.0);
        }
        let of = self.clients.entry(client.clone()).or_default();
        if !of.is_active() {
            self.idle.remove(&(Real(of.tag), client.clone()));
            of.tag = of.tag.max(self.minimum);
            self.active += 1;
        }
    }

    /// Forgets a client that has nothing left, unless it used more than the present minimum.
    fn leave(&mut self, client: &ClientId) {
        let Some(of) = self.clients.get_mut(client).filter(|of| !of.is_active()) else { return };
        of.backlog = 0.0;
        self.active -= 1;
        self.idle.insert((Real(of.tag), client.clone()));
        if self.active == 0 {
            // All start anew, at the same place.
            self.minimum = self.idle.last().map_or(self.minimum, |(tag, _)| tag.0.max(self.minimum));
        }
        while let Some((tag, _)) = self.idle.first()
            && (tag.0 <= self.minimum || self.idle.len() > self.remembered)
        {
            if let Some((_, client)) = self.idle.pop_first() {
                self.clients.remove(&client);
            }
        }
    }

    /// Clients that are remembered, for tests of what grows.
    #[cfg(test)]
    pub fn len(&self) -> (usize, usize, usize) {
        (self.clients.len(), self.queues.len(), self.tags.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine {
        order: Order,
        running: Vec<(ClientId, TaskKey, f64)>,
        next: TaskKey,
    }

    impl Machine {
        fn new() -> Self {
            Self { order: Order::new(100), running: vec![], next: 0 }
        }

        fn ask(&mut self, client: &str, deadline: f64) -> TaskKey {
            self.next += 1;
            let deadline = Time::ZERO.after(deadline);
            self.order.push(&client.into(), &"m".into(), Lane::InTime, deadline, self.next);
            self.next
        }

        /// Starts the next task, if it is the client's.
        fn start(&mut self, client: &str, deadline: f64, seconds: f64) -> bool {
            let Some((_, task)) = self.order.head(&"m".into(), Lane::InTime) else { return false };
            let client: ClientId = client.into();
            let queue = &self.order.queues[&("m".into(), Lane::InTime)];
            let first = queue.tasks.get(&client).and_then(|tasks| tasks.first());
            if first.is_none_or(|(_, of)| *of != task) {
                return false;
            }
            let tag = self.order.start(&client, task, seconds);
            self.order.remove(&client, &"m".into(), Lane::InTime, Time::ZERO.after(deadline), task);
            self.running.push((client, task, tag));
            true
        }

        fn end(&mut self, charged: f64, seconds: f64) {
            let (client, task, tag) = self.running.remove(0);
            self.order.finish(&client, task, tag, charged, seconds);
        }
    }

    #[test]
    fn a_flood_delays_another_client_by_one_task() {
        let mut machine = Machine::new();
        for _ in 0..60 {
            machine.ask("a", 1.0);
        }
        for _ in 0..7 {
            assert!(machine.start("a", 1.0, 1.0));
            machine.end(1.0, 1.0);
        }
        machine.ask("b", 9.0);
        machine.ask("b", 9.0);
        assert!(machine.start("b", 9.0, 1.0) || machine.start("a", 1.0, 1.0) && machine.start("b", 9.0, 1.0));
    }

    #[test]
    fn turns_are_by_machine_seconds() {
        let mut machine = Machine::new();
        for _ in 0..30 {
            machine.ask("large", 1.0);
            machine.ask("small", 1.0);
        }
        let mut started = [0, 0];
        while started[0] < 5 {
            if machine.start("large", 1.0, 4.0) {
                started[0] += 1;
                machine.end(4.0, 4.0);
            } else if machine.start("small", 1.0, 1.0) {
                started[1] += 1;
                machine.end(1.0, 1.0);
            }
        }
        assert!((16..=20).contains(&started[1]), "{started:?}");
    }

    #[test]
    fn the_end_corrects_what_was_predicted() {
        let mut machine = Machine::new();
        for _ in 0..9 {
            machine.ask("a", 1.0);
            machine.ask("b", 1.0);
        }
        assert!(machine.start("a", 1.0, 1.0));
        machine.end(1.0, 5.0);
        for _ in 0..5 {
            assert!(machine.start("b", 1.0, 1.0), "a used five");
            machine.end(1.0, 1.0);
        }
        assert!(machine.start("a", 1.0, 1.0));
    }

    #[test]
    fn a_stream_of_new_clients_starves_nobody() {
        let mut machine = Machine::new();
        machine.ask("old", 1.0);
        machine.ask("old", 1.0);
        assert!(machine.start("old", 1.0, 3.0));
        for i in 0..20 {
            let new = format!("new {i}");
            machine.ask(&new, 1.0);
            if machine.start("old", 1.0, 3.0) {
                return;
            }
            assert!(machine.start(&new, 1.0, 1.0));
            machine.running.swap(0, 1);
            machine.end(1.0, 1.0);
        }
        panic!("the old client's second task never started");
    }

    #[test]
    fn the_earliest_deadline_of_a_client_goes_first_and_what_left_is_forgotten() {
        let mut machine = Machine::new();
        let late = machine.ask("a", 9.0);
        let soon = machine.ask("a", 1.0);
        assert_eq!(machine.order.head(&"m".into(), Lane::InTime), Some((0.0, soon)));
        assert_eq!(machine.order.head(&"m".into(), Lane::Late), None);
        let remove = |order: &mut Order, deadline, task| {
            order.remove(&"a".into(), &"m".into(), Lane::InTime, Time::ZERO.after(deadline), task);
        };
        remove(&mut machine.order, 9.0, late);
        remove(&mut machine.order, 9.0, late);
        assert!(machine.start("a", 1.0, 2.0));
        machine.end(2.0, 2.0);
        assert_eq!((machine.order.len(), machine.order.active()), ((0, 0, 0), 0));
        for i in 0..1000 {
            let client = format!("c{i}");
            machine.ask("busy", 1.0);
            machine.ask(&client, 1.0);
            while !machine.start(&client, 1.0, 1e6) {
                assert!(machine.start("busy", 1.0, 1e6));
                machine.end(1e6, 1e6);
            }
            machine.end(1e6, 1e6);
        }
        assert!(machine.order.len().0 <= 102, "{:?}", machine.order.len());
    }
}
