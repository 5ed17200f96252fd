//! One network call's threads: as many tasks as pay, handed out in less than a microsecond.
//!
//! A step is some 150 operators of some 30 µs each. A thread pool puts its idle threads to sleep between two of them,
//! and waking one takes longer than its task. So a network call takes its helpers from rayon's pool once, and they
//! wait for its operators' tasks spinning, until the call ends.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use rayon::{Scope, ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// Operations that a task must have to be worth handing to another thread (some two microseconds).
const TASK: usize = 400_000;
/// How often a thread looks before it lets others have the processor.
const SPINS: usize = 2_000;

/// What is to be done for every task.
type Work = *const (dyn Fn(usize) + Sync);

/// The threads of one network call, and the work they share.
struct Crew {
    size: usize,
    /// Number of the current work in the upper half, tasks not yet taken in the lower.
    open: AtomicU64,
    done: AtomicUsize,
    work: UnsafeCell<Work>,
    panicked: AtomicBool,
    over: AtomicBool,
}

// SAFETY: all but `work` are atomics; `share` and `take` say who touches `work`, and when.
unsafe impl Sync for Crew {}

thread_local! {
    /// The crew of the network call that this thread leads.
    static LED: Cell<*const Crew> = const { Cell::new(ptr::null()) };
}

/// Whether there is a crew. One at a time: it leaves the pool a thread, so that whatever else needs the pool goes on.
/// Two crews could take all of it, and each wait for an operator of candle's that wants a thread.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Threads that help the network calls of the thread that they are lent to, instead of those of rayon's global pool. So
/// several threads can each have a network call with helpers at one time.
#[derive(Debug)]
pub struct HelperThreads {
    pool: ThreadPool,
    /// As [`TAKEN`], of this pool.
    taken: AtomicBool,
}

thread_local! {
    /// The threads that are lent to this one.
    static LENT: RefCell<Option<Arc<HelperThreads>>> = const { RefCell::new(None) };
}

impl HelperThreads {
    /// `threads` threads, of which a network call has the use of one less: the thread that makes it works, too.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn new(threads: usize) -> Result<Arc<Self>, ThreadPoolBuildError> {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        Ok(Arc::new(Self { pool, taken: AtomicBool::new(false) }))
    }

    /// Runs `call`; network calls that it makes on this thread have these helpers.
    pub fn lend<T>(self: &Arc<Self>, call: impl FnOnce() -> T) -> T {
        struct Return(Option<Arc<HelperThreads>>);
        impl Drop for Return {
            fn drop(&mut self) {
                LENT.set(self.0.take());
            }
        }
        let _return = Return(LENT.replace(Some(Arc::clone(self))));
        call()
    }
}

/// Ends a crew, however the call ended.
struct Lead<'a>(&'a Crew, &'a AtomicBool);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        LED.set(ptr::null());
        self.0.over.store(true, Release);
        self.1.store(false, Release);
    }
}

/// Runs a network call with helpers: those lent to this thread, or else of rayon's pool. Where another call has them, it
/// runs without.
pub(crate) fn with_helpers<T>(call: impl FnOnce() -> T) -> T {
    let lent = LENT.with_borrow(Option::clone);
    let (size, taken) = match &lent {
        Some(helpers) => (helpers.pool.current_num_threads(), &helpers.taken),
        None => (rayon::current_num_threads(), &TAKEN),
    };
    // A worker of the pool that leads could, waiting for an operator of candle's, be given its own call for help.
    if size == 1 || rayon::current_thread_index().is_some() || taken.swap(true, Acquire) {
        return call();
    }
    fn nothing(_: usize) {}
    let crew = Crew {
        size,
        open: AtomicU64::new(0),
        done: AtomicUsize::new(0),
        work: UnsafeCell::new(&nothing as Work),
        panicked: AtomicBool::new(false),
        over: AtomicBool::new(false),
    };
    match &lent {
        Some(helpers) => helpers.pool.in_place_scope(|scope| lead(scope, &crew, taken, call)),
        None => rayon::in_place_scope(|scope| lead(scope, &crew, taken, call)),
    }
}

/// Runs `call` while the others of the crew help.
fn lead<'a, T>(scope: &Scope<'a>, crew: &'a Crew, taken: &'a AtomicBool, call: impl FnOnce() -> T) -> T {
    let _lead = Lead(crew, taken);
    (1..crew.size).for_each(|_| scope.spawn(|_| crew.help()));
    LED.set(crew);
    call()
}

impl Crew {
    /// Takes a task of the current work, if one is open, and does it.
    fn take(&self) -> bool {
        let open = self.open.load(Acquire);
        let left = open as u32 as usize;
        if left == 0 || self.open.compare_exchange(open, open - 1, AcqRel, Relaxed).is_err() {
            return false;
        }
        // SAFETY: the exchange made this task ours, of the work whose number `open` had. `share` wrote that work
        // before it opened its tasks, and neither returns nor opens others before ours is counted as done.
        let work = unsafe { &**self.work.get() };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(left - 1))) {
            self.panicked.store(true, Relaxed);
            std::mem::forget(payload); // whose drop could panic before the task is counted
        }
        self.done.fetch_add(1, Release);
        true
    }

    fn help(&self) {
        let mut spins = 0;
        while !self.over.load(Acquire) {
            spins = if self.take() { 0 } else { wait(spins) };
        }
    }

    /// Does `tasks` tasks together with the helpers.
    fn share(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let led = LED.replace(ptr::null()); // a task that wants tasks of its own does them alone
        self.done.store(0, Relaxed);
        // SAFETY: only the leading thread comes here, and no task is open or being done, so nobody reads the work.
        // The lifetime is forgotten, but this returns only after the last task is done.
        unsafe { *self.work.get() = std::mem::transmute::<&(dyn Fn(usize) + Sync), Work>(work) };
        let number = (self.open.load(Relaxed) >> 32).wrapping_add(1);
        self.open.store(number << 32 | tasks as u64, Release);
        while self.open.load(Relaxed) as u32 > 0 {
            self.take();
        }
        let mut spins = 0;
        while self.done.load(Acquire) < tasks {
            spins = wait(spins);
        }
        LED.set(led);
        assert!(!self.panicked.swap(false, Relaxed), "a task of an operator panicked");
    }
}

/// Waits a little, or lets another thread run after `spins` times.
fn wait(spins: usize) -> usize {
    if spins < SPINS {
        std::hint::spin_loop();
        return spins + 1;
    }
    std::thread::yield_now();
    spins
}

/// Calls `f` with the crew that this thread leads.
fn with_crew<T>(f: impl FnOnce(Option<&Crew>) -> T) -> T {
    // SAFETY: `Lead` clears the pointer before its crew goes.
    f(unsafe { LED.get().as_ref() })
}

/// Into how many equal tasks `cost` operations are to be cut.
pub(super) fn threads(cost: usize) -> usize {
    (cost / TASK).clamp(1, with_crew(|crew| crew.map_or(1, |crew| crew.size)))
}

/// Calls `f` for every task, with whoever helps.
pub(super) fn parallel(tasks: usize, f: impl Fn(usize) + Sync) {
    with_crew(|crew| match crew {
        Some(crew) if tasks > 1 && u32::try_from(tasks).is_ok() => crew.share(tasks, &f),
        _ => (0..tasks).for_each(f),
    });
}

/// Calls `f` for every one of `items`, many of which may be too small for a task of their own.
pub(super) fn parallel_items(items: usize, cost_each: usize, f: impl Fn(usize) + Sync) {
    let threads = threads(items * cost_each);
    if threads < 2 {
        return (0..items).for_each(f);
    }
    // Four per thread, so that a thread that was called away does not keep the others waiting.
    let tasks = (4 * threads).min(items);
    parallel(tasks, |task| (items * task / tasks..items * (task + 1) / tasks).for_each(&f));
}

/// A place that tasks write to, each to its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub(super) *mut f32);

// SAFETY: a pointer alone is harmless; who writes through it proves that tasks keep apart.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn get(self) -> *mut f32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_whoever_does_it() {
        with_helpers(|| {
            for tasks in (0..400).chain([5000]) {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                parallel(tasks, |task| _ = counts[task].fetch_add(1, Relaxed));
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1));
            }
        });
    }

    #[test]
    fn calls_beside_and_inside_each_other_end_and_leave_the_pool_a_thread() {
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        with_helpers(|| {
                            rayon::join(|| sum.fetch_add(1, Relaxed), || sum.fetch_add(1, Relaxed));
                            parallel(10, |i| with_helpers(|| parallel(3, |_| _ = sum.fetch_add(i, Relaxed))));
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 100 * (2 + 3 * 45));
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let panics = || with_helpers(|| parallel(100, |i| assert!(i != 50)));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    }
}
