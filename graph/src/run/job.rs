//! What a run works with, and how tasks find and keep their outputs in the cache.

use std::borrow::Cow;
use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::base::error::{Environment, NodeError};
use crate::base::interrupt::Cancel;
use crate::base::key::Key;
use crate::cache::in_flight::InFlight;
use crate::cache::{Cache, Outputs};
use crate::files::Files;
use crate::plan::guard::Lazies;
use crate::plan::plan::Plan;
use crate::plan::priority::Expected;
use crate::plan::task::Task;
use crate::run::device::Devices;
use crate::run::event::{Event, Listener};
use crate::run::save::{Saver, Stamp};
use crate::value::payload::Value;
use crate::value::preview::Previewer;

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// How many nodes run at a time; 0: as many as there are processors. Each device is used by one of them at a time.
    pub threads: usize,
    /// Saves outputs as soon as they are ready; without one they are only reported.
    pub saver: Option<Arc<Saver>>,
    /// Whether what does not need a node that failed is made all the same.
    pub keep_going: bool,
    /// Whether outputs are released as soon as they are saved and nothing needs them; the report then lacks them. A sweep has
    /// more than the memory holds.
    pub drop_outputs: bool,
    /// What tasks took in earlier runs: of those that are ready, the one with the longest remaining path runs first.
    pub expected: Expected,
    /// Writes into the files of outputs where they come from.
    pub stamp: Option<Arc<dyn Stamp>>,
    /// Shows previews of what nodes draw.
    pub previewer: Option<Arc<dyn Previewer>>,
}

/// What a run works with.
pub(crate) struct Job<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) files: &'a dyn Files,
    pub(crate) cache: &'a dyn Cache,
    /// Of each compute device, by its number.
    pub(crate) environments: &'a [Environment],
    pub(crate) listener: &'a dyn Listener,
    pub(crate) cancel: &'a Cancel,
    pub(crate) options: &'a RunOptions,
    /// Bytes of what calls give besides that may be kept.
    pub(crate) sources: u64,
    /// What this engine's runs are making right now.
    pub(crate) flight: &'a InFlight,
    /// The permits of this engine's compute devices.
    pub(crate) devices: &'a Arc<Devices>,
    /// From which files the lazy values in this engine's cache are read.
    pub(crate) lazies: &'a Lazies,
    /// Whether a warning was given that a preview failed.
    pub(crate) preview_failed: AtomicBool,
    /// Whether a warning was given that a file was touched.
    pub(crate) touched: AtomicBool,
}

impl Job<'_> {
    /// The values of a task's ports from the cache, if all of them are there. An entry without a port is one of a run that
    /// did not need it, unless that run says that the node does not give it. They are to be used on `device`, where they may
    /// not be yet.
    pub(super) fn fetch(
        &self,
        task: &Task,
        ports: &BTreeSet<&'static str>,
        device: usize,
    ) -> Option<Outputs> {
        let mut entries: BTreeMap<Key, Outputs> = BTreeMap::new();
        for port in ports {
            let key = task.port_key(port);
            let entry = match entries.entry(key) {
                Slot::Occupied(entry) => entry.into_mut(),
                Slot::Vacant(slot) => slot.insert(self.cache.get_on(&key, device)?),
            };
            let lazy = entry.values().any(Value::is_lazy);
            if lazy && !self.lazies.fit(&key, &task.guard) {
                return None;
            }
            if !entry.contains_key(*port) && self.cache.place(&task.absent_key(port)).is_none() {
                return None;
            }
        }
        let mut merged = BTreeMap::new();
        for (key, entry) in &entries {
            for (name, value) in entry.iter() {
                if task.port_key(name) == *key {
                    merged.insert(name.clone(), value.clone());
                }
            }
        }
        Some(Arc::new(merged))
    }

    /// A value as a task on `device` takes it: with several devices it may be on another.
    pub(super) fn moved(&self, value: Value, device: usize) -> Result<Value, NodeError> {
        match self.environments {
            [_, _, ..] => value.to_device(&self.environments[device]),
            _ => Ok(value),
        }
    }

    /// Puts the outputs of a task into the cache, each port under its key.
    pub(super) fn store(
        &self,
        task: &Task,
        ports: &BTreeSet<&'static str>,
        outputs: &Outputs,
        seconds: f64,
    ) {
        let mut by_key: BTreeMap<Key, BTreeMap<Cow<'static, str>, Value>> = BTreeMap::new();
        for (port, value) in outputs.iter() {
            by_key
                .entry(task.port_key(port))
                .or_default()
                .insert(port.clone(), value.clone());
        }
        // That a port was requested and not made is recorded: the next run need not try again.
        for port in ports {
            if task.port_key(port) == task.key() {
                let own = by_key.entry(task.key()).or_default();
                if !own.contains_key(*port) {
                    by_key.entry(task.absent_key(port)).or_default();
                }
            }
        }
        for (key, mut values) in by_key {
            // The last state of a chain is there already, with the seconds of its own step.
            let there = self.cache.place(&key).is_some();
            if key == task.key() {
                // An earlier run may have made ports that this one had no need of.
                let before = there.then(|| self.cache.get(&key)).flatten();
                for (port, value) in before.iter().flat_map(|before| before.iter()) {
                    if !value.is_lazy() {
                        values.entry(port.clone()).or_insert_with(|| value.clone());
                    }
                }
            }
            if values.values().any(Value::is_lazy) {
                self.lazies.note(key, &task.guard);
            }
            if key == task.key() || !there {
                self.cache.put(key, &Arc::new(values), seconds);
            }
        }
    }

    /// Reports the warnings of the cache.
    pub(super) fn cache_warnings(&self) {
        for message in self.cache.warnings() {
            self.listener.event(&Event::CacheWarning { message });
        }
    }
}
