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

pub use server::serve;
pub use text::uri_of;
pub use workspace::Workspace;
