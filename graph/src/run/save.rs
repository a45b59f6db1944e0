//! Writes outputs below the output folder: under a temporary name first, then renamed.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Serialize;

use crate::base::error::NodeError;
use crate::base::problem::Code;
use crate::base::sync::lock;
use crate::files::output_path::{check_path, ending, suffixed};
use crate::files::write::{Access, Draft};
use crate::value::payload::Value;

/// What to do when a file already exists with different content.
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
    /// It was there with different bytes and was overwritten.
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
    /// A folder below the output folder is a link.
    #[error("`{}` is a link, and outputs are not written through links below the output folder", path.display())]
    Linked {
        /// The link.
        path: PathBuf,
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
            Self::Unsafe { .. } | Self::Linked { .. } => Code::UnsafePath,
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
            Self::Linked { .. } => {
                "put a folder in its place, or name where it leads with `--out`, which may itself be a link"
                    .to_owned()
            }
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

/// Writes into files of outputs where they come from.
pub trait Stamp: std::fmt::Debug + Send + Sync {
    /// Gives the bytes to write for a file of an output, of a format (`png`); those that it was given where it has
    /// nothing to say. `image` is the file's index and the number of files: a batch has several.
    fn stamp(&self, output: &str, format: &str, image: (usize, usize), bytes: Vec<u8>) -> Vec<u8>;
}

/// [`Stamp::stamp`] of one output.
pub type Stamping<'a> = dyn Fn(&str, (usize, usize), Vec<u8>) -> Vec<u8> + 'a;

/// Writes the outputs of runs below one folder.
#[derive(Debug)]
pub struct Saver {
    out: PathBuf,
    exists: Exists,
    replace_own: bool,
    /// What this one wrote; and in this run.
    own: Mutex<HashSet<PathBuf>>,
    run: Mutex<HashSet<PathBuf>>,
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
        }
    }

    /// Replaces what this one wrote in earlier runs, whatever else is done with files that exist: for watching.
    #[must_use]
    pub fn replacing_own(mut self) -> Self {
        self.replace_own = true;
        self
    }

    /// Replaces these files too: an earlier run wrote them, and they have not been changed since.
    #[must_use]
    pub fn owning(self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        lock(&self.own).extend(paths);
        self.replacing_own()
    }

    /// Writes a file that is not a value of the run in the same way.
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
        self.save_stamped(path, value, &|_, _, bytes| bytes)
    }

    /// The same; `stamp` is given the format, the index among how many files, and the bytes of each file, and gives those
    /// that are written.
    ///
    /// # Errors
    /// As [`Saver::save`].
    pub fn save_stamped(
        &self,
        path: &str,
        value: &Value,
        stamp: &Stamping<'_>,
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
        let count = files.len();
        let files: Vec<Vec<u8>> = (files.into_iter().enumerate())
            .map(|(index, bytes)| stamp(&format, (index, count), bytes))
            .collect();
        let several = count > 1;
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

    /// Whether a path can be saved to, as far as that is known before the run.
    ///
    /// # Errors
    /// When it leaves the output folder, a folder in it is a link, or it is longer than the system takes.
    pub fn check(&self, path: &str) -> Result<(), SaveError> {
        check_path(path).map_err(|why| SaveError::Unsafe {
            path: path.to_owned(),
            why,
        })?;
        self.refuse_links(path)?;
        // A temporary name may be longer than the file's own.
        let path = self.out.join(path);
        let longest = path.with_file_name(".".repeat(crate::files::write::NAME));
        for name in [&path, &longest] {
            if let Err(source) = fs::symlink_metadata(name)
                && source.kind() == io::ErrorKind::InvalidFilename
            {
                let path = path.clone();
                return Err(SaveError::Io { path, source });
            }
        }
        Ok(())
    }

    /// Refuses a path that leads through a link below the output folder; that itself may be one.
    fn refuse_links(&self, relative: &str) -> Result<(), SaveError> {
        let mut folder = self.out.clone();
        let folders = relative.rsplit_once('/').map_or("", |(folders, _)| folders);
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            folder.push(part);
            if fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.is_symlink()) {
                return Err(SaveError::Linked { path: folder });
            }
        }
        Ok(())
    }

    fn write(&self, relative: &str, bytes: &[u8]) -> Result<Saved, SaveError> {
        let path = self.out.join(relative);
        self.refuse_links(relative)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|source| {
                // The system only says that something is there already.
                let file = folder.ancestors().find(|above| above.is_file());
                let source = match file {
                    Some(file) => io::Error::new(
                        source.kind(),
                        format!("`{}` is a file, but must be a folder", file.display()),
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
        let mine = |path: &Path| self.replace_own && own.contains(path) && !run.contains(path);
        let saved = self.place(&path, relative, bytes, exists, &mine)?;
        run.insert(saved.path.clone());
        if matches!(
            saved.status,
            SaveStatus::New | SaveStatus::Replaced | SaveStatus::Numbered
        ) {
            own.insert(saved.path.clone());
        }
        Ok(saved)
    }

    /// Writes the bytes under the path, or what `exists` says instead. Other processes may do the same at any moment: a name
    /// that was free is taken only if it still is, and else is looked at again.
    fn place(
        &self,
        path: &Path,
        relative: &str,
        bytes: &[u8],
        exists: Exists,
        mine: &dyn Fn(&Path) -> bool,
    ) -> Result<Saved, SaveError> {
        let saved = |path: &Path, status| {
            Ok(Saved {
                path: path.to_owned(),
                status,
            })
        };
        let mut ready = None;
        let (mut number, mut candidate) = (1u64, path.to_owned());
        loop {
            let error = |source| SaveError::Io {
                path: candidate.clone(),
                source,
            };
            match there(&candidate, bytes).map_err(error)? {
                There::Nothing => {
                    let draft = match ready.take() {
                        Some(draft) => draft,
                        None => draft(&candidate, bytes).map_err(error)?,
                    };
                    match draft.create(&candidate) {
                        Ok(()) if number == 1 => return saved(&candidate, SaveStatus::New),
                        Ok(()) => return saved(&candidate, SaveStatus::Numbered),
                        // Another process took the name in the meantime.
                        Err((taken, draft)) if taken.kind() == io::ErrorKind::AlreadyExists => {
                            ready = Some(draft);
                        }
                        Err((failed, _)) => return Err(error(failed)),
                    }
                }
                There::Same => return saved(&candidate, SaveStatus::Unchanged),
                There::Other => match exists {
                    Exists::Keep => return saved(&candidate, SaveStatus::Kept),
                    Exists::Fail => return Err(SaveError::Exists { path: candidate }),
                    // A numbered file that this one wrote in an earlier run is replaced too, as the first would be.
                    Exists::Number if number == 1 || !mine(&candidate) => {
                        number += 1;
                        candidate = self.out.join(suffixed(relative, &format!("-{number}")));
                    }
                    Exists::Replace | Exists::Number => {
                        draft(&candidate, bytes)
                            .and_then(|draft| draft.replace(&candidate))
                            .map_err(error)?;
                        return saved(&candidate, SaveStatus::Replaced);
                    }
                },
            }
        }
    }
}

/// A file with these bytes beside `path`, which is not seen under its name before it is whole.
fn draft(path: &Path, bytes: &[u8]) -> io::Result<Draft> {
    let mut draft = Draft::beside(path, Access::Usual)?;
    draft.write_all(bytes)?;
    Ok(draft)
}

/// What is under the name of a file that is to be saved.
enum There {
    Nothing,
    /// A file with the same bytes.
    Same,
    /// Anything else, a link that leads nowhere included.
    Other,
}

fn there(path: &Path, bytes: &[u8]) -> io::Result<There> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match fs::symlink_metadata(path) {
        Err(error) if gone(&error) => return Ok(There::Nothing),
        metadata => metadata?,
    };
    // It may vanish in the meantime: then it is not the same.
    let same = match fs::metadata(path) {
        Err(error) if gone(&error) => false,
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_file() || metadata.len() != bytes.len() as u64 => false,
        Ok(_) => match fs::read(path) {
            Err(error) if gone(&error) => false,
            read => read? == bytes,
        },
    };
    Ok(if same { There::Same } else { There::Other })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::output_path::{MAX_NAME, check_value};

    #[test]
    fn paths_stay_below_the_folder() {
        for good in [
            "a.png",
            "a/b-c.png",
            "é/ü.png",
            "a b/c..png",
            "...png",
            "console.png",
            "com/lpt.png",
            &format!("{}.png", "a".repeat(236)),
        ] {
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
            "con.png",
            "a/NUL",
            "aux.tar.png",
            "com1/a.png",
            "LPT9.png",
            "a./b.png",
            "a /b.png",
            "a.png.",
            "a*.png",
            "what?.png",
            "a<b>.png",
            "a|b.png",
            "\"a\".png",
            &format!("{}.png", "a".repeat(237)),
            &format!("{}/a.png", ["abcdefghi"; 100].join("/")),
        ] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        for bad in [
            "a/b", "a\\b", "..", ".", "a\tb", "12:30", "a?", "*", "<a", "a>", "a|b", "\"",
        ] {
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
            said.contains("a` is a file, but must be a folder"),
            "{said}"
        );
        assert_eq!(fs::read(out.path().join("a")).unwrap(), b"mine");
    }

    #[test]
    fn a_numbered_file_of_an_earlier_run_is_replaced_as_the_first_would_be() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("a.csv"), "another's").unwrap();
        let saver = Saver::new(out.path(), Exists::Number).replacing_own();
        for (text, status) in [
            ("one", SaveStatus::Numbered),
            ("two", SaveStatus::Replaced),
            ("three", SaveStatus::Replaced),
        ] {
            saver.begin();
            let saved = saver.write_file("a.csv", text.as_bytes()).unwrap();
            assert_eq!(saved.path, out.path().join("a-2.csv"));
            assert_eq!(saved.status, status);
            assert_eq!(fs::read_to_string(saved.path).unwrap(), text);
        }
        // Two outputs of one run never overwrite each other.
        let beside = saver.write_file("a.csv", b"four").unwrap();
        assert_eq!(beside.path, out.path().join("a-3.csv"));
        assert_eq!(fs::read(out.path().join("a.csv")).unwrap(), b"another's");
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

    /// The names in a folder, in order.
    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// What savers of as many processes give for the same path at the same moment, each with bytes of its own.
    fn race(folder: &Path, exists: Exists) -> Vec<(Vec<u8>, Result<Saved, SaveError>)> {
        const SAVERS: u8 = 6;
        let start = std::sync::Barrier::new(SAVERS.into());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..SAVERS)
                .map(|number| {
                    let start = &start;
                    scope.spawn(move || {
                        let bytes = vec![number; 10_000 + usize::from(number)];
                        let saver = Saver::new(folder, exists);
                        start.wait();
                        (bytes.clone(), saver.write_file("a.png", &bytes))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        })
    }

    #[test]
    fn of_several_that_save_to_one_name_one_gets_it_and_nothing_is_lost() {
        for round in 0..40 {
            let out = tempfile::tempdir().unwrap();
            let (fail, number) = (out.path().join("fail"), out.path().join("number"));
            let saved: Vec<_> = race(&fail, Exists::Fail)
                .into_iter()
                .filter_map(|(bytes, saved)| match saved {
                    Ok(saved) => Some((bytes, saved)),
                    Err(error) => {
                        assert_eq!(error.code(), Code::OutputExists, "{round}: {error}");
                        None
                    }
                })
                .collect();
            let [(bytes, one)] = &saved[..] else {
                panic!("round {round}: {} of them saved `a.png`", saved.len());
            };
            assert_eq!(one.status, SaveStatus::New);
            assert_eq!(&fs::read(fail.join("a.png")).unwrap(), bytes);
            assert_eq!(names(&fail), ["a.png"]);

            for (bytes, saved) in race(&number, Exists::Number) {
                assert_eq!(fs::read(saved.unwrap().path).unwrap(), bytes, "{round}");
            }
            assert_eq!(
                names(&number),
                [
                    "a-2.png", "a-3.png", "a-4.png", "a-5.png", "a-6.png", "a.png"
                ]
            );
        }
    }

    #[test]
    fn processes_of_the_same_number_do_not_write_into_each_others_files() {
        // All savers of this test have the number of this process, as two containers may have.
        let out = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for saver in 0..4u8 {
                let out = out.path();
                scope.spawn(move || {
                    for file in 0..50u8 {
                        // A saver each, as a process has it: what they count begins at nothing.
                        let name = format!("{saver}-{file}.png");
                        let bytes = [saver, file].repeat(20_000);
                        let saved = Saver::new(out, Exists::Fail).write_file(&name, &bytes);
                        assert_eq!(saved.unwrap().status, SaveStatus::New);
                        assert!(fs::read(out.join(name)).unwrap() == bytes);
                    }
                });
            }
        });
        assert_eq!(names(out.path()).len(), 200);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed_below_the_output_folder() {
        use std::os::unix::fs::symlink;
        let sandbox = tempfile::tempdir().unwrap();
        let at = |name: &str| sandbox.path().join(name);
        fs::create_dir(at("real")).unwrap();
        fs::create_dir(at("elsewhere")).unwrap();
        fs::write(at("mine"), "mine").unwrap();
        symlink(at("real"), at("out")).unwrap();
        symlink(at("elsewhere"), at("real/linked")).unwrap();
        symlink(at("mine"), at("real/file.csv")).unwrap();
        symlink(at("nowhere"), at("real/dangling.csv")).unwrap();
        // The names that temporary files had in the first version.
        for number in 0..8 {
            let name = format!("real/.retouch-{}-{number}.part", std::process::id());
            symlink(at("mine"), at(&name)).unwrap();
        }
        let saver = Saver::new(at("out"), Exists::Replace);
        for path in ["linked/a.csv", "linked/deep/a.csv"] {
            for error in [
                saver.write_file(path, b"x").unwrap_err(),
                saver.check(path).unwrap_err(),
            ] {
                assert_eq!(error.code(), Code::UnsafePath);
                let said = error.to_string();
                assert!(said.contains("out/linked` is a link"), "{said}");
            }
        }
        assert_eq!(names(&at("elsewhere")), [""; 0]);
        let status = |path: &str| saver.write_file(path, b"new").unwrap().status;
        assert_eq!(status("a.csv"), SaveStatus::New);
        assert_eq!(status("file.csv"), SaveStatus::Replaced);
        assert_eq!(status("dangling.csv"), SaveStatus::Replaced);
        assert_eq!(fs::read(at("mine")).unwrap(), b"mine");
        assert!(!at("nowhere").exists());
        let kept = Saver::new(at("out"), Exists::Fail);
        symlink(at("nowhere"), at("real/other.csv")).unwrap();
        let error = kept.write_file("other.csv", b"new").unwrap_err();
        assert_eq!(error.code(), Code::OutputExists);
    }

    #[test]
    fn the_longest_name_is_saved_and_numbered_and_what_the_system_refuses_is_known_before() {
        let out = tempfile::tempdir().unwrap();
        let saver = Saver::new(out.path(), Exists::Number);
        let name = format!("{}.csv", "a".repeat(MAX_NAME - 4));
        for expected in [SaveStatus::New, SaveStatus::Numbered, SaveStatus::Numbered] {
            let bytes = format!("{expected:?} {}", names(out.path()).len());
            let saved = saver.write_file(&name, bytes.as_bytes()).unwrap();
            assert_eq!(saved.status, expected);
        }
        // Below this output folder nothing fits, whatever its name.
        let deep: PathBuf = std::iter::repeat_n("abcdefghi", 450).collect();
        let error = Saver::new(out.path().join(deep), Exists::Number)
            .check("a.csv")
            .unwrap_err();
        assert_eq!(error.code(), Code::OutputUnwritable);
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
