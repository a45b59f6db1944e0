//! What every cache is to the engine.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::key::Key;
use crate::value::payload::Value;

/// Named values under one key (the outputs of a node by port); cloning shares them.
pub type Outputs = Arc<BTreeMap<Cow<'static, str>, Value>>;

/// The outputs with each value changed.
///
/// # Errors
/// The first of `change`.
pub(crate) fn changed<E>(
    outputs: &Outputs,
    change: impl Fn(&Value) -> Result<Value, E>,
) -> Result<Outputs, E> {
    let changed: Result<BTreeMap<_, _>, E> = outputs
        .iter()
        .map(|(port, value)| Ok((port.clone(), change(value)?)))
        .collect();
    changed.map(Arc::new)
}

/// Keeps the outputs of nodes. Only successes are stored.
pub trait Cache: Send + Sync {
    /// The outputs under a key.
    fn get(&self, key: &Key) -> Option<Outputs>;

    /// The same to be used on a compute device, by its number: what is found elsewhere may be moved there, and need not be.
    fn get_on(&self, key: &Key, device: usize) -> Option<Outputs> {
        let _ = device;
        self.get(key)
    }

    /// Where the outputs under a key are (`memory`, `device memory`, `disk`, `remote`), if they are there; this is not a use.
    fn place(&self, key: &Key) -> Option<&'static str>;

    /// These keys will be asked for by [`Cache::place`]: a cache that is far away asks for all of them at once.
    fn expect(&self, _keys: &mut dyn Iterator<Item = Key>) {}

    /// Stores outputs that took `seconds` to make; what does not fit is not stored.
    fn put(&self, key: Key, outputs: &Outputs, seconds: f64);

    /// Whether it keeps anything at all.
    fn keeps(&self) -> bool {
        true
    }

    /// Drops every entry that may still read files ([`Payload::LAZY`](crate::Payload::LAZY)): such a file changed, and what
    /// was loaded from it may be of either content.
    fn forget_lazy(&self) {}

    /// The warnings since the last call: a damaged entry, a full disk. Each is given once.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCache;

impl Cache for NoCache {
    fn get(&self, _: &Key) -> Option<Outputs> {
        None
    }
    fn place(&self, _: &Key) -> Option<&'static str> {
        None
    }
    fn put(&self, _: Key, _: &Outputs, _: f64) {}
    fn keeps(&self) -> bool {
        false
    }
}
