//! The binary: everything is in the library.

use std::process::ExitCode;

/// Activations come and go with every operator; the system's allocator gives such blocks back to the kernel each time,
/// and the page faults cost a tenth of a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pentimento::commands::main()
}
