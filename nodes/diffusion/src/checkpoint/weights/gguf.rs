//! GGUF, ggml's files of weights (specification: ggml-org/ggml, `docs/gguf.md`), versions 2 and 3: what a file holds, without
//! its numbers.
//!
//! Names are as the programs write them: stable-diffusion.cpp the original ones of a whole checkpoint, ComfyUI-GGUF those of
//! a U-Net alone, without its prefix. Dimensions are written from the innermost outwards and are turned round here. Where
//! ComfyUI-GGUF quantised a convolution, its shape is that of rows of 256 numbers, and the true one is in the metadata
//! (`comfy.gguf.orig_shape.NAME`).
//!
//! candle's reader of these files is not used: a header is untrusted, and that reader divides by the alignment that it
//! states, keeps arrays of any length at 32 bytes an element, and lets a tensor that comes twice replace itself. Here the
//! header has at most 32 MiB, arrays are passed over, and every tensor lies inside the file and on no other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use retouch_graph::Files;

use super::block::Block;
use super::header::dtype_bytes;
use super::table::{Stored, Table, dense_strides};
use crate::{Error, Result};

const MAGIC: &[u8] = b"GGUF";
/// The longest header that is read. Those of diffusion models have some hundred KB.
const LONGEST: u64 = 32 << 20;
/// Bytes that are read at once, or twice as many as before.
const PIECE: u64 = 1 << 16;
/// The longest name, and the longest text of the metadata that is kept.
const NAME: usize = 1 << 10;
/// The most tensors and the most entries of metadata.
const MOST: u64 = 1 << 17;
/// The most dimensions: ggml's, and the original ones of ComfyUI-GGUF.
const RANK: usize = 4;
const ORIGINAL_RANK: usize = 8;
/// How deep arrays lie in arrays.
const DEPTH: usize = 4;
/// Where data begins, when the file does not say it.
const ALIGNMENT: u64 = 32;
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// Whether a file begins as one of GGUF.
#[must_use]
pub fn is_gguf(path: &Path, files: &dyn Files) -> bool {
    files
        .read_head(path, MAGIC.len())
        .is_ok_and(|(head, _)| head == MAGIC)
}

/// The name of a type of tensors as safetensors or ggml has it.
fn dtype(number: u32) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        30 => "BF16",
        _ => return Block::name_of(number),
    })
}

/// The name of a type that is not read, for messages.
fn unread(number: u32) -> String {
    let name = match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16..=23 | 29 => "IQ",
        34 | 35 => "TQ",
        39 => "MXFP4",
        _ => return format!("of the number {number}"),
    };
    match name {
        "IQ" | "TQ" => format!("of ggml's {name} family"),
        name => name.to_owned(),
    }
}

/// What is wrong with a file, without its name.
type Fault = String;

/// The header, read as far as it was needed.
struct Tape<'a> {
    path: &'a Path,
    files: &'a dyn Files,
    length: u64,
    bytes: Vec<u8>,
    at: usize,
}

impl Tape<'_> {
    fn take(&mut self, count: u64) -> Result<&[u8], Fault> {
        let have = self.bytes.len() as u64;
        let wanted = (self.at as u64)
            .checked_add(count)
            .filter(|&wanted| wanted <= self.length)
            .ok_or("is truncated: its header extends past the end of the file")?;
        if wanted > LONGEST {
            return Err(format!(
                "has a header larger than the limit of {LONGEST} bytes"
            ));
        }
        if wanted > have {
            let more = (wanted - have).max(PIECE).max(have).min(self.length - have);
            let piece = self
                .files
                .read_at(self.path, have, more as usize)
                .map_err(|e| format!("cannot be read: {e}"))?;
            if (piece.len() as u64) < more {
                return Err("is truncated: its header extends past the end of the file".into());
            }
            self.bytes.extend_from_slice(&piece);
        }
        let start = self.at;
        self.at = wanted as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut number = [0; N];
        number.copy_from_slice(self.take(N as u64)?);
        Ok(number)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    /// A name: of a tensor, or a key.
    fn name(&mut self) -> Result<String, Fault> {
        let length = self.u64()?;
        if length > NAME as u64 {
            return Err(format!(
                "is damaged: it has a name of {length} bytes; at most {NAME} are read"
            ));
        }
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| "is damaged: it has a name that is not UTF-8".into())
    }

    /// A value of the metadata; `None` of what is passed over: arrays but short ones of whole numbers, and long texts.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Option<Value>, Fault> {
        Ok(Some(match kind {
            0 => Value::Whole(self.fixed::<1>()?[0].into()),
            1 => Value::Whole(i8::from_le_bytes(self.fixed()?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.fixed()?).into()),
            3 => Value::Whole(i16::from_le_bytes(self.fixed()?).into()),
            4 => Value::Whole(self.u32()?.into()),
            5 => Value::Whole(i32::from_le_bytes(self.fixed()?).into()),
            6 => Value::Text(f32::from_le_bytes(self.fixed()?).to_string()),
            7 => Value::Text((self.fixed::<1>()?[0] != 0).to_string()),
            8 => {
                let length = self.u64()?;
                let bytes = self.take(length)?;
                match std::str::from_utf8(bytes) {
                    Ok(text) if text.len() <= NAME => Value::Text(text.to_owned()),
                    _ => return Ok(None),
                }
            }
            9 => {
                if depth >= DEPTH {
                    return Err(format!(
                        "is damaged: its metadata has arrays nested more than {DEPTH} deep"
                    ));
                }
                let kind = self.u32()?;
                let count = self.u64()?;
                let size: Option<u64> = match kind {
                    0 | 1 | 7 => Some(1),
                    2 | 3 => Some(2),
                    4..=6 => Some(4),
                    10..=12 => Some(8),
                    _ => None,
                };
                let is_whole = matches!(kind, 0..=5 | 10 | 11);
                if is_whole && count <= ORIGINAL_RANK as u64 {
                    let mut all = Vec::new();
                    for _ in 0..count {
                        if let Some(Value::Whole(number)) = self.value(kind, depth + 1)? {
                            all.push(number);
                        }
                    }
                    return Ok(Some(Value::Wholes(all)));
                }
                if let Some(size) = size {
                    self.take(count.saturating_mul(size))?;
                } else {
                    // Each element takes bytes of the header, which end.
                    for _ in 0..count {
                        self.value(kind, depth + 1)?;
                    }
                }
                return Ok(None);
            }
            10 => Value::Whole(self.u64()?.into()),
            11 => Value::Whole(i64::from_le_bytes(self.fixed()?).into()),
            12 => Value::Text(f64::from_le_bytes(self.fixed()?).to_string()),
            other => {
                return Err(format!(
                    "is damaged: its metadata has a value of the unknown type {other}"
                ));
            }
        }))
    }
}

/// A value of the metadata, as far as it is kept.
enum Value {
    Whole(i128),
    Text(String),
    Wholes(Vec<i128>),
}

/// A tensor as the header has it.
struct Told {
    name: String,
    shape: Vec<usize>,
    dtype: &'static str,
    offset: u64,
}

/// The tensors of a GGUF file. `place` is where the file really is.
pub(super) fn read(path: &Path, place: &Path, files: &dyn Files) -> Result<Table> {
    parse(path, place, files).map_err(|message| Error::Weights {
        file: path.to_owned(),
        message,
    })
}

// Long: one pass over the header, each field checked before the next is read.
fn parse(path: &Path, place: &Path, files: &dyn Files) -> Result<Table, Fault> {
    let (bytes, length) = files
        .read_head(path, PIECE as usize)
        .map_err(|e| format!("cannot be read: {e}"))?;
    let mut tape = Tape {
        path,
        files,
        length,
        bytes,
        at: 0,
    };
    if tape.fixed::<4>()? != *MAGIC {
        return Err("is not a GGUF file".into());
    }
    match tape.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => {
            return Err("is a big-endian GGUF file, which is not supported".into());
        }
        version => {
            return Err(format!(
                "is a GGUF file of version {version}; expected 2 or 3"
            ));
        }
    }
    let (tensors, entries) = (tape.u64()?, tape.u64()?);
    if tensors > MOST || entries > MOST {
        return Err(format!(
            "is damaged: it says that it has {tensors} tensors and {entries} entries of metadata; at most {MOST} are read"
        ));
    }
    let mut metadata = BTreeMap::new();
    let mut shapes = BTreeMap::new();
    let mut alignment = ALIGNMENT;
    for _ in 0..entries {
        let key = tape.name()?;
        let kind = tape.u32()?;
        match tape.value(kind, 0)? {
            Some(Value::Whole(number)) => {
                if key == "general.alignment" {
                    alignment = u64::try_from(number)
                        .ok()
                        .filter(|a| a.is_power_of_two() && (8..=1 << 20).contains(a))
                        .ok_or_else(|| {
                            format!("is damaged: its data is aligned to {number} bytes; expected a power of two from 8 on")
                        })?;
                }
                metadata.insert(key, number.to_string());
            }
            Some(Value::Text(text)) => {
                metadata.insert(key, text);
            }
            Some(Value::Wholes(all)) => {
                if let Some(name) = key.strip_prefix(ORIGINAL_SHAPE) {
                    shapes.insert(name.to_owned(), all);
                }
            }
            None => {}
        }
    }
    let mut told = Vec::new();
    for _ in 0..tensors {
        told.push(tensor(&mut tape)?);
    }
    let start = (tape.at as u64).next_multiple_of(alignment);
    let file: Arc<Path> = place.into();
    let mut table = Table {
        file: path.to_owned(),
        tensors: BTreeMap::new(),
        metadata,
    };
    let mut places = Vec::new();
    for Told {
        name,
        mut shape,
        dtype,
        offset,
    } in told
    {
        let bad = |what: &str| format!("is damaged: its tensor `{name}` {what}");
        let elements = shape
            .iter()
            .try_fold(1usize, |all, &side| all.checked_mul(side))
            .ok_or_else(|| bad("has more elements than can be counted"))?;
        if let Some(block) = Block::of(dtype)
            && !shape
                .last()
                .is_some_and(|&row| row.is_multiple_of(block.elements()))
        {
            return Err(bad(&format!(
                "is {dtype} {shape:?}, whose rows are not whole blocks of {}",
                block.elements()
            )));
        }
        if let Some(original) = shapes.get(&name) {
            let original: Option<Vec<usize>> = original
                .iter()
                .map(|&side| usize::try_from(side).ok())
                .collect();
            shape = original
                .filter(|original| {
                    let all = original
                        .iter()
                        .try_fold(1usize, |all, &side| all.checked_mul(side));
                    all == Some(elements)
                })
                .ok_or_else(|| bad("has another number of elements than its original shape"))?;
        }
        if !offset.is_multiple_of(alignment) {
            return Err(bad("does not begin where data is aligned"));
        }
        let stored = Stored {
            file: file.clone(),
            name: name.clone(),
            dtype: dtype.to_owned(),
            strides: dense_strides(&shape),
            shape,
            offset: start.saturating_add(offset),
            inline: None,
        };
        let size = stored
            .bytes()
            .filter(|size| {
                stored
                    .offset
                    .checked_add(*size)
                    .is_some_and(|end| end <= length)
            })
            .ok_or_else(|| {
                format!(
                    "is truncated or damaged: its tensor `{name}` extends past the end of the file"
                )
            })?;
        places.push((stored.offset, size));
        if table.tensors.insert(name.clone(), stored).is_some() {
            return Err(bad("comes twice"));
        }
    }
    places.sort_unstable();
    if places
        .windows(2)
        .any(|pair| pair[0].0 + pair[0].1 > pair[1].0)
    {
        return Err("is damaged: its tensors overlap".into());
    }
    Ok(table)
}

fn tensor(tape: &mut Tape<'_>) -> Result<Told, Fault> {
    let name = tape.name()?;
    let rank = tape.u32()? as usize;
    if rank > RANK {
        return Err(format!(
            "is damaged: its tensor `{name}` has {rank} dimensions; ggml has at most {RANK}"
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        let side = usize::try_from(tape.u64()?).ok().filter(|&side| side > 0);
        shape.push(side.ok_or_else(|| {
            format!("is damaged: its tensor `{name}` has a dimension of length 0")
        })?);
    }
    shape.reverse();
    let kind = tape.u32()?;
    let offset = tape.u64()?;
    let dtype = dtype(kind).ok_or_else(|| {
        format!(
            "has the tensor `{name}` of an unsupported type, {}; expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K",
            unread(kind)
        )
    })?;
    debug_assert!(Block::of(dtype).is_some() || dtype_bytes(dtype).is_some());
    Ok(Told {
        name,
        shape,
        dtype,
        offset,
    })
}
