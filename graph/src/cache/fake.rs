//! Values to test the tiers with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::error::Environment;
use crate::base::error::NodeError;
use crate::base::key::Key;
use crate::cache::interface::Outputs;
use crate::value::value::{Payload, Value};

/// Bytes in the memory of the host or of a device.
#[derive(Clone)]
pub(super) struct Bytes {
    pub(super) content: Vec<u8>,
    pub(super) on_device: bool,
}

impl Bytes {
    pub(super) fn new(content: &[u8], on_device: bool) -> Self {
        Self {
            content: content.to_vec(),
            on_device,
        }
    }

    fn moved(&self, on_device: bool) -> Option<Self> {
        (self.on_device != on_device).then(|| Self::new(&self.content, on_device))
    }
}

impl Payload for Bytes {
    const TYPE: &'static str = "bytes";
    fn bytes(&self) -> usize {
        self.content.len()
    }
    fn summary(&self) -> String {
        format!("{} bytes", self.content.len())
    }
    fn on_device(&self) -> bool {
        self.on_device
    }
    fn to_host(&self) -> Result<Option<Self>, NodeError> {
        Ok(self.moved(false))
    }
    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError> {
        let device = environment.downcast_ref::<Device>();
        if device.is_none_or(|device| device.full.load(Ordering::Relaxed)) {
            return Err(NodeError::failed("out of memory"));
        }
        Ok(self.moved(true))
    }
    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(Ok(self.content.clone()))
    }
    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        Ok(Self::new(bytes, false))
    }
}

/// Goes to disk and does not come back.
pub(super) struct Fickle;

impl Payload for Fickle {
    const TYPE: &'static str = "fickle";
    fn bytes(&self) -> usize {
        1
    }
    fn summary(&self) -> String {
        "fickle".to_owned()
    }
    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(Ok(vec![1]))
    }
    fn from_disk(_: &[u8]) -> Result<Self, NodeError> {
        Err(NodeError::failed("not what was written"))
    }
}

/// A device: an environment, and as a payload one that is not kept on disk.
#[derive(Default)]
pub(super) struct Device {
    pub(super) full: AtomicBool,
}

impl Payload for Device {
    const TYPE: &'static str = "device";
    fn bytes(&self) -> usize {
        1
    }
    fn summary(&self) -> String {
        "device".to_owned()
    }
}

pub(super) fn key(name: u8) -> Key {
    Key([name; 32])
}

pub(super) fn outputs<T: Payload>(payload: T) -> Outputs {
    Arc::new(BTreeMap::from([("out".into(), Value::new(payload))]))
}

pub(super) fn on_host(content: &[u8]) -> Outputs {
    outputs(Bytes::new(content, false))
}

pub(super) fn on_device(content: &[u8]) -> Outputs {
    outputs(Bytes::new(content, true))
}
