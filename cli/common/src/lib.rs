//! What the command line and its viewer share: how text is printed, how a command ends, and who looks on while a workflow
//! is watched.

pub mod exit;
mod failure;
pub mod output;
pub mod safe;
mod text;
pub mod watching;

pub use exit::Exit;
pub use failure::Failure;
pub use text::{duration, parse_size, total};

/// A number that seeds called `random` are drawn from.
#[must_use]
pub fn fresh_draw() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() >> 12
}
