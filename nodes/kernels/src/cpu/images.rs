//! ReLU, max pooling and bilinear resizing of images: what networks do between their convolutions.
//!
//! candle does the latter two on planes, on one thread; these read images as the convolutions leave them. The numbers are the same.

use super::buffers::Unfilled;
use super::simd::{Isa, Simd, multiversion};
use super::team;

/// Elements that a task of the ReLU handles.
const TASK: usize = 1 << 13;

/// The shape of images: how many, height, width, channels.
pub(super) type Shape = (usize, usize, usize, usize);

#[inline(always)]
unsafe fn relu_generic<S: Simd>(x: &[f32], out: Unfilled<'_>) {
    for (out, x) in out.iter_mut().zip(x) {
        out.write(x.max(0.0));
    }
}

multiversion! {
    /// `max(x, 0)`.
    unsafe fn relu_part(x: &[f32], out: Unfilled<'_>) = relu_generic
}

/// `max(x, 0)`; x is as long as the result.
pub(super) fn relu(isa: Isa, x: &[f32], out: Unfilled<'_>) {
    team::for_each_chunk(out, TASK, |i, out| {
        let x = &x[i * TASK..][..out.len()];
        // SAFETY: `isa` is there.
        unsafe { relu_part(isa, x, out) };
    });
}

#[inline(always)]
unsafe fn max_pool2_generic<S: Simd>(
    above: &[f32],
    below: &[f32],
    channels: usize,
    out: Unfilled<'_>,
) {
    let pixels = out.chunks_exact_mut(channels);
    let of = |line: &[f32]| line.len() / (2 * channels);
    debug_assert!(of(above) >= pixels.len() && of(below) >= pixels.len());
    let pairs = (above.chunks_exact(2 * channels)).zip(below.chunks_exact(2 * channels));
    for (out, (above, below)) in pixels.zip(pairs) {
        let ((a, b), (c, d)) = (above.split_at(channels), below.split_at(channels));
        for (((out, a), b), (c, d)) in out.iter_mut().zip(a).zip(b).zip(c.iter().zip(d)) {
            out.write(a.max(*b).max(c.max(*d)));
        }
    }
}

multiversion! {
    /// A line of the pooled image from two lines.
    unsafe fn max_pool2_line(above: &[f32], below: &[f32], channels: usize, out: Unfilled<'_>) = max_pool2_generic
}

/// The largest of each two by two pixels: images of half the height and width, rounded down. None of the sides is 0.
pub(super) fn max_pool2(
    isa: Isa,
    x: &[f32],
    (_, height, width, channels): Shape,
    out: Unfilled<'_>,
) {
    let line = width * channels;
    team::for_each_chunk(out, width / 2 * channels, |i, out| {
        let (image, row) = (i / (height / 2), i % (height / 2));
        let from = (image * height + 2 * row) * line;
        // SAFETY: `isa` is there.
        unsafe {
            max_pool2_line(
                isa,
                &x[from..][..line],
                &x[from + line..][..line],
                channels,
                out,
            )
        };
    });
}

/// The two lines or columns that a line or column of the resized image lies between, and the weight of the second (torch, corners not aligned).
fn between(index: usize, from: usize, to: usize) -> (usize, usize, f64) {
    let place = (from as f64 / to as f64 * (index as f64 + 0.5) - 0.5).max(0.0);
    let first = place.floor() as usize;
    let weight = (place - first as f64).clamp(0.0, 1.0);
    (first.min(from - 1), (first + 1).min(from - 1), weight)
}

#[inline(always)]
unsafe fn bilinear_generic<S: Simd>(
    lines: [&[f32]; 2],
    weight: f64,
    columns: &[(usize, usize, f64)],
    channels: usize,
    out: Unfilled<'_>,
) {
    for (out, (left, right, across)) in out.chunks_exact_mut(channels).zip(columns) {
        let [above, below] = lines;
        let (a, b) = (
            &above[left * channels..][..channels],
            &above[right * channels..][..channels],
        );
        let (c, d) = (
            &below[left * channels..][..channels],
            &below[right * channels..][..channels],
        );
        for (((out, a), b), (c, d)) in out.iter_mut().zip(a).zip(b).zip(c.iter().zip(d)) {
            let above = f64::from(*a) * (1.0 - across) + f64::from(*b) * across;
            let below = f64::from(*c) * (1.0 - across) + f64::from(*d) * across;
            out.write((above * (1.0 - weight) + below * weight) as f32);
        }
    }
}

multiversion! {
    /// A line of the resized image from the two that it lies between.
    unsafe fn bilinear_line(lines: [&[f32]; 2], weight: f64, columns: &[(usize, usize, f64)], channels: usize, out: Unfilled<'_>) = bilinear_generic
}

/// Images of `to` (height, width), bilinear, corners not aligned. None of the sides is 0.
pub(super) fn bilinear(
    isa: Isa,
    x: &[f32],
    (_, height, width, channels): Shape,
    to: (usize, usize),
    out: Unfilled<'_>,
) {
    let columns: Vec<_> = (0..to.1)
        .map(|column| between(column, width, to.1))
        .collect();
    let line = width * channels;
    team::for_each_chunk(out, to.1 * channels, |i, out| {
        let (image, row) = (i / to.0, i % to.0);
        let (above, below, weight) = between(row, height, to.0);
        let of = |row: usize| &x[(image * height + row) * line..][..line];
        // SAFETY: `isa` is there.
        unsafe { bilinear_line(isa, [of(above), of(below)], weight, &columns, channels, out) };
    });
}
