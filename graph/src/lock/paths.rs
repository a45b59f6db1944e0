//! Paths as a lock writes them: from the workflow's folder, with `/`, the same on every system.

use std::path::{Component, Path, PathBuf};

use crate::base::paths::{MAX_LINKS, display, leads_to, normal};
use crate::base::problem::{Code, Problem, Source, Span};
use crate::base::remote::{self, Address};

/// So many named folders must be shared by the workflow's place and a file's for a path between them to be written
/// down: what lies above is the machine's layout and its users' names.
const SHARED_FOLDERS: usize = 2;

/// Whether a name may stand in a lock: the same on every system.
fn portable(name: &str) -> bool {
    !name.is_empty() && !name.contains('\\') && !name.contains(char::is_control)
}

/// The path from a folder to a file as a lock writes it, with `/`; `None` when there is none that could be shared, or
/// a name in it is not the same on every system.
#[must_use]
pub fn shareable(folder: &Path, file: &Path) -> Option<String> {
    if remote::is_remote(file) {
        return remote_path(file);
    }
    slashed(&relative(folder, file)?, file).ok()
}

/// A path to a hub as a lock writes it.
pub(super) fn remote_path(path: &Path) -> Option<String> {
    Some(Address::parse(path).ok()?.to_string())
}

/// A path from one folder to a file; `None` when there is none that could be shared.
pub(super) fn relative(folder: &Path, file: &Path) -> Option<PathBuf> {
    // As the workflow wrote it: right even where the folder is a link. What climbs out of the folder may come back into
    // it, or go where nobody else's business is: that is told below.
    let (folder, file) = (&normal(folder), &normal(file));
    if let Ok(rest) = file.strip_prefix(folder)
        && !rest.is_absolute()
        && !rest.starts_with("..")
    {
        return Some(rest.to_owned());
    }
    let folder = normal(
        &std::path::absolute(if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        })
        .ok()?,
    );
    let file = normal(&std::path::absolute(file).ok()?);
    let mut folder = folder;
    let mut links = 0;
    let (depth, named) = loop {
        let shared = folder
            .components()
            .zip(file.components())
            .take_while(|(a, b)| a == b)
            .map(|(part, _)| part);
        let (mut depth, mut named) = (0, 0);
        for part in shared {
            depth += 1;
            named += usize::from(matches!(part, Component::Normal(_)));
        }
        // `..` leads out of the folder that a link leads to, not out of the one that the link is in.
        let mut above = folder.clone();
        let mut below = PathBuf::new();
        let link = loop {
            if above.components().count() <= depth || links >= MAX_LINKS {
                break None;
            }
            if let Some(target) = leads_to(&above) {
                break Some(target);
            }
            let name = above.file_name().map(PathBuf::from)?;
            below = if below.as_os_str().is_empty() {
                name
            } else {
                name.join(below)
            };
            above.pop();
        };
        match link {
            Some(target) => folder = normal(&target.join(below)),
            None => break (depth, named),
        }
        links += 1;
    };
    if named < SHARED_FOLDERS {
        return None;
    }
    let mut path = PathBuf::new();
    for _ in folder.components().skip(depth) {
        path.push("..");
    }
    path.extend(file.components().skip(depth));
    Some(path)
}

/// A path with `/`; a fault when a name in it is not the same everywhere.
pub(super) fn slashed(path: &Path, file: &Path) -> Result<String, Problem> {
    let mut text = String::new();
    for part in path.components() {
        let name = match part {
            Component::CurDir => continue,
            Component::ParentDir => Some(".."),
            Component::Normal(name) => name.to_str().filter(|name| portable(name)),
            Component::Prefix(_) | Component::RootDir => None,
        };
        let Some(name) = name else {
            let shown = display(file);
            return Err(Problem::new(
                Code::LockName,
                &Source::new(&*shown, ""),
                Span::default(),
                format!(
                    "the name of `{}` cannot be written down",
                    shown.escape_debug()
                ),
            )
            .help("rename the file to letters, digits, `-`, `_` and `.`, and what names it"));
        };
        if !text.is_empty() {
            text.push('/');
        }
        text.push_str(name);
    }
    if text.is_empty() {
        text.push('.');
    }
    Ok(text)
}

/// The part of a model file's path that names the model: what is left when the end that its role gives is taken off.
pub(super) fn model_of(path: &Path, role: &str) -> PathBuf {
    let mut folder = path;
    for part in Path::new(role).components().rev() {
        match (folder.file_name(), folder.parent()) {
            (Some(name), Some(parent)) if name == part.as_os_str() => folder = parent,
            _ => break,
        }
    }
    folder.to_owned()
}

/// A path as a lock writes it: relative, with `/`, `..` at the beginning alone.
pub(super) fn is_locked_path(path: &str) -> bool {
    if remote::is_remote(Path::new(path)) {
        // Written as it is read, so that one file has one name.
        return remote_path(Path::new(path)).as_deref() == Some(path);
    }
    let mut named = false;
    let sound = path.split('/').all(|part| match part {
        ".." => !named,
        "" | "." => false,
        name => {
            named = true;
            portable(name)
        }
    });
    // `C:` at the beginning would be a drive on some systems.
    let drive = matches!(path.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    sound && !drive
}
