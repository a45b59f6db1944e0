//! The suites of the nodes and of what is under them, one module each, in one program: what they link is linked once.
//!
//! `cargo test -p retouch-nodes --test it laws::` runs one of them. They share a process, so a test changes nothing of it.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

#[path = "../../tests/support/fuzz.rs"]
mod fuzz_support;
mod support;

mod formats;
mod fuzz;
mod headers;
mod laws;
mod look;
mod measure;
mod modules;
mod photos;
mod pickles;
mod pictures;
mod preview;
mod prompts;
mod registry;
mod sdxl;
mod together;
mod tokens;
mod unets;
mod weights;
