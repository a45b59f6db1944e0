//! Bundles: a workflow with what it reads, in one file to share (`docs/sharing.md` writes the format down).
//!
//! A bundle is a zstd frame around a plain ustar archive whose first member is a manifest. Whatever comes out of one is
//! a third party's: nothing is believed that was not checked, and nothing is written outside of a folder made for it.

pub mod manifest;
pub mod names;
pub mod pack;
pub mod tar;
pub mod unpack;

use std::io;
use std::path::{Path, PathBuf};

use retouch_graph::problem::{Code, Problem, Source, Span};

use crate::Failure;

/// The four bytes that a zstd frame begins with.
pub const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The member that says what is in the bundle; always the first.
pub const MANIFEST: &str = "retouch-bundle.yaml";
/// How many files a bundle may hold, the manifest not counted.
pub const MAX_FILES: usize = 10_000;
/// How many bytes the files of a bundle may be, unless `--max-unpacked` says more.
pub const MAX_UNPACKED: u64 = 1 << 30;
/// How many times its own size a bundle may unpack to. Pictures and weights barely shrink; text shrinks to a tenth.
pub const MAX_RATIO: u64 = 100;
/// Unpacked size that is accepted at any ratio: a few kilobytes of zeros do no harm.
pub const RATIO_FREE: u64 = 16 << 20;
/// The largest asset that is packed, unless `--max-asset` says more.
pub const MAX_ASSET: u64 = 64 << 20;

/// Why a bundle was not made or not taken.
#[derive(Debug)]
pub enum Error {
    /// Something is wrong with it, with a code that `retouch explain` knows.
    Refused(Box<Refused>),
    /// Something failed around it.
    Failed(Failure),
    /// A file or folder cannot be written: the disk is full or read-only.
    Unwritable(PathBuf, io::Error),
}

/// What is wrong with a bundle.
#[derive(Debug)]
pub struct Refused {
    /// The code.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Error {
    /// A fault of a bundle.
    pub fn refused(code: Code, message: impl Into<String>) -> Self {
        Self::Refused(Box::new(Refused {
            code,
            message: message.into(),
            help: None,
        }))
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        if let Self::Refused(refused) = &mut self {
            refused.help = Some(help.into());
        }
        self
    }

    /// The same as a command that was given the file `name` reports it.
    ///
    /// # Errors
    /// What is no fault of the bundle.
    pub fn problem(self, name: &Path) -> Result<Problem, Failure> {
        match self {
            Self::Failed(failure) => Err(failure),
            Self::Unwritable(path, error) => Err(Failure::unwritable(format!(
                "{} cannot be written: {error}",
                path.display()
            ))),
            Self::Refused(refused) => {
                let help = refused.help.unwrap_or_else(|| {
                    "get it again from its source; if it was made by hand, pack it with `retouch bundle`"
                        .to_owned()
                });
                let source = Source::new(name.display().to_string(), "");
                let message = format!("the bundle is refused: {}", refused.message);
                Ok(Problem::new(refused.code, &source, Span::default(), message).help(help))
            }
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Whether a file is a bundle by its first bytes, or called one.
#[must_use]
pub fn is_bundle(path: &Path) -> bool {
    // A pipe is not looked into: what is read of it is gone.
    if !path.is_file() {
        return false;
    }
    let mut head = [0; 4];
    let read = retouch_graph::files::open(path)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut head));
    let named = path.to_string_lossy().ends_with(".tar.zst");
    named || (read.is_ok() && head == MAGIC)
}
