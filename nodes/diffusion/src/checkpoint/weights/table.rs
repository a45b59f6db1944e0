//! The tensors of a network by the names that diffusers and transformers give them, wherever they lie: in one file or
//! in several, under these names or others, as they are or as a part of a larger one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retouch_graph::Files;

use super::block::Block;
use super::foreign::foreign;
use super::gguf;
use super::header::{Header, dtype_bytes};
use crate::checkpoint::pickle;
use crate::{Error, Result};

/// A tensor as it lies in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The file, where it really is.
    pub file: Arc<Path>,
    /// Its name there.
    pub name: String,
    /// The type of its elements, as safetensors names it: `F16`, `BF16`, `F32`, ...
    pub dtype: String,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// From an element to the next one along each dimension, in elements.
    pub strides: Vec<usize>,
    /// The byte of the file that its first element begins at.
    pub offset: u64,
    /// Its bytes, of the few that a file holds in another form (numpy arrays inside a pickle).
    pub inline: Option<Arc<[u8]>>,
}

/// Row-major strides of a shape, in elements.
#[must_use]
pub fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}

impl Stored {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape
            .iter()
            .fold(1, |n: usize, &side| n.saturating_mul(side))
    }

    /// The kind of its blocks, where its elements are stored in such.
    #[must_use]
    pub fn block(&self) -> Option<Block> {
        Block::of(&self.dtype)
    }

    /// One past the last element that the strides reach; `None` when that is no number.
    #[must_use]
    pub fn reach(&self) -> Option<usize> {
        self.shape
            .iter()
            .zip(&self.strides)
            .try_fold(1usize, |reach, (&side, &stride)| {
                side.checked_sub(1)?.checked_mul(stride)?.checked_add(reach)
            })
    }

    /// The bytes that its elements take as they are stored, if their type is known.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        let (count, size) = match self.block() {
            Some(block) => (self.elements().div_ceil(block.elements()), block.bytes()),
            None => (self.elements(), self.element_bytes()?),
        };
        (count as u64).checked_mul(size as u64)
    }

    /// Bytes of an element, if its type is known and it has some of its own.
    #[must_use]
    pub fn element_bytes(&self) -> Option<usize> {
        dtype_bytes(&self.dtype).and_then(|n| usize::try_from(n).ok())
    }

    /// Whether its elements follow one another.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        let dense = dense_strides(&self.shape);
        let sides = self.shape.iter();
        sides
            .zip(self.strides.iter().zip(&dense))
            .all(|(&side, (stride, dense))| side == 1 || stride == dense)
    }

    /// `length` of its bytes from the byte `first` on, as they are stored; fewer where the file ends.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, files: &dyn Files, first: u64, length: usize) -> std::io::Result<Vec<u8>> {
        let start = self.offset.saturating_add(first);
        let Some(bytes) = &self.inline else {
            return files.read_at(&self.file, start, length);
        };
        let start = usize::try_from(start)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        Ok(bytes[start..start.saturating_add(length).min(bytes.len())].to_vec())
    }

    /// Rows `first .. first + count` of it; `None` when it has no such rows.
    #[must_use]
    pub fn rows(&self, first: usize, count: usize) -> Option<Self> {
        let (rows, stride) = (*self.shape.first()?, *self.strides.first()?);
        if first.checked_add(count)? > rows {
            return None;
        }
        let skipped = first.checked_mul(stride)?;
        let skipped = match self.block() {
            Some(block) if skipped.is_multiple_of(block.elements()) => {
                (skipped / block.elements()).checked_mul(block.bytes())?
            }
            Some(_) => return None,
            None => skipped.checked_mul(self.element_bytes()?)?,
        };
        let mut part = self.clone();
        part.shape[0] = count;
        part.offset = self.offset.checked_add(skipped as u64)?;
        Some(part)
    }

    /// It with its two dimensions exchanged; `None` when it has not two.
    #[must_use]
    pub fn transposed(&self) -> Option<Self> {
        if self.shape.len() != 2 {
            return None;
        }
        let mut other = self.clone();
        other.shape.reverse();
        other.strides.reverse();
        Some(other)
    }
}

/// Whether a file is torch's. The length of a safetensors header may begin as a pickle does; its brace decides.
#[must_use]
pub fn is_torch(path: &Path, files: &dyn Files) -> bool {
    const BEGINNING: usize = 9;
    files.read_head(path, BEGINNING).is_ok_and(|(head, _)| {
        pickle::is_torch(&head) && !(head.get(8) == Some(&b'{') && head.get(4..8) == Some(&[0; 4]))
    })
}

/// The tensors of a network, or of a file.
#[derive(Clone, Debug)]
pub struct Table {
    /// The file that messages speak of.
    pub file: PathBuf,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Stored>,
    /// What the file says beside its tensors.
    pub metadata: BTreeMap<String, String>,
}

impl Table {
    /// The tensors of a safetensors file. `place` is where the file really is.
    #[must_use]
    pub fn of_header(header: &Header, place: &Path) -> Self {
        let file: Arc<Path> = place.into();
        let tensors = header.tensors.iter().map(|(name, info)| {
            let stored = Stored {
                file: file.clone(),
                name: name.clone(),
                dtype: info.dtype.clone(),
                shape: info.shape.clone(),
                strides: dense_strides(&info.shape),
                offset: header.data_start + info.data_offsets.0,
                inline: None,
            };
            (name.clone(), stored)
        });
        Self {
            file: header.file.clone(),
            tensors: tensors.collect(),
            metadata: header.metadata.clone(),
        }
    }

    /// The tensors of a weight file, safetensors, torch's or GGUF, without their numbers.
    ///
    /// # Errors
    /// When there is no such file or it is not one of weights; a torch file that is more than data; weights in eight bits
    /// that are to be multiplied with scales beside them.
    pub fn read(path: &Path, files: &dyn Files) -> Result<Self> {
        // The weights are mapped from the file itself, so its real place must be known.
        let place = files.place(path);
        if let Some((what, help)) = foreign(path, files) {
            return Err(Error::Weights {
                file: path.to_owned(),
                message: format!("{what}; {help}"),
            });
        }
        let table = if is_torch(path, files) {
            Self::of_torch(path, &place, &pickle::read(path, files)?)
        } else if gguf::is_gguf(path, files) {
            gguf::read(path, &place, files)?
        } else {
            Self::of_header(&Header::read(path, files)?, &place)
        };
        // Read as if they were not there, the scales would make another model of it without a word.
        let is_scale = |name: &&String| {
            let (rest, last) = name.rsplit_once('.').unwrap_or(("", name));
            match last {
                "scaled_fp8" => true,
                "scale_weight" | "weight_scale" => table
                    .tensors
                    .get(&format!("{rest}.weight"))
                    .is_some_and(|weight| matches!(weight.dtype.as_str(), "F8_E4M3" | "F8_E5M2")),
                _ => false,
            }
        };
        if let Some(name) = table.tensors.keys().find(is_scale) {
            return Err(Error::Weights {
                file: path.to_owned(),
                message: format!(
                    "holds eight-bit weights with scales beside them (`{name}`), which are not applied here; expected a file without scales, or one of float16"
                ),
            });
        }
        Ok(table)
    }

    /// The tensors of what a torch file holds. `place` is where the file really is.
    #[must_use]
    pub fn of_torch(path: &Path, place: &Path, value: &pickle::Value) -> Self {
        let file: Arc<Path> = place.into();
        let tensors = pickle::tensors(value)
            .into_iter()
            .map(|(name, tensor)| {
                let stored = Stored {
                    file: file.clone(),
                    name: name.clone(),
                    dtype: tensor.dtype.clone(),
                    shape: tensor.shape.clone(),
                    strides: tensor.strides.clone(),
                    offset: tensor.offset,
                    inline: tensor.inline.clone(),
                };
                (name, stored)
            })
            .collect();
        // The training step distinguishes checkpoints of one shape, an embedding has a name.
        let said = ["global_step", "name"].into_iter().filter_map(|name| {
            let text = match value.get(name)? {
                pickle::Value::Int(number) => number.to_string(),
                pickle::Value::Text(text) => text.to_string(),
                _ => return None,
            };
            Some((name.to_owned(), text))
        });
        Self {
            file: path.to_owned(),
            tensors,
            metadata: said.collect(),
        }
    }

    /// The tensors of several files as one; `file` is what messages speak of.
    ///
    /// # Errors
    /// When two files have a tensor of one name.
    pub fn join(file: &Path, parts: Vec<Self>) -> Result<Self> {
        let mut all = Self {
            file: file.to_owned(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        for part in parts {
            for (name, stored) in part.tensors {
                if let Some(other) = all.tensors.insert(name, stored) {
                    return Err(Error::Weights {
                        file: part.file,
                        message: format!(
                            "has the tensor `{}`, and so has {}",
                            other.name,
                            other.file.display()
                        ),
                    });
                }
            }
            all.metadata.extend(part.metadata);
        }
        Ok(all)
    }

    /// Whether a tensor of this name is there.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Bytes of its tensors with elements of `size` bytes.
    #[must_use]
    pub fn bytes(&self, size: usize) -> usize {
        let elements = self.tensors.values().map(Stored::elements);
        elements.sum::<usize>().saturating_mul(size)
    }

    /// Bytes of its tensors where those that are quantised stay so.
    #[must_use]
    pub fn bytes_as_stored(&self, size: usize) -> usize {
        let held = self.tensors.values().map(|stored| match stored.block() {
            // Those of a text encoder's tokens are looked up, and are widened.
            Some(_) if !stored.name.contains("embedding") => stored
                .bytes()
                .and_then(|bytes| usize::try_from(bytes).ok())
                .unwrap_or(usize::MAX),
            _ => stored.elements().saturating_mul(size),
        });
        held.fold(0, usize::saturating_add)
    }
}
