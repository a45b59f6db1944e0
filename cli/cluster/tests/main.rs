//! The tests of the store's client, of claims, and of what a cluster does to them.

mod s3;
mod simulation;
mod support;
