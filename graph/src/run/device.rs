//! The right to use a compute device: each is used by one task at a time, of all the runs and viewers of an engine.

use std::cmp::Reverse;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::base::interrupt::{Cancel, POLL_INTERVAL};
use crate::base::sync::lock;

/// The permits of an engine's compute devices, one for each.
#[derive(Debug)]
pub(crate) struct Devices {
    /// Which are taken, by their numbers.
    taken: Mutex<Vec<bool>>,
    freed: Condvar,
}

/// The right to use a compute device, until it is dropped.
#[derive(Debug)]
pub struct DevicePermit {
    devices: Arc<Devices>,
    number: usize,
}

impl Devices {
    /// The permits of `count` devices, at least one.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            taken: Mutex::new(vec![false; count.max(1)]),
            freed: Condvar::new(),
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        lock(&self.taken).len()
    }

    /// Takes the free device that has most of what is needed, the first of several; `None` when none is free.
    pub(crate) fn try_take<T: Ord>(
        self: &Arc<Self>,
        has: impl Fn(usize) -> T,
    ) -> Option<DevicePermit> {
        let mut taken = lock(&self.taken);
        let free = (0..taken.len()).filter(|number| !taken[*number]);
        let number = free.max_by_key(|number| (has(*number), Reverse(*number)))?;
        taken[number] = true;
        drop(taken);
        Some(self.permit(number))
    }

    /// Waits for a device and takes it; `None` when it was cancelled before that.
    pub(crate) fn take(self: &Arc<Self>, number: usize, cancel: &Cancel) -> Option<DevicePermit> {
        let mut taken = lock(&self.taken);
        while taken[number] {
            if cancel.is_cancelled() {
                return None;
            }
            let waited = self.freed.wait_timeout(taken, POLL_INTERVAL);
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        taken[number] = true;
        drop(taken);
        Some(self.permit(number))
    }

    fn permit(self: &Arc<Self>, number: usize) -> DevicePermit {
        DevicePermit {
            devices: Arc::clone(self),
            number,
        }
    }
}

impl DevicePermit {
    /// The number of the device, from 0.
    pub(crate) fn number(&self) -> usize {
        self.number
    }
}

impl Drop for DevicePermit {
    fn drop(&mut self) {
        lock(&self.devices.taken)[self.number] = false;
        self.devices.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_gets_the_free_device_that_has_most_of_its_inputs() {
        let devices = Arc::new(Devices::new(3));
        let has = |number: usize| [1, 4, 4][number];
        let taken: Vec<DevicePermit> = (0..3).map_while(|_| devices.try_take(has)).collect();
        let numbers: Vec<usize> = taken.iter().map(DevicePermit::number).collect();
        assert_eq!(numbers, [1, 2, 0]);
        assert!(devices.try_take(has).is_none());
        drop(taken);
        let cancel = Cancel::new();
        let second = devices.take(2, &cancel).unwrap();
        assert_eq!(second.number(), 2);
        cancel.cancel();
        assert!(devices.take(2, &cancel).is_none());
    }
}
