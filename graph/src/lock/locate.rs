//! The search for what a lock names and is not at its path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::base::paths::normal;
use crate::base::remote;
use crate::files::Files;
use crate::lock::content::{Lock, LockedFile, LockedKind};

/// How deep the folders of models are looked through; a hub's cache of snapshots is five levels deep.
const MAX_DEPTH: usize = 8;
/// How many files and folders of one search folder are looked at.
const MAX_ENTRIES: usize = 100_000;

/// Something that is read from another place than the one it is named by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Redirect {
    /// What it is named: a file, or a model's folder.
    pub from: PathBuf,
    /// Where it was found.
    pub to: PathBuf,
}

/// What [`locate`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Located {
    /// Where each file that is not at its path is read instead.
    pub files: Vec<Redirect>,
    /// The same for people: a model's folder stands for all its files.
    pub found: Vec<Redirect>,
    /// Models and assets that are not at their paths and were not found.
    pub lost: Vec<PathBuf>,
    /// The search folders that hold more than is looked at.
    pub cut: Vec<PathBuf>,
}

/// What is looked for as a whole: a model with its files by their places in it, or a single file.
struct Missing<'a> {
    from: PathBuf,
    /// Place below `from` (empty: it is `from` itself), and the file.
    files: Vec<(PathBuf, &'a LockedFile)>,
}

/// Looks for the models and assets of a lock that are not at their paths: below the folders `roots`, for a file, or a
/// folder with all files of the model at the same places, with the same digests. `folder` is the workflow's.
///
/// Sizes are compared before anything is digested; digests are memoised by `files`. Folders are looked through 8
/// levels deep and up to 100,000 files and folders each, nothing at all when nothing is missing.
#[must_use]
pub fn locate(lock: &Lock, folder: &Path, roots: &[PathBuf], files: &dyn Files) -> Located {
    let mut located = Located::default();
    let all: Vec<Missing<'_>> = relocatable(lock, folder)
        .into_iter()
        .filter(|missing| {
            let there = |place: &PathBuf| files.is_file(&below(&missing.from, place));
            !missing.files.iter().all(|(place, _)| there(place))
        })
        .collect();
    if all.is_empty() {
        return located;
    }
    let mut by_size: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for root in roots {
        if !index(root, files, &mut by_size) {
            located.cut.push(root.clone());
        }
    }
    for missing in all {
        let Some(to) = search(&missing, &by_size, files) else {
            located.lost.push(missing.from);
            continue;
        };
        for (place, _) in &missing.files {
            located.files.push(Redirect {
                from: below(&missing.from, place),
                to: below(&to, place),
            });
        }
        located.found.push(Redirect {
            from: missing.from,
            to,
        });
    }
    located
}

/// `folder/place`; the folder itself for an empty place, where `join` would end the path in a separator.
fn below(folder: &Path, place: &Path) -> PathBuf {
    if place.as_os_str().is_empty() {
        folder.to_owned()
    } else {
        folder.join(place)
    }
}

/// What can be looked for elsewhere: assets, and models as a whole.
fn relocatable<'a>(lock: &'a Lock, folder: &Path) -> Vec<Missing<'a>> {
    let mut all: Vec<Missing<'a>> = Vec::new();
    for file in &lock.files {
        // What is on a hub is found there.
        if remote::is_remote(Path::new(&file.path)) {
            continue;
        }
        if file.elsewhere || !matches!(file.kind, LockedKind::Asset | LockedKind::Model) {
            continue;
        }
        let path = Path::new(&file.path);
        let named = file.model.as_deref().map_or(path, Path::new);
        let (named, place) = match path.strip_prefix(named) {
            Ok(place) => (named, place),
            // A model folder that is the workflow's own, or one that the lock was tampered with: each file by itself.
            Err(_) => (path, Path::new("")),
        };
        let from = normal(&folder.join(named));
        let entry = (place.to_owned(), file);
        match all.iter_mut().find(|missing| missing.from == from) {
            Some(missing) => missing.files.push(entry),
            None => all.push(Missing {
                from,
                files: vec![entry],
            }),
        }
    }
    all
}

/// Lists what lies below a folder, by size; false when there is more than is looked at.
fn index(root: &Path, files: &dyn Files, by_size: &mut BTreeMap<u64, Vec<PathBuf>>) -> bool {
    let mut level = vec![root.to_owned()];
    let mut count = 0;
    for _ in 0..MAX_DEPTH {
        let mut next = Vec::new();
        for folder in level {
            // A folder that cannot be read is skipped.
            for entry in files.entries(&folder).unwrap_or_default() {
                count += 1;
                if count > MAX_ENTRIES {
                    return false;
                }
                match entry.size {
                    Some(size) => by_size.entry(size).or_default().push(entry.path),
                    None => next.push(entry.path),
                }
            }
        }
        level = next;
    }
    level.is_empty()
}

/// Where the missing files are: all of them at the same places below one folder, with the same digests.
fn search(
    missing: &Missing<'_>,
    by_size: &BTreeMap<u64, Vec<PathBuf>>,
    files: &dyn Files,
) -> Option<PathBuf> {
    // The largest file is the most distinctive; the others are compared beside it, the smallest first.
    let (anchor, largest) = missing.files.iter().max_by_key(|(_, file)| file.size)?;
    let mut rest: Vec<_> = missing.files.iter().collect();
    rest.sort_by_key(|(_, file)| file.size);
    let mut candidates: Vec<PathBuf> = by_size
        .get(&largest.size)?
        .iter()
        .filter_map(|path| {
            if anchor.as_os_str().is_empty() {
                return Some(path.clone());
            }
            let depth = anchor.components().count();
            path.ends_with(anchor)
                .then(|| path.ancestors().nth(depth).map(Path::to_owned))
                .flatten()
        })
        .collect();
    // Those of the same name come first.
    let name = missing.from.file_name();
    candidates.sort_by_key(|path| path.file_name() != name);
    candidates.into_iter().find(|to| {
        let at = |place: &Path| below(to, place);
        let sized = |file: &LockedFile, place: &Path| {
            by_size
                .get(&file.size)
                .is_some_and(|paths| paths.contains(&at(place)))
        };
        rest.iter().all(|(place, file)| sized(file, place))
            && rest.iter().all(|(place, file)| {
                files
                    .digest(&at(place))
                    .is_ok_and(|digest| digest == file.blake3)
            })
    })
}
