//! What of a layer's inputs low-rank factors see at a step: the rest is dropped (Srivastava et al. 2014).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Device, Shape, Tensor};

use super::draws::Draws;
use crate::Result;
use crate::checkpoint::weights::InputMask;

/// Dropout of all layers of a training: every mask is a function of the seed, the layer and the batch.
#[derive(Clone, Debug)]
pub struct Dropout {
    share: f64,
    draws: Draws,
    batch: Arc<AtomicU64>,
    device: Device,
}

impl Dropout {
    /// Drops that share of inputs.
    #[must_use]
    pub fn new(share: f64, seed: u64, device: &Device) -> Self {
        Self {
            share,
            draws: Draws::new(seed, "dropout"),
            batch: Arc::default(),
            device: device.clone(),
        }
    }

    /// That of a layer.
    pub fn layer(&self, name: &str) -> Arc<dyn InputMask> {
        let mut own = self.clone();
        own.draws = self.draws.named(name);
        Arc::new(own)
    }

    /// Says which batch is computed next.
    pub fn begin(&self, batch: u64) {
        self.batch.store(batch, Ordering::Relaxed);
    }
}

impl InputMask for Dropout {
    fn mask(&self, shape: &Shape) -> Result<Tensor> {
        let draws = self.draws.at(self.batch.load(Ordering::Relaxed));
        let kept = (1.0 / (1.0 - self.share)) as f32;
        // Of 2^32 equally likely words.
        let dropped = (self.share * 4_294_967_296.0) as u64;
        let numbers: Vec<f32> = draws
            .words(shape.elem_count())
            .into_iter()
            .map(|word| if u64::from(word) < dropped { 0.0 } else { kept })
            .collect();
        Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?.to_device(&self.device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_keeps_the_mean_and_is_that_of_its_layer_and_batch() {
        let dropout = Dropout::new(0.25, 1, &Device::Cpu);
        let (a, b) = (dropout.layer("a"), dropout.layer("b"));
        let shape = Shape::from((10, 1000));
        let of = |layer: &Arc<dyn InputMask>| -> Vec<f32> {
            layer
                .mask(&shape)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap()
        };
        let first = of(&a);
        assert_eq!(first, of(&a));
        assert_ne!(first, of(&b));
        let mean = first.iter().sum::<f32>() / 10_000.0;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        dropout.begin(1);
        assert_ne!(first, of(&a));
    }
}
