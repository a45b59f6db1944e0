//! The host's memory as a cache with a budget in bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use crate::base::key::Key;
use crate::base::sync::lock;
use crate::cache::interface::{Cache, Outputs};
use crate::value::value::Value;

/// What an entry takes beside its values: the maps that it is in, the pointers and headers of its values. So a budget also
/// bounds the number of small ones.
const OVERHEAD: usize = 1024;

/// Keeps outputs in memory within a budget of bytes.
///
/// It evicts the lowest recompute cost per byte, and among equals the least recently used entry (GreedyDual-Size: Cao and
/// Irani, USITS 1997).
#[derive(Debug)]
pub struct HostCache {
    budget: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Held>,
    /// The entries by worth, the least first; the number tells apart what is of equal worth, in order of use.
    order: BTreeMap<(Worth, u64), Key>,
    bytes: usize,
    /// The worth of the last evicted entry: unused entries sink relative to it.
    floor: f64,
    uses: u64,
}

#[derive(Debug)]
struct Held {
    outputs: Outputs,
    bytes: usize,
    seconds: f64,
    rank: (Worth, u64),
}

/// A worth that can be ordered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Worth(pub(super) f64);

impl Eq for Worth {}

impl PartialOrd for Worth {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Worth {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl HostCache {
    /// Makes a cache that holds at most `budget` bytes.
    #[must_use]
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            state: Mutex::default(),
        }
    }

    /// The bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        lock(&self.state).bytes
    }

    /// The bytes that it may hold.
    #[must_use]
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// How many entries it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.state).entries.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Evicts everything.
    pub fn clear(&self) {
        // As elsewhere, evicted values are dropped after the lock is.
        let old = std::mem::take(&mut *lock(&self.state));
        drop(old);
    }

    /// Takes an entry out.
    pub fn remove(&self, key: &Key) -> Option<Outputs> {
        let entry = lock(&self.state).remove(key)?;
        Some(entry.outputs)
    }

    /// Stores outputs as [`Cache::put`] does and returns what it evicted for them, with the seconds that each took
    /// to make: that is the entry itself when it is larger than the budget.
    pub fn put_evicting(
        &self,
        key: Key,
        outputs: &Outputs,
        seconds: f64,
    ) -> Vec<(Key, Outputs, f64)> {
        let bytes = outputs
            .values()
            .fold(OVERHEAD, |sum, value| sum.saturating_add(value.bytes()));
        let seconds = if seconds.is_finite() { seconds } else { 0.0 };
        if bytes > self.budget {
            return vec![(key, Outputs::clone(outputs), seconds)];
        }
        // Evicted values are dropped after the lock is: they may be gigabytes.
        let mut evicted = Vec::new();
        let mut state = lock(&self.state);
        let replaced = state.remove(&key);
        while state.bytes + bytes > self.budget {
            let Some((&(worth, _), &least)) = state.order.first_key_value() else {
                break;
            };
            state.floor = worth.0;
            if let Some(entry) = state.remove(&least) {
                evicted.push((least, entry.outputs, entry.seconds));
            }
        }
        let rank = state.rank(bytes, seconds);
        state.order.insert(rank, key);
        state.bytes += bytes;
        state.entries.insert(
            key,
            Held {
                outputs: Outputs::clone(outputs),
                bytes,
                seconds,
                rank,
            },
        );
        drop(state);
        drop(replaced);
        evicted
    }

    /// The outputs under a key and the seconds that they took to make; this counts as a use.
    pub(super) fn get_with_seconds(&self, key: &Key) -> Option<(Outputs, f64)> {
        let mut state = lock(&self.state);
        let (bytes, seconds, old) = {
            let entry = state.entries.get(key)?;
            (entry.bytes, entry.seconds, entry.rank)
        };
        let rank = state.rank(bytes, seconds);
        state.order.remove(&old);
        state.order.insert(rank, *key);
        let entry = state.entries.get_mut(key)?;
        entry.rank = rank;
        Some((Outputs::clone(&entry.outputs), seconds))
    }
}

impl State {
    fn rank(&mut self, bytes: usize, seconds: f64) -> (Worth, u64) {
        self.uses += 1;
        #[expect(clippy::cast_precision_loss, reason = "a worth need not be exact")]
        let worth = self.floor + seconds.max(0.0) / bytes.max(1) as f64;
        (Worth(worth), self.uses)
    }

    fn remove(&mut self, key: &Key) -> Option<Held> {
        let entry = self.entries.remove(key)?;
        self.order.remove(&entry.rank);
        self.bytes -= entry.bytes;
        Some(entry)
    }
}

impl Cache for HostCache {
    fn get(&self, key: &Key) -> Option<Outputs> {
        self.get_with_seconds(key).map(|(outputs, _)| outputs)
    }

    fn place(&self, key: &Key) -> Option<&'static str> {
        lock(&self.state)
            .entries
            .contains_key(key)
            .then_some("memory")
    }

    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        drop(self.put_evicting(key, outputs, seconds));
    }

    fn forget_lazy(&self) {
        let mut state = lock(&self.state);
        let lazy = state.entries.iter();
        let lazy: Vec<Key> = lazy
            .filter(|(_, entry)| entry.outputs.values().any(Value::is_lazy))
            .map(|(key, _)| *key)
            .collect();
        let dropped: Vec<Option<Held>> = lazy.iter().map(|key| state.remove(key)).collect();
        drop(state);
        drop(dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::value::Payload;
    use proptest::prelude::*;
    use std::sync::Arc;

    struct Block(usize);
    impl Payload for Block {
        const TYPE: &'static str = "block";
        fn bytes(&self) -> usize {
            self.0
        }
        fn summary(&self) -> String {
            format!("{} bytes", self.0)
        }
    }

    fn key(name: u8) -> Key {
        Key([name; 32])
    }

    fn block(bytes: usize) -> Outputs {
        Arc::new(BTreeMap::from([("out".into(), Value::new(Block(bytes)))]))
    }

    #[test]
    fn the_cheapest_for_its_bytes_is_evicted_first() {
        let cache = HostCache::new(3 * (1000 + OVERHEAD));
        cache.put(key(1), &block(1000), 10.0);
        cache.put(key(2), &block(1000), 0.1);
        cache.put(key(3), &block(1000), 5.0);
        cache.put(key(4), &block(1000), 5.0);
        let kept: Vec<bool> = (1..=4)
            .map(|name| cache.place(&key(name)).is_some())
            .collect();
        assert_eq!(kept, [true, false, true, true]);
    }

    #[test]
    fn of_equal_worth_the_longest_unused_goes_first() {
        let cache = HostCache::new(2 * (1000 + OVERHEAD));
        cache.put(key(1), &block(1000), 1.0);
        cache.put(key(2), &block(1000), 1.0);
        assert!(cache.get(&key(1)).is_some());
        cache.put(key(3), &block(1000), 1.0);
        assert!(cache.place(&key(1)).is_some());
        assert!(cache.place(&key(2)).is_none());
    }

    #[test]
    fn what_is_greater_than_the_budget_is_not_stored_and_pushes_nothing_out() {
        let cache = HostCache::new(2000 + OVERHEAD - 1);
        cache.put(key(1), &block(1000), 1.0);
        cache.put(key(2), &block(2000), 100.0);
        assert!(cache.place(&key(1)).is_some());
        assert!(cache.place(&key(2)).is_none());
    }

    #[test]
    fn what_is_evicted_comes_back_and_so_does_what_is_too_large() {
        let cache = HostCache::new(1000 + OVERHEAD);
        assert!(cache.put_evicting(key(1), &block(1000), 1.0).is_empty());
        // The same key again replaces the entry: nothing is evicted for it.
        assert!(cache.put_evicting(key(1), &block(1000), 2.0).is_empty());
        let back = cache.put_evicting(key(2), &block(10), 3.0);
        assert_eq!(
            back.iter()
                .map(|entry| (entry.0, entry.2))
                .collect::<Vec<_>>(),
            [(key(1), 2.0)]
        );
        let back = cache.put_evicting(key(3), &block(2000), 4.0);
        assert_eq!(
            back.iter()
                .map(|entry| (entry.0, entry.2))
                .collect::<Vec<_>>(),
            [(key(3), 4.0)]
        );
        assert!(cache.remove(&key(2)).is_some());
        assert!(cache.remove(&key(2)).is_none());
        assert_eq!(cache.bytes(), 0);
    }

    proptest! {
        #[test]
        fn the_budget_is_never_exceeded(
            budget in 0usize..20_000,
            steps in prop::collection::vec((0u8..20, 0usize..6_000, 0.0f64..10.0, any::<bool>()), 0..200),
        ) {
            let cache = HostCache::new(budget);
            for (name, bytes, seconds, put) in steps {
                if put {
                    cache.put(key(name), &block(bytes), seconds);
                } else {
                    let place = cache.place(&key(name)).is_some();
                    prop_assert_eq!(cache.get(&key(name)).is_some(), place);
                }
                prop_assert!(cache.bytes() <= budget);
                let state = lock(&cache.state);
                let sum: usize = state.entries.values().map(|entry| entry.bytes).sum();
                prop_assert_eq!(sum, state.bytes);
                prop_assert_eq!(state.order.len(), state.entries.len());
            }
        }
    }
}
