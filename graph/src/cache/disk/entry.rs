//! An entry of the disk cache as a file: its format, reading and checking it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::error::NodeError;
use crate::base::key::Key;
use crate::cache::interface::Outputs;
use crate::files;
use crate::value::payload::Decoders;

pub(super) const MAGIC: &[u8; 8] = b"retouch1";
/// The magic and the length of the header.
pub(super) const PREFIX: usize = 12;
pub(super) const DIGEST: usize = blake3::OUT_LEN;
/// No header is longer: it names the output ports of one node.
pub(super) const HEADER_LIMIT: u32 = 1 << 20;
/// How much is hashed at a time where the values are not needed.
const CHUNK: usize = 1 << 18;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    key: String,
    pub(super) seconds: f64,
    pub(super) values: Vec<Stored>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    port: String,
    #[serde(rename = "type")]
    pub(super) type_name: String,
    bytes: u64,
}

/// Why an entry cannot be used.
#[derive(Debug)]
pub(super) enum Flaw {
    /// It is not there, or not any more.
    Gone,
    /// The system does not give its content, which says nothing about it.
    Unreadable(io::Error),
    /// It is not as it was written, or not for this program.
    Damaged(String),
}

impl Flaw {
    fn damaged(why: &str) -> Self {
        Self::Damaged(why.to_owned())
    }
}

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone,
            io::ErrorKind::UnexpectedEof => Self::damaged("it ends too early"),
            // A folder or a pipe, say: no entry, and nothing of the cache's own to remove.
            io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => Self::Gone,
            _ => Self::Unreadable(error),
        }
    }
}

/// An entry whose header is read: its values come next.
pub(super) struct Opened<R> {
    file: R,
    pub(super) header: Header,
    /// Over what was read so far.
    hasher: blake3::Hasher,
}

/// An entry as it is written, without the digest.
pub(super) struct Encoded {
    pub(super) head: Vec<u8>,
    pub(super) values: Vec<Vec<u8>>,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

impl<R: Read> Opened<R> {
    /// Checks the rest of the file without keeping it.
    pub(super) fn check(mut self) -> Result<(), Flaw> {
        let mut left: u64 = self.header.values.iter().map(|value| value.bytes).sum();
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            let count = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            self.file.read_exact(&mut buffer[..count])?;
            self.hasher.update(&buffer[..count]);
            left -= count as u64;
        }
        self.check_digest()
    }

    fn check_digest(&mut self) -> Result<(), Flaw> {
        let mut digest = [0; DIGEST];
        self.file.read_exact(&mut digest)?;
        if self.hasher.finalize() == digest {
            Ok(())
        } else {
            Err(Flaw::damaged("its checksum does not match its content"))
        }
    }

    /// The values; none is decoded before all are known to be what was written.
    pub(super) fn decode(mut self, decoders: &Decoders) -> Result<(Outputs, f64), Flaw> {
        let mut contents = Vec::with_capacity(self.header.values.len());
        for value in &self.header.values {
            let mut content = Vec::new();
            // The file is as long as its header says, so this asks for no more than there is.
            usize::try_from(value.bytes)
                .ok()
                .and_then(|bytes| content.try_reserve_exact(bytes).ok())
                .ok_or_else(|| Flaw::Unreadable(io::ErrorKind::OutOfMemory.into()))?;
            (&mut self.file)
                .take(value.bytes)
                .read_to_end(&mut content)?;
            self.hasher.update(&content);
            contents.push(content);
        }
        self.check_digest()?;
        let mut outputs = BTreeMap::new();
        for (stored, content) in self.header.values.into_iter().zip(contents) {
            let value = decoders
                .decode(&stored.type_name, &content)
                .map_err(|error| Flaw::Damaged(error.to_string()))?;
            outputs.insert(Cow::Owned(stored.port), value);
        }
        Ok((Arc::new(outputs), self.header.seconds))
    }
}

impl Encoded {
    /// `None` when a value is of a type that is not kept on disk.
    pub(super) fn new(
        key: &Key,
        outputs: &Outputs,
        seconds: f64,
    ) -> Result<Option<Self>, NodeError> {
        let mut header = Header {
            key: key.to_string(),
            seconds: if seconds.is_finite() {
                seconds.max(0.0)
            } else {
                0.0
            },
            values: Vec::with_capacity(outputs.len()),
        };
        let mut values = Vec::with_capacity(outputs.len());
        for (port, value) in outputs.iter() {
            let Some(content) = value.to_disk() else {
                return Ok(None);
            };
            let content = content?;
            header.values.push(Stored {
                port: port.clone().into_owned(),
                type_name: value.type_name().to_owned(),
                bytes: content.len() as u64,
            });
            values.push(content);
        }
        let json =
            serde_json::to_vec(&header).map_err(|error| NodeError::failed(error.to_string()))?;
        let Some(length) = u32::try_from(json.len())
            .ok()
            .filter(|&length| length <= HEADER_LIMIT)
        else {
            return Ok(None);
        };
        let mut head = Vec::with_capacity(PREFIX + json.len());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&json);
        let content: u64 = header.values.iter().map(|value| value.bytes).sum();
        Ok(Some(Self {
            bytes: head.len() as u64 + content + DIGEST as u64,
            seconds: header.seconds,
            head,
            values,
        }))
    }

    /// All of it in one piece, the digest last.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.bytes).unwrap_or(0));
        for part in std::iter::once(&self.head).chain(&self.values) {
            bytes.extend_from_slice(part);
        }
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    }
}

/// Opens an entry and reads its header, which has the right key and gives the right length.
pub(super) fn open_entry(path: &Path, key: &Key) -> Result<Opened<File>, Flaw> {
    let file = files::open(path)?;
    let length = file.metadata()?.len();
    open(file, length, key)
}

/// The same of an entry that is in memory, from wherever.
pub(super) fn open_bytes<'a>(bytes: &'a [u8], key: &Key) -> Result<Opened<&'a [u8]>, Flaw> {
    open(bytes, bytes.len() as u64, key)
}

fn open<R: Read>(mut file: R, whole_length: u64, key: &Key) -> Result<Opened<R>, Flaw> {
    let mut prefix = [0; PREFIX];
    file.read_exact(&mut prefix)?;
    let (magic, length) = prefix.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Flaw::damaged("it is not an entry"));
    }
    let length = length.try_into().map_or(u32::MAX, u32::from_le_bytes);
    // The limit bounds what is set aside for the header, whatever the file says.
    if length > HEADER_LIMIT {
        return Err(Flaw::damaged("its header is too long"));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json)?;
    let header: Header =
        serde_json::from_slice(&json).map_err(|_| Flaw::damaged("its header is not readable"))?;
    let whole = header
        .values
        .iter()
        .try_fold((PREFIX + json.len() + DIGEST) as u64, |sum, value| {
            sum.checked_add(value.bytes)
        });
    if whole != Some(whole_length) {
        return Err(Flaw::damaged("it is not as long as its header says"));
    }
    if Key::parse(&header.key) != Some(*key) {
        return Err(Flaw::damaged("it is the entry of another key"));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&prefix).update(&json);
    Ok(Opened {
        file,
        header,
        hasher,
    })
}

/// Whether the entry that is there, by its header, has fewer ports than these.
pub(super) fn lacks(path: &Path, key: &Key, outputs: &Outputs) -> bool {
    let Ok(Opened { header, .. }) = open_entry(path, key) else {
        return false; // reading it says more
    };
    let has = |port: &str| header.values.iter().any(|stored| stored.port == port);
    // What has no form on disk is in no entry.
    header.values.len() < outputs.len() && !outputs.keys().all(|port| has(port))
}
