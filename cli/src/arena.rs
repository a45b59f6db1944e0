//! The allocator of the program.

use std::sync::OnceLock;

use retouch_kernels::Arena;

/// It, if it is one that keeps what is freed: the watch gives that back when it waits.
pub(crate) static ARENA: OnceLock<&'static Arena> = OnceLock::new();
