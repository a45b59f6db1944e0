//! Attention in blocks with the softmax taken as the keys go by (Milakov and Gimelshein 2018, Dao et al. 2022).
//!
//! The lanes of the vectors are queries: a panel of 64 queries is held transposed, `[d][64]`, and so are its scores,
//! `[keys][64]`, and its output, `[d][64]`. Maxima and sums then never cross lanes, keys and values are read where they
//! lie, element by element, and what a query gets depends on itself, the keys and the values alone: neither on the queries
//! beside it nor on the instruction set, as long as that fuses multiply and add.

use std::cell::RefCell;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::products::Machine;
use super::simd::{Isa, Simd, multiversion, prefetch};
use super::with_data;
use crate::kernels::Attended;

/// Queries of a panel.
const QUERIES: usize = 64;

/// Keys whose scores are held at a time, 24 KiB; the running maximum is renewed once for each such block.
const KEYS: usize = 96;

/// Inner length of a product that is summed in one go. The sums of the blocks are added up, so that rounding errors grow
/// with the root of the block's length and of their number; and 128 rows of a panel stay in the first cache.
const INNER: usize = 128;

/// Numbers of a cache line.
const LINE: usize = 16;

/// The largest number of rows of a register tile.
const TILE: usize = 6;

/// One number for each query of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Row([f32; QUERIES]);

impl Row {
    const fn splat(x: f32) -> Self {
        Self([x; QUERIES])
    }
}

/// Gives `f` a panel of this many rows, kept from task to task of the thread; it holds whatever was left there.
fn with_scratch<R>(rows: usize, f: impl FnOnce(&mut [Row]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<Row>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < rows {
            scratch.resize(rows, Row::splat(0.0));
        }
        f(&mut scratch[..rows])
    })
}

/// One head of the keys and values of one image.
#[derive(Clone, Copy)]
struct Head<'a> {
    /// `[M, C]`.
    k: &'a [f32],
    /// `[M, C]`.
    v: &'a [f32],
    /// The keys that take part; all when `None`.
    keys: Option<&'a [u32]>,
    /// How many take part.
    count: usize,
    /// C.
    stride: usize,
    /// Where the head begins in a row.
    start: usize,
}

impl Head<'_> {
    /// Where the head's part of the rows of the keys `first..first + count` begins.
    #[inline(always)]
    fn offsets(&self, first: usize, count: usize) -> [usize; KEYS] {
        let mut offsets = [0; KEYS];
        for (i, offset) in offsets[..count].iter_mut().enumerate() {
            let key = self.keys.map_or(first + i, |keys| keys[first + i] as usize);
            *offset = key * self.stride + self.start;
        }
        offsets
    }
}

/// Rows of the next register tile when `left` are left: at most [`TILE`], and no small rest.
#[inline(always)]
fn tile_rows(left: usize) -> usize {
    if left > TILE && left < 2 * TILE {
        left.div_ceil(2)
    } else {
        left.min(TILE)
    }
}

/// Calls `$f::<S, R>($args)` for the number of rows R = `$rows`, 1 to [`TILE`].
macro_rules! by_rows {
    ($rows:expr, $f:ident::<$s:ident>($($arg:expr),* $(,)?)) => {
        match $rows {
            1 => $f::<$s, 1>($($arg),*),
            2 => $f::<$s, 2>($($arg),*),
            3 => $f::<$s, 3>($($arg),*),
            4 => $f::<$s, 4>($($arg),*),
            5 => $f::<$s, 5>($($arg),*),
            _ => $f::<$s, 6>($($arg),*),
        }
    };
}

/// `scores[r] (+)= sum_p k[rows[r] + p] q[p]` over p in order: R rows of [`QUERIES`]. Meanwhile the same places of `next`,
/// which will be read next, are fetched.
///
/// # Safety
/// The processor has the set of `S`. k is valid for reading `inner` elements at each of the offsets `rows`, q for `inner`
/// rows of [`QUERIES`], scores for writing R rows (and reading, if `add`).
#[inline(always)]
unsafe fn score_tile<S: Simd, const R: usize>(
    k: *const f32,
    next: *const f32,
    rows: &[usize],
    q: *const f32,
    inner: usize,
    add: bool,
    scores: *mut f32,
) {
    // SAFETY: p < inner, r < R <= rows.len() (indexing checks it), and lane + (j + 1) S::LANES <= QUERIES, as
    // S::LANES * S::BLOCK divides it: all is inside what the caller promises.
    unsafe {
        let from: [*const f32; R] = std::array::from_fn(|r| k.add(rows[r]));
        for lane in (0..QUERIES).step_by(S::LANES * S::BLOCK) {
            let mut sums = [[S::splat(0.0); 4]; R];
            for line in (0..inner).step_by(LINE) {
                for r in 0..R {
                    prefetch(next.wrapping_add(rows[r] + line));
                }
                for p in line..inner.min(line + LINE) {
                    let mut b = [S::splat(0.0); 4];
                    for j in 0..S::BLOCK {
                        b[j] = S::load(q.add(p * QUERIES + lane + j * S::LANES));
                    }
                    for r in 0..R {
                        let a = S::splat(*from[r].add(p));
                        for j in 0..S::BLOCK {
                            sums[r][j] = S::fma(a, b[j], sums[r][j]);
                        }
                    }
                }
            }
            for r in 0..R {
                for j in 0..S::BLOCK {
                    let to = scores.add(r * QUERIES + lane + j * S::LANES);
                    let sum = if add {
                        S::add(S::load(to), sums[r][j])
                    } else {
                        sums[r][j]
                    };
                    S::store(to, sum);
                }
            }
        }
    }
}

/// `out[r] = out[r] scale + sum_p v[rows[p] + r] weights[p]` over p in order: R rows of [`QUERIES`].
///
/// # Safety
/// The processor has the set of `S`. v is valid for reading R elements at each of the offsets `rows`, weights for
/// `rows.len()` rows of [`QUERIES`], scale for one, out for reading and writing R.
#[inline(always)]
unsafe fn value_tile<S: Simd, const R: usize>(
    v: *const f32,
    rows: &[usize],
    weights: *const f32,
    scale: *const f32,
    out: *mut f32,
) {
    // SAFETY: p < rows.len(), r < R, and lane + (j + 1) S::LANES <= QUERIES as in `score_tile`: all is inside what the
    // caller promises.
    unsafe {
        for lane in (0..QUERIES).step_by(S::LANES * S::BLOCK) {
            let mut sums = [[S::splat(0.0); 4]; R];
            for (p, row) in rows.iter().enumerate() {
                let mut b = [S::splat(0.0); 4];
                for j in 0..S::BLOCK {
                    b[j] = S::load(weights.add(p * QUERIES + lane + j * S::LANES));
                }
                let row = v.add(*row);
                for r in 0..R {
                    let a = S::splat(*row.add(r));
                    for j in 0..S::BLOCK {
                        sums[r][j] = S::fma(a, b[j], sums[r][j]);
                    }
                }
            }
            for j in 0..S::BLOCK {
                let scale = S::load(scale.add(lane + j * S::LANES));
                for r in 0..R {
                    let to = out.add(r * QUERIES + lane + j * S::LANES);
                    S::store(to, S::fma(S::load(to), scale, sums[r][j]));
                }
            }
        }
    }
}

/// The scores of a panel of queries for some keys: `scores[j][query] = sum_x k[rows[j] + x] q[x][query]`. Meanwhile the same
/// rows of `next` are fetched.
///
/// # Safety
/// The processor has the set of `S`; k is valid for reading `q.len()` elements at each of the offsets `rows`.
#[inline(always)]
unsafe fn score_block<S: Simd>(
    q: &[Row],
    k: *const f32,
    next: *const f32,
    rows: &[usize],
    scores: &mut [Row],
) {
    assert!(scores.len() == rows.len());
    for first in (0..q.len()).step_by(INNER) {
        let inner = INNER.min(q.len() - first);
        let mut j = 0;
        while j < rows.len() {
            let height = tile_rows(rows.len() - j);
            // SAFETY: first + inner <= q.len() and j + height <= rows.len() = scores.len().
            unsafe {
                let (k, next) = (k.add(first), next.wrapping_add(first));
                let q = q.as_ptr().add(first).cast();
                let to = scores.as_mut_ptr().add(j).cast();
                by_rows!(
                    height,
                    score_tile::<S>(k, next, &rows[j..j + height], q, inner, first > 0, to)
                );
            }
            j += height;
        }
    }
}

/// Adds the values of some keys to the output of a panel of queries, whose earlier sums are scaled:
/// `out[x][query] = out[x][query] scale[query] + sum_j v[rows[j] + x] weights[j][query]`.
///
/// # Safety
/// The processor has the set of `S`; v is valid for reading `out.len()` elements at each of the offsets `rows`.
#[inline(always)]
unsafe fn value_block<S: Simd>(
    weights: &[Row],
    v: *const f32,
    rows: &[usize],
    scale: &Row,
    out: &mut [Row],
) {
    assert!(weights.len() == rows.len());
    let mut x = 0;
    while x < out.len() {
        let height = tile_rows(out.len() - x);
        // SAFETY: x + height <= out.len(); weights has a row for each of `rows`.
        unsafe {
            let v = v.add(x);
            let to = out.as_mut_ptr().add(x).cast();
            let (weights, scale) = (weights.as_ptr().cast(), scale.0.as_ptr());
            by_rows!(height, value_tile::<S>(v, rows, weights, scale, to));
        }
        x += height;
    }
}

/// The running softmax of each query of a panel; scores are to base 2.
struct Softmax {
    /// The largest score so far.
    max: Row,
    /// The sum of `2^(score - max)`.
    sum: Row,
    /// What sums taken before the last block are to be scaled with.
    scale: Row,
}

impl Softmax {
    const fn new() -> Self {
        Self {
            max: Row::splat(f32::NEG_INFINITY),
            sum: Row::splat(0.0),
            scale: Row::splat(0.0),
        }
    }

    /// Takes a block of scores, which become `2^(score - max)`.
    ///
    /// # Safety
    /// The processor has the set of `S`.
    #[inline(always)]
    unsafe fn take<S: Simd>(&mut self, scores: &mut [Row]) {
        for lane in (0..QUERIES).step_by(S::LANES * S::BLOCK) {
            // SAFETY: lane + (j + 1) S::LANES <= QUERIES, as S::LANES * S::BLOCK divides it; every pointer is to a row.
            unsafe {
                let at = |j: usize| lane + j * S::LANES;
                let mut max = [S::splat(0.0); 4];
                for j in 0..S::BLOCK {
                    max[j] = S::load(self.max.0.as_ptr().add(at(j)));
                }
                let before = max;
                for row in &*scores {
                    for j in 0..S::BLOCK {
                        max[j] = S::max(max[j], S::load(row.0.as_ptr().add(at(j))));
                    }
                }
                let mut sum = [S::splat(0.0); 4];
                for row in &mut *scores {
                    for j in 0..S::BLOCK {
                        let to = row.0.as_mut_ptr().add(at(j));
                        let e = S::exp2(S::sub(S::load(to), max[j]));
                        sum[j] = S::add(sum[j], e);
                        S::store(to, e);
                    }
                }
                for j in 0..S::BLOCK {
                    // Before the first block the sum is 0, whatever it is scaled with.
                    let scale = S::exp2(S::sub(before[j], max[j]));
                    let to = self.sum.0.as_mut_ptr().add(at(j));
                    S::store(to, S::fma(S::load(to), scale, sum[j]));
                    S::store(self.scale.0.as_mut_ptr().add(at(j)), scale);
                    S::store(self.max.0.as_mut_ptr().add(at(j)), max[j]);
                }
            }
        }
    }

    /// `1 / sum`.
    ///
    /// # Safety
    /// The processor has the set of `S`.
    #[inline(always)]
    unsafe fn inverse<S: Simd>(&self) -> Row {
        let mut inverse = Row::splat(1.0);
        for lane in (0..QUERIES).step_by(S::LANES) {
            // SAFETY: lane + S::LANES <= QUERIES.
            unsafe {
                let to = inverse.0.as_mut_ptr().add(lane);
                S::store(
                    to,
                    S::div(S::load(to), S::load(self.sum.0.as_ptr().add(lane))),
                );
            }
        }
        inverse
    }
}

/// The attention of a panel of queries, scaled by `scale log2 e`, to a head: `out[x][query]`; `scores` is room for
/// [`KEYS`] rows.
///
/// # Safety
/// The processor has the set of `S`; the head's offsets are in order, and k and v have `q.len()` elements at the last.
#[inline(always)]
unsafe fn attend_panel_with<S: Simd>(
    q: &[Row],
    head: &Head<'_>,
    scores: &mut [Row],
    out: &mut [Row],
) {
    assert!(q.len() == out.len());
    let mut softmax = Softmax::new();
    out.fill(Row::splat(0.0));
    for first in (0..head.count).step_by(KEYS) {
        let count = KEYS.min(head.count - first);
        let offsets = &head.offsets(first, count)[..count];
        let scores = &mut scores[..count];
        // SAFETY: no offset is larger than the last, where there are q.len() = out.len() elements.
        unsafe {
            score_block::<S>(q, head.k.as_ptr(), head.v.as_ptr(), offsets, scores);
            softmax.take::<S>(scores);
            value_block::<S>(scores, head.v.as_ptr(), offsets, &softmax.scale, out);
        }
    }
    // SAFETY: the set is there, by the caller's promise.
    let inverse = unsafe { softmax.inverse::<S>() };
    for row in out {
        for (x, inverse) in row.0.iter_mut().zip(inverse.0) {
            *x *= inverse;
        }
    }
}

/// Adds the softmax of a panel of queries, scaled by `scale log2 e`, over the keys of a head to `out[key][query]`;
/// `scores` is room for the same.
///
/// # Safety
/// As for [`attend_panel_with`], of k.
#[inline(always)]
unsafe fn map_panel_with<S: Simd>(q: &[Row], head: &Head<'_>, scores: &mut [Row], out: &mut [Row]) {
    let mut max = Softmax::new().max;
    for (i, scores) in scores.chunks_mut(KEYS).enumerate() {
        let offsets = &head.offsets(i * KEYS, scores.len())[..scores.len()];
        // SAFETY: no offset is larger than the last, where there are q.len() elements.
        unsafe { score_block::<S>(q, head.k.as_ptr(), head.v.as_ptr(), offsets, scores) };
        for row in &*scores {
            for (max, x) in max.0.iter_mut().zip(row.0) {
                *max = if *max > x { *max } else { x };
            }
        }
    }
    // With the maximum known the blocks are not scaled again.
    let mut softmax = Softmax {
        max,
        ..Softmax::new()
    };
    for scores in scores.chunks_mut(KEYS) {
        // SAFETY: the set is there, by the caller's promise.
        unsafe { softmax.take::<S>(scores) };
    }
    // SAFETY: as above.
    let inverse = unsafe { softmax.inverse::<S>() };
    for (out, row) in out.iter_mut().zip(scores) {
        for ((out, x), inverse) in out.0.iter_mut().zip(row.0).zip(inverse.0) {
            *out += x * inverse;
        }
    }
}

multiversion! {
    /// [`attend_panel_with`] the set.
    ///
    /// # Safety
    /// The head's offsets are in order, and k and v have `q.len()` elements at the last.
    unsafe fn attend_panel(q: &[Row], head: &Head<'_>, scores: &mut [Row], out: &mut [Row]) = attend_panel_with
}

multiversion! {
    /// [`map_panel_with`] the set.
    ///
    /// # Safety
    /// The head's offsets are in order, and k has `q.len()` elements at the last.
    unsafe fn map_panel(q: &[Row], head: &Head<'_>, scores: &mut [Row], out: &mut [Row]) = map_panel_with
}

/// Writes columns `start..` of the `rows` of an image `[N, C]` to a panel, one query to each lane, times `scale`; lanes
/// without a query are 0.
fn pack(image: &[f32], c: usize, start: usize, rows: &[u32], scale: f32, panel: &mut [Row]) {
    let size = panel.len();
    if rows.len() < QUERIES {
        panel.fill(Row::splat(0.0));
    }
    for (lane, &row) in rows.iter().enumerate() {
        let from = &image[row as usize * c + start..][..size];
        for (to, x) in panel.iter_mut().zip(from) {
            to.0[lane] = x * scale;
        }
    }
}

/// What the tasks write: each its own elements.
struct Out(*mut f32);

// SAFETY: it is only written, through `write`, whose callers keep to different elements.
unsafe impl Sync for Out {}

impl Out {
    /// Writes a panel to columns `start..` of the `rows` of `[.., c]`, one lane to each.
    ///
    /// # Safety
    /// There are `(row + 1) c` elements for every row of `rows`, `start + panel.len() <= c`, and nobody else touches these
    /// columns of the rows.
    unsafe fn write(&self, panel: &[Row], c: usize, start: usize, first: usize, rows: &[u32]) {
        for (lane, &row) in rows.iter().enumerate() {
            // SAFETY: the columns are inside the row, which is inside the output, by the caller's promise.
            unsafe {
                let to = self.0.add((first + row as usize) * c + start);
                for (x, from) in panel.iter().enumerate() {
                    to.add(x).write(from.0[lane]);
                }
            }
        }
    }
}

/// Keys and values as slices, checked: every key of every image is there.
struct Source<'a> {
    k: &'a [f32],
    v: &'a [f32],
    /// Images of k and v, 1 or as many as there are of the queries.
    images: usize,
    /// M.
    m: usize,
    c: usize,
    keys: Option<&'a [Vec<u32>]>,
}

impl<'a> Source<'a> {
    /// The elements of what was [checked](check).
    fn of(to: Attended<'a>, k: &'a [f32], v: &'a [f32]) -> Result<Self> {
        let (images, m, c) = to.k.dims3()?;
        Ok(Self {
            k,
            v,
            images,
            m,
            c,
            keys: to.keys,
        })
    }

    /// One head of what image `image` of the queries attends to.
    fn head(&self, image: usize, start: usize) -> Head<'a> {
        let image = if self.images == 1 { 0 } else { image };
        let part = |x: &'a [f32]| &x[image * self.m * self.c..][..self.m * self.c];
        let keys = self.keys.map(|keys| keys[image].as_slice());
        Head {
            k: part(self.k),
            v: part(self.v),
            keys,
            count: keys.map_or(self.m, <[u32]>::len),
            stride: self.c,
            start,
        }
    }
}

/// Refuses keys and values that do not fit queries `[B, N, C]`.
fn check(q: &Tensor, to: Attended<'_>, heads: usize) -> Result<()> {
    let (images, _, c) = q.dims3()?;
    let (sources, m, _) = to.k.dims3()?;
    if to.k.dims() != to.v.dims()
        || to.k.dim(2)? != c
        || (sources != 1 && sources != images)
        || m == 0
        || heads == 0
        || c % heads != 0
    {
        bail!(
            "attention: queries {:?}, keys {:?} and values {:?} do not fit {heads} heads",
            q.dims(),
            to.k.dims(),
            to.v.dims()
        );
    }
    if let Some(keys) = to.keys {
        let fits = |keys: &Vec<u32>| {
            keys.is_sorted() && keys.last().is_some_and(|&last| (last as usize) < m)
        };
        if keys.len() != sources || !keys.iter().all(fits) {
            bail!("attention: the chosen keys are not among the {m} of each of {sources} images");
        }
    }
    Ok(())
}

/// Gives `f` the elements of each tensor in row-major order.
fn with_all<R>(
    tensors: &[&Tensor],
    got: &[&[f32]],
    f: &mut dyn FnMut(&[&[f32]]) -> Result<R>,
) -> Result<R> {
    match tensors.split_first() {
        None => f(got),
        Some((first, rest)) => with_data(first, |data| {
            let got: Vec<&[f32]> = got.iter().copied().chain([data]).collect();
            with_all(rest, &got, f)
        }),
    }
}

/// What a panel of queries attends to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Inside,
    Outside,
    Both,
}

/// Queries of an image that attend to the same.
struct Panel {
    side: Side,
    /// At most [`QUERIES`].
    rows: Vec<u32>,
}

/// The panels of an image of `n` queries: those outside alone where its mask is 0, inside alone where it is 1 (or where
/// there is no mask), and the rest, which need both.
fn panels(n: usize, mask: Option<&[f32]>) -> Vec<Panel> {
    let side_of = |row: usize| match mask.map(|mask| mask[row]) {
        None => Side::Inside,
        Some(1.0) => Side::Inside,
        Some(0.0) => Side::Outside,
        Some(_) => Side::Both,
    };
    [Side::Both, Side::Inside, Side::Outside]
        .into_iter()
        .flat_map(|side| {
            let rows: Vec<u32> = (0..n)
                .filter(|&row| side_of(row) == side)
                .map(|row| row as u32)
                .collect();
            let panels: Vec<Panel> = rows
                .chunks(QUERIES)
                .map(|rows| Panel {
                    side,
                    rows: rows.to_vec(),
                })
                .collect();
            panels
        })
        .collect()
}

/// `softmax(q k^T scale) v` for each head; with `blend`, (outside, mask), the sum of `mask` times that and `1 - mask` times
/// the same with the keys and values outside.
pub(super) fn attend(
    machine: Machine,
    q: &Tensor,
    inside: Attended<'_>,
    blend: Option<(Attended<'_>, &Tensor)>,
    heads: usize,
    scale: f64,
) -> Result<Tensor> {
    let (images, n, c) = q.dims3()?;
    check(q, inside, heads)?;
    let mut tensors = vec![q, inside.k, inside.v];
    if let Some((outside, mask)) = blend {
        check(q, outside, heads)?;
        let (masks, rows) = mask.dims2()?;
        if rows != n || (masks != 1 && masks != images) {
            bail!(
                "attention: a mask {:?} for queries {:?}",
                mask.dims(),
                q.dims()
            );
        }
        tensors.extend([outside.k, outside.v, mask]);
    }
    let size = c / heads;
    let scale = (scale * std::f64::consts::LOG2_E) as f32;
    let mut out = vec![0f32; images * n * c];
    let to = Out(out.as_mut_ptr());
    with_all(&tensors, &[], &mut |data| {
        let q = data[0];
        let inside = Source::of(inside, data[1], data[2])?;
        let outside = match blend {
            Some((outside, _)) => Some(Source::of(outside, data[3], data[4])?),
            None => None,
        };
        let masks = blend.map(|_| data[5]);
        let panels: Vec<Vec<Panel>> = match masks {
            Some(masks) if n > 0 => masks.chunks(n).map(|mask| panels(n, Some(mask))).collect(),
            _ => vec![panels(n, None)],
        };
        // Heads in turn, so that the keys and values that are read again and again are those of one.
        let tasks: Vec<(usize, usize, &Panel)> = (0..images)
            .flat_map(|image| {
                let panels = &panels[if panels.len() == 1 { 0 } else { image }];
                (0..heads)
                    .flat_map(move |head| panels.iter().map(move |panel| (image, head, panel)))
            })
            .collect();
        tasks.into_par_iter().for_each(|(image, head, panel)| {
            let start = head * size;
            let image_q = &q[image * n * c..][..n * c];
            with_scratch(KEYS + 3 * size, |scratch| {
                let (scores, scratch) = scratch.split_at_mut(KEYS);
                let (queries, scratch) = scratch.split_at_mut(size);
                let (result, other) = scratch.split_at_mut(size);
                pack(image_q, c, start, &panel.rows, scale, queries);
                let mut run = |source: &Source<'_>, out: &mut [Row]| {
                    let head = source.head(image, start);
                    // SAFETY: `check` saw that the keys ascend and are below M, and that heads x size = C: the last
                    // offset is at most (M - 1) C + C - size, and k and v of the head have M C elements.
                    unsafe { attend_panel(machine.isa, queries, &head, scores, out) };
                };
                match (&outside, panel.side) {
                    (Some(outside), Side::Outside) => run(outside, result),
                    (Some(outside), Side::Both) => {
                        run(&inside, result);
                        run(outside, other);
                        let mask = masks.map_or(&[][..], |masks| {
                            &masks[if masks.len() == n { 0 } else { image * n }..][..n]
                        });
                        mix(result, other, mask, &panel.rows);
                    }
                    _ => run(&inside, result),
                }
                // SAFETY: the rows are below N, the panel has `size` rows and start + size <= C; an image, head and row
                // are in one task alone.
                unsafe { to.write(result, c, start, image * n, &panel.rows) };
            });
        });
        Ok(())
    })?;
    Tensor::from_vec(out, (images, n, c), &Device::Cpu)
}

/// `inside = mask inside + (1 - mask) outside` for each lane, whose query is that of `rows`.
fn mix(inside: &mut [Row], outside: &[Row], mask: &[f32], rows: &[u32]) {
    let (mut m, mut rest) = (Row::splat(0.0), Row::splat(0.0));
    for (lane, &row) in rows.iter().enumerate() {
        m.0[lane] = mask[row as usize];
        rest.0[lane] = 1.0 - mask[row as usize];
    }
    for (inside, outside) in inside.iter_mut().zip(outside) {
        for lane in 0..QUERIES {
            inside.0[lane] = m.0[lane] * inside.0[lane] + rest.0[lane] * outside.0[lane];
        }
    }
}

/// The mean over heads of `softmax(q k^T scale)`, `[B, N, M]`.
pub(super) fn map(isa: Isa, q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let (images, n, c) = q.dims3()?;
    let to = Attended {
        k,
        v: k,
        keys: None,
    };
    check(q, to, heads)?;
    let (size, m) = (c / heads, k.dim(1)?);
    let scale = (scale * std::f64::consts::LOG2_E) as f32;
    let mut out = vec![0f32; images * n * m];
    let written = Out(out.as_mut_ptr());
    with_all(&[q, k], &[], &mut |data| {
        let source = Source::of(to, data[1], data[1])?;
        let panels = panels(n, None);
        let tasks: Vec<(usize, &Panel)> = (0..images)
            .flat_map(|image| panels.iter().map(move |panel| (image, panel)))
            .collect();
        tasks.into_par_iter().for_each(|(image, panel)| {
            let image_q = &data[0][image * n * c..][..n * c];
            with_scratch(2 * m + size, |scratch| {
                let (scores, scratch) = scratch.split_at_mut(m);
                let (result, queries) = scratch.split_at_mut(m);
                result.fill(Row::splat(0.0));
                for head in 0..heads {
                    pack(image_q, c, head * size, &panel.rows, scale, queries);
                    let head = source.head(image, head * size);
                    // SAFETY: as in `attend`: the last offset is at most (M - 1) C + C - size.
                    unsafe { map_panel(isa, queries, &head, scores, result) };
                }
                let inverse = 1.0 / heads as f32;
                result
                    .iter_mut()
                    .flat_map(|row| &mut row.0)
                    .for_each(|x| *x *= inverse);
                // SAFETY: the rows are below N and are in one task alone; the panel has M rows, as a row has elements.
                unsafe { written.write(result, m, 0, image * n, &panel.rows) };
            });
        });
        Ok(())
    })?;
    Tensor::from_vec(out, (images, n, m), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bits, close, data, kernels};
    use super::super::{Cpu, Isa};
    use crate::kernels::{Attended, Kernel, Plain};
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    /// Two keys of three, others for each image.
    fn some_keys(sources: usize, m: usize) -> Vec<Vec<u32>> {
        (0..sources as u32)
            .map(|s| {
                (0..m as u32)
                    .filter(|j| (j + s) % 3 != 1 || *j == 0)
                    .collect()
            })
            .collect()
    }

    /// A mask with zeros, ones and numbers between.
    fn mask(images: usize, n: usize, seed: u64) -> Tensor {
        let numbers = data(&[images, n], seed);
        ((numbers * 0.6).unwrap() + 0.5)
            .unwrap()
            .clamp(0f32, 1f32)
            .unwrap()
    }

    fn everywhere(f: impl FnMut(Cpu)) {
        kernels().into_iter().for_each(f);
    }

    /// All results of sets that fuse have the same bits.
    fn same_where_fused(f: impl Fn(Cpu) -> Tensor) {
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            if isa.rounding() == "fused" {
                let got = bits(&f(Cpu::with(isa)));
                let first = first.get_or_insert_with(|| got.clone());
                assert_eq!(*first, got, "{isa:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn attention_equals_the_plain_version(
            b in 1usize..7, shared: bool, n in 1usize..150, m in 1usize..230, heads in 1usize..4, size in 1usize..23,
            seed in 0u64..99, chosen: bool,
        ) {
            let c = heads * size;
            let sources = if shared { 1 } else { b };
            let (q, k, v) = (data(&[b, n, c], seed), data(&[sources, m, c], seed + 1), data(&[sources, m, c], seed + 2));
            let keys = some_keys(sources, m);
            let keys = chosen.then_some(keys.as_slice());
            let plain = Plain.attention(&q, &k, &v, heads, 0.4, keys).unwrap();
            let plain_map = Plain.attention_map(&q, &k, heads, 0.4).unwrap();
            everywhere(|cpu| {
                close(&cpu.attention(&q, &k, &v, heads, 0.4, keys).unwrap(), &plain);
                close(&cpu.attention_map(&q, &k, heads, 0.4).unwrap(), &plain_map);
            });
            same_where_fused(|cpu| cpu.attention(&q, &k, &v, heads, 0.4, keys).unwrap());
            same_where_fused(|cpu| cpu.attention_map(&q, &k, heads, 0.4).unwrap());
        }

        #[test]
        fn a_blend_is_its_formula(
            b in 1usize..5, shared: bool, shared_mask: bool, n in 1usize..200, m in 1usize..120, heads in 1usize..4,
            size in 1usize..23, seed in 0u64..99, chosen: bool,
        ) {
            let c = heads * size;
            let sources = if shared { 1 } else { b };
            let q = data(&[b, n, c], seed);
            let (k, v) = (data(&[sources, m, c], seed + 1), data(&[sources, m, c], seed + 2));
            let (k2, v2) = (data(&[b, n, c], seed + 3), data(&[b, n, c], seed + 4));
            let mask = mask(if shared_mask { 1 } else { b }, n, seed + 5);
            let keys = some_keys(sources, m);
            let inside = Attended { k: &k, v: &v, keys: chosen.then_some(keys.as_slice()) };
            let outside = Attended { k: &k2, v: &v2, keys: None };
            let plain = Plain.attention_blend(&q, inside, outside, &mask, heads, 0.4).unwrap();
            everywhere(|cpu| {
                let blend = cpu.attention_blend(&q, inside, outside, &mask, heads, 0.4).unwrap();
                close(&blend, &plain);
                let column = mask.unsqueeze(2).unwrap();
                let inside = cpu.attention(&q, inside.k, inside.v, heads, 0.4, inside.keys).unwrap();
                let outside = cpu.attention(&q, outside.k, outside.v, heads, 0.4, outside.keys).unwrap();
                let formula = (column.broadcast_mul(&inside).unwrap()
                    + (1.0 - &column).unwrap().broadcast_mul(&outside).unwrap()).unwrap();
                assert_eq!(bits(&blend), bits(&formula), "{cpu:?}");
            });
        }

        #[test]
        fn a_query_gets_the_same_bits_wherever_it_is(
            b in 2usize..6, n in 2usize..200, m in 1usize..200, heads in 1usize..4, size in 1usize..23, seed in 0u64..99, first in 0usize..200,
        ) {
            let c = heads * size;
            let first = first % n;
            let q = data(&[b, n, c], seed);
            let (k, v) = (data(&[b, m, c], seed + 1), data(&[b, m, c], seed + 2));
            everywhere(|cpu| {
                let all = cpu.attention(&q, &k, &v, heads, 0.3, None).unwrap();
                let maps = cpu.attention_map(&q, &k, heads, 0.3).unwrap();
                for image in 0..b {
                    let part = |t: &Tensor| t.narrow(0, image, 1).unwrap();
                    let rows = |t: &Tensor| part(t).narrow(1, first, n - first).unwrap();
                    let alone = cpu.attention(&rows(&q), &part(&k), &part(&v), heads, 0.3, None).unwrap();
                    assert_eq!(bits(&rows(&all)), bits(&alone), "{cpu:?}");
                    let alone = cpu.attention_map(&rows(&q), &part(&k), heads, 0.3).unwrap();
                    assert_eq!(bits(&rows(&maps)), bits(&alone), "{cpu:?}");
                }
            });
        }
    }

    /// A head longer than the blocks of the inner sum, scores far apart, and a last key that outweighs all.
    #[test]
    fn long_heads_and_large_scores() {
        let (q, v) = (data(&[1, 70, 300], 1), data(&[1, 200, 300], 2));
        let mut k = data(&[1, 200, 300], 3);
        for factor in [0.1, 1.0, 20.0] {
            k = (k * factor).unwrap();
            let plain = Plain.attention(&q, &k, &v, 1, 1.0, None).unwrap();
            everywhere(|cpu| close(&cpu.attention(&q, &k, &v, 1, 1.0, None).unwrap(), &plain));
            same_where_fused(|cpu| cpu.attention(&q, &k, &v, 1, 1.0, None).unwrap());
        }
    }

    /// The weights of a query add up to 1, so that equal values are given back.
    #[test]
    fn equal_values_are_given_back() {
        let (q, k) = (data(&[2, 65, 24], 1), data(&[2, 300, 24], 2));
        let v = Tensor::full(2f32, (2, 300, 24), &Device::Cpu).unwrap();
        let expected = Tensor::full(2f32, (2, 65, 24), &Device::Cpu).unwrap();
        everywhere(|cpu| {
            let got = cpu.attention(&q, &k, &v, 3, 0.3, None).unwrap();
            let off = (got - &expected).unwrap().abs().unwrap().max_all().unwrap();
            assert!(off.to_scalar::<f32>().unwrap() < 1e-6);
        });
    }

    #[test]
    fn what_is_no_number_stays_visible() {
        let mut numbers = vec![0.5f32; 70 * 8];
        numbers[66 * 8 + 3] = f32::NAN;
        let q = Tensor::from_vec(numbers, (1, 70, 8), &Device::Cpu).unwrap();
        let k = data(&[1, 100, 8], 1);
        everywhere(|cpu| {
            let got = cpu.attention(&q, &k, &k, 2, 0.3, None).unwrap();
            let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (i, x) in got.iter().enumerate() {
                let (row, head) = (i / 8, i % 8 / 4);
                assert_eq!(x.is_nan(), row == 66 && head == 0, "{cpu:?} {i}");
            }
        });
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (q, k) = (data(&[2, 5, 8], 1), data(&[2, 6, 8], 2));
        let cpu = Cpu::default();
        let attend = |k: &Tensor, heads, keys: Option<&[Vec<u32>]>| {
            cpu.attention(&q, k, k, heads, 0.3, keys).is_ok()
        };
        assert!(attend(&k, 2, None) && attend(&k, 2, Some(&[vec![0, 5], vec![3]])));
        assert!(!attend(&k, 3, None), "heads that do not divide C");
        assert!(
            !attend(&k, 2, Some(&[vec![0, 6], vec![3]])),
            "a key that is not there"
        );
        assert!(
            !attend(&k, 2, Some(&[vec![3, 1], vec![3]])),
            "keys out of order"
        );
        assert!(!attend(&k, 2, Some(&[vec![3], vec![]])), "no key");
        assert!(!attend(&k, 2, Some(&[vec![3]])), "keys of one image of two");
        assert!(!attend(&data(&[3, 6, 8], 2), 2, None), "another batch");
        assert!(!attend(&data(&[2, 6, 7], 2), 2, None), "another width");
        let side = Attended {
            k: &k,
            v: &k,
            keys: None,
        };
        for dims in [[2, 4], [3, 5]] {
            let mask = data(&dims, 3);
            assert!(cpu.attention_blend(&q, side, side, &mask, 2, 0.3).is_err());
        }
    }
}
