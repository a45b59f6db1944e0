//! Where a query of self-attention looks: its row of `softmax(q k^T scale)` over the keys that it met, made when it is
//! asked for from queries and keys that were kept, in the host's memory.

use candle_core::{DType, Device, Tensor};

use crate::sampling::masks::Plane;
use crate::{Error, Result};

/// How a site's features are split, and what scores are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Heads that the features are split into.
    pub count: usize,
    /// What the scores are multiplied with: 1 / sqrt(head size).
    pub scale: f64,
}

/// Whose keys a query met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Whose {
    /// Those of the picture itself.
    Own,
    /// Those of the context.
    Context,
    /// Those of a reference, by its number.
    Reference(usize),
}

/// Whose the queries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueriesOf {
    /// The picture's own.
    Own,
    /// The context's: before `structure_until`, or where the context's attention is locked in.
    Context,
}

/// Keys under one softmax.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// For each image, or one for all: M x C numbers.
    keys: Vec<Vec<f32>>,
    /// Whose they are, on which grid, one after another.
    parts: Vec<(Whose, (usize, usize))>,
    /// For each image of the keys: which of them count; all when `None`.
    inside: Option<Vec<Vec<u32>>>,
}

impl Seen {
    /// Keys `[B or 1, M, C]`.
    pub(crate) fn of(
        k: &Tensor,
        parts: &[(Whose, (usize, usize))],
        inside: Option<&[Vec<u32>]>,
    ) -> Result<Self> {
        Ok(Self {
            keys: numbers(k)?,
            parts: parts.to_vec(),
            inside: inside.map(<[_]>::to_vec),
        })
    }
}

/// Values of references that are read through the context's keys.
#[derive(Clone, Debug)]
pub(crate) struct Warped {
    /// Whose keys the matches are among, on which grid, one after another.
    pub(crate) parts: Vec<(Whose, (usize, usize))>,
    /// For each image, or one for all, and each key of the context the place that it matches.
    pub(crate) matches: Vec<Vec<Option<u32>>>,
}

/// What the queries of one site meet at one step, the prompt's half: enough to find any query's row.
#[derive(Clone, Debug)]
pub struct AttentionRow {
    /// (rows, columns) of the queries.
    pub grid: (usize, usize),
    /// Whose the queries are.
    pub queries_of: QueriesOf,
    /// Heads.
    pub heads: Heads,
    /// For each image N x C numbers.
    queries: Vec<Vec<f32>>,
    seen: Vec<Seen>,
    /// M_k on the site's grid: of each image, or one for all; none where nothing is blended.
    blend: Vec<Plane>,
    /// Where values are matched: then `seen` is the context alone.
    warped: Option<Warped>,
}

/// Where one query looks.
#[derive(Clone, Debug, PartialEq)]
pub struct GazeRow {
    /// The share of the output that is taken from the references' side: M_k at the query, where values are matched what the look at
    /// places with a match adds up to; `None` where only one side is looked at.
    pub share: Option<f32>,
    /// Whose keys, and how much of the look goes to each. The references' planes sum to 1 together, the context's does
    /// alone: each is a softmax of its own, or where values are matched a share of the context's; of zeros where nothing of it goes there.
    pub planes: Vec<(Whose, Plane)>,
}

fn numbers(t: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(t.to_dtype(DType::F32)?
        .to_device(&Device::Cpu)?
        .flatten_from(1)?
        .to_vec2()?)
}

impl AttentionRow {
    /// Queries `[B, N, C]` of a site's grid.
    pub(crate) fn of(
        queries: &Tensor,
        heads: Heads,
        grid: (usize, usize),
        queries_of: QueriesOf,
        seen: Vec<Seen>,
        blend: &[Plane],
    ) -> Result<Self> {
        let (_, pixels, _) = queries.dims3()?;
        if pixels != grid.0 * grid.1 {
            return Err(Error::request(format!(
                "{pixels} queries for a grid of {}x{}",
                grid.0, grid.1
            )));
        }
        Ok(Self {
            grid,
            queries_of,
            heads,
            queries: numbers(queries)?,
            seen,
            blend: blend.to_vec(),
            warped: None,
        })
    }

    /// The same where values of references are read through the context's keys.
    pub(crate) fn with_warped(self, warped: Warped) -> Self {
        Self {
            warped: Some(warped),
            ..self
        }
    }

    /// Images of the batch.
    #[must_use]
    pub fn images(&self) -> usize {
        self.queries.len()
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let keys = self.seen.iter().flat_map(|seen| &seen.keys);
        let numbers: usize = self.queries.iter().chain(keys).map(Vec::len).sum();
        let planes: usize = self.blend.iter().map(|plane| plane.data.len()).sum();
        let matches = self.warped.iter().flat_map(|warped| &warped.matches);
        let matches: usize = matches.map(Vec::len).sum();
        (numbers + planes) * size_of::<f32>() + matches * size_of::<Option<u32>>()
    }

    /// Where the query at (row, column) of an image looks: `head` alone, or the mean over heads.
    ///
    /// # Errors
    /// When there is no such image, query or head.
    pub fn row(&self, image: usize, at: (usize, usize), head: Option<usize>) -> Result<GazeRow> {
        let (h, w) = self.grid;
        let queries = self.queries.get(image);
        let queries = queries.filter(|_| at.0 < h && at.1 < w);
        let Some(queries) = queries.filter(|_| head.is_none_or(|head| head < self.heads.count))
        else {
            return Err(Error::request(format!(
                "no query at row {}, column {} of image {image}, head {head:?}: {} images of {h}x{w} and {} heads",
                at.0,
                at.1,
                self.images(),
                self.heads.count
            )));
        };
        let pixel = at.0 * w + at.1;
        let width = queries.len() / (h * w).max(1);
        let query = &queries[pixel * width..][..width];
        let size = width / self.heads.count.max(1);
        let heads = match head {
            Some(head) => head..head + 1,
            None => 0..self.heads.count,
        };
        let mut planes = Vec::new();
        for seen in &self.seen {
            let source = if seen.keys.len() == 1 { 0 } else { image };
            let Some(keys) = seen.keys.get(source) else {
                return Err(Error::request(format!("no keys for image {image}")));
            };
            let inside = seen.inside.as_ref().and_then(|inside| inside.get(source));
            let all = keys.len() / width.max(1);
            let counts: Vec<usize> = match inside {
                Some(inside) => inside.iter().map(|&key| key as usize).collect(),
                None => (0..all).collect(),
            };
            let mut row = vec![0f64; all];
            for head in heads.clone() {
                let part = head * size..(head + 1) * size;
                let own = &query[part.clone()];
                let scores: Vec<f64> = counts
                    .iter()
                    .map(|&key| {
                        let key = &keys[key * width..][part.clone()];
                        let products = own
                            .iter()
                            .zip(key)
                            .map(|(q, k)| f64::from(*q) * f64::from(*k));
                        products.sum::<f64>() * self.heads.scale
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (&key, weight) in counts.iter().zip(weights) {
                    row[key] += weight / sum / heads.len() as f64;
                }
            }
            let mut first = 0;
            for &(whose, (height, width)) in &seen.parts {
                let data = row.iter().skip(first).take(height * width);
                let data: Vec<f32> = data.map(|&weight| weight as f32).collect();
                first += height * width;
                planes.push((
                    whose,
                    Plane {
                        height,
                        width,
                        data,
                    },
                ));
            }
        }
        let blend = match self.blend.len() {
            1 => self.blend.first(),
            _ => self.blend.get(image),
        };
        if let (Some(warped), [(Whose::Context, look)], Some(mask)) =
            (&self.warped, planes.as_slice(), blend)
        {
            return Ok(warped.row(image, look, mask));
        }
        Ok(GazeRow {
            share: blend.and_then(|plane| plane.data.get(pixel).copied()),
            planes,
        })
    }
}

impl Warped {
    /// Where a look at the context's keys finds its values, given M_k.
    fn row(&self, image: usize, look: &Plane, mask: &Plane) -> GazeRow {
        let none = Vec::new();
        let matches = match self.matches.as_slice() {
            [one] => one,
            all => all.get(image).unwrap_or(&none),
        };
        let places = self.parts.iter().map(|(_, grid)| grid.0 * grid.1).sum();
        let (mut theirs, mut own) = (vec![0f32; places], look.data.clone());
        let mut share = 0.0;
        for (((found, own), mask), look) in
            (matches.iter().zip(&mut own).zip(&mask.data)).zip(&look.data)
        {
            let Some(to) = found.and_then(|found| theirs.get_mut(found as usize)) else {
                continue;
            };
            *to += look * mask;
            *own = look * (1.0 - mask);
            share += look * mask;
        }
        // Each side is looked at by itself.
        let whole = |numbers: &mut Vec<f32>| {
            let sum: f32 = numbers.iter().sum();
            if sum > 0.0 {
                numbers.iter_mut().for_each(|number| *number /= sum);
            }
        };
        whole(&mut theirs);
        whole(&mut own);
        let mut planes = Vec::new();
        let mut rest = theirs.as_slice();
        for &(whose, (height, width)) in &self.parts {
            let (data, behind) = rest.split_at((height * width).min(rest.len()));
            rest = behind;
            let data = data.to_vec();
            planes.push((
                whose,
                Plane {
                    height,
                    width,
                    data,
                },
            ));
        }
        let context = Plane { data: own, ..*look };
        planes.push((Whose::Context, context));
        GazeRow {
            share: Some(share),
            planes,
        }
    }
}

/// The edges of where a plane is at least 0.5, as lines `[x0, y0, x1, y1]` between its cells, in cells from the upper left
/// corner: closed around every patch, the plane's own border included, and as long as they go straight.
#[must_use]
pub fn outlines(plane: &Plane) -> Vec<[f32; 4]> {
    let (h, w) = plane.grid();
    let inside = |y: usize, x: usize| {
        // One more on each side, which is outside.
        y > 0 && x > 0 && y <= h && x <= w && plane.data[(y - 1) * w + x - 1] >= 0.5
    };
    let mut lines = Vec::new();
    let mut along =
        |count: usize, length: usize, edge: &dyn Fn(usize, usize) -> bool, upright: bool| {
            for at in 0..count {
                let mut from = None;
                for place in 0..=length {
                    let is_edge = place < length && edge(at, place);
                    match (from, is_edge) {
                        (None, true) => from = Some(place),
                        (Some(start), false) => {
                            let [at, start, end] = [at, start, place].map(|n| n as f32);
                            lines.push(match upright {
                                true => [at, start, at, end],
                                false => [start, at, end, at],
                            });
                            from = None;
                        }
                        _ => {}
                    }
                }
            }
        };
    along(
        h + 1,
        w,
        &|y, x| inside(y, x + 1) != inside(y + 1, x + 1),
        false,
    );
    along(
        w + 1,
        h,
        &|x, y| inside(y + 1, x) != inside(y + 1, x + 1),
        true,
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: (usize, usize, usize)) -> Tensor {
        Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_row_is_the_softmax_over_the_keys_that_count_and_each_side_sums_to_one() {
        // Two queries of two heads of size 1; three keys of reference 0 and 1, one of which is outside.
        let queries = tensor(&[1.0, 2.0, 0.5, -1.0], (1, 2, 2));
        let keys = tensor(&[1.0, 0.0, 0.0, 1.0, 3.0, 3.0], (1, 3, 2));
        let parts = [(Whose::Reference(0), (1, 2)), (Whose::Reference(1), (1, 1))];
        let inside = Seen::of(&keys, &parts, Some(&[vec![0, 1]])).unwrap();
        let outside = Seen::of(&keys, &[(Whose::Context, (3, 1))], None).unwrap();
        let heads = Heads {
            count: 2,
            scale: 0.5,
        };
        let blend = Plane {
            height: 1,
            width: 2,
            data: vec![0.0, 0.75],
        };
        let gaze = AttentionRow::of(
            &queries,
            heads,
            (1, 2),
            QueriesOf::Own,
            vec![inside, outside],
            &[blend],
        )
        .unwrap();
        let row = gaze.row(0, (0, 1), Some(1)).unwrap();
        assert_eq!(row.share, Some(0.75));
        // Head 1 of query 1: scores 0 and -0.5 of the keys inside.
        let (a, b) = (1.0, (-0.5f32).exp());
        let expected = [a / (a + b), b / (a + b)];
        for (found, expected) in row.planes[0].1.data.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{row:?}");
        }
        assert_eq!(row.planes[1].0, Whose::Reference(1));
        assert_eq!(row.planes[1].1.data, [0.0]);
        let mean = gaze.row(0, (0, 0), None).unwrap();
        let sums: Vec<f32> = mean
            .planes
            .iter()
            .map(|(_, p)| p.data.iter().sum())
            .collect();
        assert!((sums[0] + sums[1] - 1.0).abs() < 1e-6 && (sums[2] - 1.0).abs() < 1e-6);
        assert!(gaze.row(1, (0, 0), None).is_err());
        assert!(gaze.row(0, (1, 0), None).is_err());
        assert!(gaze.row(0, (0, 0), Some(2)).is_err());
    }

    #[test]
    fn a_look_through_matches_goes_to_the_places_of_the_references_and_what_is_left_to_the_context()
    {
        // One query of one head, four keys of the context that it looks at in shares of 0.1 to 0.4.
        let queries = tensor(&[1.0, 0.0, 0.0, 0.0], (1, 4, 1));
        let shares = [0.1f32, 0.2, 0.3, 0.4];
        let keys = tensor(&shares.map(f32::ln), (1, 4, 1));
        let seen = Seen::of(&keys, &[(Whose::Context, (2, 2))], None).unwrap();
        let heads = Heads {
            count: 1,
            scale: 1.0,
        };
        let blend = Plane {
            height: 2,
            width: 2,
            data: vec![1.0, 0.5, 1.0, 0.0],
        };
        let row = AttentionRow::of(
            &queries,
            heads,
            (2, 2),
            QueriesOf::Own,
            vec![seen],
            &[blend],
        )
        .unwrap();
        let row = row.with_warped(Warped {
            parts: vec![(Whose::Reference(0), (1, 2)), (Whose::Reference(1), (1, 1))],
            matches: vec![vec![Some(2), Some(1), None, Some(0)]],
        });
        let found = row.row(0, (0, 0), None).unwrap();
        let near = |found: &[f32], due: &[f32]| {
            assert_eq!(found.len(), due.len());
            assert!(
                found.iter().zip(due).all(|(a, b)| (a - b).abs() < 1e-6),
                "{found:?} for {due:?}"
            );
        };
        // Key 0 is all of reference 1's place, half of key 1 of reference 0's second; key 3 is masked, key 2 has no match.
        near(&[found.share.unwrap()], &[0.2]);
        assert_eq!(
            found
                .planes
                .iter()
                .map(|(whose, _)| *whose)
                .collect::<Vec<_>>(),
            [Whose::Reference(0), Whose::Reference(1), Whose::Context]
        );
        near(&found.planes[0].1.data, &[0.0, 0.5]);
        near(&found.planes[1].1.data, &[0.5]);
        near(&found.planes[2].1.data, &[0.0, 0.125, 0.375, 0.5]);
    }

    #[test]
    fn outlines_close_around_each_patch_and_run_as_far_as_they_are_straight() {
        let plane = Plane {
            height: 2,
            width: 3,
            data: vec![0.0, 1.0, 1.0, 0.0, 0.5, 0.4],
        };
        let mut lines = outlines(&plane);
        lines.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(
            lines,
            [
                [1.0, 0.0, 1.0, 2.0],
                [1.0, 0.0, 3.0, 0.0],
                [1.0, 2.0, 2.0, 2.0],
                [2.0, 1.0, 2.0, 2.0],
                [2.0, 1.0, 3.0, 1.0],
                [3.0, 0.0, 3.0, 1.0],
            ]
        );
        assert!(outlines(&Plane::filled((4, 4), 0.0)).is_empty());
        assert_eq!(outlines(&Plane::filled((4, 4), 1.0)).len(), 4);
    }
}
