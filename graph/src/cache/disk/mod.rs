//! A folder as a cache with a budget in bytes. It outlives the process, and several processes may use it at once.
//!
//! # Format
//! The entry of a key lies in `v1/xx/<key>` below the cache's folder, where `<key>` is its 64 hexadecimal digits and
//! `xx` the first two of them. What is being written lies in `v1/tmp` under a random name until it is whole (see
//! [`crate::files::write`]). Folders and files are for their user alone: values of a run may be private. An entry is
//!
//! ```text
//! magic: "retouch1" | length of header: u32, little endian | header: JSON | values | digest: 32 bytes
//! ```
//!
//! The header is `{"key": "<64 digits>", "seconds": 1.5, "values": [{"port": "out", "type": "latent", "bytes": 16}]}`:
//! the key, the seconds that the outputs took to make, and for each value its output port, the name of its type and the
//! length of what [`Payload::to_disk`](crate::Payload::to_disk) gave for it. These bytes follow one another in the
//! order of the header. The digest is the BLAKE3 of all that comes before it. The header gives the length of the whole
//! file, and a file of any other length is damaged. A file's time of modification is when the entry was last used.
//!
//! A change of this format changes the name of the folder `v1`.

mod entry;
mod index;
mod room;
#[cfg(test)]
mod tests;
mod write;

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::Arc;
use std::sync::Mutex;
use std::time::SystemTime;

use crate::base::key::Key;
use crate::base::sync::lock;
use crate::cache::disk::entry::{Encoded, Flaw, Opened, open_bytes, open_entry};
use crate::cache::disk::index::{Indexed, State, list, remove};
use crate::cache::interface::Outputs;
use crate::files::write::{Access, private_folder};
use crate::value::payload::Decoders;

const VERSION: &str = "v1";

/// Keeps outputs in a folder within a budget of bytes.
///
/// It evicts the lowest recompute cost per byte first, where the cost is halved for every week without use. The budget
/// bounds what this cache writes: when other processes write to the folder at the same time, it may be exceeded by what
/// they wrote since the folder was last scanned.
///
/// When the disk is full before the budget is reached, entries are evicted in the same order until the new one fits.
///
/// Nothing is flushed to the device: an entry that a loss of power leaves incomplete is found by its digest.
#[derive(Debug)]
pub struct DiskCache {
    folder: PathBuf,
    budget: u64,
    decoders: Decoders,
    state: Mutex<State>,
    /// The disk that a test puts it on.
    #[cfg(test)]
    disk: Arc<tests::Disk>,
}

/// An entry of a [`DiskCache`] as its header describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskEntry {
    /// The key.
    pub key: Key,
    /// The bytes of its file.
    pub bytes: u64,
    /// The seconds that its outputs took to make; 0 when the header is damaged.
    pub seconds: f64,
    /// The types of its values; none when the header is damaged.
    pub types: Vec<String>,
    /// When it was last used.
    pub used: SystemTime,
}

/// What [`DiskCache::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many entries are as they were written.
    pub sound: usize,
    /// The keys of those that were not, which were removed.
    pub damaged: Vec<Key>,
}

impl DiskCache {
    /// Opens the cache in a folder, which is made if it does not exist and not scanned until something is stored.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path, budget: u64, decoders: Decoders) -> io::Result<Self> {
        Access::Private.make_folder(folder)?;
        private_folder(&folder.join(VERSION))?;
        Ok(Self {
            folder: folder.to_owned(),
            budget,
            decoders,
            state: Mutex::default(),
            #[cfg(test)]
            disk: Arc::default(),
        })
    }

    /// The folder that it was opened in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The bytes that its entries may hold.
    #[must_use]
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// What it holds, in the order of the keys. Only headers are read, so a damaged entry may be among them.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn entries(&self) -> io::Result<Vec<DiskEntry>> {
        let mut entries: Vec<DiskEntry> = self
            .files()?
            .into_iter()
            .map(|(key, known)| {
                let header = open_entry(&self.path(&key), &key).map(|opened| opened.header);
                let (seconds, types) = header.map_or_else(
                    |_| (0.0, Vec::new()),
                    |header| {
                        let types = header.values.into_iter().map(|value| value.type_name);
                        (header.seconds, types.collect())
                    },
                );
                DiskEntry {
                    key,
                    bytes: known.bytes,
                    seconds,
                    types,
                    used: known.used,
                }
            })
            .collect();
        entries.sort_by_key(|entry| entry.key);
        Ok(entries)
    }

    /// Removes all entries and all temporary files; gives the number of entries and the bytes of both.
    ///
    /// # Errors
    /// When the folder cannot be read or a file cannot be removed.
    pub fn clear(&self) -> io::Result<(usize, u64)> {
        let (mut count, mut bytes) = (0, 0);
        for (key, known) in self.files()? {
            if self.evict(&key, &mut lock(&self.state))? {
                count += 1;
                bytes += known.bytes;
            }
        }
        for (path, length, _) in self.temporaries()? {
            if remove(&path)? {
                bytes += length;
            }
        }
        Ok((count, bytes))
    }

    /// Reads all entries and removes those that are not as they were written.
    ///
    /// # Errors
    /// When the folder or an entry cannot be read, or a damaged one cannot be removed.
    pub fn verify(&self) -> io::Result<Verified> {
        let mut verified = Verified::default();
        let mut keys: Vec<Key> = self.files()?.into_iter().map(|(key, _)| key).collect();
        keys.sort();
        for key in keys {
            let path = self.path(&key);
            match open_entry(&path, &key).and_then(Opened::check) {
                Ok(()) => verified.sound += 1,
                Err(Flaw::Gone) => {}
                Err(Flaw::Unreadable(error)) => return Err(error),
                Err(Flaw::Damaged(_)) => {
                    self.evict(&key, &mut lock(&self.state))?;
                    verified.damaged.push(key);
                }
            }
        }
        Ok(verified)
    }

    /// The outputs under a key and the seconds that they took to make; this counts as a use.
    pub(super) fn get_with_seconds(&self, key: &Key) -> Option<(Outputs, f64)> {
        let path = self.path(key);
        let flaw = match open_entry(&path, key).and_then(|opened| opened.decode(&self.decoders)) {
            Ok(found) => {
                self.mark_used(key, &path);
                lock(&self.state).sound.insert(*key);
                return Some(found);
            }
            Err(flaw) => flaw,
        };
        match flaw {
            Flaw::Gone => {}
            Flaw::Unreadable(error) => {
                let mut state = lock(&self.state);
                if !state.unreadable {
                    state.unreadable = true;
                    let folder = self.folder.display();
                    state.warnings.push(format!(
                        "the disk cache {folder} cannot be read: {error}; going on without it"
                    ));
                }
            }
            Flaw::Damaged(why) => self.remove_damaged(key, &why),
        }
        None
    }

    /// Reads the outputs under a key without side effects: it does not count as a use, and a damaged entry stays. `None`:
    /// there is no entry.
    ///
    /// # Errors
    /// Why the entry cannot be read, in words.
    pub fn peek(&self, key: &Key) -> Result<Option<Outputs>, String> {
        match open_entry(&self.path(key), key).and_then(|opened| opened.decode(&self.decoders)) {
            Ok((outputs, _)) => Ok(Some(outputs)),
            Err(Flaw::Gone) => Ok(None),
            Err(Flaw::Unreadable(error)) => Err(error.to_string()),
            Err(Flaw::Damaged(why)) => Err(why),
        }
    }

    fn remove_damaged(&self, key: &Key, why: &str) {
        let mut state = lock(&self.state);
        let end = match self.evict(key, &mut state) {
            Ok(true) => "it was removed".to_owned(),
            // Another thread or process met it too, and says so.
            Ok(false) => return,
            Err(error) => {
                if !state.stuck.insert(*key) {
                    return;
                }
                format!("it cannot be removed: {error}")
            }
        };
        state.warnings.push(format!(
            "the entry {} of the disk cache {} cannot be used: {why}; {end}",
            key.short(),
            self.folder.display()
        ));
    }

    /// Removes an entry; `false` when it is not there. An entry that is written in the meantime is added to the index
    /// later, under the same lock, so the sum is never less than what is there.
    fn evict(&self, key: &Key, state: &mut State) -> io::Result<bool> {
        #[cfg(test)]
        let bytes = std::fs::metadata(self.path(key)).map_or(0, |metadata| metadata.len());
        let removed = remove(&self.path(key))?;
        #[cfg(test)]
        self.disk.gains(bytes);
        state.forget(key);
        Ok(removed)
    }

    /// Sets the time of the last use. A failure only means that the entry is evicted earlier.
    fn mark_used(&self, key: &Key, path: &Path) {
        let now = SystemTime::now();
        let marked = OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_modified(now));
        if marked.is_ok()
            && let Some(known) = lock(&self.state).index.get_mut(key)
        {
            known.used = now;
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        let name = key.to_string();
        let mut path = self.folder.join(VERSION);
        path.push(&name[..2]);
        path.push(name);
        path
    }

    fn temporary_folder(&self) -> PathBuf {
        self.folder.join(VERSION).join("tmp")
    }

    /// All entries in the folder. Files of other names, and those that vanish in the meantime, are left out.
    fn files(&self) -> io::Result<Vec<(Key, Indexed)>> {
        let mut files = Vec::new();
        for (folder, metadata) in list(&self.folder.join(VERSION))? {
            if !metadata.is_dir() || folder.file_name().is_none_or(|name| name.len() != 2) {
                continue;
            }
            for (path, metadata) in list(&folder)? {
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(key) = name.and_then(Key::parse)
                    && metadata.is_file()
                    && path == self.path(&key)
                {
                    files.push((
                        key,
                        Indexed {
                            bytes: metadata.len(),
                            used: metadata.modified()?,
                            seconds: None,
                        },
                    ));
                }
            }
        }
        Ok(files)
    }

    /// All temporary files: path, length, when it was last written to.
    fn temporaries(&self) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
        let mut files = Vec::new();
        for (path, metadata) in list(&self.temporary_folder())? {
            if metadata.is_file() {
                files.push((path, metadata.len(), metadata.modified()?));
            }
        }
        Ok(files)
    }
}

/// An entry in one piece, as the disk tier writes it, for a store elsewhere; `None` when a value is of a type that is not kept
/// outside of memory.
///
/// # Errors
/// Why a value cannot be written, in words.
pub fn encode(key: &Key, outputs: &Outputs, seconds: f64) -> Result<Option<Vec<u8>>, String> {
    let entry = Encoded::new(key, outputs, seconds).map_err(|error| error.to_string())?;
    Ok(entry.map(|entry| entry.to_bytes()))
}

/// Reads what [`encode`] wrote: the outputs, and the seconds that they took to make. Nothing of it is decoded before its digest
/// is that of the rest.
///
/// # Errors
/// Why it is no entry of this key, in words.
pub fn decode(key: &Key, bytes: &[u8], decoders: &Decoders) -> Result<(Outputs, f64), String> {
    match open_bytes(bytes, key).and_then(|opened| opened.decode(decoders)) {
        Ok(found) => Ok(found),
        Err(Flaw::Gone) => Err("it is empty".to_owned()),
        Err(Flaw::Unreadable(error)) => Err(error.to_string()),
        Err(Flaw::Damaged(why)) => Err(why),
    }
}

/// Whether the disk is full, or this user's quota is used up.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
