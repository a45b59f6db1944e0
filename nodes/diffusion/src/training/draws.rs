//! What a training draws by chance, as a function of its seed and of what is drawn: nothing is remembered between steps, so that
//! a training that goes on after a stop draws what an undisturbed one would have.

use crate::sampling::noise::{Stream, normal, philox4x32_10};

/// A source of numbers for one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws(u64);

impl Draws {
    /// The numbers of a seed that a purpose has.
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a of the purpose, mixed with the seed by Philox.
        let hash = purpose
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        Self(mixed(hash, seed))
    }

    /// Those of one step, row or epoch of it.
    #[must_use]
    pub fn at(self, index: u64) -> Self {
        Self(mixed(index, self.0))
    }

    /// Those of a part of the purpose that has a name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self::new(self.0, name)
    }

    /// Words of 32 bits, each as likely.
    #[must_use]
    pub fn words(self, count: usize) -> Vec<u32> {
        let key = [self.0 as u32, (self.0 >> 32) as u32];
        let blocks = 0..count.div_ceil(4) as u64;
        let words =
            blocks.flat_map(|block| philox4x32_10([block as u32, (block >> 32) as u32, 0, 4], key));
        words.take(count).collect()
    }

    /// Standard normal numbers.
    #[must_use]
    pub fn normal(self, count: usize) -> Vec<f32> {
        normal(self.0, Stream::Start, count)
    }

    /// Numbers equally likely within `bound` of 0.
    #[must_use]
    pub fn uniform(self, count: usize, bound: f64) -> Vec<f32> {
        (0..count)
            .map(|i| {
                let unit = (self.at(i as u64).0 >> 11) as f64 / (1u64 << 53) as f64;
                ((2.0 * unit - 1.0) * bound) as f32
            })
            .collect()
    }

    /// A whole number below `end`, each as likely; 0 when that is 0.
    #[must_use]
    pub fn below(self, end: usize) -> usize {
        ((u128::from(self.0) * end as u128) >> 64) as usize
    }

    /// The numbers below `count` in any order, each order as likely (Fisher and Yates).
    #[must_use]
    pub fn order(self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for i in (1..count).rev() {
            order.swap(i, self.at(i as u64).below(i + 1));
        }
        order
    }
}

fn mixed(counter: u64, key: u64) -> u64 {
    let counter = [counter as u32, (counter >> 32) as u32, 0, 3];
    let words = philox4x32_10(counter, [key as u32, (key >> 32) as u32]);
    u64::from(words[0]) << 32 | u64::from(words[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_each_number_once_and_differs_from_epoch_to_epoch() {
        let draws = Draws::new(7, "order");
        let mut order = draws.at(0).order(100);
        assert_ne!(order, draws.at(1).order(100));
        assert_eq!(order, Draws::new(7, "order").at(0).order(100));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..100));
    }

    #[test]
    fn numbers_of_one_purpose_are_not_those_of_another_and_fill_their_range() {
        let (a, b) = (Draws::new(1, "noise"), Draws::new(1, "timestep"));
        assert_ne!(a.normal(4), b.normal(4));
        let many: Vec<usize> = (0..4000).map(|i| b.at(i).below(4)).collect();
        for n in 0..4 {
            let count = many.iter().filter(|&&x| x == n).count();
            assert!((900..1100).contains(&count), "{n}: {count}");
        }
        let uniform = a.uniform(4000, 2.0);
        let mean = uniform.iter().sum::<f32>() / 4000.0;
        assert!(uniform.iter().all(|x| x.abs() <= 2.0) && mean.abs() < 0.1);
    }
}
