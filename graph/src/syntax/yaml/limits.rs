//! What a text may have at most.

/// The largest file, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// How deep maps and lists may be nested.
pub const MAX_DEPTH: usize = 64;
/// How many values aliases may add.
pub const MAX_ALIASED: usize = 100_000;
/// How many bytes of text and keys aliases may add: written out, a file could not have had more.
pub const MAX_ALIASED_BYTES: usize = MAX_BYTES;
