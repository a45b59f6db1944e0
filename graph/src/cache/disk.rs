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

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::host::Worth;
use crate::base::error::NodeError;
use crate::base::key::Key;
use crate::base::sync::lock;
use crate::cache::{Cache, Outputs};
use crate::files;
use crate::files::write::{self, Access, Draft, STALE};
use crate::value::payload::Decoders;

const VERSION: &str = "v1";
const MAGIC: &[u8; 8] = b"retouch1";
/// The magic and the length of the header.
const PREFIX: usize = 12;
const DIGEST: usize = blake3::OUT_LEN;
/// No header is longer: it names the output ports of one node.
const HEADER_LIMIT: u32 = 1 << 20;
/// How much is hashed at a time where the values are not needed.
const CHUNK: usize = 1 << 18;
/// After such a time without use an entry is worth half.
const HALF_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// So many entries are many to put in order.
const MANY: usize = 1024;
/// How often room is made on a full disk for one entry, each time twice as much as before.
const MOST_TRIES: u32 = 3;

/// Keeps outputs in a folder within a budget of bytes.
///
/// What is given up first is what is cheapest to make again for the bytes that it holds, where that is halved for every
/// week without use. The budget bounds what this cache writes: when other processes write to the folder at the same
/// time, it may be exceeded by what they wrote since the folder was last looked through.
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
    /// The bytes that may still be written until the disk is full.
    #[cfg(test)]
    room: Option<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    /// What the folder holds as far as is known; nothing before the first scan.
    index: HashMap<Key, Known>,
    scanned: bool,
    /// The sum over the index.
    bytes: u64,
    /// The bytes of entries that are being written.
    reserved: u64,
    /// The bytes that were written since the last scan.
    written: u64,
    /// A write failed for another reason than a full disk: no other is tried.
    unwritable: bool,
    /// The disk is full, and the user was warned.
    full: bool,
    /// The disk stayed full although entries were evicted: no more are.
    stays_full: bool,
    /// A read failed, and it was said.
    unreadable: bool,
    /// Damaged entries that cannot be removed, which was said.
    stuck: HashSet<Key>,
    warnings: Vec<String>,
    /// Entries that this process wrote, or read and found whole.
    sound: HashSet<Key>,
}

/// What is known of an entry without its content.
#[derive(Clone, Copy, Debug)]
struct Known {
    bytes: u64,
    used: SystemTime,
    /// Read from the header when something must be given up.
    seconds: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    key: String,
    seconds: f64,
    values: Vec<Stored>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    port: String,
    #[serde(rename = "type")]
    type_name: String,
    bytes: u64,
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

/// Why an entry cannot be used.
#[derive(Debug)]
enum Flaw {
    /// It is not there, or not any more.
    Gone,
    /// The system does not give its content, which says nothing about it.
    Unreadable(io::Error),
    /// It is not as it was written, or not for this program.
    Damaged(String),
}

impl Flaw {
    fn damaged(why: &str) -> Self {
        Self::Damaged(why.to_owned())
    }
}

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone,
            io::ErrorKind::UnexpectedEof => Self::damaged("it ends too early"),
            // A folder or a pipe, say: no entry, and nothing of the cache's own to remove.
            io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => Self::Gone,
            _ => Self::Unreadable(error),
        }
    }
}

/// An entry whose header is read: its values come next.
struct Opened {
    file: File,
    header: Header,
    /// Over what was read so far.
    hasher: blake3::Hasher,
}

/// An entry as it is written, without the digest.
struct Encoded {
    head: Vec<u8>,
    values: Vec<Vec<u8>>,
    bytes: u64,
    seconds: f64,
}

impl DiskCache {
    /// Opens the cache in a folder, which is made if it is not there and not looked through until something is stored.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path, budget: u64, decoders: Decoders) -> io::Result<Self> {
        Access::Private.make_folder(folder)?;
        write::private_folder(&folder.join(VERSION))?;
        Ok(Self {
            folder: folder.to_owned(),
            budget,
            decoders,
            state: Mutex::default(),
            #[cfg(test)]
            room: None,
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
            if self.give_up(&key, &mut lock(&self.state))? {
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
                    self.give_up(&key, &mut lock(&self.state))?;
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

    /// Looks at the outputs under a key and changes nothing: this is no use, and a damaged entry stays. `None`: there is no
    /// entry.
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
        let end = match self.give_up(key, &mut state) {
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

    /// Sets the time of the last use. That this fails is no harm: the entry is given up earlier.
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

    /// All entries in the folder. Files of other names are none, and what vanishes meanwhile is none either.
    fn files(&self) -> io::Result<Vec<(Key, Known)>> {
        let mut files = Vec::new();
        for (folder, metadata) in list(&self.folder.join(VERSION))? {
            if !metadata.is_dir() || folder.file_name().is_none_or(|name| name.len() != 2) {
                continue;
            }
            for (path, metadata) in list(&folder)? {
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(key) = name.and_then(key_of)
                    && metadata.is_file()
                    && path == self.path(&key)
                {
                    files.push((
                        key,
                        Known {
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

    /// Looks the folder through.
    fn scan(&self, state: &mut State) -> io::Result<()> {
        let mut index: HashMap<Key, Known> = self.files()?.into_iter().collect();
        for (key, known) in &mut index {
            // A key's outputs are the same each time, so what its header says is known already.
            known.seconds = state.index.get(key).and_then(|known| known.seconds);
        }
        state.bytes = index.values().map(|known| known.bytes).sum();
        state.index = index;
        state.scanned = true;
        state.written = 0;
        let now = SystemTime::now();
        for (path, _, written) in self.temporaries()? {
            // Whose process it is does not matter: one that is being written is younger.
            if now.duration_since(written).is_ok_and(|age| age > STALE) {
                let _ = remove(&path); // another user's, say
            }
        }
        Ok(())
    }

    /// Sets bytes aside for an entry and gives up others for it; `false` when there is no room for it.
    fn reserve(&self, bytes: u64) -> io::Result<bool> {
        let mut state = lock(&self.state);
        if !state.scanned || state.written > self.budget / 16 {
            self.scan(&mut state)?;
        }
        if !self.make_room(&mut state, bytes)? {
            return Ok(false);
        }
        state.reserved += bytes;
        Ok(true)
    }

    fn make_room(&self, state: &mut State, bytes: u64) -> io::Result<bool> {
        let fits = |state: &State| {
            let taken = state.bytes.saturating_add(state.reserved);
            taken.saturating_add(bytes) <= self.budget
        };
        if fits(state) {
            return Ok(true);
        }
        if state.reserved.saturating_add(bytes) > self.budget {
            // What is being written leaves no room: nothing would come of giving up the rest.
            return Ok(false);
        }
        // Among many a little more is given up at a time: the order is not made anew for every entry.
        let spare = if state.index.len() > MANY {
            self.budget / 16
        } else {
            0
        };
        let ends = |state: &State| {
            let taken = state.bytes.saturating_add(state.reserved);
            taken.saturating_add(bytes).saturating_add(spare) <= self.budget
        };
        Ok(self.evict_until(state, ends)? || fits(state))
    }

    /// Evicts entries, the lowest recompute cost per byte first, until `ends`; `false` when all are gone before that.
    fn evict_until(&self, state: &mut State, ends: impl Fn(&State) -> bool) -> io::Result<bool> {
        let now = SystemTime::now();
        let mut order = BTreeSet::new();
        for (key, known) in &mut state.index {
            let seconds = *known.seconds.get_or_insert_with(|| {
                // One with a damaged header is worth nothing.
                open_entry(&self.path(key), key).map_or(0.0, |opened| opened.header.seconds)
            });
            order.insert((known.worth(seconds, now), known.used, *key));
        }
        while !ends(state) {
            let Some((_, used, key)) = order.pop_first() else {
                return Ok(false);
            };
            let metadata = match fs::metadata(self.path(&key)) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    state.forget(&key);
                    continue;
                }
                // It stays, and still counts.
                Err(_) => continue,
            };
            let modified = metadata.modified()?;
            if modified > used
                && let Some(known) = state.index.get_mut(&key)
            {
                // Another process used it since it was last looked at.
                known.used = modified;
                let seconds = known.seconds.unwrap_or(0.0);
                order.insert((known.worth(seconds, now), modified, key));
                continue;
            }
            // One that cannot be removed stays, and still counts.
            let _ = self.give_up(&key, state);
        }
        Ok(true)
    }

    /// Evicts entries of at least `bytes` bytes in all, the lowest recompute cost per byte first, whatever the budget: the
    /// disk is full. Returns the bytes that were freed. If all entries together have fewer, none is evicted, as that would
    /// not help.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn free(&self, bytes: u64) -> io::Result<u64> {
        let mut state = lock(&self.state);
        // What other processes wrote is as good to remove.
        self.scan(&mut state)?;
        let before = state.bytes;
        if before < bytes {
            return Ok(0);
        }
        let freed = |state: &State| before.saturating_sub(state.bytes);
        self.evict_until(&mut state, |state| freed(state) >= bytes)?;
        Ok(freed(&state))
    }

    /// Removes an entry; `false` when it is not there. What is written meanwhile is learnt of later, under the same
    /// lock, so the sum is never less than what is there.
    fn give_up(&self, key: &Key, state: &mut State) -> io::Result<bool> {
        #[cfg(test)]
        let bytes = fs::metadata(self.path(key)).map_or(0, |metadata| metadata.len());
        let removed = remove(&self.path(key))?;
        #[cfg(test)]
        self.gains(bytes);
        state.forget(key);
        Ok(removed)
    }

    /// Writes an entry beside the others and moves it to its place. If the disk is full, others are evicted for it.
    fn store(&self, key: &Key, entry: &Encoded) -> io::Result<()> {
        if !self.reserve(entry.bytes)? {
            return Ok(());
        }
        let stored = self.write_making_room(key, entry);
        let mut state = lock(&self.state);
        state.reserved -= entry.bytes;
        let used = stored?;
        state.written += entry.bytes;
        state.learn(
            *key,
            Known {
                bytes: entry.bytes,
                used,
                seconds: Some(entry.seconds),
            },
        );
        Ok(())
    }

    fn write_making_room(&self, key: &Key, entry: &Encoded) -> io::Result<SystemTime> {
        let mut more = 1;
        for _ in 0..MOST_TRIES {
            let (error, room) = match self.write(key, entry) {
                Ok(used) => return Ok(used),
                Err(failed) => failed,
            };
            if !is_full(&error) || lock(&self.state).stays_full {
                return Err(error);
            }
            let missing = entry.bytes.saturating_sub(room).max(1);
            if self.free(missing.saturating_mul(more))? == 0 {
                return Err(error);
            }
            self.say_full("entries were removed to make room");
            more *= 2;
        }
        self.write(key, entry).map_err(|(error, _)| {
            // Freed bytes are not there for us: snapshots hold them, or another program takes them at once.
            lock(&self.state).stays_full |= is_full(&error);
            error
        })
    }

    fn say_full(&self, what: &str) {
        let mut state = lock(&self.state);
        if !state.full {
            state.full = true;
            let folder = self.folder.display();
            state.warnings.push(format!(
                "the disk that the cache {folder} lies on is full: {what}"
            ));
        }
    }

    /// On failure also returns the bytes that were written before it: on a full disk, the space that was free.
    fn write(&self, key: &Key, entry: &Encoded) -> Result<SystemTime, (io::Error, u64)> {
        let none = |error| (error, 0);
        let folder = self.temporary_folder();
        Access::Private.make_folder(&folder).map_err(none)?;
        let mut draft = Draft::within(&folder, Access::Private).map_err(none)?;
        let file = draft.file().map_err(none)?;
        let used = self.write_to(file, entry).map_err(|error| {
            let room = file.metadata().map_or(0, |metadata| metadata.len());
            #[cfg(test)]
            self.gains(room);
            (error, room)
        })?;
        let path = self.path(key);
        let settle = |draft: Draft| {
            if let Some(folder) = path.parent() {
                Access::Private.make_folder(folder)?;
            }
            draft.replace(&path)
        };
        settle(draft).map_err(|error| {
            #[cfg(test)]
            self.gains(entry.bytes);
            (error, entry.bytes)
        })?;
        Ok(used)
    }

    /// A file was removed from the disk whose room a test bounds.
    #[cfg(test)]
    fn gains(&self, bytes: u64) {
        if let Some(room) = &self.room {
            room.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn write_to(&self, file: &mut File, entry: &Encoded) -> io::Result<SystemTime> {
        let mut hasher = blake3::Hasher::new();
        for bytes in std::iter::once(&entry.head).chain(&entry.values) {
            hasher.update(bytes);
            self.write_all(file, bytes)?;
        }
        self.write_all(file, hasher.finalize().as_bytes())?;
        file.metadata()?.modified()
    }

    fn write_all(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if let Some(room) = &self.room {
            let left = usize::try_from(room.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
            let fits = left.min(bytes.len());
            file.write_all(&bytes[..fits])?;
            room.fetch_sub(fits as u64, Ordering::Relaxed);
            if fits < bytes.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            return Ok(());
        }
        file.write_all(bytes)
    }
}

impl State {
    fn forget(&mut self, key: &Key) {
        if let Some(known) = self.index.remove(key) {
            self.bytes -= known.bytes;
        }
    }

    fn learn(&mut self, key: Key, known: Known) {
        self.forget(&key);
        self.bytes += known.bytes;
        self.index.insert(key, known);
    }
}

impl Known {
    fn worth(&self, seconds: f64, now: SystemTime) -> Worth {
        // A time that is yet to come is now: clocks differ.
        let age = now.duration_since(self.used).unwrap_or_default();
        let halvings = age.as_secs_f64() / HALF_LIFE.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a worth need not be exact")]
        let bytes = self.bytes.max(1) as f64;
        Worth(seconds.max(0.0) / bytes * (-halvings).exp2())
    }
}

impl Opened {
    /// Checks the rest of the file without keeping it.
    fn check(mut self) -> Result<(), Flaw> {
        let mut left: u64 = self.header.values.iter().map(|value| value.bytes).sum();
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            let count = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            self.file.read_exact(&mut buffer[..count])?;
            self.hasher.update(&buffer[..count]);
            left -= count as u64;
        }
        self.check_digest()
    }

    fn check_digest(&mut self) -> Result<(), Flaw> {
        let mut digest = [0; DIGEST];
        self.file.read_exact(&mut digest)?;
        if self.hasher.finalize() == digest {
            Ok(())
        } else {
            Err(Flaw::damaged("its content is not what was written"))
        }
    }

    /// The values; none is decoded before all are known to be what was written.
    fn decode(mut self, decoders: &Decoders) -> Result<(Outputs, f64), Flaw> {
        let mut contents = Vec::with_capacity(self.header.values.len());
        for value in &self.header.values {
            let mut content = Vec::new();
            // The file is as long as its header says, so this asks for no more than there is.
            usize::try_from(value.bytes)
                .ok()
                .and_then(|bytes| content.try_reserve_exact(bytes).ok())
                .ok_or_else(|| Flaw::Unreadable(io::ErrorKind::OutOfMemory.into()))?;
            Read::by_ref(&mut self.file)
                .take(value.bytes)
                .read_to_end(&mut content)?;
            self.hasher.update(&content);
            contents.push(content);
        }
        self.check_digest()?;
        let mut outputs = BTreeMap::new();
        for (stored, content) in self.header.values.into_iter().zip(contents) {
            let value = decoders
                .decode(&stored.type_name, &content)
                .map_err(|error| Flaw::Damaged(error.to_string()))?;
            outputs.insert(Cow::Owned(stored.port), value);
        }
        Ok((Arc::new(outputs), self.header.seconds))
    }
}

impl Encoded {
    /// `None` when a value is of a type that is not kept on disk.
    fn new(key: &Key, outputs: &Outputs, seconds: f64) -> Result<Option<Self>, NodeError> {
        let mut header = Header {
            key: key.to_string(),
            seconds: if seconds.is_finite() {
                seconds.max(0.0)
            } else {
                0.0
            },
            values: Vec::with_capacity(outputs.len()),
        };
        let mut values = Vec::with_capacity(outputs.len());
        for (port, value) in outputs.iter() {
            let Some(content) = value.to_disk() else {
                return Ok(None);
            };
            let content = content?;
            header.values.push(Stored {
                port: port.clone().into_owned(),
                type_name: value.type_name().to_owned(),
                bytes: content.len() as u64,
            });
            values.push(content);
        }
        let json =
            serde_json::to_vec(&header).map_err(|error| NodeError::failed(error.to_string()))?;
        let Some(length) = u32::try_from(json.len())
            .ok()
            .filter(|&length| length <= HEADER_LIMIT)
        else {
            return Ok(None);
        };
        let mut head = Vec::with_capacity(PREFIX + json.len());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&json);
        let content: u64 = header.values.iter().map(|value| value.bytes).sum();
        Ok(Some(Self {
            bytes: head.len() as u64 + content + DIGEST as u64,
            seconds: header.seconds,
            head,
            values,
        }))
    }
}

/// Opens an entry and reads its header, which has the right key and gives the right length.
fn open_entry(path: &Path, key: &Key) -> Result<Opened, Flaw> {
    let mut file = files::open(path)?;
    let metadata = file.metadata()?;
    let mut prefix = [0; PREFIX];
    file.read_exact(&mut prefix)?;
    let (magic, length) = prefix.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Flaw::damaged("it is not an entry"));
    }
    let length = length.try_into().map_or(u32::MAX, u32::from_le_bytes);
    // The limit bounds what is set aside for the header, whatever the file says.
    if length > HEADER_LIMIT {
        return Err(Flaw::damaged("its header is too long"));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json)?;
    let header: Header =
        serde_json::from_slice(&json).map_err(|_| Flaw::damaged("its header is not readable"))?;
    let whole = header
        .values
        .iter()
        .try_fold((PREFIX + json.len() + DIGEST) as u64, |sum, value| {
            sum.checked_add(value.bytes)
        });
    if whole != Some(metadata.len()) {
        return Err(Flaw::damaged("it is not as long as its header says"));
    }
    if key_of(&header.key) != Some(*key) {
        return Err(Flaw::damaged("it is the entry of another key"));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&prefix).update(&json);
    Ok(Opened {
        file,
        header,
        hasher,
    })
}

/// The key of that name, in lower case as it is written.
fn key_of(name: &str) -> Option<Key> {
    let digits = name.as_bytes();
    let mut key = Key([0; 32]);
    if digits.len() != 2 * key.0.len() {
        return None;
    }
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    for (byte, pair) in key.0.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(key)
}

/// What a folder holds; a folder that is not there holds nothing, and what vanishes meanwhile is left out.
fn list(folder: &Path) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
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

/// Whether there is no room on the disk, or none for this user.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Removes a file; `false` when it is not there.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the entry that is there, by its header, has fewer ports than these.
fn lacks(path: &Path, key: &Key, outputs: &Outputs) -> bool {
    let Ok(Opened { header, .. }) = open_entry(path, key) else {
        return false; // reading it says more
    };
    let has = |port: &str| header.values.iter().any(|stored| stored.port == port);
    // What has no form on disk is in no entry.
    header.values.len() < outputs.len() && !outputs.keys().all(|port| has(port))
}

impl Cache for DiskCache {
    fn get(&self, key: &Key) -> Option<Outputs> {
        self.get_with_seconds(key).map(|(outputs, _)| outputs)
    }

    fn place(&self, key: &Key) -> Option<&'static str> {
        let metadata = fs::metadata(self.path(key)).ok()?;
        // What is shorter than the least entry is none.
        let entry = metadata.is_file() && metadata.len() > (PREFIX + DIGEST) as u64;
        entry.then_some("disk")
    }

    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        let path = self.path(&key);
        // An entry of a run that did not need all of these ports makes room for one that has them.
        if path.is_file() && !lacks(&path, &key, outputs) {
            if lock(&self.state).sound.contains(&key) {
                self.mark_used(&key, &path);
                return;
            }
            // Somebody made it again although it is there: it may have been found damaged, or not been looked at. A sound
            // one stays, a damaged one is removed by this.
            if self.get(&key).is_some() {
                return;
            }
        }
        if lock(&self.state).unwritable {
            return;
        }
        let entry = match Encoded::new(&key, outputs, seconds) {
            Ok(Some(entry)) if entry.bytes <= self.budget => entry,
            Ok(_) => return,
            Err(error) => {
                lock(&self.state).warnings.push(format!(
                    "the entry {} is not kept in the disk cache: {error}",
                    key.short()
                ));
                return;
            }
        };
        match self.store(&key, &entry) {
            Ok(()) => {
                lock(&self.state).sound.insert(key);
            }
            // Another process cleared the cache meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // There may be room for a smaller one, or later.
            Err(error) if is_full(&error) => self.say_full("what is new is not kept"),
            Err(error) => {
                let mut state = lock(&self.state);
                if !state.unwritable {
                    state.unwritable = true;
                    let folder = self.folder.display();
                    state.warnings.push(format!(
                        "the disk cache {folder} cannot be written: {error}; going on without it"
                    ));
                }
            }
        }
    }

    fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::fake::{Bytes, Device, Fickle, key, on_host, outputs};
    use crate::value::payload::Value;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicUsize;
    use tempfile::TempDir;

    fn decoders() -> Decoders {
        Decoders::new().with::<Bytes>().with::<Fickle>()
    }

    fn open(folder: &TempDir, budget: u64) -> DiskCache {
        DiskCache::open(folder.path(), budget, decoders()).unwrap()
    }

    fn folder() -> TempDir {
        TempDir::new().unwrap()
    }

    /// The bytes of all files below the cache's folder, whatever they are.
    fn sum(cache: &DiskCache) -> u64 {
        let entries = cache.files().unwrap();
        let temporaries = cache.temporaries().unwrap();
        entries.iter().map(|entry| entry.1.bytes).sum::<u64>()
            + temporaries.iter().map(|file| file.1).sum::<u64>()
    }

    fn content(outputs: &Outputs) -> Vec<u8> {
        outputs["out"].downcast::<Bytes>().unwrap().content.clone()
    }

    /// Sets the time of the last use to so many seconds ago.
    fn age(cache: &DiskCache, key: &Key, seconds: u64) {
        let file = OpenOptions::new()
            .write(true)
            .open(cache.path(key))
            .unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
            .unwrap();
    }

    /// The bytes of an entry of such a value.
    fn size(content: &[u8]) -> u64 {
        Encoded::new(&key(0), &on_host(content), 1.0)
            .unwrap()
            .unwrap()
            .bytes
    }

    #[test]
    fn an_entry_makes_room_for_one_with_more_ports_and_for_no_other() {
        let folder = folder();
        let values = |ports: &[&'static str], content: &[u8]| -> Outputs {
            let value =
                |port: &&'static str| ((*port).into(), Value::new(Bytes::new(content, false)));
            Arc::new(ports.iter().map(value).collect())
        };
        let ports = |outputs: &Outputs| outputs.keys().map(ToString::to_string).collect::<Vec<_>>();
        open(&folder, 1 << 20).put(key(1), &values(&["a"], b"one"), 1.0);
        // Another process looks, finds the port missing, and makes it.
        let cache = open(&folder, 1 << 20);
        assert_eq!(ports(&cache.get(&key(1)).unwrap()), ["a"]);
        cache.put(key(1), &values(&["a", "b"], b"two"), 1.0);
        let cache = open(&folder, 1 << 20);
        assert_eq!(ports(&cache.get(&key(1)).unwrap()), ["a", "b"]);
        cache.put(key(1), &values(&["b"], b"three"), 1.0);
        let there = cache.get(&key(1)).unwrap();
        assert_eq!(ports(&there), ["a", "b"]);
        assert_eq!(there["b"].downcast::<Bytes>().unwrap().content, b"two");
        assert_eq!(cache.files().unwrap().len(), 1);
        assert!(cache.warnings().is_empty());
    }

    #[test]
    fn outputs_come_back_in_another_process() {
        let folder = folder();
        let two = Arc::new(BTreeMap::from([
            ("a".into(), Value::new(Bytes::new(b"first", false))),
            ("b".into(), Value::new(Bytes::new(b"", false))),
        ]));
        let cache = open(&folder, 1 << 20);
        assert!(cache.get(&key(1)).is_none());
        assert!(cache.place(&key(1)).is_none());
        cache.put(key(1), &two, 2.5);
        cache.put(key(2), &Arc::default(), f64::NAN);
        let again = open(&folder, 1 << 20);
        assert_eq!(again.place(&key(1)), Some("disk"));
        let (found, seconds) = again.get_with_seconds(&key(1)).unwrap();
        assert_eq!(seconds, 2.5);
        assert_eq!(found.len(), 2);
        assert_eq!(found["a"].downcast::<Bytes>().unwrap().content, b"first");
        assert_eq!(found["b"].downcast::<Bytes>().unwrap().content, b"");
        assert!(again.get(&key(2)).unwrap().is_empty());
        assert!(cache.warnings().is_empty() && again.warnings().is_empty());
        assert!(cache.temporaries().unwrap().is_empty());
    }

    #[test]
    fn the_layout_is_as_documented() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        cache.put(key(0xab), &on_host(b"content"), 1.5);
        let name = "ab".repeat(32);
        let file = fs::read(folder.path().join("v1/ab").join(&name)).unwrap();
        let header = format!(
            r#"{{"key":"{name}","seconds":1.5,"values":[{{"port":"out","type":"bytes","bytes":7}}]}}"#
        );
        let mut expected = b"retouch1".to_vec();
        expected.extend_from_slice(&(header.len() as u32).to_le_bytes());
        expected.extend_from_slice(header.as_bytes());
        expected.extend_from_slice(b"content");
        let digest = blake3::hash(&expected);
        expected.extend_from_slice(digest.as_bytes());
        assert_eq!(file, expected);
    }

    /// A damaged file is a miss, said once, and gone afterwards.
    fn is_damaged(cache: &DiskCache, name: &Key, file: &[u8]) {
        let path = cache.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, file).unwrap();
        assert!(cache.get(name).is_none());
        assert_eq!(cache.warnings().len(), 1);
        assert!(!path.exists());
        assert!(cache.get(name).is_none());
        assert!(cache.warnings().is_empty());
    }

    #[test]
    fn any_damage_is_a_miss() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        cache.put(key(1), &on_host(b"sixteen bytes ..."), 1.0);
        let sound = fs::read(cache.path(&key(1))).unwrap();
        for offset in 0..sound.len() {
            for flip in [0x01, 0x20, 0x80, 0xff] {
                let mut file = sound.clone();
                file[offset] ^= flip;
                is_damaged(&cache, &key(1), &file);
            }
        }
        for length in 0..sound.len() {
            is_damaged(&cache, &key(1), &sound[..length]);
        }
        is_damaged(&cache, &key(1), &[&sound[..], &[0]].concat());
        is_damaged(&cache, &key(2), &sound);
        fs::write(cache.path(&key(1)), &sound).unwrap();
        assert!(cache.get(&key(1)).is_some());
    }

    #[test]
    fn lengths_are_not_believed() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        let entry = |length: u32, header: &str| {
            let mut file = MAGIC.to_vec();
            file.extend_from_slice(&length.to_le_bytes());
            file.extend_from_slice(header.as_bytes());
            let digest = blake3::hash(&file);
            file.extend_from_slice(digest.as_bytes());
            file
        };
        let name = key(1);
        is_damaged(&cache, &name, &entry(u32::MAX, "{}"));
        is_damaged(&cache, &name, &entry(HEADER_LIMIT, "{}"));
        for bytes in [
            format!("{}", u64::MAX),
            format!("{}", 1u64 << 40),
            "-1".to_owned(),
            "1e400".to_owned(),
        ] {
            let header = format!(
                r#"{{"key":"{name}","seconds":1,"values":[{{"port":"out","type":"bytes","bytes":{bytes}}},
                {{"port":"out","type":"bytes","bytes":{bytes}}}]}}"#
            );
            is_damaged(&cache, &name, &entry(header.len() as u32, &header));
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(tail in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
            let folder = folder();
            let cache = open(&folder, 1 << 20);
            let file = if magic { [&MAGIC[..], &tail].concat() } else { tail };
            is_damaged(&cache, &key(1), &file);
        }
    }

    #[test]
    fn a_type_that_is_not_known_or_does_not_decode_is_a_miss() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        cache.put(key(1), &outputs(Fickle), 1.0);
        assert!(cache.place(&key(1)).is_some());
        assert!(cache.get(&key(1)).is_none());
        assert_eq!(cache.warnings().len(), 1);
        cache.put(key(2), &on_host(b"content"), 1.0);
        let other = DiskCache::open(folder.path(), 1 << 20, Decoders::new()).unwrap();
        assert!(other.get(&key(2)).is_none());
        assert_eq!(other.warnings().len(), 1);
        assert!(cache.files().unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_stored_is_not() {
        let folder = folder();
        let cache = open(&folder, 1000);
        cache.put(key(1), &outputs(Device::default()), 1.0);
        cache.put(key(2), &on_host(&[0; 1000]), 1.0);
        let mixed = Arc::new(BTreeMap::from([
            ("a".into(), Value::new(Bytes::new(b"first", false))),
            ("b".into(), Value::new(Device::default())),
        ]));
        cache.put(key(3), &mixed, 1.0);
        assert_eq!(sum(&cache), 0);
        assert!(cache.warnings().is_empty());
    }

    #[test]
    fn what_is_there_is_not_written_again() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        cache.put(key(1), &on_host(b"content"), 1.0);
        age(&cache, &key(1), 1_000_000);
        let before = cache.entries().unwrap();
        cache.put(key(1), &on_host(b"other"), 9.0);
        let after = cache.entries().unwrap();
        assert_eq!(after[0].seconds, 1.0);
        assert!(after[0].used > before[0].used + Duration::from_secs(900_000));
        age(&cache, &key(1), 1_000_000);
        assert_eq!(content(&cache.get(&key(1)).unwrap()), b"content");
        assert!(cache.entries().unwrap()[0].used > before[0].used + Duration::from_secs(900_000));
    }

    #[test]
    fn an_entry_is_worth_half_after_a_week() {
        let folder = folder();
        let budget = 2 * size(b"content") + 10;
        let cache = open(&folder, budget);
        cache.put(key(1), &on_host(b"content"), 3.0);
        cache.put(key(2), &on_host(b"content"), 1.0);
        age(&cache, &key(1), 14 * 24 * 60 * 60);
        // After two weeks it is worth 0.75: less than the other, although it was dearer.
        let again = open(&folder, budget);
        again.put(key(3), &on_host(b"content"), 1.0);
        assert!(again.place(&key(1)).is_none());
        assert!(again.place(&key(2)).is_some());
        assert!(again.place(&key(3)).is_some());
    }

    #[test]
    fn of_equal_worth_the_longest_unused_goes_first_whoever_used_it() {
        let folder = folder();
        let (cache, other) = (
            open(&folder, 20 * size(b"content")),
            open(&folder, u64::MAX),
        );
        for name in 1..=20 {
            cache.put(key(name), &on_host(b"content"), 1.0);
        }
        let there = |name| cache.place(&key(name)).is_some();
        cache.put(key(21), &on_host(b"content"), 1.0);
        assert!(!there(1) && there(2) && there(3));
        // The next one is stored without another scan, and yet this use is seen.
        assert!(lock(&cache.state).written <= cache.budget / 16);
        assert!(other.get(&key(2)).is_some());
        cache.put(key(22), &on_host(b"content"), 1.0);
        assert!(there(2) && !there(3) && there(4));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_budget_is_never_exceeded_and_the_dearest_are_kept(
            steps in prop::collection::vec((0u8..40, 0usize..20_000, 0u32..50), 1..60),
        ) {
            const BUDGET: u64 = 64 << 10;
            let folder = folder();
            let cache = open(&folder, BUDGET);
            let worth = |entry: &DiskEntry| entry.seconds / entry.bytes as f64;
            for (name, bytes, seconds) in steps {
                let before = cache.entries().unwrap();
                cache.put(key(name), &on_host(&vec![name; bytes]), f64::from(seconds));
                prop_assert!(sum(&cache) <= BUDGET);
                prop_assert!(cache.place(&key(name)).is_some());
                prop_assert_eq!(sum(&cache), lock(&cache.state).bytes);
                let (kept, given_up): (Vec<_>, Vec<_>) =
                    before.iter().partition(|entry| cache.place(&entry.key).is_some());
                let least = kept
                    .iter()
                    .filter(|entry| entry.key != key(name))
                    .map(|entry| worth(entry))
                    .fold(f64::INFINITY, f64::min);
                for entry in given_up {
                    // Entries fade a little while the test runs.
                    prop_assert!(worth(entry) <= least * 1.001);
                }
            }
            prop_assert!(cache.temporaries().unwrap().is_empty());
            prop_assert!(cache.warnings().is_empty());
        }
    }

    #[test]
    fn a_full_disk_makes_room_for_what_is_new_and_is_said_once() {
        let sound = size(b"content");
        for room in [0, 5, sound / 2, sound - 1] {
            let folder = folder();
            let mut cache = open(&folder, 1 << 20);
            // The cheaper one goes.
            cache.put(key(1), &on_host(b"content"), 9.0);
            cache.put(key(2), &on_host(b"content"), 1.0);
            cache.put(key(3), &on_host(&[3; 70_000]), 1e9);
            assert!(cache.warnings().is_empty());
            cache.room = Some(AtomicU64::new(room));
            // Each is another process, which meets the full disk anew.
            for name in 4..8 {
                let mut other = open(&folder, 1 << 20);
                other.room = cache.room.take();
                other.put(key(name), &on_host(b"content"), f64::from(name));
                assert_eq!(content(&other.get(&key(name)).unwrap()), b"content");
                let warnings = other.warnings();
                assert_eq!(warnings.len(), 1);
                assert!(warnings[0].contains("is full: entries were removed"));
                other.put(key(name + 10), &on_host(b"content"), 2.0);
                assert!(other.get(&key(name + 10)).is_some());
                assert!(other.warnings().is_empty());
                assert_eq!(lock(&other.state).reserved, 0);
                assert!(other.temporaries().unwrap().is_empty());
                cache.room = other.room.take();
            }
            assert!(cache.place(&key(2)).is_none());
            assert!(cache.place(&key(1)).is_some() && cache.place(&key(3)).is_some());
            assert_eq!(cache.verify().unwrap().damaged, []);
        }
    }

    #[test]
    fn nothing_is_given_up_on_a_full_disk_for_what_does_not_fit_on_it() {
        let folder = folder();
        let sound = size(b"content");
        let mut cache = open(&folder, 1 << 20);
        cache.put(key(1), &on_host(b"content"), 1.0);
        cache.room = Some(AtomicU64::new(5));
        cache.put(key(2), &on_host(&[0; 1000]), 1.0);
        let warnings = cache.warnings();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("is full: what is new is not kept"));
        cache.put(key(3), &on_host(&[0; 1000]), 1.0);
        assert!(cache.warnings().is_empty());
        assert_eq!(content(&cache.get(&key(1)).unwrap()), b"content");
        assert!(cache.temporaries().unwrap().is_empty());
        assert_eq!(lock(&cache.state).reserved, 0);
        // It is tried again: by now there is room.
        cache.gains(sound);
        cache.put(key(4), &on_host(b"content"), 1.0);
        assert!(cache.get(&key(4)).is_some() && cache.get(&key(1)).is_some());
    }

    #[cfg(unix)]
    #[test]
    fn it_is_for_its_user_alone_and_what_was_open_to_others_is_closed() {
        use std::os::unix::fs::PermissionsExt;
        let sandbox = folder();
        let at = |path: &str| sandbox.path().join(path);
        let mode = |path: &str| fs::metadata(at(path)).unwrap().permissions().mode() & 0o777;
        fs::create_dir_all(at("old/v1")).unwrap();
        fs::set_permissions(at("old/v1"), fs::Permissions::from_mode(0o755)).unwrap();
        let name = "01".repeat(32);
        for folder in ["old", "new"] {
            let cache = DiskCache::open(&at(folder), 1 << 20, decoders()).unwrap();
            cache.put(key(1), &on_host(b"content"), 1.0);
            assert_eq!(mode(&format!("{folder}/v1")), 0o700);
            assert_eq!(mode(&format!("{folder}/v1/01")), 0o700);
            assert_eq!(mode(&format!("{folder}/v1/tmp")), 0o700);
            assert_eq!(mode(&format!("{folder}/v1/01/{name}")), 0o600);
        }
        assert_eq!(mode("new"), 0o700);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_under_an_old_temporary_name_is_not_followed() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        let mine = folder.path().join("mine");
        fs::write(&mine, "mine").unwrap();
        fs::create_dir_all(cache.temporary_folder()).unwrap();
        for number in 0..4 {
            let name = format!("{}-{number}", std::process::id());
            std::os::unix::fs::symlink(&mine, cache.temporary_folder().join(name)).unwrap();
        }
        cache.put(key(1), &on_host(b"content"), 1.0);
        assert!(cache.get(&key(1)).is_some());
        assert_eq!(fs::read(&mine).unwrap(), b"mine");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_once() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        fs::write(folder.path().join("v1/tmp"), "in the way").unwrap();
        cache.put(key(1), &on_host(b"content"), 1.0);
        cache.put(key(2), &on_host(b"content"), 1.0);
        assert_eq!(cache.warnings().len(), 1);
        assert!(cache.get(&key(1)).is_none());
        assert!(cache.warnings().is_empty());
    }

    #[test]
    fn a_folder_that_goes_away_is_made_again() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        cache.put(key(1), &on_host(b"content"), 1.0);
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(cache.get(&key(1)).is_none());
        cache.put(key(1), &on_host(b"content"), 1.0);
        assert!(cache.get(&key(1)).is_some());
        assert!(cache.warnings().is_empty());
    }

    #[test]
    fn nothing_is_given_up_for_what_does_not_fit_beside_what_is_being_written() {
        let folder = folder();
        let cache = open(&folder, 2 * size(b"content"));
        cache.put(key(1), &on_host(b"content"), 1.0);
        lock(&cache.state).reserved = size(b"content") + 1;
        cache.put(key(2), &on_host(b"content"), 1.0);
        assert!(cache.place(&key(1)).is_some());
        assert!(cache.place(&key(2)).is_none());
        lock(&cache.state).reserved -= 1;
        cache.put(key(2), &on_host(b"content"), 1.0);
        assert!(cache.place(&key(1)).is_none());
        assert!(cache.place(&key(2)).is_some());
        assert!(cache.warnings().is_empty());
    }

    #[test]
    fn what_others_wrote_is_noticed() {
        let folder = folder();
        let budget = 32 * size(b"content");
        let (cache, other) = (open(&folder, budget), open(&folder, budget));
        cache.put(key(1), &on_host(b"content"), 1.0);
        for name in 2..=31 {
            other.put(key(name), &on_host(b"content"), 1.0);
        }
        for name in 101..=104 {
            cache.put(key(name), &on_host(b"content"), 1.0);
        }
        assert_eq!(sum(&cache), budget);
        assert!(cache.place(&key(104)).is_some());
    }

    #[test]
    fn temporary_files_of_the_dead_are_removed() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        let temporary = cache.temporary_folder();
        fs::create_dir_all(&temporary).unwrap();
        for name in ["1-0", "1-1"] {
            fs::write(temporary.join(name), "half").unwrap();
        }
        OpenOptions::new()
            .write(true)
            .open(temporary.join("1-0"))
            .unwrap()
            .set_modified(SystemTime::now() - Duration::from_secs(4000))
            .unwrap();
        cache.put(key(1), &on_host(b"content"), 1.0);
        let left = cache.temporaries().unwrap();
        assert_eq!(left.len(), 1);
        assert!(left[0].0.ends_with("1-1"));
    }

    #[test]
    fn it_can_be_listed_checked_and_cleared() {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        for name in [3, 1, 2] {
            cache.put(key(name), &on_host(&[name; 20]), f64::from(name));
        }
        let path = cache.path(&key(2));
        let mut file = fs::read(&path).unwrap();
        let at = file.len() - 40;
        file[at] ^= 1;
        fs::write(&path, file).unwrap();
        fs::write(folder.path().join("v1/03/notes"), "not an entry").unwrap();
        let entries = cache.entries().unwrap();
        let listed: Vec<_> = entries
            .iter()
            .map(|entry| (entry.key, entry.bytes, entry.seconds, entry.types.join(" ")))
            .collect();
        let entry = |name: u8| {
            (
                key(name),
                size(&[0; 20]),
                f64::from(name),
                "bytes".to_owned(),
            )
        };
        assert_eq!(listed, [entry(1), entry(2), entry(3)]);
        let verified = cache.verify().unwrap();
        assert_eq!(verified.sound, 2);
        assert_eq!(verified.damaged, [key(2)]);
        assert_eq!(cache.verify().unwrap().damaged, []);
        fs::write(cache.temporary_folder().join("1-0"), "half").unwrap();
        assert_eq!(cache.clear().unwrap(), (2, 2 * size(&[0; 20]) + 4));
        assert_eq!(sum(&cache), 0);
        assert_eq!(lock(&cache.state).bytes, 0);
        assert!(cache.warnings().is_empty());
    }

    #[test]
    fn several_at_once_find_nothing_or_what_was_put() {
        let folder = folder();
        let budget = 40 * 1500;
        let caches: Vec<DiskCache> = (0..4).map(|_| open(&folder, budget)).collect();
        let right = |name: u8| vec![name; usize::from(name) * 37];
        let hits = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8u32 {
                let (cache, hits) = (&caches[thread as usize % 4], &hits);
                scope.spawn(move || {
                    // The same numbers each time, others in each thread.
                    let mut random = thread.wrapping_mul(0x9e37_79b9) | 1;
                    for _ in 0..400 {
                        random ^= random << 13;
                        random ^= random >> 17;
                        random ^= random << 5;
                        let name = (random % 64) as u8;
                        match cache.get(&key(name)) {
                            Some(found) => {
                                assert_eq!(content(&found), right(name));
                                hits.fetch_add(1, Ordering::Relaxed);
                            }
                            None => cache.put(key(name), &on_host(&right(name)), f64::from(name)),
                        }
                    }
                });
            }
        });
        assert!(hits.into_inner() > 100);
        for cache in &caches {
            assert_eq!(cache.warnings(), Vec::<String>::new());
            assert_eq!(lock(&cache.state).reserved, 0);
        }
        assert!(caches[0].temporaries().unwrap().is_empty());
        assert_eq!(caches[0].verify().unwrap().damaged, []);
        // Whoever writes next brings the folder back within its budget.
        let last = open(&folder, budget);
        last.put(key(200), &on_host(b"last"), 1.0);
        assert!(sum(&last) <= budget);
    }

    #[test]
    fn a_damaged_entry_that_nobody_read_is_written_anew() {
        let folder = folder();
        let value = on_host(b"what it was");
        open(&folder, 1 << 20).put(key(1), &value, 1.0);
        let cache = open(&folder, 1 << 20);
        let path = cache.path(&key(1));
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 40;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        cache.put(key(1), &value, 1.0);
        assert_eq!(content(&cache.get(&key(1)).unwrap()), b"what it was");
        assert_eq!(cache.warnings().len(), 1);
    }
}
