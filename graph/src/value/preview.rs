//! Previews: what a node is drawing, while it does. They are no part of a key and change no result.

use std::fmt;

use crate::base::error::NodeError;
use crate::value::payload::Value;

/// How good a preview is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quality {
    /// An approximation that costs next to nothing.
    #[default]
    Quick,
    /// What the finished picture is made with, whatever that costs.
    Exact,
}

/// Shows what nodes are drawing, from several threads.
pub trait Previewer: fmt::Debug + Send + Sync {
    /// Whether what `node` has after `done` of `of` steps is to be shown, and how well.
    fn wants(&self, node: &str, done: usize, of: usize) -> Option<Quality>;

    /// Shows it: `picture` can be saved as PNG. The node waits meanwhile.
    ///
    /// # Errors
    /// When it cannot be shown. It is reported once a run, which continues.
    fn show(&self, node: &str, done: usize, of: usize, picture: &Value) -> Result<(), NodeError>;
}
