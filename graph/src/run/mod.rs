//! The scheduler, what it reports, and the files that it saves.

pub mod device;
pub mod event;
pub mod execute;
pub mod running;
pub mod save;
