//! What the engine and its nodes read through: a file system, and the search for models.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::digest::Digest;
use crate::base::problem::Code;
use crate::files::stamp::FileStamp;

/// A file system that the engine and its nodes read.
///
/// Nothing has a default: what stands above other files must pass every question on to them, and one that it forgot
/// would be answered wrongly without a word.
pub trait Files: ModelLocator + Send + Sync {
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

    /// At most `length` bytes of a file from the byte `offset` on: fewer, or none, when the file ends before. Files that
    /// may be large give it without reading the rest; what is in memory is cut by [`piece`].
    ///
    /// # Errors
    /// As the file system gives them.
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// The BLAKE3 digest of a file's content, memoised by path, size, modification time and inode.
    ///
    /// # Errors
    /// As the file system gives them.
    fn digest(&self, path: &Path) -> io::Result<Digest>;

    /// The SHA-256 digest of a file's content: what hubs and those who publish models name files by. It is computed from
    /// bytes that this process read, never taken from what an earlier one stored.
    ///
    /// # Errors
    /// As the file system gives them; `WouldBlock` where the digest is being computed in the background and is not known
    /// yet.
    fn sha256(&self, path: &Path) -> io::Result<Digest>;

    /// Whether there is a regular file.
    fn is_file(&self, path: &Path) -> bool;

    /// Whether there is a folder.
    fn is_dir(&self, path: &Path) -> bool;

    /// The entries of a folder, sorted by path; links are followed. Listing is not reading: none of it is watched.
    ///
    /// # Errors
    /// As the file system gives them; `Unsupported` from files that have no folders to list.
    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>>;

    /// What tells whether a file or folder is unchanged; `None` when these files cannot tell.
    fn stamp(&self, path: &Path) -> Option<FileStamp>;

    /// From here on no digest counts that an earlier process stored: a file is read in full when its digest is asked
    /// for, once in this process.
    fn doubt(&self);

    /// Stores for the next process what saves it time, if anything does; a failure costs only that time.
    fn flush(&self);
}

/// Where models are: at their paths, below the folders that models are kept in, or on a hub.
pub trait ModelLocator {
    /// Searches the folders that models are kept in, if there are any, for a model that is not at its path. Once it is
    /// found, all reading below `path` goes there. Nodes that load models call it before they look at the files.
    fn find_model(&self, path: &Path) -> Searched;

    /// Where a file really is, for those who map it into memory and for messages.
    fn place(&self, path: &Path) -> PathBuf;

    /// Why what is below a path to a hub cannot be read, if anything keeps it back. It is asked when a node has found
    /// that something is missing.
    fn withheld(&self, path: &Path) -> Option<Withheld>;

    /// The commit that is read where a path leads to a hub; `None` for files of this machine.
    fn commit(&self, path: &Path) -> Option<String>;
}

/// Files of this machine alone: each is at its path, and nothing is searched for or fetched.
pub trait LocalFiles {}

impl<T: LocalFiles> ModelLocator for T {
    fn find_model(&self, _: &Path) -> Searched {
        Searched::default()
    }

    fn place(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    fn withheld(&self, _: &Path) -> Option<Withheld> {
        None
    }

    fn commit(&self, _: &Path) -> Option<String> {
        None
    }
}

/// The bytes of a content that [`Files::read_at`] gives: at most `length` from `offset` on.
#[must_use]
pub fn piece(content: &[u8], offset: u64, length: usize) -> &[u8] {
    let start = usize::try_from(offset).map_or(content.len(), |offset| offset.min(content.len()));
    let end = start.saturating_add(length).min(content.len());
    &content[start..end]
}

/// What keeps a model on a hub from being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// What kind of fault it is.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
    /// Whether it is only not fetched yet, which is no fault of the workflow.
    pub later: bool,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FolderEntry {
    /// Its path, the folder's included.
    pub path: PathBuf,
    /// Its bytes; `None`: it is a folder.
    pub size: Option<u64>,
}

/// Where a model that is not at its path was searched without success; empty when it is there or was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// The folders that were searched.
    pub places: Vec<PathBuf>,
    /// Whether a lock says what the model holds, so that its name alone is not enough.
    pub locked: bool,
}

impl Searched {
    /// Help for a model that was not found: the places, or that there could be some.
    #[must_use]
    pub fn help(&self) -> String {
        if self.places.is_empty() {
            return "folders that models are kept in may be named in RETOUCH_MODELS".to_owned();
        }
        let places: Vec<String> = self
            .places
            .iter()
            .map(|place| place.display().to_string())
            .collect();
        let what = if self.locked {
            ", by the content that the lock file says"
        } else {
            ""
        };
        format!(
            "it was also looked for below {}{what} (RETOUCH_MODELS)",
            places.join(", ")
        )
    }
}

/// Why there is nothing to read at a path where [`Files::is_file`] finds no file, in words.
#[must_use]
pub fn no_file(path: &Path, files: &dyn Files) -> String {
    match files.read_head(path, 0) {
        // A pipe, say: something is there.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            format!("`{}` cannot be read: {error}", path.display())
        }
        _ => format!("there is no file `{}`", path.display()),
    }
}
