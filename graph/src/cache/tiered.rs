//! The memory of devices over the memory of the host over the disk.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::base::error::Environment;
use crate::base::key::Key;
use crate::base::sync::lock;
use crate::cache::disk::DiskCache;
use crate::cache::host::HostCache;
use crate::cache::interface::{Cache, Outputs, changed};
use crate::value::payload::Value;

/// Keeps outputs in tiers, each with its budget: what one evicts moves to the one below, what is used moves up.
///
/// Outputs lie in one of the memory tiers, in that of a device if any value holds memory of it. What can be
/// stored on disk is written there when it comes, so that it is there after the process ends, however it ends.
#[derive(Debug)]
pub struct TieredCache {
    /// One tier for each device.
    devices: Vec<HostCache>,
    host: HostCache,
    disk: Option<DiskCache>,
    /// Of each device; none: nothing is moved to a device.
    environments: Vec<Environment>,
    said: Mutex<Said>,
}

/// How many warnings are remembered.
const MOST_SAID: usize = 256;

#[derive(Debug, Default)]
struct Said {
    /// A device without room fails for each value: each warning is given once.
    ever: HashSet<String>,
    pending: Vec<String>,
}

impl TieredCache {
    /// Makes a cache with budgets in bytes for the memory of each device and of the host. Without an environment, nothing
    /// is moved to a device; with several, each is one of a device, by its number.
    #[must_use]
    pub fn new(
        device_budget: usize,
        host_budget: usize,
        disk: Option<DiskCache>,
        environments: impl IntoIterator<Item = Environment>,
    ) -> Self {
        let environments: Vec<Environment> = environments.into_iter().collect();
        let devices = 0..environments.len().max(1);
        Self {
            devices: devices.map(|_| HostCache::new(device_budget)).collect(),
            host: HostCache::new(host_budget),
            disk,
            environments,
            said: Mutex::default(),
        }
    }

    /// The tiers in the memory of devices, by their numbers.
    #[must_use]
    pub fn devices(&self) -> &[HostCache] {
        &self.devices
    }

    /// The tier in the host's memory.
    #[must_use]
    pub fn host(&self) -> &HostCache {
        &self.host
    }

    /// The tier on disk.
    #[must_use]
    pub fn disk(&self) -> Option<&DiskCache> {
        self.disk.as_ref()
    }

    fn say(&self, text: String) {
        let mut said = lock(&self.said);
        if said.ever.len() >= MOST_SAID {
            said.ever.clear(); // they are said once more
        }
        if said.ever.insert(text.clone()) {
            said.pending.push(text);
        }
    }

    /// The number of the device whose memory the outputs hold; of those that hold that of several, the first.
    fn number(&self, outputs: &Outputs) -> Option<usize> {
        if !on_device(outputs) {
            return None;
        }
        let holds = |environment| outputs.values().any(|value| value.is_on(environment));
        Some(self.environments.iter().position(holds).unwrap_or(0))
    }

    fn put_on_device(&self, number: usize, key: Key, outputs: &Outputs, seconds: f64) {
        for (other, device) in self.devices.iter().enumerate() {
            if other != number {
                device.remove(&key);
            }
        }
        let evicted = self.devices[number].put_evicting(key, outputs, seconds);
        if evicted.iter().all(|(other, ..)| *other != key) {
            self.host.remove(&key);
        }
        for (key, outputs, seconds) in evicted {
            self.demote(key, &outputs, seconds);
        }
    }

    fn put_on_host(&self, key: Key, outputs: &Outputs, seconds: f64) {
        for (key, outputs, seconds) in self.host.put_evicting(key, outputs, seconds) {
            if let Some(disk) = &self.disk
                && disk.place(&key).is_none()
            {
                disk.put(key, &outputs, seconds);
            }
        }
    }

    /// Moves what the device's tier evicted to the host.
    fn demote(&self, key: Key, outputs: &Outputs, seconds: f64) {
        match changed(outputs, Value::to_host) {
            Ok(outputs) => self.put_on_host(key, &outputs, seconds),
            Err(error) => self.say(format!(
                "what the cache evicted could not be moved from the device: {error}"
            )),
        }
    }

    /// Moves what was found below the devices' tiers up to the device where it is used; `below` says that the host's tier
    /// does not have it.
    fn promote(
        &self,
        number: usize,
        key: Key,
        outputs: Outputs,
        seconds: f64,
        below: bool,
    ) -> Outputs {
        let moved = match self.environments.get(number) {
            None => Outputs::clone(&outputs),
            Some(environment) => match changed(&outputs, |value| value.to_device(environment)) {
                Ok(moved) => moved,
                Err(error) => {
                    self.say(format!(
                        "what the cache holds could not be moved to the device: {error}"
                    ));
                    Outputs::clone(&outputs)
                }
            },
        };
        if let Some(number) = self.number(&moved) {
            let device = &self.devices[number];
            for (other, evicted, seconds) in device.put_evicting(key, &moved, seconds) {
                if other != key {
                    self.demote(other, &evicted, seconds);
                } else if below {
                    // There is no room for it on the device, ever; what came from below need not be moved back.
                    self.put_on_host(key, &outputs, seconds);
                }
            }
            if device.place(&key).is_some() {
                self.host.remove(&key);
            }
        } else if below {
            self.put_on_host(key, &moved, seconds);
        }
        moved
    }
}

fn on_device(outputs: &Outputs) -> bool {
    outputs.values().any(Value::on_device)
}

impl Cache for TieredCache {
    fn keeps(&self) -> bool {
        self.devices[0].budget() > 0 || self.host.budget() > 0 || self.disk.is_some()
    }

    fn get(&self, key: &Key) -> Option<Outputs> {
        self.get_on(key, 0)
    }

    fn get_on(&self, key: &Key, device: usize) -> Option<Outputs> {
        if let Some(outputs) = self.devices.iter().find_map(|device| device.get(key)) {
            return Some(outputs);
        }
        if let Some((outputs, seconds)) = self.host.get_with_seconds(key) {
            return Some(self.promote(device, *key, outputs, seconds, false));
        }
        let (outputs, seconds) = self.disk.as_ref()?.get_with_seconds(key)?;
        Some(self.promote(device, *key, outputs, seconds, true))
    }

    fn place(&self, key: &Key) -> Option<&'static str> {
        if self
            .devices
            .iter()
            .any(|device| device.place(key).is_some())
        {
            return Some("device memory");
        }
        self.host
            .place(key)
            .or_else(|| self.disk.as_ref()?.place(key))
    }

    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        if let Some(disk) = &self.disk {
            disk.put(key, outputs, seconds);
        }
        if let Some(number) = self.number(outputs) {
            self.put_on_device(number, key, outputs, seconds);
        } else {
            for device in &self.devices {
                device.remove(&key);
            }
            self.put_on_host(key, outputs, seconds);
        }
    }

    fn forget_lazy(&self) {
        // The disk has none: such values are not written there.
        self.devices.iter().for_each(Cache::forget_lazy);
        self.host.forget_lazy();
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.disk.as_ref().map(Cache::warnings).unwrap_or_default();
        warnings.append(&mut lock(&self.said).pending);
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::fake::{self, Bytes, Device, key, on_host, outputs};
    use crate::value::payload::Decoders;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tempfile::TempDir;

    /// The budget of a memory tier that holds `entries` entries of 100 bytes.
    fn room(entries: usize) -> usize {
        entries * 1124
    }

    fn disk(folder: &TempDir) -> Option<DiskCache> {
        let decoders = Decoders::new().with::<Bytes>();
        Some(DiskCache::open(folder.path(), 1 << 20, decoders).unwrap())
    }

    fn folder() -> TempDir {
        TempDir::new().unwrap()
    }

    fn value(name: u8, on_device: bool) -> Outputs {
        outputs(Bytes::new(&[name; 100], on_device.then_some(0)))
    }

    fn environment() -> Option<Environment> {
        Some(Arc::new(Device::default()))
    }

    #[track_caller]
    fn found(cache: &TieredCache, name: u8, on_device: bool) {
        let found = cache.get(&key(name)).unwrap();
        let bytes = found["out"].downcast::<Bytes>().unwrap();
        assert_eq!(bytes.content, [name; 100]);
        assert_eq!(bytes.device.is_some(), on_device);
    }

    fn places(cache: &TieredCache, names: impl IntoIterator<Item = u8>) -> Vec<&'static str> {
        names
            .into_iter()
            .map(|name| cache.place(&key(name)).unwrap_or("nowhere"))
            .collect()
    }

    #[test]
    fn what_is_evicted_goes_down_and_what_is_used_comes_up() {
        let folder = folder();
        let cache = TieredCache::new(room(1), room(1), disk(&folder), environment());
        for name in 1..=3 {
            cache.put(key(name), &value(name, true), 1.0);
        }
        assert_eq!(
            places(&cache, 1..=4),
            ["disk", "memory", "device memory", "nowhere"]
        );
        assert!(!on_device(&cache.host.get(&key(2)).unwrap()));
        found(&cache, 3, true);
        // From the host: the two change places.
        found(&cache, 2, true);
        assert_eq!(places(&cache, 1..=3), ["disk", "device memory", "memory"]);
        // From the disk.
        found(&cache, 1, true);
        assert_eq!(places(&cache, 1..=3), ["device memory", "memory", "disk"]);
        assert_eq!((cache.devices[0].len(), cache.host.len()), (1, 1));
        assert!(cache.warnings().is_empty());
    }

    #[test]
    fn what_the_disk_gave_up_is_written_when_memory_gives_it_up() {
        let folder = folder();
        let cache = TieredCache::new(0, room(1), disk(&folder), None);
        cache.put(key(1), &value(1, false), 1.0);
        assert_eq!(cache.disk().unwrap().clear().unwrap().0, 1);
        assert_eq!(places(&cache, [1]), ["memory"]);
        cache.put(key(2), &value(2, false), 1.0);
        assert_eq!(places(&cache, 1..=2), ["disk", "memory"]);
        found(&cache, 1, false);
    }

    #[test]
    fn without_a_disk_it_is_gone() {
        let cache = TieredCache::new(room(1), room(1), None, environment());
        for name in 1..=3 {
            cache.put(key(name), &value(name, true), 1.0);
        }
        assert_eq!(
            places(&cache, 1..=3),
            ["nowhere", "memory", "device memory"]
        );
        assert!(cache.get(&key(1)).is_none());
    }

    #[test]
    fn it_outlives_the_process() {
        let folder = folder();
        let cache = TieredCache::new(room(4), room(4), disk(&folder), environment());
        cache.put(key(1), &value(1, true), 1.0);
        cache.put(key(2), &outputs(Device::default()), 1.0);
        assert_eq!(places(&cache, 1..=2), ["device memory", "memory"]);
        let cache = TieredCache::new(room(4), room(4), disk(&folder), environment());
        assert_eq!(places(&cache, 1..=2), ["disk", "nowhere"]);
        found(&cache, 1, true);
        let cache = TieredCache::new(room(4), room(4), disk(&folder), None);
        found(&cache, 1, false);
        assert_eq!(places(&cache, 1..=2), ["memory", "nowhere"]);
    }

    #[test]
    fn a_device_without_room_is_said_and_the_value_is_used_as_it_is() {
        let folder = folder();
        let device = Arc::new(Device {
            full: AtomicBool::new(true),
            ..Device::default()
        });
        let cache = TieredCache::new(
            room(4),
            room(4),
            disk(&folder),
            Some(Arc::clone(&device) as Environment),
        );
        cache.disk().unwrap().put(key(1), &value(1, false), 1.0);
        found(&cache, 1, false);
        assert_eq!(places(&cache, [1]), ["memory"]);
        found(&cache, 1, false);
        assert_eq!(cache.warnings().len(), 1);
        device.full.store(false, Ordering::Relaxed);
        found(&cache, 1, true);
        assert_eq!(places(&cache, [1]), ["device memory"]);
        assert!(cache.warnings().is_empty());
    }

    #[test]
    fn what_is_too_large_for_the_device_stays_on_the_host() {
        let folder = folder();
        let cache = TieredCache::new(room(1) - 1, room(2), disk(&folder), environment());
        cache.put(key(1), &value(1, true), 1.0);
        assert_eq!(places(&cache, [1]), ["memory"]);
        found(&cache, 1, true);
        assert_eq!(places(&cache, [1]), ["memory"]);
        let again = TieredCache::new(0, room(2), disk(&folder), environment());
        found(&again, 1, true);
        assert_eq!(places(&again, [1]), ["memory"]);
        assert!(!on_device(&again.host.get(&key(1)).unwrap()));
    }

    #[test]
    fn each_device_has_a_tier() {
        let folder = folder();
        let devices = (0..2).map(|number| {
            let full = AtomicBool::new(false);
            Arc::new(Device { number, full }) as Environment
        });
        let cache = TieredCache::new(room(1), room(4), disk(&folder), devices);
        let held = |name: u8| {
            cache
                .devices()
                .iter()
                .map(move |it| it.place(&key(name)).is_some())
        };
        let on = |device: usize| outputs(Bytes::new(&[7; 100], Some(device)));
        cache.put(key(1), &on(0), 1.0);
        cache.put(key(2), &on(1), 1.0);
        assert!(held(1).eq([true, false]) && held(2).eq([false, true]));
        // What is computed again on the other device is there alone.
        cache.put(key(1), &on(1), 1.0);
        assert!(held(1).eq([false, true]));
        assert_eq!(places(&cache, 1..=2), ["device memory", "memory"]);
        // What is below goes up to the device where it is used; what is on one is found from the other.
        let place = |outputs: &Outputs| outputs["out"].downcast::<Bytes>().unwrap().device;
        assert_eq!(place(&cache.get_on(&key(2), 0).unwrap()), Some(0));
        assert_eq!(place(&cache.get_on(&key(2), 1).unwrap()), Some(0));
        assert_eq!(place(&cache.get_on(&key(1), 0).unwrap()), Some(1));
        assert!(held(2).eq([true, false]));
        // What one evicts goes to the host.
        cache.put(key(3), &on(0), 1.0);
        assert_eq!(
            places(&cache, 1..=3),
            ["device memory", "memory", "device memory"]
        );
    }

    #[test]
    fn an_entry_is_in_one_memory_tier() {
        let cache = TieredCache::new(room(2), room(2), None, None);
        cache.put(key(1), &on_host(&[1; 100]), 1.0);
        cache.put(key(1), &fake::on_device(&[1; 100]), 1.0);
        assert_eq!((cache.devices[0].len(), cache.host.len()), (1, 0));
        cache.put(key(1), &on_host(&[1; 100]), 1.0);
        assert_eq!((cache.devices[0].len(), cache.host.len()), (0, 1));
    }

    #[test]
    fn the_budgets_hold_when_many_use_it() {
        let folder = folder();
        let cache = TieredCache::new(room(3), room(4), disk(&folder), environment());
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let cache = &cache;
                scope.spawn(move || {
                    for step in 0..100u8 {
                        let name = step.wrapping_mul(7).wrapping_add(thread) % 20;
                        match cache.get(&key(name)) {
                            Some(outputs) => {
                                let bytes = outputs["out"].downcast::<Bytes>().unwrap();
                                assert_eq!(bytes.content, [name; 100]);
                            }
                            None => cache.put(key(name), &value(name, true), 1.0),
                        }
                        assert!(cache.devices()[0].bytes() <= cache.devices()[0].budget());
                        assert!(cache.host().bytes() <= cache.host().budget());
                    }
                });
            }
        });
        for name in 0..20 {
            found(&cache, name, true);
        }
        assert!(cache.warnings().is_empty());
    }
}
