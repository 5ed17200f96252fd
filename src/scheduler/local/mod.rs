//! The scheduler in this process: the core behind one mutex, with the subscriptions and wake-ups that a core has not.
//!
//! A call locks the core, lets it decide, and hands on what it decided: ends and beginnings to the listeners, wake-ups to
//! the open polls. None of that waits, so that the mutex is held for microseconds.

mod clock;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

pub use clock::Clock;
use subscriptions::Subscriptions;

use super::core::{Config, Core, Load, Policy};
use super::menu::Menu;
use super::messages::{
    Busy, Cancel, EndAnswer, Notice, Poll, PollAnswer, Refusal, Submit, SubmitAnswer, TaskEnd,
};
use super::{ModelId, RequestId, TaskId, WorkerId};

/// A poll that changes nothing is answered after this time, and time passes for the core at least so often.
const SECOND: Duration = Duration::from_secs(1);

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NotAccepted {
    /// Not now.
    #[error("{why}")]
    Later {
        /// When there is room, as predicted. No place is kept.
        after: Duration,
        /// What is full.
        why: Busy,
    },
    /// Not at any time.
    #[error("{0}")]
    Never(Refusal),
    /// A request of this name was accepted before: its first listener is told of its pictures.
    #[error("a request of this name was accepted before")]
    Known,
}

/// What a request's listener is told of its pictures.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestEvent<Picture> {
    /// A picture was given to a worker. Told once, also where that worker is lost and another begins anew.
    Begun {
        /// Which of the request's pictures.
        index: u32,
    },
    /// An early look at a picture.
    Preview {
        /// Which of the request's pictures.
        index: u32,
        /// Which of the previews that this request asked for, from 0.
        number: u32,
        /// A JPEG.
        file: Bytes,
    },
    /// The end of a picture. Each is told once.
    End(Notice<Picture>),
}

/// The pictures of an accepted request. Dropped before their end, they are cancelled.
pub struct Listener<Picture> {
    request: RequestId,
    events: mpsc::Receiver<RequestEvent<Picture>>,
    /// Pictures whose end was not told.
    open: usize,
    scheduler: Arc<dyn Owner>,
}

/// What a listener asks of its scheduler. It hides the type of the specifications, which listeners do not see.
trait Owner: Send + Sync {
    fn cancel(&self, request: &RequestId);
    fn ahead(&self, request: &RequestId, index: u32) -> Option<usize>;
}

impl<Picture> Listener<Picture> {
    /// The next event; `None` once each picture's end was told.
    pub async fn next(&mut self) -> Option<RequestEvent<Picture>> {
        if self.open == 0 {
            return None;
        }
        let event = self.events.recv().await;
        match &event {
            Some(RequestEvent::End(_)) => self.open -= 1,
            Some(_) => {}
            None => self.open = 0,
        }
        event
    }

    /// How many pictures are likely begun before this one of the request's: those that came before it and are not begun.
    /// Turns and deadlines may let later ones go first. `None` once it is begun.
    pub fn ahead(&self, index: u32) -> Option<usize> {
        self.scheduler.ahead(&self.request, index)
    }
}

impl<Picture> Drop for Listener<Picture> {
    fn drop(&mut self) {
        if self.open > 0 {
            self.scheduler.cancel(&self.request);
        }
    }
}

/// The scheduler in this process. Clones are the same one.
pub struct LocalScheduler<Spec, Picture> {
    inner: Arc<Inner<Spec, Picture>>,
}

impl<Spec, Picture> Clone for LocalScheduler<Spec, Picture> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<Spec, Picture> {
    clock: Clock,
    state: Mutex<State<Spec, Picture>>,
    idle: watch::Sender<bool>,
    ticks: AtomicBool,
}

struct State<Spec, Picture> {
    core: Core<Spec, Picture>,
    subscriptions: Subscriptions<Picture>,
    /// The poll of each worker that waits for an answer.
    polls: HashMap<WorkerId, Arc<Notify>>,
    closed: bool,
    cancelled: u64,
}

impl<Spec: Clone + Send + 'static, Picture: Clone + Send + 'static> LocalScheduler<Spec, Picture> {
    /// A scheduler without models and workers.
    pub fn new(config: Config) -> Self {
        Self::with_clock(config, Clock::real())
    }

    /// A scheduler that goes by `clock`.
    pub fn with_clock(config: Config, clock: Clock) -> Self {
        let state = State {
            core: Core::new(config),
            subscriptions: Subscriptions::default(),
            polls: HashMap::new(),
            closed: false,
            cancelled: 0,
        };
        let (idle, _) = watch::channel(true);
        Self {
            inner: Arc::new(Inner { clock, state: Mutex::new(state), idle, ticks: AtomicBool::new(false) }),
        }
    }

    /// The clock that it goes by.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Sets the menu of a model.
    pub fn set_menu(&self, model: ModelId, menu: Menu) {
        self.inner.change(|state| state.core.set_menu(model, menu));
    }

    /// Changes the plan policy.
    pub fn set_policy(&self, policy: Policy) {
        self.inner.change(|state| state.core.set_policy(policy));
    }

    /// Accepts all pictures of a request, or none.
    ///
    /// # Errors
    /// [`NotAccepted`]
    pub fn submit(&self, submit: Submit<Spec>) -> Result<Listener<Picture>, NotAccepted> {
        let now = self.inner.clock.now();
        let request = submit.request.clone();
        let previews: Vec<u32> = submit.tasks.iter().map(|task| task.previews).collect();
        let events = self.inner.change(|state| {
            if state.core.knows(&request) {
                return Err(NotAccepted::Known);
            }
            match state.core.submit(now, submit) {
                SubmitAnswer::Accepted { tasks } => {
                    Ok(state.subscriptions.add(&request, tasks.into_iter().zip(previews.clone()).collect()))
                }
                SubmitAnswer::Later { after_seconds, why } => {
                    let after = Duration::try_from_secs_f64(after_seconds).unwrap_or(Duration::MAX);
                    Err(NotAccepted::Later { after, why })
                }
                SubmitAnswer::Never { why } => Err(NotAccepted::Never(why)),
            }
        })?;
        Ok(Listener {
            request,
            events,
            open: previews.len(),
            scheduler: Arc::clone(&self.inner) as Arc<dyn Owner>,
        })
    }

    /// A worker's poll: answered once something changes for it, after a second at the latest. An answer that says nothing
    /// asks for a new poll, since the report is old by then.
    ///
    /// Dropped before its answer, it may be followed by a newer poll at once. Must be called within a tokio runtime with
    /// timers.
    pub async fn poll(&self, poll: Poll<Picture>) -> PollAnswer<Spec> {
        self.keep_ticking();
        let (worker, sequence) = (poll.worker.clone(), poll.sequence);
        let woken = Arc::new(Notify::new());
        let now = self.inner.clock.now();
        let answer = self.inner.change(|state| {
            let answer = state.core.poll(now, poll);
            for assignment in &answer.assignments {
                state.subscriptions.begin(&assignment.task);
            }
            state.polls.insert(worker.clone(), Arc::clone(&woken));
            answer
        });
        let open = OpenPoll { inner: &self.inner, worker, woken };
        if !answer.is_empty() {
            return answer;
        }
        let _ = tokio::time::timeout(SECOND, open.woken.notified()).await; // woken or not: poll again
        PollAnswer::go_on(sequence)
    }

    /// The end of an attempt.
    pub fn end(&self, end: TaskEnd<Picture>) -> EndAnswer {
        let now = self.inner.clock.now();
        self.inner.change(|state| state.core.end(now, end))
    }

    /// An early look at a task's picture: preview `number` of `of`, from 1. Each listener hears those that are nearest to
    /// the places of its own previews.
    pub fn preview(&self, task: &TaskId, number: u32, of: u32, file: &Bytes) {
        self.inner.change(|state| state.subscriptions.preview(task, number, of, file));
    }

    /// What there is to do.
    pub fn load(&self) -> Load {
        self.inner.state.lock().core.load()
    }

    /// Tasks that were never begun.
    pub fn waiting(&self) -> usize {
        self.inner.state.lock().subscriptions.waiting()
    }

    /// Pictures whose listeners left before their end, since the start.
    pub fn cancelled(&self) -> u64 {
        self.inner.state.lock().cancelled
    }

    /// The last published price of a second of a model's machine time; `None` before there is one.
    pub fn price(&self, model: &ModelId) -> Option<f64> {
        self.inner.state.lock().core.price(model)
    }

    /// Accepts nothing more; what was accepted is painted.
    pub fn close(&self) {
        self.inner.change(|state| {
            state.closed = true;
            state.core.close();
        });
    }

    /// Whether nothing more is accepted.
    pub fn is_closed(&self) -> bool {
        self.inner.state.lock().closed
    }

    /// Resolves once nothing waits and nothing is painted.
    pub async fn idle(&self) {
        // The sender lives as long as `self`.
        let _ = self.inner.idle.subscribe().wait_for(|idle| *idle).await;
    }

    /// Accepts nothing more, and ends all open pictures as stopped.
    pub fn stop(&self) {
        self.inner.change(|state| {
            state.closed = true;
            state.core.stop();
        });
    }

    /// Lets time pass: workers that have not polled for a while are lost. Happens once a second from the first poll on.
    pub fn tick(&self) {
        self.inner.tick();
    }

    /// Ticks once a second for as long as a clone lives.
    fn keep_ticking(&self) {
        if self.inner.ticks.swap(true, Ordering::Relaxed) {
            return;
        }
        let inner: Weak<Inner<Spec, Picture>> = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SECOND).await;
                let Some(inner) = inner.upgrade() else { return };
                inner.tick();
            }
        });
    }
}

impl<Spec: Clone, Picture: Clone> Inner<Spec, Picture> {
    /// Changes the state, and hands on what followed from it.
    fn change<T>(&self, change: impl FnOnce(&mut State<Spec, Picture>) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state);
        for notice in state.core.take_notices() {
            state.subscriptions.end(notice);
        }
        for worker in state.core.take_woken() {
            if let Some(poll) = state.polls.get(&worker) {
                poll.notify_one();
            }
        }
        let idle = state.core.is_idle();
        self.idle.send_if_modified(|was| std::mem::replace(was, idle) != idle);
        changed
    }

    fn tick(&self) {
        let now = self.clock.now();
        self.change(|state| state.core.tick(now));
    }
}

impl<Spec: Clone + Send, Picture: Clone + Send> Owner for Inner<Spec, Picture> {
    fn cancel(&self, request: &RequestId) {
        let now = self.clock.now();
        self.change(|state| {
            state.core.cancel(now, &Cancel { request: request.clone() });
            state.cancelled += state.subscriptions.remove(request) as u64;
        });
    }

    fn ahead(&self, request: &RequestId, index: u32) -> Option<usize> {
        self.state.lock().subscriptions.ahead(request, index)
    }
}

/// A poll that is listed for wake-ups until it is answered or dropped.
struct OpenPoll<'a, Spec, Picture> {
    inner: &'a Inner<Spec, Picture>,
    worker: WorkerId,
    woken: Arc<Notify>,
}

impl<Spec, Picture> Drop for OpenPoll<'_, Spec, Picture> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        // A newer poll of the worker may have taken its place.
        if state.polls.get(&self.worker).is_some_and(|poll| Arc::ptr_eq(poll, &self.woken)) {
            state.polls.remove(&self.worker);
        }
    }
}
