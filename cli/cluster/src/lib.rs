//! Sweeps beyond one machine, below the workflows: no workflow, tensor or argument is known here.
//!
//! [`objects`] is what is asked of a store, [`client`] the stores that there are, [`place`] their addresses, [`probe`] tries
//! whether one can be relied on. [`claims`] says who does which chunk of a run; docs/clusters.md has the protocol. [`chunks`]
//! cuts a run into chunks, [`slurm`] speaks to Slurm through its commands.

pub mod chunks;
pub mod claims;
pub mod client;
mod http;
pub mod memory;
pub mod objects;
pub mod place;
pub mod probe;
pub mod redact;
pub mod slurm;

pub use claims::{Board, Claim, Clock, Next};
pub use client::{Environment, Store};
pub use http::authorities;
pub use objects::{Fault, Listed, Objects};
pub use place::Place;
