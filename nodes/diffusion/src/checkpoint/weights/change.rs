//! What adapters do to a tensor of a network: differences in the forms that adapters store them in, and magnitudes that
//! are learned apart from directions.

use candle_core::{DType, Device, Tensor};

use super::data::Maps;
use super::table::Stored;
use crate::{Error, Result};

/// Keeps a norm of zero from being divided by: float32's distance of 1 to the next number, as LyCORIS has it.
const EPSILON: f64 = f32::EPSILON as f64;

/// A matrix, or two whose product it is.
#[derive(Clone, Debug)]
pub enum Factor {
    /// The matrix itself, of a convolution with its window: `[m, n, ..]`.
    Whole(Stored),
    /// `[m, R]` and `[R, n]`.
    Product(Stored, Stored),
}

/// A difference of a tensor `[out, in, ..]` (the dots are the window k x k of a convolution), as it is stored.
#[derive(Clone, Debug)]
pub enum Delta {
    /// `up down` (Hu et al. 2021, LoRA; with `mid` the Tucker decomposition of LyCORIS).
    LowRank {
        /// `[R, in, ..]`; with `mid` `[R, in, 1, 1]`.
        down: Stored,
        /// `[out, R]`, or `[out, R, 1, 1]`.
        up: Stored,
        /// `[R, R, k, k]`: between the two, with the window.
        mid: Option<Stored>,
    },
    /// The product of two low-rank matrices, element by element (Hyeon-Woo et al. 2022, LoHa).
    Hadamard {
        /// `[out, R]` and `[R, in ..]`; with cores `[R, out]` and `[R, in]`.
        first: (Stored, Stored),
        /// The same of the second matrix.
        second: (Stored, Stored),
        /// `[R, R, k, k]` of each of the two.
        cores: Option<(Stored, Stored)>,
    },
    /// The Kronecker product of two matrices (Edalati et al. 2022; LoKr).
    Kronecker {
        /// `[a, c]`.
        first: Factor,
        /// `[b, d, ..]` with `out = a b` and `in = c d`; with a core `[R, b]` and `[R, d]`.
        second: Factor,
        /// `[R, R, k, k]` of the second.
        core: Option<Stored>,
    },
    /// The difference itself.
    Full(Stored),
}

/// The learned norms of a weight's rows or columns (Liu et al. 2024, DoRA).
#[derive(Clone, Debug)]
pub enum Magnitude {
    /// `out` numbers: each the norm of what one output takes from all inputs.
    Rows(Stored),
    /// `in` numbers: each the norm of what all outputs take from one input (LyCORIS before 3, `wd_on_out = False`).
    Columns(Stored),
}

impl Magnitude {
    /// The tensor that it is stored in.
    #[must_use]
    pub fn tensor(&self) -> &Stored {
        match self {
            Self::Rows(stored) | Self::Columns(stored) => stored,
        }
    }

    /// The dimension of a weight that it goes along.
    fn axis(&self) -> usize {
        match self {
            Self::Rows(_) => 0,
            Self::Columns(_) => 1,
        }
    }

    /// Whether it is one of a weight of this shape.
    #[must_use]
    pub fn fits(&self, shape: &[usize]) -> bool {
        shape.len() >= 2 && self.tensor().elements() == shape[self.axis()]
    }
}

/// A tensor's change: it counts as `W + strength (W' - W)`, where `W'` is `V = W + scale delta`, or with a magnitude m
/// `m V / |V|`.
#[derive(Clone, Debug)]
pub struct Edit {
    /// The difference.
    pub delta: Delta,
    /// alpha / R, or 1.
    pub scale: f64,
    /// m, of weight-decomposed adaptation.
    pub magnitude: Option<Magnitude>,
    /// The weight that the adapter was applied with: 1 as it was trained, 0 not at all.
    pub strength: f64,
}

fn rest(stored: &Stored) -> usize {
    let sides = stored.shape.iter().skip(1);
    sides.fold(1, |n: usize, &side| n.saturating_mul(side))
}

fn first(stored: &Stored) -> usize {
    stored.shape.first().copied().unwrap_or(0)
}

fn second(stored: &Stored) -> usize {
    stored.shape.get(1).copied().unwrap_or(1)
}

impl Factor {
    /// Rows and columns; of a product with a core, that of its transposed first matrix.
    fn sides(&self, core: bool) -> (usize, usize) {
        match self {
            Self::Whole(whole) => (first(whole), rest(whole)),
            Self::Product(a, b) if core => (second(a), rest(b)),
            Self::Product(a, b) => (first(a), rest(b)),
        }
    }

    fn fits(&self, core: bool) -> bool {
        match self {
            Self::Whole(whole) => whole.shape.len() >= 2,
            Self::Product(a, b) => {
                let inner = if core { first(a) } else { rest(a) };
                a.shape.len() >= 2 && b.shape.len() >= 2 && inner == first(b)
            }
        }
    }

    fn tensors(&self) -> Vec<&Stored> {
        match self {
            Self::Whole(whole) => vec![whole],
            Self::Product(a, b) => vec![a, b],
        }
    }

    fn rank(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => None,
            Self::Product(_, b) => Some(first(b)),
        }
    }
}

impl Delta {
    /// The tensors that it is stored in.
    #[must_use]
    pub fn tensors(&self) -> Vec<&Stored> {
        match self {
            Self::LowRank { down, up, mid } => [down, up].into_iter().chain(mid).collect(),
            Self::Hadamard {
                first,
                second,
                cores,
            } => [&first.0, &first.1, &second.0, &second.1]
                .into_iter()
                .chain(cores.iter().flat_map(|(a, b)| [a, b]))
                .collect(),
            Self::Kronecker {
                first,
                second,
                core,
            } => [first.tensors(), second.tensors(), core.iter().collect()].concat(),
            Self::Full(difference) => vec![difference],
        }
    }

    /// R; `None` of what has none.
    #[must_use]
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::LowRank { down, .. } => Some(first(down)),
            Self::Hadamard { first: (_, b), .. } => Some(first(b)),
            Self::Kronecker { first, second, .. } => first.rank().or_else(|| second.rank()),
            Self::Full(_) => None,
        }
    }

    /// `out`, and the number of inputs of one output (`in` times the window), as far as they are known.
    fn sides(&self) -> (usize, usize) {
        match self {
            Self::LowRank { down, up, mid } => {
                let window = mid.as_ref().map_or(1, window);
                (first(up), rest(down).saturating_mul(window))
            }
            Self::Hadamard {
                first: (a, b),
                cores: Some((core, _)),
                ..
            } => (second(a), rest(b).saturating_mul(window(core))),
            Self::Hadamard {
                first: (a, b),
                cores: None,
                ..
            } => (first(a), rest(b)),
            Self::Kronecker {
                first,
                second,
                core,
            } => {
                let ((a, c), (b, d)) = (first.sides(false), second.sides(core.is_some()));
                let window = core.as_ref().map_or(1, window);
                (
                    a.saturating_mul(b),
                    c.saturating_mul(d).saturating_mul(window),
                )
            }
            Self::Full(difference) => (first(difference), rest(difference)),
        }
    }

    /// The number of inputs of one output of a layer without a window.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.sides().1
    }

    /// Whether it is a difference of a tensor of this shape. A matrix may be stored as a convolution of one pixel.
    #[must_use]
    pub fn fits(&self, shape: &[usize]) -> bool {
        let Some((&out, inputs)) = shape.split_first() else {
            return false;
        };
        let inputs: usize = inputs.iter().product();
        let ones = |sides: &[usize]| sides.iter().all(|&side| side == 1);
        // What keeps its window must have the tensor's.
        let windowed = |stored: &Stored| {
            let own = &stored.shape;
            own.len() <= 2
                || own.get(1..) == shape.get(1..)
                || (shape.len() == 2 && own.get(1) == shape.get(1) && ones(&own[2..]))
        };
        let inner = match self {
            Self::LowRank { down, up, mid } => {
                let rank = first(down);
                let plain = mid.is_some() || windowed(down);
                let up_fits = up.shape.len() >= 2 && ones(&up.shape[2..]);
                let (left, right) = match mid {
                    Some(mid) => (first(mid), second(mid)),
                    None => (rank, rank),
                };
                let core = mid.as_ref().is_none_or(|mid| {
                    mid.shape.get(2..) == shape.get(2..)
                        && down.shape.iter().skip(2).all(|&n| n == 1)
                });
                rank > 0 && plain && up_fits && core && right == rank && second(up) == left
            }
            Self::Hadamard {
                first: one,
                second: two,
                cores,
            } => {
                let pair = |(a, b): &(Stored, Stored), core: Option<&Stored>| match core {
                    Some(core) => {
                        first(core) == first(a)
                            && second(core) == first(b)
                            && core.shape.get(2..) == shape.get(2..)
                            && (second(a), rest(b).saturating_mul(window(core))) == (out, inputs)
                    }
                    None => rest(a) == first(b) && (first(a), rest(b)) == (out, inputs),
                };
                pair(one, cores.as_ref().map(|(core, _)| core))
                    && pair(two, cores.as_ref().map(|(_, core)| core))
            }
            Self::Kronecker {
                first: one,
                second: two,
                core,
            } => {
                let core_fits = core.as_ref().is_none_or(|core| {
                    let pair = match two {
                        Factor::Product(a, b) => {
                            first(core) == first(a) && second(core) == first(b)
                        }
                        Factor::Whole(_) => false,
                    };
                    pair && core.shape.get(2..) == shape.get(2..)
                });
                // The second matrix has the window, so its columns are a multiple of it.
                let window: usize = shape.iter().skip(2).product();
                let columns = two.sides(core.is_some()).1;
                one.fits(false)
                    && (core.is_some() || two.fits(false))
                    && core_fits
                    && (core.is_some() || (window > 0 && columns.is_multiple_of(window)))
            }
            Self::Full(difference) => shape.len() == 1 || windowed(difference),
        };
        inner && self.rank() != Some(0) && self.sides() == (out, inputs)
    }

    /// Its numbers, `[out, in, ..]` in float32.
    fn dense(&self, shape: &[usize], maps: &Maps) -> Result<Tensor> {
        let load = |stored: &Stored| matrix(stored, maps);
        let product =
            |(a, b): (&Stored, &Stored)| -> Result<Tensor> { Ok(load(a)?.matmul(&load(b)?)?) };
        let dense = match self {
            Self::LowRank { down, up, mid } => {
                let down = match mid {
                    Some(mid) => folded(mid, down, maps)?,
                    None => load(down)?,
                };
                load(up)?.matmul(&down)?
            }
            Self::Hadamard {
                first,
                second,
                cores,
            } => {
                let (one, two) = match cores {
                    Some((one, two)) => (
                        tucker(one, &first.0, &first.1, maps)?,
                        tucker(two, &second.0, &second.1, maps)?,
                    ),
                    None => (
                        product((&first.0, &first.1))?,
                        product((&second.0, &second.1))?,
                    ),
                };
                (one * two)?
            }
            Self::Kronecker {
                first,
                second,
                core,
            } => {
                let whole = |factor: &Factor| match factor {
                    Factor::Whole(whole) => load(whole),
                    Factor::Product(a, b) => product((a, b)),
                };
                let one = whole(first)?;
                let two = match (core, second) {
                    (Some(core), Factor::Product(a, b)) => tucker(core, a, b, maps)?,
                    _ => whole(second)?,
                };
                let ((a, c), (b, columns)) = (one.dims2()?, two.dims2()?);
                let window: usize = shape.iter().skip(2).product();
                let d = columns / window.max(1);
                let one = one.reshape((a, 1, c, 1, 1))?;
                let two = two.reshape((1, b, 1, d, window))?;
                one.broadcast_mul(&two)?
            }
            Self::Full(difference) => load(difference)?,
        };
        Ok(dense.reshape(shape)?)
    }

    /// The two factors of a low-rank sum, to be applied beside the tensor they are added to: `[R, in, ..]` and
    /// `[out, R, ..]` in float32, for a weight of this shape. `None` of what is not one.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn factors(&self, shape: &[usize], maps: &Maps) -> Result<Option<(Tensor, Tensor)>> {
        let Self::LowRank { down, up, mid } = self else {
            return Ok(None);
        };
        let rows = match mid {
            Some(mid) => folded(mid, down, maps)?,
            None => matrix(down, maps)?,
        };
        let columns = matrix(up, maps)?;
        let rank = rows.dim(0)?;
        let down_shape: Vec<usize> = [&[rank], &shape[1..]].concat();
        let up_shape: Vec<usize> = [&[shape[0], rank][..], &vec![1; shape.len() - 2]].concat();
        Ok(Some((
            rows.reshape(down_shape)?,
            columns.reshape(up_shape)?,
        )))
    }
}

fn window(core: &Stored) -> usize {
    let sides = core.shape.iter().skip(2);
    sides.fold(1, |n: usize, &side| n.saturating_mul(side))
}

/// A tensor as a matrix of its first dimension and all others, in float32.
fn matrix(stored: &Stored, maps: &Maps) -> Result<Tensor> {
    let tensor = maps.load(stored, DType::F32, &Device::Cpu)?;
    Ok(tensor.reshape((first(stored), rest(stored)))?)
}

/// `sum_j mid[i, j, ..] down[j, r]` as `[i, r x window]`.
fn folded(mid: &Stored, down: &Stored, maps: &Maps) -> Result<Tensor> {
    let (left, right, window) = (first(mid), second(mid), window(mid));
    let mid = maps.load(mid, DType::F32, &Device::Cpu)?;
    let down = matrix(down, maps)?;
    let columns = down.dim(1)?;
    let mid = mid
        .reshape((left, right, window))?
        .transpose(1, 2)?
        .contiguous()?;
    let product = mid.reshape((left * window, right))?.matmul(&down)?;
    let product = product.reshape((left, window, columns))?.transpose(1, 2)?;
    Ok(product.contiguous()?.reshape((left, columns * window))?)
}

/// `sum_ij core[i, j, ..] a[i, p] b[j, r]` as `[p, r x window]`.
fn tucker(core: &Stored, a: &Stored, b: &Stored, maps: &Maps) -> Result<Tensor> {
    let a = matrix(a, maps)?.t()?.contiguous()?;
    Ok(a.matmul(&folded(core, b, maps)?)?)
}

impl Edit {
    /// The tensors that it is stored in.
    #[must_use]
    pub fn tensors(&self) -> Vec<&Stored> {
        let mut tensors = self.delta.tensors();
        tensors.extend(self.magnitude.as_ref().map(Magnitude::tensor));
        tensors
    }

    /// Whether it can be applied beside the tensor that it changes.
    #[must_use]
    pub fn is_beside(&self) -> bool {
        self.magnitude.is_none() && matches!(self.delta, Delta::LowRank { .. })
    }

    /// Elements of the tensor that it changes.
    #[must_use]
    pub fn elements(&self) -> usize {
        let (out, inputs) = self.delta.sides();
        out.saturating_mul(inputs)
    }

    fn apply(&self, base: &Tensor, maps: &Maps) -> Result<Tensor> {
        let shape = base.dims();
        let delta = (self.delta.dense(shape, maps)? * self.scale)?;
        let Some(magnitude) = &self.magnitude else {
            return Ok((base + (delta * self.strength)?)?);
        };
        let axis = magnitude.axis();
        let moved = (base + delta)?;
        let others: Vec<usize> = (0..shape.len()).filter(|&other| other != axis).collect();
        let norm = (moved.sqr()?.sum_keepdim(others)?.sqrt()? + EPSILON)?;
        let along: Vec<usize> = shape
            .iter()
            .enumerate()
            .map(|(at, &side)| if at == axis { side } else { 1 })
            .collect();
        let magnitude = maps.load(magnitude.tensor(), DType::F32, &Device::Cpu)?;
        let factor = magnitude.reshape(along)?.div(&norm)?;
        let made = moved.broadcast_mul(&factor)?;
        Ok((base + ((made - base)? * self.strength)?)?)
    }
}

/// Which of the edits of a tensor, in the order in which they were applied, are applied beside it, and which are merged
/// into it. A magnitude is one of all that is before it, so that everything up to the last one is merged.
pub(super) fn split(edits: &[Edit]) -> (Vec<&Edit>, Vec<&Edit>) {
    let last = edits.iter().rposition(|edit| edit.magnitude.is_some());
    let from = last.map_or(0, |last| last + 1);
    edits
        .iter()
        .enumerate()
        .map(|(at, edit)| (at >= from && edit.is_beside(), edit))
        .fold(
            (Vec::new(), Vec::new()),
            |(mut beside, mut merged), (is, edit)| {
                if is { &mut beside } else { &mut merged }.push(edit);
                (beside, merged)
            },
        )
}

/// A tensor in float32 with edits merged into it.
pub(super) fn merged(base: Tensor, edits: &[&Edit], maps: &Maps) -> Result<Tensor> {
    let shape = base.dims().to_vec();
    for edit in edits {
        let magnitude = edit.magnitude.as_ref();
        if !edit.delta.fits(&shape) || magnitude.is_some_and(|m| !m.fits(&shape)) {
            let stored = edit.delta.tensors();
            return Err(Error::Weights {
                file: stored[0].file.to_path_buf(),
                message: format!(
                    "`{}` belongs to a change that does not fit a tensor of {shape:?}",
                    stored[0].name
                ),
            });
        }
    }
    edits
        .iter()
        .try_fold(base, |tensor, edit| edit.apply(&tensor, maps))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::table::dense_strides;
    use super::*;

    fn stored(shape: &[usize]) -> Stored {
        Stored {
            file: Path::new("a.safetensors").into(),
            name: "a".to_owned(),
            dtype: "F32".to_owned(),
            shape: shape.to_vec(),
            strides: dense_strides(shape),
            offset: 0,
            inline: None,
        }
    }

    fn low_rank(down: &[usize], up: &[usize], mid: Option<&[usize]>) -> Delta {
        Delta::LowRank {
            down: stored(down),
            up: stored(up),
            mid: mid.map(stored),
        }
    }

    #[test]
    fn differences_fit_the_tensors_that_they_are_of_and_no_others() {
        const HUGE: usize = usize::MAX;
        let product = |a: &[usize], b: &[usize]| Factor::Product(stored(a), stored(b));
        let kronecker = |first, second, core: Option<&[usize]>| Delta::Kronecker {
            first,
            second,
            core: core.map(stored),
        };
        let hadamard = |a: &[usize], b: &[usize], core: Option<&[usize]>| Delta::Hadamard {
            first: (stored(a), stored(b)),
            second: (stored(a), stored(b)),
            cores: core.map(|core| (stored(core), stored(core))),
        };
        let whole = |shape: &[usize]| Factor::Whole(stored(shape));
        let (linear, point, window) = (&[6, 8][..], &[6, 8, 1, 1][..], &[6, 8, 3, 3][..]);
        for (delta, shape, due) in [
            (low_rank(&[2, 8], &[6, 2], None), linear, true),
            (low_rank(&[2, 8, 1, 1], &[6, 2, 1, 1], None), linear, true),
            (low_rank(&[2, 8], &[6, 2], None), point, true),
            (low_rank(&[2, 8, 3, 3], &[6, 2, 1, 1], None), window, true),
            (low_rank(&[2, 72], &[6, 2], None), window, true),
            // As many numbers, of other inputs.
            (low_rank(&[2, 72, 1, 1], &[6, 2, 1, 1], None), window, false),
            (low_rank(&[2, 8], &[6, 3], None), linear, false),
            (low_rank(&[0, 8], &[6, 0], None), linear, false),
            (low_rank(&[2, 8], &[6, 2], None), &[8, 6], false),
            (
                low_rank(&[2, 8, 1, 1], &[6, 4, 1, 1], Some(&[4, 2, 3, 3])),
                window,
                true,
            ),
            (
                low_rank(&[2, 8, 1, 1], &[6, 2, 1, 1], Some(&[2, 2, 1, 1])),
                window,
                false,
            ),
            (hadamard(&[6, 2], &[2, 8], None), linear, true),
            (hadamard(&[6, 2], &[2, 72], None), window, true),
            (
                hadamard(&[2, 6], &[2, 8], Some(&[2, 2, 3, 3])),
                window,
                true,
            ),
            (
                hadamard(&[2, 6], &[2, 8], Some(&[2, 2, 3, 3])),
                linear,
                false,
            ),
            (
                kronecker(whole(&[2, 4]), whole(&[3, 2]), None),
                linear,
                true,
            ),
            (
                kronecker(whole(&[2, 4]), whole(&[3, 2, 3, 3]), None),
                window,
                true,
            ),
            (
                kronecker(product(&[2, 1], &[1, 4]), product(&[3, 1], &[1, 18]), None),
                window,
                true,
            ),
            (
                kronecker(
                    whole(&[2, 4]),
                    product(&[1, 3], &[1, 2]),
                    Some(&[1, 1, 3, 3]),
                ),
                window,
                true,
            ),
            (
                kronecker(whole(&[2, 4]), whole(&[2, 3]), None),
                linear,
                false,
            ),
            (Delta::Full(stored(&[6, 8, 1, 1])), linear, true),
            (Delta::Full(stored(&[8, 6])), linear, false),
            (Delta::Full(stored(&[6])), &[6], true),
            (low_rank(&[2, HUGE, HUGE], &[6, 2], None), linear, false),
            (
                hadamard(&[HUGE, 2], &[2, HUGE], Some(&[2, 2, HUGE, HUGE])),
                window,
                false,
            ),
            (
                kronecker(whole(&[HUGE, HUGE]), whole(&[HUGE, HUGE]), None),
                linear,
                false,
            ),
        ] {
            assert_eq!(delta.fits(shape), due, "{delta:?} of {shape:?}");
        }
        let rows = |shape| Magnitude::Rows(stored(shape));
        let columns = |shape| Magnitude::Columns(stored(shape));
        assert!(rows(&[6]).fits(linear) && rows(&[6, 1, 1, 1]).fits(window));
        assert!(columns(&[1, 8]).fits(linear) && !columns(&[1, 6]).fits(linear));
        assert!(!rows(&[6]).fits(&[6]));
    }

    #[test]
    fn what_is_before_a_magnitude_is_merged_and_what_is_after_stays_beside() {
        let edit = |magnitude: bool, full: bool| Edit {
            delta: if full {
                Delta::Full(stored(&[6, 8]))
            } else {
                low_rank(&[2, 8], &[6, 2], None)
            },
            scale: 1.0,
            magnitude: magnitude.then(|| Magnitude::Rows(stored(&[6]))),
            strength: 1.0,
        };
        let count = |edits: &[Edit]| {
            let (beside, merged) = split(edits);
            (beside.len(), merged.len())
        };
        let (plain, full, dora) = (edit(false, false), edit(false, true), edit(true, false));
        assert_eq!(count(&[plain.clone(), full.clone(), plain.clone()]), (2, 1));
        assert_eq!(count(&[plain.clone(), dora, plain, full]), (1, 3));
    }
}
