//! Attention in blocks with the softmax taken as the keys go by (Milakov and Gimelshein 2018, Dao et al. 2022).
//!
//! The lanes of the vectors are queries: a panel of 64 queries is held transposed, `[d][64]`, and so are its scores,
//! `[keys][64]`, and its output, `[d][64]`. Maxima and sums then never cross lanes, keys and values are taken number by
//! number, and what a query gets depends on itself, the keys and the values alone: neither on the queries beside it nor on the
//! instruction set, as long as that fuses multiply and add. A task takes several panels of one head, so that its keys and
//! values are gathered a few times only. Where there is a matrix unit, long heads are for it (`tiles`).

mod gradient;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::cell::RefCell;

use candle_core::{Device, Result, Tensor, bail};

use super::data::with_data;
use super::machine::Machine;
use super::matrix::{Strided, block, tile_rows};
use super::simd::{Isa, Simd, multiversion};
use super::team;
use crate::{Attended, blend as blend_rows};

pub(super) use gradient::backward;

/// Queries of a panel.
const QUERIES: usize = 64;

/// Keys whose scores are held at a time, 24 KiB; the running maximum is renewed once for each such block.
const KEYS: usize = 96;

/// Inner length of a product that is summed in one go. The sums of the blocks are added up, so that rounding errors grow
/// with the root of the block's length and of their number; and 128 rows of a panel stay in the first cache.
const INNER: usize = 128;

/// Numbers of a cache line.
const LINE: usize = 16;

/// One number for each query of a panel of W.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Row<const W: usize = QUERIES>([f32; W]);

impl<const W: usize> Row<W> {
    const fn splat(x: f32) -> Self {
        Self([x; W])
    }
}

/// Gives `f` this many rows, which are kept from task to task of the thread and hold whatever was left there.
fn with_scratch<const W: usize, R>(rows: usize, f: impl FnOnce(&mut [Row<W>]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<Row<LINE>>> = const { RefCell::new(Vec::new()) };
    }
    const { assert!(W.is_multiple_of(LINE)) };
    SCRATCH.with_borrow_mut(|scratch| {
        let lines = rows * (W / LINE);
        if scratch.len() < lines {
            scratch.resize(lines, Row::splat(0.0));
        }
        // SAFETY: a row of W numbers is W / LINE lines without gaps, of the same alignment; there are as many, and any bits
        // are numbers.
        f(unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), rows) })
    })
}

/// Rows as numbers, one row after another.
fn numbers<const W: usize>(rows: &mut [Row<W>]) -> &mut [f32] {
    const { assert!(W.is_multiple_of(LINE)) };
    // SAFETY: W numbers fill whole cache lines, so that rows have no gaps.
    unsafe { std::slice::from_raw_parts_mut(rows.as_mut_ptr().cast(), rows.len() * W) }
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
    /// The number of the i-th key that takes part.
    #[inline(always)]
    fn key(&self, i: usize) -> usize {
        self.keys.map_or(i, |keys| keys[i] as usize)
    }

    /// The head's columns of k or v, one key after another from the key `first` on, `size` numbers of each: what lies side by
    /// side is read faster, again and again, than what lies a row of C apart.
    #[inline(always)]
    fn gather(&self, from: &[f32], first: usize, size: usize, to: &mut [f32]) {
        for (i, to) in to.chunks_exact_mut(size).enumerate() {
            let row = self.key(first + i) * self.stride + self.start;
            to.copy_from_slice(&from[row..][..size]);
        }
    }
}

/// Calls `$f::<S, R>($args)` for the number of rows R = `$rows`, 1 to 6.
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

/// `out[r] = out[r] scale + sum_p v[p stride + r] weights[p]` over p in order: R rows of [`QUERIES`].
///
/// # Safety
/// The processor has the set of `S`. v is valid for reading `count` rows of R elements, weights for `count` rows of
/// [`QUERIES`], scale for one, out for reading and writing R.
#[inline(always)]
unsafe fn value_tile<S: Simd, const R: usize>(
    v: *const f32,
    stride: usize,
    count: usize,
    weights: *const f32,
    scale: *const f32,
    out: *mut f32,
) {
    // SAFETY: p < count, r < R, and lane + (j + 1) S::LANES <= QUERIES as in `score_tile`: all is inside what the caller
    // promises.
    unsafe {
        for lane in (0..QUERIES).step_by(S::LANES * S::BLOCK) {
            let mut sums = [[S::splat(0.0); 4]; R];
            for p in 0..count {
                let mut b = [S::splat(0.0); 4];
                for (j, b) in b.iter_mut().enumerate().take(S::BLOCK) {
                    *b = S::load(weights.add(p * QUERIES + lane + j * S::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = S::splat(*v.add(p * stride + r));
                    for j in 0..S::BLOCK {
                        sums[j] = S::fma(a, b[j], sums[j]);
                    }
                }
            }
            for j in 0..S::BLOCK {
                let scale = S::load(scale.add(lane + j * S::LANES));
                for (r, sums) in sums.iter().enumerate() {
                    let to = out.add(r * QUERIES + lane + j * S::LANES);
                    S::store(to, S::fma(S::load(to), scale, sums[j]));
                }
            }
        }
    }
}

/// The scores of a panel of queries for some keys, k `[keys][size]`: `scores[j][query] = sum_x k[j][x] q[x][query]`.
///
/// # Safety
/// The processor has the set of `S`.
#[inline(always)]
unsafe fn score_block<S: Simd>(q: &[Row], k: &[f32], scores: &mut [Row]) {
    let (size, count) = (q.len(), scores.len());
    assert!(k.len() == count * size);
    for first in (0..size).step_by(INNER) {
        let inner = INNER.min(size - first);
        // SAFETY: first + inner <= size; k and scores have `count` rows, and a row of scores is whole vectors.
        unsafe {
            let k = Strided {
                at: k.as_ptr().add(first),
                row: size,
                term: 1,
            };
            let q = (q.as_ptr().add(first).cast(), QUERIES);
            let to = (scores.as_mut_ptr().cast(), QUERIES);
            block(S::ISA, (count, QUERIES, inner), k, q, first > 0, to);
        }
    }
}

/// Adds some values, v `[keys][size]`, to the output of a panel of queries, whose earlier sums are scaled:
/// `out[x][query] = out[x][query] scale[query] + sum_j v[j][x] weights[j][query]`.
///
/// # Safety
/// The processor has the set of `S`.
#[inline(always)]
unsafe fn value_block<S: Simd>(weights: &[Row], v: &[f32], scale: &Row, out: &mut [Row]) {
    let (size, count) = (out.len(), weights.len());
    assert!(v.len() == count * size);
    let mut x = 0;
    while x < size {
        let height = tile_rows(size - x);
        // SAFETY: x + height <= size; weights and v have `count` rows.
        unsafe {
            let v = v.as_ptr().add(x);
            let to = out.as_mut_ptr().add(x).cast();
            let (weights, scale) = (weights.as_ptr().cast(), scale.0.as_ptr());
            by_rows!(height, value_tile::<S>(v, size, count, weights, scale, to));
        }
        x += height;
    }
}

/// The running softmax of each query of a panel; scores are to base 2.
struct Softmax<const W: usize = QUERIES> {
    /// The largest score so far.
    max: Row<W>,
    /// The sum of `2^(score - max)`.
    sum: Row<W>,
    /// What sums taken before the last block are to be scaled with.
    scale: Row<W>,
}

impl<const W: usize> Softmax<W> {
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
    unsafe fn take<S: Simd>(&mut self, scores: &mut [Row<W>]) {
        let block = S::BLOCK.min(W / S::LANES);
        for lane in (0..W).step_by(S::LANES * block) {
            // SAFETY: lane + (j + 1) S::LANES <= W, as S::LANES * block divides it; every pointer is to a row.
            unsafe {
                let max = self.max_with::<S>(scores, lane, block);
                let mut sum = [S::splat(0.0); 4];
                for row in &mut *scores {
                    for j in 0..block {
                        let to = row.0.as_mut_ptr().add(lane + j * S::LANES);
                        let e = S::exp2(S::sub(S::load(to), max[j]));
                        sum[j] = S::add(sum[j], e);
                        S::store(to, e);
                    }
                }
                self.renew::<S>(lane, block, max, sum);
            }
        }
    }

    /// The largest scores with those of a block, of `block` vectors from a lane on.
    ///
    /// # Safety
    /// The processor has the set of `S`, and lane + block S::LANES <= W.
    #[inline(always)]
    unsafe fn max_with<S: Simd>(&self, scores: &[Row<W>], lane: usize, block: usize) -> [S::V; 4] {
        // SAFETY: the lanes are inside a row, by the caller's promise.
        unsafe {
            let mut max = [S::splat(0.0); 4];
            for (j, max) in max.iter_mut().enumerate().take(block) {
                *max = S::load(self.max.0.as_ptr().add(lane + j * S::LANES));
            }
            for row in scores {
                for (j, max) in max.iter_mut().enumerate().take(block) {
                    *max = S::max(*max, S::load(row.0.as_ptr().add(lane + j * S::LANES)));
                }
            }
            max
        }
    }

    /// Takes the new maxima and the block's sums by them, of `block` vectors from a lane on.
    ///
    /// # Safety
    /// As for [`max_with`](Self::max_with).
    #[inline(always)]
    unsafe fn renew<S: Simd>(&mut self, lane: usize, block: usize, max: [S::V; 4], sum: [S::V; 4]) {
        for j in 0..block {
            // SAFETY: the lanes are inside a row, by the caller's promise.
            unsafe {
                let at = lane + j * S::LANES;
                // Before the first block the sum is 0, whatever it is scaled with.
                let before = self.max.0.as_mut_ptr().add(at);
                let scale = S::exp2(S::sub(S::load(before), max[j]));
                S::store(before, max[j]);
                S::store(self.scale.0.as_mut_ptr().add(at), scale);
                let to = self.sum.0.as_mut_ptr().add(at);
                S::store(to, S::fma(S::load(to), scale, sum[j]));
            }
        }
    }

    /// `1 / sum`.
    ///
    /// # Safety
    /// The processor has the set of `S`.
    #[inline(always)]
    unsafe fn inverse<S: Simd>(&self) -> Row<W> {
        let mut inverse = Row::splat(1.0);
        for lane in (0..W).step_by(S::LANES) {
            // SAFETY: lane + S::LANES <= W.
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

/// The attention of some panels of queries, scaled by `scale log2 e`, to a head: of each panel `size` rows of q and of out.
/// `scratch` is of [`scratch_rows`].
///
/// # Safety
/// The processor has the set of `S`.
#[inline(always)]
unsafe fn attend_group_with<S: Simd>(
    q: &[Row],
    head: &Head<'_>,
    size: usize,
    scratch: &mut [Row],
    out: &mut [Row],
) {
    assert!(q.len() == out.len());
    let (scores, scratch) = scratch.split_at_mut(KEYS);
    let (k, v) = numbers(scratch)[..2 * KEYS * size].split_at_mut(KEYS * size);
    out.fill(Row::splat(0.0));
    let mut softmaxes: Vec<Softmax> = q.chunks(size).map(|_| Softmax::new()).collect();
    for first in (0..head.count).step_by(KEYS) {
        let count = KEYS.min(head.count - first);
        let (k, v) = (&mut k[..count * size], &mut v[..count * size]);
        head.gather(head.k, first, size, k);
        head.gather(head.v, first, size, v);
        let scores = &mut scores[..count];
        let panels = q.chunks(size).zip(out.chunks_mut(size));
        for ((q, out), softmax) in panels.zip(&mut softmaxes) {
            // SAFETY: the set is there, by the caller's promise.
            unsafe {
                score_block::<S>(q, k, scores);
                softmax.take::<S>(scores);
                value_block::<S>(scores, v, &softmax.scale, out);
            }
        }
    }
    for (out, softmax) in out.chunks_mut(size).zip(&softmaxes) {
        // SAFETY: as above.
        scale_lanes(out, &unsafe { softmax.inverse::<S>() });
    }
}

/// Rows that [`attend_group`] needs for scores, keys and values.
fn scratch_rows(size: usize) -> usize {
    KEYS + (2 * KEYS * size).div_ceil(QUERIES)
}

/// Multiplies each lane of every row with its number.
#[inline(always)]
fn scale_lanes<const W: usize>(rows: &mut [Row<W>], by: &Row<W>) {
    for row in rows {
        for (x, by) in row.0.iter_mut().zip(by.0) {
            *x *= by;
        }
    }
}

/// Adds the softmax of a panel of queries, scaled by `scale log2 e`, over the keys of a head to `out[key][query]`;
/// `scores` is room for the same, `k` for the keys.
///
/// # Safety
/// The processor has the set of `S`.
#[inline(always)]
unsafe fn map_panel_with<S: Simd>(
    q: &[Row],
    head: &Head<'_>,
    k: &mut [Row],
    scores: &mut [Row],
    out: &mut [Row],
) {
    let k = &mut numbers(k)[..scores.len() * q.len()];
    head.gather(head.k, 0, q.len(), k);
    let mut max = Softmax::<QUERIES>::new().max;
    for (scores, k) in scores.chunks_mut(KEYS).zip(k.chunks(KEYS * q.len())) {
        // SAFETY: the set is there, by the caller's promise.
        unsafe { score_block::<S>(q, k, scores) };
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
    /// [`attend_group_with`] the set.
    ///
    /// # Safety
    /// The set is there.
    unsafe fn attend_group(q: &[Row], head: &Head<'_>, size: usize, scratch: &mut [Row], out: &mut [Row]) = attend_group_with
}

multiversion! {
    /// [`map_panel_with`] the set.
    ///
    /// # Safety
    /// The set is there.
    unsafe fn map_panel(q: &[Row], head: &Head<'_>, k: &mut [Row], scores: &mut [Row], out: &mut [Row]) = map_panel_with
}

/// Writes columns `start..` of the `rows` of an image `[N, C]` to a panel, one query to each lane, times `scale`; lanes
/// without a query are 0.
fn pack<const W: usize>(
    image: &[f32],
    c: usize,
    start: usize,
    rows: &[u32],
    scale: f32,
    panel: &mut [Row<W>],
) {
    let size = panel.len();
    if rows.len() < W {
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
    unsafe fn write<const W: usize>(
        &self,
        panel: &[Row<W>],
        c: usize,
        start: usize,
        first: usize,
        rows: &[u32],
    ) {
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
        || c == 0
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

/// What a group of queries attends to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Inside,
    Outside,
    Both,
}

/// Queries of an image that attend to the same: the work of a task, for one head.
struct Group {
    side: Side,
    /// The queries.
    rows: Vec<u32>,
}

/// The queries of an image of `n`, at most `size` to a group: those outside alone where its mask is 0, inside alone where it is 1 (or where
/// there is no mask), and the rest, which need both.
fn groups(n: usize, mask: Option<&[f32]>, size: usize) -> Vec<Group> {
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
            let groups: Vec<Group> = rows
                .chunks(size)
                .map(|rows| Group {
                    side,
                    rows: rows.to_vec(),
                })
                .collect();
            groups
        })
        .collect()
}

/// Whether the matrix unit is there and its products pay: long heads, which fill its tiles, and enough keys; less of both
/// where one product in bfloat16 will do. It depends on the shape of keys and values alone, as the results of vectors are not
/// the same to the last bit.
fn on_tiles(machine: Machine, to: Attended<'_>, heads: usize) -> Result<bool> {
    let (_, m, c) = to.k.dims3()?;
    let (size, keys) = if machine.rounds { (16, 32) } else { (64, 128) };
    Ok(cfg!(target_arch = "x86_64") && machine.amx && c / heads >= size && m >= keys)
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
        if on_tiles(machine, inside, heads)? != on_tiles(machine, outside, heads)? {
            let one = |to| attend(machine, q, to, None, heads, scale);
            return blend_rows(mask, &one(inside)?, &one(outside)?);
        }
        tensors.extend([outside.k, outside.v, mask]);
    }
    let size = c / heads;
    let scale = (scale * std::f64::consts::LOG2_E) as f32;
    let mut out = Vec::with_capacity(images * n * c);
    let to = Out(out.as_mut_ptr());
    with_all(&tensors, &[], &mut |data| {
        let work = Work {
            q: data[0],
            inside: Source::of(inside, data[1], data[2])?,
            outside: match blend {
                Some((outside, _)) => Some(Source::of(outside, data[3], data[4])?),
                None => None,
            },
            masks: blend.map(|_| data[5]),
            shape: (images, n, c),
            heads,
            out: &to,
        };
        #[cfg(target_arch = "x86_64")]
        if on_tiles(machine, inside, heads)? {
            if machine.rounds {
                tiles::run::<1>(&work, scale);
            } else {
                tiles::run::<3>(&work, scale);
            }
            return Ok(());
        }
        let group = work.panels(QUERIES, 3 * size * size_of::<Row>());
        let room = group * size + scratch_rows(size);
        work.run(
            group * QUERIES,
            size,
            room,
            |q, start, rows, head, out, scratch| {
                let (queries, scratch) = scratch.split_at_mut(out.len());
                let panels = queries.chunks_mut(size).zip(rows.chunks(QUERIES));
                panels.for_each(|(panel, rows)| pack(q, c, start, rows, scale, panel));
                // SAFETY: the set is this processor's.
                unsafe { attend_group(machine.isa, queries, head, size, scratch, out) };
            },
        );
        Ok(())
    })?;
    // SAFETY: of all images, all heads' columns of all rows were written; heads divide C, as was checked.
    unsafe { out.set_len(images * n * c) };
    Tensor::from_vec(out, (images, n, c), &Device::Cpu)
}

/// What [`attend`] has to do.
struct Work<'a> {
    q: &'a [f32],
    inside: Source<'a>,
    outside: Option<Source<'a>>,
    masks: Option<&'a [f32]>,
    /// (B, N, C) of q.
    shape: (usize, usize, usize),
    heads: usize,
    out: &'a Out,
}

impl Work<'_> {
    /// How many panels of `width` queries a task should take, of which each needs so many bytes: with more keys and values are
    /// prepared less often, but there must be work for all threads, and the panels should stay in the second cache. What a
    /// query gets is the same for any number.
    fn panels(&self, width: usize, bytes: usize) -> usize {
        /// Half of a usual second cache.
        const CACHE: usize = 1 << 20;
        let (images, n, _) = self.shape;
        let all = images * self.heads * n.div_ceil(width);
        let wanted = all / (3 * rayon::current_num_threads());
        (CACHE / bytes.max(1)).min(wanted).clamp(1, 1024 / width)
    }

    /// Has `solve` do it in tasks of at most `queries` queries and one head. It is given an image of q, where the head begins in
    /// its rows, which of them are meant, what they attend to, and room for the result and for itself: of the result a panel of
    /// `height` rows for each W queries, of which the first are the head's; and `scratch` rows.
    fn run<const W: usize>(
        &self,
        queries: usize,
        height: usize,
        scratch: usize,
        solve: impl Fn(&[f32], usize, &[u32], &Head<'_>, &mut [Row<W>], &mut [Row<W>]) + Sync,
    ) {
        let (images, n, c) = self.shape;
        if n == 0 {
            return;
        }
        let size = c / self.heads;
        let groups: Vec<Vec<Group>> = match self.masks {
            Some(masks) => masks
                .chunks(n)
                .map(|mask| groups(n, Some(mask), queries))
                .collect(),
            None => vec![groups(n, None, queries)],
        };
        // Heads in turn, so that the keys and values that are read again and again are those of one.
        let tasks: Vec<(usize, usize, &Group)> = (0..images)
            .flat_map(|image| {
                let groups = &groups[if groups.len() == 1 { 0 } else { image }];
                (0..self.heads)
                    .flat_map(move |head| groups.iter().map(move |group| (image, head, group)))
            })
            .collect();
        team::for_each(tasks.len(), |task| {
            let (image, head, group) = tasks[task];
            let start = head * size;
            let q = &self.q[image * n * c..][..n * c];
            let all = group.rows.len().div_ceil(W) * height;
            with_scratch(2 * all + scratch, |rows| {
                let (result, rows) = rows.split_at_mut(all);
                let (other, scratch) = rows.split_at_mut(all);
                let mut run = |source: &Source<'_>, out: &mut [Row<W>]| {
                    solve(
                        q,
                        start,
                        &group.rows,
                        &source.head(image, start),
                        out,
                        scratch,
                    );
                };
                match (&self.outside, group.side) {
                    (Some(outside), Side::Outside) => run(outside, result),
                    (Some(outside), Side::Both) => {
                        run(&self.inside, result);
                        run(outside, other);
                    }
                    _ => run(&self.inside, result),
                }
                let panels = result.chunks_mut(height).zip(other.chunks(height));
                for ((result, other), rows) in panels.zip(group.rows.chunks(W)) {
                    let (result, other) = (&mut result[..size], &other[..size]);
                    if let (Some(masks), Side::Both) = (self.masks, group.side) {
                        let first = if masks.len() == n { 0 } else { image * n };
                        mix(result, other, &masks[first..][..n], rows);
                    }
                    // SAFETY: the rows are below N, the panel has `size` rows and start + size <= C; an image, head and row
                    // are in one task alone.
                    unsafe { self.out.write(result, c, start, image * n, rows) };
                }
            });
        });
    }
}

/// `inside = mask inside + (1 - mask) outside` for each lane, whose query is that of `rows`.
fn mix<const W: usize>(inside: &mut [Row<W>], outside: &[Row<W>], mask: &[f32], rows: &[u32]) {
    let (mut m, mut rest) = (Row::<W>::splat(0.0), Row::<W>::splat(0.0));
    for (lane, &row) in rows.iter().enumerate() {
        m.0[lane] = mask[row as usize];
        rest.0[lane] = 1.0 - mask[row as usize];
    }
    for (inside, outside) in inside.iter_mut().zip(outside) {
        for lane in 0..W {
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
    let mut out = Vec::with_capacity(images * n * m);
    let written = Out(out.as_mut_ptr());
    with_all(&[q, k], &[], &mut |data| {
        let source = Source::of(to, data[1], data[1])?;
        let groups = groups(n, None, QUERIES);
        let tasks: Vec<(usize, &Group)> = (0..images)
            .flat_map(|image| groups.iter().map(move |group| (image, group)))
            .collect();
        team::for_each(tasks.len(), |task| {
            let (image, group) = tasks[task];
            let image_q = &data[0][image * n * c..][..n * c];
            with_scratch(
                2 * m + size + (m * size).div_ceil(QUERIES),
                |scratch: &mut [Row]| {
                    let (scores, scratch) = scratch.split_at_mut(m);
                    let (result, scratch) = scratch.split_at_mut(m);
                    let (queries, k) = scratch.split_at_mut(size);
                    result.fill(Row::splat(0.0));
                    for head in 0..heads {
                        pack(image_q, c, head * size, &group.rows, scale, queries);
                        let head = source.head(image, head * size);
                        // SAFETY: the set is this processor's.
                        unsafe { map_panel(isa, queries, &head, k, scores, result) };
                    }
                    let inverse = 1.0 / heads as f32;
                    result
                        .iter_mut()
                        .flat_map(|row| &mut row.0)
                        .for_each(|x| *x *= inverse);
                    // SAFETY: the rows are below N and are in one task alone; the panel has M rows, as a row has elements.
                    unsafe { written.write(result, m, 0, image * n, &group.rows) };
                },
            );
        });
        Ok(())
    })?;
    // SAFETY: of all images, M columns of all rows were written.
    unsafe { out.set_len(images * n * m) };
    Tensor::from_vec(out, (images, n, m), &Device::Cpu)
}

#[cfg(test)]
mod tests;
