//! The way back on the CPU: transposed weights in the packed order, norms and GEGLU in as few passes as they take.

use std::cell::RefCell;

use candle_core::{D, DType, Device, Result, Tensor, bail};
use half::bf16;

use super::buffers::{Scratch, Shared, Unfilled, written};
use super::data::with_data;
use super::packing::{self, PANEL, Packed, padded_columns, transpose_block};
use super::simd::{Isa, SUM_LANES, Simd, erf, multiversion};
use super::{Cpu, attention, gradients, team, with_packed};
use crate::{AttentionGradients, Backward, GroupNormSpec, NormGradients, Weight, Window};

/// Numbers that a task of the pointwise passes handles, about.
const TASK: usize = 1 << 14;

/// Rows from which on a weight is transposed once for all of them.
const MANY_ROWS: usize = 2048;

/// The weight `[I, O, taps turned round]` of a weight `[O, I, taps]`.
pub(super) fn transposed(kernel: &Cpu, w: &Weight) -> Result<Weight> {
    let data = w.packed(kernel)?;
    if w.is_transposed_on_read() {
        // Twice transposed it is the weight itself.
        return match w.window {
            (1, 1) => Weight::of_packed(data, &[w.inputs, w.outputs]),
            (kh, kw) => Weight::of_packed(data, &[w.inputs, w.outputs, kh, kw]),
        };
    }
    if data.dtype() == DType::F32 && !kernel.machine.amx {
        // A copy would be as much memory again, written and read at each step.
        return Ok(Weight::transposed_on_read(data, w));
    }
    // A bfloat16 weight meets gradients of float32, in whose products it is the only part of itself.
    if data.dtype() == DType::U32 || data.dtype() == DType::BF16 && kernel.machine.amx {
        return transposed_tiles(kernel, w);
    }
    transposed_copy(kernel, data, (w.outputs, w.inputs), w.window)
}

/// The transpose of a weight in tiles of parts, in such tiles.
fn transposed_tiles(kernel: &Cpu, w: &Weight) -> Result<Weight> {
    let (kh, kw) = w.window;
    let of = (w.outputs, w.inputs);
    let words = packing::packed_len(DType::BF16, w.inputs, w.outputs, kh * kw) / 2;
    let data = with_packed(kernel, w, |w| {
        let parts = match w.data {
            Packed::Split(_, parts) => parts,
            Packed::Bf16(_) => 1,
            _ => bail!("a weight that is not in tiles"),
        };
        // SAFETY: all of the tiles are written.
        let (tiles, ()) = unsafe {
            written(parts * words, |to| {
                match w.data {
                    Packed::Bf16(data) => packing::transpose_tiles(
                        |at| {
                            let [even, odd] = [data[2 * at], data[2 * at + 1]].map(bf16::to_bits);
                            u32::from(even) | u32::from(odd) << 16
                        },
                        parts,
                        of,
                        kh * kw,
                        to,
                    ),
                    Packed::Split(data, _) => {
                        packing::transpose_tiles(|at| data[at], parts, of, kh * kw, to);
                    }
                    _ => {}
                }
                Ok(())
            })?
        };
        let len = tiles.len();
        Tensor::from_vec(tiles, len, &Device::Cpu)
    })?;
    match w.window {
        (1, 1) => Weight::of_packed(data, &[w.inputs, w.outputs]),
        (kh, kw) => Weight::of_packed(data, &[w.inputs, w.outputs, kh, kw]),
    }
}

/// The weight for a product of so many rows: a transposed copy if it would be transposed again for each of many bands of them.
pub(super) fn for_rows(kernel: &Cpu, w: &Weight, rows: usize) -> Result<Weight> {
    if w.is_transposed_on_read() && rows >= MANY_ROWS {
        return transposed_copy(kernel, w.packed(kernel)?, (w.inputs, w.outputs), w.window);
    }
    Ok(w.clone())
}

/// Of packed numbers `[O, I, taps]` the weight `[I, O, taps turned round]` in float32 panels.
fn transposed_copy(
    kernel: &Cpu,
    data: Tensor,
    (outputs, inputs): (usize, usize),
    window: (usize, usize),
) -> Result<Weight> {
    let taps = window.0 * window.1;
    let shape = match window {
        (1, 1) => vec![outputs, inputs],
        (kh, kw) => vec![outputs, inputs, kh, kw],
    };
    let w = &Weight::of_packed(data, &shape)?;
    let len = padded_columns(inputs) * outputs * taps;
    // Not from zeroed memory: the system would clear anew what is written over here.
    let fill = |to: Unfilled<'_>| {
        with_packed(kernel, w, |w| {
            // A panel of the result is 64 of the inputs: what it takes of each panel of the weight is a block of 64 x 64 for each
            // tap, of which lines of both are whole cache lines.
            let wide = PANEL * outputs * taps;
            let (all, len) = (Shared::of(to), len);
            team::for_each(outputs.div_ceil(PANEL), |task| {
                let column = task * PANEL;
                WIDENED.with_borrow_mut(|scratch| {
                    let (panel, width) = w.panel(column, scratch);
                    let panel = Block(panel, inputs * taps * width);
                    let columns = width.min(outputs - column);
                    for first in (0..inputs).step_by(PANEL) {
                        let at = first / PANEL * wide;
                        let to_width = wide.min(len - at) / (outputs * taps);
                        let rows = to_width.min(inputs - first);
                        for tap in 0..taps {
                            let from = panel.rows(tap * inputs + first, rows, width);
                            let start = at + ((taps - 1 - tap) * outputs + column) * to_width;
                            // SAFETY: these columns of the tap are this task's alone.
                            let to = unsafe { all.part(start, columns * to_width) };
                            transpose_block(from, (rows, width), to, (columns, to_width));
                        }
                    }
                });
            });
            Ok(())
        })
    };
    // SAFETY: each panel is written whole: every output's line of every tap.
    let (to, ()) = unsafe { written(len, fill)? };
    let data = Tensor::from_vec(to, len, &Device::Cpu)?;
    let shape = match window {
        (1, 1) => vec![inputs, outputs],
        (kh, kw) => vec![inputs, outputs, kh, kw],
    };
    Weight::of_packed(data, &shape)
}

thread_local! {
    /// A panel in float32.
    static WIDENED: RefCell<Scratch> = RefCell::default();
}

/// A panel of a weight.
struct Block(*const f32, usize);

impl Block {
    /// `count` rows of `width` numbers.
    fn rows(&self, first: usize, count: usize, width: usize) -> &[f32] {
        assert!((first + count) * width <= self.1, "rows of the panel");
        // SAFETY: they are inside of the panel, which the weight or the scratch holds as long as it is used.
        unsafe { std::slice::from_raw_parts(self.0.add(first * width), count * width) }
    }
}

/// The slope of SiLU: `s (1 + x (1 - s))` with s = sigmoid(x).
#[inline(always)]
unsafe fn silu_slope<S: Simd>(x: S::V) -> S::V {
    // SAFETY: no pointers; the set is there, by the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        let e = S::exp(S::min(S::sub(S::splat(0.0), x), S::splat(88.0)));
        let s = S::div(one, S::add(one, e));
        S::mul(s, S::fma(x, S::sub(one, s), one))
    }
}

/// What is left of a slice from `c`, at most a vector, and zeros.
#[inline(always)]
unsafe fn part<S: Simd>(from: &[f32], c: usize) -> S::V {
    // SAFETY: a full vector is inside of the slice; the rest goes through a buffer of 16 lanes, as many as any set has.
    unsafe {
        if c + S::LANES <= from.len() {
            return S::load(from.as_ptr().add(c));
        }
        let mut lanes = [0f32; SUM_LANES];
        lanes[..from.len() - c].copy_from_slice(&from[c..]);
        S::load(lanes.as_ptr())
    }
}

#[inline(always)]
unsafe fn put<S: Simd>(to: &mut [f32], c: usize, v: S::V) {
    // SAFETY: as for `part`.
    unsafe {
        if c + S::LANES <= to.len() {
            S::store(to.as_mut_ptr().add(c), v);
        } else {
            let mut lanes = [0f32; SUM_LANES];
            S::store(lanes.as_mut_ptr(), v);
            let count = to.len() - c;
            to[c..].copy_from_slice(&lanes[..count]);
        }
    }
}

/// A sum over a row in lanes that every set has as many of.
#[derive(Clone, Copy)]
struct Sum<S: Simd>([S::V; 4]);

impl<S: Simd> Sum<S> {
    const VECTORS: usize = SUM_LANES / S::LANES;

    /// # Safety
    /// The set is there; so below.
    #[inline(always)]
    unsafe fn new() -> Self {
        const { assert!(Self::VECTORS >= 1 && Self::VECTORS <= 4) };
        // SAFETY: the set is there.
        Self([unsafe { S::splat(0.0) }; 4])
    }

    /// Calls `f` with the place of each vector of a row and the vector of each of these sums that it belongs to.
    #[inline(always)]
    fn along<const N: usize>(
        sums: [&mut Self; N],
        width: usize,
        mut f: impl FnMut(usize, [&mut S::V; N]),
    ) {
        let mut sums = sums.map(|sum| &mut sum.0);
        for first in (0..width).step_by(SUM_LANES) {
            for vector in 0..Self::VECTORS {
                let at = first + vector * S::LANES;
                if at < width {
                    f(at, sums.each_mut().map(|sum| &mut sum[vector]));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        let mut lanes = [0f32; SUM_LANES];
        for (lanes, v) in lanes.chunks_exact_mut(S::LANES).zip(self.0) {
            // SAFETY: as many lanes as a vector has.
            unsafe { S::store(lanes.as_mut_ptr(), v) };
        }
        lanes.iter().sum()
    }
}

/// What a group norm's channels are made with: y = x scale + shift before SiLU.
#[derive(Clone, Copy)]
struct Channels<'a> {
    mean: &'a [f32],
    inverse: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
}

/// For each row of C channels: the gradient before SiLU, added to `sums` (C of it, then C of it times the normalised x).
#[inline(always)]
unsafe fn group_sums_generic<S: Simd>(
    grad: &[f32],
    x: &[f32],
    c: Channels<'_>,
    silu: bool,
    sums: &mut [f32],
) {
    let channels = c.mean.len();
    let (sum, along) = sums.split_at_mut(channels);
    for (grad, x) in grad.chunks_exact(channels).zip(x.chunks_exact(channels)) {
        let mut i = 0;
        while i < channels {
            // SAFETY: all are `channels` long, and i is below that.
            unsafe {
                let y = S::mul(
                    S::sub(part::<S>(x, i), part::<S>(c.mean, i)),
                    part::<S>(c.inverse, i),
                );
                let mut g = part::<S>(grad, i);
                if silu {
                    let z = S::fma(y, part::<S>(c.weight, i), part::<S>(c.bias, i));
                    g = S::mul(g, silu_slope::<S>(z));
                }
                put::<S>(sum, i, S::add(part::<S>(sum, i), g));
                put::<S>(along, i, S::fma(g, y, part::<S>(along, i)));
            }
            i += S::LANES;
        }
    }
}

multiversion! {
    unsafe fn group_sums(grad: &[f32], x: &[f32], c: Channels<'_>, silu: bool, sums: &mut [f32]) = group_sums_generic
}

/// `out = inverse (weight g - mean(weight g) - y mean(weight g y))`, means over the group given by channel.
#[inline(always)]
unsafe fn group_apply_generic<S: Simd>(
    grad: &[f32],
    x: &[f32],
    c: Channels<'_>,
    silu: bool,
    means: &[f32],
    out: &mut [f32],
) {
    let channels = c.mean.len();
    let (mean, along) = means.split_at(channels);
    let rows = grad.chunks_exact(channels).zip(x.chunks_exact(channels));
    for ((grad, x), out) in rows.zip(out.chunks_exact_mut(channels)) {
        let mut i = 0;
        while i < channels {
            // SAFETY: all are `channels` long, and i is below that.
            unsafe {
                let inverse = part::<S>(c.inverse, i);
                let y = S::mul(S::sub(part::<S>(x, i), part::<S>(c.mean, i)), inverse);
                let weight = part::<S>(c.weight, i);
                let mut g = part::<S>(grad, i);
                if silu {
                    let z = S::fma(y, weight, part::<S>(c.bias, i));
                    g = S::mul(g, silu_slope::<S>(z));
                }
                let g = S::sub(S::mul(g, weight), part::<S>(mean, i));
                let g = S::sub(g, S::mul(y, part::<S>(along, i)));
                put::<S>(out, i, S::mul(g, inverse));
            }
            i += S::LANES;
        }
    }
}

multiversion! {
    unsafe fn group_apply(grad: &[f32], x: &[f32], c: Channels<'_>, silu: bool, means: &[f32], out: &mut [f32]) = group_apply_generic
}

/// The mean and 1 / sqrt(variance + eps) of each channel's group, of one image.
fn group_statistics(x: &[f32], channels: usize, groups: usize, eps: f64) -> (Vec<f32>, Vec<f32>) {
    let per_group = channels / groups;
    let pixels = x.len() / channels;
    let mut sums = vec![0f64; 2 * channels];
    // In runs of pixels whose sums float32 can hold, around the first of each so that squares lose nothing.
    let shift: Vec<f32> = x[..channels].to_vec();
    for rows in x.chunks(32 * channels) {
        let mut run = vec![0f32; 2 * channels];
        let (sum, square) = run.split_at_mut(channels);
        for row in rows.chunks_exact(channels) {
            for c in 0..channels {
                let d = row[c] - shift[c];
                sum[c] += d;
                square[c] += d * d;
            }
        }
        for (to, from) in sums.iter_mut().zip(&run) {
            *to += f64::from(*from);
        }
    }
    let (mut means, mut inverses) = (vec![0f32; channels], vec![0f32; channels]);
    let n = (pixels * per_group) as f64;
    for group in 0..groups {
        let own = group * per_group..(group + 1) * per_group;
        let mean = own
            .clone()
            .map(|c| sums[c] + f64::from(shift[c]) * pixels as f64)
            .sum::<f64>()
            / n;
        let squares: f64 = own
            .clone()
            .map(|c| {
                let off = f64::from(shift[c]) - mean;
                sums[channels + c] + 2.0 * off * sums[c] + off * off * pixels as f64
            })
            .sum();
        let inverse = 1.0 / (squares / n + eps).sqrt();
        means[own.clone()].fill(mean as f32);
        inverses[own].fill(inverse as f32);
    }
    (means, inverses)
}

fn group_norm(
    isa: Isa,
    grad: &[f32],
    x: &[f32],
    images: usize,
    norm: (usize, f64, &[f32], &[f32]),
    silu: bool,
) -> (Vec<f32>, Vec<f32>) {
    let (groups, eps, weight, bias) = norm;
    let channels = weight.len();
    let image = x.len() / images;
    let pixels = image / channels;
    let per_group = channels / groups;
    let rows = (TASK / channels).clamp(1, pixels);
    let parts = pixels.div_ceil(rows);
    let mut statistics = vec![(Vec::new(), Vec::new()); images];
    team::for_each_chunk(&mut statistics, 1, |i, to| {
        to[0] = group_statistics(&x[i * image..][..image], channels, groups, eps);
    });
    let of = |i: usize| Channels {
        mean: &statistics[i].0,
        inverse: &statistics[i].1,
        weight,
        bias,
    };
    let own = |part: usize| {
        let start = part / parts * image + part % parts * rows * channels;
        let end = (start + rows * channels).min((part / parts + 1) * image);
        start..end
    };
    // Of every part of every image the sums by channel, added in order afterwards.
    let mut partial = vec![0f32; images * parts * 2 * channels];
    team::for_each_chunk(&mut partial, 2 * channels, |part, sums| {
        let own = own(part);
        // SAFETY: whole rows of channels; `isa` is there.
        unsafe {
            group_sums(
                isa,
                &grad[own.clone()],
                &x[own],
                of(part / parts),
                silu,
                sums,
            );
        }
    });
    let mut affine = vec![0f64; 2 * channels];
    let mut means = vec![0f32; images * 2 * channels];
    for (partial, means) in partial
        .chunks(parts * 2 * channels)
        .zip(means.chunks_mut(2 * channels))
    {
        let mut sums = vec![0f64; 2 * channels];
        for part in partial.chunks(2 * channels) {
            for (to, from) in sums.iter_mut().zip(part) {
                *to += f64::from(*from);
            }
        }
        for group in 0..groups {
            let own = group * per_group..(group + 1) * per_group;
            for half in [0, channels] {
                let sum: f64 = own
                    .clone()
                    .map(|c| f64::from(weight[c]) * sums[half + c])
                    .sum();
                let mean = sum / (pixels * per_group) as f64;
                means[half + own.start..half + own.end].fill(mean as f32);
            }
        }
        for (to, from) in affine.iter_mut().zip(&sums) {
            *to += from;
        }
    }
    let mut out = vec![0f32; x.len()];
    // Parts of images need not be of one length: an image at a time when they are not.
    if pixels.is_multiple_of(rows) {
        team::for_each_chunk(&mut out, rows * channels, |part, out| {
            let (own, image) = (own(part), part / parts);
            let means = &means[image * 2 * channels..][..2 * channels];
            // SAFETY: whole rows of channels; `isa` is there.
            unsafe {
                group_apply(
                    isa,
                    &grad[own.clone()],
                    &x[own],
                    of(image),
                    silu,
                    means,
                    out,
                )
            };
        });
    } else {
        team::for_each_chunk(&mut out, image, |i, out| {
            let own = i * image..(i + 1) * image;
            let means = &means[i * 2 * channels..][..2 * channels];
            // SAFETY: as above.
            unsafe { group_apply(isa, &grad[own.clone()], &x[own], of(i), silu, means, out) };
        });
    }
    (out, affine.into_iter().map(|sum| sum as f32).collect())
}

/// The gradient of rows of a layer norm; adds that of scale and shift to `affine` (C each).
#[inline(always)]
unsafe fn layer_norm_generic<S: Simd>(
    grad: &[f32],
    x: &[f32],
    weight: &[f32],
    eps: f64,
    affine: &mut [f32],
    out: &mut [f32],
) {
    let width = weight.len();
    let rows = grad.chunks_exact(width).zip(x.chunks_exact(width));
    for ((grad, x), out) in rows.zip(out.chunks_exact_mut(width)) {
        // SAFETY: all are `width` long, affine twice that, and i is below that.
        unsafe {
            let n = width as f32;
            let mut sum = Sum::<S>::new();
            Sum::along([&mut sum], width, |i, [sum]| {
                *sum = S::add(*sum, part::<S>(x, i))
            });
            let mean = sum.total() / n;
            let mut squares = Sum::<S>::new();
            Sum::along([&mut squares], width, |i, [squares]| {
                // Behind the row's end there is nothing to be far from the mean.
                let d = if i + S::LANES <= width {
                    S::sub(part::<S>(x, i), S::splat(mean))
                } else {
                    let mut lanes = [0f32; SUM_LANES];
                    let rest = lanes.iter_mut().zip(&x[i..]);
                    rest.for_each(|(to, x)| *to = x - mean);
                    S::load(lanes.as_ptr())
                };
                *squares = S::fma(d, d, *squares);
            });
            let variance = squares.total() / n;
            let inverse = 1.0 / (variance + eps as f32).sqrt();
            let (mut sum, mut along) = (Sum::<S>::new(), Sum::<S>::new());
            Sum::along([&mut sum, &mut along], width, |i, [sum, along]| {
                let y = S::mul(S::sub(part::<S>(x, i), S::splat(mean)), S::splat(inverse));
                let g = S::mul(part::<S>(grad, i), part::<S>(weight, i));
                *sum = S::add(*sum, g);
                *along = S::fma(g, y, *along);
            });
            let (sum, along) = (sum.total() / n, along.total() / n);
            let mut i = 0;
            while i < width {
                let y = S::mul(S::sub(part::<S>(x, i), S::splat(mean)), S::splat(inverse));
                let own = part::<S>(grad, i);
                let g = S::mul(own, part::<S>(weight, i));
                let g = S::sub(S::sub(g, S::splat(sum)), S::mul(y, S::splat(along)));
                put::<S>(out, i, S::mul(g, S::splat(inverse)));
                if !affine.is_empty() {
                    let (scale, shift) = affine.split_at_mut(width);
                    put::<S>(scale, i, S::fma(own, y, part::<S>(scale, i)));
                    put::<S>(shift, i, S::add(part::<S>(shift, i), own));
                }
                i += S::LANES;
            }
        }
    }
}

multiversion! {
    unsafe fn layer_norm(grad: &[f32], x: &[f32], weight: &[f32], eps: f64, affine: &mut [f32], out: &mut [f32]) = layer_norm_generic
}

/// The gradient `[2 K]` of rows of GEGLU, h and then g.
#[inline(always)]
unsafe fn geglu_generic<S: Simd>(grad: &[f32], x: &[f32], half: usize, out: &mut [f32]) {
    let rows = grad.chunks_exact(half).zip(x.chunks_exact(2 * half));
    for ((grad, x), out) in rows.zip(out.chunks_exact_mut(2 * half)) {
        let (h, g) = x.split_at(half);
        let (of_h, of_g) = out.split_at_mut(half);
        let mut i = 0;
        while i < half {
            // SAFETY: all are `half` long, and i is below that.
            unsafe {
                let (grad, h, g) = (part::<S>(grad, i), part::<S>(h, i), part::<S>(g, i));
                let e = erf::<S>(S::mul(g, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
                let cumulative = S::mul(S::splat(0.5), S::add(S::splat(1.0), e));
                // exp(-g^2 / 2) / sqrt(2 pi)
                let square = S::mul(S::mul(g, g), S::splat(-0.5));
                let density = S::mul(S::exp(square), S::splat(0.398_942_3));
                let slope = S::fma(g, density, cumulative);
                put::<S>(of_h, i, S::mul(grad, S::mul(g, cumulative)));
                put::<S>(of_g, i, S::mul(S::mul(grad, h), slope));
            }
            i += S::LANES;
        }
    }
}

multiversion! {
    unsafe fn geglu(grad: &[f32], x: &[f32], half: usize, out: &mut [f32]) = geglu_generic
}

impl Backward for Cpu {
    fn group_norm_backward(
        &self,
        grad: &Tensor,
        x: &Tensor,
        norm: &GroupNormSpec<'_>,
        silu: bool,
        trained: bool,
    ) -> Result<NormGradients> {
        let channels = x.dim(D::Minus1)?;
        let fits = norm.groups > 0 && channels > 0 && channels.is_multiple_of(norm.groups);
        if !fits || x.elem_count() == 0 || grad.dims() != x.dims() {
            bail!(
                "the gradient {:?} of a group norm of {:?}",
                grad.dims(),
                x.dims()
            );
        }
        let (of, affine) = with_data(grad, |grad| {
            with_data(x, |x_data| {
                with_data(norm.weight, |weight| {
                    with_data(norm.bias, |bias| {
                        if weight.len() != channels || bias.len() != channels {
                            bail!(
                                "group norm: {channels} channels for {} scales",
                                weight.len()
                            );
                        }
                        let spec = (norm.groups, norm.eps, weight, bias);
                        let isa = self.machine.isa;
                        Ok(group_norm(isa, grad, x_data, x.dim(0)?, spec, silu))
                    })
                })
            })
        })?;
        let affine = || -> Result<_> {
            let shift = Tensor::new(&affine[..channels], &Device::Cpu)?;
            Ok((Tensor::new(&affine[channels..], &Device::Cpu)?, shift))
        };
        Ok(NormGradients {
            x: Tensor::from_vec(of, x.shape(), &Device::Cpu)?,
            affine: trained.then(affine).transpose()?,
        })
    }

    fn layer_norm_backward(
        &self,
        grad: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f64,
        trained: bool,
    ) -> Result<NormGradients> {
        let width = x.dim(D::Minus1)?;
        if width == 0 || weight.elem_count() != width || grad.dims() != x.dims() {
            bail!(
                "the gradient {:?} of a layer norm of {:?}",
                grad.dims(),
                x.dims()
            );
        }
        let rows = (TASK / width).max(1) * width;
        let parts = x.elem_count().div_ceil(rows);
        let mut out = vec![0f32; x.elem_count()];
        let own = if trained { 2 * width } else { 0 };
        let mut affine: Vec<Vec<f32>> = vec![vec![0f32; own]; parts];
        with_data(grad, |grad| {
            with_data(x, |x| {
                with_data(weight, |weight| {
                    let mut tasks: Vec<_> = out.chunks_mut(rows).zip(&mut affine).collect();
                    team::for_each_chunk(&mut tasks, 1, |i, task| {
                        let (out, affine) = &mut task[0];
                        let own = i * rows..i * rows + out.len();
                        let (grad, x) = (&grad[own.clone()], &x[own]);
                        // SAFETY: whole rows of `width`; `isa` is there.
                        unsafe {
                            layer_norm(self.machine.isa, grad, x, weight, eps, affine, out);
                        }
                    });
                    Ok(())
                })
            })
        })?;
        let sums = || -> Result<_> {
            let mut sums = vec![0f64; 2 * width];
            for part in &affine {
                for (to, from) in sums.iter_mut().zip(part) {
                    *to += f64::from(*from);
                }
            }
            let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
            Ok((
                Tensor::new(&sums[..width], &Device::Cpu)?,
                Tensor::new(&sums[width..], &Device::Cpu)?,
            ))
        };
        let affine = trained.then(sums).transpose()?;
        Ok(NormGradients {
            x: Tensor::from_vec(out, x.shape(), &Device::Cpu)?,
            affine,
        })
    }

    fn matmul_tn(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        gradients::product(self.machine.isa, a, b)
    }

    fn row_sums(&self, x: &Tensor) -> Result<Tensor> {
        gradients::row_sums(x)
    }

    fn conv2d_weight(
        &self,
        grad: &Tensor,
        x: &Tensor,
        window: (usize, usize),
        of: Window,
    ) -> Result<Option<Tensor>> {
        gradients::convolution(self.machine.isa, grad, x, window, of)
    }

    fn geglu_backward(&self, grad: &Tensor, x: &Tensor) -> Result<Tensor> {
        let half = grad.dim(D::Minus1)?;
        if half == 0 || x.dim(D::Minus1)? != 2 * half || x.elem_count() != 2 * grad.elem_count() {
            bail!("the gradient {:?} of GEGLU of {:?}", grad.dims(), x.dims());
        }
        let rows = (TASK / half).max(1);
        let mut out = vec![0f32; x.elem_count()];
        with_data(grad, |grad| {
            with_data(x, |x| {
                team::for_each_chunk(&mut out, rows * 2 * half, |i, out| {
                    let (first, len) = (i * rows * half, out.len() / 2);
                    let (grad, x) = (&grad[first..first + len], &x[2 * first..][..out.len()]);
                    // SAFETY: whole rows; `isa` is there.
                    unsafe { geglu(self.machine.isa, grad, x, half, out) };
                });
                Ok(())
            })
        })?;
        Tensor::from_vec(out, x.shape(), &Device::Cpu)
    }

    fn attention_backward(
        &self,
        given: (&Tensor, &Tensor),
        qkv: (&Tensor, &Tensor, &Tensor),
        heads: usize,
        scale: f64,
        causal: bool,
    ) -> Result<AttentionGradients> {
        attention::backward(self.machine.isa, given, qkv, heads, scale, causal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kernel, Padding, Terms};

    /// What is cut again when a copy in float32 is used is what the tiles hold: training gives the same on both ways.
    #[test]
    fn a_transposed_weight_in_tiles_gives_the_bits_of_its_copy_in_float32() {
        let cpu = Cpu::default();
        for (outputs, inputs, side) in [(320, 640, 1), (70, 130, 1), (64, 128, 3), (70, 66, 3)] {
            let shape = [outputs, inputs, side, side];
            let numbers = (0..shape.iter().product()).map(|i: usize| {
                half::f16::from_f32(((i * 7919 % 1999) as f32 - 1000.0) / 700.0).to_f32()
            });
            let w = Tensor::from_iter(numbers, &Device::Cpu).unwrap();
            let w = Weight::new(&w.reshape(&shape[..]).unwrap(), &cpu).unwrap();
            let data = w.packed(&cpu).unwrap();
            if data.dtype() != DType::U32 {
                return; // there is no matrix unit
            }
            let copy = transposed_copy(&cpu, data, (outputs, inputs), (side, side)).unwrap();
            let tiles = cpu.transposed(&w).unwrap();
            assert_eq!(tiles.packed(&cpu).unwrap().dtype(), DType::U32);
            for rows in [7, 64, 400] {
                let x = (0..rows * outputs).map(|i| ((i * 7907 % 4001) as f32 / 3001.0).sin());
                let x = Tensor::from_iter(x, &Device::Cpu).unwrap();
                let x = x.reshape((1, rows, 1, outputs)).unwrap();
                let bits = |w: &Weight| -> Vec<u32> {
                    let window = Window::padded(Padding::same(side / 2));
                    let y = cpu.conv2d(&x, w, window, Terms::default()).unwrap();
                    let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    y.into_iter().map(f32::to_bits).collect()
                };
                assert!(bits(&tiles) == bits(&copy), "{shape:?}, {rows} rows");
            }
        }
    }
}
