//! The allocations of a warm denoising step. This test is a binary of its own, because it counts with a global allocator
//! and other tests in the process would be counted too.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use mimalloc::MiMalloc;
use pentimento_pipelines::{Components, Device, Model, NoiseSource, Pipeline, Size};

/// The allocator of the `pentimento` binary, with counters.
struct Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// The number of allocated blocks of more than [`LARGE`] bytes.
static BLOCKS: AtomicUsize = AtomicUsize::new(0);
static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static MOST_LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
const LARGE: usize = 4096;

// SAFETY: every call is passed to mimalloc unchanged. The counters are atomics of their own.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BLOCKS.fetch_add(usize::from(layout.size() > LARGE), Relaxed);
        let live = LIVE_BYTES.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST_LIVE_BYTES.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { MiMalloc.dealloc(block, layout) }
    }
}

/// The process's minor page faults; `None` without Linux' procfs.
fn page_faults() -> Option<usize> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses is followed by the state, five numbers, the flags and the minor faults.
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

/// Every operator's result is a block, because candle's tensors own their memory. The number of blocks per step must be
/// constant, and each step must use the memory of the step before instead of new memory from the kernel.
#[test]
fn steps_use_the_memory_of_earlier_steps() {
    let pipeline =
        Pipeline::load(&Model::find("storybook").unwrap(), &Components::default(), &Device::Cpu).unwrap();
    let size = Size { width: 64, height: 64 };
    let conditioning = Arc::new(pipeline.encode("a red house", None, size).unwrap());
    let plan = pipeline.plan(40, 5.0).unwrap();
    let mut trajectory = pipeline.start(conditioning, 1, NoiseSource::default(), size, plan).unwrap();
    let mut step = || {
        let before = (BLOCKS.load(Relaxed), LIVE_BYTES.load(Relaxed), page_faults());
        MOST_LIVE_BYTES.store(before.1, Relaxed);
        pipeline.step(&mut [&mut trajectory]).unwrap();
        let faults = page_faults().zip(before.2).map_or(0, |(now, then)| now - then);
        let needed = MOST_LIVE_BYTES.load(Relaxed) - before.1;
        (
            BLOCKS.load(Relaxed) - before.0,
            LIVE_BYTES.load(Relaxed) as isize - before.1 as isize,
            faults,
            needed,
        )
    };
    (0..10).for_each(|_| _ = step());
    let steps: Vec<_> = (0..20).map(|_| step()).collect();
    println!("per step: (blocks over {LARGE} bytes, bytes kept, page faults, bytes needed) {:?}", steps[0]);
    let faults: usize = steps.iter().map(|s| s.2).sum();
    // It is 409 at present: the results of 205 operators, their scratch memory, and candle's own operators. An additional
    // copy per block of the network would exceed the limit.
    assert!(steps.iter().all(|s| s.0 == steps[0].0 && s.0 <= 450), "{steps:?}");
    // Other threads may free some bytes one step later.
    let kept: isize = steps.iter().map(|s| s.1).sum();
    assert!(kept < 1024, "{kept} bytes are kept: {steps:?}");
    assert!(steps.iter().all(|s| s.3 < 8 << 20), "{steps:?}");
    // If each step used new memory, all its pages would be faults. The allocator may return some pages between two steps,
    // so some faults are allowed.
    let all: usize = steps.iter().map(|s| s.3 / 4096).sum();
    assert!(faults < all / 5, "{faults} pages were asked for in {} steps, which need {all}", steps.len());
}
