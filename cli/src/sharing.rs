//! What a command is given may be a workflow or a bundle, with a lock beside it, and models in other places.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retouch_graph::paths::normal;
use retouch_graph::problem::{Code, Problem, Source, Span};
use retouch_graph::remote::Address;
use retouch_graph::{
    Cancel, Checked, Difference, Digest, Engine, FileStamp, Files, FolderEntry, Lock, LockedKind,
    Problems, Redirect, RedirectedFiles, Settings, Sweep, Withheld, interrupt, lock, remote,
};

use crate::args::{ModelsArgs, ParamArgs, SharingArgs};
use crate::bundle::{self, unpack};
use crate::hub::{self, Consent, Foreign, HubFiles, Mode};
use crate::output::tell;
use crate::store::{Store, size};
use crate::{Exit, Failure, session};

/// A workflow to be loaded: where it is, what it is locked to, and what its models and assets are read through.
pub struct Input {
    /// The workflow's file: the one that was named, or the one in the bundle that was named.
    pub file: PathBuf,
    /// What its files are read through.
    files: Arc<RedirectedFiles>,
    /// Whether everything must be as the lock says.
    locked: bool,
    hub: Arc<HubFiles>,
    bundle: Option<(PathBuf, unpack::Unpacked, Arc<Confined>)>,
    lock: Mutex<Option<Lock>>,
    told: Mutex<BTreeSet<(PathBuf, PathBuf)>>,
    /// The folders that models are looked for in.
    places: Vec<PathBuf>,
    /// Those of them that the command line names.
    named: Vec<PathBuf>,
}

/// Why there is nothing to load.
#[derive(Debug)]
pub enum Stop {
    /// A fault of the lock or the bundle.
    Faults(Problems),
    /// Something failed.
    Failure(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Problems> for Stop {
    fn from(problems: Problems) -> Self {
        Self::Faults(problems)
    }
}

impl Stop {
    /// Prints the faults, as JSON lines if that was asked for.
    ///
    /// # Errors
    /// What is no fault.
    pub fn tell(self, json: bool) -> Result<Exit, Failure> {
        match self {
            Self::Failure(failure) => Err(failure),
            // What could not be read because of Ctrl-C is no fault.
            Self::Faults(_) if interrupt::is_requested() => Err(hub::interrupted()),
            Self::Faults(problems) if json => {
                session::say_faults(&problems)?;
                Ok(Exit::of(&problems))
            }
            Self::Faults(problems) => Ok(session::faults(&problems)),
        }
    }
}

/// The folders that models are looked for in: those of `--models`, of `RETOUCH_MODELS`, of the configuration file.
#[must_use]
pub fn models(args: &ModelsArgs) -> Vec<PathBuf> {
    let named = std::env::var_os("RETOUCH_MODELS").unwrap_or_default();
    let mut folders = args.models.clone();
    folders.extend(std::env::split_paths(&named).filter(|folder| !folder.as_os_str().is_empty()));
    folders.extend(crate::config::models());
    folders
}

/// An engine that reads models on hubs. `foreign` is the file that names them, when a third party made it.
#[must_use]
pub fn hubs(
    engine: Engine,
    offline: bool,
    mode: Mode,
    foreign: Option<Foreign>,
) -> (Engine, Arc<HubFiles>) {
    let settings = hub::Settings::of_environment(offline);
    let inner = Arc::clone(engine.files());
    let consent = foreign.map(|foreign| Consent::new(foreign, mode.permit()));
    let hub = Arc::new(HubFiles::new(inner, settings, mode, consent));
    (engine.with_files(Arc::clone(&hub) as Arc<dyn Files>), hub)
}

/// Whether the folders of `--models` are there.
///
/// # Errors
/// Names the first that is not.
pub fn check_models(args: &ModelsArgs) -> Result<(), Failure> {
    match args.models.iter().find(|folder| !folder.is_dir()) {
        None => Ok(()),
        Some(folder) => Err(Failure::usage(format!(
            "`--models {}`: there is no such folder",
            folder.display()
        ))
        .help("name a folder that models are kept in")),
    }
}

impl Input {
    /// Takes a workflow or a bundle; models on hubs are read as far as they are in the cache.
    ///
    /// # Errors
    /// As [`Input::open_with`].
    pub fn open(
        file: &Path,
        args: &SharingArgs,
        locked: bool,
        store: &Store,
        engine: Engine,
    ) -> Result<(Self, Engine), Stop> {
        Self::open_with(file, args, locked, store, engine, Mode::Look)
    }

    /// Takes a workflow or a bundle. A bundle is unpacked below the cache's folder, or to a temporary one. The engine
    /// then reads through the places where models are kept; `mode` says whether hubs are asked.
    ///
    /// # Errors
    /// When the bundle is refused, or the lock is.
    pub fn open_with(
        file: &Path,
        args: &SharingArgs,
        locked: bool,
        store: &Store,
        engine: Engine,
        mode: Mode,
    ) -> Result<(Self, Engine), Stop> {
        check_models(&args.place)?;
        let cancel = match &mode {
            Mode::Fetch { cancel, .. } => cancel.clone(),
            Mode::Look => Cancel::new(),
        };
        let foreign = bundle::is_bundle(file).then(|| Foreign::Bundle(file.to_owned()));
        let (engine, hub) = hubs(engine, args.offline, mode, foreign.clone());
        if locked {
            // What is locked is compared with what is there, not with what was written down of it.
            engine.files().doubt();
        }
        let mut workflow = file.to_owned();
        let mut unpacked = None;
        if foreign.is_some() {
            let digest = engine
                .files()
                .digest(file)
                .map_err(|error| Failure::unreadable_argument(file, error))?;
            let cache = store.folder.as_deref();
            let most = args.max_unpacked.unwrap_or(bundle::MAX_UNPACKED);
            let there = match unpack::to_cache(file, &digest, most, cache, &cancel) {
                Ok(there) => there,
                // A stream that was cut short looks damaged.
                Err(_) if cancel.is_cancelled() => return Err(hub::interrupted().into()),
                Err(error) => return Err(Stop::Faults(error.problem(file)?.into())),
            };
            workflow = there.folder.join(&there.manifest.workflow);
            let confined = Arc::new(Confined {
                inner: Arc::clone(engine.files()),
                folders: models(&args.place)
                    .iter()
                    .chain([&there.folder])
                    .map(|folder| clean(folder))
                    .collect(),
                given: Mutex::default(),
                strays: Mutex::default(),
            });
            unpacked = Some((file.to_owned(), there, confined));
        }
        let inner = match &unpacked {
            Some((_, _, confined)) => Arc::clone(confined) as Arc<dyn Files>,
            None => Arc::clone(engine.files()),
        };
        let files = Arc::new(RedirectedFiles::new(inner, models(&args.place)));
        let engine = engine.with_files(Arc::clone(&files) as Arc<dyn Files>);
        let input = Self {
            file: workflow,
            files,
            locked,
            hub,
            bundle: unpacked,
            lock: Mutex::default(),
            told: Mutex::default(),
            places: models(&args.place),
            named: args.place.models.clone(),
        };
        input.look()?;
        Ok((input, engine))
    }

    /// Reads the lock, if there is one, and looks for what it has and is not at its path.
    ///
    /// # Errors
    /// With `--locked`, when there is no lock or it cannot be read.
    pub fn look(&self) -> Result<(), Problems> {
        let path = self.lock_file();
        let there = match Lock::read(&path, &*self.files) {
            Ok(there) => there,
            Err(problems) if self.locked => return Err(problems),
            Err(problems) => {
                // Without `--locked` a lock only helps to find things.
                for problem in problems.iter().take(1) {
                    tell(&format!(
                        "warning: {} is not used: {}",
                        path.display(),
                        problem.message()
                    ));
                }
                None
            }
        };
        if self.locked && there.is_none() {
            let source = Source::new(path.display().to_string(), "");
            let message = format!("there is no lock `{}`", path.display());
            return Err(
                Problem::new(Code::LockMissing, &source, Span::default(), message)
                    .help(format!("write it: `retouch lock {}`", self.file.display()))
                    .into(),
            );
        }
        self.hub
            .pin(there.as_ref().map(Lock::commits).unwrap_or_default());
        if let (Some(consent), Some(there)) = (self.hub.consent(), &there) {
            let sizes = there.files.iter();
            consent.declare(sizes.map(|file| (PathBuf::from(&file.path), file.size)));
        }
        let located = self.files.locate(there.as_ref(), self.folder());
        for folder in &located.cut {
            tell(&format!(
                "warning: {} has too many files to search; name the folders in it that hold models",
                folder.display()
            ));
        }
        *lock_of(&self.lock) = there;
        Ok(())
    }

    /// Reads models on hubs as they are now, whatever a lock says: for a lock that is written anew.
    pub fn unpin(&self) {
        self.hub.pin(BTreeMap::new());
    }

    fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// The lock file of the workflow.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        lock::file_of(&self.file)
    }

    /// What the workflow is loaded with: what the bundle was made with, then what the command line says.
    #[must_use]
    pub fn settings(&self, params: &ParamArgs) -> Settings {
        let mut settings = session::settings(params);
        if let Some((_, unpacked, _)) = &self.bundle
            && let Some(own) = &unpacked.manifest.params
        {
            settings.params.insert(0, unpacked.folder.join(own));
        }
        settings
    }

    /// Says what was found in other places, once.
    pub fn tell_found(&self) {
        let mut told = lock_of(&self.told);
        for Redirect { from, to } in self.files.news() {
            if told.insert((from.clone(), to.clone())) {
                // In a bundle the place below it is what its maker called it.
                let named = match &self.bundle {
                    Some((_, unpacked, _)) => from.strip_prefix(&unpacked.folder).unwrap_or(&from),
                    None => &from,
                };
                tell(&format!(
                    "{} does not exist; its content was found at {}",
                    named.display(),
                    to.display()
                ));
            }
        }
    }

    /// Loads and checks the workflow: no fault of its own, nothing outside of its bundle, with `--locked` nothing but what the
    /// lock says.
    ///
    /// # Errors
    /// All faults of one of these kinds.
    pub fn load(&self, engine: &Engine, settings: &Settings) -> Result<Checked, Problems> {
        self.allow(settings);
        let loaded = engine.load(&self.file, settings);
        self.tell_found();
        if let Some(stray) = self.stray() {
            return Err(stray.into());
        }
        match loaded {
            Ok(checked) => {
                self.as_locked(engine, &checked, settings)?;
                Ok(checked)
            }
            Err(problems) => Err(self.explained(problems)),
        }
    }

    /// The faults of a workflow that cannot be loaded, with those first that the others come from.
    fn explained(&self, problems: Problems) -> Problems {
        let needed = self.needed();
        if !needed.is_empty() {
            // The path of a model in an unpacked bundle says nothing to anybody.
            let rest = problems.into_iter();
            let rest = rest.filter(|one| one.code() != Code::NodeFile || one.is_of_arguments());
            return Problems::new(needed.into_iter().chain(rest).collect());
        }
        let problems = match &self.bundle {
            Some((bundle, ..)) => runnable(problems, bundle, &self.named),
            None => problems,
        };
        match self.locked {
            true => self.with_absent(problems),
            false => problems,
        }
    }

    /// A fault for each model that the bundle was packed without and that was not found anywhere.
    fn needed(&self) -> Vec<Problem> {
        let there = lock_of(&self.lock);
        let (Some((bundle, unpacked, _)), Some(there)) = (&self.bundle, there.as_ref()) else {
            return Vec::new();
        };
        let mut models: BTreeMap<PathBuf, (usize, u64, bool)> = BTreeMap::new();
        for file in &there.files {
            if file.kind != LockedKind::Model || remote::is_remote(Path::new(&file.path)) {
                continue;
            }
            let model = file.model.as_ref().unwrap_or(&file.path);
            let model = normal(&self.folder().join(model));
            let (files, bytes, missing) = models.entry(model).or_default();
            *files += 1;
            *bytes += file.size;
            *missing |= !self.files.is_file(&self.folder().join(&file.path));
        }
        let source = Source::new(bundle.display().to_string(), "");
        let places = models_help(&self.places);
        (models.iter())
            .filter(|(_, (.., missing))| *missing)
            .map(|(model, (files, bytes, _))| {
                let root = normal(&unpacked.folder);
                let message = format!(
                    "the bundle needs {} ({files} file{}, {}), which was not packed with it",
                    model.strip_prefix(&root).unwrap_or(model).display(),
                    if *files == 1 { "" } else { "s" },
                    size(*bytes)
                );
                let help = format!(
                    "{places}; or get a bundle that was packed with `retouch bundle --with-models`"
                );
                Problem::new(Code::NodeFile, &source, Span::default(), message).help(help)
            })
            .collect()
    }

    /// Loads and checks a sweep; its faults, that it reaches out of its bundle, or with `--locked` that it reads what the lock
    /// does not say.
    ///
    /// # Errors
    /// All faults of one of these kinds.
    pub fn load_sweep(&self, engine: &Engine, settings: &Settings) -> Result<Sweep, Problems> {
        self.allow(settings);
        let loaded = engine.load_sweep(&self.file, settings);
        self.tell_found();
        if let Some(stray) = self.stray() {
            return Err(stray.into());
        }
        let sweep = loaded.map_err(|problems| self.explained(problems))?;
        self.as_locked(engine, sweep.all_cells(), settings)?;
        Ok(sweep)
    }

    /// Whether the file says a sweep of another workflow, and has no nodes of its own.
    #[must_use]
    pub fn is_sweep(&self, engine: &Engine) -> bool {
        let written = engine.read(&self.file).ok();
        (written.and_then(|workflow| workflow.sweep)).is_some_and(|sweep| sweep.workflow.is_some())
    }

    /// A workflow from a bundle is a third party's: it reads the bundle, models and assets that were found in search
    /// folders, and what the command line named.
    fn allow(&self, settings: &Settings) {
        if let Some((_, _, confined)) = &self.bundle {
            let set = settings.set.iter().filter_map(|set| set.split_once('='));
            let paths: Vec<PathBuf> = set
                .filter(|(_, value)| !value.trim().is_empty())
                .map(|(_, value)| remote::join(&settings.folder, value.trim()))
                .collect();
            // A repository on a hub that the command line names is the user's choice, and no longer the bundle's.
            if let Some(consent) = self.hub.consent() {
                let named = paths.iter().filter_map(|path| Address::parse(path).ok());
                named.for_each(|address| consent.name(address.repo()));
            }
            let paths = paths.iter().map(|path| clean(path));
            let given = paths.chain(settings.params.iter().map(|path| clean(path)));
            *lock_of(&confined.given) = given.collect();
        }
    }

    /// The fault of a workflow that reached out of its bundle.
    fn stray(&self) -> Option<Problem> {
        let (bundle, _, confined) = self.bundle.as_ref()?;
        let stray = lock_of(&confined.strays).first().cloned()?;
        let source = Source::new(bundle.display().to_string(), "");
        let message = format!(
            "the bundle is refused: its workflow reads `{}`, which is not in it",
            stray.display()
        );
        let help = "give the path yourself with `--set`, if the workflow has a param for it and you want it read";
        Some(Problem::new(Code::BundleOutside, &source, Span::default(), message).help(help))
    }

    fn as_locked(
        &self,
        engine: &Engine,
        checked: &Checked,
        settings: &Settings,
    ) -> Result<(), Problems> {
        let there = lock_of(&self.lock);
        let Some(there) = there.as_ref().filter(|_| self.locked) else {
            return Ok(());
        };
        let tool = env!("CARGO_PKG_VERSION");
        let now = Lock::of(checked, &self.file, settings, &**engine.files(), tool)?;
        let differences = there.violations(&now);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Problems::new(self.problems(&differences)))
    }

    /// With `--locked`: what the lock has and is missing, before what else is wrong because of it.
    fn with_absent(&self, problems: Problems) -> Problems {
        let there = lock_of(&self.lock);
        let mut all = match there.as_ref() {
            Some(there) => self.problems(&there.absent(self.folder(), &*self.files)),
            None => Vec::new(),
        };
        all.extend(problems);
        Problems::new(all)
    }

    /// A fault for each difference, at its line of the lock file.
    fn problems(&self, differences: &[Difference]) -> Vec<Problem> {
        let path = self.lock_file();
        let text = self
            .files
            .read(&path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let source = Source::new(path.display().to_string(), text);
        differences
            .iter()
            .map(|difference| {
                let quoted = serde_json::Value::from(difference.path()).to_string();
                let line = format!("path: {quoted}");
                let span = source
                    .text()
                    .find(&line)
                    .map(|at| Span::new(at + "path: ".len(), at + line.len()))
                    .unwrap_or_default();
                let help = match difference {
                    Difference::New { .. } => "if it belongs to the workflow, add it",
                    _ => "bring the file back, or accept what is there now",
                };
                Problem::new(
                    Code::LockDiffers,
                    &source,
                    span,
                    format!("not as locked: {difference}"),
                )
                .help(format!("{help}: `retouch lock {}`", self.file.display()))
            })
            .collect()
    }
}

/// The faults of a workflow in a bundle; of one that is a sweep, with the command that runs it where it was named: the
/// place that it is unpacked to is no place to run it from.
fn runnable(problems: Problems, bundle: &Path, models: &[PathBuf]) -> Problems {
    let models = (models.iter()).map(|folder| format!(" --models {}", folder.display()));
    let command = format!(
        "`retouch sweep {}{}`",
        bundle.display(),
        models.collect::<String>()
    );
    let problems = problems.into_iter().map(|problem| match problem.code() {
        Code::SweepOnly => problem.help(format!("run it with {command}")),
        _ => problem,
    });
    Problems::new(problems.collect())
}

/// Where to say that the models of a bundle are.
fn models_help(places: &[PathBuf]) -> String {
    let name =
        "name a folder that has it, under whatever name, with `--models DIR` or RETOUCH_MODELS";
    if places.is_empty() {
        return name.to_owned();
    }
    let places: Vec<String> = places
        .iter()
        .map(|place| place.display().to_string())
        .collect();
    format!(
        "nothing below {} holds what the lock in the bundle says; {name}",
        places.join(", ")
    )
}

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files for a workflow from a bundle: there are none but those below some folders and those that the user named.
struct Confined {
    inner: Arc<dyn Files>,
    /// The unpacked bundle, and the folders that models are looked for in.
    folders: Vec<PathBuf>,
    /// What the command line named.
    given: Mutex<Vec<PathBuf>>,
    /// What else was asked for.
    strays: Mutex<BTreeSet<PathBuf>>,
}

impl Confined {
    fn allows(&self, path: &Path) -> bool {
        // What is on a hub is no file of this machine, nor can it be made one by a name.
        if remote::is_remote(path) {
            return true;
        }
        let path = clean(path);
        let inside = |folder: &PathBuf| path.starts_with(folder);
        if self.folders.iter().any(inside) || lock_of(&self.given).iter().any(inside) {
            return true;
        }
        lock_of(&self.strays).insert(path);
        false
    }

    fn allowed(&self, path: &Path) -> io::Result<&dyn Files> {
        if self.allows(path) {
            Ok(&*self.inner)
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
}

impl Files for Confined {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        self.allowed(path)?.read(path)
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        self.allowed(path)?.read_head(path, length)
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.allowed(path)?.read_at(path, offset, length)
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        self.allowed(path)?.digest(path)
    }

    fn is_file(&self, path: &Path) -> bool {
        self.allows(path) && self.inner.is_file(path)
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.allows(path) && self.inner.is_dir(path)
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        self.allowed(folder)?.entries(folder)
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        self.allowed(path)?.sha256(path)
    }

    fn doubt(&self) {
        self.inner.doubt();
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        self.allowed(path).ok()?.stamp(path)
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

impl retouch_graph::ModelLocator for Confined {
    fn find_model(&self, _: &Path) -> retouch_graph::Searched {
        retouch_graph::Searched::default()
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.inner.place(path)
    }

    fn withheld(&self, path: &Path) -> Option<Withheld> {
        self.inner.withheld(path)
    }

    fn commit(&self, path: &Path) -> Option<String> {
        self.inner.commit(path)
    }
}

/// An absolute path without `.` and `..`, as the file system follows them.
fn clean(path: &Path) -> PathBuf {
    normal(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}
