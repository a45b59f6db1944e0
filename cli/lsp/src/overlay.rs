//! The files as the editor has them: open documents over the disk.

use std::collections::{HashMap, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use retouch_graph::files::piece;
use retouch_graph::paths::normal;
use retouch_graph::{Digest, DiskFiles, FileStamp, Files, MemoryFiles};

/// Open documents over the disk; what is looked at is written down, so that it is known what a change concerns.
#[derive(Debug, Default)]
pub struct Overlay {
    disk: Arc<DiskFiles>,
    open: Mutex<HashMap<PathBuf, Arc<[u8]>>>,
    seen: Mutex<HashSet<PathBuf>>,
    pinned: Arc<Mutex<HashMap<PathBuf, Pinned>>>,
    /// Where large files are handed to that pins need read; without it they are read at once.
    reader: Option<Mutex<mpsc::Sender<ToRead>>>,
}

/// A large file whose SHA-256 digest a workflow pins.
#[derive(Debug)]
enum Pinned {
    /// It is being read.
    Reading,
    /// It was read while it had this stamp.
    Read(FileStamp, Result<Digest, (io::ErrorKind, String)>),
}

/// A file that is to be read, and its stamp before.
#[derive(Debug)]
struct ToRead {
    path: PathBuf,
    stamp: FileStamp,
}

/// A smaller file is read at once: that is no wait that anybody would notice.
const LARGE: u64 = 4 << 20;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Overlay {
    /// An overlay that does not wait for the digests of large files: they are made by a thread of their own, one after the
    /// other, and `done` is called with each file that was read.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn reading_aside(done: impl Fn(PathBuf) + Send + 'static) -> io::Result<Self> {
        Self::reading_with(DiskFiles::sha256, done)
    }

    fn reading_with(
        read: impl Fn(&DiskFiles, &Path) -> io::Result<Digest> + Send + 'static,
        done: impl Fn(PathBuf) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, files) = mpsc::channel::<ToRead>();
        let overlay = Self {
            reader: Some(Mutex::new(sender)),
            ..Self::default()
        };
        let (disk, pinned) = (Arc::clone(&overlay.disk), Arc::clone(&overlay.pinned));
        std::thread::Builder::new()
            .name("digests".to_owned())
            .spawn(move || {
                for ToRead { path, stamp } in files {
                    // What panics must not leave the file as one that is being read, nor end the thread.
                    let digest = catch_unwind(AssertUnwindSafe(|| read(&disk, &path)));
                    let digest = match digest {
                        Ok(digest) => digest.map_err(|error| (error.kind(), error.to_string())),
                        Err(_) => Err((io::ErrorKind::Other, "reading it panicked".to_owned())),
                    };
                    lock(&pinned).insert(path.clone(), Pinned::Read(stamp, digest));
                    done(path);
                }
            })?;
        Ok(overlay)
    }

    /// The bytes that were read from the disk for digests.
    #[cfg(test)]
    pub fn digested(&self) -> u64 {
        self.disk.digested()
    }

    /// The digest of a file on the disk, as far as it is known.
    fn pinned(&self, path: &Path) -> io::Result<Digest> {
        let (Some(reader), Some(stamp)) = (&self.reader, self.disk.stamp(path)) else {
            return self.disk.sha256(path);
        };
        let later = || {
            Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "it is being read",
            ))
        };
        let mut pinned = lock(&self.pinned);
        match pinned.get(path) {
            Some(Pinned::Reading) => return later(),
            Some(Pinned::Read(then, digest)) if *then == stamp => {
                return digest
                    .clone()
                    .map_err(|(kind, message)| io::Error::new(kind, message));
            }
            _ => {}
        }
        if self.disk.read_head(path, 0)?.1 < LARGE {
            return self.disk.sha256(path);
        }
        pinned.insert(path.to_owned(), Pinned::Reading);
        drop(pinned);
        let to_read = ToRead {
            path: path.to_owned(),
            stamp,
        };
        match lock(reader).send(to_read) {
            Ok(()) => later(),
            // The thread is gone, which a panic of `done` alone explains.
            Err(_) => {
                lock(&self.pinned).remove(path);
                self.disk.sha256(path)
            }
        }
    }

    /// Sets the text of an open document.
    pub fn set(&self, path: &Path, text: &str) {
        lock(&self.open).insert(path.to_owned(), Arc::from(text.as_bytes()));
    }

    /// Gives the file back to the disk.
    pub fn close(&self, path: &Path) {
        lock(&self.open).remove(path);
    }

    /// The files that were looked at since the last call.
    pub fn take_seen(&self) -> HashSet<PathBuf> {
        std::mem::take(&mut lock(&self.seen))
    }

    fn opened(&self, path: &Path) -> Option<Arc<[u8]>> {
        let path = normal(path);
        let open = lock(&self.open).get(&path).cloned();
        lock(&self.seen).insert(path);
        open
    }
}

impl Files for Overlay {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        self.opened(path).map_or_else(|| self.disk.read(path), Ok)
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        match self.opened(path) {
            Some(content) => Ok((
                content[..length.min(content.len())].to_vec(),
                content.len() as u64,
            )),
            None => self.disk.read_head(path, length),
        }
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        match self.opened(path) {
            Some(content) => Ok(piece(&content, offset, length).to_vec()),
            None => self.disk.read_at(path, offset, length),
        }
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        match self.opened(path) {
            Some(content) => MemoryFiles::new().with(path, content).digest(path),
            None => self.disk.digest(path),
        }
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        match self.opened(path) {
            Some(content) => MemoryFiles::new().with(path, content).sha256(path),
            None => self.pinned(path),
        }
    }

    fn doubt(&self) {
        self.disk.doubt();
    }

    fn is_file(&self, path: &Path) -> bool {
        self.opened(path).is_some() || self.disk.is_file(path)
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        match self.opened(path) {
            Some(_) => None,
            None => self.disk.stamp(path),
        }
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.disk.is_dir(path)
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<retouch_graph::FolderEntry>> {
        self.disk.entries(folder)
    }

    fn flush(&self) {
        self.disk.flush();
    }
}

impl retouch_graph::LocalFiles for Overlay {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_whose_reading_panics_has_an_error_and_the_next_one_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (bad, good) = (folder.path().join("bad"), folder.path().join("good"));
        for file in [&bad, &good] {
            std::fs::write(file, vec![1; LARGE as usize]).unwrap();
        }
        let (to, done) = mpsc::channel();
        let panics = bad.clone();
        let overlay = Overlay::reading_with(
            move |disk, path| {
                assert!(path != panics, "the reading");
                disk.sha256(path)
            },
            move |path| to.send(path).unwrap(),
        )
        .unwrap();
        for file in [&bad, &good] {
            let error = overlay.sha256(file).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(done.recv().unwrap(), *file);
        }
        let error = overlay.sha256(&bad).unwrap_err();
        assert_eq!(error.to_string(), "reading it panicked");
        let expected = DiskFiles::new().sha256(&good).unwrap();
        assert_eq!(overlay.sha256(&good).unwrap(), expected);
    }

    #[test]
    fn a_file_is_read_at_once_when_the_thread_that_would_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["one", "two"].map(|name| folder.path().join(name));
        for file in &files {
            std::fs::write(file, vec![1; LARGE as usize]).unwrap();
        }
        let (to, gone) = mpsc::channel::<()>();
        let overlay = Overlay::reading_aside(move |_| {
            let _ = &to; // dropped when the thread ends
            panic!("the server is gone")
        })
        .unwrap();
        assert!(overlay.sha256(&files[0]).is_err());
        assert!(gone.recv().is_err());
        let expected = DiskFiles::new().sha256(&files[1]).unwrap();
        // Not only once: it does not stay as one that is being read.
        let first = overlay.sha256(&files[1]);
        assert!(first.is_ok_and(|digest| digest == expected));
        assert_eq!(overlay.sha256(&files[1]).unwrap(), expected);
    }

    #[test]
    fn a_large_file_is_read_for_its_digest_once_and_aside() {
        let folder = tempfile::tempdir().unwrap();
        let (large, small) = (folder.path().join("large"), folder.path().join("small"));
        let length = LARGE as usize + 1;
        std::fs::write(&large, vec![1; length]).unwrap();
        std::fs::write(&small, "small").unwrap();
        let (to, done) = mpsc::channel();
        let overlay = Overlay::reading_aside(move |path| to.send(path).unwrap()).unwrap();
        let of = |path: &Path| DiskFiles::new().sha256(path).unwrap();
        assert_eq!(overlay.sha256(&small).unwrap(), of(&small));
        // Asked for many times while it is read, as at every key: it is not waited for.
        let before = overlay.digested();
        for _ in 0..20 {
            match overlay.sha256(&large) {
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                Ok(digest) => assert_eq!(digest, of(&large)),
            }
        }
        assert_eq!(done.recv().unwrap(), large);
        for _ in 0..20 {
            assert_eq!(overlay.sha256(&large).unwrap(), of(&large));
        }
        assert_eq!(overlay.digested() - before, length as u64);
        // Another content is another digest.
        std::fs::write(&large, vec![2; length + 1]).unwrap();
        assert!(overlay.sha256(&large).is_err());
        assert_eq!(done.recv().unwrap(), large);
        assert_eq!(overlay.sha256(&large).unwrap(), of(&large));
        // An open document counts as the editor has it.
        overlay.set(&large, "text");
        let text = MemoryFiles::new().with("a", "text");
        assert_eq!(
            overlay.sha256(&large).unwrap(),
            text.sha256(Path::new("a")).unwrap()
        );
        // What cannot be read is reported, and not tried again until it changes.
        let missing = folder.path().join("missing");
        assert_eq!(
            overlay.sha256(&missing).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
