//! The right to use the compute device: one at a time, for one of an engine's runs and its viewers.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::base::interrupt::{Cancel, POLL_INTERVAL};
use crate::base::sync::lock;

/// The one permit of an engine's compute device.
#[derive(Debug, Default)]
pub(crate) struct Device {
    taken: Mutex<bool>,
    freed: Condvar,
}

/// The right to use the compute device, until it is dropped.
#[derive(Debug)]
pub struct DevicePermit(Arc<Device>);

impl Device {
    /// Takes the device if it is free.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<DevicePermit> {
        let mut taken = lock(&self.taken);
        (!std::mem::replace(&mut *taken, true)).then(|| DevicePermit(Arc::clone(self)))
    }

    /// Waits for the device and takes it; `None` when it was cancelled before that.
    pub(crate) fn take(self: &Arc<Self>, cancel: &Cancel) -> Option<DevicePermit> {
        let mut taken = lock(&self.taken);
        while *taken {
            if cancel.is_cancelled() {
                return None;
            }
            let waited = self.freed.wait_timeout(taken, POLL_INTERVAL);
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken = true;
        Some(DevicePermit(Arc::clone(self)))
    }
}

impl Drop for DevicePermit {
    fn drop(&mut self) {
        *lock(&self.0.taken) = false;
        self.0.freed.notify_all();
    }
}
