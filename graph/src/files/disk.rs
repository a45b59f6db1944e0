//! The files of the disk, their digests memoised.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use indexmap::IndexSet;
use sha2::{Digest as _, Sha256};

use crate::base::digest::Digest;
use crate::base::sync::lock;
use crate::files::memo::{self, KeptDigest};
use crate::files::pieces::pieces;
use crate::files::read::{open, read};
use crate::files::stamp::{FileIdentity, FileStamp};
use crate::files::traits::{Files, FolderEntry, LocalFiles};

/// The largest file that is read into memory as a whole; what may be larger (weights) is read in parts.
const MOST_READ: u64 = 2 << 30;

/// The kinds of digest that are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DigestKind {
    Blake3,
    Sha256,
}

/// The files of the disk.
#[derive(Debug, Default)]
pub struct DiskFiles {
    memo: Option<PathBuf>,
    /// By a digest of the absolute path.
    digests: Mutex<HashMap<Digest, KeptDigest>>,
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

    /// Starts with the digests of large files that an earlier process stored in `memo`; [`Files::flush`] stores them.
    #[must_use]
    pub fn with_memo(memo: Option<PathBuf>) -> Self {
        let digests = memo.as_deref().map(memo::load).unwrap_or_default();
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

    /// The key that a digest of a file is kept under: its path and the kind of digest.
    fn place_of_digest(path: &Path, kind: DigestKind) -> Digest {
        let place = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut hasher = blake3::Hasher::new();
        hasher.update(place.as_os_str().as_encoded_bytes());
        // No path holds a zero byte: the place of one kind of digest is never that of the other.
        hasher.update(match kind {
            DigestKind::Blake3 => b"",
            DigestKind::Sha256 => b"\0sha256",
        });
        *hasher.finalize().as_bytes()
    }

    /// A digest, computed unless it is known.
    fn memoised(
        &self,
        path: &Path,
        kind: DigestKind,
        make: impl FnOnce(&mut File) -> io::Result<Digest>,
    ) -> io::Result<Digest> {
        self.saw(path);
        let mut file = open(path)?;
        let stamp = FileIdentity::of(&file.metadata()?);
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
        // A file that was written in the meantime is read again the next time.
        if FileIdentity::of(&file.metadata()?) == stamp {
            let kept = KeptDigest {
                stamp,
                digest,
                remembered: false,
                // A pin is compared with what is read, not with what was stored of it.
                lasts: kind == DigestKind::Blake3,
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
        self.memoised(path, DigestKind::Blake3, |file| {
            let mut hasher = blake3::Hasher::new();
            pieces(file, |piece| {
                hasher.update(piece);
            })?;
            Ok(*hasher.finalize().as_bytes())
        })
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        self.memoised(path, DigestKind::Sha256, |file| {
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
        // A missing file is watched too: it may appear.
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
            // Broken links, and what is neither a file nor a folder, cannot be read.
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
        FileStamp::of(path)
    }

    fn flush(&self) {
        if let Some(memo) = &self.memo {
            memo::store(memo, &lock(&self.digests));
        }
    }
}

impl LocalFiles for DiskFiles {}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::files::pieces::LONG;

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
        assert_eq!(files.digested(), 0, "it was stored");
        // Another size or time is another file.
        let length = (1 << 20) + 1;
        fs::write(&file, vec![2; length]).unwrap();
        let second = *blake3::hash(&vec![2; length]).as_bytes();
        assert_eq!(files.digest(&file).unwrap(), second);
        // A file written just now may change again within the resolution of its time: it is not stored.
        files.flush();
        let now = fs::read_to_string(&memo).unwrap_or_default();
        assert!(!now.contains(&hex(&second)));
        // A damaged memo counts as empty, and so does one from before there were checksums.
        let known = text.split_once("\"known\":").unwrap().1;
        let old = known.strip_suffix('}').unwrap();
        let unsigned = old.split(",\"check\"").next().unwrap().to_owned() + "}]";
        assert!(serde_json::from_str::<Vec<serde_json::Value>>(&unsigned).is_ok());
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
                let place = DiskFiles::place_of_digest(file, DigestKind::Blake3);
                let stamp = FileIdentity::of(&fs::metadata(file).unwrap());
                let found = known.get(&place);
                assert!(
                    found.is_none_or(|kept| kept.digest == *digest && kept.stamp == stamp),
                    "byte {at}"
                );
            }
            let places =
                [&one, &two].map(|file| DiskFiles::place_of_digest(file, DigestKind::Blake3));
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
    }

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
}
