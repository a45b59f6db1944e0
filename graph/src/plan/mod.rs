//! From a checked workflow to tasks with keys, and what of them is there.

pub mod forecast;
pub mod guard;
pub mod plan;
