//! Writes entries of a disk cache, and makes room on a full disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::time::SystemTime;

use crate::base::key::Key;
use crate::base::sync::lock;
use crate::cache::disk::DiskCache;
use crate::cache::disk::entry::{DIGEST, Encoded, PREFIX, lacks};
use crate::cache::disk::index::Indexed;
use crate::cache::disk::is_full;
use crate::cache::interface::{Cache, Outputs};
use crate::files::write::{Access, Draft};

/// How often room is made on a full disk for one entry, each time twice as much as before.
const MOST_TRIES: u32 = 3;

impl DiskCache {
    /// Writes an entry beside the others and moves it to its place. If the disk is full, others are evicted for it.
    pub(super) fn store(&self, key: &Key, entry: &Encoded) -> io::Result<()> {
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
            Indexed {
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

    pub(super) fn say_full(&self, what: &str) {
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
            self.disk.gains(room);
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
            self.disk.gains(entry.bytes);
            (error, entry.bytes)
        })?;
        Ok(used)
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

    #[cfg(not(test))]
    fn write_all(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    #[cfg(test)]
    fn write_all(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let fits = self.disk.takes(bytes.len());
        file.write_all(&bytes[..fits])?;
        match fits < bytes.len() {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl Cache for DiskCache {
    fn get(&self, key: &Key) -> Option<Outputs> {
        self.get_with_seconds(key).map(|(outputs, _)| outputs)
    }

    fn place(&self, key: &Key) -> Option<&'static str> {
        let metadata = fs::metadata(self.path(key)).ok()?;
        // A file shorter than the smallest entry is not one.
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
            // It was made again although it is there: it may be damaged, or was not read. Reading it removes a damaged one.
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
            // Another process cleared the cache in the meantime.
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
