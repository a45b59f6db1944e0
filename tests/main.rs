//! The end-to-end suites, one module each, in one program: what they link is linked once.
//!
//! `cargo test -p retouch-cli --test it sweep::` runs one of them. They share a process, so a test changes nothing of it: neither the
//! environment nor the current folder. `workspace::every_suite_is_run` notices a file that is not a module here.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

#[path = "support/fuzz.rs"]
mod fuzz_support;
mod support;

mod animation;
mod checkpoints;
mod circles;
mod crash;
mod events;
mod far;
mod formats;
mod fuzz;
mod hub;
mod invalid;
mod lsp;
mod models;
mod oracle;
mod preview;
mod program;
mod prompts;
mod provenance;
mod reading;
mod references;
mod reuse;
mod runs;
mod schedulers;
mod sdxl;
mod sharing;
mod subjects;
mod sweep;
mod terminal;
mod watch;
mod workspace;
