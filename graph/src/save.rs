//! Writes outputs below the output folder: to a temporary name first, then renamed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::files::lock;
use crate::node::NodeError;
use crate::problem::Code;
use crate::value::Value;

/// What to do when a file is there already and has other bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exists {
    /// Write beside it: `42-2.png`.
    #[default]
    Number,
    /// Write over it.
    Replace,
    /// Leave it.
    Keep,
    /// Fail.
    Fail,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SaveStatus {
    /// It was not there.
    New,
    /// It was there and is another one now.
    Replaced,
    /// It was there with the same bytes.
    Unchanged,
    /// It was there and was left as it was.
    Kept,
    /// It was written beside the one that was there.
    Numbered,
}

/// A file that was to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// Where it is.
    pub path: PathBuf,
    /// What became of it.
    pub status: SaveStatus,
}

/// Why an output was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The path leaves the output folder.
    #[error("`{path}` cannot be saved to: {why}")]
    Unsafe {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The value cannot be written in that format.
    #[error("`{path}` cannot be written: {source}")]
    Encode {
        /// The path.
        path: String,
        /// What the value says.
        source: NodeError,
    },
    /// The file is there, and it is not to be touched.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("`{}` cannot be written: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
}

impl SaveError {
    /// What kind of failure it is.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Unsafe { .. } => Code::UnsafePath,
            Self::Encode { .. } => Code::OutputNotEncoded,
            Self::Exists { .. } => Code::OutputExists,
            Self::Io { .. } => Code::OutputUnwritable,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Unsafe { .. } => "save below the output folder: `pictures/{seed}.png`".to_owned(),
            Self::Encode { source, .. } => match source {
                NodeError::Failed {
                    help: Some(help), ..
                } => help.clone(),
                _ => "choose another ending in `save`".to_owned(),
            },
            Self::Exists { .. } => {
                "remove it, save elsewhere, or run with `--exists number`, `replace` or `keep`"
                    .to_owned()
            }
            Self::Io { .. } => {
                "check the output folder: whether it can be written to and has room".to_owned()
            }
        }
    }
}

/// Whether a value may stand in a template of a path: it must not pass for a folder or leave the output folder.
pub(crate) fn check_value(value: &str) -> Result<(), &'static str> {
    if value.contains(['/', '\\']) {
        return Err("a value in a path cannot have a separator in it");
    }
    if value == "." || value == ".." {
        return Err("that is a folder of its own meaning");
    }
    if value.chars().any(char::is_control) {
        return Err("a value in a path cannot have control characters in it");
    }
    if value.contains(':') {
        return Err("not every system can have a `:` in a file's name");
    }
    Ok(())
}

/// Whether a path stays below the output folder.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("it is empty".to_owned());
    }
    if path.starts_with('/') {
        return Err("it is absolute".to_owned());
    }
    if path.contains('\\') {
        return Err("it has a `\\` in it; folders are separated by `/`".to_owned());
    }
    if path.contains(':') {
        return Err("not every system can have a `:` in a file's name".to_owned());
    }
    if path.chars().any(char::is_control) {
        return Err("it has control characters in it".to_owned());
    }
    for part in path.split('/') {
        match part {
            "" => return Err("a part of it is empty".to_owned()),
            ".." => return Err("`..` leads out of the output folder".to_owned()),
            "." => return Err("`.` names no file".to_owned()),
            // The most that file systems allow, and room for a number.
            part if part.len() > 240 => return Err("a name in it is too long".to_owned()),
            _ => {}
        }
    }
    Ok(())
}

/// The ending of a path in lower case, without the dot.
pub(crate) fn ending(path: &str) -> Option<String> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let (stem, ending) = name.rsplit_once('.')?;
    (!stem.is_empty() && !ending.is_empty()).then(|| ending.to_ascii_lowercase())
}

/// Writes into files of outputs where they come from.
pub trait Stamp: std::fmt::Debug + Send + Sync {
    /// Gives the bytes to write for a file of an output, of a format (`png`); those that it was given where it has
    /// nothing to say.
    fn stamp(&self, output: &str, format: &str, bytes: Vec<u8>) -> Vec<u8>;
}

/// Writes the outputs of runs below one folder.
#[derive(Debug)]
pub struct Saver {
    out: PathBuf,
    exists: Exists,
    replace_own: bool,
    /// What this one wrote; and in this run.
    own: Mutex<HashSet<PathBuf>>,
    run: Mutex<HashSet<PathBuf>>,
    temporary: AtomicU64,
}

impl Saver {
    /// Saves below `out`.
    pub fn new(out: impl Into<PathBuf>, exists: Exists) -> Self {
        Self {
            out: out.into(),
            exists,
            replace_own: false,
            own: Mutex::default(),
            run: Mutex::default(),
            temporary: AtomicU64::new(0),
        }
    }

    /// Replaces what this one wrote in earlier runs, whatever else is done with files that exist: for watching.
    #[must_use]
    pub fn replacing_own(mut self) -> Self {
        self.replace_own = true;
        self
    }

    /// Replaces these files too: an earlier run of the same wrote them, and nobody changed them since.
    #[must_use]
    pub fn owning(self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        lock(&self.own).extend(paths);
        self.replacing_own()
    }

    /// Writes a file that is no value of the run, as the values are.
    ///
    /// # Errors
    /// When the path leaves the folder, or the file system refuses.
    pub fn write_file(&self, path: &str, bytes: &[u8]) -> Result<Saved, SaveError> {
        check_path(path).map_err(|why| SaveError::Unsafe {
            path: path.to_owned(),
            why,
        })?;
        self.write(path, bytes)
    }

    /// The output folder.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Begins another run: its files may replace those of the run before.
    pub fn begin(&self) {
        lock(&self.run).clear();
    }

    /// Writes a value, one file or several (`name_0.png`, `name_1.png`).
    ///
    /// # Errors
    /// When the path leaves the folder, the value cannot be written in that format, or the file system refuses.
    pub fn save(&self, path: &str, value: &Value) -> Result<Vec<Saved>, SaveError> {
        self.save_stamped(path, value, &|_, bytes| bytes)
    }

    /// The same; `stamp` is given the format and the bytes of each file, and gives those that are written.
    ///
    /// # Errors
    /// As [`Saver::save`].
    pub fn save_stamped(
        &self,
        path: &str,
        value: &Value,
        stamp: &dyn Fn(&str, Vec<u8>) -> Vec<u8>,
    ) -> Result<Vec<Saved>, SaveError> {
        check_path(path).map_err(|why| SaveError::Unsafe {
            path: path.to_owned(),
            why,
        })?;
        let encode = |source| SaveError::Encode {
            path: path.to_owned(),
            source,
        };
        let format = ending(path).ok_or_else(|| {
            encode(NodeError::failed(
                "it has no ending that says how to save it",
            ))
        })?;
        let files = value.encode(&format).map_err(encode)?;
        let files: Vec<Vec<u8>> = (files.into_iter())
            .map(|bytes| stamp(&format, bytes))
            .collect();
        let several = files.len() > 1;
        files
            .iter()
            .enumerate()
            .map(|(index, bytes)| {
                let path = if several {
                    suffixed(path, &format!("_{index}"))
                } else {
                    path.to_owned()
                };
                self.write(&path, bytes)
            })
            .collect()
    }

    fn write(&self, relative: &str, bytes: &[u8]) -> Result<Saved, SaveError> {
        let path = self.out.join(relative);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|source| {
                // The system only says that something is there already.
                let file = folder.ancestors().find(|above| above.is_file());
                let source = match file {
                    Some(file) => io::Error::new(
                        source.kind(),
                        format!("`{}` is a file, where a folder is due", file.display()),
                    ),
                    None => source,
                };
                SaveError::Io {
                    path: folder.to_owned(),
                    source,
                }
            })?;
        }
        // One output at a time looks for a free name; what takes long, making the bytes, is done already.
        let mut run = lock(&self.run);
        let mut own = lock(&self.own);
        let taken_now = run.contains(&path);
        let mine = self.replace_own && own.contains(&path) && !taken_now;
        let exists = match self.exists {
            _ if mine => Exists::Replace,
            // Two outputs of one run never overwrite each other.
            Exists::Replace | Exists::Keep if taken_now => Exists::Number,
            exists => exists,
        };
        let saved = self.place(&path, relative, bytes, exists)?;
        run.insert(saved.path.clone());
        if matches!(
            saved.status,
            SaveStatus::New | SaveStatus::Replaced | SaveStatus::Numbered
        ) {
            own.insert(saved.path.clone());
        }
        Ok(saved)
    }

    fn place(
        &self,
        path: &Path,
        relative: &str,
        bytes: &[u8],
        exists: Exists,
    ) -> Result<Saved, SaveError> {
        let saved = |path: &Path, status| {
            Ok(Saved {
                path: path.to_owned(),
                status,
            })
        };
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| SaveError::Io { path, source }
        };
        if !path.exists() {
            self.put(path, bytes).map_err(error(path))?;
            return saved(path, SaveStatus::New);
        }
        if same(path, bytes).map_err(error(path))? {
            return saved(path, SaveStatus::Unchanged);
        }
        match exists {
            Exists::Keep => saved(path, SaveStatus::Kept),
            Exists::Fail => Err(SaveError::Exists {
                path: path.to_owned(),
            }),
            Exists::Replace => {
                self.put(path, bytes).map_err(error(path))?;
                saved(path, SaveStatus::Replaced)
            }
            Exists::Number => {
                for number in 2u64.. {
                    let candidate = self.out.join(suffixed(relative, &format!("-{number}")));
                    if !candidate.exists() {
                        self.put(&candidate, bytes).map_err(error(&candidate))?;
                        return saved(&candidate, SaveStatus::Numbered);
                    }
                    if same(&candidate, bytes).map_err(error(&candidate))? {
                        return saved(&candidate, SaveStatus::Unchanged);
                    }
                }
                Err(SaveError::Exists {
                    path: path.to_owned(),
                })
            }
        }
    }

    /// Writes to a temporary name in the same folder and renames it, so that no half-written file is ever seen.
    fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let name = format!(".retouch-{}-{number}.part", std::process::id());
        let temporary = path.with_file_name(name);
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // The error to tell is the first one.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn same(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() != bytes.len() as u64 {
        return Ok(false);
    }
    Ok(fs::read(path)? == bytes)
}

/// `a/b.png` with `-2` is `a/b-2.png`.
pub(crate) fn suffixed(path: &str, suffix: &str) -> String {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[name..].rfind('.') {
        Some(dot) if dot > 0 => {
            let (stem, ending) = path.split_at(name + dot);
            format!("{stem}{suffix}{ending}")
        }
        _ => format!("{path}{suffix}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_folder() {
        for good in ["a.png", "a/b-c.png", "é/ü.png", "a b/c..png", "...png"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/a.png",
            "../a.png",
            "a/../b.png",
            "a//b",
            "a/",
            "./a",
            "a\\b.png",
            "C:/a.png",
            "a\0b",
            "a\nb",
        ] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        for bad in ["a/b", "a\\b", "..", ".", "a\tb", "12:30"] {
            assert!(check_value(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_where_a_folder_is_due_is_named() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("a"), "mine").unwrap();
        let error = Saver::new(out.path(), Exists::Replace)
            .write_file("a/b/c.csv", b"x")
            .unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("a` is a file, where a folder is due"),
            "{said}"
        );
        assert_eq!(fs::read(out.path().join("a")).unwrap(), b"mine");
    }

    #[test]
    fn what_is_owned_is_replaced_whatever_else_is_done_with_files() {
        let out = tempfile::tempdir().unwrap();
        let (own, other) = (out.path().join("own.csv"), out.path().join("other.csv"));
        fs::write(&own, "old").unwrap();
        fs::write(&other, "old").unwrap();
        let saver = Saver::new(out.path(), Exists::Number).owning([own.clone()]);
        assert_eq!(
            saver.write_file("own.csv", b"new").unwrap().status,
            SaveStatus::Replaced
        );
        assert_eq!(
            saver.write_file("other.csv", b"new").unwrap().status,
            SaveStatus::Numbered
        );
        assert_eq!(fs::read(&own).unwrap(), b"new");
        assert_eq!(fs::read(&other).unwrap(), b"old");
    }

    #[test]
    fn a_suffix_stands_before_the_ending_and_endings_are_lower_case() {
        assert_eq!(suffixed("a.b/c.png", "-2"), "a.b/c-2.png");
        assert_eq!(suffixed("a.b/c", "-2"), "a.b/c-2");
        assert_eq!(ending("a/b.PNG").as_deref(), Some("png"));
        assert_eq!(ending("a.b/c"), None);
        assert_eq!(ending(".png"), None);
    }
}
