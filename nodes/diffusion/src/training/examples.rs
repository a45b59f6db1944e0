//! The pictures of a training, in the order in which its steps take them.

use candle_core::Tensor;

use super::draws::Draws;

/// A picture as it is trained on.
#[derive(Clone, Debug)]
pub struct Example {
    /// Its latent `[1, C, h, w]`, scaled as the U-Net takes it.
    pub latent: Tensor,
    /// Its caption.
    pub caption: String,
    /// How much of the subject each pixel of the latent shows, `[1, 1, h, w]` from 0 to 1.
    pub mask: Option<Tensor>,
}

/// Which examples each batch takes: every epoch all of them once, in an order of its own, pictures of one size together.
#[derive(Clone, Debug)]
pub struct Order {
    /// The numbers of the examples of each size.
    buckets: Vec<Vec<usize>>,
    batch: usize,
    draws: Draws,
}

impl Order {
    /// The order of a training with batches of so many.
    #[must_use]
    pub fn new(examples: &[Example], batch: usize, draws: Draws) -> Self {
        let mut buckets: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        for (i, example) in examples.iter().enumerate() {
            let shape = example.latent.dims();
            match buckets.iter_mut().find(|(size, _)| size == shape) {
                Some((_, own)) => own.push(i),
                None => buckets.push((shape.to_vec(), vec![i])),
            }
        }
        Self {
            buckets: buckets.into_iter().map(|(_, own)| own).collect(),
            batch: batch.max(1),
            draws,
        }
    }

    /// The numbers of the examples of batch `index`, as many as a batch has: the last of a bucket goes on with its first.
    #[must_use]
    pub fn batch(&self, index: u64) -> Vec<usize> {
        let batches: usize = self
            .buckets
            .iter()
            .map(|own| own.len().div_ceil(self.batch))
            .sum();
        if batches == 0 {
            return Vec::new();
        }
        let draws = self.draws.at(index / batches as u64);
        // The batches of the epoch: those of each bucket, in an order of their own.
        let mut all = Vec::with_capacity(batches);
        for (b, own) in self.buckets.iter().enumerate() {
            let order = draws.at(b as u64).order(own.len());
            let shuffled: Vec<usize> = order.into_iter().map(|i| own[i]).collect();
            for first in (0..own.len()).step_by(self.batch) {
                let taken = shuffled.iter().cycle().skip(first).take(self.batch);
                all.push(taken.copied().collect::<Vec<_>>());
            }
        }
        let order = draws.at(u64::MAX).order(batches);
        let place = (index % batches as u64) as usize;
        std::mem::take(&mut all[order[place]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn every_epoch_takes_each_picture_once_and_never_two_sizes_together() {
        let example = |width: usize| Example {
            latent: Tensor::zeros((1, 4, 8, width), DType::F32, &Device::Cpu).unwrap(),
            caption: String::new(),
            mask: None,
        };
        let examples: Vec<_> = [8, 8, 12, 8, 12, 8].into_iter().map(example).collect();
        let order = Order::new(&examples, 2, Draws::new(3, "pictures"));
        for epoch in 0..5u64 {
            let batches: Vec<_> = (0..3).map(|i| order.batch(epoch * 3 + i)).collect();
            let mut all: Vec<_> = batches.concat();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3, 4, 5]);
            for batch in batches {
                let width = |i: &usize| examples[*i].latent.dims()[3];
                assert_eq!(width(&batch[0]), width(&batch[1]));
            }
        }
        let short = Order::new(&examples[..1], 3, Draws::new(3, "pictures"));
        assert_eq!(short.batch(9), [0, 0, 0]);
    }
}
