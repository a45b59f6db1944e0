//! What a disk cache knows of its folder without reading entries.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::base::key::Key;
use crate::cache::host::Worth;

/// After such a time without use an entry is worth half.
const HALF_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[derive(Debug, Default)]
pub(super) struct State {
    /// What the folder holds as far as is known; nothing before the first scan.
    pub(super) index: HashMap<Key, Indexed>,
    pub(super) scanned: bool,
    /// The sum over the index.
    pub(super) bytes: u64,
    /// The bytes of entries that are being written.
    pub(super) reserved: u64,
    /// The bytes that were written since the last scan.
    pub(super) written: u64,
    /// A write failed for another reason than a full disk: no other is tried.
    pub(super) unwritable: bool,
    /// The disk is full, and the user was warned.
    pub(super) full: bool,
    /// The disk stayed full although entries were evicted: no more are.
    pub(super) stays_full: bool,
    /// A read failed, and a warning was given.
    pub(super) unreadable: bool,
    /// Damaged entries that cannot be removed, for which a warning was given.
    pub(super) stuck: HashSet<Key>,
    pub(super) warnings: Vec<String>,
    /// Entries that this process wrote, or read and found whole.
    pub(super) sound: HashSet<Key>,
}

/// What is known of an entry without its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Indexed {
    pub(super) bytes: u64,
    pub(super) used: SystemTime,
    /// Read from the header when something must be evicted.
    pub(super) seconds: Option<f64>,
}

impl State {
    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.index.remove(key) {
            self.bytes -= entry.bytes;
        }
    }

    pub(super) fn learn(&mut self, key: Key, entry: Indexed) {
        self.forget(&key);
        self.bytes += entry.bytes;
        self.index.insert(key, entry);
    }
}

impl Indexed {
    pub(super) fn worth(&self, seconds: f64, now: SystemTime) -> Worth {
        // A time that is yet to come is now: clocks differ.
        let age = now.duration_since(self.used).unwrap_or_default();
        let halvings = age.as_secs_f64() / HALF_LIFE.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a worth need not be exact")]
        let bytes = self.bytes.max(1) as f64;
        Worth(seconds.max(0.0) / bytes * (-halvings).exp2())
    }
}

/// What a folder holds; empty for a folder that does not exist; what vanishes in the meantime is left out.
pub(super) fn list(folder: &Path) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut found = Vec::new();
    let listing = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        listing => listing?,
    };
    for entry in listing {
        let entry = entry?;
        match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            metadata => found.push((entry.path(), metadata?)),
        }
    }
    Ok(found)
}

/// Removes a file; `false` when it is not there.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
