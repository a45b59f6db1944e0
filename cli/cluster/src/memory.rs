//! A store in memory, for tests: its clock is the test's, and it counts what it is asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::claims::Clock;
use crate::objects::{Fault, Listed, Objects};

/// Number of objects that a store lists in one answer: what S3 gives.
pub const PAGE: u64 = 1000;

/// What a store was asked, in requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Objects written, or refused because they were there.
    pub writes: u64,
    /// Objects read.
    pub reads: u64,
    /// Pages listed, each of up to [`PAGE`] objects.
    pub pages: u64,
}

impl Requests {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.writes + self.reads + self.pages
    }
}

/// A store in memory.
#[derive(Debug, Default)]
pub struct Memory {
    objects: Mutex<BTreeMap<String, (Vec<u8>, u64)>>,
    now: AtomicU64,
    requests: Mutex<Requests>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// An empty store whose clock is at 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the clock, in milliseconds.
    pub fn at(&self, now: u64) {
        self.now.store(now, Ordering::SeqCst);
    }

    /// What it was asked so far.
    #[must_use]
    pub fn requests(&self) -> Requests {
        *lock(&self.requests)
    }
}

impl Clock for &Memory {
    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }
}

impl Objects for Memory {
    fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Fault> {
        lock(&self.requests).writes += 1;
        let mut objects = lock(&self.objects);
        if objects.contains_key(name) {
            return Ok(false);
        }
        objects.insert(name.to_owned(), (bytes, self.now.load(Ordering::SeqCst)));
        Ok(true)
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Fault> {
        lock(&self.requests).writes += 1;
        let now = self.now.load(Ordering::SeqCst);
        lock(&self.objects).insert(name.to_owned(), (bytes, now));
        Ok(())
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        lock(&self.requests).reads += 1;
        Ok(lock(&self.objects)
            .get(name)
            .map(|(bytes, _)| bytes.clone()))
    }

    fn has(&self, name: &str) -> Result<bool, Fault> {
        lock(&self.requests).reads += 1;
        Ok(lock(&self.objects).contains_key(name))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Fault> {
        let folder = format!("{}/", folder.trim_end_matches('/'));
        let objects = lock(&self.objects);
        let found: Vec<Listed> = (objects.range(folder.clone()..))
            .take_while(|(name, _)| name.starts_with(&folder))
            .map(|(name, (bytes, modified))| Listed {
                name: name.clone(),
                modified: *modified,
                size: bytes.len() as u64,
            })
            .collect();
        lock(&self.requests).pages += (found.len() as u64).div_ceil(PAGE).max(1);
        Ok(found)
    }

    fn delete(&self, name: &str) -> Result<(), Fault> {
        lock(&self.requests).writes += 1;
        lock(&self.objects).remove(name);
        Ok(())
    }

    fn shown(&self) -> String {
        "memory".to_owned()
    }
}
