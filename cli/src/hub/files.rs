//! Files that may lie on a hub: read from its cache, fetched when they are read and that is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retouch_graph::problem::Code;
use retouch_graph::remote::{self, Address};
use retouch_graph::{Digest, FileStamp, Files, FolderEntry, Searched, Withheld};

use super::Mode;
use super::client::{Client, Listing, Refused};
use super::consent::Consent;
use super::settings::{Settings, withheld};
use super::store::{Shelf, Watch};
use crate::store::size;
use crate::total;

/// Files that are named in a message at most.
const MOST_NAMED: usize = 8;

/// A revision of a repository.
#[derive(Debug)]
struct Snapshot {
    commit: String,
    /// What it holds; `None` when that was never asked, as of a cache that another program filled.
    listing: Option<Listing>,
}

#[derive(Default)]
struct State {
    /// Revisions, by the paths of the models.
    snapshots: BTreeMap<PathBuf, Result<Arc<Snapshot>, Withheld>>,
    /// The commits that a lock names for them.
    pins: BTreeMap<PathBuf, String>,
    /// Files that could not be fetched.
    failed: BTreeMap<PathBuf, Withheld>,
    /// Files that were asked for and are not in the cache, and their bytes.
    missed: BTreeMap<PathBuf, Option<u64>>,
}

/// Files of this machine, and of hubs under `hf://`.
pub struct HubFiles {
    inner: Arc<dyn Files>,
    settings: Settings,
    mode: Mode,
    client: Client,
    /// Asks without the user's token.
    anonymous: Client,
    /// What may be fetched, when the models are named by a third party's file.
    consent: Option<Consent>,
    state: Mutex<State>,
    /// One fetch at a time.
    fetching: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn other(why: &Withheld) -> io::Error {
    io::Error::other(why.message.clone())
}

/// A path that is known to lead to a hub, without its end slashes.
fn normal(path: &Path) -> PathBuf {
    retouch_graph::paths::normal(path)
}

impl HubFiles {
    /// Reads what is on this machine through `inner`. With a `consent` the models are named by a file that a third party
    /// made, and the hub is asked only as far as it goes.
    pub fn new(
        inner: Arc<dyn Files>,
        settings: Settings,
        mode: Mode,
        consent: Option<Consent>,
    ) -> Self {
        let anonymous = Settings {
            token: None,
            ..settings.clone()
        };
        Self {
            inner,
            client: Client::new(&settings),
            anonymous: Client::new(&anonymous),
            consent,
            settings,
            mode,
            state: Mutex::default(),
            fetching: Mutex::default(),
        }
    }

    /// Takes the commits that a lock names in place of what branches are now, and forgets what failed.
    pub fn pin(&self, pins: BTreeMap<PathBuf, String>) {
        let mut state = lock(&self.state);
        if state.pins != pins {
            state.snapshots.clear();
        }
        state.pins = pins;
        state.snapshots.retain(|_, snapshot| snapshot.is_ok());
        state.failed.clear();
        state.missed.clear();
    }

    /// Reads a path that leads to a hub.
    fn address(path: &Path) -> Result<Address, Withheld> {
        Address::parse(path).map_err(|why| {
            withheld(
                Code::HubAddress,
                format!("`{}` is not a path to a model on a hub: {why}", path.display().to_string().escape_debug()),
                "write `hf://owner/name`, `hf://owner/name@revision` or `hf://owner/name@revision/path/in/it`",
            )
        })
    }

    fn shelf(&self, address: &Address) -> Shelf {
        Shelf::new(&self.settings.cache, address)
    }

    /// What may be fetched, when a third party's file names the models.
    pub fn consent(&self) -> Option<&Consent> {
        self.consent.as_ref()
    }

    /// Who asks for a repository: the user's token is sent for those that the user names.
    fn client(&self, address: &Address) -> &Client {
        match &self.consent {
            Some(consent) if !consent.sends_token(&address.repo()) => &self.anonymous,
            _ => &self.client,
        }
    }

    /// A hub's refusal, with what to do about it where no token was sent though there is one.
    fn refused(&self, address: &Address, mut why: Withheld) -> Withheld {
        let repo = address.repo();
        if let Some(consent) = &self.consent
            && why.code == Code::HubDenied
            && self.settings.token.is_some()
            && !consent.sends_token(&repo)
        {
            why.help = consent.without_token(&repo);
        }
        why
    }

    /// That a model is not in the cache, and the user did not agree to fetch it.
    fn unasked(consent: &Consent, address: &Address) -> Withheld {
        let (message, help) = consent.refusal(address);
        withheld(Code::NotFetched, message, help)
    }

    fn fetches(&self) -> bool {
        matches!(self.mode, Mode::Fetch { .. }) && !self.settings.offline
    }

    /// That something is not in the cache, where nothing is fetched.
    fn absent(&self, what: &str) -> Withheld {
        let later = matches!(self.mode, Mode::Look);
        let (message, help) = if self.settings.offline {
            (
                format!("{what} is not in the cache of models, and nothing is fetched offline"),
                format!(
                    "run without `--offline` and HF_HUB_OFFLINE, or fetch it first with `retouch fetch FILE`; the cache is {}",
                    self.settings.cache.display()
                ),
            )
        } else {
            (
                format!("{what} is not fetched yet"),
                match self.consent {
                    Some(_) => {
                        "`retouch run --fetch` fetches it; `retouch fetch FILE` does so beforehand"
                    }
                    None => "`retouch run` fetches it; `retouch fetch FILE` does so beforehand",
                }
                .to_owned(),
            )
        };
        Withheld {
            later,
            ..withheld(Code::NotFetched, message, help)
        }
    }

    /// Finds out which commit is read, and asks the hub if it may be asked.
    fn resolve(&self, address: &Address) -> Result<Arc<Snapshot>, Withheld> {
        if let Some(fault) = &self.settings.fault {
            return Err(fault.clone());
        }
        let model = address.model();
        let pinned = {
            let state = lock(&self.state);
            if let Some(known) = state.snapshots.get(&model) {
                return known.clone();
            }
            state.pins.get(&model).cloned()
        };
        // A commit never changes, and need not be resolved.
        let wanted = pinned.unwrap_or_else(|| address.wanted().to_owned());
        let whole = Address {
            revision: Some(wanted.clone()),
            file: String::new(),
            ..address.clone()
        };
        let shelf = self.shelf(&whole);
        let settled = remote::is_commit(&wanted).then(|| wanted.clone());
        let cached = settled.or_else(|| shelf.commit(&wanted));
        let snapshot = cached.map(|commit| Snapshot {
            listing: shelf.listing(&commit),
            commit,
        });
        let is_there = |snapshot: &Snapshot| {
            snapshot.listing.is_some() || shelf.snapshot(&snapshot.commit).is_dir()
        };
        if !self.fetches() {
            // Not remembered: another program may fetch it while an editor is open.
            return match snapshot.filter(is_there) {
                Some(snapshot) => Ok(Arc::new(snapshot)),
                None => Err(self.absent(&format!("`{}`", model.display()))),
            };
        }
        let _one = lock(&self.fetching);
        if let Some(known) = lock(&self.state).snapshots.get(&model) {
            return known.clone();
        }
        let granted = match &self.consent {
            None => true,
            Some(consent) => consent.is_granted(address),
        };
        let resolved = match (snapshot, &self.consent) {
            // The hub is not asked about what is in the cache unless the user wants it asked.
            (Some(snapshot), _) if !granted && is_there(&snapshot) => Ok(Arc::new(snapshot)),
            (_, Some(consent)) if !consent.may_list(address, &wanted, &self.settings.endpoint) => {
                Err(Self::unasked(consent, address))
            }
            (snapshot, _) => self
                .ask(&whole, &shelf, snapshot)
                .map_err(|why| self.refused(address, why)),
        };
        lock(&self.state).snapshots.insert(model, resolved.clone());
        resolved
    }

    fn ask(
        &self,
        address: &Address,
        shelf: &Shelf,
        cached: Option<Snapshot>,
    ) -> Result<Arc<Snapshot>, Withheld> {
        let wanted = address.wanted();
        let cached = match cached {
            // All that there is to know of a commit is known.
            Some(snapshot) if snapshot.commit == wanted && snapshot.listing.is_some() => {
                return Ok(Arc::new(snapshot));
            }
            cached => cached,
        };
        match self.client(address).listing(address) {
            Ok((commit, listing)) => {
                if remote::is_commit(wanted) && commit != wanted {
                    return Err(withheld(
                        Code::HubContent,
                        format!(
                            "the hub returned the commit {commit} of `{}` instead of {wanted}",
                            address.repo()
                        ),
                        "check HF_ENDPOINT",
                    ));
                }
                shelf.note(wanted, &commit, &listing);
                Ok(Arc::new(Snapshot {
                    commit,
                    listing: Some(listing),
                }))
            }
            Err(Refused::Passing(why)) => match cached {
                Some(snapshot) if shelf.snapshot(&snapshot.commit).is_dir() => {
                    if let Mode::Fetch { reporter, .. } = &self.mode {
                        reporter.warn(&format!(
                            "{}; `{}` is used as it is in the cache, at {}",
                            why.message,
                            address.repo(),
                            &snapshot.commit[..12]
                        ));
                    }
                    Ok(Arc::new(snapshot))
                }
                _ => Err(why),
            },
            Err(Refused::Lasting(why)) => Err(why),
        }
    }

    /// Where a file of a hub is on this machine, if it is.
    fn local(&self, path: &Path) -> Option<PathBuf> {
        let address = Self::address(path).ok()?;
        let snapshot = self.resolve(&address).ok()?;
        let place = self
            .shelf(&address)
            .snapshot(&snapshot.commit)
            .join(&address.file);
        place.is_file().then_some(place)
    }

    /// The file on this machine, fetched if need be and allowed.
    fn ensure(&self, path: &Path) -> io::Result<PathBuf> {
        let address = Self::address(path).map_err(|why| other(&why))?;
        let snapshot = self.resolve(&address).map_err(|why| other(&why))?;
        let shelf = self.shelf(&address);
        let place = shelf.snapshot(&snapshot.commit).join(&address.file);
        if place.is_file() {
            return Ok(place);
        }
        let key = normal(path);
        let listed = snapshot
            .listing
            .as_ref()
            .map(|all| all.files.get(&address.file));
        if address.file.is_empty() || listed == Some(None) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let Mode::Fetch {
            cancel, reporter, ..
        } = &self.mode
        else {
            let size = listed.flatten().and_then(|listed| listed.size);
            lock(&self.state).missed.insert(key, size);
            return Err(other(&self.absent(&format!("`{}`", path.display()))));
        };
        if self.settings.offline {
            lock(&self.state).missed.insert(key, None);
            return Err(other(&self.absent(&format!("`{}`", path.display()))));
        }
        if let Some(why) = lock(&self.state).failed.get(&key) {
            return Err(other(why));
        }
        let _one = lock(&self.fetching);
        if place.is_file() {
            return Ok(place);
        }
        self.fetch(&address, &snapshot, &Watch { cancel, reporter })
            .map_err(|why| {
                let error = other(&why);
                lock(&self.state).failed.insert(key, why);
                error
            })
    }

    /// Fetches a file, if the models are the user's own choice or the user agrees.
    fn fetch(
        &self,
        address: &Address,
        snapshot: &Snapshot,
        watch: &Watch<'_>,
    ) -> Result<PathBuf, Withheld> {
        let path = PathBuf::from(address.to_string());
        let (commit, listing) = (&snapshot.commit, snapshot.listing.as_ref());
        let mut expected = None;
        if let Some(consent) = &self.consent {
            if !consent.may_fetch(address, &path, commit, listing, &self.settings.endpoint) {
                return Err(Self::unasked(consent, address));
            }
            if !consent.sends_token(&address.repo()) {
                expected = consent.declared(&path);
            }
        }
        self.shelf(address)
            .fetch(
                self.client(address),
                address,
                commit,
                listing,
                expected,
                watch,
            )
            .map_err(|why| self.refused(address, why))
    }

    /// Whether a repository has a file, as far as is known.
    fn has(&self, path: &Path) -> bool {
        let Ok(address) = Self::address(path) else {
            return false;
        };
        let Ok(snapshot) = self.resolve(&address) else {
            return false;
        };
        let place = self
            .shelf(&address)
            .snapshot(&snapshot.commit)
            .join(&address.file);
        if place.is_file() {
            return true;
        }
        match &snapshot.listing {
            Some(listing) => listing.files.contains_key(&address.file),
            None => {
                // It is not known to be there: it is asked for only if the model turns out to lack something.
                if !address.file.is_empty() {
                    lock(&self.state).missed.insert(normal(path), None);
                }
                false
            }
        }
    }

    fn why(&self, path: &Path) -> Option<Withheld> {
        let address = match Self::address(path) {
            Ok(address) => address,
            Err(why) => return Some(why),
        };
        let snapshot = match self.resolve(&address) {
            Ok(snapshot) => snapshot,
            Err(why) => return Some(why),
        };
        let key = normal(path);
        let below = |file: &PathBuf| file.starts_with(&key);
        let missed: Vec<(PathBuf, Option<u64>)> = {
            let state = lock(&self.state);
            if let Some((_, why)) = state.failed.iter().find(|(file, _)| below(file)) {
                return Some(why.clone());
            }
            let missed = state.missed.iter().filter(|(file, _)| below(file));
            missed.map(|(file, size)| (file.clone(), *size)).collect()
        };
        // Another program may have fetched it meanwhile.
        let missed: Vec<_> = (missed.into_iter())
            .filter(|(file, _)| self.local(file).is_none())
            .collect();
        if let Some((first, _)) = missed.first() {
            let sizes: Option<Vec<u64>> = missed.iter().map(|(_, size)| *size).collect();
            let sizes = sizes.map(total);
            let what = match (missed.len(), sizes) {
                (1, Some(bytes)) => format!("`{}` ({})", first.display(), size(bytes)),
                (1, None) => format!("`{}`", first.display()),
                (count, Some(bytes)) => format!(
                    "`{}` ({count} required files, {}; the first is `{}`)",
                    key.display(),
                    size(bytes),
                    first.display()
                ),
                // The hub was not asked yet which of them there are.
                (_, None) => {
                    let names = missed.iter().map(|(file, _)| {
                        let name = file.strip_prefix(&key).unwrap_or(file);
                        format!("`{}`", name.display())
                    });
                    let names: Vec<String> = names.take(MOST_NAMED).collect();
                    format!(
                        "a required file of `{}` ({})",
                        key.display(),
                        names.join(" or ")
                    )
                }
            };
            return Some(self.absent(&what));
        }
        let listing = snapshot.listing.as_ref()?;
        let folder = format!("{}/", address.file);
        let there = address.file.is_empty()
            || (listing.files.keys())
                .any(|file| *file == address.file || file.starts_with(&folder));
        if there {
            return None;
        }
        let models: Vec<&str> = (listing.files.keys())
            .map(String::as_str)
            .filter(|file| file.ends_with(".safetensors"))
            .take(5)
            .collect();
        let help = match models.is_empty() {
            true => "check the path; it is case-sensitive".to_owned(),
            false => format!("it has {}", models.join(", ")),
        };
        Some(withheld(
            Code::HubMissing,
            format!(
                "`{}` has no `{}` at `{}` ({})",
                address.repo(),
                address.file,
                address.wanted(),
                &snapshot.commit[..12]
            ),
            help,
        ))
    }
}

impl Files for HubFiles {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        if remote::is_remote(path) {
            return self.inner.read(&self.ensure(path)?);
        }
        self.inner.read(path)
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        if remote::is_remote(path) {
            return self.inner.read_head(&self.ensure(path)?, length);
        }
        self.inner.read_head(path, length)
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        if remote::is_remote(path) {
            return self.inner.read_at(&self.ensure(path)?, offset, length);
        }
        self.inner.read_at(path, offset, length)
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        if remote::is_remote(path) {
            return self.inner.digest(&self.ensure(path)?);
        }
        self.inner.digest(path)
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        if remote::is_remote(path) {
            return self.inner.sha256(&self.ensure(path)?);
        }
        self.inner.sha256(path)
    }

    fn doubt(&self) {
        self.inner.doubt();
    }

    fn is_file(&self, path: &Path) -> bool {
        if !remote::is_remote(path) {
            return self.inner.is_file(path);
        }
        // Told to the files below too: what is read is the watch list.
        match self.local(path) {
            Some(place) => self.inner.is_file(&place),
            None => self.has(path),
        }
    }

    fn is_dir(&self, path: &Path) -> bool {
        if !remote::is_remote(path) {
            return self.inner.is_dir(path);
        }
        let Ok(address) = Self::address(path) else {
            return false;
        };
        let Ok(snapshot) = self.resolve(&address) else {
            return false;
        };
        let folder = format!("{}/", address.file);
        address.file.is_empty()
            || self
                .shelf(&address)
                .snapshot(&snapshot.commit)
                .join(&address.file)
                .is_dir()
            || (snapshot.listing.as_ref())
                .is_some_and(|listing| listing.files.keys().any(|file| file.starts_with(&folder)))
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        if !remote::is_remote(folder) {
            return self.inner.entries(folder);
        }
        let address = Self::address(folder).map_err(|why| other(&why))?;
        let snapshot = self.resolve(&address).map_err(|why| other(&why))?;
        let Some(listing) = &snapshot.listing else {
            // As another program left it: what is there is all that is known.
            let place = self
                .shelf(&address)
                .snapshot(&snapshot.commit)
                .join(&address.file);
            let mut entries = self.inner.entries(&place)?;
            for entry in &mut entries {
                entry.path = normal(&folder.join(entry.path.file_name().unwrap_or_default()));
            }
            return Ok(entries);
        };
        let prefix = match address.file.as_str() {
            "" => String::new(),
            file => format!("{file}/"),
        };
        let mut entries = BTreeSet::new();
        for (file, listed) in &listing.files {
            let Some(rest) = file.strip_prefix(&prefix) else {
                continue;
            };
            let (name, size) = match rest.split_once('/') {
                Some((name, _)) => (name, None),
                None => (rest, Some(listed.size.unwrap_or(0))),
            };
            let path = normal(&folder.join(name));
            entries.insert(FolderEntry { path, size });
        }
        if entries.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(entries.into_iter().collect())
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        if !remote::is_remote(path) {
            return self.inner.stamp(path);
        }
        let address = Self::address(path).ok()?;
        let snapshot = self.resolve(&address).ok()?;
        let place = self
            .shelf(&address)
            .snapshot(&snapshot.commit)
            .join(&address.file);
        self.inner.stamp(&place)
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

impl retouch_graph::ModelLocator for HubFiles {
    fn find_model(&self, path: &Path) -> Searched {
        if remote::is_remote(path) {
            return Searched::default();
        }
        self.inner.find_model(path)
    }

    fn place(&self, path: &Path) -> PathBuf {
        if remote::is_remote(path) {
            return self.local(path).unwrap_or_else(|| path.to_owned());
        }
        self.inner.place(path)
    }

    fn withheld(&self, path: &Path) -> Option<Withheld> {
        if remote::is_remote(path) {
            return self.why(path);
        }
        self.inner.withheld(path)
    }

    fn commit(&self, path: &Path) -> Option<String> {
        if remote::is_remote(path) {
            let address = Self::address(path).ok()?;
            return Some(self.resolve(&address).ok()?.commit.clone());
        }
        self.inner.commit(path)
    }
}
