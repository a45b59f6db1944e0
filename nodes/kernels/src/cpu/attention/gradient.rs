//! The gradient of attention in blocks, as its way forth (Dao et al. 2022, appendix B.2, with lanes of queries).
//!
//! A task takes some panels of queries of one head. It goes through the keys twice: first for each query's maximum and sum, then,
//! block by block, for the weights p again, the gradients of the weights, and what they give to queries, keys and values. What a
//! block gives to its keys and values is summed over the task's queries; the tasks' sums are added in order. Tasks are cut by
//! the shapes alone.

use candle_core::{Device, Result, Tensor, bail};

use super::{
    Head, KEYS, LINE, Out, QUERIES, Row, Softmax, numbers, pack, score_block, value_block,
    with_all, with_scratch,
};
use crate::AttentionGradients;
use crate::cpu::buffers::{Shared, Unfilled, written};
use crate::cpu::matrix::{Strided, block};
use crate::cpu::simd::{Isa, Simd, multiversion};
use crate::cpu::team;

/// Bytes that the panels of a task may fill: half of a usual second cache.
const PANELS: usize = 1 << 20;

/// Queries of a task, whole panels, for heads of so many channels.
fn queries(size: usize) -> usize {
    // Queries and the gradients of their results, each in lanes and in rows, and the gradients of the queries.
    let panel = 5 * size * size_of::<Row>();
    (PANELS / panel.max(1)).clamp(1, 16) * QUERIES
}

/// What a task is given.
struct Task<'a> {
    /// An image each, `[N, C]`.
    grad: &'a [f32],
    y: &'a [f32],
    q: &'a [f32],
    head: Head<'a>,
    /// Channels of a head.
    size: usize,
    /// The queries.
    rows: &'a [u32],
    scale: f64,
    causal: bool,
}

/// A panel of queries and what goes with it.
struct Panel<'a> {
    /// Queries, times `scale log2 e`, and the gradients of their results, in lanes: `[d][64]`.
    q: &'a mut [Row],
    grad: &'a mut [Row],
    /// The gradients of the queries.
    of_q: &'a mut [Row],
    /// Queries and the gradients of their results, in rows: `[64][d]`, rows of whole vectors.
    q_rows: &'a mut [f32],
    grad_rows: &'a mut [f32],
    softmax: Softmax,
    inverse: Row,
    /// `sum_j p_j dp_j` (D of Dao et al.), which is the product of a query's result with its gradient.
    delta: Row,
    /// The number of its first query.
    first: usize,
}

impl Task<'_> {
    /// Channels in whole vectors of any set.
    fn wide(&self) -> usize {
        self.size.next_multiple_of(LINE)
    }

    /// Rows of scratch.
    fn room(&self) -> usize {
        let panels = self.rows.len().div_ceil(QUERIES);
        let blocks = 2 * KEYS * (self.size + self.wide());
        panels * (3 * self.size + 2 * self.wide()) + 2 * KEYS + blocks.div_ceil(QUERIES)
    }
}

/// Writes columns of the `rows` of an image to rows of `wide` numbers, zeros behind them.
fn gather_rows(
    image: &[f32],
    (c, start, size): (usize, usize, usize),
    rows: &[u32],
    to: &mut [f32],
    wide: usize,
) {
    let mut to = to.chunks_exact_mut(wide);
    for (&row, to) in rows.iter().zip(&mut to) {
        to[..size].copy_from_slice(&image[row as usize * c + start..][..size]);
        to[size..].fill(0.0);
    }
    to.for_each(|to| to.fill(0.0));
}

/// Masks the keys from `first` on that come behind a query of a panel.
fn mask_causal(scores: &mut [Row], first: usize, panel: usize, with: f32) {
    for (key, row) in scores.iter_mut().enumerate() {
        let seen = (first + key).saturating_sub(panel).min(QUERIES);
        row.0[..seen].fill(with);
    }
}

/// What a task gives: `write` is called with queries and the panel of their gradients; its part of the gradients of keys and of
/// values, `[M][d]` each, is written.
///
/// # Safety
/// The processor has the set of `S`. `scratch` is of [`Task::room`].
#[inline(always)]
unsafe fn gradients_with<S: Simd>(
    task: &Task<'_>,
    scratch: &mut [Row],
    of_keys: &mut [f32],
    of_values: &mut [f32],
    write: &mut dyn FnMut(&[u32], &[Row]),
) {
    let &Task { size, head, .. } = task;
    let wide = size.next_multiple_of(S::LANES);
    let count = task.rows.len().div_ceil(QUERIES);
    let (lanes, scratch) = scratch.split_at_mut(3 * count * size);
    let (in_rows, scratch) = scratch.split_at_mut(2 * count * task.wide());
    let (scores, scratch) = scratch.split_at_mut(KEYS);
    let (dp, scratch) = scratch.split_at_mut(KEYS);
    let (k, scratch) = numbers(scratch).split_at_mut(KEYS * size);
    let (v, scratch) = scratch.split_at_mut(KEYS * size);
    let (of_k, scratch) = scratch.split_at_mut(KEYS * wide);
    let of_v = &mut scratch[..KEYS * wide];
    let log2 = (task.scale * std::f64::consts::LOG2_E) as f32;
    let at = (head.stride, head.start, size);
    let mut panels: Vec<Panel<'_>> = Vec::with_capacity(count);
    let (lanes, in_rows) = (
        lanes.chunks_exact_mut(3 * size),
        numbers(in_rows).chunks_exact_mut(2 * QUERIES * task.wide()),
    );
    for ((rows, lanes), in_rows) in task.rows.chunks(QUERIES).zip(lanes).zip(in_rows) {
        let (q, lanes) = lanes.split_at_mut(size);
        let (grad, of_q) = lanes.split_at_mut(size);
        let (q_rows, grad_rows) = in_rows.split_at_mut(QUERIES * task.wide());
        let (q_rows, grad_rows) = (
            &mut q_rows[..QUERIES * wide],
            &mut grad_rows[..QUERIES * wide],
        );
        pack(task.q, head.stride, head.start, rows, log2, q);
        pack(task.grad, head.stride, head.start, rows, 1.0, grad);
        // Until it is needed, the room of the queries' gradients holds their results.
        pack(task.y, head.stride, head.start, rows, 1.0, of_q);
        gather_rows(task.q, at, rows, q_rows, wide);
        gather_rows(task.grad, at, rows, grad_rows, wide);
        let mut delta = Row::splat(0.0);
        for (y, grad) in of_q.iter().zip(grad.iter()) {
            for lane in (0..QUERIES).step_by(S::LANES) {
                // SAFETY: lane + S::LANES <= QUERIES; the set is there.
                unsafe {
                    let to = delta.0.as_mut_ptr().add(lane);
                    let (y, grad) = (
                        S::load(y.0.as_ptr().add(lane)),
                        S::load(grad.0.as_ptr().add(lane)),
                    );
                    S::store(to, S::fma(y, grad, S::load(to)));
                }
            }
        }
        of_q.fill(Row::splat(0.0));
        panels.push(Panel {
            q,
            grad,
            of_q,
            q_rows,
            grad_rows,
            softmax: Softmax::new(),
            inverse: Row::splat(0.0),
            delta,
            first: rows[0] as usize,
        });
    }
    // Of causal attention, blocks of keys behind all queries of a panel are left out.
    let sees = |panel: &Panel<'_>, first: usize| !task.causal || first < panel.first + QUERIES;
    let blocks = (0..head.count)
        .step_by(KEYS)
        .map(|first| (first, KEYS.min(head.count - first)));
    for (first, count) in blocks.clone() {
        let k = &mut k[..count * size];
        head.gather(head.k, first, size, k);
        let scores = &mut scores[..count];
        for panel in panels.iter_mut().filter(|panel| sees(panel, first)) {
            // SAFETY: the set is there.
            unsafe {
                score_block::<S>(panel.q, k, scores);
                if task.causal {
                    mask_causal(scores, first, panel.first, f32::NEG_INFINITY);
                }
                panel.softmax.take::<S>(scores);
            }
        }
    }
    for panel in &mut panels {
        // SAFETY: the set is there.
        panel.inverse = unsafe { panel.softmax.inverse::<S>() };
    }
    for (first, count) in blocks {
        let (k, v) = (&mut k[..count * size], &mut v[..count * size]);
        head.gather(head.k, first, size, k);
        head.gather(head.v, first, size, v);
        let (of_k, of_v) = (&mut of_k[..count * wide], &mut of_v[..count * wide]);
        of_k.fill(0.0);
        of_v.fill(0.0);
        let (scores, dp) = (&mut scores[..count], &mut dp[..count]);
        for panel in panels.iter_mut().filter(|panel| sees(panel, first)) {
            // SAFETY: the set is there; scores are `count` rows of 64, the rows of the panel 64 of `wide` numbers, whole vectors, and
            // the block's gradients `count` of these.
            unsafe {
                score_block::<S>(panel.q, k, scores);
                probabilities::<S>(scores, panel);
                if task.causal {
                    mask_causal(scores, first, panel.first, 0.0);
                }
                accumulate::<S>(scores, panel.grad_rows, wide, of_v);
                score_block::<S>(panel.grad, v, dp);
                softmax_backward::<S>(scores, dp, panel, task.scale as f32);
                accumulate::<S>(dp, panel.q_rows, wide, of_k);
                value_block::<S>(dp, k, &Row::splat(1.0), panel.of_q);
            }
        }
        for (to, from) in [(&mut *of_keys, of_k), (&mut *of_values, of_v)] {
            let to = to[first * size..][..count * size].chunks_exact_mut(size);
            for (to, from) in to.zip(from.chunks_exact(wide)) {
                to.copy_from_slice(&from[..size]);
            }
        }
    }
    for (panel, rows) in panels.iter().zip(task.rows.chunks(QUERIES)) {
        write(rows, panel.of_q);
    }
}

/// Scores to the weights of the softmax.
///
/// # Safety
/// The processor has the set of `S`.
#[inline(always)]
unsafe fn probabilities<S: Simd>(scores: &mut [Row], panel: &Panel<'_>) {
    for lane in (0..QUERIES).step_by(S::LANES) {
        // SAFETY: lane + S::LANES <= QUERIES, and every pointer is to a row.
        unsafe {
            let max = S::load(panel.softmax.max.0.as_ptr().add(lane));
            let inverse = S::load(panel.inverse.0.as_ptr().add(lane));
            for row in &mut *scores {
                let to = row.0.as_mut_ptr().add(lane);
                S::store(to, S::mul(S::exp2(S::sub(S::load(to), max)), inverse));
            }
        }
    }
}

/// The gradients dp of the weights p become those of the scores, `p (dp - delta) scale`.
///
/// # Safety
/// The processor has the set of `S`.
#[inline(always)]
unsafe fn softmax_backward<S: Simd>(
    weights: &[Row],
    dp: &mut [Row],
    panel: &Panel<'_>,
    scale: f32,
) {
    for lane in (0..QUERIES).step_by(S::LANES) {
        // SAFETY: lane + S::LANES <= QUERIES, and every pointer is to a row.
        unsafe {
            let delta = S::load(panel.delta.0.as_ptr().add(lane));
            for (p, row) in weights.iter().zip(&mut *dp) {
                let to = row.0.as_mut_ptr().add(lane);
                let p = S::load(p.0.as_ptr().add(lane));
                let of = S::mul(p, S::sub(S::load(to), delta));
                S::store(to, S::mul(of, S::splat(scale)));
            }
        }
    }
}

/// `to[key] += sum_query by[key][query] rows[query]`, rows of `wide` numbers.
///
/// # Safety
/// The processor has the set of `S`, and `wide` is a multiple of its lanes.
#[inline(always)]
unsafe fn accumulate<S: Simd>(by: &[Row], rows: &[f32], wide: usize, to: &mut [f32]) {
    assert!(rows.len() == QUERIES * wide && to.len() == by.len() * wide);
    let a = Strided {
        at: by.as_ptr().cast(),
        row: QUERIES,
        term: 1,
    };
    // SAFETY: the rows are as long as asserted; the set is the caller's promise.
    unsafe {
        let size = (by.len(), wide, QUERIES);
        block(
            S::ISA,
            size,
            a,
            (rows.as_ptr(), wide),
            true,
            (to.as_mut_ptr(), wide),
        );
    }
}

multiversion! {
    /// [`gradients_with`] the set.
    ///
    /// # Safety
    /// As for it.
    unsafe fn gradients(task: &Task<'_>, scratch: &mut [Row], of_keys: &mut [f32], of_values: &mut [f32], write: &mut dyn FnMut(&[u32], &[Row])) = gradients_with
}

/// The gradients of [attention](super::attend) to all keys, or, if `causal`, of each query to the keys up to its own.
pub(in crate::cpu) fn backward(
    isa: Isa,
    (grad, y): (&Tensor, &Tensor),
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    heads: usize,
    scale: f64,
    causal: bool,
) -> Result<AttentionGradients> {
    let (images, n, c) = q.dims3()?;
    let (sources, m, _) = k.dims3()?;
    let fits = heads > 0
        && c > 0
        && c.is_multiple_of(heads)
        && (sources == images || sources == 1)
        && k.dim(2)? == c
        && v.dims() == k.dims();
    if !fits || n * m * images == 0 || grad.dims() != q.dims() || y.dims() != q.dims() {
        bail!(
            "the gradient {:?} of attention {:?} of {:?} to {:?}",
            grad.dims(),
            y.dims(),
            q.dims(),
            k.dims()
        );
    }
    let size = c / heads;
    let rows: Vec<u32> = (0..n as u32).collect();
    let parts: Vec<&[u32]> = rows.chunks(queries(size)).collect();
    let tasks = images * heads * parts.len();
    // Of each task its part of the gradients of its head's keys and values.
    let mut sums = vec![0f32; tasks * 2 * m * size];
    let source_of = |image: usize| if sources == 1 { 0 } else { image };
    let of_q = with_all(&[grad, y, q, k, v], &[], &mut |data| {
        let mut out = Vec::with_capacity(images * n * c);
        let to = Out(out.as_mut_ptr());
        team::for_each_chunk(&mut sums, 2 * m * size, |i, sums| {
            let (image, head, part) = (
                i / parts.len() / heads,
                i / parts.len() % heads,
                i % parts.len(),
            );
            let own = |x: usize| &data[x][image * n * c..][..n * c];
            let of = |x: usize| &data[x][source_of(image) * m * c..][..m * c];
            let task = Task {
                grad: own(0),
                y: own(1),
                q: own(2),
                head: Head {
                    k: of(3),
                    v: of(4),
                    keys: None,
                    count: m,
                    stride: c,
                    start: head * size,
                },
                size,
                rows: parts[part],
                scale,
                causal,
            };
            let (of_keys, of_values) = sums.split_at_mut(m * size);
            with_scratch(task.room(), |scratch| {
                let mut write = |rows: &[u32], panel: &[Row]| {
                    // SAFETY: the rows are below N, the panel has `size` rows and the head's columns are inside C; an image, head
                    // and row are in one task alone.
                    unsafe { to.write(panel, c, head * size, image * n, rows) };
                };
                // SAFETY: the set is this processor's, and there is room.
                unsafe { gradients(isa, &task, scratch, of_keys, of_values, &mut write) };
            });
        });
        // SAFETY: of all images, all heads' columns of all rows were written; heads divide C.
        unsafe { out.set_len(images * n * c) };
        Tensor::from_vec(out, (images, n, c), &Device::Cpu)
    })?;
    let joined = |which: usize| -> Result<Tensor> {
        let fill = |out: Unfilled<'_>| {
            let out = Shared::of(out);
            // Of an image's keys all images' tasks, where they share it.
            let many = images / sources;
            team::for_each(sources * heads, |i| {
                let (source, head) = (i / heads, i % heads);
                let of = |image: usize, part| {
                    let task = (image * heads + head) * parts.len() + part;
                    &sums[(2 * task + which) * m * size..][..m * size]
                };
                let mut parts = (source * many..(source + 1) * many)
                    .flat_map(|image| (0..parts.len()).map(move |part| of(image, part)));
                let first = parts.next().unwrap_or_default();
                let rest: Vec<&[f32]> = parts.collect();
                for (key, first) in first.chunks_exact(size).enumerate() {
                    // SAFETY: the head's columns of a row, which are this task's alone.
                    let to = unsafe { out.part((source * m + key) * c + head * size, size) };
                    for (i, (to, first)) in to.iter_mut().zip(first).enumerate() {
                        let at = key * size + i;
                        to.write(rest.iter().fold(*first, |sum, part| sum + part[at]));
                    }
                }
            });
            Ok(())
        };
        // SAFETY: of all sources, all heads' columns of all rows are written; heads divide C.
        let (out, ()) = unsafe { written(sources * m * c, fill)? };
        Tensor::from_vec(out, (sources, m, c), &Device::Cpu)
    };
    Ok(AttentionGradients {
        q: of_q,
        k: joined(0)?,
        v: joined(1)?,
    })
}
