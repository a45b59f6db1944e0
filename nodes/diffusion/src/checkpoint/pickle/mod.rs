//! Torch files (`.bin`, `.ckpt`, `.pt`, `.pth`) read as data: nothing in them is ever executed.
//!
//! A torch file is a pickle, which is a program for a small stack machine, with the numbers of its tensors beside it:
//! in a zip archive since torch 1.6, behind one another in the older format. Python's unpickler imports and calls what
//! the program names; this one has an own machine that knows a list of opcodes and a list of globals, and understands
//! both as data. There is nothing in it that could call anything.
//!
//! What is understood:
//!
//! - the opcodes that pickle protocols 2 to 5 write for data, with `GLOBAL`, `STACK_GLOBAL`, `REDUCE`, `NEWOBJ`,
//!   `NEWOBJ_EX` (without keywords), `BUILD` and `BINPERSID`; every other opcode is refused by its name;
//! - `REDUCE` and `NEWOBJ` of the globals that torch and numpy describe data with (tensors, parameters, storages,
//!   `torch.Size`, `torch.device`, `collections.OrderedDict`, sets, `ParameterDict` and `ParameterList`,
//!   `argparse.Namespace`, numpy's scalars, types and arrays, and tensors that were written as such an array);
//! - `BUILD` of a dictionary with a dictionary, of a numpy array with a tuple; any other state is for an object's own
//!   `__setstate__`, and refused by that name;
//! - a global that is unknown and only *held* (Lightning checkpoints name the class of a callback as a key, old files
//!   the class of a module) is an opaque value with that name. It is a name and no more, nothing is looked up, and no
//!   tensor can depend on it: whatever is done with it (called, built, used as a storage) is refused.
//!
//! - an object of a class that is unknown (`omegaconf.dictconfig.DictConfig`, what Lightning checkpoints of the original
//!   training code hold beside their `state_dict`) is passed over: it is an opaque value with the name of its class. What it
//!   was made of and filled with is passed over with it, a tensor inside it too, and whatever would be made of it is refused.
//!   [`read_and_skipped`] counts such objects by class, and `retouch inspect` tells of them: the file does more than to hold
//!   data, and other programs would run the code of these classes.
//!
//! Everything else that a pickle would have Python *call* is refused by its name: functions (by Python's conventions a name
//! in lower case), unknown names of torch and numpy (quantised, sparse and nested tensors among them), and all of the modules
//! that act, whatever their case (`os`, `subprocess`, `builtins`, `sys`, `importlib`, `runpy`, `socket`, `pickle`, ...).
//! This is not what keeps the machine safe, as there is nothing in it that calls; it keeps a file that attacks other programs
//! from being taken for a model.
//!
//! Only the pickle and the table of contents are read. [`TorchTensor`] says where in the file the numbers lie, checked
//! against the storage and the file. A pickle has at most 32 MiB and two million steps; memory is bounded by about
//! 150 bytes for each of its bytes, and values that share parts by what it took to write them.

mod archive;
mod legacy;
mod machine;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use retouch_graph::Files;

use crate::{Error, Result};

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
    /// The number of its elements; [`read`] has seen to it that this does not overflow.
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

/// Whether a file that begins so (two bytes are enough) may be a torch file: a zip archive, or a pickle.
#[must_use]
pub fn is_torch(head: &[u8]) -> bool {
    is_archive(head) || matches!(head, [0x80, 2..=5, ..])
}

fn is_archive(head: &[u8]) -> bool {
    head.starts_with(b"PK")
}

/// Objects that were passed over: the names of their classes, and how many of each there are.
pub type Skipped = BTreeMap<String, usize>;

/// Reads what a torch file holds, without the numbers of its tensors.
///
/// # Errors
/// When it cannot be read, is damaged or no torch file, or when its pickle does more than to describe data: that is
/// refused with the name of the opcode or of the global (`os.system`).
pub fn read(path: &Path, files: &dyn Files) -> Result<Value> {
    read_and_skipped(path, files).map(|(value, _)| value)
}

/// As [`read`], and the objects of unknown classes that were passed over.
///
/// # Errors
/// As [`read`].
pub fn read_and_skipped(path: &Path, files: &dyn Files) -> Result<(Value, Skipped)> {
    let bad = |message: String| Error::Weights {
        file: path.to_owned(),
        message,
    };
    let source = Source { path, files };
    let (head, length) = files
        .read_head(path, 4)
        .map_err(|e| bad(format!("cannot be read: {e}")))?;
    if is_archive(&head) {
        archive::read(source, length)
    } else if is_torch(&head) {
        legacy::read(source, length)
    } else {
        Err("is not a torch file: it begins neither as a zip archive nor as a pickle".to_owned())
    }
    .map_err(bad)
}

/// The tensors of a torch file by name.
///
/// They are those below `state_dict` where that holds any, else all of them. The keys of nested dictionaries are joined
/// with `.`, numbers (and places in lists) in decimals; what has a key of another kind is left out.
#[must_use]
pub fn tensors(value: &Value) -> Vec<(String, &TorchTensor)> {
    let mut all = Vec::new();
    if let Some(state) = value.get("state_dict") {
        collect(state, &mut Vec::new(), &mut all);
    }
    if all.is_empty() {
        collect(value, &mut Vec::new(), &mut all);
    }
    all
}

/// A part of a tensor's name.
#[derive(Clone, Copy)]
enum Part<'a> {
    Text(&'a str),
    Number(i64),
}

/// Goes down a value, which [`read`] made no deeper than [`machine::DEPTH`]. A name is written out for a tensor alone: the
/// keys of what holds none may be long, and one key be named very often.
fn collect<'a>(
    value: &'a Value,
    path: &mut Vec<Part<'a>>,
    all: &mut Vec<(String, &'a TorchTensor)>,
) {
    match value {
        Value::Tensor(tensor) => {
            let mut name = String::new();
            for part in path.iter() {
                if !name.is_empty() {
                    name.push('.');
                }
                match part {
                    Part::Text(text) => name.push_str(text),
                    Part::Number(number) => name.push_str(&number.to_string()),
                }
            }
            all.push((name, tensor));
        }
        Value::List(items) => {
            for (place, item) in items.iter().enumerate() {
                path.push(Part::Number(place as i64));
                collect(item, path, all);
                path.pop();
            }
        }
        Value::Dict(items) => {
            for (key, item) in items {
                path.push(match key {
                    Value::Text(key) => Part::Text(key),
                    Value::Int(key) => Part::Number(*key),
                    _ => continue,
                });
                collect(item, path, all);
                path.pop();
            }
        }
        _ => {}
    }
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

/// A file that is read in pieces.
#[derive(Clone, Copy)]
struct Source<'a> {
    path: &'a Path,
    files: &'a dyn Files,
}

/// What is wrong with a file, without the file's name.
type Fault = String;

impl Source<'_> {
    /// Exactly `length` bytes from `offset` on; `what` is for the message.
    fn exact(&self, offset: u64, length: usize, what: &str) -> Result<Vec<u8>, Fault> {
        let bytes = self
            .files
            .read_at(self.path, offset, length)
            .map_err(|e| format!("cannot be read: {e}"))?;
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(format!("is truncated: {what} ends behind the file"))
        }
    }
}

/// The little-endian number of the two bytes at `at`; zero beyond the end, which callers have excluded.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// As [`u16_at`], of four bytes.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// As [`u16_at`], of eight bytes.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
