//! Custom Diffusion (Kumari et al. 2023): a subject in the keys and values of cross-attention alone, so that the
//! self-attention of the method's two stages is the base's. Some files change queries and outputs too.
//!
//! Keys are those that diffusers' attention processors write: `.. .attn2.processor.to_k_custom_diffusion.weight`, and
//! `to_v_`, `to_q_`, `to_out_custom_diffusion.0`; or those of the original code's `delta.bin`, a dictionary of `unet` (the
//! weights by their names in diffusers' U-Net) and `modifier_token`, whose embeddings `apply_textual_inversion` takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use retouch_graph::Files;

use super::dialect::{self, CUSTOM, DELTA, Keys};
use super::{Networks, file_in, some_of};
use crate::checkpoint::family::in_words;
use crate::checkpoint::weights::{Stored, Table};
use crate::{Error, Result};

/// The names of the file in a folder, as diffusers writes them.
pub const FILES: [&str; 2] = [
    "pytorch_custom_diffusion_weights.safetensors",
    "pytorch_custom_diffusion_weights.bin",
];

/// The tensor of the U-Net that a key names.
fn layer(key: &str) -> String {
    key.strip_prefix("unet.")
        .unwrap_or(key)
        .replace(".processor", "")
        .replace(CUSTOM, "")
}

/// A Custom Diffusion file whose layers were found in a model.
#[derive(Clone, Debug)]
pub struct CustomDiffusion {
    /// Tensors of the U-Net, by name, in place of its own.
    pub replaced: BTreeMap<String, Stored>,
    /// Cross-attention layers that are changed, and that the model has.
    pub layers: (usize, usize),
    /// Names in the file that the model has no tensor for.
    pub unmatched: Vec<String>,
}

impl CustomDiffusion {
    /// The file that may be named by its folder.
    #[must_use]
    pub fn find(path: &Path, files: &dyn Files) -> PathBuf {
        file_in(path, &FILES, files)
    }

    /// Whether a file's tensors are of this kind.
    #[must_use]
    pub fn is(table: &Table) -> bool {
        dialect::keys(table) == Keys::CustomDiffusion
    }

    /// The tensors of the U-Net that a table of this kind has, by their names there.
    #[must_use]
    pub fn tensors(table: &Table) -> Vec<(String, &Stored)> {
        let [_, tokens] = DELTA;
        let tensors = table.tensors.iter();
        tensors
            .filter(|(key, _)| !key.starts_with(tokens))
            .map(|(key, stored)| (layer(key), stored))
            .collect()
    }

    /// Reads a file and finds its layers in a model.
    ///
    /// # Errors
    /// When it is none, is damaged, or was made for another family.
    pub fn read(file: &Path, networks: &Networks<'_>, files: &dyn Files) -> Result<Self> {
        let bad = |message: String| Error::Weights {
            file: file.to_owned(),
            message,
        };
        let table = Table::read(file, files)?;
        let names: Vec<String> = table.tensors.keys().cloned().collect();
        if !Self::is(&table) {
            return Err(bad(format!(
                "is not a Custom Diffusion file: it has no tensors `to_k{CUSTOM}`, but {}",
                some_of(&names)
            )));
        }
        let mut replaced = BTreeMap::new();
        let mut unmatched = Vec::new();
        for (plain, stored) in Self::tensors(&table) {
            let name = &stored.name;
            let Some(shape) = networks.unet.get(&plain) else {
                unmatched.push(name.clone());
                continue;
            };
            if stored.shape != *shape {
                let why = match (stored.shape.get(1), shape.get(1)) {
                    (Some(own), Some(model)) if plain.contains(".to_k") && own != model => format!(
                        "; it was trained on a model that takes {}, this one takes {}",
                        in_words(*own),
                        in_words(*model)
                    ),
                    _ => String::new(),
                };
                return Err(bad(format!(
                    "does not fit the model: `{name}` is {:?}, the model's is {shape:?}{why}",
                    stored.shape
                )));
            }
            replaced.insert(plain, stored.clone());
        }
        if replaced.is_empty() {
            return Err(bad(format!(
                "none of its {} tensors is in the model ({}): it was made for a model of another family",
                names.len(),
                some_of(&unmatched)
            )));
        }
        let layers = |names: &mut dyn Iterator<Item = &String>| {
            let layers = names.filter_map(|name| Some(name.split_once(".attn2.")?.0.to_owned()));
            layers.collect::<BTreeSet<String>>().len()
        };
        Ok(Self {
            layers: (
                layers(&mut replaced.keys()),
                layers(&mut networks.unet.keys()),
            ),
            replaced,
            unmatched,
        })
    }
}
