//! The nodes.
