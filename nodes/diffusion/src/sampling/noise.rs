//! Noise as a function of seed and place: Philox4x32-10 (Salmon et al. 2011) and Box-Muller in f64 through `libm`,
//! rounded to f32, so that every platform and every batch size gives the same bits.

use candle_core::{Device, Tensor};

use crate::Result;

/// Multipliers of Philox4x32.
const M: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Weyl increments of the key: the golden ratio and sqrt(3) - 1.
const W: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32 on `counter` under `key`.
#[must_use]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(W[0]), key[1].wrapping_add(W[1])];
        }
        let a = u64::from(M[0]) * u64::from(counter[0]);
        let b = u64::from(M[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
    }
    counter
}

/// What the noise is for: starting noise is step 0 of stream 0, the noise of step k is step k of stream 1, and of stream 2
/// where a step needs independent noise twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The latent that sampling starts from.
    Start,
    /// The noise that a stochastic sampler adds at a step.
    Step(u32),
    /// The noise of the second part of a step.
    SecondPart(u32),
}

/// `count` standard normal numbers for one image.
#[must_use]
pub fn normal(seed: u64, stream: Stream, count: usize) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let (step, stream) = match stream {
        Stream::Start => (0, 0),
        Stream::Step(k) => (k, 1),
        Stream::SecondPart(k) => (k, 2),
    };
    let mut numbers = Vec::with_capacity(count.next_multiple_of(4));
    for block in 0..count.div_ceil(4) {
        let words = philox4x32_10([block as u32, step, stream, 0], key);
        let u = words.map(|w| (f64::from(w) + 0.5) / 4_294_967_296.0);
        for pair in [[u[0], u[1]], [u[2], u[3]]] {
            let radius = libm::sqrt(-2.0 * libm::log(pair[0]));
            let angle = 2.0 * std::f64::consts::PI * pair[1];
            numbers.push((radius * libm::cos(angle)) as f32);
            numbers.push((radius * libm::sin(angle)) as f32);
        }
    }
    numbers.truncate(count);
    numbers
}

/// The starting noise `[batch, channels, h, w]`; image i has the seed `seed + i`.
///
/// # Errors
/// When the device cannot hold it.
pub fn starting_noise(
    seed: u64,
    shape: (usize, usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    batch_noise(seed, Stream::Start, shape, device)
}

/// The noise `[batch, channels, h, w]` of step k of all T; image i has the seed `seed + i`.
///
/// # Errors
/// When the device cannot hold it.
pub fn step_noise(
    seed: u64,
    k: usize,
    shape: (usize, usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    // There are at most a million timesteps.
    let stream = Stream::Step(u32::try_from(k).unwrap_or(u32::MAX));
    batch_noise(seed, stream, shape, device)
}

/// The noise `[batch, channels, h, w]` of the second part of step k of all T, for solvers that add noise half way too;
/// image i has the seed `seed + i`.
///
/// # Errors
/// When the device cannot hold it.
pub fn second_step_noise(
    seed: u64,
    k: usize,
    shape: (usize, usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let stream = Stream::SecondPart(u32::try_from(k).unwrap_or(u32::MAX));
    batch_noise(seed, stream, shape, device)
}

fn batch_noise(
    seed: u64,
    stream: Stream,
    (batch, channels, h, w): (usize, usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let numbers: Vec<f32> = (0..batch as u64)
        .flat_map(|i| normal(seed.wrapping_add(i), stream, channels * h * w))
        .collect();
    Ok(Tensor::from_vec(numbers, (batch, channels, h, w), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_known_answers_of_random123() {
        // kat_vectors of Random123 1.09, philox4x32 10.
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn noise_is_standard_normal_and_differs_by_seed_and_stream() {
        let n = normal(42, Stream::Start, 40_000);
        let mean = n.iter().map(|&x| f64::from(x)).sum::<f64>() / n.len() as f64;
        let variance = n.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n.len() as f64;
        assert!(
            mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03,
            "{mean} {variance}"
        );
        assert_ne!(n[..8], normal(43, Stream::Start, 8)[..]);
        assert_ne!(n[..8], normal(42, Stream::Step(0), 8)[..]);
        let step = normal(42, Stream::Step(0), 8);
        assert_ne!(step, normal(42, Stream::SecondPart(0), 8));
        assert_ne!(n[..8], normal(42 + (1 << 32), Stream::Start, 8)[..]);
        assert_eq!(n[..7], normal(42, Stream::Start, 7)[..]);
    }
}
