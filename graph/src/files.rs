//! All reading goes through one trait: content digests are memoised, and what was read is the watch list.

use std::io;
use std::path::Path;
use std::sync::Arc;

/// The digest of a file's content: BLAKE3, 256 bits.
pub type Digest = [u8; 32];

/// Reads files for the engine and its nodes.
pub trait Files: Send + Sync {
    /// The content of a file.
    ///
    /// # Errors
    /// As the file system gives them.
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>>;

    /// The first `length` bytes of a file (fewer when it is shorter) and its whole length.
    ///
    /// # Errors
    /// As the file system gives them.
    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)>;

    /// The digest of a file's content, memoised by path, size, modification time and inode.
    ///
    /// # Errors
    /// As the file system gives them.
    fn digest(&self, path: &Path) -> io::Result<Digest>;

    /// Whether there is a regular file.
    fn is_file(&self, path: &Path) -> bool;

    /// Whether there is a folder.
    fn is_dir(&self, path: &Path) -> bool;
}
