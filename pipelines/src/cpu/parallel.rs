//! Work in rayon's pool: as many tasks as pay, and no more.

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

/// Operations that a task must have to be worth handing to another thread (some ten microseconds).
const TASK: usize = 400_000;

/// Into how many equal tasks `cost` operations are to be cut.
pub(super) fn threads(cost: usize) -> usize {
    (cost / TASK).clamp(1, rayon::current_num_threads())
}

/// Calls `f` for every task, each in a thread of its own where there are several.
pub(super) fn parallel(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    if tasks < 2 {
        (0..tasks).for_each(f);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(f);
    }
}

/// Calls `f` for every one of `items`, many of which may be too small for a task of their own.
pub(super) fn parallel_items(items: usize, cost_each: usize, f: impl Fn(usize) + Sync + Send) {
    // Four per thread, so that a thread that was called away does not keep the others waiting.
    let tasks = (4 * threads(items * cost_each)).min(items);
    if threads(items * cost_each) < 2 {
        return (0..items).for_each(f);
    }
    parallel(tasks, |task| (items * task / tasks..items * (task + 1) / tasks).for_each(&f));
}

/// Runs `f` inside the pool, so that the operators in it are handed to a neighbour and not each from without.
pub(crate) fn in_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| f())
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
