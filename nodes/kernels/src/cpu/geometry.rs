//! Where the rows of a convolution's products lie in its images.

use super::packing::SQUARE;
use crate::Padding;

/// No row: outside of the image, or not a pixel of the result.
pub(super) const NONE: u32 = u32::MAX;

/// Which rows of the activations a product takes, and where its rows go.
#[derive(Debug)]
pub(super) struct Gather {
    /// The row of the activations in each row of the scratch, or [`NONE`] for zeros.
    pub rows: Vec<u32>,
    /// Where in the scratch the rows of each tap begin.
    pub taps: Vec<usize>,
    /// The row of the result that each position is, or [`NONE`].
    pub out: Vec<u32>,
}

/// A convolution's geometry, for one image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Of the picture that is convolved.
    pub height: usize,
    pub width: usize,
    /// Of what is given: enlarged to the above, nearest, on the way.
    pub source: (usize, usize),
    pub kernel: (usize, usize),
    pub stride: usize,
    pub padding: Padding,
    pub out: (usize, usize),
}

impl Geometry {
    /// Whether every output pixel is made of the pixel at its place.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == (1, 1)
            && self.stride == 1
            && self.padding == Padding::same(0)
            && self.source == (self.height, self.width)
    }

    /// Cells of a row of the padded picture, for each phase of the stride.
    ///
    /// With stride 1 the zeros behind a row are those before the next, unless the result is wider still.
    pub fn pitch(&self) -> usize {
        if self.stride == 1 {
            (self.width + self.padding.left.max(self.padding.right)).max(self.out.1)
        } else {
            (self.width + self.padding.left + self.padding.right).div_ceil(self.stride)
        }
    }

    /// Lines of output from an image to the next when all images are stacked into one.
    ///
    /// With stride 1 the zeros below an image are those above the next, as with the pitch.
    pub fn image_lines(&self) -> usize {
        let Padding { top, bottom, .. } = self.padding;
        if self.stride == 1 {
            (self.height + top.max(bottom)).max(self.out.0)
        } else {
            (self.height + top + bottom).div_ceil(self.stride)
        }
    }

    /// Lines of output of all images, stacked.
    pub fn lines(&self, images: usize) -> usize {
        images.saturating_sub(1) * self.image_lines() + self.out.0
    }

    /// The lines `lines` of the output of all images, stacked.
    pub fn gather(&self, images: usize, lines: std::ops::Range<usize>) -> Gather {
        let (s, pitch, image_lines) = (self.stride, self.pitch(), self.image_lines());
        // The padded picture is cut into s x s pictures, of every s-th row and column: in each, the pixels under a tap
        // of neighbouring outputs are neighbours.
        let height = lines.len() + (self.kernel.0 - 1) / s;
        let phase = height * pitch;
        let taps: Vec<usize> = (0..self.kernel.0)
            .flat_map(|i| (0..self.kernel.1).map(move |j| (i, j)))
            .map(|(i, j)| (i % s * s + j % s) * phase + i / s * pitch + j / s)
            .collect();
        let positions = lines.len() * pitch;
        let last = taps.iter().max().copied().unwrap_or(0);
        let size = (last + positions.next_multiple_of(SQUARE)).max(s * s * phase);
        let mut rows = vec![NONE; size];
        for y in 0..height * s {
            // Line y of the padded pictures below the first that is needed.
            let line = y + lines.start * s;
            let (image, line) = (line / (image_lines * s), line % (image_lines * s));
            let line = line.wrapping_sub(self.padding.top);
            if image >= images || line >= self.height {
                continue;
            }
            let line = image * self.source.0 + line * self.source.0 / self.height;
            for x in 0..self.width {
                let padded = x + self.padding.left;
                let at = (y % s * s + padded % s) * phase + y / s * pitch + padded / s;
                if let Some(row) = rows.get_mut(at) {
                    *row = (line * self.source.1 + x * self.source.1 / self.width) as u32;
                }
            }
        }
        let out = lines
            .flat_map(|y| {
                let (image, y) = (y / image_lines, y % image_lines);
                (0..pitch).map(move |x| {
                    if x < self.out.1 && y < self.out.0 {
                        ((image * self.out.0 + y) * self.out.1 + x) as u32
                    } else {
                        NONE
                    }
                })
            })
            .collect();
        Gather { rows, taps, out }
    }
}
