//! Where the outputs of nodes are kept under their keys: in memory ([`HostCache`]), on disk ([`DiskCache`]), or in the
//! memory of a device over that of the host over the disk ([`TieredCache`]), and below those in a store that several machines
//! share ([`RemoteCache`]).

pub mod disk;
#[cfg(test)]
mod fake;
mod host;
pub mod in_flight;
mod interface;
mod remote;
mod tiered;

pub use disk::{DiskCache, DiskEntry, Verified};
pub use host::HostCache;
pub(crate) use interface::changed;
pub use interface::{Cache, NoCache, Outputs};
pub use remote::{Remote, RemoteCache};
pub use tiered::TieredCache;
