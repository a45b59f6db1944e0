//! Files in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use crate::base::digest::Digest;
use crate::base::paths::normal;
use crate::base::sync::lock;
use crate::files::stamp::FileStamp;
use crate::files::traits::{Files, FolderEntry, LocalFiles, piece};

/// Files in memory, for tests; folders are what lies before a file's name.
#[derive(Debug, Default)]
pub struct MemoryFiles {
    files: Mutex<BTreeMap<PathBuf, Arc<[u8]>>>,
}

impl MemoryFiles {
    /// Starts with no files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file, or replaces it.
    pub fn insert(&self, path: impl Into<PathBuf>, content: impl AsRef<[u8]>) {
        let path = normal(&path.into());
        lock(&self.files).insert(path, Arc::from(content.as_ref()));
    }

    /// Adds a file to what is built up.
    #[must_use]
    pub fn with(self, path: impl Into<PathBuf>, content: impl AsRef<[u8]>) -> Self {
        self.insert(path, content);
        self
    }
}

impl Files for MemoryFiles {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        lock(&self.files)
            .get(&normal(path))
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such file"))
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        let content = self.read(path)?;
        let head = content[..length.min(content.len())].to_vec();
        Ok((head, content.len() as u64))
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        Ok(piece(&self.read(path)?, offset, length).to_vec())
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        self.read(path)
            .map(|content| *blake3::hash(&content).as_bytes())
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        Ok(Sha256::digest(&*self.read(path)?).into())
    }

    fn doubt(&self) {}

    fn flush(&self) {}

    fn stamp(&self, _: &Path) -> Option<FileStamp> {
        None // a digest costs nothing here
    }

    fn is_file(&self, path: &Path) -> bool {
        self.read(path).is_ok()
    }

    fn is_dir(&self, path: &Path) -> bool {
        let folder = normal(path);
        lock(&self.files)
            .keys()
            .any(|file| file != &folder && file.starts_with(&folder))
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        let folder = normal(folder);
        let mut entries = Vec::new();
        for (file, content) in &*lock(&self.files) {
            let Ok(rest) = file.strip_prefix(&folder) else {
                continue;
            };
            let mut parts = rest.components();
            let Some(first) = parts.next() else {
                continue;
            };
            let size = parts.next().is_none().then_some(content.len() as u64);
            entries.push(FolderEntry {
                path: folder.join(first),
                size,
            });
        }
        entries.sort();
        entries.dedup();
        Ok(entries)
    }
}

impl LocalFiles for MemoryFiles {}
