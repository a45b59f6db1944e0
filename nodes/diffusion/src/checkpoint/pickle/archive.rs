//! The format since torch 1.6: a zip archive of stored entries, `NAME/data.pkl` and `NAME/data/KEY` for each storage.
//!
//! Nothing is unpacked: entries are found in the archive's table of contents, which has to agree with what lies before
//! each entry. An archive that two programs could read in two ways is refused.

use std::collections::HashMap;

use super::machine::Machine;
use super::value::{Fault, Skipped, Source, Value, u16_at, u32_at, u64_at};

/// Where a table of contents ends: 22 bytes and a comment of at most 65,535.
const END: usize = 22;
const LONGEST_END: u64 = 22 + 65_535;
/// The longest table of contents that is read: about 300,000 storages.
const LONGEST_DIRECTORY: u64 = 32 << 20;
/// What a field holds whose number is in the entry's zip64 part.
const ELSEWHERE: u32 = u32::MAX;

struct Entry {
    /// Where the bytes that stand before its data begin.
    header: u64,
    size: u64,
    method: u16,
    flags: u16,
}

struct Archive<'a> {
    source: Source<'a>,
    entries: HashMap<Vec<u8>, Entry>,
    /// Where the table of contents begins: data ends before.
    directory: u64,
}

fn damaged(what: &str) -> Fault {
    format!("is damaged or not a zip archive: {what}")
}

fn shown(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).chars().take(120).collect();
    format!("{text:?}")
}

/// Names that would lead out of the folder that the archive is unpacked into.
fn is_safe(name: &[u8]) -> bool {
    !name.is_empty()
        && !name.starts_with(b"/")
        && !name.contains(&b'\\')
        && !name.contains(&0)
        && name.split(|&byte| byte == b'/').all(|part| part != b"..")
}

impl<'a> Archive<'a> {
    fn open(source: Source<'a>, length: u64) -> Result<Self, Fault> {
        let first = length.saturating_sub(LONGEST_END);
        let tail = source.exact(first, (length - first) as usize, "its central directory")?;
        // The end stands behind a table and before a comment that reaches to the end of the file.
        let at = (0..=tail.len().saturating_sub(END))
            .rev()
            .find(|&at| {
                tail[at..].starts_with(b"PK\x05\x06")
                    && at + END + usize::from(u16_at(&tail, at + 20)) == tail.len()
            })
            .ok_or_else(|| {
                "is a zip archive without a central directory: it is damaged or truncated (an \
                 interrupted download?)"
                    .to_owned()
            })?;
        let (mut count, mut size, mut directory) = (
            u64::from(u16_at(&tail, at + 10)),
            u64::from(u32_at(&tail, at + 12)),
            u64::from(u32_at(&tail, at + 16)),
        );
        let small = (count, size, directory);
        let mut end = first + at as u64;
        if let Some(before) = end.checked_sub(20) {
            let locator = source.exact(before, 20, "its central directory")?;
            if locator.starts_with(b"PK\x06\x07") {
                end = u64_at(&locator, 8);
                if end.checked_add(56).is_none_or(|after| after > before) {
                    return Err(damaged("its zip64 end record is not where it should be"));
                }
                let large = source.exact(end, 56, "its central directory")?;
                if !large.starts_with(b"PK\x06\x06") {
                    return Err(damaged("its zip64 end record is not where it should be"));
                }
                count = u64_at(&large, 32);
                size = u64_at(&large, 40);
                directory = u64_at(&large, 48);
                let agree = |small: u64, all: u64, large: u64| small == all || small == large;
                if !agree(small.0, u16::MAX.into(), count)
                    || !agree(small.1, ELSEWHERE.into(), size)
                    || !agree(small.2, ELSEWHERE.into(), directory)
                {
                    return Err(damaged("it has two central directories that differ"));
                }
            }
        }
        if directory.checked_add(size) != Some(end) {
            return Err(damaged(
                "its central directory is not where its end record says",
            ));
        }
        if size > LONGEST_DIRECTORY {
            return Err(format!(
                "has a central directory of {size} bytes; at most {LONGEST_DIRECTORY} are read"
            ));
        }
        let table = source.exact(directory, size as usize, "its central directory")?;
        let mut archive = Self {
            source,
            entries: HashMap::new(),
            directory,
        };
        let mut rest = table.as_slice();
        for _ in 0..count {
            rest = archive.entry(rest)?;
        }
        if !rest.is_empty() {
            return Err(damaged(
                "its central directory has more entries than its end record says",
            ));
        }
        Ok(archive)
    }

    /// Takes the first entry of a table of contents, and gives the rest.
    fn entry<'b>(&mut self, table: &'b [u8]) -> Result<&'b [u8], Fault> {
        let short = || damaged("its central directory ends within an entry");
        if !table.starts_with(b"PK\x01\x02") || table.len() < 46 {
            return Err(short());
        }
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(table, at)));
        let rest = table.get(46 + name + extra + comment..).ok_or_else(short)?;
        let mut extra = &table[46 + name..46 + name + extra];
        let name = &table[46..46 + name];
        let (packed, size, header) = (u32_at(table, 20), u32_at(table, 24), u32_at(table, 42));
        let mut large: &[u8] = &[];
        while let [a, b, c, d, ..] = *extra {
            let length = usize::from(u16::from_le_bytes([c, d]));
            let body = extra
                .get(4..4 + length)
                .ok_or_else(|| damaged("an entry's extra fields are cut off"))?;
            if u16::from_le_bytes([a, b]) == 1 {
                large = body;
            }
            extra = &extra[4 + length..];
        }
        // The zip64 part holds those of the three that do not fit, in this order.
        let mut wide = |small: u32| -> Result<u64, Fault> {
            if small != ELSEWHERE {
                return Ok(small.into());
            }
            let (number, after) = large
                .split_first_chunk()
                .ok_or_else(|| damaged("an entry's size is missing"))?;
            large = after;
            Ok(u64::from_le_bytes(*number))
        };
        let size = wide(size)?;
        let packed = wide(packed)?;
        let header = wide(header)?;
        if !is_safe(name) {
            return Err(format!(
                "is refused: its entry {} would lead out of the archive",
                shown(name)
            ));
        }
        let entry = Entry {
            header,
            size,
            method: u16_at(table, 10),
            flags: u16_at(table, 8),
        };
        if entry.method == 0 && packed != size {
            return Err(damaged("a stored entry has two sizes"));
        }
        if self.entries.insert(name.to_vec(), entry).is_some() {
            return Err(format!(
                "is refused: it has two entries {}, so that it could be read in two ways",
                shown(name)
            ));
        }
        Ok(rest)
    }

    /// Where the data of an entry lies: its first byte and the number of them.
    fn data(&self, name: &[u8]) -> Result<Option<(u64, u64)>, Fault> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        let lies = || {
            format!(
                "is refused: the local header of its entry {} does not match its central directory",
                shown(name)
            )
        };
        if entry.flags & 1 != 0 {
            return Err(format!("has an encrypted entry {}", shown(name)));
        }
        if entry.method != 0 {
            return Err(format!(
                "has a compressed entry {}; torch stores its entries as they are",
                shown(name)
            ));
        }
        let after = entry.header.checked_add(30 + name.len() as u64);
        let Some(after) = after.filter(|&after| after <= self.directory) else {
            return Err(lies());
        };
        let before = self
            .source
            .exact(entry.header, 30 + name.len(), "an entry")?;
        // The sizes may stand behind the data instead (bit 3), or in the zip64 part.
        let size = |at| {
            let size = u32_at(&before, at);
            u64::from(size) == entry.size
                || size == ELSEWHERE
                || (size == 0 && u16_at(&before, 6) & 8 != 0)
        };
        if !before.starts_with(b"PK\x03\x04")
            || u16_at(&before, 8) != entry.method
            || usize::from(u16_at(&before, 26)) != name.len()
            || &before[30..] != name
            || !size(18)
            || !size(22)
        {
            return Err(lies());
        }
        let start = after + u64::from(u16_at(&before, 28));
        match start.checked_add(entry.size) {
            Some(end) if end <= self.directory => Ok(Some((start, entry.size))),
            _ => Err(lies()),
        }
    }

    /// A short text beside the pickle: `byteorder`.
    fn note(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let Some((start, size)) = self.data(name)? else {
            return Ok(None);
        };
        if size > 64 {
            return Err(format!("has {size} bytes in {}", shown(name)));
        }
        self.source
            .exact(start, size as usize, "an entry")
            .map(Some)
    }
}

/// Reads an archive of `length` bytes.
pub(super) fn read(source: Source<'_>, length: u64) -> Result<(Value, Skipped), Fault> {
    const PICKLE: &[u8] = b"/data.pkl";
    let archive = Archive::open(source, length)?;
    let mut folders = archive
        .entries
        .keys()
        .filter_map(|name| name.strip_suffix(PICKLE));
    let folder = folders.next().map(<[u8]>::to_vec).ok_or_else(|| {
        "is a zip archive without a `data.pkl`, so torch did not write it; unpack it if what you \
         want is inside"
            .to_owned()
    })?;
    if folders.next().is_some() {
        return Err(
            "is refused: it has two `data.pkl`, so that it could be read in two ways".into(),
        );
    }
    let named = |name: &str| [&folder, b"/".as_slice(), name.as_bytes()].concat();
    if archive.entries.contains_key(&named("constants.pkl")) {
        return Err(
            "is a TorchScript program and not a file of weights; save its `state_dict()` instead"
                .into(),
        );
    }
    match archive.note(&named("byteorder"))?.as_deref() {
        None | Some(b"little") => {}
        _ => {
            return Err(
                "was written on a big-endian machine, which is not supported; save it again on a little-endian one"
                    .into(),
            );
        }
    }
    let (start, size) = archive
        .data(&named("data.pkl"))?
        .ok_or_else(|| damaged("it has no pickle"))?;
    let mut machine = Machine::new(source, start, start + size);
    let root = machine.run()?;
    if machine.position() != start + size {
        return Err(damaged("there is more data after the end of its pickle"));
    }
    let mut used = vec![(start, size, "data.pkl".to_owned())];
    for storage in machine.storages() {
        let name = format!("data/{}", storage.key);
        let bytes = storage.bytes;
        let (at, size) = match archive.data(&named(&name))? {
            Some(found) => found,
            None if bytes == 0 => (0, 0),
            None => return Err(damaged(&format!("the storage `{name}` is missing"))),
        };
        if size < bytes {
            return Err(damaged(&format!(
                "the storage `{name}` has {size} bytes; its pickle says {bytes}"
            )));
        }
        storage.offset = at;
        if size > 0 {
            used.push((at, size, name));
        }
    }
    used.sort_unstable();
    for pair in used.windows(2) {
        if let [(start, size, first), (next, _, second)] = pair
            && start + size > *next
        {
            return Err(format!(
                "is refused: its entries `{first}` and `{second}` overlap"
            ));
        }
    }
    machine.value(root, length)
}
