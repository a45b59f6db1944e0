//! Values in a store under their keys: results of a run, and the cache's remote level.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use retouch_cluster::{Objects, Store as Far};
use retouch_graph::cache::disk::decode;
use retouch_graph::{Cancel, Key, Remote};
use retouch_nodes::payload::decoders;

/// The folder of values under their keys.
pub const VALUES: &str = "values";

/// Where the value of a key lies.
pub fn name(key: &Key) -> String {
    let key = key.to_string();
    format!("{VALUES}/{}/{key}", &key[..2])
}

/// The cache's remote level: all that is below `values/`.
pub struct Values(pub Far);

impl Remote for Values {
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, String> {
        self.0.get(&name(key)).map_err(|fault| fault.to_string())
    }

    fn has(&self, key: &Key) -> Result<bool, String> {
        self.0.has(&name(key)).map_err(|fault| fault.to_string())
    }

    fn put(&self, key: &Key, bytes: Vec<u8>) -> Result<(), String> {
        self.0
            .put(&name(key), bytes)
            .map_err(|fault| fault.to_string())
    }

    fn shown(&self) -> String {
        self.0.shown()
    }
}

/// Some values of a store, which alone are looked for there.
pub struct Chosen {
    /// The store.
    pub store: Far,
    /// Their keys.
    pub keys: Arc<HashSet<Key>>,
    /// Whether all of them are known to be there.
    pub there: bool,
    /// What is done when one that has to be there is not.
    pub lost: Option<Lost>,
}

/// Ends a run that may compute nothing in place of what a store should have.
#[derive(Clone, Default)]
pub struct Lost {
    why: Arc<Mutex<Option<String>>>,
    cancel: Cancel,
}

impl Lost {
    /// One that cancels `cancel`.
    pub fn cancelling(cancel: &Cancel) -> Self {
        Self {
            why: Arc::default(),
            cancel: cancel.clone(),
        }
    }

    /// What could not be read, and why.
    pub fn why(&self) -> Option<String> {
        self.why
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn look(&self, key: &Key, answer: &Result<Option<Vec<u8>>, String>) -> Result<(), String> {
        let why = match answer {
            Err(why) => why.clone(),
            Ok(None) => "it is missing".to_owned(),
            Ok(Some(bytes)) => match decode(key, bytes, &decoders()) {
                Ok(_) => return Ok(()),
                Err(why) => why.to_string(),
            },
        };
        let why = format!("the value {} cannot be read: {why}", key.short());
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
        // Not at once, which would be read as Ctrl-C: what is being read is finished, and nothing is begun.
        self.cancel.cancel_at_step();
        Err(why)
    }
}

impl Remote for Chosen {
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, String> {
        match self.keys.contains(key) {
            true => {
                let answer = Values(self.store.clone()).get(key);
                if let Some(lost) = &self.lost {
                    lost.look(key, &answer)?;
                }
                answer
            }
            false => Ok(None),
        }
    }

    fn has(&self, key: &Key) -> Result<bool, String> {
        match self.keys.contains(key) {
            true if self.there => Ok(true),
            true => Values(self.store.clone()).has(key),
            false => Ok(false),
        }
    }

    fn put(&self, _: &Key, _: Vec<u8>) -> Result<(), String> {
        Err("it is only read".to_owned())
    }

    fn shown(&self) -> String {
        self.store.shown()
    }
}
