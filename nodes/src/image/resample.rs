//! Cropping and resampling, on f32 from end to end: nothing is rounded to bytes in between.

use image::imageops::{self, FilterType};
use image::{ImageBuffer, Luma, Rgb};
use retouch_graph::NodeError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::payload::image::{Image, tensor_failed, values};

/// How a picture's pixels are made from those of another size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Filter {
    /// The pixel under the new pixel's centre, as it is: for whole-number enlargements of small pictures.
    Nearest,
    /// Linear between the nearest pixels; when made smaller, a triangle as wide as two new pixels.
    Bilinear,
    /// A windowed sinc of three lobes: the sharpest, for photographs.
    #[default]
    Lanczos3,
    /// The mean of what the new pixel covers, partly covered pixels by their share.
    Area,
}

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

/// The largest part of each picture around the centre that has the aspect `width : height`, see [`crop_box`].
///
/// # Errors
/// When `width` or `height` is 0.
pub fn centre_crop(image: &Image, width: usize, height: usize) -> Result<Image, NodeError> {
    cut(image, crop_box(image.size(), (width, height))?)
}

/// A part of each picture.
///
/// # Errors
/// When it is not inside.
pub fn cut(image: &Image, part: CropBox) -> Result<Image, NodeError> {
    let cut = |tensor: &candle_core::Tensor| {
        tensor
            .narrow(2, part.y, part.height)
            .and_then(|tensor| tensor.narrow(3, part.x, part.width))
            .map_err(tensor_failed)
    };
    Image::new(cut(&image.rgb)?, image.alpha.as_ref().map(cut).transpose()?)
}

/// The pictures at `width` x `height` pixels, whatever their aspect was; the result is clamped to 0..=1.
///
/// Pictures that have the size already are returned as they are.
///
/// # Errors
/// When `width` or `height` is 0.
pub fn resize(
    image: &Image,
    width: usize,
    height: usize,
    filter: Filter,
) -> Result<Image, NodeError> {
    if image.size() == (width, height) {
        return Ok(image.clone());
    }
    if width == 0 || height == 0 {
        return Err(NodeError::failed(format!(
            "a picture cannot be resized to {width}x{height} pixels"
        )));
    }
    let (from, to) = (image.size(), (width, height));
    let mut rgb = Vec::with_capacity(image.batch() * 3 * width * height);
    for picture in values(&image.rgb)?.chunks_exact(3 * from.0 * from.1) {
        resize_planes::<3>(picture, from, to, filter, &mut rgb)?;
    }
    let alpha = match &image.alpha {
        None => None,
        Some(alpha) => {
            let mut resized = Vec::with_capacity(image.batch() * width * height);
            for plane in values(alpha)?.chunks_exact(from.0 * from.1) {
                resize_planes::<1>(plane, from, to, filter, &mut resized)?;
            }
            Some(resized)
        }
    };
    Image::from_planes(image.batch(), width, height, rgb, alpha)
}

/// The pictures as a model takes them: [`centre_crop`] to the aspect, then Lanczos3 to the size.
///
/// Pictures that have the size already are returned as they are, bit for bit.
///
/// # Errors
/// When `width` or `height` is 0.
pub fn fit(image: &Image, width: usize, height: usize) -> Result<Image, NodeError> {
    if image.size() == (width, height) {
        return Ok(image.clone());
    }
    resize(
        &centre_crop(image, width, height)?,
        width,
        height,
        Filter::Lanczos3,
    )
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

/// Appends a plane of `from` (width, height) pixels, resized to `to`, to `resized`.
pub(crate) fn resize_plane(
    plane: &[f32],
    from: (usize, usize),
    to: (usize, usize),
    filter: Filter,
    resized: &mut Vec<f32>,
) -> Result<(), NodeError> {
    resize_planes::<1>(plane, from, to, filter, resized)
}

/// Appends `N` planes of `from` (width, height) pixels, resized to `to`, to `resized`.
fn resize_planes<const N: usize>(
    planes: &[f32],
    from: (usize, usize),
    to: (usize, usize),
    filter: Filter,
    resized: &mut Vec<f32>,
) -> Result<(), NodeError>
where
    [f32; N]: Channels,
{
    let area = from.0 * from.1;
    match filter {
        Filter::Nearest => {
            let columns = nearest(from.0, to.0);
            for plane in planes.chunks_exact(area) {
                for row in nearest(from.1, to.1) {
                    resized.extend(columns.iter().map(|column| plane[row * from.0 + column]));
                }
            }
        }
        Filter::Area => {
            for plane in planes.chunks_exact(area) {
                resized.extend(area_average(plane, from, to));
            }
        }
        Filter::Bilinear => <[f32; N]>::resample(planes, from, to, FilterType::Triangle, resized)?,
        Filter::Lanczos3 => <[f32; N]>::resample(planes, from, to, FilterType::Lanczos3, resized)?,
    }
    Ok(())
}

/// For each of `to` pixels the one of `from` under its centre, floor((i + 1/2) * from / to), in integers.
fn nearest(from: usize, to: usize) -> Vec<usize> {
    (0..to).map(|i| (2 * i + 1) * from / (2 * to)).collect()
}

/// The channels of a pixel that the `image` crate resamples together.
trait Channels {
    fn resample(
        planes: &[f32],
        from: (usize, usize),
        to: (usize, usize),
        filter: FilterType,
        resized: &mut Vec<f32>,
    ) -> Result<(), NodeError>;
}

macro_rules! channels {
    ($number:literal, $pixel:ident) => {
        impl Channels for [f32; $number] {
            fn resample(
                planes: &[f32],
                from: (usize, usize),
                to: (usize, usize),
                filter: FilterType,
                resized: &mut Vec<f32>,
            ) -> Result<(), NodeError> {
                let area = from.0 * from.1;
                let pixels: Vec<f32> = (0..area)
                    .flat_map(|pixel| {
                        (0..$number).map(move |channel| planes[channel * area + pixel])
                    })
                    .collect();
                let (width, height) = (side(from.0)?, side(from.1)?);
                let buffer = ImageBuffer::<$pixel<f32>, _>::from_raw(width, height, pixels)
                    .ok_or_else(|| {
                        NodeError::failed(format!(
                            "a picture of {width}x{height} pixels cannot be resampled"
                        ))
                    })?;
                let pixels = imageops::resize(&buffer, side(to.0)?, side(to.1)?, filter).into_raw();
                for channel in 0..$number {
                    // Lanczos overshoots at edges; the crate clamps, and this says so.
                    let plane = pixels.iter().skip(channel).step_by($number);
                    resized.extend(plane.map(|value| value.clamp(0.0, 1.0)));
                }
                Ok(())
            }
        }
    };
}

channels!(1, Luma);
channels!(3, Rgb);

fn side(pixels: usize) -> Result<u32, NodeError> {
    u32::try_from(pixels)
        .map_err(|_| NodeError::failed(format!("a picture cannot have a side of {pixels} pixels")))
}
