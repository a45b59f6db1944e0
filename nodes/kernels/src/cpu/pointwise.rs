//! Norms and what is done number by number, each in as few passes over memory as it takes.

use super::buffers::{Shared, Unfilled};
use super::simd::{Isa, SUM_LANES, Simd, erf, multiversion, silu};
use super::team;

/// Pixels whose sums are taken in float32 before they go to float64; their rows of 64 channels stay in the L1 cache.
const CHUNK: usize = 32;
/// Pixels of a task of the sums of a group norm: the order in which float64 sums are added is fixed by it.
const SUM_TASK: usize = 16 * CHUNK;
/// Numbers that a task of the pointwise passes handles, about.
const TASK: usize = 1 << 13;
/// Numbers of an image that one task may normalise alone: they stay in its core's cache.
const SMALL: usize = 1 << 16;

/// Adds to `sums[c]` (of x) and `squares[c]` (of x^2) what rows of C channels give.
#[inline(always)]
unsafe fn channel_sums_generic<S: Simd>(
    x: &[f32],
    channels: usize,
    sums: &mut [f64],
    squares: &mut [f64],
) {
    for rows in x.chunks(CHUNK * channels) {
        let n = rows.len() / channels;
        let inverse = 1.0 / n as f32;
        let mut add = |c: usize, sum: f32, centred: f32| {
            // Squares around the chunk's own mean lose nothing to cancellation; the rest is exact enough in float64.
            let sum = f64::from(sum);
            sums[c] += sum;
            squares[c] += f64::from(centred) + sum * sum / n as f64;
        };
        let mut c = 0;
        while c + S::LANES <= channels {
            let mut lanes = [[0f32; SUM_LANES]; 2];
            // SAFETY: rows have `channels` numbers, of which c .. c + LANES are read; lanes are 16, LANES at most that.
            unsafe {
                let from = rows.as_ptr().add(c);
                let mut sum = S::splat(0.0);
                for i in 0..n {
                    sum = S::add(sum, S::load(from.add(i * channels)));
                }
                let mean = S::mul(sum, S::splat(inverse));
                let mut centred = S::splat(0.0);
                for i in 0..n {
                    let d = S::sub(S::load(from.add(i * channels)), mean);
                    centred = S::fma(d, d, centred);
                }
                S::store(lanes[0].as_mut_ptr(), sum);
                S::store(lanes[1].as_mut_ptr(), centred);
            }
            let pairs = lanes[0].iter().zip(&lanes[1]).take(S::LANES);
            for (i, (&sum, &centred)) in pairs.enumerate() {
                add(c + i, sum, centred);
            }
            c += S::LANES;
        }
        while c < channels {
            let column = || rows.iter().skip(c).step_by(channels);
            let sum: f32 = column().sum();
            let mean = sum * inverse;
            let centred = column().fold(0.0, |s: f32, x| {
                let d = x - mean;
                d.mul_add(d, s) // as vectors that fuse do, so that it does not matter where the last one ends
            });
            add(c, sum, centred);
            c += 1;
        }
    }
}

multiversion! {
    /// Adds to `sums[c]` and `squares[c]` what rows of C channels give.
    unsafe fn channel_sums(x: &[f32], channels: usize, sums: &mut [f64], squares: &mut [f64]) = channel_sums_generic
}

// What is done to one vector is functions, not closures: a closure that the compiler does not inline is compiled without
// the instruction set, and then every operation in it is a call.

/// What is left of a slice from `c`, fewer numbers than a vector has, and zeros.
#[inline(always)]
unsafe fn tail<S: Simd>(from: &[f32], c: usize) -> S::V {
    let mut lanes = [0f32; SUM_LANES];
    lanes[..from.len() - c].copy_from_slice(&from[c..]);
    // SAFETY: 16 lanes, as many as a vector has at most.
    unsafe { S::load(lanes.as_ptr()) }
}

#[inline(always)]
unsafe fn affine_one<S: Simd>(x: S::V, scale: S::V, shift: S::V, activate: bool) -> S::V {
    // SAFETY: no pointers; the set is there, by the caller's promise.
    unsafe {
        let y = S::fma(x, scale, shift);
        if activate { silu::<S>(y) } else { y }
    }
}

/// `h gelu(g)`, GELU by erf.
#[inline(always)]
pub(super) unsafe fn geglu_one<S: Simd>(h: S::V, g: S::V) -> S::V {
    // SAFETY: no pointers; the set is there, by the caller's promise.
    unsafe {
        let e = erf::<S>(S::mul(g, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
        let gelu = S::mul(S::mul(S::splat(0.5), g), S::add(S::splat(1.0), e));
        S::mul(h, gelu)
    }
}

/// `out = x scale[c] + shift[c]`, then SiLU if asked for, over rows of C channels.
#[inline(always)]
unsafe fn affine_generic<S: Simd>(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    activate: bool,
    out: Unfilled<'_>,
) {
    let channels = scale.len();
    for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        let mut c = 0;
        while c < channels {
            // SAFETY: a full vector is inside its slice, all four being `channels` long; the rest goes through buffers
            // of 16 lanes.
            unsafe {
                if c + S::LANES <= channels {
                    let y = affine_one::<S>(
                        S::load(x.as_ptr().add(c)),
                        S::load(scale.as_ptr().add(c)),
                        S::load(shift.as_ptr().add(c)),
                        activate,
                    );
                    S::store(out.as_mut_ptr().add(c).cast(), y);
                } else {
                    let y = affine_one::<S>(
                        tail::<S>(x, c),
                        tail::<S>(scale, c),
                        tail::<S>(shift, c),
                        activate,
                    );
                    let mut lanes = [0f32; SUM_LANES];
                    S::store(lanes.as_mut_ptr(), y);
                    for (to, &y) in out[c..].iter_mut().zip(&lanes) {
                        to.write(y);
                    }
                }
            }
            c += S::LANES;
        }
    }
}

multiversion! {
    /// `out = x scale[c] + shift[c]`, then SiLU if asked for, over rows of C channels; all slices whole rows.
    unsafe fn affine(x: &[f32], scale: &[f32], shift: &[f32], activate: bool, out: Unfilled<'_>) = affine_generic
}

/// Group normalisation of `[images, pixels, C]`.
#[allow(clippy::too_many_arguments)]
pub(super) fn group_norm(
    isa: Isa,
    x: &[f32],
    pixels: usize,
    groups: usize,
    eps: f64,
    weight: &[f32],
    bias: &[f32],
    activate: bool,
    out: Unfilled<'_>,
) {
    let channels = weight.len();
    let image = pixels * channels;
    // Of every part of every image, the sums and then the squares of all channels.
    let parts = pixels.div_ceil(SUM_TASK);
    let images = x.len() / image;
    let sum = |i: usize, sums: &mut [f64]| {
        let x = &x[i / parts * image..][..image];
        let own = i % parts * SUM_TASK * channels;
        let x = &x[own..image.min(own + SUM_TASK * channels)];
        let (sums, squares) = sums.split_at_mut(channels);
        // SAFETY: x is whole rows of `channels`; `isa` is there.
        unsafe { channel_sums(isa, x, channels, sums, squares) };
    };
    let to_terms = |sums: &[f64], terms: &mut [f32]| {
        group_terms(sums, pixels, groups, eps, weight, bias, terms);
    };
    let rows = (TASK / channels).clamp(1, pixels);
    let chunks = pixels.div_ceil(rows);
    let out = Shared::of(out);
    // Chunk i of all, by its image's terms.
    let apply = |i: usize, terms: &[f32]| {
        let (scale, shift) = terms.split_at(channels);
        let first = i % chunks * rows;
        let own = i / chunks * image + first * channels;
        let len = rows.min(pixels - first) * channels;
        // SAFETY: whole rows of `channels`, as are scale and shift, of an image of x and `out`, which are as long, and
        // of no other task; `isa` is there.
        unsafe {
            affine(
                isa,
                &x[own..own + len],
                scale,
                shift,
                activate,
                out.part(own, len),
            )
        };
    };
    // Small images are one task each, where there are enough of them: it finds what it summed in its cache.
    if image <= SMALL && images.is_multiple_of(rayon::current_num_threads()) {
        team::for_each(images, |i| {
            let mut sums = vec![0f64; parts * 2 * channels];
            for (part, sums) in sums.chunks_mut(2 * channels).enumerate() {
                sum(i * parts + part, sums);
            }
            let mut terms = vec![0f32; 2 * channels];
            to_terms(&sums, &mut terms);
            (0..chunks).for_each(|chunk| apply(i * chunks + chunk, &terms));
        });
        return;
    }
    let mut sums = vec![0f64; images * parts * 2 * channels];
    team::for_each_chunk(&mut sums, 2 * channels, sum);
    // Of every image, the scales and then the shifts of all channels.
    let mut terms = vec![0f32; images * 2 * channels];
    for (sums, terms) in sums
        .chunks(parts * 2 * channels)
        .zip(terms.chunks_mut(2 * channels))
    {
        to_terms(sums, terms);
    }
    team::for_each(images * chunks, |i| {
        apply(i, &terms[i / chunks * 2 * channels..][..2 * channels]);
    });
}

/// The scales and then the shifts of all channels of an image, from the sums and squares of its parts.
fn group_terms(
    sums: &[f64],
    pixels: usize,
    groups: usize,
    eps: f64,
    weight: &[f32],
    bias: &[f32],
    terms: &mut [f32],
) {
    let channels = weight.len();
    let per_group = channels / groups;
    let (scale, shift) = terms.split_at_mut(channels);
    for group in 0..groups {
        let own = group * per_group..(group + 1) * per_group;
        let (mut sum, mut square) = (0.0, 0.0);
        for part in sums.chunks(2 * channels) {
            let (sums, squares) = part.split_at(channels);
            sum += sums[own.clone()].iter().sum::<f64>();
            square += squares[own.clone()].iter().sum::<f64>();
        }
        let n = (per_group * pixels) as f64;
        let mean = sum / n;
        let variance = (square / n - mean * mean).max(0.0);
        let inverse = 1.0 / (variance + eps).sqrt();
        for c in own {
            scale[c] = (f64::from(weight[c]) * inverse) as f32;
            shift[c] = (f64::from(bias[c]) - mean * f64::from(weight[c]) * inverse) as f32;
        }
    }
}

/// `out [rows, A + B]`: rows of a `[rows, A]`, each followed by that of b `[rows, B]`.
pub(super) fn concat(a: &[f32], b: &[f32], widths: (usize, usize), out: Unfilled<'_>) {
    let width = widths.0 + widths.1;
    let rows = (TASK / width).max(1);
    team::for_each_chunk(out, rows * width, |i, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let row = i * rows + r;
            let (left, right) = out.split_at_mut(widths.0);
            for (out, x) in left.iter_mut().zip(&a[row * widths.0..][..widths.0]) {
                out.write(*x);
            }
            for (out, x) in right.iter_mut().zip(&b[row * widths.1..][..widths.1]) {
                out.write(*x);
            }
        }
    });
}

/// The sum of `x - shift`, or of its squares, over a row, in [`SUM_LANES`] lanes that are added up in one order on every
/// instruction set.
#[inline(always)]
unsafe fn row_sum<S: Simd, const SQUARES: bool>(x: &[f32], shift: f32) -> f32 {
    let mut lanes = [0f32; SUM_LANES];
    let whole = x.len() / SUM_LANES * SUM_LANES;
    let mut v = 0;
    while v < SUM_LANES {
        // SAFETY: reads LANES numbers from v < 16 in each whole piece of 16, as LANES divides 16; writes them to 16 lanes.
        unsafe {
            let shift = S::splat(shift);
            let mut sum = S::splat(0.0);
            let mut i = v;
            while i < whole {
                let d = S::sub(S::load(x.as_ptr().add(i)), shift);
                sum = if SQUARES {
                    S::fma(d, d, sum)
                } else {
                    S::add(d, sum)
                };
                i += SUM_LANES;
            }
            S::store(lanes.as_mut_ptr().add(v), sum);
        }
        v += S::LANES;
    }
    for (lane, &x) in lanes.iter_mut().zip(&x[whole..]) {
        let d = x - shift;
        *lane += if SQUARES { d * d } else { d };
    }
    let mut half = SUM_LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
unsafe fn layer_norm_generic<S: Simd>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: Unfilled<'_>,
) {
    let width = weight.len();
    let inverse_width = 1.0 / width as f32;
    let mut scale = vec![0f32; width];
    let mut shift = vec![0f32; width];
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        // SAFETY: the set is there, by the caller's promise; `affine` takes slices of `width` numbers each.
        unsafe {
            let mean = row_sum::<S, false>(x, 0.0) * inverse_width;
            let squares = row_sum::<S, true>(x, mean);
            let inverse = 1.0 / (squares * inverse_width + eps).sqrt();
            for c in 0..width {
                scale[c] = weight[c] * inverse;
                shift[c] = bias[c] - mean * scale[c];
            }
            affine_generic::<S>(x, &scale, &shift, false, out);
        }
    }
}

multiversion! {
    /// Layer normalisation of rows as long as `weight` and `bias`.
    unsafe fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: Unfilled<'_>) = layer_norm_generic
}

/// Layer normalisation of rows as long as `weight` and `bias`.
pub(super) fn layer_norm(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    out: Unfilled<'_>,
) {
    let rows = (TASK / weight.len()).max(1) * weight.len();
    team::for_each_chunk(out, rows, |i, out| {
        let x = &x[i * rows..][..out.len()];
        // SAFETY: whole rows of weight.len() = bias.len(); `isa` is there.
        unsafe { layer_norm_rows(isa, x, weight, bias, eps as f32, out) };
    });
}

#[inline(always)]
unsafe fn geglu_generic<S: Simd>(x: &[f32], half: usize, out: Unfilled<'_>) {
    for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(half)) {
        let (h, g) = x.split_at(half);
        let mut c = 0;
        while c < half {
            // SAFETY: a full vector is inside h, g and out, `half` long each; the rest goes through buffers of 16 lanes.
            unsafe {
                if c + S::LANES <= half {
                    let y = geglu_one::<S>(S::load(h.as_ptr().add(c)), S::load(g.as_ptr().add(c)));
                    S::store(out.as_mut_ptr().add(c).cast(), y);
                } else {
                    let y = geglu_one::<S>(tail::<S>(h, c), tail::<S>(g, c));
                    let mut lanes = [0f32; SUM_LANES];
                    S::store(lanes.as_mut_ptr(), y);
                    for (to, &y) in out[c..].iter_mut().zip(&lanes) {
                        to.write(y);
                    }
                }
            }
            c += S::LANES;
        }
    }
}

multiversion! {
    /// `h gelu(g)` of rows `[h, g]` of twice `half` numbers.
    unsafe fn geglu_rows(x: &[f32], half: usize, out: Unfilled<'_>) = geglu_generic
}

/// `h gelu(g)` of rows `[h, g]` of twice `half` numbers.
pub(super) fn geglu(isa: Isa, x: &[f32], half: usize, out: Unfilled<'_>) {
    let rows = (TASK / half).max(1) * half;
    team::for_each_chunk(out, rows, |i, out| {
        let x = &x[2 * i * rows..][..2 * out.len()];
        // SAFETY: whole rows of 2 half and half; `isa` is there.
        unsafe { geglu_rows(isa, x, half, out) };
    });
}
