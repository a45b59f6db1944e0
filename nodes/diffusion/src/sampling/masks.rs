//! Subject masks from cross-attention: the mean map of the subject's tokens, smoothed, stretched to [0, 1], cut.

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::prompt::conditioning::Span;
use crate::{Error, Result};

/// A plane of numbers, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Plane {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `height * width` numbers.
    pub data: Vec<f32>,
}

impl Plane {
    /// A plane of one number.
    #[must_use]
    pub fn filled((height, width): (usize, usize), value: f32) -> Self {
        Self {
            height,
            width,
            data: vec![value; height * width],
        }
    }

    /// The planes of a tensor `[B, h, w]`.
    ///
    /// # Errors
    /// When the tensor has another rank.
    pub fn from_tensor(t: &Tensor) -> Result<Vec<Self>> {
        let (_, height, width) = t.dims3()?;
        let t = t.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let images = t.to_vec3::<f32>()?;
        Ok(images
            .into_iter()
            .map(|rows| Self {
                height,
                width,
                data: rows.into_iter().flatten().collect(),
            })
            .collect())
    }

    /// (rows, columns).
    #[must_use]
    pub fn grid(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// One pass of the 3x3 binomial filter, borders repeated: holes of a raw map would let the context's look through.
    #[must_use]
    pub fn smoothed(&self) -> Self {
        const WEIGHTS: [f32; 3] = [1.0, 2.0, 1.0];
        let near = |i: usize, d: usize, n: usize| (i + d).saturating_sub(1).min(n - 1);
        let mut data = Vec::with_capacity(self.data.len());
        for y in 0..self.height {
            for x in 0..self.width {
                let mut sum = 0.0;
                for (i, a) in WEIGHTS.iter().enumerate() {
                    for (j, b) in WEIGHTS.iter().enumerate() {
                        let row = near(y, i, self.height);
                        let column = near(x, j, self.width);
                        sum += a * b * self.data[row * self.width + column];
                    }
                }
                data.push(sum / 16.0);
            }
        }
        Self { data, ..*self }
    }

    /// (m - min) / max(max - min, 1e-8).
    #[must_use]
    pub fn stretched(&self) -> Self {
        let min = self.data.iter().copied().fold(f32::INFINITY, f32::min);
        let max = self.data.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let range = (max - min).max(1e-8);
        Self {
            data: self.data.iter().map(|m| (m - min) / range).collect(),
            ..*self
        }
    }

    /// On another grid, nearest: source index floor(i * in / out), in integers.
    #[must_use]
    pub fn nearest(&self, (height, width): (usize, usize)) -> Self {
        let mut data = Vec::with_capacity(height * width);
        for y in 0..height {
            let row = y * self.height / height * self.width;
            data.extend((0..width).map(|x| self.data[row + x * self.width / width]));
        }
        Self {
            height,
            width,
            data,
        }
    }

    /// The larger of two planes, number by number.
    #[must_use]
    pub fn max(&self, other: &Self) -> Self {
        Self {
            data: self
                .data
                .iter()
                .zip(&other.data)
                .map(|(a, b)| a.max(*b))
                .collect(),
            ..*self
        }
    }
}

/// How a map in [0, 1] becomes a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Threshold {
    /// Otsu's (1979) on 64 bins.
    #[default]
    Otsu,
    /// The map itself.
    Soft,
    /// mask = m > number.
    Number(f64),
}

impl Threshold {
    /// The mask of a map.
    #[must_use]
    pub fn apply(self, map: &Plane) -> Plane {
        let cut = match self {
            Self::Soft => return map.clone(),
            Self::Otsu => (otsu_bin(&map.data) + 1) as f32 / BINS as f32,
            Self::Number(number) => number as f32,
        };
        Plane {
            data: map
                .data
                .iter()
                .map(|&m| if m > cut { 1.0 } else { 0.0 })
                .collect(),
            ..*map
        }
    }
}

/// Bins of the histogram.
const BINS: usize = 64;

/// The first bin that maximises the between-class variance; the threshold is its upper edge.
#[must_use]
pub fn otsu_bin(values: &[f32]) -> usize {
    let mut histogram = [0f64; BINS];
    for &value in values {
        histogram[((value * BINS as f32).floor().max(0.0) as usize).min(BINS - 1)] += 1.0;
    }
    let n = values.len().max(1) as f64;
    let share = histogram.map(|count| count / n);
    let centre = |b: usize| (b as f64 + 0.5) / BINS as f64;
    let total: f64 = share
        .iter()
        .enumerate()
        .fold(0.0, |a, (b, p)| a + p * centre(b));
    let (mut weight, mut mean) = (0.0, 0.0);
    let (mut best, mut largest) = (0, f64::NEG_INFINITY);
    for (b, p) in share.iter().enumerate() {
        weight += p;
        mean += p * centre(b);
        let between = (total * weight - mean).powi(2) / (weight * (1.0 - weight)).max(1e-12);
        if between > largest {
            (best, largest) = (b, between);
        }
    }
    best
}

/// The subject's map of each image: `raw` `[B, h w, tokens]` is the mean over heads and layers of the softmaxed
/// cross-attention on the mask grid; the sum over the subject's tokens, `smooth` passes of the filter, stretched.
///
/// # Errors
/// When `raw` is not of this grid or has fewer tokens.
pub fn subject_maps(
    raw: &Tensor,
    span: &Span,
    grid: (usize, usize),
    smooth: usize,
) -> Result<Vec<Plane>> {
    let (images, pixels, tokens) = raw.dims3()?;
    if pixels != grid.0 * grid.1 || span.end() > tokens {
        return Err(Error::request(format!(
            "cross-attention of {pixels} pixels and {tokens} tokens for a grid of {grid:?} and tokens {span:?}"
        )));
    }
    let mut sums = span.ranges().iter().map(|range| {
        raw.narrow(2, range.start, range.len())
            .and_then(|part| part.sum(2))
    });
    let first = sums
        .next()
        .ok_or_else(|| Error::request("the subject has no tokens"))??;
    let summed = sums
        .try_fold(first, |sum, part| sum + part?)?
        .reshape((images, grid.0, grid.1))?;
    Ok(Plane::from_tensor(&summed)?
        .into_iter()
        .map(|plane| {
            (0..smooth)
                .fold(plane, |plane, _| plane.smoothed())
                .stretched()
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn otsu_takes_the_first_of_equal_maxima() {
        // Two classes at the ends: every bin between them separates them as well; the first, 0, is taken.
        assert_eq!(otsu_bin(&[0.0, 0.0, 1.0, 1.0]), 0);
        assert_eq!(otsu_bin(&[0.3; 9]), 0);
        assert_eq!(otsu_bin(&[]), 0);
        // Computed with numpy: values i / 99 squared.
        let values: Vec<f32> = (0..100).map(|i| (i as f32 / 99.0).powi(2)).collect();
        assert_eq!(otsu_bin(&values), 26);
    }

    #[test]
    fn nearest_takes_the_floor_of_the_scaled_index() {
        let plane = Plane {
            height: 1,
            width: 5,
            data: vec![0.0, 1.0, 2.0, 3.0, 4.0],
        };
        assert_eq!(plane.nearest((1, 3)).data, [0.0, 1.0, 3.0]);
        assert_eq!(
            plane.nearest((2, 7)).data[..7],
            [0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 4.0]
        );
    }

    #[test]
    fn smoothing_keeps_a_constant_and_spreads_a_point() {
        assert_eq!(
            Plane::filled((3, 4), 0.5).smoothed(),
            Plane::filled((3, 4), 0.5)
        );
        let mut point = Plane::filled((3, 3), 0.0);
        point.data[4] = 16.0;
        assert_eq!(
            point.smoothed().data,
            [1.0, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0, 2.0, 1.0]
        );
        assert_eq!(Plane::filled((2, 2), 3.0).stretched().data, [0.0; 4]);
    }
}
