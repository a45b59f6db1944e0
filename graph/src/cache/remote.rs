//! The level below the disk: a store that several machines share.
//!
//! Entries have the form of the disk tier's ([`super::disk`]), so each is verified by its digest when it comes in. What is read
//! is put into the tiers above; what is made is written behind the run's back. A store that fails once is done without from then on: a
//! run that could do without it does not wait for it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::base::key::Key;
use crate::base::sync::lock;
use crate::cache::disk::{decode, encode};
use crate::cache::interface::{Cache, Outputs};
use crate::value::payload::Decoders;

/// Entries that wait to be written, at most; what comes when so many do is not written.
const WAITING: usize = 64;
/// Bytes of them, at most: keys and values of one entry may be hundreds of megabytes.
const WAITING_BYTES: usize = 1 << 30;
/// Requests at a time when many keys are asked for at once.
const AT_ONCE: usize = 16;
/// For how long a key that the store did not have is not asked for again.
const ABSENT: Duration = Duration::from_secs(30);

/// A store of bytes by key.
pub trait Remote: Send + Sync + 'static {
    /// The bytes under a key; `None`: there are none.
    ///
    /// # Errors
    /// Why the store did not answer, in words.
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, String>;

    /// Whether there are bytes under a key.
    ///
    /// # Errors
    /// As [`Remote::get`].
    fn has(&self, key: &Key) -> Result<bool, String>;

    /// Writes bytes under a key; they are seen as a whole or not at all.
    ///
    /// # Errors
    /// As [`Remote::get`].
    fn put(&self, key: &Key, bytes: Vec<u8>) -> Result<(), String>;

    /// Its address as people know it.
    fn shown(&self) -> String;
}

/// A cache over a store that several machines share.
pub struct RemoteCache {
    local: Arc<dyn Cache>,
    shared: Arc<Shared>,
    decoders: Decoders,
    /// `None`: nothing is written.
    writer: Mutex<Option<Writer>>,
}

struct Writer {
    queue: SyncSender<(Key, Vec<u8>)>,
    thread: JoinHandle<()>,
}

struct Shared {
    remote: Box<dyn Remote>,
    /// Bytes that wait to be written.
    waiting: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// It failed, and is asked nothing any more.
    off: bool,
    /// Entries that the store has, as far as is known.
    there: HashSet<Key>,
    /// Entries that it did not have at that time.
    absent: HashMap<Key, Instant>,
    /// Whether it was said that not everything is written.
    behind: bool,
    warnings: Vec<String>,
}

impl fmt::Debug for RemoteCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteCache")
            .field(&self.shared.remote.shown())
            .finish()
    }
}

impl Shared {
    /// What the store answers; the first failure is told, and then it is asked nothing more.
    fn ask<T>(&self, ask: impl FnOnce(&dyn Remote) -> Result<T, String>) -> Option<T> {
        if lock(&self.state).off {
            return None;
        }
        match ask(&*self.remote) {
            Ok(answer) => Some(answer),
            Err(why) => {
                let mut state = lock(&self.state);
                if !state.off {
                    state.off = true;
                    let shown = self.remote.shown();
                    state.warnings.push(format!(
                        "the remote cache {shown} is not used any more: {why}"
                    ));
                }
                None
            }
        }
    }

    fn note(&self, key: Key, there: bool) {
        let mut state = lock(&self.state);
        if there {
            state.absent.remove(&key);
            state.there.insert(key);
        } else {
            state.there.remove(&key);
            state.absent.insert(key, Instant::now());
        }
    }

    /// Whether the store has the entry, if that is known.
    fn known(&self, key: &Key) -> Option<bool> {
        let state = lock(&self.state);
        if state.off {
            return Some(false);
        }
        if state.there.contains(key) {
            return Some(true);
        }
        let fresh = state
            .absent
            .get(key)
            .is_some_and(|since| since.elapsed() < ABSENT);
        fresh.then_some(false)
    }

    fn has(&self, key: &Key) -> bool {
        if let Some(known) = self.known(key) {
            return known;
        }
        let has = self.ask(|remote| remote.has(key));
        if let Some(has) = has {
            self.note(*key, has);
        }
        has.unwrap_or(false)
    }

    fn write(&self, queue: &Receiver<(Key, Vec<u8>)>) {
        while let Ok((key, bytes)) = queue.recv() {
            let length = bytes.len();
            if self.ask(|remote| remote.put(&key, bytes)).is_some() {
                self.note(key, true);
            }
            self.waiting.fetch_sub(length, Ordering::SeqCst);
        }
    }

    /// Says once that not everything is written.
    fn falls_behind(&self) {
        let mut state = lock(&self.state);
        if !state.behind {
            state.behind = true;
            let shown = self.remote.shown();
            state.warnings.push(format!(
                "the remote cache {shown} takes less than this run makes: not everything is written there"
            ));
        }
    }
}

impl RemoteCache {
    /// A cache over `remote` below `local`; with `writes` what is made is written there too.
    ///
    /// What is being written when it is dropped is waited for.
    #[must_use]
    pub fn new(
        local: Arc<dyn Cache>,
        remote: Box<dyn Remote>,
        decoders: Decoders,
        writes: bool,
    ) -> Self {
        let shared = Arc::new(Shared {
            remote,
            waiting: AtomicUsize::new(0),
            state: Mutex::default(),
        });
        let writer = writes.then(|| {
            let (queue, waiting) = sync_channel(WAITING);
            let of = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("retouch-remote".to_owned());
            let thread = thread.spawn(move || of.write(&waiting));
            // Without a thread it only reads.
            thread.ok().map(|thread| Writer { queue, thread })
        });
        Self {
            local,
            shared,
            decoders,
            writer: Mutex::new(writer.flatten()),
        }
    }
}

impl Cache for RemoteCache {
    fn get(&self, key: &Key) -> Option<Outputs> {
        self.get_on(key, 0)
    }

    fn get_on(&self, key: &Key, device: usize) -> Option<Outputs> {
        if let Some(outputs) = self.local.get_on(key, device) {
            return Some(outputs);
        }
        if self.shared.known(key) == Some(false) {
            return None;
        }
        let Some(bytes) = self.shared.ask(|remote| remote.get(key))? else {
            self.shared.note(*key, false);
            return None;
        };
        match decode(key, &bytes, &self.decoders) {
            Ok((outputs, seconds)) => {
                self.shared.note(*key, true);
                self.local.put(*key, &outputs, seconds);
                // From there it comes as it is used: on the device.
                Some(self.local.get_on(key, device).unwrap_or(outputs))
            }
            Err(why) => {
                // It is made again, and written over this one.
                self.shared.note(*key, false);
                let shown = self.shared.remote.shown();
                lock(&self.shared.state).warnings.push(format!(
                    "the entry {} of the remote cache {shown} cannot be used: {why}",
                    key.short()
                ));
                None
            }
        }
    }

    fn place(&self, key: &Key) -> Option<&'static str> {
        self.local
            .place(key)
            .or_else(|| self.shared.has(key).then_some("remote"))
    }

    fn expect(&self, keys: &mut dyn Iterator<Item = Key>) {
        let mut seen = HashSet::new();
        let unknown: Vec<Key> = keys
            .filter(|key| seen.insert(*key))
            .filter(|key| self.local.place(key).is_none() && self.shared.known(key).is_none())
            .collect();
        let share = unknown.len().div_ceil(AT_ONCE).max(1);
        std::thread::scope(|scope| {
            for keys in unknown.chunks(share) {
                let shared = &self.shared;
                let asks = move || {
                    for key in keys {
                        shared.has(key);
                    }
                };
                // A thread that is refused is done without: `place` asks.
                let _ = std::thread::Builder::new().spawn_scoped(scope, asks);
            }
        });
    }

    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        self.local.put(key, outputs, seconds);
        let writer = lock(&self.writer);
        let Some(writer) = &*writer else {
            return;
        };
        if self.shared.known(&key) == Some(true) || lock(&self.shared.state).off {
            return;
        }
        if self.shared.waiting.load(Ordering::SeqCst) > WAITING_BYTES {
            self.shared.falls_behind();
            return;
        }
        let Ok(Some(bytes)) = encode(&key, outputs, seconds) else {
            return;
        };
        let length = bytes.len();
        self.shared.waiting.fetch_add(length, Ordering::SeqCst);
        if let Err(refused) = writer.queue.try_send((key, bytes)) {
            self.shared.waiting.fetch_sub(length, Ordering::SeqCst);
            if matches!(refused, TrySendError::Full(_)) {
                self.shared.falls_behind();
            }
        }
    }

    fn keeps(&self) -> bool {
        self.local.keeps()
    }

    fn forget_lazy(&self) {
        self.local.forget_lazy();
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.local.warnings();
        warnings.append(&mut lock(&self.shared.state).warnings);
        warnings
    }
}

impl Drop for RemoteCache {
    fn drop(&mut self) {
        if let Some(Writer { queue, thread }) = lock(&self.writer).take() {
            drop(queue);
            let _ = thread.join(); // it panics with the store's client alone
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::HostCache;
    use crate::cache::fake::{Bytes, Device, key, on_host, outputs};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[derive(Clone, Default)]
    struct Store(Arc<Inner>);

    #[derive(Default)]
    struct Inner {
        entries: Mutex<HashMap<Key, Vec<u8>>>,
        fails: AtomicBool,
        asked: AtomicUsize,
    }

    impl Store {
        fn answer(&self) -> Result<(), String> {
            self.0.asked.fetch_add(1, Ordering::SeqCst);
            match self.0.fails.load(Ordering::SeqCst) {
                true => Err("no answer".to_owned()),
                false => Ok(()),
            }
        }
        fn asked(&self) -> usize {
            self.0.asked.swap(0, Ordering::SeqCst)
        }
    }

    impl Remote for Store {
        fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, String> {
            self.answer()?;
            Ok(lock(&self.0.entries).get(key).cloned())
        }
        fn has(&self, key: &Key) -> Result<bool, String> {
            self.answer()?;
            Ok(lock(&self.0.entries).contains_key(key))
        }
        fn put(&self, key: &Key, bytes: Vec<u8>) -> Result<(), String> {
            self.answer()?;
            lock(&self.0.entries).insert(*key, bytes);
            Ok(())
        }
        fn shown(&self) -> String {
            "s3://lab".to_owned()
        }
    }

    fn cache(store: &Store, writes: bool) -> RemoteCache {
        let decoders = Decoders::new().with::<Bytes>();
        let local = Arc::new(HostCache::new(1 << 20));
        RemoteCache::new(local, Box::new(store.clone()), decoders, writes)
    }

    fn content(outputs: &Outputs) -> Vec<u8> {
        outputs["out"].downcast::<Bytes>().unwrap().content.clone()
    }

    #[test]
    fn what_one_machine_made_another_has() {
        let store = Store::default();
        let first = cache(&store, true);
        first.put(key(1), &on_host(b"one"), 1.0);
        first.put(key(2), &outputs(Device::default()), 1.0); // of no form for outside
        drop(first); // waits for what is being written
        assert_eq!(lock(&store.0.entries).len(), 1);
        let second = cache(&store, false);
        assert_eq!(second.place(&key(1)), Some("remote"));
        assert_eq!(second.place(&key(2)), None);
        assert_eq!(content(&second.get(&key(1)).unwrap()), b"one");
        assert_eq!(
            second.place(&key(1)),
            Some("memory"),
            "it was put into the tiers above"
        );
        second.put(key(3), &on_host(b"three"), 1.0);
        drop(second);
        assert_eq!(lock(&store.0.entries).len(), 1, "this one only reads");
    }

    #[test]
    fn a_key_is_asked_for_once_and_all_together_when_that_is_known() {
        let store = Store::default();
        cache(&store, true).put(key(7), &on_host(b"seven"), 1.0);
        store.asked();
        let second = cache(&store, false);
        second.expect(&mut (0..40).chain(0..40).map(key));
        assert_eq!(store.asked(), 40);
        assert_eq!(second.place(&key(7)), Some("remote"));
        assert!(second.place(&key(8)).is_none() && second.get(&key(8)).is_none());
        assert_eq!(store.asked(), 0);
        assert!(second.get(&key(7)).is_some());
        assert_eq!(store.asked(), 1);
        // What is there is not written again.
        let third = cache(&store, true);
        third.expect(&mut std::iter::once(key(7)));
        third.put(key(7), &on_host(b"seven"), 1.0);
        drop(third);
        assert_eq!(store.asked(), 1);
    }

    #[test]
    fn an_entry_that_is_not_what_was_written_is_told_and_written_anew() {
        let store = Store::default();
        cache(&store, true).put(key(1), &on_host(b"one"), 1.0);
        let whole = lock(&store.0.entries)[&key(1)].clone();
        let mut changed = whole.clone();
        let middle = whole.len() - 33; // the last byte of the value
        changed[middle] ^= 1;
        for (bytes, why) in [
            (changed, "its checksum does not match its content"),
            (
                whole[..whole.len() - 1].to_vec(),
                "it is not as long as its header says",
            ),
            (Vec::new(), "it ends too early"),
            (b"<html>".repeat(20), "it is not an entry"),
        ] {
            lock(&store.0.entries).insert(key(1), bytes);
            let other = cache(&store, true);
            assert!(other.get(&key(1)).is_none());
            let warnings = other.warnings();
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(
                warnings[0].contains(why) && warnings[0].contains("s3://lab"),
                "{warnings:?}"
            );
            other.put(key(1), &on_host(b"one"), 1.0);
            drop(other);
            assert_eq!(lock(&store.0.entries)[&key(1)], whole);
        }
        // An entry of another key is none either.
        lock(&store.0.entries).insert(key(2), whole);
        assert!(cache(&store, false).get(&key(2)).is_none());
    }

    #[test]
    fn a_fault_is_told_once_and_nothing_fails() {
        let store = Store::default();
        let cache = cache(&store, true);
        store.0.fails.store(true, Ordering::SeqCst);
        assert_eq!(cache.place(&key(1)), None);
        cache.put(key(1), &on_host(b"one"), 1.0);
        assert_eq!(content(&cache.get(&key(1)).unwrap()), b"one");
        assert!(cache.get(&key(2)).is_none());
        cache.expect(&mut (3..9).map(key));
        assert_eq!(store.asked(), 1, "what fails once is not asked again");
        let warnings = cache.warnings();
        assert_eq!(
            warnings,
            ["the remote cache s3://lab is not used any more: no answer"]
        );
        assert!(cache.warnings().is_empty());
    }
}
