//! What every later phase uses: errors, paths, digests, keys, problems with their places.

pub mod digest;
pub mod draw;
pub mod error;
pub mod interrupt;
pub mod key;
pub mod order;
pub mod paths;
pub mod problem;
pub mod remote;
pub mod suggest;
pub mod sync;
pub mod text;
