//! Large pictures through the VAE piece by piece: overlapping tiles whose results are blended linearly where they meet, as
//! diffusers' `AutoencoderKL` does with `enable_tiling`.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Whether a VAE works on a picture as a whole or on tiles of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Tiled {
    /// On tiles where the latent has more than 96x96 pixels (768x768 of Stable Diffusion's), as a whole up to there.
    #[default]
    Auto,
    /// On tiles where the latent is higher or wider than one, 64x64.
    Always,
    /// As a whole: nothing is blended, and memory grows with the picture.
    Never,
}

/// The most pixels of a latent that [`Tiled::Auto`] takes as a whole.
const WHOLE: usize = 96 * 96;

impl Tiled {
    /// Whether it is [`Self::Auto`], which is left out of keys.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }

    /// How a latent of that size is cut; `None` when it is taken as a whole.
    #[must_use]
    pub fn tiling(self, height: usize, width: usize) -> Option<Tiling> {
        let tiling = Tiling::STANDARD;
        let cut = match self {
            Self::Auto => height * width > WHOLE,
            Self::Always => height.max(width) > tiling.tile,
            Self::Never => false,
        };
        cut.then_some(tiling)
    }
}

/// How a picture is cut into square tiles, in pixels of its latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    tile: usize,
    overlap: usize,
}

/// A tile, in pixels of the latent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

impl Tiling {
    /// Stable Diffusion's in diffusers: `sample_size` 512 is 64 latent pixels, a quarter of them
    /// (`tile_overlap_factor`) shared with the tile before.
    pub const STANDARD: Self = Self {
        tile: 64,
        overlap: 16,
    };

    /// Tiles whose sides have `tile` latent pixels, of which `overlap` are shared with the tile before.
    ///
    /// # Errors
    /// When the overlap leaves nothing of a tile.
    pub fn new(tile: usize, overlap: usize) -> Result<Self> {
        if overlap >= tile {
            return Err(Error::request(format!(
                "tiles of {tile} pixels cannot share {overlap} with the one before"
            )));
        }
        Ok(Self { tile, overlap })
    }

    /// The tiles along a side of `length` latent pixels. All but the last are whole, and the last has more than the
    /// overlap: diffusers also makes one of what the tile before shows already, which costs a tile and blends in what
    /// a few pixels alone decode to.
    fn along(self, length: usize) -> Vec<Range<usize>> {
        (0..length.saturating_sub(self.overlap).max(1))
            .step_by(self.tile - self.overlap)
            .map(|start| start..length.min(start + self.tile))
            .collect()
    }

    /// Makes `channels` planes, one after another, whose tiles `make` makes: `scale` times as high and wide as a latent
    /// of `size` (height, width). Tiles are made row by row, one at a time, and only what the next ones are blended
    /// with is kept of them.
    pub(crate) fn planes(
        self,
        size: (usize, usize),
        channels: usize,
        scale: usize,
        mut make: impl FnMut(&Tile) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let (height, width) = (size.0 * scale, size.1 * scale);
        let (kept, shared) = ((self.tile - self.overlap) * scale, self.overlap * scale);
        let mut planes = vec![0.0; channels * height * width];
        let columns = self.along(size.1);
        // The last rows of the tiles above, each as it was blended itself.
        let mut above: Vec<Vec<f32>> = vec![Vec::new(); columns.len()];
        for rows in self.along(size.0) {
            // The last columns of the tile to the left.
            let mut left = Vec::new();
            for (columns, above) in columns.iter().zip(&mut above) {
                let tile = Tile {
                    rows: rows.clone(),
                    columns: columns.clone(),
                };
                let (h, w) = (rows.len() * scale, columns.len() * scale);
                let mut made = Block {
                    numbers: make(&tile)?,
                    height: h,
                    width: w,
                };
                if made.numbers.len() != channels * h * w {
                    return Err(Error::request(format!(
                        "a tile has {} numbers; expected {channels} x {h} x {w}",
                        made.numbers.len()
                    )));
                }
                if rows.start > 0 {
                    made.blend(above, 0..shared, 0..w, |y, _| y);
                }
                if columns.start > 0 {
                    made.blend(&left, 0..h, 0..shared, |_, x| x);
                }
                // What comes after it shows the rest of it.
                let (y, x) = (rows.start * scale, columns.start * scale);
                let own = |range: &Range<usize>, whole: usize, end: usize| {
                    if range.end == end { whole } else { kept }
                };
                let (own_h, own_w) = (own(&rows, h, size.0), own(columns, w, size.1));
                for c in 0..channels {
                    for row in 0..own_h {
                        let from = (c * h + row) * w;
                        let to = (c * height + y + row) * width + x;
                        planes[to..to + own_w].copy_from_slice(&made.numbers[from..from + own_w]);
                    }
                }
                *above = made.part(h.saturating_sub(shared)..h, 0..w);
                left = made.part(0..h, w.saturating_sub(shared)..w);
            }
        }
        Ok(planes)
    }
}

/// Planes of one size, one after another.
struct Block {
    numbers: Vec<f32>,
    height: usize,
    width: usize,
}

impl Block {
    /// The indices of the first number of each row of a part, and how many numbers it has.
    fn rows(&self, rows: Range<usize>, columns: &Range<usize>) -> impl Iterator<Item = usize> {
        let (height, width, first) = (self.height, self.width, columns.start);
        let planes = self.numbers.len() / (height * width).max(1);
        (0..planes).flat_map(move |c| rows.clone().map(move |y| (c * height + y) * width + first))
    }

    /// A part of every plane.
    fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
        self.rows(rows, &columns)
            .flat_map(|at| &self.numbers[at..at + columns.len()])
            .copied()
            .collect()
    }

    /// Blends a part of every plane, which is `before` at its first pixel and comes to be the planes' own, linearly along
    /// the way that `along` gives for (row, column) of the part.
    fn blend(
        &mut self,
        before: &[f32],
        rows: Range<usize>,
        columns: Range<usize>,
        along: impl Fn(usize, usize) -> usize,
    ) {
        let extent = along(rows.len(), columns.len()) as f64;
        let height = rows.len();
        let starts: Vec<usize> = self.rows(rows, &columns).collect();
        let lines = before.chunks_exact(columns.len().max(1));
        for (line, (at, before)) in starts.into_iter().zip(lines).enumerate() {
            let own = &mut self.numbers[at..at + columns.len()];
            for (x, (own, before)) in own.iter_mut().zip(before).enumerate() {
                let share = along(line % height, x) as f64 / extent;
                *own = before * (1.0 - share) as f32 + *own * share as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(tiling: Tiling, length: usize) -> Vec<usize> {
        tiling.along(length).iter().map(|tile| tile.start).collect()
    }

    #[test]
    fn tiles_cover_a_side_and_each_shows_something_that_the_one_before_does_not() {
        let tiling = Tiling::STANDARD;
        assert_eq!(starts(tiling, 1), [0]);
        assert_eq!(starts(tiling, 64), [0]);
        assert_eq!(starts(tiling, 65), [0, 48]);
        assert_eq!(starts(tiling, 112), [0, 48]);
        assert_eq!(starts(tiling, 128), [0, 48, 96]);
        for (tile, overlap) in [(64, 16), (8, 2), (5, 4), (3, 0), (1, 0)] {
            let tiling = Tiling::new(tile, overlap).unwrap();
            for length in 1..200 {
                let tiles = tiling.along(length);
                assert_eq!((tiles[0].start, tiles[tiles.len() - 1].end), (0, length));
                for pair in tiles.windows(2) {
                    assert_eq!(pair[0].len(), tile);
                    assert_eq!(pair[0].end, pair[1].start + overlap);
                    assert!(pair[1].end > pair[0].end, "{pair:?} of {length}");
                }
            }
        }
        assert!(Tiling::new(4, 4).is_err());
    }

    #[test]
    fn automatic_tiles_begin_above_96_by_96() {
        let standard = Some(Tiling::STANDARD);
        assert_eq!(Tiled::Auto.tiling(96, 96), None);
        assert_eq!(Tiled::Auto.tiling(72, 128), None);
        assert_eq!(Tiled::Auto.tiling(96, 97), standard);
        assert_eq!(Tiled::Auto.tiling(128, 128), standard);
        assert_eq!(Tiled::Always.tiling(64, 64), None);
        assert_eq!(Tiled::Always.tiling(8, 65), standard);
        assert_eq!(Tiled::Never.tiling(4096, 4096), None);
    }

    #[test]
    fn tiles_that_agree_join_without_a_trace() {
        // Blending equal numbers rounds: 1e-6 of them.
        let picture = |c: usize, y: usize, x: usize| ((c * 31 + y) * 37 + x) as f32;
        for (tile, overlap, scale) in [(8, 2, 3), (5, 4, 1), (4, 0, 2)] {
            let (h, w) = (13, 19);
            let joined = Tiling::new(tile, overlap)
                .unwrap()
                .planes((h, w), 2, scale, |tile| {
                    let mut numbers = Vec::new();
                    for c in 0..2 {
                        for y in tile.rows.start * scale..tile.rows.end * scale {
                            for x in tile.columns.start * scale..tile.columns.end * scale {
                                numbers.push(picture(c, y, x));
                            }
                        }
                    }
                    Ok(numbers)
                })
                .unwrap();
            let mut all = joined.into_iter();
            for c in 0..2 {
                for y in 0..h * scale {
                    for x in 0..w * scale {
                        let (a, b) = (all.next().unwrap(), picture(c, y, x));
                        assert!((a - b).abs() <= 1e-6 * b, "{a} for {b} at {c} {y} {x}");
                    }
                }
            }
            assert_eq!(all.next(), None);
        }
    }

    #[test]
    fn the_overlap_goes_linearly_from_one_tile_to_the_next() {
        // One row of two tiles, 0 and 1: 0 up to where the second begins, then 0, 1/4, 2/4, 3/4, then 1.
        let mut number = -1.0;
        let row = Tiling::new(8, 4)
            .unwrap()
            .planes((1, 12), 1, 1, |tile| {
                number += 1.0;
                Ok(vec![number; tile.columns.len()])
            })
            .unwrap();
        let expected = [0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(row, expected);
    }
}
