//! Heads on features: one linear layer each, whose classes have names.

use std::collections::BTreeMap;
use std::path::Path;

use retouch_graph::{Files, NodeError};

use crate::payload::features::Features;
use retouch_diffusion::checkpoint::weights::{NO_SUCH_FILE, Table, numbers};
use retouch_diffusion::{Error, Result};

/// The most bytes of a file of heads.
const MAX_BYTES: u64 = 1 << 26;

/// One head.
pub(super) struct Head {
    /// `thing`, `place`.
    pub name: String,
    /// The names of its classes.
    pub classes: Vec<String>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// The heads of a file: for each a matrix `NAME.weight` `[classes, D]` and `NAME.bias` `[classes]`, and in the metadata under
/// `NAMEs` the names of the classes, with commas between them.
pub(super) struct Scorer {
    pub heads: Vec<Head>,
    /// The number of features that they take.
    pub width: usize,
}

impl Scorer {
    /// Reads a file of heads.
    pub(super) fn read(path: &Path, files: &dyn Files) -> Result<Self> {
        files.find_model(path);
        let bad = |message: String| Error::Weights {
            file: path.to_owned(),
            message,
        };
        if !files.is_file(path) {
            return Err(bad(NO_SUCH_FILE.to_owned()));
        }
        let (_, length) = files.read_head(path, 0).map_err(|e| bad(e.to_string()))?;
        if length > MAX_BYTES {
            return Err(bad(format!("it has {length} bytes, too many for heads")));
        }
        let table = Table::read(path, files)?;
        let mut heads = Vec::new();
        let mut widths = BTreeMap::new();
        for (name, stored) in &table.tensors {
            let Some(name) = name.strip_suffix(".weight") else {
                continue;
            };
            let classes: Vec<String> = (table.metadata.get(&format!("{name}s")))
                .map(|text| {
                    text.split(',')
                        .map(|class| class.trim().to_owned())
                        .collect()
                })
                .unwrap_or_default();
            let bias = table.tensors.get(&format!("{name}.bias"));
            let (&[count, width], Some(bias)) = (stored.shape.as_slice(), bias) else {
                return Err(bad(format!(
                    "`{name}` is not a head: a head has a weight matrix and a bias"
                )));
            };
            if classes.len() != count || bias.shape != [count] || width == 0 || count == 0 {
                return Err(bad(format!(
                    "the head `{name}` has {count} classes, a bias {:?} and {} names in the metadata under `{name}s`",
                    bias.shape,
                    classes.len()
                )));
            }
            let read = |stored: &retouch_diffusion::checkpoint::weights::Stored| {
                let length = stored.bytes().and_then(|n| usize::try_from(n).ok());
                let bytes = stored
                    .read(files, 0, length.unwrap_or(0))
                    .map_err(|e| bad(e.to_string()))?;
                numbers(&stored.dtype, &bytes)
                    .filter(|values| values.len() == stored.elements())
                    .ok_or_else(|| bad(format!("the tensor `{}` cannot be read", stored.name)))
            };
            heads.push(Head {
                name: name.to_owned(),
                classes,
                weight: read(stored)?,
                bias: read(bias)?,
            });
            widths.insert(width, name.to_owned());
        }
        match widths.into_iter().collect::<Vec<_>>().as_slice() {
            [(width, _)] => Ok(Self {
                heads,
                width: *width,
            }),
            [] => Err(bad("it has no heads".to_owned())),
            _ => Err(bad("its heads are of several widths".to_owned())),
        }
    }

    /// Refuses features of another width.
    pub(super) fn check(&self, features: &Features) -> Result<(), NodeError> {
        match features.rows.dim(1) {
            Ok(width) if width == self.width => Ok(()),
            _ => Err(NodeError::failed(format!(
                "the scorer takes {} features; these are {:?}",
                self.width,
                features.rows.dims()
            ))
            .help("make them with the network that the scorer was trained on, `models/lite0.safetensors`")),
        }
    }
}

impl Head {
    /// The probability of each class: softmax of the logits.
    pub(super) fn probabilities(&self, row: &[f32]) -> Vec<f64> {
        let logits: Vec<f64> = (self.weight.chunks_exact(row.len()))
            .zip(&self.bias)
            .map(|(weights, bias)| {
                let products = weights.iter().zip(row);
                let sum: f64 = products.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                sum + f64::from(*bias)
            })
            .collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = logits.iter().map(|x| libm::exp(x - largest)).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum).collect()
    }

    /// The class that a prompt names: the longest whose words stand in it one after another.
    pub(super) fn named_in(&self, prompt: &str) -> Option<usize> {
        let words = |text: &str| -> Vec<String> {
            text.split(|c: char| !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .map(str::to_lowercase)
                .collect()
        };
        let prompt = words(prompt);
        let found = self.classes.iter().enumerate().filter(|(_, class)| {
            let class = words(class);
            !class.is_empty() && prompt.windows(class.len()).any(|part| part == class)
        });
        found
            .max_by_key(|(at, class)| (class.len(), usize::MAX - at))
            .map(|(at, _)| at)
    }
}
