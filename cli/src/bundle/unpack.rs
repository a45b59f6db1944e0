//! From a bundle to a folder, whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use retouch_graph::problem::Code;
use retouch_graph::{Digest, interrupt, lock, yaml};
use ruzstd::decoding::StreamingDecoder;

use super::manifest::Manifest;
use super::{Error, MANIFEST, MAX_FILES, MAX_RATIO, RATIO_FREE, tar};
use crate::Failure;
use crate::store::size;

/// The memory that a frame may ask for to be unpacked, in bytes; our own asks for far less.
const MAX_WINDOW: u64 = 16 << 20;
/// So many unpacked bundles are kept in the cache.
const MOST_KEPT: usize = 16;
/// What was used so shortly ago may be in use.
const IN_USE: Duration = Duration::from_secs(24 * 60 * 60);

/// Counts what a stream gives, and ends it when that is too much or nobody waits for it any more.
struct Capped<'a, R> {
    inner: R,
    given: u64,
    most: u64,
    follow: &'a dyn Fn(u64),
}

impl<R: Read> Read for Capped<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        interrupt::check()?;
        let count = self.inner.read(buffer)?;
        (self.follow)(count as u64);
        self.given = self.given.saturating_add(count as u64);
        if self.given > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(count)
    }
}

fn cannot(path: &Path, error: &io::Error) -> Error {
    Error::Failed(Failure::unwritable(format!(
        "{} cannot be written: {error}",
        path.display()
    )))
}

fn too_large(what: String) -> Error {
    Error::refused(Code::BundleLimit, what)
}

/// Reads a bundle to its end and checks all of it. `target` (a folder that was just made, and is empty) gets the files;
/// without one nothing is written. At most `most` bytes of files are taken.
///
/// # Errors
/// When anything about the bundle is not as it must be; the target then holds a part of it and is the caller's to remove.
pub fn read(bundle: &Path, most: u64, target: Option<&Path>) -> Result<Manifest, Error> {
    read_following(bundle, most, target, &|_| {})
}

/// [`read`], and tells `follow` of every piece how many bytes it has, unpacked.
///
/// # Errors
/// As [`read`].
pub fn read_following(
    bundle: &Path,
    most: u64,
    target: Option<&Path>,
    follow: &dyn Fn(u64),
) -> Result<Manifest, Error> {
    let unreadable = |error: &io::Error| {
        Error::Failed(Failure::unreadable(format!(
            "{} cannot be read: {error}",
            bundle.display()
        )))
    };
    let file = File::open(bundle).map_err(|error| unreadable(&error))?;
    let length = file.metadata().map_err(|error| unreadable(&error))?.len();
    let ratio = length.saturating_mul(MAX_RATIO).saturating_add(RATIO_FREE);
    // Headers, what fills up the last block of each file, the manifest and the end.
    let around = (MAX_FILES as u64 + 4) * 2 * tar::BLOCK as u64 + yaml::MAX_BYTES as u64;
    let decoder = StreamingDecoder::new_with_max_window_size(BufReader::new(file), MAX_WINDOW)
        .map_err(|error| {
            Error::refused(
                Code::BundleArchive,
                format!("it does not begin like a bundle ({error})"),
            )
        })?;
    let mut stream = Capped {
        inner: decoder,
        given: 0,
        most: most.saturating_add(around).min(ratio),
        follow,
    };
    let manifest = manifest(&mut stream, target)?;
    let bytes = manifest.bytes();
    if bytes > most {
        return Err(too_large(format!(
            "unpacked it has {}; at most {} are taken",
            size(bytes),
            size(most)
        ))
        .help("if you trust where it comes from, allow more with `--max-unpacked SIZE`"));
    }
    if bytes > ratio {
        return Err(too_large(format!(
            "unpacked it would be more than {MAX_RATIO} times as large as it is"
        )));
    }
    let mut seen = vec![false; manifest.files.len()];
    while let Some(member) = tar::next(&mut stream)? {
        let listed = manifest
            .files
            .binary_search_by(|file| file.path.as_str().cmp(&member.path));
        let Ok(at) = listed else {
            let path = member.path.escape_debug();
            return Err(if member.path == MANIFEST {
                Error::refused(Code::BundleTwice, "its manifest is in it twice")
            } else {
                let message = format!("it has the file `{path}`, which its manifest does not list");
                Error::refused(Code::BundleContent, message)
            });
        };
        if std::mem::replace(&mut seen[at], true) {
            let message = format!("`{}` is in it twice", member.path);
            return Err(Error::refused(Code::BundleTwice, message));
        }
        let packed = &manifest.files[at];
        if packed.size != member.size {
            let message = format!(
                "`{}` has {} bytes in it, and {} in its manifest",
                member.path, member.size, packed.size
            );
            return Err(Error::refused(Code::BundleContent, message));
        }
        let digest = write(&mut stream, &member, target)?;
        if digest != packed.blake3 {
            let message = format!(
                "`{}` is not what its manifest says ({} instead of {})",
                member.path,
                lock::short(&digest),
                lock::short(&packed.blake3)
            );
            return Err(Error::refused(Code::BundleContent, message));
        }
    }
    if let Some(at) = seen.iter().position(|seen| !seen) {
        let message = format!(
            "`{}` is in its manifest, and not in it",
            manifest.files[at].path
        );
        return Err(Error::refused(Code::BundleContent, message));
    }
    let (mut rest, decoder) = stream.inner.into_parts();
    if decoder.get_checksum_from_data() != decoder.get_calculated_checksum()
        && decoder.get_checksum_from_data().is_some()
    {
        return Err(Error::refused(
            Code::BundleArchive,
            "the checksum of its compressed stream is wrong",
        ));
    }
    match rest.read(&mut [0]) {
        Ok(0) => Ok(manifest),
        Ok(_) => Err(Error::refused(
            Code::BundleArchive,
            "something follows the end of its compressed stream",
        )),
        Err(error) => Err(unreadable(&error)),
    }
}

/// The first member.
fn manifest(stream: &mut impl Read, target: Option<&Path>) -> Result<Manifest, Error> {
    let first = tar::next(stream)?;
    let Some(member) = first.filter(|member| member.path == MANIFEST) else {
        return Err(Error::refused(
            Code::BundleManifest,
            format!("it does not begin with its manifest, `{MANIFEST}`"),
        ));
    };
    if member.size > yaml::MAX_BYTES as u64 {
        return Err(too_large(format!(
            "its manifest has {}; at most {} are taken",
            size(member.size),
            size(yaml::MAX_BYTES as u64)
        )));
    }
    let mut bytes = Vec::new();
    tar::content(stream, member.size, |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    let manifest = Manifest::parse(&bytes)?;
    if let Some(target) = target {
        let path = target.join(MANIFEST);
        fs::write(&path, &bytes).map_err(|error| cannot(&path, &error))?;
    }
    Ok(manifest)
}

/// Writes one file below the target; its path was checked when the manifest and the header were read.
fn write(
    stream: &mut impl Read,
    member: &tar::Member,
    target: Option<&Path>,
) -> Result<Digest, Error> {
    let mut hasher = lock::Hasher::default();
    let Some(target) = target else {
        tar::content(stream, member.size, |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        return Ok(hasher.finish());
    };
    let path = target.join(member.path.split('/').collect::<PathBuf>());
    if let Some(folder) = path.parent() {
        // All below the target was made here, so there is no link in it to follow.
        fs::create_dir_all(folder).map_err(|error| cannot(folder, &error))?;
    }
    let mut file = File::create_new(&path).map_err(|error| match error.kind() {
        // Two names that this file system takes for one.
        io::ErrorKind::AlreadyExists => Error::refused(
            Code::BundleTwice,
            format!("`{}` gets into another file's way", member.path),
        ),
        _ => cannot(&path, &error),
    })?;
    tar::content(stream, member.size, |piece| {
        hasher.update(piece);
        file.write_all(piece).map_err(|error| cannot(&path, &error))
    })?;
    file.flush().map_err(|error| cannot(&path, &error))?;
    Ok(hasher.finish())
}

/// A folder that is removed when it is done with.
#[derive(Debug)]
pub struct Temporary(Option<PathBuf>);

impl Temporary {
    /// Makes a folder that nobody else can look into.
    fn new(path: PathBuf) -> Result<Self, Error> {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(&path)
            .map_err(|error| cannot(&path, &error))?;
        Ok(Self(Some(path)))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// Gives the folder its own name; it is then there to stay.
    fn settle(mut self, name: &Path) -> io::Result<()> {
        fs::rename(self.path(), name)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_dir_all(path); // nobody misses it
        }
    }
}

/// A new folder for files that are not to stay, named with `prefix`.
///
/// # Errors
/// When it cannot be made.
pub fn temporary(prefix: &str) -> Result<Temporary, Failure> {
    Temporary::new(fresh(&std::env::temp_dir(), prefix)).map_err(|error| match error {
        Error::Failed(failure) => failure,
        other => Failure::unwritable(format!("{other:?}")),
    })
}

/// A name that no other process and no other call uses.
pub fn fresh(folder: &Path, what: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // The clock makes the name one that a process with the same number before did not leave behind.
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    folder.join(format!(
        ".{what}-{}-{count}-{now:x}.tmp",
        std::process::id()
    ))
}

/// Unpacks a bundle to a folder that is not there yet, or is empty.
///
/// # Errors
/// As [`read`]; nothing is left behind then.
pub fn to_folder(bundle: &Path, most: u64, folder: &Path) -> Result<Manifest, Error> {
    match fs::read_dir(folder).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            return Err(Error::Failed(
                Failure::unwritable(format!("{} exists and is not empty", folder.display()))
                    .help("name a folder that does not exist yet"),
            ));
        }
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot(folder, &error)),
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Only when the bundle is found good are folders above made for it.
    read(bundle, most, None)?;
    fs::create_dir_all(parent).map_err(|error| cannot(parent, &error))?;
    let temporary = Temporary::new(fresh(parent, "retouch-unbundle"))?;
    let manifest = read(bundle, most, Some(temporary.path()))?;
    open_to_all(temporary.path());
    // On some systems a folder is not renamed over another, even an empty one.
    if folder.exists() {
        fs::remove_dir(folder).map_err(|error| cannot(folder, &error))?;
    }
    temporary
        .settle(folder)
        .map_err(|error| cannot(folder, &error))?;
    Ok(manifest)
}

/// Gives a folder that was made for its maker alone the usual permissions.
fn open_to_all(folder: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    }
    #[cfg(not(unix))]
    let _ = folder;
}

/// An unpacked bundle, to be run.
#[derive(Debug)]
pub struct Unpacked {
    /// Where it is.
    pub folder: PathBuf,
    /// What is in it.
    pub manifest: Manifest,
    _temporary: Option<Temporary>,
}

/// Unpacks a bundle below the cache's folder, under its digest, unless it is there already; without a cache's folder
/// to a temporary one, which goes when the value does.
///
/// # Errors
/// As [`read`]; nothing is left behind then.
pub fn to_cache(
    bundle: &Path,
    digest: &Digest,
    most: u64,
    cache: Option<&Path>,
) -> Result<Unpacked, Error> {
    let Some(cache) = cache else {
        let temporary = Temporary::new(fresh(&std::env::temp_dir(), "retouch-bundle"))?;
        let manifest = read(bundle, most, Some(temporary.path()))?;
        return Ok(Unpacked {
            folder: temporary.path().to_owned(),
            manifest,
            _temporary: Some(temporary),
        });
    };
    let bundles = cache.join("bundles");
    // 160 bits: long names of folders make long lines of faults.
    let folder = bundles.join(&lock::hex(digest)[..40]);
    if let Some(manifest) = intact(&folder) {
        return Ok(Unpacked {
            folder,
            manifest,
            _temporary: None,
        });
    }
    // Nothing is made for a bundle that is refused, not even the folder above.
    read(bundle, most, None)?;
    fs::create_dir_all(&bundles).map_err(|error| cannot(&bundles, &error))?;
    prune(&bundles);
    let temporary = Temporary::new(fresh(&bundles, "unpacking"))?;
    let manifest = read(bundle, most, Some(temporary.path()))?;
    if folder.exists() {
        // Somebody changed what lies there.
        fs::remove_dir_all(&folder).map_err(|error| cannot(&folder, &error))?;
    }
    match temporary.settle(&folder) {
        Ok(()) => {}
        // Another process was quicker.
        Err(_) if intact(&folder).is_some() => {}
        Err(error) => return Err(cannot(&folder, &error)),
    }
    Ok(Unpacked {
        folder,
        manifest,
        _temporary: None,
    })
}

/// The manifest of an unpacked bundle, if it and all its files are as they were, and no others came.
fn intact(folder: &Path) -> Option<Manifest> {
    let path = folder.join(MANIFEST);
    let manifest = Manifest::parse(&fs::read(&path).ok()?).ok()?;
    for file in &manifest.files {
        let path = folder.join(file.path.split('/').collect::<PathBuf>());
        let metadata = fs::symlink_metadata(&path).ok()?;
        if !metadata.is_file() || metadata.len() != file.size {
            return None;
        }
        let mut hasher = lock::Hasher::default();
        let mut file_there = File::open(&path).ok()?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            interrupt::check().ok()?;
            match file_there.read(&mut buffer).ok()? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
        if hasher.finish() != file.blake3 {
            return None;
        }
    }
    if count(folder)? != manifest.files.len() + 1 {
        return None;
    }
    // What was used last is kept longest.
    if let Ok(file) = File::options().append(true).open(&path) {
        let _ = file.set_modified(SystemTime::now());
    }
    Some(manifest)
}

/// How many files there are below a folder.
fn count(folder: &Path) -> Option<usize> {
    let mut found = 0;
    for entry in fs::read_dir(folder).ok()? {
        let entry = entry.ok()?;
        found += match entry.file_type().ok()? {
            kind if kind.is_dir() => count(&entry.path())?,
            _ => 1,
        };
    }
    Some(found)
}

/// Removes what was used longest ago when there is much, and what a process that was killed left behind.
fn prune(bundles: &Path) {
    let now = SystemTime::now();
    let mut old: Vec<(SystemTime, PathBuf)> = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(bundles).into_iter().flatten().flatten() {
        let path = entry.path();
        let modified = fs::metadata(path.join(MANIFEST))
            .or_else(|_| entry.metadata())
            .and_then(|metadata| metadata.modified())
            .unwrap_or(now);
        let unfinished = path.extension().is_some_and(|end| end == "tmp");
        let idle = now.duration_since(modified).unwrap_or_default() > IN_USE;
        if unfinished && idle {
            let _ = fs::remove_dir_all(&path);
        } else if !unfinished {
            count += 1;
            if idle {
                old.push((modified, path));
            }
        }
    }
    old.sort();
    let many = (count + 1_usize).saturating_sub(MOST_KEPT);
    for (_, path) in old.into_iter().take(many) {
        let _ = fs::remove_dir_all(&path);
    }
}
