//! The format before torch 1.6: five pickles (a magic number, the protocol, the machine, the object, the keys of the
//! storages), and then each storage: its number of elements in eight bytes, and they.

use std::collections::HashMap;

use super::machine::{Machine, Plain};
use super::value::{Fault, Skipped, Source, Value, u64_at};

/// 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The only protocol there is.
const PROTOCOL: i64 = 1001;

/// Reads a file of `length` bytes.
pub(super) fn read(source: Source<'_>, length: u64) -> Result<(Value, Skipped), Fault> {
    let mut machine = Machine::new(source, 0, length);
    let root = machine.run()?;
    if !matches!(machine.plain(root), Plain::Large(bytes) if bytes == MAGIC) {
        return Err(
            "is a pickle, but not one that torch.save wrote (it does not begin with torch's magic \
             number)"
                .into(),
        );
    }
    let root = machine.run()?;
    match machine.plain(root) {
        Plain::Int(PROTOCOL) => {}
        _ => return Err("has an unknown torch protocol version (expected 1001)".into()),
    }
    let root = machine.run()?;
    if let Some(field) = machine.field(root, "little_endian")
        && matches!(machine.plain(field), Plain::Bool(false))
    {
        return Err(
            "was written on a big-endian machine, which is not supported; save it again on a little-endian one"
                .into(),
        );
    }
    let object = machine.run()?;
    let keys = machine.run()?;
    let keys = machine
        .texts(keys)
        .ok_or("is damaged: its list of storages is not a list of strings")?;
    let mut at = machine.position();
    let storages = machine.storages();
    let mut places: HashMap<String, usize> = storages
        .iter()
        .enumerate()
        .map(|(place, storage)| (storage.key.clone(), place))
        .collect();
    for key in keys {
        // Each is taken out, so a key that comes twice is unknown the second time.
        let Some(storage) = places
            .remove(&key)
            .and_then(|place| storages.get_mut(place))
        else {
            return Err(format!(
                "is damaged: no tensor gives the type of the storage {key:?}"
            ));
        };
        let truncated =
            || format!("is truncated: the storage {key:?} extends past the end of the file");
        let count = u64_at(&source.exact(at, 8, "a storage")?, 0);
        if count.checked_mul(storage.element) != Some(storage.bytes) {
            return Err(format!(
                "is damaged: the storage {key:?} has {count} elements; its pickle says {}",
                storage.bytes / storage.element
            ));
        }
        at += 8;
        storage.offset = at;
        at = at
            .checked_add(storage.bytes)
            .filter(|&end| end <= length)
            .ok_or_else(truncated)?;
    }
    let mut missing: Vec<String> = places.into_keys().collect();
    missing.sort_unstable();
    if let Some(key) = missing.first() {
        return Err(format!("is damaged: its storage {key:?} is missing"));
    }
    machine.value(object, length)
}
