//! From the text of a workflow to declarations with byte spans, and back.

pub mod format;
pub(crate) mod mismatch;
pub mod params;
pub mod template;
pub mod workflow;
pub mod yaml;
