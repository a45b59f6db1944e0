//! The commands, one file each.

pub mod bundle;
pub mod cache;
pub mod check;
pub mod config;
pub mod convert;
pub mod explain;
pub mod fetch;
pub mod fmt;
pub mod graph;
pub mod inspect;
pub mod lock;
pub mod lsp;
pub mod man;
pub mod new;
pub mod nodes;
pub mod plan;
pub mod recipe;
pub mod run;
pub mod runs;
pub mod sweep;
pub mod verify;
#[cfg(feature = "view")]
pub mod view;
pub mod watch;
