//! Which entries of the cache are being made right now.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::base::interrupt::LOOK;
use crate::base::key::Key;
use crate::base::sync::lock;

/// What is being made right now, by key: who needs it too waits and finds it in the cache.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    busy: Mutex<HashSet<Key>>,
    changed: Condvar,
}

impl InFlight {
    /// Takes the key for itself, after whoever has it; `None` when `stop` says so meanwhile.
    pub(crate) fn claim(&self, key: Key, stop: impl Fn() -> bool) -> Option<Claim<'_>> {
        let mut busy = lock(&self.busy);
        while !busy.insert(key) {
            if stop() {
                return None;
            }
            busy = self
                .changed
                .wait_timeout(busy, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Some(Claim { owner: self, key })
    }
}

/// The right to make what a key names, until it is dropped.
#[derive(Debug)]
pub struct Claim<'a> {
    owner: &'a InFlight,
    key: Key,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.owner.busy).remove(&self.key);
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
        let claim = flight.claim(key(1), || false);
        assert!(claim.is_some());
        assert!(flight.claim(key(1), || true).is_none());
        assert!(flight.claim(key(2), || true).is_some());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| flight.claim(key(1), || false).is_some());
            drop(claim);
            assert!(waits.join().unwrap());
        });
    }
}
