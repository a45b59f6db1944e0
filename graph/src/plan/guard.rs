//! Whether the files that nodes read are still those that their keys were made of.
//!
//! Keys hold the digests that files had while the plan was made. Nodes read the files later, and some values (a model)
//! still read them when other nodes use them. So before an output is kept, the files behind it are compared with what
//! they were: by their stamps, one system call each, and by their digests only where a stamp differs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::base::digest::Digest;
use crate::base::error::NodeError;
use crate::base::key::Key;
use crate::base::sync::lock;
use crate::files::{FileStamp, Files};
use crate::op::erased::ErasedNode;
use crate::op::node::ReadFile;

/// A file whose digest is part of a key, and what it was when the digest was taken.
#[derive(Debug)]
struct Digested {
    role: String,
    path: PathBuf,
    digest: Digest,
    /// `None`: these files have no stamps, and digests are compared instead.
    stamp: Option<FileStamp>,
}

impl Digested {
    fn of(file: &ReadFile, files: &dyn Files) -> io::Result<Self> {
        // The stamp is taken before the digest, so that a change in between is noticed later. Where taking the digest
        // itself changes the stamp (a hub's file that is fetched), both are taken again.
        let mut stamp = files.stamp(&file.path);
        let mut digest = files.digest(&file.path)?;
        let after = files.stamp(&file.path);
        if after != stamp {
            stamp = after;
            digest = files.digest(&file.path)?;
        }
        Ok(Self {
            role: file.role.clone(),
            path: file.path.clone(),
            digest,
            stamp,
        })
    }

    fn verdict(&self, files: &dyn Files) -> Verdict {
        let stamp = self.stamp.as_ref().zip(files.stamp(&self.path));
        if stamp.as_ref().is_some_and(|(then, now)| *then == now) {
            return Verdict::Same;
        }
        match files.digest(&self.path) {
            Ok(digest) if digest == self.digest => match stamp {
                Some(_) => Verdict::Touched(self.path.clone()),
                None => Verdict::Same,
            },
            Ok(_) => Verdict::Changed(changed(&self.path, "was changed")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Verdict::Changed(changed(&self.path, "was removed"))
            }
            Err(error) => {
                Verdict::Changed(changed(&self.path, &format!("became unreadable ({error})")))
            }
        }
    }
}

/// What became of files since their digests were taken.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// They are the same files.
    Same,
    /// This one has the same content, but it was written, or replaced, in the meantime: it may have had another one while
    /// it was read.
    Touched(PathBuf),
    /// One of them has different content: the failure of the node that reads it.
    Changed(NodeError),
}

/// The files behind what a task makes: those that it reads, and those behind the lazy values that it is given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guard {
    own: Arc<[Arc<Digested>]>,
    all: Arc<[Arc<Digested>]>,
}

impl Guard {
    /// Takes the digests of the files that a node reads; also returns them by role. `fault` is called for each file that cannot be read.
    pub(crate) fn of(
        reads: &[ReadFile],
        files: &dyn Files,
        mut fault: impl FnMut(&Path, io::Error),
    ) -> (Self, Vec<(String, Digest)>) {
        let mut own = Vec::with_capacity(reads.len());
        for file in reads {
            match Digested::of(file, files) {
                Ok(digested) => own.push(Arc::new(digested)),
                Err(error) => fault(&file.path, error),
            }
        }
        let digests = own
            .iter()
            .map(|file| (file.role.clone(), file.digest))
            .collect();
        let own: Arc<[_]> = own.into();
        let all = Arc::clone(&own);
        (Self { own, all }, digests)
    }

    /// The same with the files behind lazy inputs.
    #[must_use]
    pub(crate) fn with<'a>(self, inputs: impl Iterator<Item = &'a Self>) -> Self {
        let mut inputs = inputs.filter(|input| !input.all.is_empty()).peekable();
        if inputs.peek().is_none() {
            return self;
        }
        let mut seen: HashSet<*const Digested> = HashSet::new();
        let all = (self.own.iter())
            .chain(inputs.flat_map(|input| input.all.iter()))
            .filter(|file| seen.insert(Arc::as_ptr(file)))
            .cloned()
            .collect();
        Self { all, ..self }
    }

    fn paths(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.all.iter().map(|file| file.path.clone()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// Whether a file is among those behind the task.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.all.iter().any(|file| file.path == path)
    }

    /// What became of all files behind the task since their digests were taken.
    pub(crate) fn verdict(&self, files: &dyn Files) -> Verdict {
        let mut touched = None;
        for file in &*self.all {
            match file.verdict(files) {
                Verdict::Same => {}
                Verdict::Touched(path) => touched = Some(path),
                changed @ Verdict::Changed(_) => return changed,
            }
        }
        touched.map_or(Verdict::Same, Verdict::Touched)
    }

    /// The same once the node has run: also whether it would still read the same files. One that appeared or vanished in
    /// the meantime may have been read without being part of the key.
    pub(crate) fn verdict_after(&self, node: &dyn ErasedNode, files: &dyn Files) -> Verdict {
        let verdict = self.verdict(files);
        if matches!(verdict, Verdict::Changed(_)) {
            return verdict;
        }
        let own = self.own.iter().map(|file| (&file.role, &file.path));
        let reads = node.reads(files).unwrap_or_default();
        let now = reads.iter().map(|file| (&file.role, &file.path));
        if now.clone().eq(own.clone()) {
            return verdict;
        }
        let then: HashSet<_> = own.collect();
        let now: HashSet<_> = now.collect();
        if let Some((_, path)) = now.difference(&then).min() {
            return Verdict::Changed(changed(path, "appeared"));
        }
        match then.difference(&now).min() {
            Some((_, path)) => Verdict::Changed(changed(
                path,
                "is no longer read: it, or a file beside it, changed",
            )),
            None => verdict,
        }
    }
}

/// From which files the lazy values that a cache holds are read. Their keys do not tell: a copy of a model has the key of
/// the original, and one that was made from the original must not stand for the copy once the original is gone.
#[derive(Debug, Default)]
pub(crate) struct Lazies(Mutex<HashMap<Key, Vec<PathBuf>>>);

/// How many entries are recorded; beyond that all are forgotten, and made again when they are needed.
const MOST: usize = 1024;

impl Lazies {
    /// Notes the files behind the lazy values that are kept under a key.
    pub(crate) fn note(&self, key: Key, guard: &Guard) {
        let mut known = lock(&self.0);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key, guard.paths());
    }

    /// Whether the lazy values that are kept under a key read the files that the guard watches.
    pub(crate) fn fit(&self, key: &Key, guard: &Guard) -> bool {
        lock(&self.0)
            .get(key)
            .is_some_and(|paths| *paths == guard.paths())
    }
}

fn changed(path: &Path, how: &str) -> NodeError {
    NodeError::failed(format!(
        "`{}` {how} while the run was using it",
        path.display()
    ))
    .help("run it again: the plan is made again, and nothing that was made from the changed file was kept")
}
