//! What a step asks of the allocator, once warm.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use mimalloc::MiMalloc;
use pentimento_pipelines::{Components, Device, Model, NoiseSource, Pipeline, Size};

/// The binary's allocator, counted.
struct Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Blocks of more than [`LARGE`] bytes that were asked for.
static BLOCKS: AtomicUsize = AtomicUsize::new(0);
static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static MOST_LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
const LARGE: usize = 4096;

// SAFETY: every call is handed to mimalloc as it came; the counts touch no memory but their own.
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

/// Pages that the kernel had to give this process. Without Linux' procfs, `None`.
fn page_faults() -> Option<usize> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name in parentheses: state, five numbers, flags, then minor faults.
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

/// candle's tensors own their memory, so that every operator's result is a block. What must hold: it is a fixed number
/// of blocks per step, the memory of one step serves the next, and the kernel is not asked for any.
#[test]
fn steps_live_on_the_memory_of_those_before() {
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
    // 409 at present: results of 205 operators, their scratch, candle's own operators in between. Copies added to every
    // block of the network would be seen.
    assert!(steps.iter().all(|s| s.0 == steps[0].0 && s.0 <= 450), "{steps:?}");
    // Other threads free some bytes a step later than others.
    let kept: isize = steps.iter().map(|s| s.1).sum();
    assert!(kept < 1024, "{kept} bytes are kept: {steps:?}");
    assert!(steps.iter().all(|s| s.3 < 8 << 20), "{steps:?}");
    // Where each step's memory were new to the process, all its pages would be. On a crowded machine the allocator gives
    // some back between two steps.
    let all: usize = steps.iter().map(|s| s.3 / 4096).sum();
    assert!(faults < all / 5, "{faults} pages were asked for in {} steps, which need {all}", steps.len());
}
