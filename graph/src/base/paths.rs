//! Paths as a workflow means them: without `.` and `..`, seen from a folder.

use std::path::{Component, Path, PathBuf};

use crate::base::remote;

/// The folder of a file.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    file.parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// A path without `.` and `..`, so that a file has one name. The part before a `..` is resolved when it is a link, as
/// the file system does it: `link/../a` is beside the target of the link. All other links are left as they are
/// written.
#[must_use]
pub fn normal(path: &Path) -> PathBuf {
    if remote::is_remote(path) {
        return remote::tidy(path);
    }
    cleaned(path, MAX_LINKS)
}

/// The most links that are followed in a row; the system's own limit is as large.
pub(crate) const MAX_LINKS: usize = 40;

fn cleaned(path: &Path, links: usize) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                let mut left = links;
                while let Some(target) = leads_to(&clean).filter(|_| left > 0) {
                    left -= 1;
                    clean = cleaned(&target, left);
                }
                match clean.components().next_back() {
                    Some(Component::Normal(_)) => {
                        clean.pop();
                    }
                    // Nothing is above the root.
                    Some(Component::RootDir) => {}
                    _ => clean.push(part),
                }
            }
            other => clean.push(other),
        }
    }
    clean
}

/// Where a link leads, seen from where the link's own path is seen from; `None` when it is not a link.
pub(crate) fn leads_to(path: &Path) -> Option<PathBuf> {
    if !matches!(path.components().next_back(), Some(Component::Normal(_))) {
        return None;
    }
    let target = std::fs::read_link(path).ok()?;
    Some(match path.parent() {
        Some(folder) => folder.join(target),
        None => target,
    })
}

/// A path in a form for messages.
pub(crate) fn display(path: &Path) -> String {
    normal(path).display().to_string()
}
