//! Maps from latents to colours, for the cache alone: no port has them.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use retouch_graph::{NodeError, Payload};

use super::tensors::{Packed, pack};
use crate::runtime::tensor_error;
use retouch_diffusion::networks::preview::LinearMap;

/// What stands for a VAE in quick previews.
#[derive(Debug)]
pub(crate) struct ColourMap(pub LinearMap);

impl Payload for ColourMap {
    const TYPE: &'static str = "colour_map";

    fn bytes(&self) -> usize {
        self.0.weights().len() * 4
    }

    fn summary(&self) -> String {
        format!("map from {} channels to colours", self.0.channels())
    }

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        let of = |values: Vec<f32>, shape: (usize, usize)| {
            Tensor::from_vec(values, shape, &Device::Cpu).map_err(tensor_error)
        };
        let bytes = || {
            let weights = of(self.0.weights().to_vec(), (3, self.0.channels() + 1))?;
            let explained = of(vec![self.0.explained()], (1, 1))?;
            pack(
                &[("weights", &weights), ("explained", &explained)],
                HashMap::new(),
            )
        };
        Some(bytes())
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut packed = Packed::read(bytes)?;
        let mut take = |name| -> Result<(usize, Vec<f32>), NodeError> {
            let tensor = packed.take(name)?;
            let (_, columns) = tensor.dims2().map_err(tensor_error)?;
            let values = tensor.flatten_all().and_then(|t| t.to_vec1());
            Ok((columns, values.map_err(tensor_error)?))
        };
        let (columns, weights) = take("weights")?;
        let (_, explained) = take("explained")?;
        let explained = explained.first().copied().unwrap_or(0.0);
        let map = LinearMap::new(columns.saturating_sub(1), weights, explained)?;
        Ok(Self(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_comes_back_from_disk_bit_for_bit_and_damage_is_noticed() {
        let weights = (0..15).map(|n| (n as f32).sqrt() - 1.7).collect();
        let map = ColourMap(LinearMap::new(4, weights, 0.987).unwrap());
        let bytes = map.to_disk().unwrap().unwrap();
        assert_eq!(ColourMap::from_disk(&bytes).unwrap().0, map.0);
        assert!(ColourMap::from_disk(&bytes[..bytes.len() - 1]).is_err());
        let nan = f32::NAN.to_le_bytes();
        let mut damaged = bytes.clone();
        let at = damaged.len() - 8;
        damaged[at..at + 4].copy_from_slice(&nan);
        assert!(ColourMap::from_disk(&damaged).is_err());
    }
}
