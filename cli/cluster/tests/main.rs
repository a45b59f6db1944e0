//! The tests of the store's client, of claims, and of what a cluster does to them.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod s3;
mod simulation;
mod support;
