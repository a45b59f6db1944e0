//! Files that are read from where they were found: as a lock says, or below the folders of models.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::base::digest::Digest;
use crate::base::paths::normal;
use crate::base::remote;
use crate::base::sync;
use crate::files::{FileStamp, Files, FolderEntry, ModelLocator, Searched, Withheld};
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
/// A file at its own path is always read there. Digests, and so keys, do not depend on places.
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
    /// they are gone or the lock has their content: a resumed run reads them there. `folder` is the workflow's.
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
            // A file that has appeared at its own path is read there.
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
        let (at, mut entries) = (normal(folder), Vec::new());
        // Files that were found elsewhere are in the folder that they are named in.
        let found: Vec<(PathBuf, PathBuf)> = (sync::lock(&self.table).files.iter())
            .filter(|(file, _)| file.parent() == Some(&at))
            .map(|(file, to)| (file.clone(), to.clone()))
            .collect();
        for (file, to) in found {
            if !self.inner.is_file(&file)
                && let Ok((_, size)) = self.inner.read_head(&to, 0)
            {
                entries.push(FolderEntry {
                    path: file,
                    size: Some(size),
                });
            }
        }
        match (self.inner.entries(folder), self.elsewhere(folder)) {
            (Ok(here), _) => entries.extend(here),
            (Err(_), Some(to)) => {
                entries.extend(self.inner.entries(&to)?.into_iter().filter_map(|entry| {
                    Some(FolderEntry {
                        path: folder.join(entry.path.file_name()?),
                        size: entry.size,
                    })
                }))
            }
            (Err(_), None) if !entries.is_empty() => {}
            (Err(error), None) => return Err(error),
        }
        entries.sort();
        Ok(entries)
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

impl ModelLocator for RedirectedFiles {
    fn find_model(&self, path: &Path) -> Searched {
        if remote::is_remote(path) {
            return self.inner.find_model(path);
        }
        if self.is_dir(path) || self.is_file(path) {
            return Searched::default();
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
                        return Searched::default();
                    }
                }
            }
        }
        Searched {
            places: self.models.clone(),
            locked,
        }
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.inner.place(&self.found(path))
    }

    fn withheld(&self, path: &Path) -> Option<Withheld> {
        self.inner.withheld(path)
    }

    fn commit(&self, path: &Path) -> Option<String> {
        self.inner.commit(path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::{DiskFiles, MemoryFiles, piece};

    #[test]
    fn a_piece_of_a_file_is_the_same_from_the_disk_from_memory_and_from_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (folder.path().join("a"), folder.path().join("kept/a"));
        let content: Vec<u8> = (0..=255).collect();
        fs::create_dir(folder.path().join("kept")).unwrap();
        fs::write(&there, &content).unwrap();
        let disk = Arc::new(DiskFiles::new());
        let inner = Arc::clone(&disk) as Arc<dyn Files>;
        let redirected = RedirectedFiles::new(inner, vec![folder.path().join("kept")]);
        assert_eq!(redirected.find_model(&here), Searched::default());
        let memory = MemoryFiles::new().with(&here, &content);
        for (offset, length) in [
            (0, 3),
            (250, 6),
            (250, 100),
            (256, 1),
            (u64::MAX / 2, 8),
            (7, 0),
        ] {
            let from = usize::try_from(offset).unwrap().min(256);
            let expected = &content[from..(from + length).min(256)];
            assert_eq!(piece(&content, offset, length), expected);
            assert_eq!(disk.read_at(&there, offset, length).unwrap(), expected);
            assert_eq!(memory.read_at(&here, offset, length).unwrap(), expected);
            assert_eq!(redirected.read_at(&here, offset, length).unwrap(), expected);
        }
        // What was read so is watched.
        assert!(disk.read_so_far().contains(&there));
        // A change is seen where the file is, and a file that comes to its own path.
        let stamp = redirected.stamp(&here);
        assert!(stamp.is_some() && stamp == disk.stamp(&there));
        fs::write(&there, "longer or shorter").unwrap();
        assert_ne!(redirected.stamp(&here), stamp);
        fs::write(&here, &content).unwrap();
        assert_eq!(redirected.stamp(&here), disk.stamp(&here));
        fs::remove_file(&here).unwrap();
        assert!(disk.read_at(&here, 0, 1).is_err());
    }

    #[test]
    fn a_folder_lists_what_was_found_elsewhere_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let (named, kept) = (folder.path().join("photos"), folder.path().join("kept"));
        fs::create_dir(&kept).unwrap();
        for (name, content) in [("x.png", "one"), ("b.png", "three")] {
            fs::write(kept.join(name), content).unwrap();
        }
        let redirected = RedirectedFiles::new(Arc::new(DiskFiles::new()), Vec::new());
        assert!(redirected.entries(&named).is_err());
        // Found one by one: each under the name that it is asked for by.
        let files = [
            ("a.png", "x.png"),
            ("b.png", "b.png"),
            ("deep/c.png", "b.png"),
        ];
        sync::lock(&redirected.table).files = (files.iter())
            .map(|(name, at)| (normal(&named.join(name)), kept.join(at)))
            .collect();
        let listed = |redirected: &RedirectedFiles| -> Vec<(String, u64)> {
            (redirected.entries(&named).unwrap().into_iter())
                .map(|e| {
                    (
                        e.path.file_name().unwrap().to_str().unwrap().to_owned(),
                        e.size.unwrap(),
                    )
                })
                .collect()
        };
        let both = [("a.png".to_owned(), 3), ("b.png".to_owned(), 5)];
        assert_eq!(listed(&redirected), both);
        // What is there itself is listed once.
        fs::create_dir(&named).unwrap();
        fs::write(named.join("b.png"), "here").unwrap();
        assert_eq!(
            listed(&redirected),
            [both[0].clone(), ("b.png".to_owned(), 4)]
        );
        // A whole folder that was found.
        fs::remove_dir_all(&named).unwrap();
        sync::lock(&redirected.table).files.clear();
        sync::lock(&redirected.table).folders = vec![Redirect {
            from: normal(&named),
            to: kept.clone(),
        }];
        assert_eq!(
            listed(&redirected),
            [both[1].clone(), ("x.png".to_owned(), 3)]
        );
        assert!(
            redirected.entries(&named).unwrap()[0]
                .path
                .starts_with(&named)
        );
    }

    #[test]
    fn redirected_files_doubt_what_is_below_them() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memo) = (folder.path().join("weights"), folder.path().join("memo"));
        let content = vec![1; 1 << 20];
        fs::write(&file, &content).unwrap();
        let opened = fs::File::options().write(true).open(&file).unwrap();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        opened.set_modified(old).unwrap();
        let with_memo = || DiskFiles::with_memo(Some(memo.clone()));
        let first = with_memo();
        let digest = first.digest(&file).unwrap();
        first.flush();
        let again = with_memo();
        assert_eq!(again.digest(&file).unwrap(), digest);
        assert_eq!(again.digested(), 0);
        let below = Arc::new(with_memo());
        let above = RedirectedFiles::new(Arc::clone(&below) as Arc<dyn Files>, Vec::new());
        above.doubt();
        assert_eq!(above.digest(&file).unwrap(), digest);
        assert_eq!(below.digested(), 1 << 20);
    }
}
