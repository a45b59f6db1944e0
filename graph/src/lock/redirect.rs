//! Files that are read from where they were found: as a lock says, or below the folders of models.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::base::digest::Digest;
use crate::base::paths::normal;
use crate::base::remote;
use crate::base::sync;
use crate::files::{FileStamp, Files, FolderEntry, Sought, Withheld};
use crate::lock::content::Lock;
use crate::lock::locate::{Located, Redirect, locate};

/// How many names at the end of a path are tried below a search folder: `models/world` and then `world`.
const NAMES: usize = 3;

#[derive(Debug, Default)]
struct Table {
    /// Single files, by where they are named (normal).
    files: BTreeMap<PathBuf, PathBuf>,
    /// Whole folders, by where they are named.
    folders: Vec<Redirect>,
    /// Models whose content is known, so that a folder of the same name will not do.
    strict: BTreeSet<PathBuf>,
    /// What was found since the last call of [`RedirectedFiles::news`].
    news: Vec<Redirect>,
}

/// Files that are read from where they were found when they are not where they are named.
///
/// What is at its own place is always read there. Digests, and so keys, do not depend on places.
pub struct RedirectedFiles {
    inner: Arc<dyn Files>,
    models: Vec<PathBuf>,
    table: Mutex<Table>,
}

impl std::fmt::Debug for RedirectedFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedirectedFiles")
            .field("models", &self.models)
            .field("table", &sync::lock(&self.table))
            .finish_non_exhaustive()
    }
}

impl RedirectedFiles {
    /// Reads through `inner`; models that are not at their paths are looked for below the folders `models`, in order.
    #[must_use]
    pub fn new(inner: Arc<dyn Files>, models: Vec<PathBuf>) -> Self {
        Self {
            inner,
            models,
            table: Mutex::default(),
        }
    }

    /// The folders that models are looked for in.
    #[must_use]
    pub fn models(&self) -> &[PathBuf] {
        &self.models
    }

    /// Finds what a lock has and is not at its path ([`locate`]), and reads it there from now on,
    /// in place of what an earlier lock had. Models that were found by their name stay where they were found, unless
    /// they are gone or the lock says what they hold: a run that goes on reads them there. `folder` is the workflow's.
    pub fn locate(&self, lock: Option<&Lock>, folder: &Path) -> Located {
        let located = lock
            .map(|lock| locate(lock, folder, &self.models, &*self.inner))
            .unwrap_or_default();
        let mut table = Table::default();
        for file in &located.files {
            let from = normal(&file.from);
            table.files.insert(from, file.to.clone());
        }
        let lost = located.lost.iter();
        table.strict = lost.map(|path| normal(path)).collect();
        table.news.clone_from(&located.found);
        let is_there = |path: &Path| self.inner.is_dir(path) || self.inner.is_file(path);
        let mut current = sync::lock(&self.table);
        table.folders = std::mem::take(&mut current.folders);
        (table.folders).retain(|found| !table.strict.contains(&found.from) && is_there(&found.to));
        *current = table;
        located
    }

    /// What was found elsewhere since the last call of this.
    #[must_use]
    pub fn news(&self) -> Vec<Redirect> {
        std::mem::take(&mut sync::lock(&self.table).news)
    }

    /// The path that is read: where a file was found when it is not at its own place.
    fn found(&self, path: &Path) -> PathBuf {
        match self.elsewhere(path) {
            // What came to its own place meanwhile is read there.
            Some(elsewhere) if !self.inner.is_file(path) => elsewhere,
            _ => path.to_owned(),
        }
    }

    /// Where a path leads, if anywhere else.
    fn elsewhere(&self, path: &Path) -> Option<PathBuf> {
        if remote::is_remote(path) {
            return None;
        }
        let path = normal(path);
        let table = sync::lock(&self.table);
        if let Some(to) = table.files.get(&path) {
            return Some(to.clone());
        }
        table.folders.iter().find_map(|folder| {
            let rest = path.strip_prefix(&folder.from).ok()?;
            // `join` with nothing would end the path in a separator.
            Some(if rest.as_os_str().is_empty() {
                folder.to.clone()
            } else {
                folder.to.join(rest)
            })
        })
    }
}

impl Files for RedirectedFiles {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        self.inner.read(&self.found(path))
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        self.inner.read_head(&self.found(path), length)
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.inner.read_at(&self.found(path), offset, length)
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        self.inner.digest(&self.found(path))
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        self.inner.sha256(&self.found(path))
    }

    fn doubt(&self) {
        self.inner.doubt();
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        self.inner.stamp(&self.found(path))
    }

    fn withheld(&self, path: &Path) -> Option<Withheld> {
        self.inner.withheld(path)
    }

    fn commit(&self, path: &Path) -> Option<String> {
        self.inner.commit(path)
    }

    fn is_file(&self, path: &Path) -> bool {
        self.inner.is_file(path)
            || self
                .elsewhere(path)
                .is_some_and(|path| self.inner.is_file(&path))
    }

    fn is_dir(&self, path: &Path) -> bool {
        if self.inner.is_dir(path) {
            return true;
        }
        let folder = normal(path);
        sync::lock(&self.table)
            .files
            .keys()
            .any(|file| file != &folder && file.starts_with(&folder))
            || self
                .elsewhere(path)
                .is_some_and(|path| self.inner.is_dir(&path))
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        self.inner.entries(folder)
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.inner.place(&self.found(path))
    }

    fn seek(&self, path: &Path) -> Sought {
        if remote::is_remote(path) {
            return self.inner.seek(path);
        }
        if self.is_dir(path) || self.is_file(path) {
            return Sought::default();
        }
        let from = normal(path);
        let locked = sync::lock(&self.table).strict.contains(&from);
        let names: Vec<_> = from
            .components()
            .filter(|part| matches!(part, std::path::Component::Normal(_)))
            .collect();
        if !locked {
            for root in &self.models {
                for first in names.len().saturating_sub(NAMES)..names.len() {
                    let to = root.join(names[first..].iter().collect::<PathBuf>());
                    if self.inner.is_dir(&to) || self.inner.is_file(&to) {
                        let redirect = Redirect { from, to };
                        let mut table = sync::lock(&self.table);
                        table.news.push(redirect.clone());
                        table.folders.retain(|found| found.from != redirect.from);
                        table.folders.push(redirect);
                        return Sought::default();
                    }
                }
            }
        }
        Sought {
            places: self.models.clone(),
            locked,
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}
