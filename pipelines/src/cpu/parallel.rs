//! The threads of one network call, which divide an operator into tasks in less than a microsecond.
//!
//! A denoising step has some 150 operators of some 30 µs each. A thread pool puts idle threads to sleep between two
//! operators, and waking a thread takes longer than its task. A network call therefore takes helper threads from rayon's
//! pool once. They spin between the operators' tasks until the call ends.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use rayon::{Scope, ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// The fewest operations of a task that is worth giving to another thread. They take some two microseconds.
const MIN_TASK: usize = 400_000;
/// How often a waiting thread checks before it yields the processor.
const SPINS: usize = 2_000;

/// The function that is called for every task.
type TaskFn = *const (dyn Fn(usize) + Sync);

/// The threads of one network call, and the tasks of its current operator.
struct ThreadTeam {
    size: usize,
    /// The number of the current work in the upper half, and the tasks that are not taken yet in the lower half.
    open: AtomicU64,
    done: AtomicUsize,
    work: UnsafeCell<TaskFn>,
    panicked: AtomicBool,
    over: AtomicBool,
}

// SAFETY: all fields but `work` are atomics. `run_tasks` and `take` prove that accesses of `work` do not overlap.
unsafe impl Sync for ThreadTeam {}

thread_local! {
    /// The team that this thread leads; null if it leads none.
    static LED_TEAM: Cell<*const ThreadTeam> = const { Cell::new(ptr::null()) };
}

/// Whether there is a team. There is at most one, and it leaves one thread of the pool free. Two teams could occupy all
/// threads while each waits for an operator of candle's that needs one.
static TEAM_EXISTS: AtomicBool = AtomicBool::new(false);

/// Threads that help the network calls of the thread that they are lent to, instead of those of rayon's global pool. With
/// them several threads can each have a network call with helpers at one time.
#[derive(Debug)]
pub struct HelperThreads {
    pool: ThreadPool,
    /// As [`TEAM_EXISTS`], of this pool.
    team_exists: AtomicBool,
}

thread_local! {
    /// The threads that are lent to this one.
    static LENT: RefCell<Option<Arc<HelperThreads>>> = const { RefCell::new(None) };
}

impl HelperThreads {
    /// `threads` threads. A network call uses one less, since the thread that makes the call works, too.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(threads: usize) -> Result<Arc<Self>, ThreadPoolBuildError> {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        Ok(Arc::new(Self { pool, team_exists: AtomicBool::new(false) }))
    }

    /// Runs `call`. The network calls that it makes on this thread have these helpers.
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

/// Ends a team when it is dropped, also during a panic.
struct TeamGuard<'a>(&'a ThreadTeam, &'a AtomicBool);

impl Drop for TeamGuard<'_> {
    fn drop(&mut self) {
        LED_TEAM.set(ptr::null());
        self.0.over.store(true, Release);
        self.1.store(false, Release);
    }
}

/// Runs a network call with helper threads: those lent to this thread, or else those of rayon's pool. If another call has
/// them, it runs without.
pub(crate) fn with_helpers<T>(call: impl FnOnce() -> T) -> T {
    let lent = LENT.with_borrow(Option::clone);
    let (size, team_exists) = match &lent {
        Some(helpers) => (helpers.pool.current_num_threads(), &helpers.team_exists),
        None => (rayon::current_num_threads(), &TEAM_EXISTS),
    };
    // A thread of the pool must not lead. While it waited for an operator of candle's, rayon could give it a helper's job
    // of its own team, which ends only after the call.
    if size == 1 || rayon::current_thread_index().is_some() || team_exists.swap(true, Acquire) {
        return call();
    }
    fn nothing(_: usize) {}
    let team = ThreadTeam {
        size,
        open: AtomicU64::new(0),
        done: AtomicUsize::new(0),
        work: UnsafeCell::new(&nothing as TaskFn),
        panicked: AtomicBool::new(false),
        over: AtomicBool::new(false),
    };
    match &lent {
        Some(helpers) => helpers.pool.in_place_scope(|scope| lead(scope, &team, team_exists, call)),
        None => rayon::in_place_scope(|scope| lead(scope, &team, team_exists, call)),
    }
}

/// Runs `call` while the other threads of the team help.
fn lead<'a, T>(
    scope: &Scope<'a>,
    team: &'a ThreadTeam,
    team_exists: &'a AtomicBool,
    call: impl FnOnce() -> T,
) -> T {
    let _guard = TeamGuard(team, team_exists);
    (1..team.size).for_each(|_| scope.spawn(|_| team.help()));
    LED_TEAM.set(team);
    call()
}

impl ThreadTeam {
    /// Runs one task of the current work, if one is open. Returns whether it did.
    fn take(&self) -> bool {
        let open = self.open.load(Acquire);
        let left = open as u32 as usize;
        if left == 0 || self.open.compare_exchange(open, open - 1, AcqRel, Relaxed).is_err() {
            return false;
        }
        // SAFETY: the exchange gave this thread a task of the work whose number `open` had. `run_tasks` wrote that work
        // before it opened the tasks. It does not return, or open other tasks, before this task is counted as done.
        let work = unsafe { &**self.work.get() };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(left - 1))) {
            self.panicked.store(true, Relaxed);
            std::mem::forget(payload); // its drop could panic before the task is counted
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

    /// Runs `tasks` tasks on this thread and the helpers, and waits for all of them.
    fn run_tasks(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let led = LED_TEAM.replace(ptr::null()); // a task that has tasks itself runs them on its own thread
        self.done.store(0, Relaxed);
        // SAFETY: only the leading thread calls this, and no task is open or running, so no other thread reads the work.
        // The lifetime is erased, but this function returns only after the last task is done.
        unsafe { *self.work.get() = std::mem::transmute::<&(dyn Fn(usize) + Sync), TaskFn>(work) };
        let number = (self.open.load(Relaxed) >> 32).wrapping_add(1);
        self.open.store(number << 32 | tasks as u64, Release);
        while self.open.load(Relaxed) as u32 > 0 {
            self.take();
        }
        let mut spins = 0;
        while self.done.load(Acquire) < tasks {
            spins = wait(spins);
        }
        LED_TEAM.set(led);
        assert!(!self.panicked.swap(false, Relaxed), "a task of an operator panicked");
    }
}

/// Spins once, or yields the processor if `spins` has reached the limit. Returns the new number of spins.
fn wait(spins: usize) -> usize {
    if spins < SPINS {
        std::hint::spin_loop();
        return spins + 1;
    }
    std::thread::yield_now();
    spins
}

/// Calls `f` with the team that this thread leads.
fn with_team<T>(f: impl FnOnce(Option<&ThreadTeam>) -> T) -> T {
    // SAFETY: `TeamGuard` clears the pointer before its team is dropped.
    f(unsafe { LED_TEAM.get().as_ref() })
}

/// The number of equal tasks that `cost` operations should be divided into.
pub(super) fn threads(cost: usize) -> usize {
    (cost / MIN_TASK).clamp(1, with_team(|team| team.map_or(1, |team| team.size)))
}

/// Calls `f` for every task, on the team's threads if this thread leads a team.
pub(super) fn parallel(tasks: usize, f: impl Fn(usize) + Sync) {
    with_team(|team| match team {
        Some(team) if tasks > 1 && u32::try_from(tasks).is_ok() => team.run_tasks(tasks, &f),
        _ => (0..tasks).for_each(f),
    });
}

/// Calls `f` for every item. Several items form one task, because an item may be too small for a task of its own.
pub(super) fn parallel_items(items: usize, cost_each: usize, f: impl Fn(usize) + Sync) {
    let threads = threads(items * cost_each);
    if threads < 2 {
        return (0..items).for_each(f);
    }
    // Four tasks per thread, so that the others take over the tasks of a thread that loses its processor.
    let tasks = (4 * threads).min(items);
    parallel(tasks, |task| (items * task / tasks..items * (task + 1) / tasks).for_each(&f));
}

/// A pointer to output that several tasks write, each its own part.
#[derive(Clone, Copy)]
pub(super) struct OutputPointer(pub(super) *mut f32);

// SAFETY: a pointer alone is harmless. Code that writes through it proves that the parts do not overlap.
unsafe impl Send for OutputPointer {}
// SAFETY: as above.
unsafe impl Sync for OutputPointer {}

impl OutputPointer {
    pub(super) fn get(self) -> *mut f32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        with_helpers(|| {
            for tasks in (0..400).chain([5000]) {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                parallel(tasks, |task| _ = counts[task].fetch_add(1, Relaxed));
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1));
            }
        });
    }

    #[test]
    fn concurrent_and_nested_calls_end() {
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
