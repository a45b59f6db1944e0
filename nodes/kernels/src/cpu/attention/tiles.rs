//! The same on the matrix unit: both products of a block of keys are made of operands that are cut exactly into three
//! bfloat16 parts, as `amx` has it, or rounded to bfloat16, what is between them by vectors.
//!
//! A panel is of 32 queries here. Keys and values are cut block by block as they are needed, for a group of panels at a
//! time, so that nothing of their size is kept. A head that is no multiple of 32 long is padded: its queries with zeros, its
//! keys with what follows them, so that what is not finite in the keys of one head may show in the one before.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_loadu_si512, _mm512_or_si512, _mm512_set1_epi32, _mm512_shuffle_i32x4,
    _mm512_srli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{Head, INNER, LINE, Row, Softmax, Work, numbers, pack, scale_lanes};
use crate::cpu::amx::{self, BLOCK, DEPTH, Rows, SIDE, TILE, Tiles};
use crate::cpu::simd::{Avx512, Simd};

/// Queries of a panel.
const QUERIES: usize = BLOCK;
/// Keys of a block.
const KEYS: usize = 64;
/// Bytes of a row of an operand: one step of the inner dimension.
const STEP: usize = 2 * DEPTH;
/// Bytes of the parts of a second operand of one step.
const fn columns(parts: usize) -> usize {
    parts * 2 * TILE
}
/// No key.
const NONE: u32 = u32::MAX;
/// Steps of the inner dimension that are summed in one go.
const RUN: usize = INNER / DEPTH;
type Panel = [Row<QUERIES>];

/// Where the parts of an operand lie in a panel's rows.
const fn rows_of(bytes: usize) -> usize {
    bytes.div_ceil(size_of::<Row<QUERIES>>())
}

/// How much room there is for a head of a size.
#[derive(Clone, Copy)]
struct Sizes {
    /// Of the head.
    size: usize,
    /// Steps of the inner dimension of scores.
    steps: usize,
    /// The size in whole blocks.
    wide: usize,
    /// Parts that numbers are cut into.
    parts: usize,
}

impl Sizes {
    fn of(size: usize, parts: usize) -> Self {
        Self {
            size,
            steps: size.div_ceil(DEPTH),
            wide: size.next_multiple_of(BLOCK),
            parts,
        }
    }

    /// Bytes of the parts of a panel of queries.
    fn queries(self) -> usize {
        self.steps * columns(self.parts)
    }

    /// Bytes of the parts of a block of keys, and of their values.
    fn keys(self) -> usize {
        self.steps * self.parts * KEYS * STEP
    }

    fn values(self) -> usize {
        KEYS / DEPTH * self.parts * self.wide * STEP
    }
}

/// Does the work, numbers cut into P parts: exactly into 3, or rounded to bfloat16 as the one.
pub(super) fn run<const P: usize>(work: &Work<'_>, scale: f32) {
    let (_, _, c) = work.shape;
    let sizes = Sizes::of(c / work.heads, P);
    let bytes = sizes.queries() + 2 * sizes.wide * size_of::<Row<QUERIES>>();
    let group = work.panels(QUERIES, bytes);
    let scratch = rows_of(group * sizes.queries())
        + rows_of(sizes.keys())
        + rows_of(sizes.values())
        + rows_of(KEYS / DEPTH * columns(P))
        + KEYS
        + BLOCK
        + sizes.wide;
    work.run(
        group * QUERIES,
        sizes.wide,
        scratch,
        |q, start, rows, head, out, scratch| {
            let tiles = Tiles::configure();
            // SAFETY: where the matrix unit is, there are AVX-512 F and BW. The head is `check`ed: keys are below M, and its
            // columns inside C.
            unsafe { attend::<P>(&tiles, q, start, rows, scale, sizes, head, out, scratch) };
        },
    );
}

/// Takes the next `rows` rows of a scratch.
fn take<'a>(scratch: &mut &'a mut Panel, rows: usize) -> &'a mut Panel {
    let (taken, rest) = std::mem::take(scratch).split_at_mut(rows);
    *scratch = rest;
    taken
}

/// The attention of some queries of an image to a head, panel by panel in `out`.
///
/// # Safety
/// The processor has AVX-512 F and BW; the columns of the head are inside of rows of q, k and v, its keys among the rows.
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn attend<const P: usize>(
    tiles: &Tiles,
    q: &[f32],
    start: usize,
    rows: &[u32],
    scale: f32,
    sizes: Sizes,
    head: &Head<'_>,
    out: &mut Panel,
    mut scratch: &mut Panel,
) {
    let Sizes {
        size, steps, wide, ..
    } = sizes;
    let panels = rows.len().div_ceil(QUERIES);
    let scratch = &mut scratch;
    let queries = take(scratch, rows_of(panels * sizes.queries()));
    let keys = take(scratch, rows_of(sizes.keys()));
    let values = take(scratch, rows_of(sizes.values()));
    let weights = take(scratch, rows_of(KEYS / DEPTH * columns(P)));
    let scores = take(scratch, KEYS);
    let sums = take(scratch, BLOCK);
    let plain = take(scratch, wide);
    let queries: *mut u8 = queries.as_mut_ptr().cast();
    let (keys, values): (*mut u8, *mut u8) = (keys.as_mut_ptr().cast(), values.as_mut_ptr().cast());
    let weights: *mut u8 = weights.as_mut_ptr().cast();
    let sums: *mut Row<QUERIES> = sums.as_mut_ptr();

    for (panel, rows) in rows.chunks(QUERIES).enumerate() {
        let plain = &mut plain[..size];
        pack(q, head.stride, start, rows, scale, plain);
        for (step, part) in plain.chunks(DEPTH).enumerate() {
            // SAFETY: a part has at most DEPTH rows of 32 numbers; step < steps of columns(P) bytes of a panel.
            unsafe {
                let to = queries.add((panel * steps + step) * columns(P));
                amx::split_columns::<P>(part.as_ptr().cast(), QUERIES, part.len(), QUERIES, to);
            }
        }
    }
    let out = &mut out[..panels * wide];
    out.fill(Row::splat(0.0));
    let mut softmaxes: Vec<Softmax<QUERIES>> = (0..panels).map(|_| Softmax::new()).collect();
    for first in (0..head.count).step_by(KEYS) {
        let count = KEYS.min(head.count - first);
        let mut chosen = [NONE; KEYS];
        for (i, key) in chosen[..count].iter_mut().enumerate() {
            *key = head.key(first + i) as u32;
        }
        let blocks = count.div_ceil(BLOCK);
        // SAFETY: `keys` has KEYS rows of each part and step, `values` those of `wide` columns for each step of KEYS keys;
        // `cut_values` needs the same of its arguments. The columns that a last step takes of the next head are multiplied with
        // zeros of the queries.
        unsafe {
            let chosen = &chosen[..blocks * BLOCK];
            amx::split_rows::<P>(
                head.k,
                head.stride,
                chosen,
                head.start,
                steps,
                keys,
                KEYS * STEP,
            );
            cut_values::<P>(head, &chosen[..count], sizes, plain, values);
        }
        for (panel, (out, softmax)) in out.chunks_mut(wide).zip(&mut softmaxes).enumerate() {
            // SAFETY: rows i * 32 .. + 32 of the keys are inside KEYS, steps first .. + run inside `steps`, of which the queries
            // of a panel have as many; scores and sums have 32 rows of 32 numbers at each. The weights have columns(P) bytes
            // for each step of 32 keys, the values as many steps and `wide` rows, of which x .. x + 32 are inside.
            unsafe {
                let queries = queries.add(panel * steps * columns(P));
                for block in 0..blocks {
                    for first in (0..steps).step_by(RUN) {
                        let operand = Rows {
                            data: keys.add((first * P * KEYS + block * BLOCK) * STEP),
                            stride: STEP,
                            part: KEYS * STEP,
                            step: P * KEYS * STEP,
                        };
                        let run = RUN.min(steps - first);
                        let own = scores.as_mut_ptr().add(block * BLOCK);
                        let to = if first == 0 { own } else { sums };
                        let columns = queries.add(first * columns(P));
                        amx::multiply::<P, P>(
                            Some(tiles),
                            operand,
                            &[0],
                            run,
                            columns,
                            0,
                            [amx::Ahead::NONE; 2],
                            to.cast(),
                        );
                        if first > 0 {
                            accumulate(own.cast(), None, sums.cast());
                        }
                    }
                }
                weigh::<P>(softmax, &scores[..count], weights);
                for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                    let operand = Rows {
                        data: values.add(block * BLOCK * STEP),
                        stride: STEP,
                        part: wide * STEP,
                        step: P * wide * STEP,
                    };
                    amx::multiply::<P, P>(
                        Some(tiles),
                        operand,
                        &[0],
                        blocks,
                        weights,
                        0,
                        [amx::Ahead::NONE; 2],
                        sums.cast(),
                    );
                    accumulate(out.as_mut_ptr().cast(), Some(&softmax.scale), sums.cast());
                }
            }
        }
    }
    for (out, softmax) in out.chunks_mut(wide).zip(&softmaxes) {
        // SAFETY: AVX-512 is there.
        scale_lanes(out, &unsafe { softmax.inverse::<Avx512>() });
    }
}

/// Takes a block of scores and cuts the weights `2^(score - max)` into the parts of a second operand, pairs of keys
/// interleaved, zeros where a step has no more keys.
///
/// # Safety
/// The processor has AVX-512 F; `to` is of `columns(P)` bytes for each [`DEPTH`] scores.
#[inline(always)]
unsafe fn weigh<const P: usize>(
    softmax: &mut Softmax<QUERIES>,
    scores: &[Row<QUERIES>],
    to: *mut u8,
) {
    // SAFETY: two vectors of 16 lanes are a row of 32; a pair has 64 bytes in each tile of each part of its step.
    unsafe {
        let max = softmax.max_with::<Avx512>(scores, 0, 2);
        let mut sum = [Avx512::splat(0.0); 4];
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        for pair in 0..scores.len().next_multiple_of(DEPTH) / 2 {
            let to = to.add(pair / SIDE * columns(P) + pair % SIDE * STEP);
            for j in 0..2 {
                let mut weights = [Avx512::splat(0.0); 2];
                for (weight, row) in weights.iter_mut().zip(scores.iter().skip(2 * pair)) {
                    let score = Avx512::load(row.0.as_ptr().add(j * LINE));
                    *weight = Avx512::exp2(Avx512::sub(score, max[j]));
                    sum[j] = Avx512::add(sum[j], *weight);
                }
                // As in `amx`: a part is the upper 16 bits, and what it leaves is exact; one alone is rounded, ties up.
                for part in 0..P {
                    let mut bits = weights.map(|x| _mm512_castps_si512(x));
                    if P == 1 {
                        bits = bits.map(|x| _mm512_add_epi32(x, _mm512_set1_epi32(0x8000)));
                    }
                    let upper = bits.map(|x| _mm512_and_si512(x, high));
                    let both = _mm512_or_si512(_mm512_srli_epi32::<16>(bits[0]), upper[1]);
                    _mm512_storeu_si512(to.add((part * 2 + j) * TILE).cast(), both);
                    for (weight, upper) in weights.iter_mut().zip(upper) {
                        *weight = Avx512::sub(*weight, _mm512_castsi512_ps(upper));
                    }
                }
            }
        }
        softmax.renew::<Avx512>(0, 2, max, sum);
    }
}

/// `out = out scale + sums` (scale 1 where there is none) of a block of 32 rows.
///
/// # Safety
/// The processor has AVX-512 F; both are of 32 rows of 32 numbers.
#[inline(always)]
unsafe fn accumulate(out: *mut f32, scale: Option<&Row<QUERIES>>, sums: *const f32) {
    for row in 0..BLOCK {
        for lane in (0..QUERIES).step_by(Avx512::LANES) {
            // SAFETY: row < 32 and lane + 16 <= 32.
            unsafe {
                let at = row * QUERIES + lane;
                let (before, sum) = (Avx512::load(out.add(at)), Avx512::load(sums.add(at)));
                let after = match scale {
                    Some(scale) => {
                        Avx512::fma(before, Avx512::load(scale.0.as_ptr().add(lane)), sum)
                    }
                    None => Avx512::add(before, sum),
                };
                Avx512::store(out.add(at), after);
            }
        }
    }
}

/// Cuts the values of some keys into parts, transposed: for each 32 keys and part, `wide` rows of as many keys; zeros where
/// there is no key.
///
/// # Safety
/// The processor has AVX-512 F and BW; the keys are rows of v, the head's columns inside; `plain` is of `wide` rows, `to` of
/// [`Sizes::values`] bytes.
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
unsafe fn cut_values<const P: usize>(
    head: &Head<'_>,
    keys: &[u32],
    sizes: Sizes,
    plain: &mut Panel,
    to: *mut u8,
) {
    let Sizes { size, wide, .. } = sizes;
    let plain = numbers(&mut plain[..wide]);
    let mut columns = [Row::<LINE>::splat(0.0); 3 * 2 * TILE / STEP];
    for (step, keys) in keys.chunks(DEPTH).enumerate() {
        for (plain, &key) in plain.chunks_exact_mut(wide).zip(keys) {
            let row = &head.v[key as usize * head.stride + head.start..][..size];
            plain[..size].copy_from_slice(row);
        }
        for x in (0..size).step_by(BLOCK) {
            let count = BLOCK.min(size - x);
            // SAFETY: keys.len() <= 32 rows of `wide` numbers, of which x .. x + count are inside; `columns` is columns(P) bytes.
            // A tile of it is 16 rows of 64 bytes, and so is what is written: rows x + 16 half .. + 16 of `wide`.
            unsafe {
                let columns = columns.as_mut_ptr().cast::<u8>();
                amx::split_columns::<P>(plain.as_ptr().add(x), wide, keys.len(), count, columns);
                for part in 0..P {
                    for half in 0..2 {
                        let tile = columns.add((part * 2 + half) * TILE);
                        let row = (step * P + part) * wide + x + half * SIDE;
                        transpose(tile, to.add(row * STEP));
                    }
                }
            }
        }
    }
}

/// Transposes 16 x 16 numbers of 32 bits.
///
/// # Safety
/// The processor has AVX-512 F; both are of 1024 bytes.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn transpose(from: *const u8, to: *mut u8) {
    // SAFETY: 16 rows of 64 bytes.
    let a: [__m512i; 16] =
        std::array::from_fn(|i| unsafe { _mm512_loadu_si512(from.add(i * STEP).cast()) });
    // In quarters of four numbers: 4 x 4 transposed inside of each, then the quarters among themselves.
    let mut b = a;
    for i in (0..16).step_by(4) {
        let (lo0, hi0) = (
            _mm512_unpacklo_epi32(a[i], a[i + 1]),
            _mm512_unpackhi_epi32(a[i], a[i + 1]),
        );
        let (lo1, hi1) = (
            _mm512_unpacklo_epi32(a[i + 2], a[i + 3]),
            _mm512_unpackhi_epi32(a[i + 2], a[i + 3]),
        );
        b[i] = _mm512_unpacklo_epi64(lo0, lo1);
        b[i + 1] = _mm512_unpackhi_epi64(lo0, lo1);
        b[i + 2] = _mm512_unpacklo_epi64(hi0, hi1);
        b[i + 3] = _mm512_unpackhi_epi64(hi0, hi1);
    }
    for i in 0..4 {
        // Quarter q of b[i + 4 r]: column 4 q + i of rows 4 r .. 4 r + 4.
        let even = |a, b| _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        let odd = |a, b| _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        let (e0, e1) = (even(b[i], b[i + 4]), even(b[i + 8], b[i + 12]));
        let (o0, o1) = (odd(b[i], b[i + 4]), odd(b[i + 8], b[i + 12]));
        for (q, column) in [even(e0, e1), even(o0, o1), odd(e0, e1), odd(o0, o1)]
            .into_iter()
            .enumerate()
        {
            // SAFETY: 4 q + i < 16.
            unsafe { _mm512_storeu_si512(to.add((4 * q + i) * STEP).cast(), column) };
        }
    }
}
