//! 3x3 convolutions in fewer multiplications: Winograd's F(4x4, 3x3) (Lavin and Gray 2016, "Fast Algorithms for
//! Convolutional Neural Networks", section 4.3), with the points 0, 1, -1, 2, -2 and infinity.
//!
//! A tile of 4x4 outputs is `A^T [(G g G^T) . (B^T d B)] A` of the 6x6 pixels d under it and the weights g: 36 products where
//! the convolution itself has 144. Over many tiles each of the 36 is a matrix product. Weights are transformed when they are
//! used, a panel of columns at a time: kept they would take four times the memory.
//!
//! Batch invariance: a tile is of one image; its sums are over channels, in runs, whichever tiles are at work beside it.

use std::cell::RefCell;

use candle_core::Result;

use super::buffers::{Scratch, Shared, Unfilled};
use super::geometry::Geometry;
use super::packing::{Matrix, PANEL, padded_columns};
use super::products::{Segment, rows_by_panel, runs};
use super::simd::{Isa, Simd, multiversion};
use super::team;
use super::terms::{Terms, shifts};

/// Pixels of a tile's side, of the result and of what is under it.
const SIDE: usize = 4;
const UNDER: usize = 6;
/// Products that a tile is made of.
const POINTS: usize = UNDER * UNDER;
/// Tiles whose products are at work at a time: their sums, 36 x 64 columns for each, are about a megabyte in all.
const CHUNK: usize = 96;
/// Numbers of transformed pixels that are held at a time, about.
const SLAB: usize = 1 << 24;
/// Rows of a register block.
const ROWS: usize = 6;

/// Whether a convolution is better done so: 3x3, of stride 1, with channels enough to be worth the transforms, and tiles that
/// are mostly inside of the picture. It depends on one image's shape alone.
pub(super) fn pays(w: Matrix<'_>, g: &Geometry) -> bool {
    g.kernel == (3, 3)
        && g.stride == 1
        && w.inputs >= 64
        && w.outputs >= 64
        && g.out.0 >= 4 * SIDE
        && g.out.1 >= 4 * SIDE
}

/// The convolution of images `[images, pixels, C]` to `[images, pixels, O]`, operands checked to fit one another.
pub(super) fn convolution(
    isa: Isa,
    x: &[f32],
    images: usize,
    w: Matrix<'_>,
    terms: Terms<'_>,
    g: Geometry,
    out: Unfilled<'_>,
) -> Result<()> {
    let channels = w.inputs;
    let (high, wide) = (g.out.0.div_ceil(SIDE), g.out.1.div_ceil(SIDE));
    let tiles = images * high * wide;
    let slab = (SLAB / (POINTS * channels)).max(CHUNK);
    let shifts = shifts(terms, w.outputs);
    let panels = w.outputs.div_ceil(PANEL);
    let result = Shared::of(out);
    let mut pixels: Vec<f32> = Vec::new();
    for first in (0..tiles).step_by(slab) {
        let count = slab.min(tiles - first);
        let len = POINTS * count * channels;
        pixels.clear();
        pixels.reserve(len);
        let room = Shared::of(&mut pixels.spare_capacity_mut()[..len]);
        team::for_each(count, |t| {
            let under = under(&g, images, first + t, (high, wide));
            // SAFETY: point p of tile t < count is `channels` numbers at (p count + t) channels, inside `len`, of which no
            // other tile writes any. `under` names rows of x or none.
            unsafe {
                let to = room.data().add(t * channels);
                transform_pixels(isa, x, channels, &under, to, count * channels);
            }
        });
        // SAFETY: every point of every tile was written.
        unsafe { pixels.set_len(len) };
        // So many tasks that all threads end together, but none with so few tiles that its weights are transformed in vain.
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 { 1 } else { 4 * threads };
        let splits = wanted.div_ceil(panels).clamp(1, count.div_ceil(CHUNK));
        let per_split = count.div_ceil(splits);
        let tasks: Vec<_> = (0..panels)
            .flat_map(|panel| (0..count).step_by(per_split).map(move |t| (panel, t)))
            .collect();
        // Tasks differ in their columns or their tiles, and tiles in their pixels: nothing is written by two.
        team::for_each(tasks.len(), |task| {
            let (panel, start) = tasks[task];
            let task = Task {
                isa,
                pixels: &pixels,
                count,
                w,
                column: panel * PANEL,
                shifts: shifts.as_deref(),
                own_shifts: terms.image.is_some(),
                residual: terms.residual,
                out: result,
            };
            let places = |t: usize| place(first + t, (high, wide));
            task.run(start..count.min(start + per_split), places, g.out);
        });
    }
    Ok(())
}

/// The image of a tile, and its first line and column.
fn place(tile: usize, (high, wide): (usize, usize)) -> (usize, usize, usize) {
    (
        tile / (high * wide),
        tile / wide % high * SIDE,
        tile % wide * SIDE,
    )
}

/// The rows of x under a tile, or none where it is outside.
fn under(
    g: &Geometry,
    images: usize,
    tile: usize,
    tiles: (usize, usize),
) -> [Option<usize>; POINTS] {
    let (image, top, left) = place(tile, tiles);
    debug_assert!(image < images);
    std::array::from_fn(|i| {
        let y = (top + i / UNDER).wrapping_sub(g.padding.top);
        let x = (left + i % UNDER).wrapping_sub(g.padding.left);
        (y < g.height && x < g.width).then(|| {
            let (y, x) = (y * g.source.0 / g.height, x * g.source.1 / g.width);
            (image * g.source.0 + y) * g.source.1 + x
        })
    })
}

/// `B^T d` of six vectors.
#[inline(always)]
unsafe fn pixels_1d<S: Simd>(d: [S::V; UNDER]) -> [S::V; UNDER] {
    // SAFETY: no pointers; the set is there, by the caller's promise.
    unsafe {
        let (two, four, five) = (S::splat(2.0), S::splat(4.0), S::splat(5.0));
        let negative = S::splat(-4.0);
        // 4 d0 - 5 d2 + d4, and the same from d1 on.
        let even = S::fma(four, d[0], S::sub(d[4], S::mul(five, d[2])));
        let odd = S::fma(four, d[1], S::sub(d[5], S::mul(five, d[3])));
        let a = S::fma(negative, d[2], d[4]); // d4 - 4 d2
        let b = S::fma(negative, d[1], d[3]); // d3 - 4 d1
        let c = S::sub(d[4], d[2]);
        let e = S::mul(two, S::sub(d[3], d[1]));
        [
            even,
            S::add(a, b),
            S::sub(a, b),
            S::add(c, e),
            S::sub(c, e),
            odd,
        ]
    }
}

/// `G g` of three vectors.
#[inline(always)]
unsafe fn weights_1d<S: Simd>(g: [S::V; 3]) -> [S::V; UNDER] {
    // SAFETY: no pointers; the set is there, by the caller's promise.
    unsafe {
        let sum = S::mul(S::splat(-1.0 / 6.0), S::add(g[0], g[2]));
        let middle = S::mul(S::splat(1.0 / 6.0), g[1]);
        let outer = S::fma(
            S::splat(1.0 / 24.0),
            g[0],
            S::mul(S::splat(1.0 / 6.0), g[2]),
        );
        let twelfth = S::mul(S::splat(1.0 / 12.0), g[1]);
        [
            S::mul(S::splat(0.25), g[0]),
            S::sub(sum, middle),
            S::add(sum, middle),
            S::add(outer, twelfth),
            S::sub(outer, twelfth),
            g[2],
        ]
    }
}

/// `A^T m` of six vectors.
#[inline(always)]
unsafe fn sums_1d<S: Simd>(m: [S::V; UNDER]) -> [S::V; SIDE] {
    // SAFETY: no pointers; the set is there, by the caller's promise.
    unsafe {
        let (plus, minus) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (plus2, minus2) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        [
            S::add(S::add(m[0], plus), plus2),
            S::fma(S::splat(2.0), minus2, minus),
            S::fma(S::splat(4.0), plus2, plus),
            S::add(S::fma(S::splat(8.0), minus2, minus), m[5]),
        ]
    }
}

#[inline(always)]
unsafe fn transform_pixels_generic<S: Simd>(
    x: &[f32],
    channels: usize,
    under: &[Option<usize>; POINTS],
    to: *mut f32,
    stride: usize,
) {
    let rows = under.map(|row| row.map(|row| &x[row * channels..][..channels]));
    let mut c = 0;
    while c < channels {
        // The last vector begins so early that it ends with the channels: some are written twice, the same.
        let at = c.min(channels - S::LANES);
        // SAFETY: at + LANES <= channels, which every row has, as there are more channels than lanes; the caller promises
        // `channels` numbers at each point.
        unsafe {
            let mut half = [[S::splat(0.0); UNDER]; UNDER];
            for (i, half) in half.iter_mut().enumerate() {
                let mut d = [S::splat(0.0); UNDER];
                for (d, row) in d.iter_mut().zip(&rows[i * UNDER..]) {
                    if let Some(row) = row {
                        *d = S::load(row.as_ptr().add(at));
                    }
                }
                *half = pixels_1d::<S>(d);
            }
            let [a, b, c, d, e, f] = half;
            for j in 0..UNDER {
                let column = [a[j], b[j], c[j], d[j], e[j], f[j]];
                for (i, v) in pixels_1d::<S>(column).into_iter().enumerate() {
                    S::store(to.add((i * UNDER + j) * stride + at), v);
                }
            }
        }
        c += S::LANES;
    }
}

multiversion! {
    /// `B^T d B` of the pixels under a tile: point p's channels at `to + p stride`, which must be valid for them. There are at
    /// least 16 channels, and the rows are rows of x.
    unsafe fn transform_pixels(x: &[f32], channels: usize, under: &[Option<usize>; POINTS], to: *mut f32, stride: usize) = transform_pixels_generic
}

#[inline(always)]
unsafe fn transform_weights_generic<S: Simd>(
    panel: *const f32,
    channels: usize,
    width: usize,
    to: *mut f32,
) {
    let size = channels * width;
    // Channel by channel, vector by vector: a number of each tap.
    for at in (0..size).step_by(S::LANES) {
        // SAFETY: the caller promises 9 x channels x width numbers, width a multiple of 16 and so of a vector, and 36 as many
        // to write.
        unsafe {
            let tap = |i: usize, j: usize| S::load(panel.add((i * 3 + j) * size + at));
            let mut half = [[S::splat(0.0); 3]; UNDER];
            for j in 0..3 {
                let column = weights_1d::<S>([tap(0, j), tap(1, j), tap(2, j)]);
                for (half, v) in half.iter_mut().zip(column) {
                    half[j] = v;
                }
            }
            for (i, half) in half.into_iter().enumerate() {
                for (j, v) in weights_1d::<S>(half).into_iter().enumerate() {
                    S::store(to.add((i * UNDER + j) * size + at), v);
                }
            }
        }
    }
}

multiversion! {
    /// `G g G^T` of a panel `[9][channels][width]` to `[36][channels][width]`, both valid; width is a multiple of 16.
    unsafe fn transform_weights(panel: *const f32, channels: usize, width: usize, to: *mut f32) = transform_weights_generic
}

/// Where the result of a tile goes.
#[derive(Clone, Copy)]
struct Target<'a> {
    /// First line and column of the tile.
    at: (usize, usize),
    /// Of the picture.
    size: (usize, usize),
    /// Its first pixel's row in the result.
    image: usize,
    column: usize,
    columns: usize,
    outputs: usize,
    shift: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    out: Shared,
}

#[inline(always)]
unsafe fn transform_sums_generic<S: Simd>(
    sums: *const f32,
    stride: usize,
    width: usize,
    target: Target<'_>,
) {
    let Target {
        at: (top, left),
        size: (height, image_width),
        image,
        column,
        columns,
        outputs,
        shift,
        residual,
        out,
    } = target;
    assert!(columns <= width && column + columns <= outputs);
    for c in (0..columns).step_by(S::LANES) {
        // SAFETY: c + LANES <= width, a multiple of the vector, which the caller promises at each point.
        let tile = unsafe {
            let mut half = [[S::splat(0.0); UNDER]; SIDE];
            for j in 0..UNDER {
                let m = |i: usize| S::load(sums.add((i * UNDER + j) * stride + c));
                let column = sums_1d::<S>([m(0), m(1), m(2), m(3), m(4), m(5)]);
                for (half, v) in half.iter_mut().zip(column) {
                    half[j] = v;
                }
            }
            [
                sums_1d::<S>(half[0]),
                sums_1d::<S>(half[1]),
                sums_1d::<S>(half[2]),
                sums_1d::<S>(half[3]),
            ]
        };
        let whole = c + S::LANES <= columns;
        for (i, line) in tile.into_iter().enumerate().take(height - top) {
            for (j, v) in line.into_iter().enumerate().take(image_width - left) {
                let row = image + (top + i) * image_width + left + j;
                let to = row * outputs + column + c;
                assert!(to + S::LANES.min(columns - c) <= out.len());
                // SAFETY: a whole vector at `to` is inside the result, by the assertion, and so in the residual, which is as
                // long; in the shift, of `outputs`, as column + columns <= outputs. Other vectors go through a buffer.
                unsafe {
                    if whole {
                        let mut v = v;
                        if let Some(shift) = shift {
                            v = S::add(v, S::load(shift.as_ptr().add(column + c)));
                        }
                        if let Some(residual) = residual {
                            v = S::add(v, S::load(residual.as_ptr().add(to)));
                        }
                        S::store(out.data().add(to), v);
                    } else {
                        let mut lanes = [0f32; 16];
                        S::store(lanes.as_mut_ptr(), v);
                        for (lane, v) in lanes.into_iter().enumerate().take(columns - c) {
                            let mut v = v;
                            if let Some(shift) = shift {
                                v += shift[column + c + lane];
                            }
                            if let Some(residual) = residual {
                                v += residual[to + lane];
                            }
                            out.data().add(to + lane).write(v);
                        }
                    }
                }
            }
        }
    }
}

multiversion! {
    /// `A^T m A` of a tile's sums, point p's `width` columns (a multiple of 16) at `sums + p stride`, to its pixels that are
    /// inside of the picture. The tile begins inside; shift is of `outputs` numbers, residual of the result's.
    unsafe fn transform_sums(sums: *const f32, stride: usize, width: usize, target: Target<'_>) = transform_sums_generic
}

#[inline(always)]
unsafe fn add_rows_generic<S: Simd>(from: *const f32, to: *mut f32, count: usize) {
    for at in (0..count).step_by(S::LANES) {
        // SAFETY: both are valid for `count` numbers, a multiple of 16, by the caller's promise.
        unsafe {
            S::store(
                to.add(at),
                S::add(S::load(to.add(at)), S::load(from.add(at))),
            )
        };
    }
}

multiversion! {
    /// `to += from` of `count` numbers, a multiple of 16, both valid.
    unsafe fn add_rows(from: *const f32, to: *mut f32, count: usize) = add_rows_generic
}

thread_local! {
    /// A panel widened, a panel transformed, and sums.
    static SCRATCHES: RefCell<[Scratch; 3]> = RefCell::default();
}

/// A panel of columns of some tiles.
struct Task<'a> {
    isa: Isa,
    /// `[36][count][C]`.
    pixels: &'a [f32],
    count: usize,
    w: Matrix<'a>,
    column: usize,
    /// `[images or 1, O]`.
    shifts: Option<&'a [f32]>,
    own_shifts: bool,
    residual: Option<&'a [f32]>,
    out: Shared,
}

impl Task<'_> {
    fn run(
        &self,
        tiles: std::ops::Range<usize>,
        place: impl Fn(usize) -> (usize, usize, usize),
        size: (usize, usize),
    ) {
        let channels = self.w.inputs;
        let outputs = self.w.outputs;
        let width = PANEL.min(padded_columns(outputs) - self.column);
        let columns = PANEL.min(outputs - self.column);
        SCRATCHES.with_borrow_mut(|[widened, weights, sums]| {
            let (panel, given) = self.w.panel(self.column, widened);
            debug_assert_eq!(given, width);
            let weights = weights.bytes(POINTS * channels * width * 4).cast::<f32>();
            let sums = sums.bytes(POINTS * CHUNK * PANEL * 4).cast::<f32>();
            // SAFETY: the panel is [9][channels][width], the scratch 36 of those.
            unsafe { transform_weights(self.isa, panel, channels, width, weights) };
            let runs: Vec<Vec<Segment>> = runs(channels, &[0], channels, width);
            for first in tiles.clone().step_by(CHUNK) {
                let count = CHUNK.min(tiles.end - first);
                for point in 0..POINTS {
                    let own =
                        &self.pixels[(point * self.count + first) * channels..][..count * channels];
                    for (number, run) in runs.iter().enumerate() {
                        for row in (0..count).step_by(ROWS) {
                            let rows = ROWS.min(count - row);
                            let mut buffer = [0f32; ROWS * PANEL];
                            // SAFETY: rows row .. + rows of `own` have `channels` numbers, to which the run's segments
                            // keep; the point's weights are `channels` rows of `width`. The sums are CHUNK rows of PANEL
                            // for each point, row + rows <= count <= CHUNK; the buffer is ROWS of those.
                            unsafe {
                                let a = own.as_ptr().add(row * channels);
                                let b = weights.add(point * channels * width);
                                let to = sums.add((point * CHUNK + row) * PANEL);
                                let into = if number == 0 { to } else { buffer.as_mut_ptr() };
                                rows_by_panel(self.isa, a, channels, rows, b, width, run, into);
                                if number > 0 {
                                    add_rows(self.isa, buffer.as_ptr(), to, rows * PANEL);
                                }
                            }
                        }
                    }
                }
                for tile in 0..count {
                    let (image, top, left) = place(first + tile);
                    let target = Target {
                        at: (top, left),
                        size,
                        image: image * size.0 * size.1,
                        column: self.column,
                        columns,
                        outputs,
                        shift: self.shifts.map(|shifts| {
                            let image = if self.own_shifts { image } else { 0 };
                            &shifts[image * outputs..][..outputs]
                        }),
                        residual: self.residual,
                        out: self.out,
                    };
                    // SAFETY: `width` <= PANEL sums at each point of each tile; the tile begins inside of the picture, and
                    // no other task has its columns of these pixels.
                    unsafe {
                        let sums = sums.add(tile * PANEL);
                        transform_sums(self.isa, sums, CHUNK * PANEL, width, target);
                    }
                }
            }
        });
    }
}
