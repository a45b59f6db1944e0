//! Writes files and folders atomically: to a temporary name in the folder of the target, then renamed. This is the one
//! place that makes temporary names.
//!
//! A temporary file or folder is called `.retouch-XXXXXXXXXXXX.part` with random letters and digits, and is created
//! exclusively. So no link that somebody put in its place is followed, and two processes never share one, even if they
//! have the same process number (in two containers, say). It is removed when the write fails or is cancelled. What a
//! killed process leaves behind is removed when a later process writes to the same folder, see [`remove_stale`].

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tempfile::TempPath;

use crate::files::read;

const PREFIX: &str = ".retouch-";
const SUFFIX: &str = ".part";
/// What the name of a [`WorkFolder`] begins with; no temporary name of a draft does.
const WORK: &str = ".retouch-work-";
/// The file in a [`WorkFolder`] whose lock its process holds.
const HELD: &str = "held.lock";
/// Random letters and digits in a temporary name.
const RANDOM: usize = 12;
/// The bytes of a temporary name.
pub(crate) const NAME: usize = PREFIX.len() + RANDOM + SUFFIX.len();
/// The age from which a temporary file is taken for one of a process that died. A file that is being written is younger:
/// each write sets its time of modification.
pub const STALE: Duration = Duration::from_secs(60 * 60);
/// Temporary folders are looked through at most this deep for their newest file.
const DEPTH: usize = 64;

/// The permissions of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// What the umask allows, as for any file that a program makes: outputs, locks, bundles.
    Usual,
    /// The user alone (0600, folders 0700): caches and journals, which hold prompts and paths.
    Private,
}

impl Access {
    /// Makes a file that is not there yet. A link in its place is refused.
    ///
    /// # Errors
    /// With `AlreadyExists` when something is there; when the file system refuses.
    pub fn create_new(self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        // Exclusive creation never follows a link in the last part of a path.
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        if self == Self::Private {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        options.open(path)
    }

    fn builder(self) -> DirBuilder {
        #[allow(unused_mut, reason = "there are no modes on other systems")]
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        if self == Self::Private {
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        }
        builder
    }

    /// Makes a folder with all above it that are not there.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn make_folder(self, folder: &Path) -> io::Result<()> {
        self.builder().recursive(true).create(folder)
    }
}

/// Creates a folder for this user alone, or removes the permissions of others from an existing one. An existing folder whose
/// permissions cannot be changed, because it belongs to somebody else, stays as it is.
///
/// # Errors
/// When it is not there and cannot be made.
pub fn private_folder(folder: &Path) -> io::Result<()> {
    Access::Private.make_folder(folder)?;
    close(folder, 0o700);
    Ok(())
}

/// Opens a file, or makes it, under a name that others can foresee. A link in its place is not followed, and a named pipe
/// is not waited for: what was opened is looked at, so nothing can take the place of what was checked.
///
/// # Errors
/// When it is a link or not a regular file, or the file system refuses.
pub fn open_known(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let why = |error| {
        // The system's words for a link ("too many levels") and for a pipe ("no such device") say little.
        let there = fs::symlink_metadata(path).and_then(|metadata| read::regular(&metadata));
        there.err().unwrap_or(error)
    };
    #[allow(unused_mut, reason = "there are no such flags on other systems")]
    let mut options = options.clone();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    #[cfg(not(unix))]
    if let Ok(metadata) = fs::symlink_metadata(path) {
        read::regular(&metadata)?;
    }
    let file = options.open(path).map_err(why)?;
    read::regular(&file.metadata()?)?;
    Ok(file)
}

/// Opens a file of this user alone to append to it. Its name is known beforehand, so a link in its place is refused.
///
/// # Errors
/// When it is a link or no file, or the file system refuses.
pub fn append_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = open_known(&options, path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            // It fails for what belongs to another user, and is then up to that user.
            let _ = file.set_permissions(fs::Permissions::from_mode(0o600));
        }
    }
    Ok(file)
}

/// Removes the permissions of all but the owner from a file or folder.
fn close(path: &Path, mode: u32) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let Ok(metadata) = fs::symlink_metadata(path) else {
            return;
        };
        if !metadata.is_symlink() && metadata.permissions().mode() & 0o077 != 0 {
            // It fails for what belongs to another user, and is then up to that user.
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        }
    }
    #[cfg(not(unix))]
    let _ = (path, mode);
}

/// Calls `create` with temporary names in a folder until it makes something that was not there.
fn temporary<R>(
    folder: &Path,
    create: impl FnMut(&Path) -> io::Result<R>,
) -> io::Result<(R, TempPath)> {
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    remove_stale_once(folder);
    tempfile::Builder::new()
        .prefix(PREFIX)
        .suffix(SUFFIX)
        .rand_bytes(RANDOM)
        .make_in(folder, create)
        .map(tempfile::NamedTempFile::into_parts)
}

/// A file that is being written under a temporary name; it is removed unless it gets its own.
#[derive(Debug)]
pub struct Draft {
    /// Open until it gets its name: some systems cannot rename an open file.
    file: Option<File>,
    path: TempPath,
}

impl Draft {
    /// Makes an empty file in the folder of `target`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn beside(target: &Path, access: Access) -> io::Result<Self> {
        Self::within(target.parent().unwrap_or(Path::new("")), access)
    }

    /// Makes an empty file in a folder.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn within(folder: &Path, access: Access) -> io::Result<Self> {
        let (file, path) = temporary(folder, |path| access.create_new(path))?;
        Ok(Self {
            file: Some(file),
            path,
        })
    }

    /// The temporary name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    ///
    /// # Errors
    /// Not before the draft gets its name.
    pub fn file(&mut self) -> io::Result<&mut File> {
        (self.file.as_mut()).ok_or_else(|| io::Error::other("the file is written already"))
    }

    /// Gives it the name `target`, in place of what is there.
    ///
    /// # Errors
    /// When the file system refuses; the draft is removed then.
    pub fn replace(self, target: &Path) -> io::Result<()> {
        drop(self.file);
        self.path.persist(target).map_err(|failed| failed.error)
    }

    /// Gives it the name `target` if there is nothing of that name: of several that try it at once one succeeds.
    ///
    /// # Errors
    /// With `AlreadyExists` when something is there; the draft comes back, to be given another name.
    pub fn create(self, target: &Path) -> Result<(), (io::Error, Self)> {
        drop(self.file);
        create_from(self.path, target).map_err(|(error, path)| (error, Self { file: None, path }))
    }
}

/// Renames a file to `target` if there is nothing of that name.
fn create_from(path: TempPath, target: &Path) -> Result<(), (io::Error, TempPath)> {
    let failed = match path.persist_noclobber(target) {
        Ok(()) => return Ok(()),
        Err(failed) => failed,
    };
    match failed.error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound => Err((failed.error, failed.path)),
        // The file system may know neither a rename that replaces nothing nor hard links, as FAT does.
        _ => claim(failed.path, target).map_err(|(error, path)| {
            let taken = error.kind() == io::ErrorKind::AlreadyExists;
            (if taken { error } else { failed.error }, path)
        }),
    }
}

/// Reserves a name with an empty file, which only one process can do, and then replaces that.
fn claim(path: TempPath, target: &Path) -> Result<(), (io::Error, TempPath)> {
    if let Err(error) = File::create_new(target) {
        return Err((error, path));
    }
    path.persist(target).map_err(|failed| {
        let _ = fs::remove_file(target); // it is empty and ours
        (failed.error, failed.path)
    })
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file()?.flush()
    }
}

/// Writes a file as a whole in place of what is there, with the folders above it.
///
/// # Errors
/// When the file system refuses; what was there is then as it was.
pub fn replace(target: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    if let Some(folder) = target.parent() {
        access.make_folder(folder)?;
    }
    let mut draft = Draft::beside(target, access)?;
    draft.write_all(bytes)?;
    draft.replace(target)
}

/// Writes a file as a whole where nothing is, with the folders above it.
///
/// # Errors
/// With `AlreadyExists` when something is there; when the file system refuses.
pub fn create(target: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    if let Some(folder) = target.parent() {
        access.make_folder(folder)?;
    }
    let mut draft = Draft::beside(target, access)?;
    draft.write_all(bytes)?;
    draft.create(target).map_err(|(error, _)| error)
}

/// Rewrites a file that holds `old`, with the permissions that it has, and flushed to the device. A link to it stays
/// one. `false`: it holds something else by now, and stays so.
///
/// # Errors
/// When the file system refuses; the file is then as it was.
pub fn rewrite(target: &Path, old: &[u8], new: &[u8]) -> io::Result<bool> {
    let target = target.canonicalize()?;
    let permissions = fs::metadata(&target)?.permissions();
    // What is longer than `old` is something else.
    let holds_old = || match read(&target, old.len() as u64) {
        Ok(now) => Ok(now == old),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(false),
        Err(error) => Err(error),
    };
    if !holds_old()? {
        return Ok(false);
    }
    let mut draft = Draft::beside(&target, Access::Private)?;
    draft.write_all(new)?;
    draft.file()?.set_permissions(permissions)?;
    draft.file()?.sync_all()?;
    if !holds_old()? {
        return Ok(false);
    }
    draft.replace(&target)?;
    Ok(true)
}

/// Puts what `make` makes under a temporary name, a link say, in place of `target`. `make` fails with `AlreadyExists` where
/// something is, and is then called with another name.
///
/// # Errors
/// As `make` and the file system give them.
pub fn replace_with(target: &Path, make: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let ((), path) = temporary(target.parent().unwrap_or(Path::new("")), make)?;
    path.persist(target).map_err(|failed| failed.error)
}

/// Whether files can be made in a folder: tries it.
///
/// # Errors
/// Why not.
pub fn probe(folder: &Path) -> io::Result<()> {
    Draft::within(folder, Access::Private).map(drop)
}

/// A folder that is being filled under a temporary name; it is removed unless it gets its own.
#[derive(Debug)]
pub struct DraftFolder(Option<PathBuf>);

impl DraftFolder {
    /// Makes an empty folder for what will be `target`: in that folder if it is there, which may be on a device of its own,
    /// else beside it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn of(target: &Path, access: Access) -> io::Result<Self> {
        if target.is_dir() {
            return Self::within(target, access);
        }
        Self::within(target.parent().unwrap_or(Path::new("")), access)
    }

    /// Makes an empty folder in a folder.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn within(folder: &Path, access: Access) -> io::Result<Self> {
        let (path, guard) = temporary(folder, |path| {
            access.builder().create(path)?;
            Ok(path.to_owned())
        })?;
        // The guard would remove a file.
        let _ = guard.keep();
        Ok(Self(Some(path)))
    }

    /// The temporary name.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// Gives it the name `target`, where nothing is or an empty folder. What is in it moves into an empty folder, which
    /// stays itself: somebody may be in it.
    ///
    /// # Errors
    /// With `DirectoryNotEmpty` when the folder is not empty; when the file system refuses.
    pub fn settle(mut self, target: &Path) -> io::Result<()> {
        if target.is_dir() {
            if !is_empty(target)? {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            for entry in fs::read_dir(self.path())? {
                let entry = entry?;
                fs::rename(entry.path(), target.join(entry.file_name()))?;
            }
            return Ok(());
        }
        fs::rename(self.path(), target)?;
        self.0 = None;
        Ok(())
    }

    /// Gives a file in it the name `target`, where nothing is, and removes the folder.
    ///
    /// # Errors
    /// With `AlreadyExists` when something is there; when the file system refuses.
    pub fn settle_file(self, name: impl AsRef<Path>, target: &Path) -> io::Result<()> {
        let file = TempPath::try_from_path(self.path().join(name))?;
        create_from(file, target).map_err(|(error, _)| error)
    }
}

impl Drop for DraftFolder {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_dir_all(path); // removed later when it is stale
        }
    }
}

/// A folder of this user alone, in the system's folder for temporary files, that is used for as long as this lives: a
/// bundle that runs without a cache, say. It is removed with this.
///
/// Nothing may be written to it for hours, so its age does not tell whether its process died: a lock that the process
/// holds does. Folders without a holder are removed when the next one is made.
#[derive(Debug)]
pub struct WorkFolder {
    path: PathBuf,
    /// `None`: this file system has no locks; the folder is then never taken for one that was left behind.
    _held: Option<File>,
    root: PathBuf,
}

impl WorkFolder {
    /// Makes an empty folder.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn new() -> io::Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    fn within(folder: &Path) -> io::Result<Self> {
        Self::remove_left(folder);
        let (root, guard) = tempfile::Builder::new()
            .prefix(WORK)
            .rand_bytes(RANDOM)
            .make_in(folder, |path| {
                Access::Private.builder().create(path)?;
                Ok(path.to_owned())
            })?
            .into_parts();
        // The guard would remove a file.
        let _ = guard.keep();
        let mut work = Self {
            path: root.join("files"),
            _held: None,
            root,
        };
        // The lock is held before it gets the name that others look for.
        let mut draft = Draft::within(&work.root, Access::Private)?;
        if draft.file()?.try_lock().is_ok() {
            work._held = Some(draft.file()?.try_clone()?);
            draft.replace(&work.root.join(HELD))?;
        }
        Access::Private.builder().create(&work.path)?;
        Ok(work)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folders whose process is gone.
    fn remove_left(folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| name.starts_with(WORK)) {
                continue;
            }
            let root = entry.path();
            // A link is not followed to somebody's folder.
            if !fs::symlink_metadata(&root).is_ok_and(|metadata| metadata.is_dir()) {
                continue;
            }
            // Without a lock it is being made, or there are none here.
            if read::open(&root.join(HELD)).is_ok_and(|held| held.try_lock().is_ok()) {
                let _ = fs::remove_dir_all(&root); // it may be another user's
            }
        }
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root); // the next one that is made removes it
    }
}

/// Whether a folder holds nothing but temporary files of ours.
///
/// # Errors
/// When it cannot be read.
pub fn is_empty(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if !is_temporary(&entry?.file_name()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a name is one of our temporary names, of this version or of the first.
#[must_use]
pub fn is_temporary(name: &OsStr) -> bool {
    let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
        return false;
    };
    if let Some(random) = rest.strip_suffix(SUFFIX)
        && random.len() == RANDOM
        && random.bytes().all(|letter| letter.is_ascii_alphanumeric())
    {
        return true;
    }
    // The first version had the process's number: `.retouch-12-3.part`, `.retouch-12.tmp`, `.retouch-unbundle-12-0-17a.tmp`.
    let old = rest
        .strip_suffix(SUFFIX)
        .or_else(|| rest.strip_suffix(".tmp"));
    let Some(old) = old else { return false };
    let words = ["unbundle", "bundle", "verify"];
    let old = words
        .iter()
        .find_map(|word| old.strip_prefix(word)?.strip_prefix('-'))
        .unwrap_or(old);
    let old = old.strip_suffix("-preview").unwrap_or(old);
    old.starts_with(|first: char| first.is_ascii_digit())
        && old
            .bytes()
            .all(|letter| letter == b'-' || letter.is_ascii_hexdigit())
}

/// Removes from a folder the temporary files and folders that were last written to more than an hour ago: their process
/// was killed. What cannot be removed stays.
pub fn remove_stale(folder: &Path) {
    let now = SystemTime::now();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !is_temporary(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let Some(newest) = newest(&path, DEPTH) else {
            continue;
        };
        if now.duration_since(newest).is_ok_and(|age| age > STALE) {
            // One of them is the right one; neither follows a link.
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
}

/// The same, once a process for each folder: a folder may hold very many files.
fn remove_stale_once(folder: &Path) {
    static LOOKED: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let place = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let mut looked = LOOKED.lock().unwrap_or_else(PoisonError::into_inner);
    let first = looked.get_or_insert_default().insert(place);
    drop(looked);
    if first {
        remove_stale(folder);
    }
}

/// When a file, or anything in a folder, was last written to; `None` when that is not known.
fn newest(path: &Path, depth: usize) -> Option<SystemTime> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let mut newest_here = metadata.modified().ok()?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).ok()? {
            let below = newest(&entry.ok()?.path(), depth.checked_sub(1)?)?;
            newest_here = newest_here.max(below);
        }
    }
    Some(newest_here)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_draft_gets_its_name_or_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a");
        let mut draft = Draft::beside(&target, Access::Usual).unwrap();
        draft.write_all(b"one").unwrap();
        assert!(is_temporary(draft.path().file_name().unwrap()));
        draft.create(&target).unwrap();
        let mut second = Draft::beside(&target, Access::Usual).unwrap();
        second.write_all(b"two").unwrap();
        let (error, second) = second.create(&target).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&target).unwrap(), b"one");
        second.replace(&target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"two");
        drop(Draft::beside(&target, Access::Usual).unwrap());
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_name_is_taken_once_where_files_cannot_be_linked() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a");
        let draft = |text: &str| {
            let mut draft = Draft::within(folder.path(), Access::Usual).unwrap();
            draft.write_all(text.as_bytes()).unwrap();
            draft.path
        };
        claim(draft("one"), &target).unwrap();
        let (error, _) = claim(draft("two"), &target).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&target).unwrap(), b"one");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn private_files_are_private_and_others_are_as_the_umask_says() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        File::create(at("as usual")).unwrap();
        replace(&at("usual"), b"", Access::Usual).unwrap();
        replace(&at("new/folder/private"), b"", Access::Private).unwrap();
        assert_eq!(mode(&at("usual")), mode(&at("as usual")));
        assert_eq!(mode(&at("new/folder/private")), 0o600);
        assert_eq!(mode(&at("new/folder")), 0o700);
        assert_eq!(mode(&at("new")), 0o700);
        // What earlier versions made is closed to others.
        fs::create_dir(at("old")).unwrap();
        fs::set_permissions(at("old"), fs::Permissions::from_mode(0o755)).unwrap();
        private_folder(&at("old")).unwrap();
        assert_eq!(mode(&at("old")), 0o700);
        fs::write(at("lines"), "a\n").unwrap();
        fs::set_permissions(at("lines"), fs::Permissions::from_mode(0o644)).unwrap();
        append_private(&at("lines"))
            .unwrap()
            .write_all(b"b\n")
            .unwrap();
        assert_eq!(mode(&at("lines")), 0o600);
        assert_eq!(fs::read(at("lines")).unwrap(), b"a\nb\n");
        std::os::unix::fs::symlink(at("usual"), at("link")).unwrap();
        assert!(append_private(&at("link")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_or_a_pipe_under_a_known_name_is_refused_by_the_opening_itself() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "mine").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nothing"), at("loose")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(at("pipe"))
            .status();
        assert!(made.unwrap().success());
        let mut append = OpenOptions::new();
        append.create(true).append(true);
        let mut both = OpenOptions::new();
        both.create(true).truncate(false).read(true).write(true);
        for options in [append, both] {
            for (name, kind) in [
                ("link", "a link"),
                ("loose", "a link"),
                // With a reader or none, it is not waited for.
                ("pipe", "a named pipe"),
            ] {
                let error = open_known(&options, &at(name)).unwrap_err();
                let expected = format!("it is {kind}, not a regular file");
                assert_eq!(error.to_string(), expected);
            }
            open_known(&options, &at("file")).unwrap();
        }
        assert_eq!(fs::read(at("file")).unwrap(), b"mine");
        assert_eq!(names(folder.path()), ["file", "link", "loose", "pipe"]);
        let error = open_known(OpenOptions::new().append(true), &at("missing"));
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_written_anew_keeps_its_permissions_and_a_link_to_it_stays() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(rewrite(&link, b"old", b"new").unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(!rewrite(&link, b"old", b"newer").unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["file", "link"]);
    }

    #[test]
    fn a_folder_gets_its_name_whole_or_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let fill = || {
            let draft = DraftFolder::within(folder.path(), Access::Usual).unwrap();
            fs::create_dir(draft.path().join("b")).unwrap();
            fs::write(draft.path().join("b/c"), "content").unwrap();
            draft
        };
        let at = |name: &str| folder.path().join(name);
        fill().settle(&at("new")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        fill().settle(&at("empty")).unwrap();
        assert!(at("new/b/c").is_file() && at("empty/b/c").is_file());
        fs::create_dir(at("full")).unwrap();
        fs::write(at("full/b"), "mine").unwrap();
        assert!(fill().settle(&at("full")).is_err());
        assert_eq!(fs::read(at("full/b")).unwrap(), b"mine");
        fill().settle_file("b/c", &at("c")).unwrap();
        assert_eq!(
            fill().settle_file("b/c", &at("full/b")).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        drop(fill());
        assert_eq!(names(folder.path()), ["c", "empty", "full", "new"]);
    }

    #[test]
    fn a_folder_in_use_stays_however_old_and_one_without_a_process_goes() {
        let folder = tempfile::tempdir().unwrap();
        let work = WorkFolder::within(folder.path()).unwrap();
        fs::write(work.path().join("weights"), "").unwrap();
        let old = SystemTime::now() - 2 * STALE;
        for path in [&work.root, &work.path, &work.path.join("weights")] {
            File::open(path).unwrap().set_modified(old).unwrap();
        }
        // A process that was killed holds no lock.
        let left = folder.path().join(".retouch-work-abcdefABCDEF");
        fs::create_dir_all(left.join("files")).unwrap();
        fs::write(left.join(HELD), "").unwrap();
        let other = WorkFolder::within(folder.path()).unwrap();
        drop(Draft::within(folder.path(), Access::Usual).unwrap());
        assert!(work.path().join("weights").is_file() && other.path().is_dir());
        assert!(!left.exists());
        drop((work, other));
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn what_is_stale_and_ours_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let old = SystemTime::now() - 2 * STALE;
        let age = |path: &Path| File::open(path).unwrap().set_modified(old).unwrap();
        let stale = [
            ".retouch-abcDEF012345.part",
            ".retouch-12-3.part",
            ".retouch-12.tmp",
            ".retouch-12-preview.part",
            ".retouch-unbundle-12-0-17a.tmp",
        ];
        let others = [
            ".retouch-notes.part",
            ".retouch-sweep-bear-0123abcd.jsonl",
            "retouch-abcDEF012345.part",
            ".retouch-abcDEF012345.png",
            ".retouch-abcDEF01234.part",
        ];
        for name in stale.iter().chain(&others) {
            fs::write(at(name), "").unwrap();
            age(&at(name));
        }
        fs::write(at(".retouch-abcDEF012346.part"), "young").unwrap();
        for (name, young) in [("abcDEF012347", false), ("abcDEF012348", true)] {
            let draft = at(&format!(".retouch-{name}.part"));
            fs::create_dir(&draft).unwrap();
            fs::write(draft.join("weights"), "").unwrap();
            if !young {
                age(&draft.join("weights"));
            }
            age(&draft);
        }
        drop(Draft::within(folder.path(), Access::Usual).unwrap());
        let mut expected: Vec<&str> = others.to_vec();
        expected.extend([".retouch-abcDEF012346.part", ".retouch-abcDEF012348.part"]);
        expected.sort_unstable();
        assert_eq!(names(folder.path()), expected);
        assert!(!is_empty(folder.path()).unwrap());
    }
}
