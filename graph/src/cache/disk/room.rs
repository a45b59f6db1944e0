//! Room in a disk cache: which entries are evicted for others.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::time::SystemTime;

use crate::base::key::Key;
use crate::base::sync::lock;
use crate::cache::disk::DiskCache;
use crate::cache::disk::entry::open_entry;
use crate::cache::disk::index::{Indexed, State, remove};
use crate::files::write::STALE;

/// With more entries, more than needed is evicted at a time.
const MANY: usize = 1024;

impl DiskCache {
    /// Looks the folder through.
    fn scan(&self, state: &mut State) -> io::Result<()> {
        let mut index: HashMap<Key, Indexed> = self.files()?.into_iter().collect();
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

    /// Reserves bytes for an entry and evicts others for it; `false` when there is no room for it.
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<bool> {
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
            // What is being written leaves no room, whatever is evicted.
            return Ok(false);
        }
        // Among many a little more is evicted at a time, so that they are not sorted for every entry.
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
            let _ = self.evict(&key, state);
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
}
