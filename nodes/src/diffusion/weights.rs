//! Weight files: safetensors, checked against what the configuration implies before a byte of data is read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Shape, Tensor};
use serde::Deserialize;

use super::{Error, Result};

/// The longest header that is read: 100 MB, the limit of the safetensors format itself.
const MAX_HEADER: u64 = 100_000_000;

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
        usize::try_from(header + 8).map_err(|_| bad("has a header that does not fit memory".into()))
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
                    "says nothing sensible of the tensor `{name}` ({e})"
                ))
            })?;
            let bytes = dtype_bytes(&info.dtype).and_then(|size| {
                info.shape
                    .iter()
                    .try_fold(size, |a, &d| a.checked_mul(d as u64))
            });
            let (start, stop) = info.data_offsets;
            if stop < start || bytes.is_some_and(|bytes| bytes != stop - start) {
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
        })
    }
}

/// Bytes of one element, for the types that the format knows.
fn dtype_bytes(name: &str) -> Option<u64> {
    Some(match name {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "F32" | "I32" | "U32" => 4,
        "F64" | "I64" | "U64" => 8,
        _ => return None,
    })
}

/// Where the tensors of one network come from: the data of a file, or its header alone.
///
/// In the second case ("checking") every tensor is a zero that takes no memory, and what is missing or of another
/// shape is noted, so that building a network against a header lists all its faults.
pub struct Weights {
    header: Header,
    data: Option<MmapedSafetensors>,
    device: Device,
    faults: RefCell<Vec<String>>,
    used: RefCell<BTreeSet<String>>,
}

impl Weights {
    /// The weights of a file, mapped into memory, to be put on `device` in float32.
    ///
    /// # Errors
    /// When the file cannot be mapped.
    pub fn open(header: Header, device: &Device) -> Result<Self> {
        let bad = |e: candle_core::Error| Error::Weights {
            file: header.file.clone(),
            message: e.to_string(),
        };
        // SAFETY: the map is read only while the network is built; a file that another program shortens in that time
        // would end the process, which every program that maps weights accepts. Its length was checked just before.
        let data = unsafe { MmapedSafetensors::new(&header.file) }.map_err(bad)?;
        Ok(Self {
            header,
            data: Some(data),
            device: device.clone(),
            faults: RefCell::default(),
            used: RefCell::default(),
        })
    }

    /// The header alone, to check a network against.
    #[must_use]
    pub fn checking(header: Header) -> Self {
        Self {
            header,
            data: None,
            device: Device::Cpu,
            faults: RefCell::default(),
            used: RefCell::default(),
        }
    }

    /// The root of the names.
    #[must_use]
    pub fn root(&self) -> Scope<'_> {
        Scope {
            weights: self,
            prefix: String::new(),
        }
    }

    /// What did not fit so far.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.faults.borrow().clone()
    }

    /// The tensors of the file that nothing has asked for.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let used = self.used.borrow();
        self.header
            .tensors
            .keys()
            .filter(|name| !used.contains(*name))
            .cloned()
            .collect()
    }

    /// Whether the file has a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    fn get(&self, names: &[String], shape: &Shape) -> Result<Tensor> {
        let found = names
            .iter()
            .find_map(|name| Some((name, self.header.tensors.get(name)?)));
        let problem = match found {
            None => format!(
                "has no tensor `{}` (expected {:?})",
                names.join("` or `"),
                shape.dims()
            ),
            Some((name, info)) => {
                self.used.borrow_mut().insert(name.clone());
                // Old VAEs keep the attention's projections as 1x1 convolutions.
                let trimmed: &[usize] = match info.shape.as_slice() {
                    [rest @ .., 1, 1] if info.shape.len() == shape.rank() + 2 => rest,
                    all => all,
                };
                if trimmed != shape.dims() {
                    format!(
                        "the tensor `{name}` is {:?}; its configuration asks for {:?}",
                        info.shape,
                        shape.dims()
                    )
                } else if !matches!(info.dtype.as_str(), "F16" | "BF16" | "F32" | "F64") {
                    format!(
                        "the tensor `{name}` is of type {}; expected F16, BF16 or F32",
                        info.dtype
                    )
                } else if let Some(data) = &self.data {
                    return Ok(data
                        .load(name, &self.device)?
                        .to_dtype(DType::F32)?
                        .reshape(shape)?);
                } else {
                    return Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?);
                }
            }
        };
        if self.data.is_some() {
            return Err(Error::Weights {
                file: self.header.file.clone(),
                message: problem,
            });
        }
        self.faults.borrow_mut().push(problem);
        Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
    }
}

/// A place in the names of a weight file: `down_blocks.0.resnets.1`.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The place below this one.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Scope<'a> {
        Scope {
            weights: self.weights,
            prefix: self.name(&name.to_string()),
        }
    }

    fn name(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// The tensor `name`, in float32.
    ///
    /// # Errors
    /// When it is missing or of another shape; while checking the fault is noted instead.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        self.weights.get(&[self.name(name)], &shape.into())
    }

    /// The first of several names (a layer's present and former ones) that the file has.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn get_any(&self, names: &[impl AsRef<str>], shape: impl Into<Shape>) -> Result<Tensor> {
        let names: Vec<_> = names.iter().map(|name| self.name(name.as_ref())).collect();
        self.weights.get(&names, &shape.into())
    }

    /// Whether the file has a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains(&self.name(name))
    }
}
