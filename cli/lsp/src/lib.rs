//! The language server: the checker's faults, completion, help and navigation in any editor.
//!
//! [`Workspace`] answers questions about open documents and knows nothing of messages; [`serve`] turns messages into
//! questions. One thread does both, so that an answer is always about the text that the client last sent; another one
//! reads, so that of several changes that wait only the last is checked.

mod completion;
mod diagnostics;
mod edits;
mod hover;
mod index;
mod navigation;
mod outline;
mod overlay;
mod server;
mod text;
pub mod wire;
mod workspace;

pub use server::{End, serve};
pub use text::uri_of;
pub use workspace::Workspace;

use std::sync::Arc;

use retouch_graph::Files;

/// Wraps the files that a workspace reads, the open documents over the disk, in what else a command reads files through:
/// models on hubs and in other folders.
pub type Wrap<'a> = &'a dyn Fn(Arc<dyn Files>) -> Arc<dyn Files>;
