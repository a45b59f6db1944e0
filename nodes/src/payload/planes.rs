//! Parts and means of planes of numbers.

use retouch_graph::NodeError;
use serde::{Deserialize, Serialize};

/// A part of a picture, in pixels from its upper left corner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CropBox {
    /// Columns left out on the left.
    pub x: usize,
    /// Rows left out above.
    pub y: usize,
    /// Columns kept.
    pub width: usize,
    /// Rows kept.
    pub height: usize,
}

/// The largest part of `size` (width, height) around the centre that has the aspect `aspect` (width, height).
///
/// The side that is cut is rounded to the nearest pixel (half up, at least 1); of an odd remainder the larger half is
/// cut right or below.
///
/// # Errors
/// When `aspect` has a 0.
pub fn crop_box(size: (usize, usize), aspect: (usize, usize)) -> Result<CropBox, NodeError> {
    let (width, height) = size;
    let (across, down) = aspect;
    if across == 0 || down == 0 {
        return Err(NodeError::failed(format!(
            "a picture cannot be cropped to the aspect {across}:{down}"
        )));
    }
    let rounded = |a: usize, b: usize, c: usize| -> usize {
        // In u128: sides times sides, whatever the caller gives.
        let value = (2 * a as u128 * b as u128 + c as u128) / (2 * c as u128);
        usize::try_from(value).unwrap_or(usize::MAX)
    };
    // Compares width / height with across / down, without a division.
    let (kept_width, kept_height) =
        if width as u128 * down as u128 > height as u128 * across as u128 {
            (rounded(height, across, down).clamp(1, width.max(1)), height)
        } else {
            (width, rounded(width, down, across).clamp(1, height.max(1)))
        };
    Ok(CropBox {
        x: (width - kept_width) / 2,
        y: (height - kept_height) / 2,
        width: kept_width,
        height: kept_height,
    })
}

/// The mean over each of `to` (width, height) cells laid over a plane of `from` (width, height) pixels; partly covered
/// pixels count by their share, so a plane can be enlarged too. Sums are in f64, the shares exact.
pub(crate) fn area_average(plane: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    let columns = shares(from.0, to.0);
    let rows = shares(from.1, to.1);
    // Across first: the sums of each row of pixels, in shares of 1 / to.0.
    let mut across = vec![0f64; to.0 * from.1];
    for (sums, pixels) in across
        .chunks_exact_mut(to.0)
        .zip(plane.chunks_exact(from.0))
    {
        for (sum, (first, weights)) in sums.iter_mut().zip(&columns) {
            *sum = pixels[*first..]
                .iter()
                .zip(weights)
                .map(|(value, weight)| f64::from(*value) * weight)
                .sum();
        }
    }
    // A cell's shares add up to `from` in units of 1 / `to`, each way.
    let whole = from.0 as f64 * from.1 as f64;
    let mut averages = Vec::with_capacity(to.0 * to.1);
    for (first, weights) in &rows {
        for column in 0..to.0 {
            let sum: f64 = weights
                .iter()
                .enumerate()
                .map(|(row, weight)| across[(first + row) * to.0 + column] * weight)
                .sum();
            averages.push((sum / whole) as f32);
        }
    }
    averages
}

/// For each of `to` cells over `from` pixels: the first pixel that it covers, and the share of each, in units of 1 / `to`
/// of a pixel. Cell i covers i * from .. (i + 1) * from in these units, pixel j covers j * to .. (j + 1) * to.
fn shares(from: usize, to: usize) -> Vec<(usize, Vec<f64>)> {
    (0..to)
        .map(|cell| {
            let (start, end) = (cell * from, (cell + 1) * from);
            let (first, last) = (start / to, end.div_ceil(to));
            let weights = (first..last)
                .map(|pixel| (end.min((pixel + 1) * to) - start.max(pixel * to)) as f64)
                .collect();
            (first, weights)
        })
        .collect()
}
