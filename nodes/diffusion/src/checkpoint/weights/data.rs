//! Numbers out of mapped files: from any of the stored types, wherever they lie, to the type that is computed with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use retouch_graph::files;

use super::block::{Block, e4m3, e5m2};
use super::table::Stored;
use crate::{Error, Result};

/// Elements that one task widens: its bytes fit the L2 cache. Whole blocks of every kind.
const PIECE: usize = 1 << 16;

/// The files that weights are read from, mapped into memory when they are first asked for.
#[derive(Debug, Default)]
pub struct Maps(Mutex<BTreeMap<Arc<Path>, Arc<Mmap>>>);

/// The types of element that weights may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    E4m3,
    E5m2,
    F16,
    Bf16,
    F32,
    F64,
    Block(Block),
}

impl Element {
    fn of(dtype: &str) -> Option<Self> {
        Some(match dtype {
            "F8_E4M3" => Self::E4m3,
            "F8_E5M2" => Self::E5m2,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F32" => Self::F32,
            "F64" => Self::F64,
            _ => Self::Block(Block::of(dtype)?),
        })
    }

    /// The bytes of so many elements, of the last block all.
    fn bytes(self, count: usize) -> Option<usize> {
        let (elements, bytes) = match self {
            Self::E4m3 | Self::E5m2 => (1, 1),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::F32 => (1, 4),
            Self::F64 => (1, 8),
            Self::Block(block) => (block.elements(), block.bytes()),
        };
        count.div_ceil(elements).checked_mul(bytes)
    }
}

/// Whether numbers of this type can be read: floating point, or quantised in blocks.
#[must_use]
pub fn is_readable(stored: &Stored) -> bool {
    Element::of(&stored.dtype).is_some()
}

/// The numbers of bytes as they are stored, one after another; `None` of a type that is not read. Of a type that has blocks
/// the bytes are whole ones.
#[must_use]
pub fn numbers(dtype: &str, bytes: &[u8]) -> Option<Vec<f32>> {
    let element = Element::of(dtype)?;
    let count = match element {
        Element::Block(block) => bytes.len() / block.bytes() * block.elements(),
        _ => bytes.len() / element.bytes(1)?,
    };
    let mut numbers = vec![0f32; count];
    widen(element, bytes, &mut numbers);
    Some(numbers)
}

impl Maps {
    fn of(&self, file: &Arc<Path>) -> Result<Arc<Mmap>> {
        let mut maps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = maps.get(file) {
            return Ok(map.clone());
        }
        let bad = |e: std::io::Error| Error::Weights {
            file: file.to_path_buf(),
            message: e.to_string(),
        };
        let opened = files::open(file).map_err(bad)?;
        // SAFETY: the map is only read, and copied from, while a network is built; a file that another program shortens
        // in that time would end the process, which every program that maps weights accepts.
        let map = Arc::new(unsafe { Mmap::map(&opened) }.map_err(bad)?);
        maps.insert(file.clone(), map.clone());
        Ok(map)
    }

    /// The bytes of a tensor whose elements follow one another, as they are stored.
    ///
    /// # Errors
    /// As [`Maps::load`].
    pub fn bytes(&self, stored: &Stored) -> Result<Arc<[u8]>> {
        let bad = |message: String| Error::Weights {
            file: stored.file.to_path_buf(),
            message,
        };
        let map = self.of(&stored.file)?;
        let found = usize::try_from(stored.offset).ok().and_then(|start| {
            let length = usize::try_from(stored.bytes()?).ok()?;
            map.get(start..start.checked_add(length)?)
        });
        let bytes: Arc<[u8]> = found
            .ok_or_else(|| {
                bad(format!(
                    "the tensor `{}` does not lie inside the file: it was changed since it was looked at, or is damaged",
                    stored.name
                ))
            })?
            .into();
        forget(&map, stored.offset, bytes.len());
        Ok(bytes)
    }

    /// The tensor in `dtype` (float32, float16 or bfloat16) on `device`, of its own shape.
    ///
    /// # Errors
    /// When the file cannot be mapped or is shorter than it was, or the type cannot be read.
    pub fn load(&self, stored: &Stored, dtype: DType, device: &Device) -> Result<Tensor> {
        let bad = |message: String| Error::Weights {
            file: stored.file.to_path_buf(),
            message,
        };
        let element = Element::of(&stored.dtype).ok_or_else(|| {
            bad(format!(
                "the tensor `{}` is of type {}; expected one of F16, BF16, F32, F64, F8_E4M3, F8_E5M2 or a block type of GGUF",
                stored.name, stored.dtype
            ))
        })?;
        let map = match stored.inline {
            Some(_) => None,
            None => Some(self.of(&stored.file)?),
        };
        let all: &[u8] = match (&stored.inline, &map) {
            (Some(bytes), _) => bytes,
            (None, Some(map)) => map,
            (None, None) => &[],
        };
        let count = stored.elements();
        let reach = stored.reach();
        let bytes = match reach {
            _ if count == 0 => Some(&[][..]),
            None => None,
            Some(reach) => usize::try_from(stored.offset).ok().and_then(|start| {
                let end = start.checked_add(element.bytes(reach)?)?;
                all.get(start..end)
            }),
        };
        let bytes = bytes.ok_or_else(|| {
            bad(format!(
                "the tensor `{}` does not lie inside the file: it was changed since it was looked at, or is damaged",
                stored.name
            ))
        })?;
        let reached = bytes.len();
        let shape = stored.shape.as_slice();
        let tensor = match (element, stored.is_dense()) {
            (_, true) => tensor(element, bytes, shape, dtype)?,
            // The elements of a block have no places of their own.
            (Element::Block(_), false) => {
                let mut all = vec![0f32; reach.unwrap_or(0)];
                widen_all(element, bytes, &mut all);
                let all: Vec<u8> = all.iter().flat_map(|number| number.to_le_bytes()).collect();
                tensor(Element::F32, &gathered(&all, stored, 4), shape, dtype)?
            }
            (_, false) => {
                let dense = gathered(bytes, stored, element.bytes(1).unwrap_or(1));
                tensor(element, &dense, shape, dtype)?
            }
        };
        if let Some(map) = &map {
            forget(map, stored.offset, reached);
        }
        Ok(tensor.to_device(device)?)
    }
}

/// The tensor of elements of this type that follow one another, in `dtype` on the CPU.
///
/// # Errors
/// When either type is not read or computed with.
pub(super) fn of_bytes(kind: &str, bytes: &[u8], shape: &[usize], dtype: DType) -> Result<Tensor> {
    let element = Element::of(kind)
        .ok_or_else(|| Error::request(format!("weights of type {kind} are not supported")))?;
    tensor(element, bytes, shape, dtype)
}

/// The tensor of elements that follow one another, in `dtype` (float32, float16 or bfloat16) on the CPU.
fn tensor(element: Element, bytes: &[u8], shape: &[usize], dtype: DType) -> Result<Tensor> {
    let count = shape.iter().product();
    let cpu = Device::Cpu;
    Ok(match dtype {
        DType::F32 => {
            let mut numbers = vec![0f32; count];
            widen_all(element, bytes, &mut numbers);
            Tensor::from_vec(numbers, shape, &cpu)?
        }
        DType::F16 => {
            let mut numbers = vec![f16::ZERO; count];
            narrow(element, bytes, &mut numbers, |from, to| {
                to.convert_from_f32_slice(from);
            });
            Tensor::from_vec(numbers, shape, &cpu)?
        }
        DType::BF16 => {
            let mut numbers = vec![bf16::ZERO; count];
            narrow(element, bytes, &mut numbers, |from, to| {
                to.convert_from_f32_slice(from);
            });
            Tensor::from_vec(numbers, shape, &cpu)?
        }
        other => {
            return Err(Error::request(format!(
                "weights cannot be held in {other:?}"
            )));
        }
    })
}

/// Lets go of the pages that a tensor was read from: they stay in the system's file cache while there is room, but count
/// as this process's memory no longer.
fn forget(map: &Mmap, offset: u64, len: usize) {
    #[cfg(unix)]
    if let Ok(offset) = usize::try_from(offset)
        && len > 0
    {
        // SAFETY: a read-only map of a file: pages that are let go of are read from it again when they are touched.
        // The advice may fail, and then nothing changes.
        let _ =
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
    }
    #[cfg(not(unix))]
    let _ = (map, offset, len);
}

/// The elements of a tensor whose strides are not those of its shape, one after another.
fn gathered(bytes: &[u8], stored: &Stored, size: usize) -> Vec<u8> {
    let mut dense = Vec::with_capacity(stored.elements() * size);
    let mut index = vec![0usize; stored.shape.len()];
    for _ in 0..stored.elements() {
        let at: usize = index.iter().zip(&stored.strides).map(|(i, s)| i * s).sum();
        dense.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        for (i, &side) in index.iter_mut().zip(&stored.shape).rev() {
            *i += 1;
            if *i < side {
                break;
            }
            *i = 0;
        }
    }
    dense
}

/// Float32 from stored elements, by all threads.
fn widen_all(element: Element, from: &[u8], to: &mut [f32]) {
    let piece = element.bytes(PIECE).unwrap_or(PIECE);
    to.par_chunks_mut(PIECE)
        .zip(from.par_chunks(piece))
        .for_each(|(to, from)| widen(element, from, to));
}

/// Float32 from stored elements.
fn widen(element: Element, from: &[u8], to: &mut [f32]) {
    // Files align nothing, so halves pass through a small buffer of their own type on their way.
    const BUFFER: usize = 512;
    let mut bits = [0u16; BUFFER];
    let mut halves = |convert: &dyn Fn(&[u16], &mut [f32])| {
        for (to, from) in to.chunks_mut(BUFFER).zip(from.chunks(2 * BUFFER)) {
            let bits = &mut bits[..to.len()];
            for (bits, bytes) in bits.iter_mut().zip(from.as_chunks::<2>().0) {
                *bits = u16::from_le_bytes(*bytes);
            }
            convert(bits, to);
        }
    };
    match element {
        Element::E4m3 => {
            for (to, code) in to.iter_mut().zip(from) {
                *to = E4M3[usize::from(*code)];
            }
        }
        Element::E5m2 => {
            for (to, code) in to.iter_mut().zip(from) {
                *to = e5m2(*code);
            }
        }
        Element::Block(block) => block.widen(from, to),
        Element::F16 => halves(&|bits, to| bits.reinterpret_cast::<f16>().convert_to_f32_slice(to)),
        Element::Bf16 => halves(&|bits, to| {
            for (to, bits) in to.iter_mut().zip(bits) {
                *to = f32::from_bits(u32::from(*bits) << 16);
            }
        }),
        Element::F32 => {
            for (to, bytes) in to.iter_mut().zip(from.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*bytes);
            }
        }
        Element::F64 => {
            for (to, bytes) in to.iter_mut().zip(from.as_chunks::<8>().0) {
                *to = f64::from_le_bytes(*bytes) as f32;
            }
        }
    }
}

/// The numbers of all codes.
const E4M3: [f32; 256] = {
    let mut all = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        all[code] = e4m3(code as u8);
        code += 1;
    }
    all
};

/// Stored elements as halves of the kind that `convert` makes of float32.
fn narrow<T: Send>(
    element: Element,
    from: &[u8],
    to: &mut [T],
    convert: impl Fn(&[f32], &mut [T]) + Sync,
) {
    let piece = element.bytes(PIECE).unwrap_or(PIECE);
    to.par_chunks_mut(PIECE)
        .zip(from.par_chunks(piece))
        .for_each(|(to, from)| {
            let mut wide = vec![0f32; to.len()];
            widen(element, from, &mut wide);
            convert(&wide, to);
        });
}
