//! A safetensors file, written piece by piece.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Follow;
use crate::{Error, Result};

/// The types that numbers are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of 32 bits.
    Bf16,
}

impl Precision {
    /// As safetensors names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Bytes of a number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Appends numbers to bytes, rounded to nearest, ties to even.
    pub fn append(self, numbers: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
            Self::F16 => {
                let mut halves = vec![f16::ZERO; numbers.len()];
                halves.convert_from_f32_slice(numbers);
                bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
            }
            Self::Bf16 => {
                let mut halves = vec![bf16::ZERO; numbers.len()];
                halves.convert_from_f32_slice(numbers);
                bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
            }
        }
    }
}

/// What writes the bytes of a tensor.
pub type Fill<'a> = Box<dyn Fn(&mut dyn Write) -> Result<()> + 'a>;

/// A tensor to be written.
pub struct Tensor<'a> {
    /// Its name.
    pub name: String,
    /// The type of its elements, as safetensors names it.
    pub dtype: String,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// All its bytes.
    pub bytes: u64,
    /// Writes exactly these.
    pub fill: Fill<'a>,
}

/// Counts what is written, until it is cancelled.
struct Counted<'a, W> {
    inner: W,
    bytes: u64,
    /// The bytes of the whole model.
    total: u64,
    follow: &'a dyn Follow,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.follow.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        // A large tensor comes at once, and a slow disk takes its time: progress is reported between pieces.
        let count = self.inner.write(&bytes[..bytes.len().min(PIECE)])?;
        self.bytes += count as u64;
        self.follow.wrote(count as u64, self.total);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Bytes that are written at a time.
const PIECE: usize = 4 << 20;

/// Writes a safetensors file that is not there yet, and gives its length. The model that it is of has `total` bytes.
///
/// # Errors
/// When it is there, or cannot be written; when two tensors have one name, or one does not give what it promises;
/// [`Error::Cancelled`].
pub fn write(
    path: &Path,
    tensors: Vec<Tensor<'_>>,
    metadata: &BTreeMap<String, String>,
    total: u64,
    follow: &dyn Follow,
) -> Result<u64> {
    let result = write_all(path, tensors, metadata, total, follow);
    if follow.is_cancelled() {
        return Err(Error::Cancelled);
    }
    result
}

fn write_all(
    path: &Path,
    mut tensors: Vec<Tensor<'_>>,
    metadata: &BTreeMap<String, String>,
    total: u64,
    follow: &dyn Follow,
) -> Result<u64> {
    let bad = |message: String| Error::Weights {
        file: path.to_owned(),
        message,
    };
    let failed = |e: io::Error| bad(format!("cannot be written: {e}"));
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!(metadata));
    let mut end = 0u64;
    for tensor in &tensors {
        let start = end;
        end += tensor.bytes;
        let entry = serde_json::json!({
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end],
        });
        if header.insert(tensor.name.clone(), entry).is_some() {
            return Err(bad(format!(
                "would have the tensor `{}` twice",
                tensor.name
            )));
        }
    }
    let mut header = serde_json::Value::Object(header).to_string();
    // The numbers begin at a multiple of eight bytes, for those who map them.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let file = File::create_new(path).map_err(failed)?;
    let mut out = Counted {
        inner: BufWriter::with_capacity(1 << 20, file),
        bytes: 0,
        total,
        follow,
    };
    out.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| out.write_all(header.as_bytes()))
        .map_err(failed)?;
    for tensor in &tensors {
        let before = out.bytes;
        (tensor.fill)(&mut out)?;
        let written = out.bytes - before;
        if written != tensor.bytes {
            return Err(bad(format!(
                "would be damaged: the tensor `{}` has {written} bytes instead of {}",
                tensor.name, tensor.bytes
            )));
        }
    }
    out.flush()
        .and_then(|()| out.inner.get_ref().sync_all())
        .map_err(failed)?;
    Ok(out.bytes)
}
