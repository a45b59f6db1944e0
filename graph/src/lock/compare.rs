//! How a lock differs from what is read now.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::base::digest::{Digest, short};
use crate::base::remote;
use crate::files::Files;
use crate::lock::content::Lock;

/// How a file differs from what a lock says of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// It holds something else.
    Changed {
        /// The file, as the lock names it.
        path: String,
        /// The digest in the lock.
        from: Digest,
        /// Its digest now.
        to: Digest,
    },
    /// The lock has it, and it is not read, or not there.
    Missing {
        /// The file, as the lock names it.
        path: String,
        /// The digest in the lock.
        was: Digest,
    },
    /// It is read, and the lock does not have it.
    New {
        /// The file, as the lock would name it.
        path: String,
        /// Its digest.
        is: Digest,
    },
}

impl Difference {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Changed { path, .. } | Self::Missing { path, .. } | Self::New { path, .. } => {
                path
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { path, from, to } => {
                write!(f, "{path}: changed ({} -> {})", short(from), short(to))
            }
            Self::Missing { path, was } => write!(f, "{path}: missing (was {})", short(was)),
            Self::New { path, is } => write!(f, "{path}: not in the lock (is {})", short(is)),
        }
    }
}

impl Lock {
    /// What differs: `self` is the lock, `now` what is read. Sorted by path.
    #[must_use]
    pub fn compare(&self, now: &Self) -> Vec<Difference> {
        let by_name = |lock: &Self| {
            let mut files: BTreeMap<(String, bool), Vec<Digest>> = BTreeMap::new();
            for file in &lock.files {
                files
                    .entry((file.path.clone(), file.elsewhere))
                    .or_default()
                    .push(file.blake3);
            }
            files
        };
        let mut there = by_name(now);
        let mut differences = Vec::new();
        for ((path, elsewhere), mut was) in by_name(self) {
            let mut is = there.remove(&(path.clone(), elsewhere)).unwrap_or_default();
            was.retain(|digest| {
                let same = is.iter().position(|other| other == digest);
                same.map(|at| is.remove(at)).is_none()
            });
            // A file may be read as two things (an asset and a model): what is the same is the same.
            let mut pairs = is.into_iter();
            for from in was {
                differences.push(match pairs.next() {
                    Some(to) => Difference::Changed {
                        path: path.clone(),
                        from,
                        to,
                    },
                    None => Difference::Missing {
                        path: path.clone(),
                        was: from,
                    },
                });
            }
            differences.extend(pairs.map(|is| Difference::New {
                path: path.clone(),
                is,
            }));
        }
        for ((path, _), is) in there {
            differences.extend(is.into_iter().map(|is| Difference::New {
                path: path.clone(),
                is,
            }));
        }
        differences.sort_by(|a, b| a.path().cmp(b.path()).then_with(|| a.cmp(b)));
        differences.dedup();
        differences
    }

    /// What keeps a run with `--locked` from beginning: what is read and is not in the lock as it is. Other settings
    /// may read less than the lock has, which is no difference.
    #[must_use]
    pub fn violations(&self, now: &Self) -> Vec<Difference> {
        self.compare(now)
            .into_iter()
            .filter(|difference| !matches!(difference, Difference::Missing { .. }))
            .collect()
    }

    /// The locked files that are not there, by where the lock says they are. `folder` is the workflow's.
    #[must_use]
    pub fn absent(&self, folder: &Path, files: &dyn Files) -> Vec<Difference> {
        self.files
            .iter()
            .filter(|file| !file.elsewhere && !files.is_file(&remote::join(folder, &file.path)))
            .map(|file| Difference::Missing {
                path: file.path.clone(),
                was: file.blake3,
            })
            .collect()
    }
}
