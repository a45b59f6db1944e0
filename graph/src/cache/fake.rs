//! Values to test the tiers with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::error::Environment;
use crate::base::error::NodeError;
use crate::base::key::Key;
use crate::cache::interface::Outputs;
use crate::value::payload::{Payload, Value};

/// Bytes in the memory of the host or of a device, by its number.
#[derive(Clone)]
pub(super) struct Bytes {
    pub(super) content: Vec<u8>,
    pub(super) device: Option<usize>,
}

impl Bytes {
    pub(super) fn new(content: &[u8], device: Option<usize>) -> Self {
        Self {
            content: content.to_vec(),
            device,
        }
    }

    fn moved(&self, device: Option<usize>) -> Option<Self> {
        (self.device != device).then(|| Self::new(&self.content, device))
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
        self.device.is_some()
    }
    fn is_on(&self, environment: &Environment) -> bool {
        let device = environment.downcast_ref::<Device>();
        device.is_some_and(|device| self.device == Some(device.number))
    }
    fn to_host(&self) -> Result<Option<Self>, NodeError> {
        Ok(self.moved(None))
    }
    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError> {
        match environment.downcast_ref::<Device>() {
            Some(device) if !device.full.load(Ordering::Relaxed) => {
                Ok(self.moved(Some(device.number)))
            }
            _ => Err(NodeError::failed("out of memory")),
        }
    }
    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(Ok(self.content.clone()))
    }
    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        Ok(Self::new(bytes, None))
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
    pub(super) number: usize,
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
    outputs(Bytes::new(content, None))
}

pub(super) fn on_device(content: &[u8]) -> Outputs {
    outputs(Bytes::new(content, Some(0)))
}
