//! Adapters: small files that change a model without holding it, and how what they name is found in it.

pub mod custom_diffusion;
pub mod dialect;
pub mod lora;
pub mod textual_inversion;

use std::collections::BTreeMap;
use std::path::Path;

use retouch_graph::Files;

use crate::checkpoint::weights::{Stored, Weights, bare};
use crate::networks::clip::{ClipTextConfig, load_text};
use crate::networks::unet::{Unet, UnetConfig};
use crate::{Error, Result};

/// The names of a network's tensors (of text encoders without `text_model.`) and their shapes.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// The networks that an adapter can change, by the names and shapes of their tensors.
#[derive(Clone, Debug)]
pub struct Networks<'a> {
    /// The U-Net's configuration.
    pub config: &'a UnetConfig,
    /// The U-Net.
    pub unet: Shapes,
    /// The text encoders.
    pub texts: Vec<Shapes>,
}

impl<'a> Networks<'a> {
    /// The networks of a model, from its configurations.
    ///
    /// # Errors
    /// When a configuration describes no network.
    pub fn of(unet: &'a UnetConfig, texts: &[ClipTextConfig]) -> Result<Self> {
        let shapes = |asked: Vec<(String, Vec<usize>)>| -> Shapes {
            asked
                .into_iter()
                .map(|(name, shape)| (bare(&name).to_owned(), shape))
                .collect()
        };
        Ok(Self {
            config: unet,
            unet: shapes(Weights::asked(|w| Unet::load(unet, w).map(drop))?),
            texts: texts
                .iter()
                .enumerate()
                .map(|(i, config)| {
                    Ok(shapes(Weights::asked(|w| {
                        load_text(config, i, w).map(drop)
                    })?))
                })
                .collect::<Result<_>>()?,
        })
    }
}

/// The number in a tensor of one element.
///
/// # Errors
/// When it cannot be read or is of a type that is no number.
fn scalar(stored: &Stored, path: &Path, files: &dyn Files) -> Result<f64> {
    let bad = |message: String| Error::Weights {
        file: path.to_owned(),
        message: format!("`{}` {message}", stored.name),
    };
    let size = stored.element_bytes().unwrap_or(0);
    if stored.elements() != 1 {
        return Err(bad(format!("is {:?}; expected one number", stored.shape)));
    }
    let bytes = stored
        .read(files, 0, size)
        .map_err(|e| bad(format!("cannot be read: {e}")))?;
    let number = match (stored.dtype.as_str(), bytes.as_slice()) {
        ("F16", &[a, b]) => half::f16::from_le_bytes([a, b]).to_f64(),
        ("BF16", &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f64(),
        ("F32", bytes) => bytes
            .first_chunk()
            .map_or(f64::NAN, |b| f64::from(f32::from_le_bytes(*b))),
        ("F64", bytes) => bytes
            .first_chunk()
            .map_or(f64::NAN, |b| f64::from_le_bytes(*b)),
        ("I64", bytes) => bytes
            .first_chunk()
            .map_or(f64::NAN, |b| i64::from_le_bytes(*b) as f64),
        (other, _) => return Err(bad(format!("is of type {other}; expected a number"))),
    };
    if number.is_finite() {
        Ok(number)
    } else {
        Err(bad("is not a finite number".into()))
    }
}

/// Refuses tensors of an adapter that are not made of finite numbers: what is drawn with them would be blamed on the model.
///
/// # Errors
/// When one is not, or cannot be read.
pub fn check_finite<'a>(
    tensors: impl IntoIterator<Item = &'a Stored>,
    files: &dyn Files,
) -> Result<()> {
    /// Bytes that are read at once.
    const PIECE: usize = 1 << 20;
    for stored in tensors {
        let bad = |message: String| Error::Weights {
            file: stored.file.to_path_buf(),
            message: format!("the tensor `{}` {message}", stored.name),
        };
        let (Some(size), true) = (stored.element_bytes(), stored.is_dense()) else {
            continue;
        };
        // The bits of the exponent, all of which are 1 in what is infinite or no number.
        let exponent: u64 = match stored.dtype.as_str() {
            "F16" => 0x7c00,
            "BF16" => 0x7f80,
            "F32" => 0x7f80_0000,
            "F64" => 0x7ff0_0000_0000_0000,
            "F8_E5M2" => 0x7c,
            // It has no infinities: of the largest exponent only the code with all bits set is no number.
            "F8_E4M3" => 0x7f,
            _ => continue,
        };
        let (mut at, end) = (0, stored.elements() * size);
        while at < end {
            let length = PIECE.min(end - at);
            let bytes = stored
                .read(files, at as u64, length)
                .map_err(|e| bad(format!("cannot be read: {e}")))?;
            let finite = bytes.chunks_exact(size).all(|element| {
                let mut bits = [0; 8];
                bits[..size].copy_from_slice(element);
                u64::from_le_bytes(bits) & exponent != exponent
            });
            if !finite {
                return Err(bad(
                    "contains NaN or infinite values: the adapter is damaged, or its training diverged".into(),
                ));
            }
            at += length;
        }
    }
    Ok(())
}

/// Names in a message: the first few, and how many more.
#[must_use]
pub fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more > 0 {
        format!("{} and {more} more", shown.join(", "))
    } else {
        shown.join(", ")
    }
}

/// The file of an adapter that may be named by its folder: the first of these names that is there.
#[must_use]
pub fn file_in(path: &Path, names: &[&str], files: &dyn Files) -> std::path::PathBuf {
    if files.is_file(path) {
        return path.to_owned();
    }
    names
        .iter()
        .map(|name| path.join(name))
        .find(|file| files.is_file(file))
        .unwrap_or_else(|| path.to_owned())
}
