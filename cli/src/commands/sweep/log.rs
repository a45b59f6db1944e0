//! What a sweep saved, written down as it goes, for `--resume`; and what the command line said, so that it need not be given
//! again.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use retouch_graph::{SweepPlan, files};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::args::{Share, SweepArgs};
use crate::output::tell;
use crate::table::Row;

/// What a sweep saved, written down as it goes, for `--resume`.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    /// The folder that it and all that it names are below.
    out: PathBuf,
    file: Mutex<Option<fs::File>>,
}

/// The first line of the log.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// `retouch-sweep/1`.
    schema: String,
    /// What seeds called `random` were drawn from.
    draw: u64,
    /// What the command line said.
    #[serde(default, flatten)]
    what: What,
}

/// What the command line says is swept, so that it need not be given to `--resume` again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct What {
    /// The outputs to make.
    pub targets: Vec<String>,
    /// Each `--over`.
    pub over: Vec<String>,
    /// Each `--set`.
    pub set: Vec<String>,
    /// The folder that paths in `set` count from.
    pub folder: Option<PathBuf>,
    /// The files of `--params`, absolute.
    pub params: Vec<PathBuf>,
    /// `--sheet`.
    pub sheet: Option<String>,
    /// The table that is written besides the file's own, absolute.
    pub table: Option<PathBuf>,
    /// What it is computed with, `cpu/bf16`; empty in logs of the first version.
    pub numerics: String,
}

impl What {
    /// What the command line says.
    pub fn of(args: &SweepArgs) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self {
            targets: args.targets.clone(),
            over: args.over.clone(),
            set: args.drawing.params.set.clone(),
            folder: None,
            params: (args.drawing.params.params.iter())
                .map(|path| absolute(path))
                .collect(),
            sheet: args.sheet.clone(),
            table: args.table.as_deref().map(absolute),
            numerics: args.drawing.device.numerics.spec(),
        }
    }

    /// Takes what was not said from what was said before.
    #[must_use]
    pub fn or_else(mut self, before: &Self) -> Self {
        if self.targets.is_empty() {
            self.targets.clone_from(&before.targets);
        }
        // A param that is given anew, in whichever way, is not what it was.
        let name = |text: &str| text.split('=').next().unwrap_or("").trim().to_owned();
        let given: Vec<String> = (self.over.iter().chain(&self.set))
            .map(|text| name(text))
            .collect();
        let kept = |texts: &[String]| -> Vec<String> {
            let texts = texts.iter().filter(|text| !given.contains(&name(text)));
            texts.cloned().collect()
        };
        if self.over.is_empty() {
            self.over = kept(&before.over);
        }
        if self.set.is_empty() {
            self.set = kept(&before.set);
            self.folder.clone_from(&before.folder);
        }
        if self.params.is_empty() {
            self.params.clone_from(&before.params);
        }
        if self.sheet.is_none() {
            self.sheet.clone_from(&before.sheet);
        }
        if self.table.is_none() {
            self.table.clone_from(&before.table);
        }
        self
    }

    /// As it is written down: paths hold from any folder.
    fn to_keep(&self) -> Self {
        let mut kept = self.clone();
        if kept.folder.is_none() && !kept.set.is_empty() {
            kept.folder = std::path::absolute(".").ok();
        }
        kept
    }
}

/// A file that was saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// The key of the value.
    pub key: String,
    /// The path below the output folder that it was planned for.
    pub save: String,
    /// The one that it has, below the output folder too.
    pub path: PathBuf,
    /// The BLAKE3 of its bytes.
    pub blake3: String,
}

/// What stands for the key of a table, which is of no value.
pub const TABLE_KEY: &str = "table";
const LOG_SCHEMA: &str = "retouch-sweep/1";
/// Sweeps of one file into one folder at a time.
const MOST_BESIDE: usize = 100;
/// A longer log is none.
const MOST_LOG: u64 = 256 << 20;

/// The log of an earlier run.
pub struct Last {
    /// What its seeds called `random` were drawn from.
    pub draw: u64,
    /// What was swept.
    pub what: What,
    /// The files that were saved.
    pub lines: Vec<Line>,
}

impl Last {
    /// Takes what is saved and still as it was out of the plan; all that is, also of other cells.
    pub fn take_over(self, plan: &mut SweepPlan, rows: &mut [Row]) -> Vec<Line> {
        let mut known: HashMap<(String, String), Vec<Line>> = HashMap::new();
        for line in self.lines {
            let place = (line.key.clone(), line.save.clone());
            known.entry(place).or_default().push(line);
        }
        known.retain(|_, lines| {
            lines
                .iter()
                .all(|line| digest(&line.path).is_ok_and(|now| now == line.blake3))
        });
        let mut done = BTreeSet::new();
        for (index, (cell, name)) in plan.outputs.iter().enumerate() {
            let save = plan.saves[index].clone();
            let (Some(key), Some(save)) = (plan.key(index), save) else {
                continue;
            };
            let Some(lines) = known.get(&(key.to_string(), save)) else {
                continue;
            };
            done.insert(index);
            if let Some(row) = cell.and_then(|cell| rows.get_mut(cell)) {
                let files = lines.iter().map(|line| line.path.clone()).collect();
                row.outputs.insert(name.clone(), files);
            }
        }
        plan.retain_outputs(|index| !done.contains(&index));
        let mut kept: Vec<Line> = known.into_values().flatten().collect();
        kept.sort_by(|a, b| a.path.cmp(&b.path));
        kept
    }
}

/// A path below a folder, so that the folder may be moved.
fn below(folder: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(folder).unwrap_or(path).to_owned()
}

/// Whether a living process has locked the file; if not, it is locked now, as long as it is open. Where files cannot be locked, none is.
fn is_locked(file: &fs::File) -> bool {
    matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock))
}

/// Whether the open file is the one of that path.
fn is_at(file: &fs::File, path: &Path) -> bool {
    let open = file.try_clone().and_then(same_file::Handle::from_file);
    let there = same_file::Handle::from_path(path);
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

/// The BLAKE3 of a file.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(files::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

impl Log {
    /// The log's file: hidden in the output folder, named by the sweep's file and a digest of its place.
    pub fn file(out: &Path, sweep: &Path, share: Option<Share>) -> PathBuf {
        let stem = sweep.file_stem().unwrap_or_default().to_string_lossy();
        let place = std::path::absolute(sweep).unwrap_or_else(|_| sweep.to_owned());
        let digest = blake3::hash(place.as_os_str().as_encoded_bytes()).to_hex();
        let share = share.map_or_else(String::new, |Share { index, of }| format!("-{index}of{of}"));
        out.join(format!(
            ".retouch-sweep-{stem}-{}{share}.jsonl",
            &digest[..8]
        ))
    }

    /// The log beside this one for the sweep that is number `number` at the same time.
    fn beside(path: &Path, number: usize) -> PathBuf {
        match number {
            0 | 1 => path.to_owned(),
            _ => path.with_extension(format!("{number}.jsonl")),
        }
    }

    /// What is known of earlier sweeps of this file: of those that ran beside one another too, and with `shares` of those of a share
    /// of the cells. Settings are those of the latest. `None` when there is none.
    pub fn last(path: &Path, out: &Path, shares: bool) -> Option<Last> {
        let own = path.file_name()?.to_str()?.strip_suffix(".jsonl")?;
        let is_one = |name: &str| {
            let Some(rest) = name
                .strip_prefix(own)
                .and_then(|rest| rest.strip_suffix(".jsonl"))
            else {
                return false;
            };
            rest.is_empty() || rest.starts_with('.') || (shares && rest.starts_with('-'))
        };
        let mut found: Vec<(SystemTime, PathBuf)> = (fs::read_dir(out).ok()?.flatten())
            .filter(|entry| entry.file_name().to_str().is_some_and(is_one))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        found.sort();
        let mut known: Option<Last> = None;
        for (_, path) in found {
            if let Some(mut last) = Self::read(&path, out) {
                last.lines
                    .extend(known.map(|known| known.lines).unwrap_or_default());
                known = Some(last);
            }
        }
        known
    }

    /// Begins a log as [`Log::begin`] does, beside those of sweeps of the same file that run now: each has its own.
    pub fn begin_beside(
        path: PathBuf,
        draw: u64,
        what: &What,
        kept: &[Line],
    ) -> Result<Self, Failure> {
        for number in 1..MOST_BESIDE {
            let path = Self::beside(&path, number);
            // There is always a file to lock: of two that begin at once, one finds it taken.
            let open = || fs::OpenOptions::new().append(true).create(true).open(&path);
            let before = open()
                .or_else(|_| {
                    fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).and_then(|()| open())
                })
                .ok();
            if before.as_ref().is_some_and(is_locked) {
                continue;
            }
            // Who began here since it was opened has put another file in its place, and may be writing to that.
            if before.as_ref().is_some_and(|file| !is_at(file, &path)) {
                continue;
            }
            let text = Self::text(&path, draw, what, kept);
            let log = Self::write(path, &text)?;
            // Another process may have begun its own between the two: then it is locked, or is another's.
            let is_taken = {
                let file = log.file.lock().unwrap_or_else(PoisonError::into_inner);
                file.as_ref().is_some_and(is_locked)
            };
            if !is_taken && files::read_text(&log.path, MOST_LOG).is_ok_and(|own| own == text) {
                return Ok(log);
            }
        }
        Self::begin(path, draw, what, kept)
    }

    /// The log of the last sweep; `None` when there is none, or it is of another version.
    pub fn read(path: &Path, out: &Path) -> Option<Last> {
        let text = files::read_text(path, MOST_LOG).ok()?;
        let mut lines = text.lines();
        let head: Head = serde_json::from_str(lines.next()?).ok()?;
        (head.schema == LOG_SCHEMA).then(|| Last {
            draw: head.draw,
            what: head.what,
            // A line that was cut off by a crash is no line.
            lines: lines
                .filter_map(|line| serde_json::from_str::<Line>(line).ok())
                .map(|line| Line {
                    path: out.join(&line.path),
                    ..line
                })
                .collect(),
        })
    }

    /// Begins a log with what is still as the last sweep left it.
    pub fn begin(path: PathBuf, draw: u64, what: &What, kept: &[Line]) -> Result<Self, Failure> {
        let text = Self::text(&path, draw, what, kept);
        Self::write(path, &text)
    }

    /// What a log begins with.
    fn text(path: &Path, draw: u64, what: &What, kept: &[Line]) -> String {
        let out = path.parent().unwrap_or(Path::new(""));
        let head = Head {
            schema: LOG_SCHEMA.to_owned(),
            draw,
            what: what.to_keep(),
        };
        let mut text = serde_json::to_string(&head).unwrap_or_default() + "\n";
        for line in kept {
            let line = Line {
                path: below(out, &line.path),
                ..line.clone()
            };
            text += &(serde_json::to_string(&line).unwrap_or_default() + "\n");
        }
        text
    }

    /// Puts a log with that text in the place of what is there, to be added to.
    fn write(path: PathBuf, text: &str) -> Result<Self, Failure> {
        let out = path.parent().unwrap_or(Path::new("")).to_owned();
        let file = crate::store::write_whole(&path, text.as_bytes())
            .and_then(|()| fs::OpenOptions::new().append(true).open(&path))
            .map_err(|e| {
                Failure::unwritable(format!(
                    "the sweep's log {} cannot be written: {e}",
                    path.display()
                ))
                .help("name another output folder with `--out DIR`")
            })?;
        Ok(Self {
            path,
            out,
            file: Mutex::new(Some(file)),
        })
    }

    /// Notes a file of an output of the plan.
    pub fn saved(&self, plan: &SweepPlan, output: usize, path: &Path) {
        let planned = plan.plan.outputs().get(output);
        if let (Some(key), Some(save)) =
            (plan.key(output), planned.and_then(|one| one.save.as_ref()))
        {
            self.file_saved(&key.to_string(), save, path);
        }
    }

    /// Notes a file: what it is of, where it was to be, where it is.
    pub fn file_saved(&self, key: &str, save: &str, path: &Path) {
        let Ok(blake3) = digest(path) else {
            return;
        };
        let line = Line {
            key: key.to_owned(),
            save: save.to_owned(),
            path: below(&self.out, path),
            blake3,
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match (file.as_mut(), serde_json::to_string(&line)) {
            (Some(file), Ok(text)) => file.write_all(format!("{text}\n").as_bytes()),
            _ => return,
        };
        if let Err(error) = written {
            *file = None;
            tell(&format!(
                "warning: the sweep's log {} cannot be written: {error}; `--resume` will make again what follows",
                self.path.display()
            ));
        }
    }

    /// Closes the file: others may take its place.
    pub fn finish(&mut self) {
        *self.file.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn sweeps_that_begin_at_one_instant_have_a_journal_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".retouch-sweep-x-00000000.jsonl");
        for round in 0..50 {
            let (start, all_begun) = (Barrier::new(4), Barrier::new(4));
            std::thread::scope(|scope| {
                for sweep in 0..4 {
                    let (path, start, all_begun) = (path.clone(), &start, &all_begun);
                    scope.spawn(move || {
                        let draw = round * 10 + sweep;
                        start.wait();
                        let log = Log::begin_beside(path, draw, &What::default(), &[]);
                        all_begun.wait();
                        let log = log.unwrap();
                        let read = Log::read(&log.path, folder_of(&log.path)).unwrap();
                        assert_eq!(read.draw, draw);
                    });
                }
            });
        }
    }

    fn folder_of(path: &Path) -> &Path {
        path.parent().unwrap()
    }
}
