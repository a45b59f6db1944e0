//! Latents.

use std::collections::HashMap;

use candle_core::Tensor;
use retouch_graph::{Environment, NodeError, Payload};
use serde::{Deserialize, Serialize};

use super::tensors::{self, Packed, READ_AS, encode_safetensors};

/// A batch of latents, scaled as the U-Net takes them.
#[derive(Debug)]
pub struct Latent {
    /// `[B, C, h, w]`, float32, on the compute device.
    pub tensor: Tensor,
}

/// What is known of a latent before anything runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatentFacts {
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Latent {
    /// Its shape, as facts for checks; all 0 of a tensor that is no batch of latents.
    pub(crate) fn facts(&self) -> LatentFacts {
        let (batch, channels, height, width) = self.tensor.dims4().unwrap_or_default();
        LatentFacts {
            batch,
            channels,
            height,
            width,
        }
    }
}

impl Payload for Latent {
    const TYPE: &'static str = "latent";
    const FORMATS: &'static [&'static str] = &["safetensors"];

    fn on_device(&self) -> bool {
        tensors::on_device(&self.tensor)
    }

    fn is_on(&self, environment: &Environment) -> bool {
        tensors::is_on(&self.tensor, environment)
    }

    fn to_host(&self) -> Result<Option<Self>, NodeError> {
        let host = || tensors::to_host(&self.tensor).map(|tensor| Self { tensor });
        tensors::on_device(&self.tensor).then(host).transpose()
    }

    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError> {
        Ok(tensors::to_device(&self.tensor, environment)?.map(|tensor| Self { tensor }))
    }

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(tensors::pack(&[("latent", &self.tensor)], HashMap::new()))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let tensor = Packed::read(bytes)?.take("latent")?;
        Ok(Self { tensor })
    }

    fn bytes(&self) -> usize {
        self.tensor.elem_count() * 4
    }

    fn summary(&self) -> String {
        format!("latent {:?}", self.tensor.dims())
    }

    fn encode(&self, _: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        let metadata = HashMap::from([(READ_AS.to_owned(), "latent".to_owned())]);
        Ok(vec![encode_safetensors("latent", &self.tensor, metadata)?])
    }
}
