//! The header of a safetensors file: what it holds, without the data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use retouch_graph::Files;
use serde::Deserialize;

use crate::{Error, Result};

/// The longest header that is read: 100 MB, the limit of the safetensors format itself.
const MAX_HEADER: u64 = 100_000_000;

/// A header is read in a first piece of this size; a longer one in a second.
const FIRST_PIECE: usize = 64 * 1024;
/// The message of a file that is not there.
pub const NO_SUCH_FILE: &str = "no such file";

/// What the header of a safetensors file says of one tensor.
#[derive(Clone, Debug, Deserialize)]
pub struct TensorInfo {
    /// `F16`, `BF16`, `F32`, ...
    pub dtype: String,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// First byte and one past the last, counted from the end of the header.
    pub data_offsets: (u64, u64),
}

/// The header of a safetensors file: what it holds, without the data.
#[derive(Clone, Debug)]
pub struct Header {
    /// The file.
    pub file: PathBuf,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Its free-form metadata.
    pub metadata: BTreeMap<String, String>,
    /// The byte of the file that offsets are counted from.
    pub data_start: u64,
}

impl Header {
    /// The number of bytes at the beginning of a file that [`Header::parse`] needs, from its first eight.
    ///
    /// # Errors
    /// When eight bytes cannot be the beginning of a safetensors file of `length` bytes.
    pub fn length(file: &Path, first: &[u8], length: u64) -> Result<usize> {
        let bad = |message: String| Error::Weights {
            file: file.to_owned(),
            message,
        };
        let Some(first) = first.first_chunk::<8>() else {
            return Err(bad(format!(
                "has {length} bytes; a safetensors file has at least 8"
            )));
        };
        let header = u64::from_le_bytes(*first);
        if header > MAX_HEADER {
            return Err(bad(
                "is not a safetensors file (its first 8 bytes are not the length of a header)"
                    .into(),
            ));
        }
        if header + 8 > length {
            return Err(bad(format!(
                "is truncated: its header ends at byte {}, the file at byte {length}",
                header + 8
            )));
        }
        usize::try_from(header + 8)
            .map_err(|_| bad("has a header that does not fit in memory".into()))
    }

    /// Reads the header from the beginning of a file of `length` bytes and checks that the data it promises is there.
    ///
    /// # Errors
    /// When it is not a safetensors header, or the file is shorter (or longer) than it says.
    pub fn parse(file: &Path, head: &[u8], length: u64) -> Result<Self> {
        let bad = |message: String| Error::Weights {
            file: file.to_owned(),
            message,
        };
        let end = Self::length(file, head, length)?;
        let json = head
            .get(8..end)
            .ok_or_else(|| bad("has a header that could not be read whole".into()))?;
        let mut entries: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json)
            .map_err(|e| {
                bad(format!(
                    "is not a safetensors file: its header is not JSON ({e})"
                ))
            })?;
        let metadata = entries
            .remove("__metadata__")
            .and_then(|m| serde_json::from_value(m).ok())
            .unwrap_or_default();
        let mut tensors = BTreeMap::new();
        let mut last = 0;
        for (name, entry) in entries {
            let info: TensorInfo = serde_json::from_value(entry).map_err(|e| {
                bad(format!(
                    "has an invalid header entry for the tensor `{name}` ({e})"
                ))
            })?;
            // Of a type that is not known only the number of elements must be one.
            let size = dtype_bytes(&info.dtype);
            let bytes = info
                .shape
                .iter()
                .try_fold(size.unwrap_or(1), |a, &d| a.checked_mul(d as u64));
            let (start, stop) = info.data_offsets;
            let fits =
                bytes.is_some_and(|bytes| size.is_none() || stop.checked_sub(start) == Some(bytes));
            if stop < start || !fits {
                return Err(bad(format!(
                    "is damaged: the tensor `{name}` ({} {:?}) does not take the bytes {start}..{stop}",
                    info.dtype, info.shape
                )));
            }
            last = last.max(stop);
            tensors.insert(name, info);
        }
        let expected = last.saturating_add(end as u64);
        if expected != length {
            return Err(bad(format!(
                "is {}: its header promises {expected} bytes, the file has {length}",
                if expected > length {
                    "truncated"
                } else {
                    "damaged"
                }
            )));
        }
        Ok(Self {
            file: file.to_owned(),
            tensors,
            metadata,
            data_start: end as u64,
        })
    }

    /// Reads the header of a file.
    ///
    /// # Errors
    /// When there is no such file ([`Error::Weights`] with the message [`NO_SUCH_FILE`]) or it is none of safetensors.
    pub fn read(path: &Path, files: &dyn Files) -> Result<Self> {
        let read = |length| {
            files.read_head(path, length).map_err(|e| Error::Weights {
                file: path.to_owned(),
                message: match e.kind() {
                    std::io::ErrorKind::NotFound => NO_SUCH_FILE.into(),
                    _ => e.to_string(),
                },
            })
        };
        let (mut head, length) = read(FIRST_PIECE)?;
        let needed = Self::length(path, &head, length)?;
        if needed > head.len() {
            (head, _) = read(needed)?;
        }
        Self::parse(path, &head, length)
    }
}

/// Bytes of one element, for the types that the format knows.
pub(crate) fn dtype_bytes(name: &str) -> Option<u64> {
    Some(match name {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "F32" | "I32" | "U32" => 4,
        "F64" | "I64" | "U64" => 8,
        _ => return None,
    })
}
