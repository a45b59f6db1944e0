//! What tells whether a file is unchanged, without reading it.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// Size, times and inode of a file: while they are the same, so is its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity {
    pub(super) size: u64,
    pub(super) modified: Option<SystemTime>,
    pub(super) inode: (u64, u64),
    /// When the inode itself changed, which no program sets: a file that was replaced in place under its old time.
    pub(super) changed: (i64, i64),
}

impl FileIdentity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let (inode, changed) = {
            use std::os::unix::fs::MetadataExt;
            (
                (metadata.dev(), metadata.ino()),
                (metadata.ctime(), metadata.ctime_nsec()),
            )
        };
        #[cfg(not(unix))]
        let (inode, changed) = ((0, 0), (0, 0));
        Self {
            size: metadata.len(),
            modified: metadata.modified().ok(),
            inode,
            changed,
        }
    }
}

/// What tells whether a file or folder is unchanged, or still missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp(Seen);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Missing,
    There(FileIdentity),
    /// Equal to no file.
    Never,
}

impl FileStamp {
    /// The stamp of what is at a path of the disk; `None` when the system cannot tell.
    pub(super) fn of(path: &Path) -> Option<Self> {
        Some(Self(match fs::metadata(path) {
            Ok(metadata) => Seen::There(FileIdentity::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Missing,
            Err(_) => return None,
        }))
    }

    /// A stamp that no file has.
    pub(crate) fn never() -> Self {
        Self(Seen::Never)
    }
}
