//! All reading goes through one trait: content digests are memoised, and what was read is the watch list.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indexmap::IndexSet;
use serde::{Deserialize, Serialize};

/// The digest of a file's content: BLAKE3, 256 bits.
pub type Digest = [u8; 32];

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

    /// The digest of a file's content, memoised by path, size, modification time and inode.
    ///
    /// # Errors
    /// As the file system gives them.
    fn digest(&self, path: &Path) -> io::Result<Digest>;

    /// Whether there is a regular file.
    fn is_file(&self, path: &Path) -> bool;

    /// Whether there is a folder.
    fn is_dir(&self, path: &Path) -> bool;

    /// Writes down what is to be known in the next process, if anything is; nobody misses it when that fails.
    fn flush(&self) {}
}

/// A lock that a panic elsewhere does not take away: what it guards is whole after every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Smaller files are digested in no time.
const LARGE: u64 = 1 << 20;
/// A file that was changed so shortly ago may change again within the resolution of its time.
const SETTLED: Duration = Duration::from_secs(2);
/// Digests that are written down at most.
const MOST_KNOWN: usize = 10_000;

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

/// The files of the disk.
#[derive(Debug, Default)]
pub struct DiskFiles {
    memo: Option<PathBuf>,
    /// By a digest of the absolute path.
    digests: Mutex<HashMap<Digest, (Stamp, Digest)>>,
    seen: Mutex<IndexSet<PathBuf>>,
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
        let known = memo
            .as_ref()
            .and_then(|memo| fs::read(memo).ok())
            .and_then(|text| serde_json::from_slice::<Vec<Known>>(&text).ok())
            .unwrap_or_default();
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
                Some((*place.as_bytes(), (stamp, *digest.as_bytes())))
            })
            .collect();
        Self {
            memo,
            digests: Mutex::new(digests),
            seen: Mutex::default(),
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

    fn saw(&self, path: &Path) {
        let mut seen = lock(&self.seen);
        if !seen.contains(path) {
            seen.insert(path.to_owned());
        }
    }
}

impl Files for DiskFiles {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        self.saw(path);
        fs::read(path).map(Arc::from)
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        self.saw(path);
        let file = File::open(path)?;
        let whole = file.metadata()?.len();
        let mut head = Vec::new();
        file.take(length as u64).read_to_end(&mut head)?;
        Ok((head, whole))
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        self.saw(path);
        let mut file = File::open(path)?;
        let stamp = Stamp::of(&file.metadata()?);
        let place = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let place = *blake3::hash(place.as_os_str().as_encoded_bytes()).as_bytes();
        if let Some((known, digest)) = lock(&self.digests).get(&place)
            && *known == stamp
        {
            return Ok(*digest);
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        let digest = *hasher.finalize().as_bytes();
        // A file that was written meanwhile is read again the next time.
        if Stamp::of(&file.metadata()?) == stamp {
            lock(&self.digests).insert(place, (stamp, digest));
        }
        Ok(digest)
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

    fn flush(&self) {
        let Some(memo) = &self.memo else {
            return;
        };
        let now = SystemTime::now();
        let known: Vec<Known> = lock(&self.digests)
            .iter()
            .filter_map(|(place, (stamp, digest))| {
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
            .take(MOST_KNOWN)
            .collect();
        if known.is_empty() {
            return;
        }
        let temporary = memo.with_extension(format!("{}.tmp", std::process::id()));
        let written = serde_json::to_vec(&known)
            .map_err(io::Error::other)
            .and_then(|text| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, memo));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
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
        let path = crate::check::normal(&path.into());
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
            .get(&crate::check::normal(path))
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

    fn is_file(&self, path: &Path) -> bool {
        self.read(path).is_ok()
    }

    fn is_dir(&self, path: &Path) -> bool {
        let folder = crate::check::normal(path);
        lock(&self.files)
            .keys()
            .any(|file| file != &folder && file.starts_with(&folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_large_files_outlive_the_process_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memo) = (folder.path().join("weights"), folder.path().join("memo"));
        let old = SystemTime::now() - Duration::from_secs(60);
        let write = |byte: u8| {
            fs::write(&file, vec![byte; 1 << 20]).unwrap();
            File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_modified(old)
                .unwrap();
            *blake3::hash(&vec![byte; 1 << 20]).as_bytes()
        };
        let first = write(1);
        let files = DiskFiles::with_memo(Some(memo.clone()));
        assert_eq!(files.digest(&file).unwrap(), first);
        files.flush();
        // A digest that is written down is believed: it is what tells that the file was not read again.
        let text = fs::read_to_string(&memo).unwrap();
        let hex = |digest: &Digest| blake3::Hash::from_bytes(*digest).to_hex().to_string();
        assert!(text.contains(&hex(&first)));
        let other = [7u8; 32];
        fs::write(&memo, text.replace(&hex(&first), &hex(&other))).unwrap();
        let files = DiskFiles::with_memo(Some(memo.clone()));
        assert_eq!(files.digest(&file).unwrap(), other);
        // Another size or time is another file.
        let second = {
            fs::write(&file, vec![2; (1 << 20) + 1]).unwrap();
            *blake3::hash(&vec![2; (1 << 20) + 1]).as_bytes()
        };
        assert_eq!(files.digest(&file).unwrap(), second);
        // What was written just now may change again within its time's resolution: it is not written down.
        files.flush();
        assert!(!fs::read_to_string(&memo).unwrap().contains(&hex(&second)));
        // A memo that is no memo is none.
        fs::write(&memo, "{").unwrap();
        let files = DiskFiles::with_memo(Some(memo.clone()));
        assert_eq!(files.digest(&file).unwrap(), second);
        let far = text.replace("\"seconds\":", "\"seconds\":1844674407370955161");
        fs::write(&memo, far).unwrap();
        let files = DiskFiles::with_memo(Some(memo));
        assert_eq!(files.digest(&file).unwrap(), second);
    }
}
