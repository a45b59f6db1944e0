//! From a workflow to a bundle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Cursor, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use retouch_graph::files::{self, piece};
use retouch_graph::params::{How, ParamType};
use retouch_graph::problem::Code;
use retouch_graph::write::{Access, Draft};
use retouch_graph::yaml::{self, Node};
use retouch_graph::{
    Cancel, Checked, Digest, Engine, FileStamp, Files, FolderEntry, Key, Lock, LockedFile,
    LockedKind, Problems, Settings, Sweep, Withheld, interrupt, lock, remote,
};
use ruzstd::encoding::{CompressionLevel, FrameCompressor};
use sha2::{Digest as _, Sha256};

use super::manifest::{Manifest, Packed};
use super::names::Paths;
use super::{Error, MANIFEST, tar, unpack};
use crate::Failure;
use crate::store::size;

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The workflow.
    pub workflow: &'a Path,
    /// What it is run with.
    pub settings: &'a Settings,
    /// The bundle to write.
    pub output: &'a Path,
    /// Whether models are packed.
    pub models: bool,
    /// The largest asset that is packed, in bytes.
    pub most: u64,
    /// Ends it.
    pub cancel: &'a Cancel,
    /// Called with the number of bytes that were packed since, and of how many in all.
    pub packed: &'a dyn Fn(u64, u64),
    /// Likewise when what was packed is read back.
    pub read_back: &'a dyn Fn(u64, u64),
}

/// What is packed.
#[derive(Debug)]
pub enum Subject {
    /// A workflow; a sweep that it says comes along.
    Workflow(Box<Checked>),
    /// A sweep in a file of its own, with the workflow that it names.
    Sweep(Box<Sweep>),
}

impl Subject {
    /// Everything that is read.
    #[must_use]
    pub fn checked(&self) -> &Checked {
        match self {
            Self::Workflow(checked) => checked,
            Self::Sweep(sweep) => sweep.all_cells(),
        }
    }

    /// The file that declares the params.
    fn declares<'a>(&'a self, file: &'a Path) -> &'a Path {
        match self {
            Self::Workflow(_) => file,
            Self::Sweep(sweep) => &sweep.workflow,
        }
    }

    /// The keys of what is computed.
    fn keys(&self, engine: &Engine) -> Result<Vec<Key>, Problems> {
        let plan = match self {
            Self::Workflow(checked) => engine.plan(checked, &[])?,
            Self::Sweep(sweep) => engine.plan_sweep(sweep, &[], &BTreeSet::new())?.plan,
        };
        Ok(plan.tasks().map(|task| task.key()).collect())
    }

    /// The same from another place.
    fn again(&self, engine: &Engine, file: &Path, settings: &Settings) -> Result<Self, Problems> {
        Ok(match self {
            Self::Workflow(_) => Self::Workflow(Box::new(engine.load(file, settings)?)),
            Self::Sweep(_) => Self::Sweep(Box::new(engine.load_sweep(file, settings)?)),
        })
    }
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// What is in it.
    pub manifest: Manifest,
    /// The models that are not: their paths in the bundle, files and bytes.
    pub left_out: BTreeMap<String, (usize, u64)>,
    /// The models on hubs, which are never in it: what the workflow calls them, files and bytes.
    pub fetched: BTreeMap<String, (usize, u64)>,
    /// The bytes of the bundle.
    pub bytes: u64,
}

/// Why none was made.
#[derive(Debug)]
pub enum Stop {
    /// The workflow has faults.
    Faults(Problems),
    /// It cannot be bundled.
    Error(Error),
}

impl From<Problems> for Stop {
    fn from(problems: Problems) -> Self {
        Self::Faults(problems)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// What a member's content is.
#[derive(Clone, Debug)]
enum Content {
    /// A file, by the path that the workflow gave it.
    Disk(PathBuf),
    Text(Vec<u8>),
}

/// What the workflow reads by its places in the bundle, and nothing else: what runs here runs from the bundle.
struct Members {
    content: BTreeMap<PathBuf, Content>,
    inner: Arc<dyn Files>,
    outside: Mutex<BTreeSet<PathBuf>>,
}

/// The folder that the bundle's places are below while it is tried.
const ROOT: &str = "bundle";

/// A path without `.` and `..`, by its text.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(clean.components().next_back(), Some(Component::Normal(_))) =>
            {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

impl Members {
    fn find(&self, path: &Path) -> io::Result<&Content> {
        let clean = clean(path);
        if !clean.starts_with(ROOT) {
            let mut outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
            outside.insert(clean.clone());
        }
        self.content
            .get(&clean)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Files for Members {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        if remote::is_remote(path) {
            return self.inner.read(path);
        }
        match self.find(path)? {
            Content::Disk(path) => self.inner.read(path),
            Content::Text(text) => Ok(Arc::from(text.as_slice())),
        }
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        if remote::is_remote(path) {
            return self.inner.read_head(path, length);
        }
        match self.find(path)? {
            Content::Disk(path) => self.inner.read_head(path, length),
            Content::Text(text) => Ok((text[..length.min(text.len())].to_vec(), text.len() as u64)),
        }
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        if remote::is_remote(path) {
            return self.inner.read_at(path, offset, length);
        }
        match self.find(path)? {
            Content::Disk(path) => self.inner.read_at(path, offset, length),
            Content::Text(text) => Ok(piece(text, offset, length).to_vec()),
        }
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        if remote::is_remote(path) {
            return self.inner.digest(path);
        }
        match self.find(path)? {
            Content::Disk(path) => self.inner.digest(path),
            Content::Text(text) => Ok(digest(text)),
        }
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        if remote::is_remote(path) {
            return self.inner.sha256(path);
        }
        match self.find(path)? {
            Content::Disk(path) => self.inner.sha256(path),
            Content::Text(text) => Ok(Sha256::digest(text).into()),
        }
    }

    fn doubt(&self) {
        self.inner.doubt();
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        if remote::is_remote(path) {
            return self.inner.stamp(path);
        }
        match self.find(path).ok()? {
            Content::Disk(path) => self.inner.stamp(path),
            Content::Text(_) => None,
        }
    }

    fn is_file(&self, path: &Path) -> bool {
        if remote::is_remote(path) {
            return self.inner.is_file(path);
        }
        self.find(path).is_ok()
    }

    fn is_dir(&self, path: &Path) -> bool {
        if remote::is_remote(path) {
            return self.inner.is_dir(path);
        }
        let folder = clean(path);
        self.content
            .keys()
            .any(|file| file != &folder && file.starts_with(&folder))
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        if remote::is_remote(folder) {
            return self.inner.entries(folder);
        }
        Err(io::ErrorKind::Unsupported.into())
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

impl retouch_graph::ModelLocator for Members {
    fn find_model(&self, _: &Path) -> retouch_graph::Searched {
        retouch_graph::Searched::default()
    }

    fn place(&self, path: &Path) -> PathBuf {
        if remote::is_remote(path) {
            return self.inner.place(path);
        }
        path.to_owned()
    }

    fn withheld(&self, path: &Path) -> Option<Withheld> {
        self.inner.withheld(path)
    }

    fn commit(&self, path: &Path) -> Option<String> {
        self.inner.commit(path)
    }
}

fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = retouch_graph::digest::Hasher::default();
    hasher.update(bytes);
    hasher.finish()
}

fn outside(path: &str) -> Error {
    Error::refused(
        Code::BundleOutside,
        format!("`{path}` has no path from the workflow that would work on another machine"),
    )
    .help("write the path relative to the workflow, and keep the file near it")
}

/// Where the workflow's folder is below the bundle's: as many of its own names as paths climb over.
fn placed(folder: &Path, files: &[LockedFile]) -> Result<PathBuf, Error> {
    let climbs = |path: &str| path.split('/').take_while(|part| *part == "..").count();
    let up = files
        .iter()
        .flat_map(|file| [Some(&file.path), file.model.as_ref()])
        .flatten()
        .map(|path| climbs(path))
        .max()
        .unwrap_or(0);
    let from = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let absolute = std::path::absolute(from).map_err(|error| {
        Error::Failed(Failure::failed(format!(
            "the folder of the workflow is not known: {error}"
        )))
    })?;
    let absolute = clean(&absolute);
    let names: Vec<_> = absolute
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    let Some(first) = names.len().checked_sub(up) else {
        return Err(outside(&"../".repeat(up)));
    };
    Ok(names[first..].iter().collect())
}

/// The place of a locked path in the bundle.
fn place(folder: &Path, path: &str) -> PathBuf {
    clean(&Path::new(ROOT).join(folder).join(path))
}

/// The path of a member for the manifest.
fn member(place: &Path) -> Result<String, Error> {
    let path = place
        .strip_prefix(ROOT)
        .map_err(|_| outside(&place.display().to_string()))?;
    let parts: Option<Vec<&str>> = path
        .components()
        .map(|part| part.as_os_str().to_str())
        .collect();
    let path = parts.map(|parts| parts.join("/")).ok_or_else(|| {
        let message = format!("the path `{}` is not Unicode", path.display());
        Error::refused(Code::BundleName, message).help("rename the file or folder")
    })?;
    super::names::check(&path).map_err(|error| error.help("rename the file or folder"))?;
    Ok(path)
}

/// What `--set` and `--params` gave, as a file of params; `None` when they gave nothing.
fn params(
    engine: &Engine,
    workflow: &Path,
    settings: &Settings,
    subject: &Subject,
) -> Result<Option<String>, Stop> {
    let declared = engine.read(subject.declares(workflow))?;
    let here = workflow.parent().unwrap_or(Path::new(""));
    let mut text = String::from("# What `retouch bundle` was given with `--set` and `--params`.\n");
    let mut any = false;
    for param in &subject.checked().params {
        let Some(decl) = declared.params.get(&param.name) else {
            continue;
        };
        let set = settings.set.iter().any(|set| {
            set.split_once('=')
                .is_some_and(|(name, _)| name.trim() == param.name)
        });
        let file = (!set)
            .then(|| setting_file(engine, settings, &param.name))
            .flatten();
        let value = match param.from {
            How::Set | How::File => param.value.clone(),
            How::Drawn if set || file.is_some() => "random".into(),
            _ => continue,
        };
        let value = match (decl.kind, value.as_str()) {
            (ParamType::Path, Some(path)) => {
                // As the checker resolves it: from the file that gives it, else from the settings' folder.
                let from = match &file {
                    Some(file) => file.parent().unwrap_or(Path::new("")),
                    None => &settings.folder,
                };
                let relative = lock::shareable(here, &remote::join(from, path));
                relative.ok_or_else(|| outside(path))?.into()
            }
            _ => value,
        };
        text.push_str(&format!("{}: {value}\n", param.name));
        any = true;
    }
    Ok(any.then_some(text))
}

/// The file of `--params` that gives a param its value.
fn setting_file<'a>(engine: &Engine, settings: &'a Settings, name: &str) -> Option<&'a PathBuf> {
    settings.params.iter().rev().find(|path| {
        let Ok(bytes) = engine.files().read(path) else {
            return false;
        };
        let Ok(source) = yaml::decode("params", &bytes) else {
            return false;
        };
        let tree = yaml::parse(&source, &mut Vec::new());
        let node = tree.map(|tree| tree.node);
        matches!(node, Some(Node::Map(entries)) if entries.iter().any(|(key, _)| key.text == name))
    })
}

/// Makes a bundle: checks the workflow, lays out what it reads, checks and plans the same workflow on that layout alone,
/// writes it under a temporary name, reads it back, and gives it its name.
///
/// # Errors
/// When the workflow has faults, reads what cannot be packed, or the bundle cannot be written; the output is then as
/// it was.
pub fn pack(engine: &Engine, request: &Request<'_>, subject: &Subject) -> Result<Made, Stop> {
    let Request {
        workflow, settings, ..
    } = *request;
    let tool = env!("CARGO_PKG_VERSION");
    let keys = subject.keys(engine)?;
    let files = engine.files();
    let read = Lock::of(subject.checked(), workflow, settings, &**files, tool)?;
    let given = params(engine, workflow, settings, subject)?;
    let needed: Vec<LockedFile> = read
        .files
        .into_iter()
        .filter(|file| file.kind != LockedKind::Params)
        // What is on a hub is fetched by who gets the bundle, at the commit that the lock names.
        .filter(|file| !remote::is_remote(Path::new(&file.path)))
        .collect();
    if let Some(file) = needed.iter().find(|file| file.elsewhere) {
        return Err(outside(&file.path).into());
    }
    let folder = workflow.parent().unwrap_or(Path::new(""));
    let placed = placed(folder, &needed)?;
    let mut content: BTreeMap<PathBuf, Content> = needed
        .iter()
        .map(|file| {
            let disk = Content::Disk(folder.join(&file.path));
            (place(&placed, &file.path), disk)
        })
        .collect();
    let name = workflow.file_name().unwrap_or_default();
    let entry = Path::new(ROOT).join(&placed).join(name);
    let mut own = Settings {
        draw: settings.draw,
        ..Settings::default()
    };
    let mut params_place = None;
    if let Some(text) = given {
        let mut path = entry.with_extension("params.yaml");
        while content.contains_key(&path) {
            path.set_extension("more.yaml");
        }
        content.insert(path.clone(), Content::Text(text.into_bytes()));
        own.params.push(path.clone());
        params_place = Some(path);
    }
    let (members, lock) = trial(engine, content, &entry, &own, (subject, &keys), tool)?;
    let mut content = members;
    content.insert(
        lock::file_of(&entry),
        Content::Text(lock.to_yaml().into_bytes()),
    );

    let Left { left_out, fetched } = leave_out(request, &lock, &placed, &mut content)?;
    let packed = packed(&content, &**files)?;
    let params = params_place.map(|place| member(&place)).transpose()?;
    let manifest = Manifest {
        tool: tool.to_owned(),
        workflow: member(&entry)?,
        params,
        files: packed.iter().map(|(file, _)| file.clone()).collect(),
    };
    let bytes = write(request, &manifest, packed, &**files)?;
    Ok(Made {
        manifest,
        left_out,
        fetched,
        bytes,
    })
}

/// What of a workflow is not packed: models by their name, how many files of what size.
#[derive(Default)]
struct Left {
    left_out: BTreeMap<String, (usize, u64)>,
    fetched: BTreeMap<String, (usize, u64)>,
}

/// Takes out of `content` what stays out: models, unless they were asked for, and what is on a hub.
fn leave_out(
    request: &Request<'_>,
    lock: &Lock,
    placed: &Path,
    content: &mut BTreeMap<PathBuf, Content>,
) -> Result<Left, Stop> {
    let Left {
        mut left_out,
        mut fetched,
    } = Left::default();
    for file in &lock.files {
        if remote::is_remote(Path::new(&file.path)) {
            let model = file.model.as_ref().unwrap_or(&file.path);
            let left = fetched.entry(model.clone()).or_default();
            left.0 += 1;
            left.1 += file.size;
            continue;
        }
        let at = place(placed, &file.path);
        if file.kind == LockedKind::Asset && file.size > request.most {
            return Err(Error::refused(
                Code::BundleAsset,
                format!(
                    "`{}` has {}; assets of at most {} are packed",
                    file.path,
                    size(file.size),
                    size(request.most)
                ),
            )
            .help(format!(
                "make it smaller, or allow more: `--max-asset {}MiB`",
                file.size.div_ceil(1 << 20)
            ))
            .into());
        }
        if file.kind == LockedKind::Model && !request.models {
            content.remove(&at);
            let model = file.model.as_ref().unwrap_or(&file.path);
            let left = left_out.entry(member(&place(placed, model))?).or_default();
            left.0 += 1;
            left.1 += file.size;
        }
    }
    Ok(Left { left_out, fetched })
}

/// The members of a bundle with their sizes and digests, in the order of their paths.
fn packed(
    content: &BTreeMap<PathBuf, Content>,
    files: &dyn Files,
) -> Result<Vec<(Packed, Content)>, Stop> {
    let mut paths = Paths::default();
    paths.add(MANIFEST)?;
    let mut packed = Vec::new();
    for (place, content) in content {
        let path = member(place)?;
        paths.add(&path)?;
        let (blake3, size) = match content {
            Content::Text(text) => (digest(text), text.len() as u64),
            Content::Disk(disk) => {
                let all = || Ok((files.digest(disk)?, files.read_head(disk, 0)?.1));
                all().map_err(|error: io::Error| {
                    Error::Failed(Failure::unreadable(format!(
                        "{} cannot be read: {error}",
                        disk.display()
                    )))
                })?
            }
        };
        packed.push((Packed { path, size, blake3 }, content.clone()));
    }
    packed.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(packed)
}

/// Checks and plans the workflow on the bundle's layout alone: every key must be the one that it has here.
fn trial(
    engine: &Engine,
    content: BTreeMap<PathBuf, Content>,
    entry: &Path,
    settings: &Settings,
    (subject, keys): (&Subject, &[Key]),
    tool: &str,
) -> Result<(BTreeMap<PathBuf, Content>, Lock), Stop> {
    let members = Arc::new(Members {
        content,
        inner: Arc::clone(engine.files()),
        outside: Mutex::default(),
    });
    let bundled = engine
        .clone()
        .with_files(Arc::clone(&members) as Arc<dyn Files>);
    let loaded = subject.again(&bundled, entry, settings);
    let strays = std::mem::take(
        &mut *members
            .outside
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
    );
    if let Some(stray) = strays.first() {
        return Err(outside(&stray.display().to_string()).into());
    }
    let again = loaded?;
    if again.keys(&bundled)? != keys {
        return Err(Error::Failed(
            Failure::failed("the workflow would give different results from the bundle")
                .help("this is a bug in the program: please report it with the workflow"),
        )
        .into());
    }
    let lock = Lock::of(again.checked(), entry, settings, &*members, tool)?;
    Ok((members.content.clone(), lock))
}

/// The bytes of the archive, one part after another.
struct Parts<'a> {
    left: VecDeque<Part>,
    cancel: Cancel,
    /// The bytes of all parts.
    total: u64,
    follow: &'a dyn Fn(u64, u64),
    /// What went wrong: the compressor knows no errors.
    error: Option<String>,
}

enum Part {
    Bytes(Cursor<Vec<u8>>),
    /// A file that is opened when it is its turn, and the bytes that it must have.
    File(PathBuf, u64),
    Open(PathBuf, File, u64),
}

impl Parts<'_> {
    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        if self.cancel.is_cancelled() {
            return Err("interrupted".to_owned());
        }
        while let Some(part) = self.left.pop_front() {
            let count = match part {
                Part::Bytes(mut bytes) => {
                    let count = bytes.read(buffer).map_err(|error| error.to_string())?;
                    if count > 0 {
                        self.left.push_front(Part::Bytes(bytes));
                    }
                    count
                }
                Part::File(path, size) => {
                    let file = files::open(&path)
                        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
                    self.left.push_front(Part::Open(path, file, size));
                    continue;
                }
                Part::Open(_, _, 0) => 0,
                Part::Open(path, mut file, left) => {
                    let most = usize::try_from(left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    let count = file
                        .read(&mut buffer[..most])
                        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
                    if count == 0 {
                        return Err(format!(
                            "{} became shorter while it was packed",
                            path.display()
                        ));
                    }
                    self.left
                        .push_front(Part::Open(path, file, left - count as u64));
                    count
                }
            };
            if count > 0 {
                return Ok(count);
            }
        }
        Ok(0)
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.error.is_some() || buffer.is_empty() {
            return Ok(0);
        }
        let next = interrupt::check().map_err(|error| error.to_string());
        match next.and_then(|()| self.next(buffer)) {
            Ok(count) => {
                (self.follow)(count as u64, self.total);
                Ok(count)
            }
            Err(error) => {
                self.error = Some(error);
                Ok(0)
            }
        }
    }
}

/// A file that swallows what comes after the first error, and remembers that.
struct Drain<'a> {
    file: &'a mut File,
    error: Option<io::Error>,
}

impl Write for Drain<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.error.is_none()
            && let Err(error) = self.file.write_all(bytes)
        {
            self.error = Some(error);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(
    request: &Request<'_>,
    manifest: &Manifest,
    packed: Vec<(Packed, Content)>,
    files: &dyn Files,
) -> Result<u64, Error> {
    let output = request.output;
    let cannot = |error: io::Error| Error::Unwritable(output.to_owned(), error);
    let text = manifest.to_yaml();
    if text.len() > yaml::MAX_BYTES || manifest.files.len() > super::MAX_FILES {
        return Err(Error::refused(
            Code::BundleLimit,
            format!(
                "{} files are more than a bundle holds",
                manifest.files.len()
            ),
        ));
    }
    let mut left = VecDeque::new();
    let bytes = |bytes: Vec<u8>| Part::Bytes(Cursor::new(bytes));
    let mut add = |path: &str, size: u64, part: Part| -> Result<(), Error> {
        let path = path.to_owned();
        let header = tar::header(&tar::Member { path, size })?;
        left.push_back(bytes(header.to_vec()));
        left.push_back(part);
        left.push_back(bytes(vec![0; tar::padding(size)]));
        Ok(())
    };
    let length = text.len() as u64;
    add(
        MANIFEST,
        length,
        Part::Bytes(Cursor::new(text.into_bytes())),
    )?;
    for (file, content) in packed {
        let part = match content {
            Content::Text(text) => Part::Bytes(Cursor::new(text)),
            Content::Disk(path) => Part::File(files.place(&path), file.size),
        };
        add(&file.path, file.size, part)?;
    }
    left.push_back(Part::Bytes(Cursor::new(vec![0; 2 * tar::BLOCK])));

    let mut draft = Draft::beside(output, Access::Usual).map_err(cannot)?;
    let total = manifest.bytes();
    let mut parts = Parts {
        left,
        total,
        follow: request.packed,
        cancel: request.cancel.clone(),
        error: None,
    };
    let mut drain = Drain {
        file: draft.file().map_err(cannot)?,
        error: None,
    };
    let mut compressor = FrameCompressor::new(CompressionLevel::Fastest);
    compressor.set_source(&mut parts);
    compressor.set_drain(&mut drain);
    compressor.compress();
    drop(compressor);
    if request.cancel.is_cancelled() {
        return Err(Error::Failed(Failure::interrupted("nothing was written")));
    }
    if let Some(error) = parts.error {
        return Err(Error::Failed(Failure::failed(error)));
    }
    if let Some(error) = drain.error {
        return Err(cannot(error));
    }
    drain.file.sync_all().map_err(cannot)?;
    // What is handed on has been read back: a file that changed meanwhile is found here.
    let follow = |bytes| (request.read_back)(bytes, total);
    let read_back = unpack::read_following(draft.path(), u64::MAX, None, request.cancel, &follow)?;
    if read_back != *manifest {
        return Err(Error::Failed(Failure::failed(
            "the bundle that was written does not read back",
        )));
    }
    let length = fs::metadata(draft.path()).map_err(cannot)?.len();
    draft.replace(output).map_err(cannot)?;
    Ok(length)
}
