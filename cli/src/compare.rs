//! Compares what a run computes anew with what a disk cache holds under the same keys, value by value.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use retouch_graph::{Cache, DiskCache, Key, Outputs, Plan, TieredCache};

use crate::lines::DifferenceLine;

/// Keeps what a run computes in memory alone, and compares it with a disk cache that it never writes to.
pub struct Comparing {
    fresh: TieredCache,
    kept: Option<DiskCache>,
    found: Mutex<Found>,
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Found {
    looked: HashSet<Key>,
    /// Values that were compared.
    pub compared: usize,
    /// Values that the disk cache does not have.
    pub gone: usize,
    /// Values whose entries in the disk cache are damaged.
    pub damaged: usize,
    /// Values that differ, by key.
    pub differing: HashMap<Key, usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Comparing {
    /// Computes in `fresh`, compares with `kept`.
    #[must_use]
    pub fn new(fresh: TieredCache, kept: Option<DiskCache>) -> Self {
        Self {
            fresh,
            kept,
            found: Mutex::default(),
        }
    }

    /// Takes what was found.
    #[must_use]
    pub fn found(&self) -> Found {
        std::mem::take(&mut *lock(&self.found))
    }

    fn compare(&self, key: Key, outputs: &Outputs) {
        // What was given up and made again is the same value.
        if !lock(&self.found).looked.insert(key) {
            return;
        }
        // Types that no disk cache keeps (models) are compared by what they make.
        let storable: BTreeMap<&str, Vec<u8>> = outputs
            .iter()
            .filter_map(|(port, value)| {
                let bytes = value.to_host().ok()?.to_disk()?.ok()?;
                Some((&**port, bytes))
            })
            .collect();
        if storable.is_empty() {
            return;
        }
        let kept = match &self.kept {
            Some(disk) => disk.peek(&key),
            None => Ok(None),
        };
        let mut found = lock(&self.found);
        let Ok(kept) = kept else {
            found.damaged += storable.len();
            return;
        };
        for (port, bytes) in storable {
            // An earlier run may have needed fewer of a node's outputs.
            let other = (kept.as_ref())
                .and_then(|kept| kept.get(port)?.to_disk())
                .and_then(Result::ok);
            match other {
                None => found.gone += 1,
                Some(other) => {
                    found.compared += 1;
                    if other != bytes {
                        *found.differing.entry(key).or_default() += 1;
                    }
                }
            }
        }
    }
}

impl Cache for Comparing {
    fn get(&self, key: &Key) -> Option<Outputs> {
        self.fresh.get(key)
    }

    fn place(&self, key: &Key) -> Option<&'static str> {
        self.fresh.place(key)
    }

    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        self.compare(key, outputs);
        self.fresh.put(key, outputs, seconds);
    }

    fn warnings(&self) -> Vec<String> {
        self.fresh.warnings()
    }
}

/// The earliest of these keys in the order of the plan: of its tasks, and of the steps in each.
#[must_use]
pub fn first<'a>(plan: &Plan, keys: impl Iterator<Item = &'a Key>) -> Option<DifferenceLine> {
    let places = places(plan);
    let unknown = |key: &Key| Place {
        // Every key that a run puts is one of its plan's; one that is not comes last and is still reported.
        order: (usize::MAX, 0, 0),
        node: String::new(),
        step: None,
        what: "output",
        key: *key,
    };
    keys.map(|key| places.get(key).cloned().unwrap_or_else(|| unknown(key)))
        .min_by_key(|place| (place.order, place.key))
        .map(|place| DifferenceLine {
            node: place.node,
            step: place.step.map(|(step, _)| step),
            of: place.step.map(|(_, of)| of),
            what: place.what,
            key: place.key,
        })
}

#[derive(Clone, Debug)]
struct Place {
    /// The task, the step, and what of the step: a call is made before the state.
    order: (usize, usize, usize),
    node: String,
    /// The step, from 1, and how many there are.
    step: Option<(usize, usize)>,
    what: &'static str,
    key: Key,
}

/// Where each key of a plan comes about first.
fn places(plan: &Plan) -> HashMap<Key, Place> {
    // Who makes a call is who is asked to keep what others need of it.
    let mut callers: HashMap<Key, (usize, usize)> = HashMap::new();
    for (index, task) in plan.tasks().enumerate() {
        let steps = task.chain().map_or(&[][..], |chain| &chain.steps);
        for (at, step) in steps.iter().enumerate() {
            for (call, _) in &step.offers {
                callers.entry(*call).or_insert((index, at));
            }
        }
    }
    let mut places: HashMap<Key, Place> = HashMap::new();
    let mut add = |task: usize, at: Option<usize>, rank: usize, what: &'static str, key: Key| {
        let Some(made) = plan.task(task) else {
            return;
        };
        let steps = made.chain().map(|chain| (chain.first, chain.end()));
        let step = at
            .zip(steps)
            .map(|(at, (first, end))| (first + at + 1, end));
        places.entry(key).or_insert_with(|| Place {
            order: (task, at.map_or(usize::MAX, |at| at), rank),
            node: made.name().to_owned(),
            step,
            what,
            key,
        });
    };
    for (index, task) in plan.tasks().enumerate() {
        if let Some(chain) = task.chain() {
            for (at, keys) in chain.states.iter().enumerate() {
                for key in keys {
                    add(index, Some(at), 1, "state", *key);
                }
            }
        }
    }
    for (index, task) in plan.tasks().enumerate() {
        let steps = task.chain().map_or(&[][..], |chain| &chain.steps);
        for (at, step) in steps.iter().enumerate() {
            for need in step.needs.iter().chain(&step.looks) {
                let (caller, step) = callers.get(&need.call).copied().unwrap_or((index, at));
                for item in &need.items {
                    add(caller, Some(step), 0, "call", item.key);
                }
            }
        }
    }
    for (index, task) in plan.tasks().enumerate() {
        for port in task.entry().outputs() {
            add(index, None, 0, "output", task.port_key(port.name));
        }
        add(index, None, 0, "output", task.key());
    }
    places
}
