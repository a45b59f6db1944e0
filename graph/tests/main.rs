//! The suites of the engine, one module each, in one program.
//!
//! `cargo test -p retouch-graph --test it keeps::` runs one of them. They share a process, so a test changes nothing of it.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod common;

mod engine;
mod faults;
mod keeps;
mod layers;
mod order;
mod robust;
mod sweep;
