//! All reading goes through one trait: content digests are memoised, and what was read is the watch list.

mod disk;
mod memo;
mod memory;
pub mod output_path;
mod pieces;
pub(crate) mod read;
mod stamp;
mod traits;
pub mod write;

pub use disk::DiskFiles;
pub use memory::MemoryFiles;
pub use read::{open, read, read_text};
pub use stamp::FileStamp;
pub use traits::{
    Files, FolderEntry, LocalFiles, ModelLocator, Searched, Withheld, no_file, piece,
};
