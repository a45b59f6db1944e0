//! All reading goes through one trait: content digests are memoised, and what was read is the watch list.

pub mod output_path;
pub mod write;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indexmap::IndexSet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::base::digest::Digest;
use crate::base::interrupt;
use crate::base::problem::Code;
use crate::base::sync::lock;
use crate::files::write::Access;

/// Reads files for the engine and its nodes.
pub trait Files: Send + Sync {
    /// The content of a file.
    ///
    /// # Errors
    /// As the file system gives them.
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>>;

    /// The first `length` bytes of a file (fewer when it is shorter) and its whole length.
    ///
    /// # Errors
    /// As the file system gives them.
    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)>;

    /// At most `length` bytes of a file from the byte `offset` on: fewer, or none, when the file ends before. By default
    /// cut from the whole content; files that may be large give it without reading the rest.
    ///
    /// # Errors
    /// As the file system gives them.
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        Ok(piece(&self.read(path)?, offset, length).to_vec())
    }

    /// The digest of a file's content, memoised by path, size, modification time and inode.
    ///
    /// # Errors
    /// As the file system gives them.
    fn digest(&self, path: &Path) -> io::Result<Digest>;

    /// Whether there is a regular file.
    fn is_file(&self, path: &Path) -> bool;

    /// Whether there is a folder.
    fn is_dir(&self, path: &Path) -> bool;

    /// What lies in a folder, sorted by path; links are followed. Looking is not reading: none of it is watched.
    ///
    /// # Errors
    /// As the file system gives them; `Unsupported` by default, from files that have no folders to look through.
    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        let _ = folder;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Where what is named so really lies, for those who map a file into memory and for messages.
    fn place(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    /// Looks for a model that is not at its path in the folders that models are kept in, if there are any. Once it
    /// is found all reading below `path` goes there. Nodes that load models call it before they look at the files.
    fn seek(&self, path: &Path) -> Sought {
        let _ = path;
        Sought::default()
    }

    /// What keeps what lies below a path to a hub from being read, if anything does. It is asked when a node has found
    /// that something is missing; by default nothing is ever kept.
    fn withheld(&self, path: &Path) -> Option<Withheld> {
        let _ = path;
        None
    }

    /// The commit that is read where a path leads to a hub; `None` for files of this machine.
    fn commit(&self, path: &Path) -> Option<String> {
        let _ = path;
        None
    }

    /// The SHA-256 digest of a file's content: what hubs and those who publish models name files by. It is made of bytes
    /// that this process read, and never taken from what an earlier one wrote down.
    ///
    /// # Errors
    /// As the file system gives them; `WouldBlock` where the digest is being made in the background and is not known yet.
    fn sha256(&self, path: &Path) -> io::Result<Digest>;

    /// From here on no digest counts that an earlier process wrote down: a file is read in full when its digest is asked
    /// for, once in this process.
    fn doubt(&self);

    /// What tells whether a file or folder is still the one that it was; `None` when these files cannot tell.
    fn stamp(&self, path: &Path) -> Option<FileStamp>;

    /// Writes down what is to be known in the next process, if anything is; nobody misses it when that fails.
    fn flush(&self) {}
}

/// The bytes of a content that [`Files::read_at`] gives: at most `length` from `offset` on.
#[must_use]
pub fn piece(content: &[u8], offset: u64, length: usize) -> &[u8] {
    let start = usize::try_from(offset).map_or(content.len(), |offset| offset.min(content.len()));
    let end = start.saturating_add(length).min(content.len());
    &content[start..end]
}

/// What keeps a model on a hub from being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// What kind of fault it is.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
    /// Whether it only was not fetched yet, which is no fault of the workflow.
    pub later: bool,
}

/// What lies in a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FolderEntry {
    /// Its path, the folder's included.
    pub path: PathBuf,
    /// Its bytes; `None`: it is a folder.
    pub size: Option<u64>,
}

/// Where a model that is not at its path was looked for in vain; nothing when it is there or was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sought {
    /// The folders that were looked through.
    pub places: Vec<PathBuf>,
    /// Whether a lock says what the model holds, so that its name alone is not enough.
    pub locked: bool,
}

impl Sought {
    /// What to say to somebody whose model is nowhere: the places, or that there could be some.
    #[must_use]
    pub fn help(&self) -> String {
        if self.places.is_empty() {
            return "folders that models are kept in may be named in RETOUCH_MODELS".to_owned();
        }
        let places: Vec<String> = self
            .places
            .iter()
            .map(|place| place.display().to_string())
            .collect();
        let what = if self.locked {
            ", by the content that the lock file says"
        } else {
            ""
        };
        format!(
            "it was also looked for below {}{what} (RETOUCH_MODELS)",
            places.join(", ")
        )
    }
}

/// What is at a path in place of a regular file, in words.
fn kind_of(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a named pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if kind.is_dir() {
        "a folder"
    } else if kind.is_symlink() {
        "a link"
    } else {
        "something else"
    }
}

/// Whether what is there is a regular file, which alone can be read without waiting for anybody.
pub(crate) fn regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let kind = if metadata.is_dir() {
        io::ErrorKind::IsADirectory
    } else {
        io::ErrorKind::InvalidInput
    };
    let message = format!("it is {}, not a regular file", kind_of(metadata));
    Err(io::Error::new(kind, message))
}

/// Opens a file to be read. A named pipe, a socket, a device or a folder is an error: reading it could wait forever or
/// have no end.
///
/// # Errors
/// As the file system gives them, and of what is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened, as opening some devices does something.
    regular(&fs::metadata(path)?)?;
    let mut options = File::options();
    options.read(true);
    // What took the file's place meanwhile must not keep this waiting. On a regular file the flag changes nothing.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let file = options.open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// The content of a file of at most `most` bytes.
///
/// # Errors
/// As [`open`]; `FileTooLarge` of a file that has more.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    let too_large = || {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {most} bytes"),
        )
    };
    if length > most {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    // It may grow meanwhile.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_large());
    }
    Ok(bytes)
}

/// As [`read`], of a text in UTF-8.
///
/// # Errors
/// As [`read`]; `InvalidData` of what is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Why there is nothing to read at a path where [`Files::is_file`] finds no file, in words.
#[must_use]
pub fn no_file(path: &Path, files: &dyn Files) -> String {
    match files.read_head(path, 0) {
        // A pipe, say: something is there.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            format!("`{}` cannot be read: {error}", path.display())
        }
        _ => format!("there is no file `{}`", path.display()),
    }
}

/// What the file of known digests says under `schema`.
const MEMO: &str = "retouch-digests/2";
/// The longest file of known digests: [`MOST_KNOWN`] of them take less than half of it.
const MEMO_BYTES: u64 = 8 << 20;

/// The digests that outlive the process.
#[derive(Serialize, Deserialize)]
struct Memo {
    schema: String,
    known: Vec<Checked>,
}

/// A digest that outlives the process, with a checksum: a disk or an editor that changes one digit of it must not make
/// another file of a file.
#[derive(Serialize, Deserialize)]
struct Checked {
    #[serde(flatten)]
    known: Known,
    check: String,
}

impl Checked {
    fn new(known: Known) -> Option<Self> {
        let check = known.check()?;
        Some(Self { known, check })
    }

    fn believed(self) -> Option<Known> {
        (self.known.check()? == self.check).then_some(self.known)
    }
}

/// The digests that an earlier process wrote down. They are believed only from a file that nobody else could write:
/// whoever can say what a file's digest is can pass one model for another.
fn remembered(memo: &Path) -> Option<Vec<Known>> {
    let file = open(memo).ok()?;
    if !is_own(&file.metadata().ok()?) {
        tracing::warn!(
            "{} is of another user, or others may write it: it is not used",
            memo.display()
        );
        return None;
    }
    let mut text = Vec::new();
    file.take(MEMO_BYTES).read_to_end(&mut text).ok()?;
    let memo: Memo = serde_json::from_slice(&text).ok()?;
    let known = memo.known.into_iter().filter_map(Checked::believed);
    (memo.schema == MEMO).then(|| known.collect())
}

/// Whether a file is this user's, and nobody else may write it. Where files have no owners it is.
fn is_own(metadata: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // SAFETY: the call has no arguments and cannot fail.
        let user = unsafe { libc::geteuid() };
        metadata.uid() == user && metadata.mode() & 0o022 == 0
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        true
    }
}

/// A digest that outlives the process.
#[derive(Serialize, Deserialize)]
struct Known {
    /// A digest of the path: a folder that is shared names no places.
    place: String,
    size: u64,
    seconds: u64,
    nanoseconds: u32,
    inode: (u64, u64),
    changed: (i64, i64),
    digest: String,
}

impl Known {
    /// A checksum of all fields.
    fn check(&self) -> Option<String> {
        let text = serde_json::to_vec(self).ok()?;
        let mut hasher = blake3::Hasher::new_derive_key("retouch 2026 known digests");
        hasher.update(&text);
        Some(hasher.finalize().to_hex()[..32].to_owned())
    }
}

/// Smaller files are digested in no time.
const LARGE: u64 = 1 << 20;
/// A file that was changed so shortly ago may change again within the resolution of its time.
const SETTLED: Duration = Duration::from_secs(2);
/// Digests that are written down at most.
const MOST_KNOWN: usize = 10_000;
/// The largest file that is read into memory as a whole; what may be larger (weights) is read in parts.
const MOST_READ: u64 = 2 << 30;

/// What tells whether a file is still the one whose digest is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: Option<SystemTime>,
    inode: (u64, u64),
    /// When the inode itself changed, which no program sets: a file that was replaced in place under its old time.
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let (inode, changed) = {
            use std::os::unix::fs::MetadataExt;
            (
                (metadata.dev(), metadata.ino()),
                (metadata.ctime(), metadata.ctime_nsec()),
            )
        };
        #[cfg(not(unix))]
        let (inode, changed) = ((0, 0), (0, 0));
        Self {
            size: metadata.len(),
            modified: metadata.modified().ok(),
            inode,
            changed,
        }
    }
}

/// What tells whether a file or folder is still the one that it was, or that there still is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp(Seen);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Missing,
    There(Stamp),
    /// What no file is.
    Never,
}

impl FileStamp {
    /// A stamp that no file has.
    pub(crate) fn never() -> Self {
        Self(Seen::Never)
    }
}

/// The digest of a file, as long as it is the file that it was.
#[derive(Debug)]
struct Kept {
    stamp: Stamp,
    digest: Digest,
    /// Whether an earlier process wrote it down.
    remembered: bool,
    /// Whether this process may write it down.
    lasts: bool,
}

/// The kinds of digest that are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Blake3,
    Sha256,
}

/// The files of the disk.
#[derive(Debug, Default)]
pub struct DiskFiles {
    memo: Option<PathBuf>,
    /// By a digest of the absolute path.
    digests: Mutex<HashMap<Digest, Kept>>,
    seen: Mutex<IndexSet<PathBuf>>,
    doubts: AtomicBool,
    digested: AtomicU64,
}

impl DiskFiles {
    /// Starts with nothing read.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts with the digests of large files that an earlier process wrote down in `memo`; [`Files::flush`] writes them.
    #[must_use]
    pub fn with_memo(memo: Option<PathBuf>) -> Self {
        let known = memo.as_deref().and_then(remembered).unwrap_or_default();
        let digests = known
            .into_iter()
            .filter_map(|known| {
                let since = Duration::from_secs(known.seconds)
                    .checked_add(Duration::from_nanos(known.nanoseconds.into()))?;
                let stamp = Stamp {
                    size: known.size,
                    modified: Some(UNIX_EPOCH.checked_add(since)?),
                    inode: known.inode,
                    changed: known.changed,
                };
                let place = blake3::Hash::from_hex(&known.place).ok()?;
                let digest = blake3::Hash::from_hex(&known.digest).ok()?;
                let kept = Kept {
                    stamp,
                    digest: *digest.as_bytes(),
                    remembered: true,
                    lasts: true,
                };
                Some((*place.as_bytes(), kept))
            })
            .collect();
        Self {
            memo,
            digests: Mutex::new(digests),
            ..Self::default()
        }
    }

    /// The files that were read, in order: what to watch.
    #[must_use]
    pub fn read_so_far(&self) -> Vec<PathBuf> {
        lock(&self.seen).iter().cloned().collect()
    }

    /// Forgets what was read; digests stay known.
    pub fn forget_reads(&self) {
        lock(&self.seen).clear();
    }

    /// The bytes that were read for digests so far.
    #[must_use]
    pub fn digested(&self) -> u64 {
        self.digested.load(Ordering::Relaxed)
    }

    /// Where a digest of a file is kept: under its path and the kind of digest.
    fn place_of_digest(path: &Path, kind: Kind) -> Digest {
        let place = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut hasher = blake3::Hasher::new();
        hasher.update(place.as_os_str().as_encoded_bytes());
        // No path holds a zero byte: the place of one kind of digest is never that of the other.
        hasher.update(match kind {
            Kind::Blake3 => b"",
            Kind::Sha256 => b"\0sha256",
        });
        *hasher.finalize().as_bytes()
    }

    /// A digest that is made when it is not known.
    fn memoised(
        &self,
        path: &Path,
        kind: Kind,
        make: impl FnOnce(&mut File) -> io::Result<Digest>,
    ) -> io::Result<Digest> {
        self.saw(path);
        let mut file = open(path)?;
        let stamp = Stamp::of(&file.metadata()?);
        let place = Self::place_of_digest(path, kind);
        let doubts = self.doubts.load(Ordering::Relaxed);
        if let Some(kept) = lock(&self.digests).get(&place)
            && kept.stamp == stamp
            && !(kept.remembered && doubts)
        {
            return Ok(kept.digest);
        }
        let digest = make(&mut file)?;
        self.digested.fetch_add(stamp.size, Ordering::Relaxed);
        // A file that was written meanwhile is read again the next time.
        if Stamp::of(&file.metadata()?) == stamp {
            let kept = Kept {
                stamp,
                digest,
                remembered: false,
                // What is pinned is compared with what is read, not with what was written down of it.
                lasts: kind == Kind::Blake3,
            };
            lock(&self.digests).insert(place, kept);
        }
        Ok(digest)
    }

    fn saw(&self, path: &Path) {
        let mut seen = lock(&self.seen);
        if !seen.contains(path) {
            seen.insert(path.to_owned());
        }
    }
}

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;
/// From this size on, what is read next is read while `take` is at work.
const LONG: u64 = 8 << 20;

/// Hands a file's content on piece by piece, until the work of this thread is cancelled.
fn pieces(file: &mut File, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    if file.metadata()?.len() < LONG {
        let mut buffer = vec![0; PIECE];
        loop {
            interrupt::check()?;
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                count => take(&buffer[..count]),
            }
        }
    }
    std::thread::scope(|scope| {
        // Two buffers go round: one is filled while the other is taken from.
        let (filled, to_take) = sync_channel::<io::Result<(Vec<u8>, usize)>>(2);
        let (emptied, to_fill) = sync_channel(2);
        for _ in 0..2 {
            let _ = emptied.send(vec![0; PIECE]); // there is room for two
        }
        scope.spawn(move || {
            for mut buffer in to_fill {
                let piece = match file.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => Ok((buffer, count)),
                    Err(error) => Err(error),
                };
                let goes_on = piece.is_ok();
                if filled.send(piece).is_err() || !goes_on {
                    return;
                }
            }
        });
        for piece in to_take {
            interrupt::check()?;
            let (buffer, count) = piece?;
            take(&buffer[..count]);
            let _ = emptied.send(buffer); // whoever fills may have ended
        }
        Ok(())
    })
}

impl Files for DiskFiles {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        self.saw(path);
        read(path, MOST_READ).map(Arc::from)
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        self.saw(path);
        let file = open(path)?;
        let whole = file.metadata()?.len();
        let mut head = Vec::new();
        file.take(length as u64).read_to_end(&mut head)?;
        Ok((head, whole))
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.saw(path);
        let mut file = open(path)?;
        let mut bytes = Vec::new();
        // File systems differ in how far beyond the end one may seek.
        if offset < file.metadata()?.len() {
            file.seek(SeekFrom::Start(offset))?;
            file.take(length as u64).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        self.memoised(path, Kind::Blake3, |file| {
            let mut hasher = blake3::Hasher::new();
            pieces(file, |piece| {
                hasher.update(piece);
            })?;
            Ok(*hasher.finalize().as_bytes())
        })
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        self.memoised(path, Kind::Sha256, |file| {
            let mut hasher = Sha256::new();
            pieces(file, |piece| hasher.update(piece))?;
            Ok(hasher.finalize().into())
        })
    }

    fn doubt(&self) {
        self.doubts.store(true, Ordering::Relaxed);
    }

    fn is_file(&self, path: &Path) -> bool {
        let there = path.is_file();
        // A file that is missing is watched too: it may come.
        self.saw(path);
        there
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            // A link that leads nowhere, and what is neither a file nor a folder, is nothing to read.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() || metadata.is_file() {
                let size = metadata.is_file().then_some(metadata.len());
                entries.push(FolderEntry { path, size });
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        Some(FileStamp(match fs::metadata(path) {
            Ok(metadata) => Seen::There(Stamp::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Missing,
            Err(_) => return None,
        }))
    }

    fn flush(&self) {
        let Some(memo) = &self.memo else {
            return;
        };
        let now = SystemTime::now();
        let known: Vec<Checked> = lock(&self.digests)
            .iter()
            .filter(|(_, kept)| kept.lasts)
            .filter_map(|(place, kept)| {
                let (stamp, digest) = (&kept.stamp, &kept.digest);
                let modified = stamp.modified?;
                let settled = now.duration_since(modified).ok()? >= SETTLED;
                let since = modified.duration_since(UNIX_EPOCH).ok()?;
                (settled && stamp.size >= LARGE).then(|| Known {
                    place: blake3::Hash::from_bytes(*place).to_hex().to_string(),
                    size: stamp.size,
                    seconds: since.as_secs(),
                    nanoseconds: since.subsec_nanos(),
                    inode: stamp.inode,
                    changed: stamp.changed,
                    digest: blake3::Hash::from_bytes(*digest).to_hex().to_string(),
                })
            })
            .filter_map(Checked::new)
            .take(MOST_KNOWN)
            .collect();
        if known.is_empty() {
            return;
        }
        let known = Memo {
            schema: MEMO.to_owned(),
            known,
        };
        // Nobody misses it: the next process hashes anew.
        if let Ok(text) = serde_json::to_vec(&known) {
            let _ = write::replace(memo, &text, Access::Private);
        }
    }
}

/// Files in memory, for tests; folders are what lies before a file's name.
#[derive(Debug, Default)]
pub struct MemoryFiles {
    files: Mutex<BTreeMap<PathBuf, Arc<[u8]>>>,
}

impl MemoryFiles {
    /// Starts with no files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file, or replaces it.
    pub fn insert(&self, path: impl Into<PathBuf>, content: impl AsRef<[u8]>) {
        let path = crate::base::paths::normal(&path.into());
        lock(&self.files).insert(path, Arc::from(content.as_ref()));
    }

    /// Adds a file to what is built up.
    #[must_use]
    pub fn with(self, path: impl Into<PathBuf>, content: impl AsRef<[u8]>) -> Self {
        self.insert(path, content);
        self
    }
}

impl Files for MemoryFiles {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        lock(&self.files)
            .get(&crate::base::paths::normal(path))
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such file"))
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        let content = self.read(path)?;
        let head = content[..length.min(content.len())].to_vec();
        Ok((head, content.len() as u64))
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        self.read(path)
            .map(|content| *blake3::hash(&content).as_bytes())
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        Ok(Sha256::digest(&*self.read(path)?).into())
    }

    fn doubt(&self) {}

    fn stamp(&self, _: &Path) -> Option<FileStamp> {
        None // a digest costs nothing here
    }

    fn is_file(&self, path: &Path) -> bool {
        self.read(path).is_ok()
    }

    fn is_dir(&self, path: &Path) -> bool {
        let folder = crate::base::paths::normal(path);
        lock(&self.files)
            .keys()
            .any(|file| file != &folder && file.starts_with(&folder))
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        let folder = crate::base::paths::normal(folder);
        let mut entries = Vec::new();
        for (file, content) in &*lock(&self.files) {
            let Ok(rest) = file.strip_prefix(&folder) else {
                continue;
            };
            let mut parts = rest.components();
            let Some(first) = parts.next() else {
                continue;
            };
            let size = parts.next().is_none().then_some(content.len() as u64);
            entries.push(FolderEntry {
                path: folder.join(first),
                size,
            });
        }
        entries.sort();
        entries.dedup();
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::redirect::RedirectedFiles;

    #[test]
    fn a_piece_of_a_file_is_the_same_from_the_disk_from_memory_and_from_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (folder.path().join("a"), folder.path().join("kept/a"));
        let content: Vec<u8> = (0..=255).collect();
        fs::create_dir(folder.path().join("kept")).unwrap();
        fs::write(&there, &content).unwrap();
        let disk = Arc::new(DiskFiles::new());
        let inner = Arc::clone(&disk) as Arc<dyn Files>;
        let redirected = RedirectedFiles::new(inner, vec![folder.path().join("kept")]);
        assert_eq!(redirected.seek(&here), Sought::default());
        let memory = MemoryFiles::new().with(&here, &content);
        for (offset, length) in [
            (0, 3),
            (250, 6),
            (250, 100),
            (256, 1),
            (u64::MAX / 2, 8),
            (7, 0),
        ] {
            let from = usize::try_from(offset).unwrap().min(256);
            let expected = &content[from..(from + length).min(256)];
            assert_eq!(piece(&content, offset, length), expected);
            assert_eq!(disk.read_at(&there, offset, length).unwrap(), expected);
            assert_eq!(memory.read_at(&here, offset, length).unwrap(), expected);
            assert_eq!(redirected.read_at(&here, offset, length).unwrap(), expected);
        }
        // What was read so is watched.
        assert!(disk.read_so_far().contains(&there));
        // A change is seen where the file is, and a file that comes to its own path.
        let stamp = redirected.stamp(&here);
        assert!(stamp.is_some() && stamp == disk.stamp(&there));
        fs::write(&there, "longer or shorter").unwrap();
        assert_ne!(redirected.stamp(&here), stamp);
        fs::write(&here, &content).unwrap();
        assert_eq!(redirected.stamp(&here), disk.stamp(&here));
        fs::remove_file(&here).unwrap();
        assert!(disk.read_at(&here, 0, 1).is_err());
    }

    #[test]
    fn a_long_file_has_the_digests_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        // Around the size from which on reading and hashing go side by side, and off the pieces' ends.
        for length in [LONG as usize - 1, LONG as usize, (9 << 20) + 123] {
            let bytes: Vec<u8> = (0..length).map(|i| ((i * i) >> 7) as u8).collect();
            fs::write(&file, &bytes).unwrap();
            let files = DiskFiles::new();
            let expected = *blake3::hash(&bytes).as_bytes();
            assert_eq!(files.digest(&file).unwrap(), expected, "{length}");
            let expected: Digest = Sha256::digest(&bytes).into();
            assert_eq!(files.sha256(&file).unwrap(), expected, "{length}");
        }
    }

    /// Files of `length` equal bytes that were written a minute ago, so that their times have settled.
    fn settled(file: &Path, byte: u8, length: usize) -> Digest {
        fs::write(file, vec![byte; length]).unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        let opened = File::options().write(true).open(file).unwrap();
        opened.set_modified(old).unwrap();
        *blake3::hash(&vec![byte; length]).as_bytes()
    }

    fn with_memo(memo: &Path) -> DiskFiles {
        DiskFiles::with_memo(Some(memo.to_owned()))
    }

    #[test]
    fn digests_of_large_files_outlive_the_process_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memo) = (folder.path().join("weights"), folder.path().join("memo"));
        let first = settled(&file, 1, 1 << 20);
        let files = with_memo(&memo);
        assert_eq!(files.digest(&file).unwrap(), first);
        assert_eq!(files.digested(), 1 << 20);
        files.flush();
        let text = fs::read_to_string(&memo).unwrap();
        let hex = |digest: &Digest| blake3::Hash::from_bytes(*digest).to_hex().to_string();
        assert!(text.contains(&hex(&first)));
        let files = with_memo(&memo);
        assert_eq!(files.digest(&file).unwrap(), first);
        assert_eq!(files.digested(), 0, "it was written down");
        // Another size or time is another file.
        let length = (1 << 20) + 1;
        fs::write(&file, vec![2; length]).unwrap();
        let second = *blake3::hash(&vec![2; length]).as_bytes();
        assert_eq!(files.digest(&file).unwrap(), second);
        // What was written just now may change again within its time's resolution: it is not written down.
        files.flush();
        let now = fs::read_to_string(&memo).unwrap_or_default();
        assert!(!now.contains(&hex(&second)));
        // A memo that is no memo is none, nor is one of before there were checksums.
        let known = text.split_once("\"known\":").unwrap().1;
        let old = known.strip_suffix('}').unwrap();
        let unsigned = old.split(",\"check\"").next().unwrap().to_owned() + "}]";
        assert!(serde_json::from_str::<Vec<Known>>(&unsigned).is_ok());
        let far = text.replace("\"seconds\":", "\"seconds\":1844674407370955161");
        for text in ["{", &unsigned, &far, ""] {
            fs::write(&memo, text).unwrap();
            let files = with_memo(&memo);
            assert_eq!(files.digest(&file).unwrap(), second, "{text}");
            assert_eq!(files.digested(), length as u64, "{text}");
        }
    }

    #[test]
    fn no_change_of_one_byte_of_the_known_digests_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let memo = folder.path().join("memo");
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let digests = [settled(&one, 1, 1 << 20), settled(&two, 2, 1 << 20)];
        let files = with_memo(&memo);
        for (file, digest) in [&one, &two].into_iter().zip(&digests) {
            assert_eq!(files.digest(file).unwrap(), *digest);
        }
        files.flush();
        let text = fs::read(&memo).unwrap();
        let mut refused = 0;
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] = match changed[at] {
                b'9' => b'0',
                b'f' => b'a',
                digit @ (b'0'..=b'8' | b'a'..=b'e') => digit + 1,
                other => other ^ 1,
            };
            fs::write(&memo, &changed).unwrap();
            // Whatever is taken from it is one of the two digests, at its own place.
            let files = with_memo(&memo);
            let known = lock(&files.digests);
            refused += 2 - known.len();
            for (file, digest) in [&one, &two].into_iter().zip(&digests) {
                let place = DiskFiles::place_of_digest(file, Kind::Blake3);
                let stamp = Stamp::of(&fs::metadata(file).unwrap());
                let found = known.get(&place);
                assert!(
                    found.is_none_or(|kept| kept.digest == *digest && kept.stamp == stamp),
                    "byte {at}"
                );
            }
            let places = [&one, &two].map(|file| DiskFiles::place_of_digest(file, Kind::Blake3));
            assert!(
                known.keys().all(|place| places.contains(place)),
                "byte {at}"
            );
        }
        assert!(refused >= text.len(), "{refused} of {}", text.len());
    }

    #[test]
    fn what_is_pinned_or_locked_is_read_once_in_each_process() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memo) = (folder.path().join("weights"), folder.path().join("memo"));
        let length = 1u64 << 20;
        let digest = settled(&file, 1, 1 << 20);
        let first = with_memo(&memo);
        first.digest(&file).unwrap();
        let pinned = first.sha256(&file).unwrap();
        first.flush();
        let again = with_memo(&memo);
        assert_eq!(again.digest(&file).unwrap(), digest);
        assert_eq!(again.digested(), 0);
        for _ in 0..3 {
            assert_eq!(again.sha256(&file).unwrap(), pinned);
        }
        assert_eq!(again.digested(), length);
        again.doubt();
        for _ in 0..3 {
            assert_eq!(again.digest(&file).unwrap(), digest);
        }
        assert_eq!(again.digested(), 2 * length);
        // Redirected files doubt what is below them.
        let below = Arc::new(with_memo(&memo));
        let above = RedirectedFiles::new(Arc::clone(&below) as Arc<dyn Files>, Vec::new());
        above.doubt();
        assert_eq!(above.digest(&file).unwrap(), digest);
        assert_eq!(below.digested(), length);
    }

    #[cfg(unix)]
    #[test]
    fn known_digests_that_others_could_have_written_are_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (file, memo) = (folder.path().join("weights"), folder.path().join("memo"));
        settled(&file, 1, 1 << 20);
        let files = with_memo(&memo);
        files.digest(&file).unwrap();
        files.flush();
        for (mode, believed) in [(0o600, true), (0o644, true), (0o664, false), (0o602, false)] {
            fs::set_permissions(&memo, fs::Permissions::from_mode(mode)).unwrap();
            let files = with_memo(&memo);
            files.digest(&file).unwrap();
            assert_eq!(files.digested() == 0, believed, "{mode:o}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_read_and_nothing_else_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, socket) = (folder.path().join("pipe"), folder.path().join("socket"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        let files = DiskFiles::new();
        for (path, kind) in [
            (pipe.as_path(), "a named pipe"),
            (&link, "a named pipe"),
            (&socket, "a socket"),
            (Path::new("/dev/zero"), "a device"),
            (folder.path(), "a folder"),
        ] {
            let expected = format!("it is {kind}, not a regular file");
            let said = |error: io::Error| error.to_string();
            assert_eq!(open(path).map(|_| ()).map_err(said), Err(expected.clone()));
            assert_eq!(read(path, 9).map_err(said), Err(expected.clone()));
            assert_eq!(
                files.read(path).map(|_| ()).map_err(said),
                Err(expected.clone())
            );
            assert_eq!(
                files.read_head(path, 9).map_err(said),
                Err(expected.clone())
            );
            assert_eq!(
                files.read_at(path, 0, 9).map_err(said),
                Err(expected.clone())
            );
            assert_eq!(files.digest(path).map_err(said), Err(expected.clone()));
            assert_eq!(files.sha256(path).map_err(said), Err(expected));
        }
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "ab\u{fc}").unwrap();
        assert_eq!(read(&file, 4).unwrap(), "ab\u{fc}".as_bytes());
        assert_eq!(read_text(&file, 4).unwrap(), "ab\u{fc}");
        let error = read(&file, 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        fs::write(&file, [0xff]).unwrap();
        assert_eq!(
            read_text(&file, 4).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
