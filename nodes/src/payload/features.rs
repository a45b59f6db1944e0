//! Features: what a network sees in pictures or texts, one row each.

use std::collections::HashMap;

use candle_core::Tensor;
use retouch_graph::{NodeError, Payload};
use serde::{Deserialize, Serialize};

use crate::payload::image::{on_cpu, unknown_format, values};
use crate::payload::tensors::{self, Packed};

/// The name of the tensor in a file of features.
const TENSOR: &str = "features";
/// The metadata key of their space.
const SPACE: &str = "space";

/// Where features live: only those of one network with one file of weights can be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// The network: `EfficientNet-Lite0`, `CLIP`.
    pub network: String,
    /// The first 16 hexadecimal digits of the BLAKE3 digest of its weights.
    pub weights: String,
    /// How the input was prepared, in words.
    pub input: String,
}

impl Space {
    /// Whether features of both can be compared: those of CLIP's halves can, though their inputs differ.
    #[must_use]
    pub fn is_comparable(&self, other: &Self) -> bool {
        self.network == other.network && self.weights == other.weights
    }

    /// The network and its weights in words.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} (weights {})", self.network, self.weights)
    }
}

/// What is known of features before anything runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeaturesFacts {
    /// The number of rows.
    pub rows: usize,
    /// The numbers in a row.
    pub width: usize,
    /// The network.
    pub network: String,
}

/// A row of numbers for each picture or text, on the CPU.
#[derive(Clone, Debug)]
pub struct Features {
    /// `[B, D]`, f32, as the network gives them: not normalised.
    pub rows: Tensor,
    /// Where they live.
    pub space: Space,
}

impl Features {
    /// Makes features of `[B, D]`, moved to the CPU as f32 if they are not.
    ///
    /// # Errors
    /// When the shape is another, or the tensor is empty.
    pub fn new(rows: Tensor, space: Space) -> Result<Self, NodeError> {
        if rows.rank() != 2 || rows.elem_count() == 0 {
            return Err(NodeError::failed(format!(
                "features are a tensor [rows, width] and not empty; this one is {:?}",
                rows.dims()
            )));
        }
        Ok(Self {
            rows: on_cpu(&rows)?,
            space,
        })
    }

    /// The number of rows.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.rows.dims().first().copied().unwrap_or(0)
    }

    /// The rows in f64, each of length 1. A row of zeros stays one.
    ///
    /// # Errors
    /// When candle fails.
    pub fn directions(&self) -> Result<Vec<Vec<f64>>, NodeError> {
        let width = self.rows.dims().get(1).copied().unwrap_or(1).max(1);
        Ok(values(&self.rows)?
            .chunks_exact(width)
            .map(|row| {
                let row: Vec<f64> = row.iter().copied().map(f64::from).collect();
                let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
                row.into_iter().map(|x| x * scale).collect()
            })
            .collect())
    }

    /// Refuses features of two spaces.
    ///
    /// # Errors
    /// When the other's network, its weights or its width differ.
    pub fn check_comparable(&self, other: &Self) -> Result<(), NodeError> {
        if self.space.is_comparable(&other.space) && self.rows.dim(1).ok() == other.rows.dim(1).ok()
        {
            return Ok(());
        }
        Err(NodeError::failed(format!(
            "features of {} cannot be compared with those of {}",
            self.space.describe(),
            other.space.describe()
        ))
        .help("make both with the same `path`"))
    }
}

impl Payload for Features {
    const TYPE: &'static str = "features";
    const FORMATS: &'static [&'static str] = &["safetensors"];

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(self.packed())
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut packed = Packed::read(bytes)?;
        let space = packed.know(SPACE)?;
        Self::new(packed.take(TENSOR)?, space)
    }

    fn bytes(&self) -> usize {
        self.rows.elem_count() * self.rows.dtype().size_in_bytes()
    }

    fn summary(&self) -> String {
        format!(
            "{} rows of {} features, {}",
            self.batch(),
            self.rows.dims().get(1).copied().unwrap_or(0),
            self.space.network
        )
    }

    /// One safetensors file with the tensor `features` `[B, D]` f32; the metadata says the network, its weights and its input.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        match format {
            "safetensors" => Ok(vec![self.packed()?]),
            _ => Err(unknown_format::<Self>(format)),
        }
    }
}

impl Features {
    fn packed(&self) -> Result<Vec<u8>, NodeError> {
        let space =
            serde_json::to_string(&self.space).map_err(|e| NodeError::failed(e.to_string()))?;
        tensors::pack(
            &[(TENSOR, &self.rows)],
            HashMap::from([(SPACE.to_owned(), space)]),
        )
    }
}
