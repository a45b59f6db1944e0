//! `retouch`. Everything but the allocator is in the library.

use std::process::ExitCode;

use retouch_kernels::Arena;

/// The memory of tensors; it keeps at most this much that is free.
#[global_allocator]
static ARENA: Arena = Arena::new(512 << 20);

fn main() -> ExitCode {
    retouch_cli::main(&ARENA)
}
