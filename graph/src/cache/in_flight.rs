//! Which entries of the cache are being made right now.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::base::interrupt::POLL_INTERVAL;
use crate::base::key::Key;
use crate::base::sync;

/// What is being made right now, by key: a task that needs the same waits and finds it in the cache.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    busy: Mutex<HashSet<Key>>,
    changed: Condvar,
}

impl InFlight {
    /// Acquires the in-flight lock for `key`, waiting for its holder; `None` when `stop` says so in the meantime.
    pub(crate) fn lock(&self, key: Key, stop: impl Fn() -> bool) -> Option<InFlightLock<'_>> {
        let mut busy = sync::lock(&self.busy);
        while !busy.insert(key) {
            if stop() {
                return None;
            }
            busy = self
                .changed
                .wait_timeout(busy, POLL_INTERVAL)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Some(InFlightLock { owner: self, key })
    }
}

/// The lock of a key whose entry is being made, until it is dropped.
#[derive(Debug)]
pub struct InFlightLock<'a> {
    owner: &'a InFlight,
    key: Key,
}

impl Drop for InFlightLock<'_> {
    fn drop(&mut self) {
        sync::lock(&self.owner.busy).remove(&self.key);
        self.owner.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: u8) -> Key {
        Key([name; 32])
    }

    #[test]
    fn work_in_flight_is_waited_for() {
        let flight = InFlight::default();
        let held = flight.lock(key(1), || false);
        assert!(held.is_some());
        assert!(flight.lock(key(1), || true).is_none());
        assert!(flight.lock(key(2), || true).is_some());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| flight.lock(key(1), || false).is_some());
            drop(held);
            assert!(waits.join().unwrap());
        });
    }
}
