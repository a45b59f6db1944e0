//! The scheduler, what it reports, and the files that it saves.

mod deliver;
pub mod device;
pub mod event;
pub mod execute;
mod host;
pub mod job;
mod node_run;
pub mod report;
pub mod running;
pub mod save;
mod scheduler;
