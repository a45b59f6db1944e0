//! Latents as pictures at almost no cost: the affine map from a latent's pixel to a colour that comes closest to a VAE.
//!
//! The map is fitted from the VAE itself by least squares, on a few small pictures that the VAE encodes and decodes again
//! and on a few latents that it decodes. All of them are smooth noise of several scales from the counter-based generator,
//! so the map is a function of the VAE alone.

use candle_core::{DType, Device, Tensor};

use crate::networks::tiles::Tiled;
use crate::networks::vae::Vae;
use crate::sampling::noise::{Stream, normal};
use crate::{Error, Result};
use retouch_kernels::Kernel;

/// The side of what the map is fitted on, in pixels of the latent.
const SIDE: usize = 8;
/// So many pictures and as many latents: together half the pixels of a latent of 32x32, so that a fit costs less than
/// the decoding of a picture of 256x256.
const PICTURES: usize = 4;
/// The seeds of both; any would do.
const SEEDS: [u64; 2] = [3, 103];
/// The standard deviation of each scale of a latent: with four scales the whole has 1, as scaled latents have.
const LATENT_GAIN: f64 = 0.5;
/// The same of a picture in [-1, 1]: with five scales the whole has 0.9, so that dark and bright are both reached.
const PICTURE_GAIN: f64 = 0.4;
/// What is added to the diagonal of the normal equations, in shares of its mean. A VAE may leave a channel without any
/// effect or give two of them the same, which alone would make the equations singular. In f64 this is far above the
/// rounding and changes a weight that matters by a hundred-millionth.
const RIDGE: f64 = 1e-8;

/// An affine map from the channels of a latent's pixel to red, green and blue in [0, 1].
#[derive(Clone, Debug, PartialEq)]
pub struct LinearMap {
    channels: usize,
    /// For each colour the weights of the channels and then the offset: 3 x (C + 1).
    weights: Vec<f32>,
    explained: f32,
}

impl LinearMap {
    /// Makes a map of `3 x (channels + 1)` weights, for each colour those of the channels and then the offset;
    /// `explained` is R^2 on what it was fitted on.
    ///
    /// # Errors
    /// When the number of weights is another, or one is not finite.
    pub fn new(channels: usize, weights: Vec<f32>, explained: f32) -> Result<Self> {
        if channels == 0 || weights.len() != 3 * (channels + 1) {
            return Err(Error::request(format!(
                "a map from {channels} channels to colours has {} weights, not {}",
                3 * (channels + 1),
                weights.len()
            )));
        }
        if weights.iter().any(|w| !w.is_finite()) {
            return Err(Error::request(
                "the map from latents to colours contains NaN or infinite values",
            ));
        }
        Ok(Self {
            channels,
            weights,
            explained,
        })
    }

    /// Fits the map from `latents` `[B, C, h, w]` to `pictures` `[B, 3, h, w]` in [0, 1] by least squares, in f64.
    ///
    /// # Errors
    /// When the shapes don't belong together, there are no pixels, or the result is not finite.
    pub fn fit(latents: &Tensor, pictures: &Tensor) -> Result<Self> {
        let (batch, channels, height, width) = latents.dims4()?;
        let count = batch * height * width;
        if pictures.dims() != [batch, 3, height, width] || count == 0 || channels == 0 {
            return Err(Error::request(format!(
                "a map from latents {:?} to pictures {:?} cannot be fitted",
                latents.dims(),
                pictures.dims()
            )));
        }
        let (x, x_mean) = centred(latents, channels)?;
        let (y, y_mean) = centred(pictures, 3)?;
        // The offset is found through the means, so that the ridge does not pull at it.
        let mut gram = vec![0f64; channels * channels];
        let mut right = vec![0f64; channels * 3];
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact(3)) {
            for (p, xp) in x.iter().enumerate() {
                for (q, xq) in x.iter().enumerate().take(p + 1) {
                    gram[p * channels + q] += xp * xq;
                }
                for (q, yq) in y.iter().enumerate() {
                    right[p * 3 + q] += xp * yq;
                }
            }
        }
        let trace: f64 = (0..channels).map(|p| gram[p * channels + p]).sum();
        // Latents that are all the same say nothing: then the map is the mean colour, whatever is added here.
        let ridge = if trace > 0.0 {
            RIDGE * trace / channels as f64
        } else {
            1.0
        };
        for p in 0..channels {
            gram[p * channels + p] += ridge;
        }
        solve(&mut gram, &mut right, channels, 3);
        let mut weights = Vec::with_capacity(3 * (channels + 1));
        for (q, mean) in y_mean.iter().enumerate() {
            let mut offset = *mean;
            for (p, mean) in x_mean.iter().enumerate() {
                let weight = right[p * 3 + q];
                weights.push(weight as f32);
                offset -= weight * mean;
            }
            weights.push(offset as f32);
        }
        let mut map = Self::new(channels, weights, 0.0)?;
        map.explained = map.r_squared(latents, pictures)? as f32;
        Ok(map)
    }

    /// Fits the map of a VAE, for latents that are scaled as the U-Net takes them.
    ///
    /// # Errors
    /// When the VAE fails, or gives what is not finite.
    pub fn of_vae(vae: &Vae, device: &Device, kernel: &dyn Kernel) -> Result<Self> {
        let (factor, channels) = (vae.config().factor(), vae.config().latent_channels);
        let scales = [1, 2, 4, SIDE, SIDE * factor];
        let pictures = smooth_noise(SEEDS[0], 3, SIDE * factor, &scales, PICTURE_GAIN)?
            .clamp(-1f32, 1f32)?
            .to_device(device)?;
        let encoded =
            (vae.encode_mean(&pictures, kernel)? * vae.config().scaling_factor)?.contiguous()?;
        let drawn = smooth_noise(SEEDS[1], channels, SIDE, &scales[..4], LATENT_GAIN)?;
        let latents = Tensor::cat(&[encoded, drawn.to_device(device)?], 0)?;
        let pictures = area_mean(&decode_scaled(vae, &latents, Tiled::Never, kernel)?, factor)?;
        Self::fit(&latents, &pictures)
    }

    /// The channels of the latents that it maps.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The weights, as [`LinearMap::new`] takes them.
    #[must_use]
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// R^2 on what it was fitted on: the share of the colours' variance that it explains.
    #[must_use]
    pub fn explained(&self) -> f32 {
        self.explained
    }

    /// The colours `[B, 3, h, w]` in [0, 1], on the CPU, of latents `[B, C, h, w]`.
    ///
    /// # Errors
    /// When the latents have another number of channels.
    pub fn apply(&self, latents: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = latents.dims4()?;
        if channels != self.channels {
            return Err(Error::request(format!(
                "latents of {channels} channels for a map from {}",
                self.channels
            )));
        }
        let z = numbers(latents)?;
        let area = height * width;
        let mut out = Vec::with_capacity(batch * 3 * area);
        for image in z.chunks_exact((channels * area).max(1)) {
            for row in self.weights.chunks_exact(channels + 1) {
                out.extend((0..area).map(|place| {
                    let colour = row[..channels]
                        .iter()
                        .zip(image.iter().skip(place).step_by(area))
                        .fold(row[channels], |sum, (weight, z)| sum + weight * z);
                    colour.clamp(0.0, 1.0)
                }));
            }
        }
        Ok(Tensor::from_vec(
            out,
            (batch, 3, height, width),
            &Device::Cpu,
        )?)
    }

    /// R^2 of the map's colours against `pictures` `[B, 3, h, w]`: 1 - the squared error over the variance around each
    /// colour's mean. Pictures of one colour alone have no variance; they give 1 when they are met and 0 otherwise.
    ///
    /// # Errors
    /// When the shapes don't belong together.
    pub fn r_squared(&self, latents: &Tensor, pictures: &Tensor) -> Result<f64> {
        let colours = numbers(&self.apply(latents)?.permute((0, 2, 3, 1))?)?;
        let (deviations, means) = centred(pictures, 3)?;
        if colours.len() != deviations.len() {
            return Err(Error::request(format!(
                "latents {:?} and pictures {:?} don't belong together",
                latents.dims(),
                pictures.dims()
            )));
        }
        let mut error = 0.0;
        for (index, (colour, deviation)) in colours.iter().zip(&deviations).enumerate() {
            error += (f64::from(*colour) - means[index % 3] - deviation).powi(2);
        }
        let variance: f64 = deviations.iter().map(|d| d * d).sum();
        Ok(if variance > 0.0 {
            1.0 - error / variance
        } else {
            f64::from(u8::from(error < 1e-9))
        })
    }
}

/// Pictures `[B, 3, H, W]` in [0, 1] of scaled latents `[B, C, h, w]`, where the VAE computes.
///
/// # Errors
/// When the VAE fails.
pub fn decode_scaled(
    vae: &Vae,
    latents: &Tensor,
    tiled: Tiled,
    kernel: &dyn Kernel,
) -> Result<Tensor> {
    let (_, _, height, width) = latents.dims4()?;
    let latents = (latents / vae.config().scaling_factor)?;
    let picture = match tiled.tiling(height, width) {
        Some(tiling) => vae.decode_tiled(&latents, tiling, kernel)?,
        None => vae.decode(&latents, kernel)?,
    };
    Ok(((picture + 1.0)? * 0.5)?.clamp(0f32, 1f32)?)
}

/// The means of squares of `factor` x `factor` pixels: pictures `[B, C, f h, f w]` to `[B, C, h, w]`.
///
/// # Errors
/// When a side is no multiple of the factor.
pub fn area_mean(pictures: &Tensor, factor: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = pictures.dims4()?;
    let (h, w) = (height / factor, width / factor);
    Ok(pictures
        .reshape((batch, channels, h, factor, w, factor))?
        .mean(5)?
        .mean(3)?)
}

/// Noise `[PICTURES, channels, side, side]` on the CPU: the sum of fields of normal numbers of standard deviation `gain`,
/// each on a grid of so many cells, brought to the side linearly.
fn smooth_noise(
    seed: u64,
    channels: usize,
    side: usize,
    cells: &[usize],
    gain: f64,
) -> Result<Tensor> {
    let shape = (PICTURES, channels, side, side);
    let mut sum = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
    for (scale, &cells) in cells.iter().enumerate() {
        let field = normal(
            seed,
            Stream::Step(scale as u32),
            PICTURES * channels * cells * cells,
        );
        let field = Tensor::from_vec(field, (PICTURES, channels, cells, cells), &Device::Cpu)?;
        let field = match cells {
            1 => field.broadcast_as(shape)?.contiguous()?,
            _ if cells == side => field,
            _ => field.upsample_bilinear2d(side, side, true)?,
        };
        sum = (sum + (field * gain)?)?;
    }
    Ok(sum)
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()?)
}

/// The pixels of `[B, C, h, w]`, channel beside channel, less each channel's mean; and the means.
fn centred(tensor: &Tensor, channels: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let pixels = numbers(&tensor.permute((0, 2, 3, 1))?)?;
    let count = (pixels.len() / channels).max(1) as f64;
    let mut means = vec![0f64; channels];
    for pixel in pixels.chunks_exact(channels) {
        for (mean, value) in means.iter_mut().zip(pixel) {
            *mean += f64::from(*value) / count;
        }
    }
    let less = pixels
        .iter()
        .enumerate()
        .map(|(index, value)| f64::from(*value) - means[index % channels])
        .collect();
    Ok((less, means))
}

/// Solves A X = B for a symmetric positive definite A `n x n` (its lower half is read) and B `n x m` by Cholesky; X is
/// left in B.
fn solve(a: &mut [f64], b: &mut [f64], n: usize, m: usize) {
    for j in 0..n {
        for k in 0..j {
            let ljk = a[j * n + k];
            for i in j..n {
                a[i * n + j] -= a[i * n + k] * ljk;
            }
        }
        // The ridge keeps it above 0 but for rounding.
        let root = a[j * n + j].max(f64::MIN_POSITIVE).sqrt();
        for i in j..n {
            a[i * n + j] /= root;
        }
    }
    for c in 0..m {
        for i in 0..n {
            let known: f64 = (0..i).map(|k| a[i * n + k] * b[k * m + c]).sum();
            b[i * m + c] = (b[i * m + c] - known) / a[i * n + i];
        }
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|k| a[k * n + i] * b[k * m + c]).sum();
            b[i * m + c] = (b[i * m + c] - known) / a[i * n + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(seed: u64, shape: (usize, usize, usize, usize)) -> Tensor {
        let (b, c, h, w) = shape;
        let values = normal(seed, Stream::Start, b * c * h * w);
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Colours that never leave [0, 1]: 3 x (C + 1) weights.
    fn weights(channels: usize) -> Vec<f32> {
        (0..3)
            .flat_map(|colour| {
                let row = (0..channels).map(move |c| {
                    let sign = if (c + colour) % 2 == 0 { 1.0 } else { -1.0 };
                    sign * 0.05 / (1 + c + colour) as f32
                });
                row.chain([0.4 + 0.1 * colour as f32])
            })
            .collect()
    }

    #[test]
    fn a_linear_vae_is_recovered_to_1e_5_at_any_number_of_channels() {
        for channels in [1, 3, 4, 5, 8, 16] {
            let truth = LinearMap::new(channels, weights(channels), 1.0).unwrap();
            let latents = field(channels as u64, (2, channels, 7, 9));
            let pictures = truth.apply(&latents).unwrap();
            let map = LinearMap::fit(&latents, &pictures).unwrap();
            for (found, expected) in map.weights().iter().zip(truth.weights()) {
                assert!((found - expected).abs() < 1e-5, "{channels}: {map:?}");
            }
            assert!(map.explained() > 0.99999);
            assert_eq!(map.channels(), channels);
        }
    }

    #[test]
    fn channels_without_effect_or_of_equal_effect_do_not_break_the_fit() {
        let one = field(1, (1, 1, 8, 8));
        let still = (one.zeros_like().unwrap() + 3.0).unwrap();
        let latents = Tensor::cat(&[&one, &one, &still], 1).unwrap();
        let truth = LinearMap::new(1, vec![0.1, 0.5, 0.05, 0.5, -0.1, 0.5], 1.0).unwrap();
        let pictures = truth.apply(&one).unwrap();
        let map = LinearMap::fit(&latents, &pictures).unwrap();
        assert!(map.explained() > 0.9999, "{map:?}");
        // Nothing but one latent: the mean colour.
        let map = LinearMap::fit(&still, &pictures).unwrap();
        assert!(
            map.weights()[0] == 0.0 && map.explained().abs() < 1e-4,
            "{map:?}"
        );
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let latents = field(1, (1, 4, 8, 8));
        assert!(LinearMap::fit(&latents, &field(2, (1, 3, 8, 7))).is_err());
        assert!(LinearMap::fit(&latents, &latents).is_err());
        assert!(LinearMap::new(4, vec![0.0; 14], 1.0).is_err());
        assert!(LinearMap::new(4, vec![f32::NAN; 15], 1.0).is_err());
        let map = LinearMap::new(4, weights(4), 1.0).unwrap();
        assert!(map.apply(&field(1, (1, 5, 8, 8))).is_err());
    }

    #[test]
    fn the_mean_over_squares_is_that_of_their_pixels() {
        let picture = Tensor::arange(0f32, 16.0, &Device::Cpu)
            .and_then(|t| t.reshape((1, 1, 4, 4)))
            .unwrap();
        let means = numbers(&area_mean(&picture, 2).unwrap()).unwrap();
        assert_eq!(means, [2.5, 4.5, 10.5, 12.5]);
    }
}
