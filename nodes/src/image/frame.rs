//! Which part of a photo is trained on, and at which size.

use retouch_graph::NodeError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::resample::{self, CropBox, Filter, crop_box};
use crate::payload::image::tensor_failed;
use crate::payload::mask::Mask;

/// What of a photo is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Crop {
    /// The largest square around the centre.
    #[default]
    Centre,
    /// A square around the subject's mask.
    Subject,
    /// As much as possible: every photo gets the size of about the same area that is nearest to its own aspect (aspect
    /// ratio buckets), and only what that leaves over is cut off around the centre.
    None,
}

/// A mask covers a pixel from this value on.
const COVERED: f32 = 0.5;

/// How a photo is framed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Framing {
    pub(crate) size: usize,
    pub(crate) crop: Crop,
    pub(crate) multiple: usize,
    pub(crate) margin: f64,
}

impl Framing {
    /// The size that a photo of `original` pixels gets, and what of it is kept where no mask says more: of `crop: subject`
    /// the size alone is right.
    pub(crate) fn without_mask(&self, original: (usize, usize)) -> ((usize, usize), CropBox) {
        let size = match self.crop {
            Crop::Centre | Crop::Subject => (self.size, self.size),
            Crop::None => bucket(original, self.size, self.multiple),
        };
        let whole = CropBox {
            x: 0,
            y: 0,
            width: original.0,
            height: original.1,
        };
        (size, crop_box(original, size).unwrap_or(whole))
    }

    /// The square around what a mask covers, with the margin, moved into the photo; `None` where it covers nothing.
    pub(crate) fn around(&self, mask: &[f32], (width, height): (usize, usize)) -> Option<CropBox> {
        let (mut left, mut right, mut top, mut bottom) = (width, 0, height, 0);
        for (index, value) in mask.iter().enumerate() {
            if *value >= COVERED {
                let (x, y) = (index % width, index / width);
                (left, right) = (left.min(x), right.max(x + 1));
                (top, bottom) = (top.min(y), bottom.max(y + 1));
            }
        }
        let (across, down) = (right.checked_sub(left)?, bottom.checked_sub(top)?);
        let side = across.max(down) as f64 * (1.0 + 2.0 * self.margin);
        let side = (side.round() as usize).clamp(1, width.min(height));
        let begin = |low: usize, high: usize, of: usize| {
            ((low + high).saturating_sub(side) / 2).min(of - side)
        };
        Some(CropBox {
            x: begin(left, right, width),
            y: begin(top, bottom, height),
            width: side,
            height: side,
        })
    }
}

/// The size of multiples of `multiple` and at most `side` x `side` pixels whose aspect is nearest to the picture's; of two
/// as near the one with more pixels. Sides are from half of `side` to twice of it.
fn bucket((width, height): (usize, usize), side: usize, multiple: usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    let distance = |(w, h): (usize, usize)| libm::fabs(libm::log(w as f64 / h as f64 / aspect));
    let (least, most) = (side.div_ceil(2 * multiple).max(1), 2 * side / multiple);
    let sizes = (least..=most).filter_map(|across| {
        let across = across * multiple;
        let down = (side * side / across).min(2 * side) / multiple * multiple;
        (down >= least * multiple).then_some((across, down))
    });
    // The larger first, so that of equals it stays.
    let mut sizes: Vec<_> = sizes.collect();
    sizes.sort_by_key(|(w, h)| std::cmp::Reverse(w * h));
    let nearest = (sizes.into_iter()).min_by(|a, b| distance(*a).total_cmp(&distance(*b)));
    nearest.unwrap_or((side, side))
}

/// A mask at another size: bilinear, clamped to 0..=1.
pub(crate) fn resize_mask(mask: &Mask, size: (usize, usize)) -> Result<Mask, NodeError> {
    if mask.size() == size {
        return Ok(mask.clone());
    }
    let (width, height) = mask.size();
    let values = mask.values()?;
    let mut resized = Vec::with_capacity(mask.batch() * size.0 * size.1);
    for plane in values.chunks_exact(width * height) {
        resample::resize_plane(plane, (width, height), size, Filter::Bilinear, &mut resized)?;
    }
    Mask::from_values(mask.batch(), size.0, size.1, resized)
}

/// A part of a mask at a size.
pub(crate) fn cut_mask(
    mask: &Mask,
    crop: CropBox,
    size: (usize, usize),
) -> Result<Mask, NodeError> {
    let plane = (mask.plane)
        .narrow(1, crop.y, crop.height)
        .and_then(|plane| plane.narrow(2, crop.x, crop.width))
        .map_err(tensor_failed)?;
    resize_mask(&Mask::new(plane)?, size)
}
