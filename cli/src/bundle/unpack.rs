//! From a bundle to a folder, whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use retouch_graph::problem::Code;
use retouch_graph::write::{self, Access, DraftFolder, WorkFolder};
use retouch_graph::{Cancel, Digest, files, interrupt, yaml};
use ruzstd::decoding::StreamingDecoder;

use super::manifest::Manifest;
use super::{Error, MANIFEST, MAX_FILES, MAX_RATIO, RATIO_FREE, tar};
use crate::Failure;
use crate::store::{making_room, size};

/// The memory that a frame may ask for to be unpacked, in bytes; our own asks for far less.
const MAX_WINDOW: u64 = 16 << 20;
/// Number of unpacked bundles kept in the cache.
const MOST_KEPT: usize = 16;
/// What was used so shortly ago may be in use.
const IN_USE: Duration = Duration::from_secs(24 * 60 * 60);

/// Counts what a stream gives, and ends it when that is too much or the run is cancelled.
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

fn cannot(path: &Path, error: io::Error) -> Error {
    Error::Unwritable(path.to_owned(), error)
}

fn too_large(what: String) -> Error {
    Error::refused(Code::BundleLimit, what)
}

/// Reads a bundle to its end and checks all of it. `target` (a folder that was just made, and is empty) gets the files;
/// without one nothing is written. At most `most` bytes of files are taken. It ends when `cancel` says so.
///
/// # Errors
/// When anything about the bundle is not as it must be; the target then holds a part of it and is the caller's to remove.
pub fn read(
    bundle: &Path,
    most: u64,
    target: Option<&Path>,
    cancel: &Cancel,
) -> Result<Manifest, Error> {
    read_following(bundle, most, target, cancel, &|_| {})
}

/// [`read`]; calls `follow` with the bytes of each piece, unpacked.
///
/// # Errors
/// As [`read`].
// Long: each check depends on what the ones before it let through.
pub fn read_following(
    bundle: &Path,
    most: u64,
    target: Option<&Path>,
    cancel: &Cancel,
    follow: &dyn Fn(u64),
) -> Result<Manifest, Error> {
    let unreadable = |error: &io::Error| {
        Error::Failed(Failure::unreadable(format!(
            "{} cannot be read: {error}",
            bundle.display()
        )))
    };
    let file = files::open(bundle).map_err(|error| unreadable(&error))?;
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
                Error::refused(Code::BundleTwice, "it contains its manifest twice")
            } else {
                let message = format!("it has the file `{path}`, which its manifest does not list");
                Error::refused(Code::BundleContent, message)
            });
        };
        if std::mem::replace(&mut seen[at], true) {
            let message = format!("it contains `{}` twice", member.path);
            return Err(Error::refused(Code::BundleTwice, message));
        }
        let packed = &manifest.files[at];
        if packed.size != member.size {
            let message = format!(
                "`{}` has {} bytes, but its manifest says {}",
                member.path, member.size, packed.size
            );
            return Err(Error::refused(Code::BundleContent, message));
        }
        let digest = take(&mut stream, &member, target, cancel)?;
        if digest != packed.blake3 {
            let message = format!(
                "`{}` does not match its manifest ({} instead of {})",
                member.path,
                retouch_graph::digest::short(&digest),
                retouch_graph::digest::short(&packed.blake3)
            );
            return Err(Error::refused(Code::BundleContent, message));
        }
    }
    if let Some(at) = seen.iter().position(|seen| !seen) {
        let message = format!(
            "`{}` is listed in its manifest but missing from the bundle",
            manifest.files[at].path
        );
        return Err(Error::refused(Code::BundleContent, message));
    }
    let (mut rest, decoder) = stream.inner.into_parts();
    let checksum = decoder.get_checksum_from_data();
    if checksum.is_none() {
        return Err(Error::refused(
            Code::BundleArchive,
            "its compressed stream has no checksum of its content",
        )
        .help("pack it with `retouch bundle`, or let `zstd` add one: `zstd --check`"));
    }
    if checksum != decoder.get_calculated_checksum() {
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
        fs::write(&path, &bytes).map_err(|error| cannot(&path, error))?;
    }
    Ok(manifest)
}

/// Reads one file, and writes it below the target; its path was checked when the manifest and the header were read.
fn take(
    stream: &mut impl Read,
    member: &tar::Member,
    target: Option<&Path>,
    cancel: &Cancel,
) -> Result<Digest, Error> {
    let goes_on = || match cancel.is_cancelled() {
        true => Err(Error::Failed(Failure::interrupted("nothing was written"))),
        false => Ok(()),
    };
    let mut hasher = retouch_graph::digest::Hasher::default();
    let Some(target) = target else {
        tar::content(stream, member.size, |piece| {
            hasher.update(piece);
            goes_on()
        })?;
        return Ok(hasher.finish());
    };
    let path = target.join(member.path.split('/').collect::<PathBuf>());
    if let Some(folder) = path.parent() {
        // All below the target was made here, so there is no link in it to follow.
        fs::create_dir_all(folder).map_err(|error| cannot(folder, error))?;
    }
    let mut file = File::create_new(&path).map_err(|error| match error.kind() {
        // Two names that this file system takes for one.
        io::ErrorKind::AlreadyExists => Error::refused(
            Code::BundleTwice,
            format!("`{}` conflicts with another file", member.path),
        ),
        _ => cannot(&path, error),
    })?;
    tar::content(stream, member.size, |piece| {
        goes_on()?;
        hasher.update(piece);
        file.write_all(piece).map_err(|error| cannot(&path, error))
    })?;
    file.flush().map_err(|error| cannot(&path, error))?;
    Ok(hasher.finish())
}

/// Unpacks a bundle to a folder that is not there yet, or is empty. It ends when `cancel` says so.
///
/// # Errors
/// As [`read`]; nothing is left behind then.
pub fn to_folder(
    bundle: &Path,
    most: u64,
    folder: &Path,
    cancel: &Cancel,
) -> Result<Manifest, Error> {
    let not_empty = || {
        Error::Failed(
            Failure::unwritable(format!("{} exists and is not empty", folder.display()))
                .help("name a folder that does not exist yet"),
        )
    };
    match write::is_empty(folder) {
        Ok(true) => {}
        Ok(false) => return Err(not_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot(folder, error)),
    }
    // Only when the bundle is found good are folders above made for it.
    read(bundle, most, None, cancel)?;
    let parent = folder.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(parent).map_err(|error| cannot(parent, error))?;
    let draft = DraftFolder::of(folder, Access::Usual).map_err(|error| cannot(parent, error))?;
    let manifest = read(bundle, most, Some(draft.path()), cancel)?;
    draft.settle(folder).map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty => not_empty(),
        _ => cannot(folder, error),
    })?;
    Ok(manifest)
}

/// An unpacked bundle, to be run.
#[derive(Debug)]
pub struct Unpacked {
    /// Where it is.
    pub folder: PathBuf,
    /// What is in it.
    pub manifest: Manifest,
    _temporary: Option<WorkFolder>,
}

/// Unpacks a bundle below the cache's folder, under its digest, unless it is there already. Without a cache's folder, or
/// where that cannot be written, it goes to a temporary one, which is removed when the value is dropped.
///
/// # Errors
/// As [`read`]; nothing is left behind then.
pub fn to_cache(
    bundle: &Path,
    digest: &Digest,
    most: u64,
    cache: Option<&Path>,
    cancel: &Cancel,
) -> Result<Unpacked, Error> {
    if let Some(cache) = cache {
        let bundles = cache.join("bundles");
        // 160 bits: long names of folders make long lines of faults.
        let folder = bundles.join(&retouch_graph::digest::hex(digest)[..40]);
        if let Some(manifest) = intact(&folder) {
            return Ok(Unpacked {
                folder,
                manifest,
                _temporary: None,
            });
        }
        // Nothing is made for a bundle that is refused, not even the folder above.
        let manifest = read(bundle, most, None, cancel)?;
        let room = manifest.bytes();
        match making_room(cache, room, || {
            keep(bundle, most, &bundles, &folder, cancel)
        }) {
            Ok(Ok(manifest)) => {
                return Ok(Unpacked {
                    folder,
                    manifest,
                    _temporary: None,
                });
            }
            Ok(Err(error)) => return Err(error),
            // The cache is read-only or full.
            Err(error) => tracing::debug!(%error, "the bundle is unpacked to a temporary folder"),
        }
    }
    // As above: all of it is checked before anything is written.
    read(bundle, most, None, cancel)?;
    let work = WorkFolder::new().map_err(|error| cannot(&std::env::temp_dir(), error))?;
    let manifest = read(bundle, most, Some(work.path()), cancel)?;
    Ok(Unpacked {
        folder: work.path().to_owned(),
        manifest,
        _temporary: Some(work),
    })
}

/// Unpacks a bundle to its place among others. The outer error is one of the file system, the inner one of the bundle.
fn keep(
    bundle: &Path,
    most: u64,
    bundles: &Path,
    folder: &Path,
    cancel: &Cancel,
) -> io::Result<Result<Manifest, Error>> {
    write::private_folder(bundles)?;
    prune(bundles);
    let draft = DraftFolder::within(bundles, Access::Private)?;
    let manifest = match read(bundle, most, Some(draft.path()), cancel) {
        Ok(manifest) => manifest,
        Err(Error::Unwritable(_, error)) => return Err(error),
        Err(error) => return Ok(Err(error)),
    };
    if folder.exists() {
        // What lies there was changed.
        fs::remove_dir_all(folder)?;
    }
    match draft.settle(folder) {
        // Another process was quicker.
        Err(error) if intact(folder).is_none() => Err(error),
        _ => Ok(Ok(manifest)),
    }
}

/// The manifest of an unpacked bundle, if it and all its files are as they were, and no others came.
fn intact(folder: &Path) -> Option<Manifest> {
    let path = folder.join(MANIFEST);
    let manifest = Manifest::parse(&files::read(&path, yaml::MAX_BYTES as u64).ok()?).ok()?;
    for file in &manifest.files {
        let path = folder.join(file.path.split('/').collect::<PathBuf>());
        let metadata = fs::symlink_metadata(&path).ok()?;
        if !metadata.is_file() || metadata.len() != file.size {
            return None;
        }
        let mut hasher = retouch_graph::digest::Hasher::default();
        let mut file_there = files::open(&path).ok()?;
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
    write::remove_stale(bundles);
    let now = SystemTime::now();
    let mut old: Vec<(SystemTime, PathBuf)> = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(bundles).into_iter().flatten().flatten() {
        let path = entry.path();
        let modified = fs::metadata(path.join(MANIFEST))
            .or_else(|_| entry.metadata())
            .and_then(|metadata| metadata.modified())
            .unwrap_or(now);
        let idle = now.duration_since(modified).unwrap_or_default() > IN_USE;
        // The first version called its drafts `.unpacking-….tmp`.
        let unfinished = path.extension().is_some_and(|end| end == "tmp");
        if unfinished && idle {
            let _ = fs::remove_dir_all(&path);
        } else if !unfinished && !write::is_temporary(&entry.file_name()) {
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
