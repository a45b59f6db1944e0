//! What a workflow reads, written down: a lock file, its comparison with what is there, and the search for what moved.
//!
//! A lock names every workflow file, params file, asset and model file with its size and BLAKE3 digest, by a path
//! relative to the workflow's folder. It never holds an absolute path: it is made to be shared.

pub mod redirect;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::base::digest::{Digest, hex, parse_hex, short};
use crate::base::paths::MAX_LINKS;
use crate::base::paths::display;
use crate::base::paths::leads_to;
use crate::base::paths::normal;
use crate::base::problem::{Code, Problem, Problems, Source, Span};
use crate::base::remote::{self, Address};
use crate::check::{Checked, Settings};
use crate::files::Files;
use crate::lock::redirect::Redirect;
use crate::syntax::yaml::{self, Node, Tree};

/// What stands under `schema:` in a lock file.
pub const SCHEMA: &str = "retouch-lock/1";
/// The type of the ports that models cross: what a node that gives one reads is a model.
const MODEL_TYPE: &str = "model";
/// So many named folders must be shared by the workflow's place and a file's for a path between them to be written
/// down: what lies above is the machine's layout and its users' names.
const SHARED_FOLDERS: usize = 2;
/// How deep the folders of models are looked through; a hub's cache of snapshots is five levels deep.
const MAX_DEPTH: usize = 8;
/// How many files and folders of one search folder are looked at.
const MAX_ENTRIES: usize = 100_000;

/// What a file is to the workflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockedKind {
    /// The workflow, or a graph that it uses.
    Workflow,
    /// A file of `--params`.
    Params,
    /// A picture, a latent: what a node reads.
    Asset,
    /// A part of a model.
    Model,
}

impl LockedKind {
    /// Its name in the lock file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Workflow => "workflow",
            Self::Params => "params",
            Self::Asset => "asset",
            Self::Model => "model",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Workflow, Self::Params, Self::Asset, Self::Model]
            .into_iter()
            .find(|kind| kind.name() == text)
    }
}

impl fmt::Display for LockedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One file that a workflow reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedFile {
    /// What it is to the workflow.
    pub kind: LockedKind,
    /// Its path from the workflow's folder, with `/`; may begin with `../`. When it lies elsewhere, the end of its path.
    pub path: String,
    /// Whether it lies where no path from the workflow's folder leads that could be shared: another drive, another
    /// user's folder.
    pub elsewhere: bool,
    /// Of a part of a model: the folder that the workflow names, written as `path` is; of a single file the file.
    pub model: Option<String>,
    /// Of what lies on a hub: the commit that was read. The path is then as the workflow writes it: `hf://...`.
    pub commit: Option<String>,
    /// Its bytes.
    pub size: u64,
    /// The BLAKE3 digest of its content.
    pub blake3: Digest,
}

/// What a workflow reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The version of the program that wrote it.
    pub tool: String,
    /// The workflow's name.
    pub workflow: String,
    /// The files, sorted by kind and path.
    pub files: Vec<LockedFile>,
}

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

/// The lock file of a workflow: `wf.lock` beside `wf.yaml`.
#[must_use]
pub fn file_of(workflow: &Path) -> PathBuf {
    if workflow.extension().is_some_and(|end| end == "lock") {
        // A workflow of that name is not written over.
        return workflow.with_extension("lock.lock");
    }
    workflow.with_extension("lock")
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    let name = display(path);
    Problem::new(
        Code::FileUnreadable,
        &Source::new(&*name, ""),
        Span::default(),
        format!("`{name}` cannot be read: {error}"),
    )
    .help("check the path")
}

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
fn remote_path(path: &Path) -> Option<String> {
    Some(Address::parse(path).ok()?.to_string())
}

/// A path from one folder to a file; `None` when there is none that could be shared.
fn relative(folder: &Path, file: &Path) -> Option<PathBuf> {
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
fn slashed(path: &Path, file: &Path) -> Result<String, Problem> {
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
fn model_of(path: &Path, role: &str) -> PathBuf {
    let mut folder = path;
    for part in Path::new(role).components().rev() {
        match (folder.file_name(), folder.parent()) {
            (Some(name), Some(parent)) if name == part.as_os_str() => folder = parent,
            _ => break,
        }
    }
    folder.to_owned()
}

struct Maker<'a> {
    folder: PathBuf,
    files: &'a dyn Files,
    seen: BTreeSet<(LockedKind, PathBuf)>,
    locked: Vec<LockedFile>,
}

impl Maker<'_> {
    /// How a path is written, and whether it lies elsewhere. `keep` is how many names of it to keep in that case.
    fn written(&self, path: &Path, keep: usize) -> Result<(String, bool), Problem> {
        if let Some(remote) = remote_path(path) {
            return Ok((remote, false));
        }
        if let Some(relative) = relative(&self.folder, path) {
            return Ok((slashed(&relative, path)?, false));
        }
        let clean = normal(path);
        let names: Vec<Component<'_>> = clean
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        let end: PathBuf = names[names.len().saturating_sub(keep.max(1))..]
            .iter()
            .collect();
        Ok((slashed(&end, path)?, true))
    }

    fn add(&mut self, kind: LockedKind, path: &Path, role: &str) -> Result<(), Problem> {
        if !self.seen.insert((kind, normal(path))) {
            return Ok(());
        }
        let model = (kind == LockedKind::Model).then(|| model_of(path, role));
        let below = model
            .as_ref()
            .and_then(|model| path.strip_prefix(model).ok())
            .map_or(0, |rest| rest.components().count());
        let (written, elsewhere) = self.written(path, below + 1)?;
        let model = match model {
            Some(model) => Some(self.written(&model, 1)?.0),
            None => None,
        };
        let digest = self
            .files
            .digest(path)
            .map_err(|error| unreadable(path, &error))?;
        let (_, size) = self
            .files
            .read_head(path, 0)
            .map_err(|error| unreadable(path, &error))?;
        self.locked.push(LockedFile {
            kind,
            path: written,
            elsewhere,
            model,
            commit: self.files.commit(path),
            size,
            blake3: digest,
        });
        Ok(())
    }
}

impl Lock {
    /// Writes down what a workflow reads: itself and the graphs that it uses, params files, and the files of all its
    /// nodes. `workflow` is the path that it was loaded from, `settings` what it was loaded with, `tool` the version
    /// of the program.
    ///
    /// # Errors
    /// When a file cannot be read, or has a name that other systems do not take.
    pub fn of(
        checked: &Checked,
        workflow: &Path,
        settings: &Settings,
        files: &dyn Files,
        tool: &str,
    ) -> Result<Self, Problems> {
        let mut maker = Maker {
            folder: crate::base::paths::folder_of(workflow),
            files,
            seen: BTreeSet::new(),
            locked: Vec::new(),
        };
        for path in &checked.files {
            let kind = if settings.params.contains(path) {
                LockedKind::Params
            } else {
                LockedKind::Workflow
            };
            maker.add(kind, path, "")?;
        }
        for node in &checked.nodes {
            let gives_model = node
                .entry()
                .outputs()
                .iter()
                .any(|port| port.types.contains(&MODEL_TYPE));
            let kind = if gives_model {
                LockedKind::Model
            } else {
                LockedKind::Asset
            };
            for file in node.reads() {
                maker.add(kind, &file.path, &file.role)?;
            }
        }
        let mut locked = maker.locked;
        locked.sort();
        // Two ways to write one path are one file. Of files elsewhere only the end of the path is known: two may have
        // the same, and both count.
        locked.dedup();
        Ok(Self {
            tool: tool.to_owned(),
            workflow: checked.name.clone(),
            files: locked,
        })
    }

    /// The commits of the models on hubs, by the path of the model as the workflow writes it: `hf://owner/name@main`.
    #[must_use]
    pub fn commits(&self) -> BTreeMap<PathBuf, String> {
        let commit = |file: &LockedFile| {
            let address = Address::parse(Path::new(&file.path)).ok()?;
            Some((address.model(), file.commit.clone()?))
        };
        self.files.iter().filter_map(commit).collect()
    }

    /// The text of the lock file: one file a line.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let quoted = |text: &str| Json::from(text).to_string();
        let mut text = String::from(
            "# What the workflow reads, written by `retouch lock`. `retouch run --locked` accepts nothing else.\n",
        );
        let _ = writeln!(text, "schema: {SCHEMA}");
        let _ = writeln!(text, "retouch: {}", quoted(&self.tool));
        let _ = writeln!(text, "workflow: {}", quoted(&self.workflow));
        if self.files.is_empty() {
            text.push_str("files: []\n");
            return text;
        }
        text.push_str("files:\n");
        for file in &self.files {
            let _ = write!(
                text,
                "  - {{kind: {}, path: {}",
                file.kind,
                quoted(&file.path)
            );
            if file.elsewhere {
                text.push_str(", elsewhere: true");
            }
            if let Some(model) = &file.model {
                let _ = write!(text, ", model: {}", quoted(model));
            }
            if let Some(commit) = &file.commit {
                let _ = write!(text, ", commit: {}", quoted(commit));
            }
            let _ = writeln!(
                text,
                ", size: {}, blake3: \"{}\"}}",
                file.size,
                hex(&file.blake3)
            );
        }
        text
    }

    /// Reads the lock file at `path`; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is no lock.
    pub fn read(path: &Path, files: &dyn Files) -> Result<Option<Self>, Problems> {
        match files.read_head(path, yaml::MAX_BYTES + 1) {
            Ok((bytes, _)) => Self::parse(&path.display().to_string(), &bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(path, &error).into()),
        }
    }

    /// Reads the text of a lock file; `name` is what faults call it.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Problems> {
        let source = yaml::decode(name, bytes)?;
        let mut problems = Vec::new();
        let tree = yaml::parse(&source, &mut problems);
        if !problems.is_empty() {
            return Err(Problems::new(problems));
        }
        let mut reader = Reader {
            source: &source,
            problems,
        };
        let lock = tree.and_then(|tree| reader.lock(&tree));
        match lock {
            Some(lock) if reader.problems.is_empty() => Ok(lock),
            _ => Err(Problems::new(reader.problems)),
        }
    }

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

struct Reader<'a> {
    source: &'a Source,
    problems: Vec<Problem>,
}

/// A path as a lock writes it: relative, with `/`, `..` at the beginning alone.
fn is_locked_path(path: &str) -> bool {
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

impl Reader<'_> {
    fn fault(&mut self, code: Code, span: Span, message: impl Into<String>) {
        self.problems.push(
            Problem::new(code, self.source, span, message)
                .help("write the lock anew with `retouch lock FILE`"),
        );
    }

    fn wrong(&mut self, span: Span, message: impl Into<String>) {
        self.fault(Code::LockUnreadable, span, message);
    }

    fn text(&mut self, tree: &Tree, name: &str) -> Option<String> {
        let text = tree.as_text().map(str::to_owned);
        if text.is_none() {
            let message = format!("`{name}` is a text, not {}", tree.describe());
            self.wrong(tree.span, message);
        }
        text
    }

    fn lock(&mut self, tree: &Tree) -> Option<Lock> {
        let Node::Map(entries) = &tree.node else {
            self.wrong(
                tree.span,
                format!("a lock file is a map, not {}", tree.describe()),
            );
            return None;
        };
        // The schema first: of another one nothing else is known.
        match entries.iter().find(|(key, _)| key.text == "schema") {
            Some((_, value)) if value.as_text() == Some(SCHEMA) => {}
            Some((_, value)) => {
                let message = format!(
                    "the lock is of another schema: {}; this program reads `{SCHEMA}`",
                    value.describe()
                );
                self.fault(Code::LockSchema, value.span, message);
                return None;
            }
            None => {
                self.wrong(tree.span, format!("it does not say `schema: {SCHEMA}`"));
                return None;
            }
        }
        let (mut tool, mut workflow, mut files) = (None, None, None);
        for (key, value) in entries {
            match key.text.as_str() {
                "schema" => {}
                "retouch" => tool = self.text(value, "retouch"),
                "workflow" => workflow = self.text(value, "workflow"),
                "files" => match &value.node {
                    Node::Seq(items) => {
                        files = Some(items.iter().filter_map(|item| self.file(item)).collect());
                    }
                    _ => {
                        let message = format!("`files` is a list, not {}", value.describe());
                        self.wrong(value.span, message);
                    }
                },
                other => self.wrong(key.span, format!("a lock has no `{other}`")),
            }
        }
        for (name, there) in [
            ("retouch", tool.is_some()),
            ("workflow", workflow.is_some()),
            ("files", files.is_some()),
        ] {
            if !there && !entries.iter().any(|(key, _)| key.text == name) {
                self.wrong(tree.span, format!("the lock has no `{name}`"));
            }
        }
        let mut files: Vec<LockedFile> = files?;
        files.sort();
        Some(Lock {
            tool: tool?,
            workflow: workflow?,
            files,
        })
    }

    fn path(&mut self, tree: &Tree, name: &str) -> Option<String> {
        let text = self.text(tree, name)?;
        // The folder of the workflow itself may be a model's, which is written `.`; so may one above it.
        let folder = name == "model" && text == ".";
        if folder || is_locked_path(&text) {
            return Some(text);
        }
        let message = format!(
            "`{}` is no path of a lock: it must be relative, with `/`, and `..` only at its beginning",
            text.escape_debug()
        );
        self.wrong(tree.span, message);
        None
    }

    fn file(&mut self, tree: &Tree) -> Option<LockedFile> {
        let Node::Map(entries) = &tree.node else {
            let message = format!("a file of a lock is a map, not {}", tree.describe());
            self.wrong(tree.span, message);
            return None;
        };
        let (mut kind, mut path, mut size, mut digest) = (None, None, None, None);
        let (mut model, mut elsewhere, mut commit) = (None, false, None);
        let before = self.problems.len();
        for (key, value) in entries {
            match key.text.as_str() {
                "path" => path = self.path(value, "path"),
                "model" => model = self.path(value, "model"),
                "kind" => {
                    kind = value.as_text().and_then(LockedKind::parse);
                    if kind.is_none() {
                        let message = format!(
                            "`kind` is workflow, params, asset or model, not {}",
                            value.describe()
                        );
                        self.wrong(value.span, message);
                    }
                }
                "commit" => {
                    commit = (value.as_text().map(str::to_owned))
                        .filter(|commit| remote::is_commit(commit));
                    if commit.is_none() {
                        self.wrong(value.span, "`commit` is a commit of 40 hexadecimal digits");
                    }
                }
                "elsewhere" => match value.node {
                    Node::Bool(flag) => elsewhere = flag,
                    _ => self.wrong(value.span, "`elsewhere` is true or false"),
                },
                "size" => match value.node {
                    Node::Int(bytes) if bytes >= 0 => size = Some(bytes.unsigned_abs()),
                    _ => self.wrong(value.span, "`size` is a number of bytes"),
                },
                "blake3" => {
                    digest = value.as_text().and_then(parse_hex);
                    if digest.is_none() {
                        self.wrong(value.span, "`blake3` is a digest of 64 hexadecimal digits");
                    }
                }
                other => self.wrong(key.span, format!("a file of a lock has no `{other}`")),
            }
        }
        for (name, there) in [
            ("kind", kind.is_some()),
            ("path", path.is_some()),
            ("size", size.is_some()),
            ("blake3", digest.is_some()),
        ] {
            if !there && self.problems.len() == before {
                self.wrong(tree.span, format!("the file has no `{name}`"));
            }
        }
        Some(LockedFile {
            kind: kind?,
            path: path?,
            elsewhere,
            model,
            commit,
            size: size?,
            blake3: digest?,
        })
    }
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
struct Wanted<'a> {
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
    let missing: Vec<Wanted<'_>> = wanted(lock, folder)
        .into_iter()
        .filter(|wanted| {
            let there = |place: &PathBuf| files.is_file(&below(&wanted.from, place));
            !wanted.files.iter().all(|(place, _)| there(place))
        })
        .collect();
    if missing.is_empty() {
        return located;
    }
    let mut by_size: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for root in roots {
        if !index(root, files, &mut by_size) {
            located.cut.push(root.clone());
        }
    }
    for wanted in missing {
        let Some(to) = search(&wanted, &by_size, files) else {
            located.lost.push(wanted.from);
            continue;
        };
        for (place, _) in &wanted.files {
            located.files.push(Redirect {
                from: below(&wanted.from, place),
                to: below(&to, place),
            });
        }
        located.found.push(Redirect {
            from: wanted.from,
            to,
        });
    }
    located
}

fn below(folder: &Path, place: &Path) -> PathBuf {
    if place.as_os_str().is_empty() {
        folder.to_owned()
    } else {
        folder.join(place)
    }
}

fn wanted<'a>(lock: &'a Lock, folder: &Path) -> Vec<Wanted<'a>> {
    let mut all: Vec<Wanted<'a>> = Vec::new();
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
        match all.iter_mut().find(|wanted| wanted.from == from) {
            Some(wanted) => wanted.files.push(entry),
            None => all.push(Wanted {
                from,
                files: vec![entry],
            }),
        }
    }
    all
}

/// Notes what lies below a folder, by size; false when there is more than is looked at.
fn index(root: &Path, files: &dyn Files, by_size: &mut BTreeMap<u64, Vec<PathBuf>>) -> bool {
    let mut level = vec![root.to_owned()];
    let mut count = 0;
    for _ in 0..MAX_DEPTH {
        let mut next = Vec::new();
        for folder in level {
            // What may not be looked into holds nothing for this user.
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

fn search(
    wanted: &Wanted<'_>,
    by_size: &BTreeMap<u64, Vec<PathBuf>>,
    files: &dyn Files,
) -> Option<PathBuf> {
    // The largest file tells most; the rest is compared at its side, the smallest first.
    let (anchor, largest) = wanted.files.iter().max_by_key(|(_, file)| file.size)?;
    let mut rest: Vec<_> = wanted.files.iter().collect();
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
    // What still has its name is looked at first.
    let name = wanted.from.file_name();
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::files::MemoryFiles;
    use crate::lock::redirect::RedirectedFiles;

    fn file(kind: LockedKind, path: &str, content: &str) -> LockedFile {
        LockedFile {
            kind,
            path: path.to_owned(),
            elsewhere: false,
            model: (kind == LockedKind::Model).then(|| "../models/world".to_owned()),
            commit: None,
            size: content.len() as u64,
            blake3: *blake3::hash(content.as_bytes()).as_bytes(),
        }
    }

    fn sample() -> Lock {
        Lock {
            tool: "0.1.0".to_owned(),
            workflow: "wf".to_owned(),
            files: vec![
                file(LockedKind::Workflow, "wf.yaml", "schema: retouch/v1"),
                file(LockedKind::Asset, "../photos/é \"1\".png", "photo"),
                file(LockedKind::Model, "../models/world/unet/config.json", "{}"),
                file(LockedKind::Model, "../models/world/unet/weights", "weights"),
            ],
        }
    }

    fn faults(text: &str) -> String {
        Lock::parse("wf.lock", text.as_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_lock_reads_as_it_was_written_one_file_a_line() {
        let lock = sample();
        let text = lock.to_yaml();
        assert_eq!(Lock::parse("wf.lock", text.as_bytes()).unwrap(), lock);
        assert_eq!(text.lines().count(), 5 + lock.files.len());
        let empty = Lock {
            files: Vec::new(),
            ..lock
        };
        let text = empty.to_yaml();
        assert_eq!(Lock::parse("wf.lock", text.as_bytes()).unwrap(), empty);
    }

    #[test]
    fn a_lock_of_another_schema_is_refused_by_name() {
        let text = sample().to_yaml().replace("lock/1", "lock/2");
        let said = faults(&text);
        assert!(
            said.contains("R0902") && said.contains("retouch-lock/2"),
            "{said}"
        );
    }

    #[test]
    fn what_is_no_lock_is_a_fault_at_its_place() {
        let text = sample().to_yaml();
        for (from, to) in [
            ("schema: retouch-lock/1\n", ""),
            ("files:\n", "files: 1\nfile:\n"),
            ("kind: asset", "kind: asse"),
            ("path: \"wf.yaml\"", "path: \"/wf.yaml\""),
            ("path: \"wf.yaml\"", "path: \"a/../../wf.yaml\""),
            ("path: \"wf.yaml\"", "path: \"C:wf.yaml\""),
            ("path: \"wf.yaml\"", "path: \"a\\\\wf.yaml\""),
            ("path: \"wf.yaml\"", "path: \"\""),
            ("path: \"wf.yaml\"", "paht: \"wf.yaml\""),
            ("size: 18", "size: -18"),
            ("size: 18, ", ""),
            ("blake3: \"", "blake3: \"0"),
            ("workflow: \"wf\"", "workflow: [wf]"),
            ("retouch: \"0.1.0\"\n", ""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            let said = faults(&changed);
            assert!(
                said.contains("wf.lock:") && said.contains("R0901"),
                "{said}"
            );
        }
        for garbage in ["", "[", "a: b: c", "- 1", "\u{0}\u{1}"] {
            assert!(Lock::parse("wf.lock", garbage.as_bytes()).is_err());
        }
        assert!(Lock::parse("wf.lock", &[0xff, 0xfe, 0x00]).is_err());
    }

    #[test]
    fn differences_name_each_file_and_both_digests() {
        let (old, mut new) = (sample(), sample());
        assert_eq!(old.compare(&new), []);
        new.files[1] = file(LockedKind::Asset, "../photos/é \"1\".png", "another");
        new.files[0].path = "other.yaml".to_owned();
        let said: Vec<String> = old.compare(&new).iter().map(ToString::to_string).collect();
        let digest = |content: &str| short(blake3::hash(content.as_bytes()).as_bytes());
        assert_eq!(
            said,
            [
                format!(
                    "../photos/é \"1\".png: changed ({} -> {})",
                    digest("photo"),
                    digest("another")
                ),
                format!(
                    "other.yaml: not in the lock (is {})",
                    digest("schema: retouch/v1")
                ),
                format!("wf.yaml: missing (was {})", digest("schema: retouch/v1")),
            ]
        );
        assert_eq!(old.violations(&new).len(), 2);
    }

    #[test]
    fn paths_are_relative_and_never_climb_to_the_machine() {
        let path = |folder: &str, file: &str| {
            relative(Path::new(folder), Path::new(file))
                .map(|path| slashed(&path, Path::new(file)).unwrap())
        };
        assert_eq!(path("", "a.png").as_deref(), Some("a.png"));
        assert_eq!(path("wf", "wf/../m/./x").as_deref(), Some("../m/x"));
        assert_eq!(path("/h/u/p/wf", "/h/u/q/x").as_deref(), Some("../../q/x"));
        assert_eq!(path("/h/u/wf", "/h/v/x"), None);
        assert_eq!(path("/h/u/wf", "/data/x"), None);
    }

    #[test]
    fn the_end_that_a_role_gives_is_taken_off_a_models_path() {
        let model = |path, role| model_of(Path::new(path), role);
        assert_eq!(model("m/w/unet/c.json", "unet/c.json"), Path::new("m/w"));
        assert_eq!(model("m/bear/c.json", "unet/c.json"), Path::new("m/bear"));
        assert_eq!(
            model("m/one.safetensors", "checkpoint"),
            Path::new("m/one.safetensors")
        );
    }

    fn moved() -> MemoryFiles {
        MemoryFiles::new()
            .with("wf/wf.yaml", "schema: retouch/v1")
            .with("photos/é \"1\".png", "photo")
            .with("shelf/x/decoy/unet/config.json", "[]")
            .with("shelf/x/decoy/unet/weights", "weights")
            .with("shelf/x/renamed/unet/config.json", "{}")
            .with("shelf/x/renamed/unet/weights", "weights")
            .with("shelf/x/renamed/unet/more.json", "more")
    }

    #[test]
    fn a_model_that_moved_is_found_by_what_it_holds_and_read_from_there() {
        let inner = Arc::new(moved());
        let roots = vec![PathBuf::from("nowhere"), PathBuf::from("shelf")];
        let files = RedirectedFiles::new(inner.clone(), roots);
        let located = files.locate(Some(&sample()), Path::new("wf"));
        assert_eq!(located.lost, Vec::<PathBuf>::new());
        assert_eq!(
            files.news(),
            [Redirect {
                from: "models/world".into(),
                to: "shelf/x/renamed".into()
            }]
        );
        assert!(files.is_dir(Path::new("wf/../models/world")));
        let config = Path::new("wf/../models/world/unet/config.json");
        assert_eq!(&*files.read(config).unwrap(), b"{}");
        assert_eq!(
            files.place(config),
            Path::new("shelf/x/renamed/unet/config.json")
        );
        // What the lock does not have is not read along.
        assert!(!files.is_file(Path::new("models/world/unet/more.json")));
        // What comes back to its own place is read there.
        inner.insert("models/world/unet/config.json", "new");
        assert_eq!(&*files.read(config).unwrap(), b"new");
    }

    #[test]
    fn a_model_of_another_content_is_not_taken_for_the_locked_one() {
        let inner = moved();
        inner.insert("shelf/x/renamed/unet/config.json", "{ }");
        inner.insert("shelf/world/unet/config.json", "{ }");
        let files = RedirectedFiles::new(Arc::new(inner), vec!["shelf".into()]);
        let located = files.locate(Some(&sample()), Path::new("wf"));
        assert_eq!(located.lost, [PathBuf::from("models/world")]);
        let sought = files.seek(Path::new("wf/../models/world"));
        assert!(sought.locked && sought.places == [PathBuf::from("shelf")]);
        // Without a lock the name is all there is to go by.
        files.locate(None, Path::new("wf"));
        assert_eq!(
            files.seek(Path::new("wf/../models/world")).places,
            Vec::<PathBuf>::new()
        );
        let config = Path::new("models/world/unet/config.json");
        assert_eq!(&*files.read(config).unwrap(), b"{ }");
    }
}
