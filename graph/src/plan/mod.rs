//! From a checked workflow to tasks with keys, and what of them is there.

mod draw;
pub mod forecast;
pub mod guard;
#[expect(clippy::module_inception, reason = "the room and what it is about")]
pub mod plan;
pub mod priority;
pub mod record;
pub mod steps;
pub mod targets;
pub mod task;
