//! The scheduler's state machine.
//!
//! [`Core::submit`] accepts pictures, [`Core::poll`] hands them to workers, [`Core::end`] takes them back, and
//! [`Core::take_notices`] says what became of them. Each call is told the time. There is no clock, thread, lock, channel
//! or tensor here; equal calls at equal times have equal results.
//!
//! | file | decides |
//! |---|---|
//! | `submit` | whether a request is accepted, and which of its pictures are painted already |
//! | `admission` | whether new pictures can be in time, and when there will be room |
//! | `order` | whose turn it is |
//! | `assign` | which tasks a worker gets |
//! | `pause` | which of its tasks are paused, and which go on at another worker |
//! | `poll` | what a worker is to change |
//! | `replan` | which tasks in flight get cheaper options |
//! | `ends` | what an end, a lost worker or a cancelled request means for a task |
//! | `price` | what a second of machine time costs, from the buckets of `demand` |
//! | `options`, `policy` | which option a task takes at that price |
//! | `quote` | what a picture would get now, for a gateway that could answer it from the cache |
//! | `latency` | how long a step takes |
//! | `workers`, `tasks`, `requests` | what is known of each |
//!
//! Numbers set by hand are in [`Tuning`], and in the constants beside the code that they belong to; docs/planning.md has a
//! row for each.

mod admission;
mod assign;
mod config;
mod demand;
mod ends;
mod latency;
mod load;
mod options;
mod order;
mod pause;
mod policy;
mod poll;
mod price;
mod quote;
mod replan;
mod requests;
mod submit;
mod tasks;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use config::{Config, Limits, Tuning, Worth, WorthError};
pub use load::{Load, SetLoad, StepTime};
pub use policy::Policy;

use admission::Told;
use demand::Demand;
use order::Order;
use requests::Requests;
use tasks::{TaskKey, Tasks};
use workers::{WorkerKey, Workers};

use super::menu::Menu;
use super::messages::{Cancel, EndAnswer, Failure, Notice, TaskEnd};
use super::{ModelId, RequestId, Time, WorkerId};

/// All that waits or is painted. `Spec` is what a worker needs to paint a picture, `Picture` what it hands back.
#[derive(Debug)]
pub struct Core<Spec, Picture> {
    config: Config,
    menus: BTreeMap<ModelId, Arc<Menu>>,
    worths: BTreeMap<String, Arc<Worth>>,
    plain_worth: Arc<Worth>,
    requests: Requests,
    tasks: Tasks<Spec>,
    order: Order,
    demand: Demand,
    workers: Workers,
    /// Waiting tasks that yield because they are late, by when they have yielded enough.
    yielding: BTreeSet<(Time, TaskKey)>,
    /// Running tasks that take no more steps for now, by model.
    paused: BTreeSet<(ModelId, TaskKey)>,
    told: Told,
    notices: Vec<Notice<Picture>>,
    woken: BTreeSet<WorkerKey>,
    closed: bool,
}

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// A scheduler without models and workers.
    pub fn new(config: Config) -> Self {
        let worths =
            config.tiers.iter().map(|(tier, worth)| (tier.clone(), Arc::new(worth.clone()))).collect();
        let remembered = config.limits.remembered;
        Self {
            menus: BTreeMap::new(),
            worths,
            plain_worth: Arc::new(Worth::default()),
            requests: Requests::new(remembered),
            tasks: Tasks::default(),
            order: Order::new(remembered),
            demand: Demand::default(),
            workers: Workers::default(),
            yielding: BTreeSet::new(),
            paused: BTreeSet::new(),
            told: Told::new(remembered),
            notices: Vec::new(),
            woken: BTreeSet::new(),
            closed: false,
            config,
        }
    }

    /// Sets the menu of a model. Tasks that are known already keep the one they came with.
    pub fn set_menu(&mut self, model: ModelId, menu: Menu) {
        self.menus.insert(model, Arc::new(menu));
    }

    /// The plan policy in force.
    pub fn policy(&self) -> &Policy {
        &self.config.policy
    }

    /// Changes the plan policy.
    pub fn set_policy(&mut self, policy: Policy) {
        self.config.policy = policy;
    }

    /// A request is no longer wanted. Its pictures that were not told are not told any more; a task that answered no
    /// other request ends.
    pub fn cancel(&mut self, now: Time, cancel: &Cancel) {
        self.tick(now);
        let Some(request) = self.requests.get(&cancel.request) else { return };
        let open: Vec<(u32, TaskKey)> =
            (0..).zip(&request.pictures).filter_map(|(index, task)| Some((index, (*task)?))).collect();
        for (index, task) in open {
            self.requests.close(&cancel.request, index);
            self.drop_listener(task, &cancel.request, index);
        }
    }

    /// An attempt at a task ended. The answer tells the worker that it may forget the end.
    pub fn end(&mut self, now: Time, end: TaskEnd<Picture>) -> EndAnswer {
        self.tick(now);
        self.settle(end)
    }

    /// Lets time pass: workers that have not polled are lost. Every other call does this first; where nothing else comes,
    /// this is to be called once a second.
    pub fn tick(&mut self, now: Time) {
        for (key, worker) in self.workers.lose(now, self.config.lost_after_seconds) {
            self.woken.remove(&key);
            self.lose_tasks(now, &worker.id, worker.tasks);
        }
        while let Some(&(until, task)) = self.yielding.first()
            && until <= now
        {
            self.yielding.pop_first();
            self.take_turn_again(task);
        }
    }

    /// The ends of pictures since the last call, each told once.
    pub fn take_notices(&mut self) -> Vec<Notice<Picture>> {
        std::mem::take(&mut self.notices)
    }

    /// Workers whose next answer would change something: their open polls are to be answered now. It is a hint; polls are
    /// answered once a second in any case.
    pub fn take_woken(&mut self) -> Vec<WorkerId> {
        let id = |key| self.workers.get(key).map(|worker| worker.id.clone());
        std::mem::take(&mut self.woken).into_iter().filter_map(id).collect()
    }

    /// Accepts nothing more; what was accepted is painted.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Accepts and paints nothing more: all open pictures end as stopped.
    pub fn stop(&mut self) {
        self.close();
        for task in self.tasks.keys() {
            self.fail(task, &Failure::Stopped);
        }
    }

    /// Whether a request was accepted, and is not forgotten yet.
    pub fn knows(&self, request: &RequestId) -> bool {
        self.requests.get(request).is_some()
    }

    /// Whether nothing waits and nothing is painted.
    pub fn is_idle(&self) -> bool {
        self.tasks.len() == 0
    }
}
