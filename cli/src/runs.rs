//! The journal of runs: what was run, with which settings, what became of it. One file a run, in the cache's folder.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use retouch_graph::cache::disk::is_full;
use retouch_graph::event::{Event, Listener, RunStatus};
use retouch_graph::write::{self, Access};
use retouch_graph::{Code, Plan, SaveStatus, files};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::args::{ParamArgs, SharingArgs};
use crate::output::tell;
use crate::scores;
use crate::store::{Store, making_room, write_private};
use crate::{Failure, clock};

/// The form of a record; raised when a field goes or changes its meaning.
const SCHEMA: &str = "retouch-run/1";
/// Number of runs kept.
const MOST: usize = 1000;
/// A longer record is none.
const MOST_RECORD: u64 = 256 << 20;
/// A plan of more nodes than this is kept as a digest alone.
const MOST_NODES: usize = 2000;

/// What began a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `retouch run`.
    Run,
    /// `retouch watch`, which makes a run of each change.
    Watch,
    /// `retouch view`, the same with a window or for a picture of it.
    View,
    /// `retouch sweep`.
    Sweep,
}

impl Kind {
    /// The command's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Watch => "watch",
            Self::View => "view",
            Self::Sweep => "sweep",
        }
    }
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It goes on.
    Running,
    /// All outputs were made.
    Ok,
    /// A node or the saving of an output failed.
    Failed,
    /// It was interrupted, or an edit ended it.
    Cancelled,
    /// Its process went away before its end. This is found out, never written.
    Killed,
}

impl Status {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Killed => "killed",
        }
    }
}

/// What a run was asked to do: enough to do it again. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The workflow, the sweep or the bundle.
    pub file: PathBuf,
    /// The folder that it was started in, which paths in `set` count from.
    pub folder: PathBuf,
    /// Each `--set`.
    pub set: Vec<String>,
    /// Each file of `--params`.
    pub params: Vec<PathBuf>,
    /// Each `--over` of a sweep.
    pub over: Vec<String>,
    /// `--sheet` of a sweep.
    #[serde(default)]
    pub sheet: Option<String>,
    /// What seeds called `random` were drawn from.
    pub draw: u64,
    /// The outputs and nodes that were asked for; empty: all outputs.
    pub targets: Vec<String>,
    /// The output folder.
    pub out: PathBuf,
    /// The device.
    pub device: String,
    /// The folders that models were looked for in.
    pub models: Vec<PathBuf>,
    /// The bytes that a bundle might unpack to, if it was said.
    pub max_unpacked: Option<u64>,
    /// Whether pictures carry their recipe, which is a part of their bytes.
    pub provenance: bool,
}

impl Asked {
    /// What a command line asks for.
    #[must_use]
    pub fn new(
        file: &Path,
        params: &ParamArgs,
        sharing: &SharingArgs,
        device: &str,
        out: &Path,
        targets: &[String],
    ) -> Self {
        Self {
            file: absolute(file),
            folder: absolute(Path::new(".")),
            set: params.set.clone(),
            params: params.params.iter().map(|path| absolute(path)).collect(),
            over: Vec::new(),
            sheet: None,
            draw: 0,
            targets: targets.to_vec(),
            out: absolute(out),
            device: device.to_owned(),
            models: (crate::sharing::models(&sharing.place).iter())
                .map(|path| absolute(path))
                .collect(),
            max_unpacked: sharing.max_unpacked,
            provenance: true,
        }
    }
}

/// A param of the workflow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Json,
    /// Where it comes from: `default`, `set`, `drawn`, ...
    pub from: String,
}

/// What became of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran.
    Ran,
    /// It did not have to.
    Reused,
    /// It failed.
    Failed,
    /// The run ended before it did.
    #[default]
    NotRun,
}

/// A node of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its name, or that of the first of several that are the same.
    pub node: String,
    /// Its op.
    pub op: String,
    /// Its key.
    pub key: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Where its outputs were, if it was reused: `memory`, `disk`, `not needed`.
    pub from: Option<String>,
    /// The seconds that it took, if it ran.
    pub seconds: Option<f64>,
    /// The calls of the U-Net that it made.
    pub unet_calls: u64,
    /// The steps that were there already and how many it has, if it resumed.
    pub resumed: Option<(usize, usize)>,
}

/// A file that was written, or found written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputEntry {
    /// The output.
    pub output: String,
    /// The file.
    pub path: PathBuf,
    /// What became of it: `new`, `replaced`, `unchanged`, `kept`, `numbered`.
    pub status: String,
    /// The BLAKE3 of its bytes; null for `kept`, whose bytes are not the run's.
    pub blake3: Option<String>,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEntry {
    /// A stable code.
    pub code: String,
    /// The node or the output at fault, and what went wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// A run as it is written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// `retouch-run/1`.
    pub schema: String,
    /// What it is called: its time and four letters.
    pub id: String,
    /// What began it.
    pub kind: Kind,
    /// The version of the program.
    pub tool: String,
    /// When it began, RFC 3339, UTC.
    pub started: String,
    /// When it ended.
    pub ended: Option<String>,
    /// What became of it.
    pub status: Status,
    /// What it was asked to do.
    pub asked: Asked,
    /// The workflow's name.
    pub workflow: String,
    /// The values of its params, drawn seeds among them.
    pub params: Vec<Param>,
    /// The number of cells of a sweep.
    pub cells: Option<usize>,
    /// The seconds that it took.
    pub seconds: Option<f64>,
    /// How many nodes ran.
    pub ran: usize,
    /// How many did not have to.
    pub reused: usize,
    /// What all nodes counted.
    pub counters: BTreeMap<String, u64>,
    /// The files of its outputs.
    pub outputs: Vec<OutputEntry>,
    /// The mean of each column of numbers of the tables that it saved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, f64>,
    /// What went wrong first.
    pub error: Option<ErrorEntry>,
    /// Its nodes in the order of the plan.
    pub nodes: Vec<NodeEntry>,
    /// The BLAKE3 of what the keys of the nodes come from.
    pub plan_blake3: String,
    /// What the keys of the nodes come from; null for a plan of more than 2,000 nodes.
    pub plan: Option<retouch_graph::Record>,
}

impl Record {
    /// The calls of the U-Net.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.counters.get("unet_calls").copied().unwrap_or(0)
    }
}

/// The digest of what the keys of a plan's nodes come from.
#[must_use]
pub fn digest_of(plan: &retouch_graph::Record) -> String {
    // Texts, lists and maps: nothing in it that JSON could not have.
    let text = serde_json::to_vec(plan).unwrap_or_default();
    blake3::hash(&text).to_hex().to_string()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether it was said that the journal cannot be written.
static SAID: AtomicBool = AtomicBool::new(false);

/// A run that is being written down.
pub struct Noted {
    state: Mutex<Record>,
    place: Option<Place>,
}

/// Where a run is written down.
struct Place {
    /// The cache's folder, whose entries make room on a full disk.
    cache: PathBuf,
    record: PathBuf,
    /// Its file is locked as long as the process lives, which is how others know that it does.
    alive: PathBuf,
    _held: File,
}

impl Noted {
    /// Writes down that a run begins. A journal that cannot be written is said once and done without.
    #[must_use]
    pub fn begin(store: &Store, kind: Kind, asked: Asked, plan: &Plan) -> Self {
        let now = SystemTime::now();
        let made_of = plan.record();
        let nodes = plan.tasks().map(|task| NodeEntry {
            node: task.name().to_owned(),
            op: task.op().to_owned(),
            key: task.key().to_string(),
            ..NodeEntry::default()
        });
        let params = plan.params().iter().map(|param| Param {
            name: param.name.clone(),
            value: param.value.clone(),
            from: word(&param.from),
        });
        let record = Record {
            schema: SCHEMA.to_owned(),
            id: String::new(),
            kind,
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            started: clock::rfc3339(now),
            ended: None,
            status: Status::Running,
            asked,
            workflow: plan.workflow().to_owned(),
            params: params.collect(),
            cells: None,
            seconds: None,
            ran: 0,
            reused: 0,
            counters: BTreeMap::new(),
            outputs: Vec::new(),
            scores: BTreeMap::new(),
            error: None,
            nodes: nodes.collect(),
            plan_blake3: digest_of(&made_of),
            plan: (plan.len() <= MOST_NODES).then_some(made_of),
        };
        let mut noted = Self {
            state: Mutex::new(record),
            place: None,
        };
        let (Some(cache), Some(folder)) = (&store.folder, store.file("runs")) else {
            return noted;
        };
        let reserved = making_room(cache, 0, || {
            write::private_folder(&folder)?;
            reserve(&folder, now)
        });
        match reserved {
            Ok((id, place)) => {
                lock(&noted.state).id = id;
                noted.place = Some(place);
                if noted.write() {
                    prune(&folder);
                } else {
                    noted.give_up();
                }
            }
            Err(error) => warn(&folder, &error),
        }
        noted
    }

    /// What the run is called; `None` when it is not written down.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        self.place.as_ref().map(|_| lock(&self.state).id.clone())
    }

    /// Says how many cells the sweep has.
    #[must_use]
    pub fn of_cells(self, cells: usize) -> Self {
        lock(&self.state).cells = Some(cells);
        self
    }

    /// Hears a run beside another listener.
    pub fn beside<'a>(&'a self, inner: &'a dyn Listener) -> Beside<'a> {
        Beside { noted: self, inner }
    }

    /// Writes down how it ended.
    pub fn end(mut self) {
        {
            let mut record = lock(&self.state);
            record.ended = Some(clock::rfc3339(SystemTime::now()));
        }
        if self.place.is_some() {
            self.write();
        }
        self.give_up();
    }

    fn write(&self) -> bool {
        let Some(place) = &self.place else {
            return false;
        };
        let text = serde_json::to_vec(&*lock(&self.state)).map_err(io::Error::other);
        let written = text.and_then(|text| write_private(&place.cache, &place.record, &text));
        if let Err(error) = &written {
            warn(&place.record, error);
        }
        written.is_ok()
    }

    fn give_up(&mut self) {
        if let Some(place) = self.place.take() {
            // What is left of it is taken for a run that was killed, which has a record; without one it is nothing.
            let _ = fs::remove_file(&place.alive);
        }
    }

    fn hear(&self, event: &Event) {
        if self.place.is_none() {
            return;
        }
        let mut record = lock(&self.state);
        match event {
            Event::NodeReused { node, from, .. } => {
                record.node(node, |entry| {
                    if entry.outcome == Outcome::NotRun {
                        entry.outcome = Outcome::Reused;
                        entry.from = Some((*from).to_owned());
                    }
                });
            }
            Event::NodeResumed { node, step, of } => {
                record.node(node, |entry| entry.resumed = Some((*step, *of)));
            }
            Event::NodeFinished {
                node,
                seconds,
                counters,
            } => record.node(node, |entry| {
                entry.outcome = Outcome::Ran;
                entry.from = None;
                entry.seconds = Some(*seconds);
                entry.unet_calls = counters.get("unet_calls").copied().unwrap_or(0);
            }),
            Event::NodeFailed {
                node,
                code,
                message,
                help,
            } => {
                record.node(node, |entry| entry.outcome = Outcome::Failed);
                record.failed(*code, format!("{node}: {message}"), help.clone());
            }
            Event::OutputSaved {
                output,
                path,
                status,
            } => {
                drop(record);
                // A file that is kept was not made by the run.
                let made = *status != SaveStatus::Kept;
                let entry = OutputEntry {
                    output: output.clone(),
                    path: absolute(path),
                    status: word(status),
                    blake3: made.then(|| digest(path).ok()).flatten(),
                };
                let scores = scores::of(path);
                let mut record = lock(&self.state);
                record.outputs.push(entry);
                record.scores.extend(scores);
            }
            Event::OutputFailed {
                output,
                code,
                message,
                help,
            } => record.failed(*code, format!("{output}: {message}"), Some(help.clone())),
            Event::RunFinished {
                status,
                seconds,
                counters,
                ran,
                reused,
            } => {
                // The contact sheet of a sweep with failures is a run of its own after it, and what it reuses was made.
                let first = record.seconds.is_none();
                record.seconds = Some(record.seconds.unwrap_or(0.0) + seconds);
                record.ran += ran;
                for (counter, by) in counters {
                    *record.counters.entry((*counter).to_owned()).or_default() += by;
                }
                if first {
                    record.reused = *reused;
                    record.status = match status {
                        RunStatus::Ok => Status::Ok,
                        RunStatus::Failed => Status::Failed,
                        RunStatus::Cancelled => Status::Cancelled,
                    };
                }
            }
            _ => {}
        }
    }
}

impl Record {
    fn node(&mut self, name: &str, change: impl FnOnce(&mut NodeEntry)) {
        if let Some(entry) = self.nodes.iter_mut().find(|entry| entry.node == name) {
            change(entry);
        }
    }

    fn failed(&mut self, code: Code, message: String, help: Option<String>) {
        self.error.get_or_insert(ErrorEntry {
            code: code.to_string(),
            message,
            help,
        });
    }
}

/// Hears what happens for the journal, then hands it on.
pub struct Beside<'a> {
    noted: &'a Noted,
    inner: &'a dyn Listener,
}

impl Listener for Beside<'_> {
    fn event(&self, event: &Event) {
        self.noted.hear(event);
        self.inner.event(event);
    }
}

/// A word of a choice as it is serialised.
fn word(choice: &impl Serialize) -> String {
    match serde_json::to_value(choice) {
        Ok(Json::String(word)) => word,
        _ => String::new(),
    }
}

fn warn(path: &Path, error: &io::Error) {
    // That the disk is full or read-only is said of the cache, which lies beside it and takes far more.
    let of_disk = is_full(error) || error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    if !of_disk && !SAID.swap(true, Ordering::Relaxed) {
        tell(&format!(
            "warning: the journal of runs {} cannot be written: {error}; going on without it",
            path.display()
        ));
    }
}

/// The BLAKE3 of a file's bytes.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(files::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Takes a name that no other run has: the time to the second, then the microseconds of it in four letters and digits, so
/// that names sort by time.
fn reserve(folder: &Path, now: SystemTime) -> io::Result<(String, Place)> {
    let (moment, microseconds) = clock::compact(now);
    // 36^4 is more than the microseconds of a second.
    for number in microseconds..36u32.pow(4) {
        let id = format!("{moment}-{}", letters(number));
        let record = folder.join(format!("{id}.json"));
        let alive = folder.join(format!("{id}.lock"));
        let held = match Access::Private.create_new(&alive) {
            Ok(held) => held,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        if record.exists() {
            let _ = fs::remove_file(&alive);
            continue;
        }
        // On a file system without locks a run that goes on looks killed, and that is all.
        let _ = held.lock();
        let place = Place {
            cache: folder.parent().unwrap_or(folder).to_owned(),
            record,
            alive,
            _held: held,
        };
        return Ok((id, place));
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Four digits to the base of 36.
fn letters(mut number: u32) -> String {
    let mut text = [b'0'; 4];
    for place in text.iter_mut().rev() {
        *place = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
        number /= 36;
    }
    text.iter().map(|&letter| char::from(letter)).collect()
}

/// The names of the runs in the journal, the oldest first.
fn ids(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ids: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let id = name.strip_suffix(".json")?;
            (!id.starts_with('.')).then(|| id.to_owned())
        })
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Removes the oldest runs when there are too many; another process may do so too.
fn prune(folder: &Path) {
    let Ok(ids) = ids(folder) else {
        return;
    };
    for id in &ids[..ids.len().saturating_sub(MOST)] {
        let _ = fs::remove_file(folder.join(format!("{id}.json")));
        let _ = fs::remove_file(folder.join(format!("{id}.lock")));
    }
}

/// The journal as it is read.
pub struct Runs {
    folder: PathBuf,
    ids: Vec<String>,
}

impl Runs {
    /// Opens the journal.
    ///
    /// # Errors
    /// When there is none, or its folder cannot be read.
    pub fn open(store: &Store) -> Result<Self, Failure> {
        let folder = store.file("runs").ok_or_else(|| {
            Failure::usage("there is no journal of runs without a cache folder")
                .help("`--no-cache`, a disk budget of 0 or a platform without a cache folder; name one with `--cache-dir`")
        })?;
        let ids = ids(&folder).map_err(|error| {
            Failure::unreadable(format!(
                "the journal of runs {} cannot be read: {error}",
                folder.display()
            ))
        })?;
        Ok(Self { folder, ids })
    }

    /// The names of the runs, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &str> {
        self.ids.iter().rev().map(String::as_str)
    }

    /// Removes all that are not going on; gives their number.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn clear(&self) -> Result<usize, Failure> {
        let mut removed = 0;
        for id in &self.ids {
            if self.goes_on(id) {
                continue;
            }
            let _ = fs::remove_file(self.alive(id)); // most have none
            let path = self.folder.join(format!("{id}.json"));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::unwritable(format!(
                        "{} cannot be removed: {error}",
                        path.display()
                    )));
                }
                _ => removed += 1,
            }
        }
        Ok(removed)
    }

    /// The run of that name, of the only name that begins so, or the `last`.
    ///
    /// # Errors
    /// When there is none or there are several, or its record cannot be read.
    pub fn find(&self, name: &str) -> Result<Record, Failure> {
        let unknown = |message: String| Failure::usage(message).code(Code::UnknownRun);
        let listed = "`retouch runs` lists them";
        let id = if name == "last" {
            let last = self.ids.last();
            last.ok_or_else(|| {
                unknown("no runs are recorded yet".to_owned()).help(
                    "`retouch run`, `watch` and `sweep` record their runs, unless `--no-cache` is given",
                )
            })?
        } else {
            let wanted = name.trim().to_ascii_lowercase();
            let found: Vec<&String> = (self.ids.iter())
                .filter(|id| !wanted.is_empty() && id.starts_with(&wanted))
                .collect();
            match found[..] {
                [id] => id,
                _ if self.ids.contains(&wanted) => &wanted.clone(),
                [] => return Err(unknown(format!("there is no run `{name}`")).help(listed)),
                _ => {
                    let some: Vec<&str> =
                        found.iter().rev().take(3).map(|id| id.as_str()).collect();
                    let message = format!(
                        "{} runs begin with `{name}`: {}{}",
                        found.len(),
                        some.join(", "),
                        if found.len() > 3 { ", ..." } else { "" }
                    );
                    return Err(unknown(message).help(format!("write more of it; {listed}")));
                }
            }
        };
        self.read(id).map_err(|why| {
            Failure::unreadable(format!("the record of the run {id} cannot be read: {why}"))
                .help("it was damaged or written by another version of the program; `retouch runs` lists the others")
        })
    }

    /// Reads a record, and finds out whether a run that goes on does.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(&self, id: &str) -> Result<Record, String> {
        let path = self.folder.join(format!("{id}.json"));
        // Asked first: a run that ends meanwhile has its end in the record.
        let goes_on = self.goes_on(id);
        let text = files::read(&path, MOST_RECORD).map_err(|error| error.to_string())?;
        let schema = serde_json::from_slice::<Json>(&text).map_err(|error| error.to_string())?;
        if schema["schema"] != SCHEMA {
            return Err(format!("its schema is {}", schema["schema"]));
        }
        let mut record: Record =
            serde_json::from_value(schema).map_err(|error| error.to_string())?;
        if record.status == Status::Running && !goes_on {
            record.status = Status::Killed;
        }
        Ok(record)
    }

    fn alive(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.lock"))
    }

    /// Whether the process of a run is there: it holds the lock of a file.
    fn goes_on(&self, id: &str) -> bool {
        let Ok(file) = files::open(&self.alive(id)) else {
            return false;
        };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }
}

/// What became of a file since the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Since {
    /// It is as the run left it.
    Same,
    /// It is another one.
    Changed,
    /// It is not there.
    Gone,
    /// The run kept a file that it did not make, so there is nothing to compare with.
    NotCompared,
}

impl OutputEntry {
    /// What became of the file since the run.
    #[must_use]
    pub fn since(&self) -> Since {
        match (&self.blake3, digest(&self.path)) {
            (None, _) => Since::NotCompared,
            (Some(_), Err(error)) if error.kind() == io::ErrorKind::NotFound => Since::Gone,
            (Some(then), Ok(now)) if *then == now => Since::Same,
            _ => Since::Changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn names_sort_by_time_and_no_two_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut ids = Vec::new();
        let mut held = Vec::new();
        for microseconds in [1, 1, 1, 35, 36, 999_999, 1_000_000] {
            let time = UNIX_EPOCH + Duration::from_micros(1_795_570_602_000_000 + microseconds);
            let (id, place) = reserve(folder.path(), time).unwrap();
            ids.push(id);
            held.push(place);
        }
        assert_eq!(
            ids,
            [
                "20261125-013642-0001",
                "20261125-013642-0002",
                "20261125-013642-0003",
                "20261125-013642-000z",
                "20261125-013642-0010",
                "20261125-013642-lflr",
                "20261125-013643-0000",
            ]
        );
        assert!(ids.is_sorted());
    }

    #[test]
    fn the_oldest_runs_go_when_there_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..MOST + 3 {
            let name = format!(
                "20261125-013642-{}.json",
                letters(u32::try_from(number).unwrap())
            );
            fs::write(folder.path().join(name), "{}").unwrap();
        }
        prune(folder.path());
        let left = ids(folder.path()).unwrap();
        assert_eq!(left.len(), MOST);
        assert_eq!(left[0], "20261125-013642-0003");
    }
}
