//! Values that are tried in place of what files say, and the files as the engine then reads them.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retouch_graph::files::piece;
use retouch_graph::paths::normal;
use retouch_graph::{
    Digest, FileStamp, Files, FolderEntry, MemoryFiles, Searched, Settings, Withheld,
};
use serde_json::Value as Json;

use super::{Change, Place, Refused, line, one};

/// The values that are tried in place of what files say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trying {
    files: BTreeMap<PathBuf, Vec<Change>>,
}

/// A path as this module knows it.
fn identity(path: &Path) -> PathBuf {
    normal(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

/// Whether two paths name one file: one of them may be relative to the current folder.
#[must_use]
pub fn is_one(a: &Path, b: &Path) -> bool {
    a == b || identity(a) == identity(b)
}

impl Trying {
    /// Whether nothing is tried.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Tries a value.
    pub fn set(&mut self, file: &Path, place: Place, value: Json) {
        let changes = self.files.entry(identity(file)).or_default();
        match changes.iter_mut().find(|change| change.place == place) {
            Some(change) => change.value = value,
            None => changes.push(Change { place, value }),
        }
    }

    /// Goes back to what the file says.
    pub fn reset(&mut self, file: &Path, place: &Place) {
        let file = identity(file);
        if let Some(changes) = self.files.get_mut(&file) {
            changes.retain(|change| change.place != *place);
            if changes.is_empty() {
                self.files.remove(&file);
            }
        }
    }

    /// Goes back to what all files say.
    pub fn reset_all(&mut self) {
        self.files.clear();
    }

    /// What is tried in a file.
    #[must_use]
    pub fn of(&self, file: &Path) -> &[Change] {
        self.files.get(&identity(file)).map_or(&[], Vec::as_slice)
    }

    /// The files in which something is tried.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[Change])> {
        (self.files.iter()).map(|(file, changes)| (file.as_path(), changes.as_slice()))
    }

    /// Gives the engine the tried texts: call it before each load, as the files may have changed. A value that a file
    /// says by now is no longer tried, unless `settings` say otherwise; one that cannot be written into it is reported and
    /// left out.
    pub fn apply(
        &mut self,
        overlay: &Overlay,
        settings: &Settings,
    ) -> Vec<(PathBuf, Place, Refused)> {
        // What `--set` or `--params` say would count again.
        let outranked = |place: &Place| {
            let Place::Param(name) = place else {
                return false;
            };
            let named =
                |set: &String| (set.split_once('=')).is_some_and(|(known, _)| known.trim() == name);
            !settings.params.is_empty() || settings.set.iter().any(named)
        };
        let mut refused = Vec::new();
        let mut texts = HashMap::new();
        self.files.retain(|file, changes| {
            let text = match overlay.inner.read(file) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(_) => return true, // that it is missing is for the engine to say
            };
            let mut new = text.clone();
            changes.retain(|change| match one(&new, change) {
                Ok(edited) if edited == new => outranked(&change.place),
                Ok(edited) => {
                    new = edited;
                    true
                }
                Err(error) => {
                    refused.push((file.clone(), change.place.clone(), error));
                    true
                }
            });
            if new != text {
                texts.insert(file.clone(), Arc::from(new.into_bytes()));
            }
            !changes.is_empty()
        });
        *lock(&overlay.texts) = texts;
        refused
    }

    /// Lets tried params of the workflow `file` count more than `--set` and `--params`, which count more than any file.
    pub fn outrank(&self, file: &Path, settings: &mut Settings) {
        for change in self.of(file) {
            let Place::Param(name) = &change.place else {
                continue;
            };
            settings
                .set
                .retain(|set| (set.split_once('=')).is_none_or(|(known, _)| known.trim() != name));
            // Without such a file the tried text says it all.
            if !settings.params.is_empty() {
                let value = match &change.value {
                    Json::String(text) => text.clone(),
                    value => line(value, false),
                };
                settings.set.push(format!("{name}={value}"));
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files of which some hold a tried text. The files below are asked too, so that what is read is watched.
pub struct Overlay {
    inner: Arc<dyn Files>,
    texts: Mutex<HashMap<PathBuf, Arc<[u8]>>>,
}

impl Overlay {
    /// Reads through `inner`, as long as nothing is tried.
    #[must_use]
    pub fn new(inner: Arc<dyn Files>) -> Self {
        Self {
            inner,
            texts: Mutex::default(),
        }
    }

    fn tried(&self, path: &Path) -> Option<Arc<[u8]>> {
        let texts = lock(&self.texts);
        if texts.is_empty() {
            return None;
        }
        texts.get(&identity(path)).cloned()
    }
}

impl Files for Overlay {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        let below = self.inner.read(path);
        self.tried(path).map_or(below, Ok)
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        let below = self.inner.read_head(path, length);
        match self.tried(path) {
            Some(text) => Ok((piece(&text, 0, length).to_vec(), text.len() as u64)),
            None => below,
        }
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let below = self.inner.read_at(path, offset, length);
        match self.tried(path) {
            Some(text) => Ok(piece(&text, offset, length).to_vec()),
            None => below,
        }
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        let below = self.inner.digest(path);
        match self.tried(path) {
            Some(text) => MemoryFiles::new().with(path, text).digest(path),
            None => below,
        }
    }

    fn is_file(&self, path: &Path) -> bool {
        self.inner.is_file(path)
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.inner.is_dir(path)
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        self.inner.entries(folder)
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        match self.tried(path) {
            Some(text) => MemoryFiles::new().with(path, text).sha256(path),
            None => self.inner.sha256(path),
        }
    }

    fn doubt(&self) {
        self.inner.doubt();
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        match self.tried(path) {
            Some(_) => None,
            None => self.inner.stamp(path),
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

impl retouch_graph::ModelLocator for Overlay {
    fn find_model(&self, path: &Path) -> Searched {
        self.inner.find_model(path)
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.inner.place(path)
    }

    fn withheld(&self, path: &Path) -> Option<Withheld> {
        self.inner.withheld(path)
    }

    fn commit(&self, path: &Path) -> Option<String> {
        self.inner.commit(path)
    }
}
