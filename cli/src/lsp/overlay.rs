//! The files as the editor has them: open documents over the disk.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retouch_graph::check::normal;
use retouch_graph::files::piece;
use retouch_graph::{Digest, DiskFiles, FileStamp, Files, MemoryFiles};

/// Open documents over the disk; what is looked at is written down, so that it is known what a change concerns.
#[derive(Debug, Default)]
pub struct Overlay {
    disk: DiskFiles,
    open: Mutex<HashMap<PathBuf, Arc<[u8]>>>,
    seen: Mutex<HashSet<PathBuf>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Overlay {
    /// Sets the text of an open document.
    pub fn set(&self, path: &Path, text: &str) {
        lock(&self.open).insert(path.to_owned(), Arc::from(text.as_bytes()));
    }

    /// Gives the file back to the disk.
    pub fn close(&self, path: &Path) {
        lock(&self.open).remove(path);
    }

    /// The files that were looked at since the last call.
    pub fn take_seen(&self) -> HashSet<PathBuf> {
        std::mem::take(&mut lock(&self.seen))
    }

    fn opened(&self, path: &Path) -> Option<Arc<[u8]>> {
        let path = normal(path);
        let open = lock(&self.open).get(&path).cloned();
        lock(&self.seen).insert(path);
        open
    }
}

impl Files for Overlay {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        self.opened(path).map_or_else(|| self.disk.read(path), Ok)
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        match self.opened(path) {
            Some(content) => Ok((
                content[..length.min(content.len())].to_vec(),
                content.len() as u64,
            )),
            None => self.disk.read_head(path, length),
        }
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        match self.opened(path) {
            Some(content) => Ok(piece(&content, offset, length).to_vec()),
            None => self.disk.read_at(path, offset, length),
        }
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        match self.opened(path) {
            Some(content) => MemoryFiles::new().with(path, content).digest(path),
            None => self.disk.digest(path),
        }
    }

    fn is_file(&self, path: &Path) -> bool {
        self.opened(path).is_some() || self.disk.is_file(path)
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        match self.opened(path) {
            Some(_) => None,
            None => self.disk.stamp(path),
        }
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.disk.is_dir(path)
    }
}
