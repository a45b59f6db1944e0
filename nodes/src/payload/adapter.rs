//! Adapters: what a training gave, as other programs read it.

use std::collections::BTreeMap;

use retouch_diffusion::training::export::AdapterTensor;
use retouch_graph::{NodeError, Payload};

use crate::payload::image::unknown_format;
use crate::payload::tensors::{self, Entry};

/// The tensors of an adapter's file, and its metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The tensors, by name.
    pub tensors: Vec<AdapterTensor>,
    /// What the file says of itself.
    pub metadata: BTreeMap<String, String>,
}

impl Adapter {
    fn file(&self) -> Result<Vec<u8>, NodeError> {
        let bytes: Vec<Vec<u8>> = self
            .tensors
            .iter()
            .map(|t| t.numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
            .collect();
        let entries = self
            .tensors
            .iter()
            .zip(&bytes)
            .map(|(tensor, bytes)| Entry {
                name: &tensor.name,
                dtype: "F32",
                shape: &tensor.shape,
                bytes,
            });
        tensors::write(entries, &self.metadata)
    }
}

impl Payload for Adapter {
    const TYPE: &'static str = "adapter";
    const FORMATS: &'static [&'static str] = &["safetensors"];

    fn bytes(&self) -> usize {
        self.tensors.iter().map(|t| t.numbers.len() * 4).sum()
    }

    fn summary(&self) -> String {
        let numbers: usize = self.tensors.iter().map(|t| t.numbers.len()).sum();
        format!(
            "adapter of {} tensors, {numbers} numbers",
            self.tensors.len()
        )
    }

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(self.file())
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let read = tensors::read(bytes)?;
        let tensors = read
            .tensors
            .into_iter()
            .map(|(name, (dtype, shape, bytes))| {
                if dtype != safetensors::Dtype::F32 {
                    return Err(NodeError::failed("not an adapter: it is not of float32"));
                }
                Ok(AdapterTensor {
                    name,
                    shape,
                    numbers: tensors::floats(&bytes),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            tensors,
            metadata: read.metadata,
        })
    }

    /// A safetensors file in float32. Equal adapters give equal bytes.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        match format {
            "safetensors" => Ok(vec![self.file()?]),
            _ => Err(unknown_format::<Self>(format)),
        }
    }
}
