//! The disk cache, on disks that are full, slow or damaged.

use std::collections::BTreeMap;
use std::fs;

use std::time::Duration;

use super::*;
use crate::cache::disk::entry::{Encoded, HEADER_LIMIT, MAGIC};
use crate::cache::fake::{Bytes, Device, Fickle, key, on_host, outputs};
use crate::cache::interface::Cache;
use crate::value::payload::Value;
use proptest::prelude::*;
use std::sync::Condvar;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// A disk that may be full, and on which a write may be held up. Caches on one disk are processes that share it.
#[derive(Debug, Default)]
pub(super) struct Disk {
    state: Mutex<Space>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Space {
    /// The bytes that may still be written; `None`: as many as the real disk takes.
    left: Option<usize>,
    held: bool,
    waiting: usize,
}

impl Disk {
    fn with_room(bytes: u64) -> Arc<Self> {
        let disk = Arc::<Self>::default();
        lock(&disk.state).left = Some(usize::try_from(bytes).unwrap());
        disk
    }

    /// How many of so many bytes are written: fewer when it is full.
    pub(super) fn takes(&self, bytes: usize) -> usize {
        let mut state = lock(&self.state);
        state.waiting += 1;
        self.changed.notify_all();
        // A test that holds up itself ends all the same.
        let patience = Duration::from_secs(60);
        state = self
            .changed
            .wait_timeout_while(state, patience, |state| state.held)
            .unwrap()
            .0;
        assert!(!state.held, "nobody lets it go on");
        state.waiting -= 1;
        let fits = state.left.map_or(bytes, |left| left.min(bytes));
        state.left = state.left.map(|left| left - fits);
        fits
    }

    /// A file was removed, or others made room.
    pub(super) fn gains(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.left = state
            .left
            .map(|left| left + usize::try_from(bytes).unwrap());
    }

    /// Holds up who writes from here on, or lets them go on.
    fn hold(&self, held: bool) {
        lock(&self.state).held = held;
        self.changed.notify_all();
    }

    /// Waits until somebody is held up.
    fn wait(&self) {
        let state = lock(&self.state);
        drop(self.changed.wait_while(state, |state| state.waiting == 0));
    }
}

fn open_on(disk: &Arc<Disk>, folder: &TempDir, budget: u64) -> DiskCache {
    DiskCache {
        disk: Arc::clone(disk),
        ..open(folder, budget)
    }
}

fn decoders() -> Decoders {
    Decoders::new().with::<Bytes>().with::<Fickle>()
}

fn open(folder: &TempDir, budget: u64) -> DiskCache {
    DiskCache::open(folder.path(), budget, decoders()).unwrap()
}

fn folder() -> TempDir {
    TempDir::new().unwrap()
}

/// The bytes of all files below the cache's folder, whatever they are.
fn sum(cache: &DiskCache) -> u64 {
    let entries = cache.files().unwrap();
    let temporaries = cache.temporaries().unwrap();
    entries.iter().map(|entry| entry.1.bytes).sum::<u64>()
        + temporaries.iter().map(|file| file.1).sum::<u64>()
}

fn content(outputs: &Outputs) -> Vec<u8> {
    outputs["out"].downcast::<Bytes>().unwrap().content.clone()
}

/// Sets the time of the last use to so many seconds ago.
fn age(cache: &DiskCache, key: &Key, seconds: u64) {
    let file = OpenOptions::new()
        .write(true)
        .open(cache.path(key))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
        .unwrap();
}

/// The bytes of an entry of such a value.
fn size(content: &[u8]) -> u64 {
    Encoded::new(&key(0), &on_host(content), 1.0)
        .unwrap()
        .unwrap()
        .bytes
}

#[test]
fn an_entry_makes_room_for_one_with_more_ports_and_for_no_other() {
    let folder = folder();
    let values = |ports: &[&'static str], content: &[u8]| -> Outputs {
        let value = |port: &&'static str| ((*port).into(), Value::new(Bytes::new(content, None)));
        Arc::new(ports.iter().map(value).collect())
    };
    let ports = |outputs: &Outputs| outputs.keys().map(ToString::to_string).collect::<Vec<_>>();
    open(&folder, 1 << 20).put(key(1), &values(&["a"], b"one"), 1.0);
    // Another process looks, finds the port missing, and makes it.
    let cache = open(&folder, 1 << 20);
    assert_eq!(ports(&cache.get(&key(1)).unwrap()), ["a"]);
    cache.put(key(1), &values(&["a", "b"], b"two"), 1.0);
    let cache = open(&folder, 1 << 20);
    assert_eq!(ports(&cache.get(&key(1)).unwrap()), ["a", "b"]);
    cache.put(key(1), &values(&["b"], b"three"), 1.0);
    let there = cache.get(&key(1)).unwrap();
    assert_eq!(ports(&there), ["a", "b"]);
    assert_eq!(there["b"].downcast::<Bytes>().unwrap().content, b"two");
    assert_eq!(cache.files().unwrap().len(), 1);
    assert!(cache.warnings().is_empty());
}

#[test]
fn outputs_come_back_in_another_process() {
    let folder = folder();
    let two = Arc::new(BTreeMap::from([
        ("a".into(), Value::new(Bytes::new(b"first", None))),
        ("b".into(), Value::new(Bytes::new(b"", None))),
    ]));
    let cache = open(&folder, 1 << 20);
    assert!(cache.get(&key(1)).is_none());
    assert!(cache.place(&key(1)).is_none());
    cache.put(key(1), &two, 2.5);
    cache.put(key(2), &Arc::default(), f64::NAN);
    let again = open(&folder, 1 << 20);
    assert_eq!(again.place(&key(1)), Some("disk"));
    let (found, seconds) = again.get_with_seconds(&key(1)).unwrap();
    assert_eq!(seconds, 2.5);
    assert_eq!(found.len(), 2);
    assert_eq!(found["a"].downcast::<Bytes>().unwrap().content, b"first");
    assert_eq!(found["b"].downcast::<Bytes>().unwrap().content, b"");
    assert!(again.get(&key(2)).unwrap().is_empty());
    assert!(cache.warnings().is_empty() && again.warnings().is_empty());
    assert!(cache.temporaries().unwrap().is_empty());
}

#[test]
fn the_layout_is_as_documented() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    cache.put(key(0xab), &on_host(b"content"), 1.5);
    let name = "ab".repeat(32);
    let file = fs::read(folder.path().join("v1/ab").join(&name)).unwrap();
    let header = format!(
        r#"{{"key":"{name}","seconds":1.5,"values":[{{"port":"out","type":"bytes","bytes":7}}]}}"#
    );
    let mut expected = b"retouch1".to_vec();
    expected.extend_from_slice(&(header.len() as u32).to_le_bytes());
    expected.extend_from_slice(header.as_bytes());
    expected.extend_from_slice(b"content");
    let digest = blake3::hash(&expected);
    expected.extend_from_slice(digest.as_bytes());
    assert_eq!(file, expected);
}

/// A damaged file is a miss, said once, and gone afterwards.
fn is_damaged(cache: &DiskCache, name: &Key, file: &[u8]) {
    let path = cache.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, file).unwrap();
    assert!(cache.get(name).is_none());
    assert_eq!(cache.warnings().len(), 1);
    assert!(!path.exists());
    assert!(cache.get(name).is_none());
    assert!(cache.warnings().is_empty());
}

#[test]
fn any_damage_is_a_miss() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    cache.put(key(1), &on_host(b"sixteen bytes ..."), 1.0);
    let sound = fs::read(cache.path(&key(1))).unwrap();
    for offset in 0..sound.len() {
        for flip in [0x01, 0x20, 0x80, 0xff] {
            let mut file = sound.clone();
            file[offset] ^= flip;
            is_damaged(&cache, &key(1), &file);
        }
    }
    for length in 0..sound.len() {
        is_damaged(&cache, &key(1), &sound[..length]);
    }
    is_damaged(&cache, &key(1), &[&sound[..], &[0]].concat());
    is_damaged(&cache, &key(2), &sound);
    fs::write(cache.path(&key(1)), &sound).unwrap();
    assert!(cache.get(&key(1)).is_some());
}

#[test]
fn lengths_are_not_believed() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    let entry = |length: u32, header: &str| {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&length.to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        let digest = blake3::hash(&file);
        file.extend_from_slice(digest.as_bytes());
        file
    };
    let name = key(1);
    is_damaged(&cache, &name, &entry(u32::MAX, "{}"));
    is_damaged(&cache, &name, &entry(HEADER_LIMIT, "{}"));
    for bytes in [
        format!("{}", u64::MAX),
        format!("{}", 1u64 << 40),
        "-1".to_owned(),
        "1e400".to_owned(),
    ] {
        let header = format!(
            r#"{{"key":"{name}","seconds":1,"values":[{{"port":"out","type":"bytes","bytes":{bytes}}},
            {{"port":"out","type":"bytes","bytes":{bytes}}}]}}"#
        );
        is_damaged(&cache, &name, &entry(header.len() as u32, &header));
    }
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(tail in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        let file = if magic { [&MAGIC[..], &tail].concat() } else { tail };
        is_damaged(&cache, &key(1), &file);
    }
}

#[test]
fn a_type_that_is_not_known_or_does_not_decode_is_a_miss() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    cache.put(key(1), &outputs(Fickle), 1.0);
    assert!(cache.place(&key(1)).is_some());
    assert!(cache.get(&key(1)).is_none());
    assert_eq!(cache.warnings().len(), 1);
    cache.put(key(2), &on_host(b"content"), 1.0);
    let other = DiskCache::open(folder.path(), 1 << 20, Decoders::new()).unwrap();
    assert!(other.get(&key(2)).is_none());
    assert_eq!(other.warnings().len(), 1);
    assert!(cache.files().unwrap().is_empty());
}

#[test]
fn what_cannot_be_stored_is_not() {
    let folder = folder();
    let cache = open(&folder, 1000);
    cache.put(key(1), &outputs(Device::default()), 1.0);
    cache.put(key(2), &on_host(&[0; 1000]), 1.0);
    let mixed = Arc::new(BTreeMap::from([
        ("a".into(), Value::new(Bytes::new(b"first", None))),
        ("b".into(), Value::new(Device::default())),
    ]));
    cache.put(key(3), &mixed, 1.0);
    assert_eq!(sum(&cache), 0);
    assert!(cache.warnings().is_empty());
}

#[test]
fn what_is_there_is_not_written_again() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    cache.put(key(1), &on_host(b"content"), 1.0);
    age(&cache, &key(1), 1_000_000);
    let before = cache.entries().unwrap();
    cache.put(key(1), &on_host(b"other"), 9.0);
    let after = cache.entries().unwrap();
    assert_eq!(after[0].seconds, 1.0);
    assert!(after[0].used > before[0].used + Duration::from_secs(900_000));
    age(&cache, &key(1), 1_000_000);
    assert_eq!(content(&cache.get(&key(1)).unwrap()), b"content");
    assert!(cache.entries().unwrap()[0].used > before[0].used + Duration::from_secs(900_000));
}

#[test]
fn an_entry_is_worth_half_after_a_week() {
    let folder = folder();
    let budget = 2 * size(b"content") + 10;
    let cache = open(&folder, budget);
    cache.put(key(1), &on_host(b"content"), 3.0);
    cache.put(key(2), &on_host(b"content"), 1.0);
    age(&cache, &key(1), 14 * 24 * 60 * 60);
    // After two weeks it is worth 0.75: less than the other, although it was dearer.
    let again = open(&folder, budget);
    again.put(key(3), &on_host(b"content"), 1.0);
    assert!(again.place(&key(1)).is_none());
    assert!(again.place(&key(2)).is_some());
    assert!(again.place(&key(3)).is_some());
}

#[test]
fn of_equal_worth_the_longest_unused_goes_first_whoever_used_it() {
    let folder = folder();
    let (cache, other) = (
        open(&folder, 20 * size(b"content")),
        open(&folder, u64::MAX),
    );
    for name in 1..=20 {
        cache.put(key(name), &on_host(b"content"), 1.0);
    }
    let there = |name| cache.place(&key(name)).is_some();
    cache.put(key(21), &on_host(b"content"), 1.0);
    assert!(!there(1) && there(2) && there(3));
    // The next one is stored without another scan, and yet this use is seen.
    assert!(lock(&cache.state).written <= cache.budget / 16);
    assert!(other.get(&key(2)).is_some());
    cache.put(key(22), &on_host(b"content"), 1.0);
    assert!(there(2) && !there(3) && there(4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_budget_is_never_exceeded_and_the_dearest_are_kept(
        steps in prop::collection::vec((0u8..40, 0usize..20_000, 0u32..50), 1..60),
    ) {
        const BUDGET: u64 = 64 << 10;
        let folder = folder();
        let cache = open(&folder, BUDGET);
        let worth = |entry: &DiskEntry| entry.seconds / entry.bytes as f64;
        for (name, bytes, seconds) in steps {
            let before = cache.entries().unwrap();
            cache.put(key(name), &on_host(&vec![name; bytes]), f64::from(seconds));
            prop_assert!(sum(&cache) <= BUDGET);
            prop_assert!(cache.place(&key(name)).is_some());
            prop_assert_eq!(sum(&cache), lock(&cache.state).bytes);
            let (kept, given_up): (Vec<_>, Vec<_>) =
                before.iter().partition(|entry| cache.place(&entry.key).is_some());
            let least = kept
                .iter()
                .filter(|entry| entry.key != key(name))
                .map(|entry| worth(entry))
                .fold(f64::INFINITY, f64::min);
            for entry in given_up {
                // Entries fade a little while the test runs.
                prop_assert!(worth(entry) <= least * 1.001);
            }
        }
        prop_assert!(cache.temporaries().unwrap().is_empty());
        prop_assert!(cache.warnings().is_empty());
    }
}

#[test]
fn a_full_disk_makes_room_for_what_is_new_and_is_said_once() {
    let sound = size(b"content");
    for room in [0, 5, sound / 2, sound - 1] {
        let folder = folder();
        let cache = open(&folder, 1 << 20);
        // The cheaper one goes.
        cache.put(key(1), &on_host(b"content"), 9.0);
        cache.put(key(2), &on_host(b"content"), 1.0);
        cache.put(key(3), &on_host(&[3; 70_000]), 1e9);
        assert!(cache.warnings().is_empty());
        let disk = Disk::with_room(room);
        // Each is another process, which meets the full disk anew.
        for name in 4..8 {
            let other = open_on(&disk, &folder, 1 << 20);
            other.put(key(name), &on_host(b"content"), f64::from(name));
            assert_eq!(content(&other.get(&key(name)).unwrap()), b"content");
            let warnings = other.warnings();
            assert_eq!(warnings.len(), 1);
            assert!(warnings[0].contains("is full: entries were removed"));
            other.put(key(name + 10), &on_host(b"content"), 2.0);
            assert!(other.get(&key(name + 10)).is_some());
            assert!(other.warnings().is_empty());
            assert_eq!(lock(&other.state).reserved, 0);
            assert!(other.temporaries().unwrap().is_empty());
        }
        assert!(cache.place(&key(2)).is_none());
        assert!(cache.place(&key(1)).is_some() && cache.place(&key(3)).is_some());
        assert_eq!(cache.verify().unwrap().damaged, []);
    }
}

#[test]
fn nothing_is_given_up_on_a_full_disk_for_what_does_not_fit_on_it() {
    let folder = folder();
    let sound = size(b"content");
    open(&folder, 1 << 20).put(key(1), &on_host(b"content"), 1.0);
    let disk = Disk::with_room(5);
    let cache = open_on(&disk, &folder, 1 << 20);
    cache.put(key(2), &on_host(&[0; 1000]), 1.0);
    let warnings = cache.warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("is full: what is new is not kept"));
    cache.put(key(3), &on_host(&[0; 1000]), 1.0);
    assert!(cache.warnings().is_empty());
    assert_eq!(content(&cache.get(&key(1)).unwrap()), b"content");
    assert!(cache.temporaries().unwrap().is_empty());
    assert_eq!(lock(&cache.state).reserved, 0);
    // It is tried again: by now there is room.
    disk.gains(sound);
    cache.put(key(4), &on_host(b"content"), 1.0);
    assert!(cache.get(&key(4)).is_some() && cache.get(&key(1)).is_some());
}

#[cfg(unix)]
#[test]
fn it_is_for_its_user_alone_and_what_was_open_to_others_is_closed() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = folder();
    let at = |path: &str| sandbox.path().join(path);
    let mode = |path: &str| fs::metadata(at(path)).unwrap().permissions().mode() & 0o777;
    fs::create_dir_all(at("old/v1")).unwrap();
    fs::set_permissions(at("old/v1"), fs::Permissions::from_mode(0o755)).unwrap();
    let name = "01".repeat(32);
    for folder in ["old", "new"] {
        let cache = DiskCache::open(&at(folder), 1 << 20, decoders()).unwrap();
        cache.put(key(1), &on_host(b"content"), 1.0);
        assert_eq!(mode(&format!("{folder}/v1")), 0o700);
        assert_eq!(mode(&format!("{folder}/v1/01")), 0o700);
        assert_eq!(mode(&format!("{folder}/v1/tmp")), 0o700);
        assert_eq!(mode(&format!("{folder}/v1/01/{name}")), 0o600);
    }
    assert_eq!(mode("new"), 0o700);
}

#[cfg(unix)]
#[test]
fn a_link_under_an_old_temporary_name_is_not_followed() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    let mine = folder.path().join("mine");
    fs::write(&mine, "mine").unwrap();
    fs::create_dir_all(cache.temporary_folder()).unwrap();
    for number in 0..4 {
        let name = format!("{}-{number}", std::process::id());
        std::os::unix::fs::symlink(&mine, cache.temporary_folder().join(name)).unwrap();
    }
    cache.put(key(1), &on_host(b"content"), 1.0);
    assert!(cache.get(&key(1)).is_some());
    assert_eq!(fs::read(&mine).unwrap(), b"mine");
}

#[test]
fn a_folder_that_cannot_be_written_is_said_once() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    fs::write(folder.path().join("v1/tmp"), "in the way").unwrap();
    cache.put(key(1), &on_host(b"content"), 1.0);
    cache.put(key(2), &on_host(b"content"), 1.0);
    assert_eq!(cache.warnings().len(), 1);
    assert!(cache.get(&key(1)).is_none());
    assert!(cache.warnings().is_empty());
}

#[test]
fn a_folder_that_goes_away_is_made_again() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    cache.put(key(1), &on_host(b"content"), 1.0);
    fs::remove_dir_all(folder.path()).unwrap();
    assert!(cache.get(&key(1)).is_none());
    cache.put(key(1), &on_host(b"content"), 1.0);
    assert!(cache.get(&key(1)).is_some());
    assert!(cache.warnings().is_empty());
}

#[test]
fn nothing_is_given_up_for_what_does_not_fit_beside_what_is_being_written() {
    let folder = folder();
    let disk = Arc::default();
    let cache = open_on(&disk, &folder, 2 * size(b"content"));
    cache.put(key(1), &on_host(b"content"), 1.0);
    disk.hold(true);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| cache.put(key(2), &on_host(b"content"), 1.0));
        disk.wait();
        // A byte more than is left beside it, were all else removed.
        cache.put(key(3), &on_host(b"content!"), 1.0);
        assert!(cache.place(&key(1)).is_some());
        assert!(cache.place(&key(3)).is_none());
        disk.hold(false);
        writer.join().unwrap();
    });
    assert!(cache.place(&key(1)).is_some() && cache.place(&key(2)).is_some());
    // Nobody writes any more: now the others are removed for it.
    cache.put(key(3), &on_host(b"content!"), 1.0);
    assert!(cache.place(&key(3)).is_some());
    assert!(cache.place(&key(1)).is_none());
    assert!(cache.warnings().is_empty());
}

#[test]
fn what_others_wrote_is_noticed() {
    let folder = folder();
    let budget = 32 * size(b"content");
    let (cache, other) = (open(&folder, budget), open(&folder, budget));
    cache.put(key(1), &on_host(b"content"), 1.0);
    for name in 2..=31 {
        other.put(key(name), &on_host(b"content"), 1.0);
    }
    for name in 101..=104 {
        cache.put(key(name), &on_host(b"content"), 1.0);
    }
    assert_eq!(sum(&cache), budget);
    assert!(cache.place(&key(104)).is_some());
}

#[test]
fn temporary_files_of_the_dead_are_removed() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    let temporary = cache.temporary_folder();
    fs::create_dir_all(&temporary).unwrap();
    for name in ["1-0", "1-1"] {
        fs::write(temporary.join(name), "half").unwrap();
    }
    OpenOptions::new()
        .write(true)
        .open(temporary.join("1-0"))
        .unwrap()
        .set_modified(SystemTime::now() - Duration::from_secs(4000))
        .unwrap();
    cache.put(key(1), &on_host(b"content"), 1.0);
    let left = cache.temporaries().unwrap();
    assert_eq!(left.len(), 1);
    assert!(left[0].0.ends_with("1-1"));
}

#[test]
fn it_can_be_listed_checked_and_cleared() {
    let folder = folder();
    let cache = open(&folder, 1 << 20);
    for name in [3, 1, 2] {
        cache.put(key(name), &on_host(&[name; 20]), f64::from(name));
    }
    let path = cache.path(&key(2));
    let mut file = fs::read(&path).unwrap();
    let at = file.len() - 40;
    file[at] ^= 1;
    fs::write(&path, file).unwrap();
    fs::write(folder.path().join("v1/03/notes"), "not an entry").unwrap();
    let entries = cache.entries().unwrap();
    let listed: Vec<_> = entries
        .iter()
        .map(|entry| (entry.key, entry.bytes, entry.seconds, entry.types.join(" ")))
        .collect();
    let entry = |name: u8| {
        (
            key(name),
            size(&[0; 20]),
            f64::from(name),
            "bytes".to_owned(),
        )
    };
    assert_eq!(listed, [entry(1), entry(2), entry(3)]);
    let verified = cache.verify().unwrap();
    assert_eq!(verified.sound, 2);
    assert_eq!(verified.damaged, [key(2)]);
    assert_eq!(cache.verify().unwrap().damaged, []);
    fs::write(cache.temporary_folder().join("1-0"), "half").unwrap();
    assert_eq!(cache.clear().unwrap(), (2, 2 * size(&[0; 20]) + 4));
    assert_eq!(sum(&cache), 0);
    assert_eq!(lock(&cache.state).bytes, 0);
    assert!(cache.warnings().is_empty());
}

#[test]
fn several_at_once_find_nothing_or_what_was_put() {
    let folder = folder();
    let budget = 40 * 1500;
    let caches: Vec<DiskCache> = (0..4).map(|_| open(&folder, budget)).collect();
    let right = |name: u8| vec![name; usize::from(name) * 37];
    let hits = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let (cache, hits) = (&caches[thread as usize % 4], &hits);
            scope.spawn(move || {
                // The same numbers each time, others in each thread.
                let mut random = thread.wrapping_mul(0x9e37_79b9) | 1;
                for _ in 0..400 {
                    random ^= random << 13;
                    random ^= random >> 17;
                    random ^= random << 5;
                    let name = (random % 64) as u8;
                    match cache.get(&key(name)) {
                        Some(found) => {
                            assert_eq!(content(&found), right(name));
                            hits.fetch_add(1, Ordering::Relaxed);
                        }
                        None => cache.put(key(name), &on_host(&right(name)), f64::from(name)),
                    }
                }
            });
        }
    });
    assert!(hits.into_inner() > 100);
    for cache in &caches {
        assert_eq!(cache.warnings(), Vec::<String>::new());
        assert_eq!(lock(&cache.state).reserved, 0);
    }
    assert!(caches[0].temporaries().unwrap().is_empty());
    assert_eq!(caches[0].verify().unwrap().damaged, []);
    // Whoever writes next brings the folder back within its budget.
    let last = open(&folder, budget);
    last.put(key(200), &on_host(b"last"), 1.0);
    assert!(sum(&last) <= budget);
}

#[test]
fn a_damaged_entry_that_nobody_read_is_written_anew() {
    let folder = folder();
    let value = on_host(b"what it was");
    open(&folder, 1 << 20).put(key(1), &value, 1.0);
    let cache = open(&folder, 1 << 20);
    let path = cache.path(&key(1));
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    cache.put(key(1), &value, 1.0);
    assert_eq!(content(&cache.get(&key(1)).unwrap()), b"what it was");
    assert_eq!(cache.warnings().len(), 1);
}
