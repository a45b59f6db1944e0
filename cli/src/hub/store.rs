//! The cache that the hub's programs share: `models--owner--name` with `refs`, `snapshots` and `blobs`.
//!
//! A file has its name in `blobs` only when it is whole and is what was announced. What is on its way is
//! `blobs/NAME.incomplete`, and `.locks` keeps two processes from writing it at once; both are as in the hub's Python
//! library, so that the two may work on one cache.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use retouch_graph::problem::Code;
use retouch_graph::remote::{self, Address};
use retouch_graph::write::{self, Access};
use retouch_graph::{Cancel, Withheld, files};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::client::{Announced, Client, Listing, Refused};
use super::reporter::Reporter;
use super::settings::withheld;

/// A listing of a hub's repository that was written down has no more bytes.
const MOST_LISTING: u64 = 256 << 20;

/// Consecutive failures after which a download is abandoned; one that makes good progress does not count.
const MOST_FAILURES: usize = 3;
/// Bytes of good progress.
const GOOD_PIECE: u64 = 1 << 20;
/// Size limit of a file without an announced size: only small ones come without.
const MOST_UNANNOUNCED: u64 = 1 << 30;
/// Polling interval for another process's lock and for cancellation.
const PATIENCE: Duration = Duration::from_millis(200);

/// A repository's part of the cache.
pub struct Shelf {
    folder: PathBuf,
    locks: PathBuf,
}

/// Progress reporting and cancellation of a download.
pub struct Watch<'a> {
    pub cancel: &'a Cancel,
    pub reporter: &'a Reporter,
}

fn unwritable(path: &Path, error: &io::Error) -> Withheld {
    withheld(
        Code::Unwritable,
        format!("{} cannot be written: {error}", path.display()),
        "make room, or name another folder for models in HF_HUB_CACHE",
    )
}

impl Shelf {
    /// The part of a cache that is a repository's.
    pub fn new(cache: &Path, address: &Address) -> Self {
        let name = format!("models--{}--{}", address.owner, address.name);
        Self {
            folder: cache.join(&name),
            locks: cache.join(".locks").join(name),
        }
    }

    /// The commit that a branch or tag was when it was last asked for.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let text = files::read_text(&self.folder.join("refs").join(revision), 1 << 12).ok()?;
        let commit = text.trim();
        remote::is_commit(commit).then(|| commit.to_owned())
    }

    /// The folder of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    fn listing_file(&self, commit: &str) -> PathBuf {
        // Beside what the hub's own programs keep; they leave it alone.
        self.folder.join(".retouch").join(format!("{commit}.json"))
    }

    /// What a commit holds, if that was asked before: it never changes.
    pub fn listing(&self, commit: &str) -> Option<Listing> {
        let text = files::read(&self.listing_file(commit), MOST_LISTING).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes down what a revision is and holds. A cache that cannot be written is one that others filled: all that is
    /// lost is what is known offline, and a file that is to be fetched says the rest.
    pub fn note(&self, revision: &str, commit: &str, listing: &Listing) {
        let reference = self.folder.join("refs").join(revision);
        if revision != commit && self.commit(revision).as_deref() != Some(commit) {
            let written = write::replace(&reference, commit.as_bytes(), Access::Usual);
            tracing::debug!(?reference, ?written, "a revision is noted");
        }
        if self.listing(commit).as_ref() != Some(listing) {
            let text = serde_json::to_vec(listing).unwrap_or_default();
            let written = write::replace(&self.listing_file(commit), &text, Access::Usual);
            tracing::debug!(commit, ?written, "a listing is noted");
        }
    }

    /// Fetches a file of a commit, unless its content is there already. `expected` is the size that the user agreed to.
    pub fn fetch(
        &self,
        client: &Client,
        address: &Address,
        commit: &str,
        listing: Option<&Listing>,
        expected: Option<u64>,
        watch: &Watch<'_>,
    ) -> Result<PathBuf, Withheld> {
        let place = self.snapshot(commit).join(&address.file);
        let named = at_commit(address, commit);
        let mut failures = 0;
        let announced = loop {
            match client.announced(address, commit) {
                Ok(announced) => break announced,
                Err(Refused::Passing(_)) if failures + 1 < MOST_FAILURES => failures += 1,
                Err(refused) => return Err(refused.why()),
            }
            pause(failures, watch)?;
        };
        let listed = listing.and_then(|listing| listing.files.get(&address.file));
        if let Some(listed) = listed {
            let differs = |a: Option<&str>, b: Option<&str>| a.is_some() && b.is_some() && a != b;
            if differs(listed.sha256.as_deref(), announced.sha256())
                || differs(listed.git.as_deref(), announced.git())
                || (listed.size.is_some()
                    && announced.size.is_some()
                    && listed.size != announced.size)
            {
                return Err(withheld(
                    Code::HubContent,
                    format!(
                        "{named}: the hub's file listing does not match the file that it announces"
                    ),
                    "try again; if it happens again, the server used as the hub (HF_ENDPOINT) is at fault",
                ));
            }
        }
        let announced = Announced {
            size: announced.size.or(listed.and_then(|listed| listed.size)),
            ..announced
        };
        if let (Some(expected), Some(size)) = (expected, announced.size)
            && expected != size
        {
            return Err(withheld(
                Code::HubContent,
                format!(
                    "{named} has {size} bytes, and the file that names it says {expected}; it was not fetched"
                ),
                "the bundle or picture does not match the model that it names: get it again from its source",
            ));
        }
        let announced = Announced {
            size: announced.size.or(expected),
            ..announced
        };
        let blob = self.folder.join("blobs").join(&announced.etag);
        let _lock = self.lock(&announced.etag, &named, watch)?;
        let whole = fs::metadata(&blob).is_ok_and(|there| {
            there.is_file() && announced.size.is_none_or(|size| size == there.len())
        });
        if !whole {
            self.bring(client, address, commit, &announced, &blob, watch)
                .inspect_err(|_| watch.reporter.end(false))?;
        }
        link(&blob, &place, self.depth(address)).map_err(|e| unwritable(&place, &e))?;
        Ok(place)
    }

    /// How many folders a file's place is below the repository's.
    fn depth(&self, address: &Address) -> usize {
        2 + address.file.matches('/').count()
    }

    /// Waits for other processes that fetch the same content.
    fn lock(&self, etag: &str, named: &str, watch: &Watch<'_>) -> Result<File, Withheld> {
        let path = self.locks.join(format!("{etag}.lock"));
        let opened = fs::create_dir_all(&self.locks).and_then(|()| {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).write(true);
            write::open_known(&options, &path)
        });
        let file = opened.map_err(|e| unwritable(&path, &e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
                // A file system without locks: what is fetched is compared all the same.
                Err(TryLockError::Error(_)) => return Ok(file),
            }
            if !told {
                told = true;
                watch
                    .reporter
                    .warn(&format!("{named}: another process fetches it; waiting"));
            }
            interrupted(watch)?;
            std::thread::sleep(PATIENCE);
        }
    }

    /// Fetches the content, goes on where an earlier fetch ended, and gives it its name when it is what was announced.
    // Long: one loop of tries, whose state all of it reads and writes.
    fn bring(
        &self,
        client: &Client,
        address: &Address,
        commit: &str,
        announced: &Announced,
        blob: &Path,
        watch: &Watch<'_>,
    ) -> Result<(), Withheld> {
        let named = at_commit(address, commit);
        let partial = blob.with_file_name(format!("{}.incomplete", announced.etag));
        let cannot = |error: &io::Error| unwritable(&partial, error);
        if let Some(folder) = partial.parent() {
            fs::create_dir_all(folder).map_err(|e| cannot(&e))?;
        }
        let mut file = open_partial(&partial).map_err(|e| cannot(&e))?;
        let mut hasher = Sha256::new();
        let mut done = file.metadata().map_err(|e| cannot(&e))?.len();
        let most = announced.size.unwrap_or(MOST_UNANNOUNCED);
        // Of a file without an announced size it is not known whether the piece is all of it.
        if done > most || announced.size.is_none() {
            file.set_len(0).map_err(|e| cannot(&e))?;
            done = 0;
        }
        let mut left = done;
        while left > 0 {
            let mut piece = vec![0; 1 << 20];
            let count = file.read(&mut piece).map_err(|e| cannot(&e))?;
            if count == 0 {
                break;
            }
            hasher.update(&piece[..count]);
            left = left.saturating_sub(count as u64);
            interrupted(watch)?;
        }
        watch
            .reporter
            .start(&named, announced.size.unwrap_or(0), done);
        let mut failures = 0;
        let mut piece = vec![0; 256 << 10];
        while announced.size != Some(done) || done == 0 {
            interrupted(watch)?;
            let before = done;
            let why = match client.content(address, commit, done) {
                Err(Refused::Lasting(why)) => return Err(why),
                Err(Refused::Passing(why)) => why,
                Ok((start, mut content)) => {
                    if start != done {
                        // The hub knows no ranges: from the beginning.
                        hasher = Sha256::new();
                        file.set_len(0).map_err(|e| cannot(&e))?;
                        done = 0;
                    }
                    file.seek(SeekFrom::Start(done)).map_err(|e| cannot(&e))?;
                    let ended = loop {
                        if watch.cancel.is_cancelled() {
                            break Err(gone(&named));
                        }
                        match content.read(&mut piece) {
                            Ok(0) => break Ok(()),
                            Ok(count) => {
                                if done + count as u64 > most {
                                    drop(file);
                                    let _ = fs::remove_file(&partial); // nothing of it is good
                                    return Err(longer(&named, most));
                                }
                                file.write_all(&piece[..count]).map_err(|e| cannot(&e))?;
                                hasher.update(&piece[..count]);
                                done += count as u64;
                                watch.reporter.progress(done);
                            }
                            Err(error) => {
                                break Err(broken(&named, done, announced, &error.to_string()));
                            }
                        }
                    };
                    match ended {
                        Ok(()) if announced.size.is_none_or(|size| size == done) => break,
                        Ok(()) => broken(&named, done, announced, "the connection was closed"),
                        Err(why) => why,
                    }
                }
            };
            if done.saturating_sub(before) >= GOOD_PIECE {
                failures = 0;
            } else {
                failures += 1;
            }
            if failures >= MOST_FAILURES || why.code == Code::Interrupted {
                return Err(why);
            }
            pause(failures, watch)?;
        }
        file.sync_all().map_err(|e| cannot(&e))?;
        drop(file);
        let digest = match (announced.sha256(), announced.git()) {
            (Some(promised), _) => Some(("SHA-256 digest", promised, hex(&hasher.finalize()))),
            (None, Some(promised)) => {
                let is = git_name(&partial).map_err(|e| cannot(&e))?;
                Some(("git blob name", promised, is))
            }
            // Some other server's tag: there is nothing to compare with but the length.
            (None, None) => None,
        };
        if let Some((what, promised, is)) = digest
            && is != promised
        {
            fs::remove_file(&partial).map_err(|e| cannot(&e))?;
            return Err(withheld(
                Code::HubContent,
                format!(
                    "{named} has the {what} {is}, and the hub announced {promised}; it was removed"
                ),
                "fetch it again; if it happens again, something between here and the hub changes it",
            ));
        }
        fs::rename(&partial, blob).map_err(|e| unwritable(blob, &e))?;
        watch.reporter.end(true);
        Ok(())
    }
}

/// Opens what came of a file so far, or begins it. The name is the one of the hub's own programs, so anybody who may write
/// to the folder can foresee it: a link under it is not followed but removed.
fn open_partial(partial: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    match write::open_known(&options, partial) {
        Err(_) if fs::symlink_metadata(partial).is_ok_and(|there| there.is_symlink()) => {
            fs::remove_file(partial)?;
            // Another link by now was made on purpose, and is an error.
            write::open_known(&options, partial)
        }
        opened => opened,
    }
}

/// How a file is shown: with the commit, which is what is fetched.
fn at_commit(address: &Address, commit: &str) -> String {
    address
        .at(&commit[..commit.len().min(12)])
        .display()
        .to_string()
}

/// What git calls the content of a file: the SHA-1 digest of `blob LENGTH`, a zero byte, and the content.
fn git_name(path: &Path) -> io::Result<String> {
    let mut file = files::open(path)?;
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", file.metadata()?.len()));
    let mut piece = vec![0; 256 << 10];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hex(&hasher.finalize())),
            count => hasher.update(&piece[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gone(named: &str) -> Withheld {
    withheld(
        Code::Interrupted,
        format!("fetching {named} was interrupted"),
        "what was downloaded is kept; the same command resumes from there",
    )
}

fn broken(named: &str, done: u64, announced: &Announced, why: &str) -> Withheld {
    let of = announced
        .size
        .map_or_else(String::new, |size| format!(" of {size}"));
    withheld(
        Code::HubUnreachable,
        format!("fetching {named} failed after {done}{of} bytes: {why}"),
        "run the same command again: it resumes from there",
    )
}

fn longer(named: &str, most: u64) -> Withheld {
    withheld(
        Code::HubContent,
        format!("{named} is longer than the {most} bytes that the hub announced; it was removed"),
        "fetch it again; if it happens again, something between here and the hub changes it",
    )
}

fn interrupted(watch: &Watch<'_>) -> Result<(), Withheld> {
    if watch.cancel.is_cancelled() {
        return Err(gone("models"));
    }
    Ok(())
}

/// A little longer after each failure.
fn pause(failures: usize, watch: &Watch<'_>) -> Result<(), Withheld> {
    interrupted(watch)?;
    std::thread::sleep(PATIENCE * u32::try_from(failures).unwrap_or(1));
    interrupted(watch)
}

/// Makes a snapshot's entry for a content. Where there are no links, the content itself becomes the entry, as the hub's
/// own programs do it.
fn link(blob: &Path, place: &Path, depth: usize) -> io::Result<()> {
    if place.is_file() && fs::metadata(place)?.len() == fs::metadata(blob)?.len() {
        return Ok(());
    }
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    let name = blob.file_name().unwrap_or_default();
    let mut target: PathBuf = std::iter::repeat_n("..", depth).collect();
    target.push("blobs");
    target.push(name);
    write::replace_with(place, |temporary| {
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(&target, temporary);
        #[cfg(windows)]
        let linked = std::os::windows::fs::symlink_file(&target, temporary);
        #[cfg(not(any(unix, windows)))]
        let linked: io::Result<()> = Err(io::ErrorKind::Unsupported.into());
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                fs::hard_link(blob, temporary).or_else(|_| {
                    let mut copy = Access::Usual.create_new(temporary)?;
                    let copied =
                        files::open(blob).and_then(|mut blob| io::copy(&mut blob, &mut copy));
                    copied.map(drop).inspect_err(|_| {
                        let _ = fs::remove_file(temporary);
                    })
                })
            }
            linked => linked,
        }
    })
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_no_file_under_a_known_name_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("etag.incomplete");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let expected = "it is a named pipe, not a regular file";
        assert_eq!(open_partial(&pipe).unwrap_err().to_string(), expected);
        assert_eq!(git_name(&pipe).unwrap_err().to_string(), expected);
    }

    #[test]
    fn links_under_known_names_are_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("mine"), "mine").unwrap();
        symlink(at("mine"), at("etag.incomplete")).unwrap();
        let mut file = open_partial(&at("etag.incomplete")).unwrap();
        file.write_all(b"weights").unwrap();
        drop(file);
        assert_eq!(fs::read(at("mine")).unwrap(), b"mine");
        // What came so far stays.
        let file = open_partial(&at("etag.incomplete")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 7);
        fs::create_dir(at("blobs")).unwrap();
        fs::rename(at("etag.incomplete"), at("blobs/etag")).unwrap();
        let old = format!("snapshots/.unet.{}.tmp", std::process::id());
        fs::create_dir(at("snapshots")).unwrap();
        symlink(at("mine"), at(&old)).unwrap();
        link(&at("blobs/etag"), &at("snapshots/unet"), 1).unwrap();
        assert_eq!(fs::read(at("snapshots/unet")).unwrap(), b"weights");
        assert_eq!(fs::read(at("mine")).unwrap(), b"mine");
        assert_eq!(fs::read_dir(at("snapshots")).unwrap().count(), 2);
    }

    #[test]
    fn the_layout_is_that_of_the_hubs_python_library() {
        let address = Address::parse(Path::new("hf://stabilityai/sd-turbo@v1.1/vae/a.bin"));
        let shelf = Shelf::new(Path::new("/cache"), &address.unwrap());
        // As `huggingface_hub.file_download` has it: `repo_folder_name`, `_get_pointer_path`, and `.locks` beside it.
        let repo = Path::new("/cache/models--stabilityai--sd-turbo");
        let commit = "b261bac6fd2cf515557d5d0707481eafa0485ec2";
        assert_eq!(shelf.folder, repo);
        assert_eq!(shelf.snapshot(commit), repo.join("snapshots").join(commit));
        let locks = Path::new("/cache/.locks/models--stabilityai--sd-turbo");
        assert_eq!(shelf.locks, locks);
    }
}
