//! What torch files hold, as data, and reading them in pieces.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use retouch_graph::Files;

/// What a torch file holds, as data.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Python's `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number, numpy's included.
    Int(i64),
    /// A number, numpy's included.
    Float(f64),
    /// A text.
    Text(Arc<str>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A list, a tuple or a set.
    List(Vec<Self>),
    /// A dictionary in its order (ordered or not), or an object that is no more than one.
    Dict(Vec<(Self, Self)>),
    /// A tensor or a parameter.
    Tensor(Box<TorchTensor>),
    /// Something that is held and not understood, by its name: `torch.float16`, the class of a callback, a numpy array.
    Opaque(Arc<str>),
}

/// Where the numbers of a tensor lie in a torch file.
///
/// The element at the index `i` begins at the byte `offset + size * sum(i[d] * strides[d])`, and the file ends behind
/// the last one.
#[derive(Clone, PartialEq, Eq)]
pub struct TorchTensor {
    /// As safetensors names it: `F16`, `BF16`, `F32`, `I64`, ... (and `C64`, `C128`).
    pub dtype: String,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// The distance of two neighbours in each dimension, in elements; 0 where a dimension repeats one element.
    pub strides: Vec<usize>,
    /// The byte of the file that its first element begins at.
    pub offset: u64,
    /// Bytes of its storage from `offset` on: what may be read.
    pub storage_bytes: u64,
    /// Its storage, where that is not a part of the file as it is: arrays of numpy are written into the pickle, most bytes
    /// as characters.
    pub inline: Option<Arc<[u8]>>,
}

impl fmt::Debug for TorchTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?} by {:?} at {} of {} bytes",
            self.dtype, self.shape, self.strides, self.offset, self.storage_bytes
        )
    }
}

impl TorchTensor {
    /// The number of its elements; [`read`](super::read) has seen to it that this does not overflow.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bytes that its elements take when they lie behind one another.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.elements() as u64 * element_bytes(&self.dtype).unwrap_or(0)
    }

    /// Whether its elements lie behind one another in the order of their indices, the last counting fastest.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&length, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if length == 0 {
                return true;
            }
            if length > 1 && stride != expected {
                return false;
            }
            expected *= length;
        }
        true
    }
}

/// Bytes of one element of a type, by its safetensors name.
#[must_use]
pub fn element_bytes(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "F32" | "I32" | "U32" => 4,
        "F64" | "I64" | "U64" | "C64" => 8,
        "C128" => 16,
        _ => return None,
    })
}

impl Value {
    /// What a dictionary holds under a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Dict(items) = self else {
            return None;
        };
        let found = items
            .iter()
            .find(|(key, _)| matches!(key, Self::Text(key) if **key == *name));
        found.map(|(_, value)| value)
    }
}

/// Objects that were passed over: the names of their classes, and how many of each there are.
pub type Skipped = BTreeMap<String, usize>;

/// A file that is read in pieces.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) files: &'a dyn Files,
}

/// What is wrong with a file, without the file's name.
pub(super) type Fault = String;

impl Source<'_> {
    /// Exactly `length` bytes from `offset` on; `what` is for the message.
    pub(super) fn exact(&self, offset: u64, length: usize, what: &str) -> Result<Vec<u8>, Fault> {
        let bytes = self
            .files
            .read_at(self.path, offset, length)
            .map_err(|e| format!("cannot be read: {e}"))?;
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(format!(
                "is truncated: {what} extends past the end of the file"
            ))
        }
    }
}

/// The little-endian number of the two bytes at `at`; zero beyond the end, which callers have excluded.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// As [`u16_at`], of four bytes.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// As [`u16_at`], of eight bytes.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
