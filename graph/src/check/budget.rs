//! Limits on the size of a workflow with everything included.

use std::cell::Cell;

use serde_json::Value as Json;

use crate::base::problem::{Code, Problem, Source, Span};

/// How many nodes a workflow may have with everything included.
pub const MAX_NODES: usize = 200_000;

/// How many bytes of text the values of a workflow may have with everything filled in: params in templates and under
/// `with:`, defaults of each `use`, and in a sweep all cells together.
pub const MAX_TEXT: usize = 128 << 20;

/// How many levels of `use` there may be.
pub const MAX_LEVELS: usize = 64;

/// How many nodes a workflow has with everything included.
#[derive(Clone, Copy, Default)]
pub(super) struct NodeCount {
    pub(super) ops: usize,
    pub(super) uses: usize,
}

impl NodeCount {
    pub(super) fn add(&mut self, other: Self) {
        self.ops = self.ops.saturating_add(other.ops);
        self.uses = self.uses.saturating_add(other.uses);
    }

    pub(super) fn is_too_much(self) -> bool {
        self.ops > MAX_NODES || self.uses >= MAX_NODES
    }
}

/// What is left of [`MAX_TEXT`].
pub(crate) struct TextBudget(Cell<Option<usize>>);

impl TextBudget {
    pub(crate) fn new() -> Self {
        Self(Cell::new(Some(MAX_TEXT)))
    }

    /// Whether there is room for so many bytes more. Once there was not, there never is.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let left = self.0.get().and_then(|left| left.checked_sub(bytes));
        self.0.set(left);
        left.is_some()
    }
}

/// The bytes of the texts in a value.
pub(crate) fn text_bytes(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(text_bytes).sum(),
        Json::Object(entries) => (entries.iter())
            .map(|(key, value)| key.len() + text_bytes(value))
            .sum(),
        _ => 0,
    }
}

/// The fault of values that have more text than [`MAX_TEXT`].
pub(crate) fn too_much_text(source: &Source, span: Span) -> Problem {
    Problem::new(
        Code::TooMuchText,
        source,
        span,
        format!(
            "with everything filled in the values have more than {} MiB of text",
            MAX_TEXT >> 20
        ),
    )
    .help("is a long text filled in many times over?")
}
