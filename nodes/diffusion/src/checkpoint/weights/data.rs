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

use super::table::Stored;
use crate::{Error, Result};

/// Elements that one task widens: its bytes fit the L2 cache.
const PIECE: usize = 1 << 16;

/// The files that weights are read from, mapped into memory when they are first asked for.
#[derive(Debug, Default)]
pub struct Maps(Mutex<BTreeMap<Arc<Path>, Arc<Mmap>>>);

/// The types of element that weights may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    F16,
    Bf16,
    F32,
    F64,
}

impl Element {
    fn of(stored: &Stored) -> Option<Self> {
        Some(match stored.dtype.as_str() {
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F32" => Self::F32,
            "F64" => Self::F64,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Whether numbers of this type can be read: floating point of 16 bits or more.
#[must_use]
pub fn is_readable(stored: &Stored) -> bool {
    Element::of(stored).is_some()
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

    /// The tensor in `dtype` (float32, float16 or bfloat16) on `device`, of its own shape.
    ///
    /// # Errors
    /// When the file cannot be mapped or is shorter than it was, or the type cannot be read.
    pub fn load(&self, stored: &Stored, dtype: DType, device: &Device) -> Result<Tensor> {
        let bad = |message: String| Error::Weights {
            file: stored.file.to_path_buf(),
            message,
        };
        let Some(element) = Element::of(stored) else {
            return Err(bad(format!(
                "the tensor `{}` is of type {}; expected F16, BF16 or F32",
                stored.name, stored.dtype
            )));
        };
        let map = self.of(&stored.file)?;
        let count = stored.elements();
        // One past the last element that the strides reach.
        let reach = stored
            .shape
            .iter()
            .zip(&stored.strides)
            .try_fold(1usize, |reach, (&side, &stride)| {
                side.checked_sub(1)?.checked_mul(stride)?.checked_add(reach)
            });
        let bytes = match reach {
            _ if count == 0 => Some(&[][..]),
            None => None,
            Some(reach) => usize::try_from(stored.offset).ok().and_then(|start| {
                let end = start.checked_add(reach.checked_mul(element.bytes())?)?;
                map.get(start..end)
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
        let dense;
        let bytes = if stored.is_dense() {
            bytes
        } else {
            dense = gathered(bytes, stored, element.bytes());
            &dense
        };
        let cpu = Device::Cpu;
        let tensor = match (element, dtype) {
            (_, DType::F32) => {
                let mut numbers = vec![0f32; count];
                numbers
                    .par_chunks_mut(PIECE)
                    .zip(bytes.par_chunks(PIECE * element.bytes()))
                    .for_each(|(to, from)| widen(element, from, to));
                Tensor::from_vec(numbers, shape, &cpu)?
            }
            (_, DType::F16) => {
                let mut numbers = vec![f16::ZERO; count];
                narrow(element, bytes, &mut numbers, |from, to| {
                    to.convert_from_f32_slice(from);
                });
                Tensor::from_vec(numbers, shape, &cpu)?
            }
            (_, DType::BF16) => {
                let mut numbers = vec![bf16::ZERO; count];
                narrow(element, bytes, &mut numbers, |from, to| {
                    to.convert_from_f32_slice(from);
                });
                Tensor::from_vec(numbers, shape, &cpu)?
            }
            (_, other) => {
                return Err(Error::request(format!(
                    "weights cannot be held in {other:?}"
                )));
            }
        };
        forget(&map, stored.offset, reached);
        Ok(tensor.to_device(device)?)
    }
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

/// Float32 from at most [`PIECE`] stored elements.
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

/// Stored elements as halves of the kind that `convert` makes of float32.
fn narrow<T: Send>(
    element: Element,
    from: &[u8],
    to: &mut [T],
    convert: impl Fn(&[f32], &mut [T]) + Sync,
) {
    to.par_chunks_mut(PIECE)
        .zip(from.par_chunks(PIECE * element.bytes()))
        .for_each(|(to, from)| {
            let mut wide = vec![0f32; to.len()];
            widen(element, from, &mut wide);
            convert(&wide, to);
        });
}
