//! Products of activations and weights: linear layers and convolutions, which are the same thing here.
//!
//! A convolution is a sum of products, one for each tap of its kernel. The image is copied once, padded, into a scratch
//! in which a step to the next output pixel is a step to the next row for every tap, so that the rows of each product
//! lie at one stride and nothing the size of kernel x image (im2col) is ever made.
//!
//! Batch invariance: an element of the result is the sum over runs of inner indices, run after run, each run summed by
//! itself; runs are cut by the number of channels and taps alone. Which rows and columns share a task changes nothing.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use candle_core::{DType, Result, bail};

use super::buffers::{Scratch, Shared, Unfilled};
use super::geometry::{Gather, Geometry, NONE};
use super::machine::Machine;
#[cfg(target_arch = "x86_64")]
use super::packing::padded_columns;
use super::packing::{Matrix, PANEL, Packed, SQUARE, packed_len};
#[cfg(target_arch = "x86_64")]
use super::pointwise::geglu_one;
use super::simd::{Simd, multiversion};
use super::team;
use super::terms::{Terms, shifts};
use super::winograd;

#[cfg(target_arch = "x86_64")]
use super::amx;

/// Rows of a register block.
const REGISTER_ROWS: usize = 6;
/// Inner indices that are summed in one go by vector units: a panel of that many rows (32 KiB) stays in the L1 cache,
/// and rounding errors grow with the root of its length and of the number of runs, not of the whole.
const RUN: usize = 128;
/// Steps of 32 inputs by which a task's first weights are asked for before they are multiplied: as many as take about as long
/// as memory does to answer. Of a run of so few steps these are the next run's.
#[cfg(target_arch = "x86_64")]
const NEAR: usize = 2;
/// Bytes of scratch that a task may fill with activations: half of a usual L2 cache, the other half being the weights'.
const SCRATCH: usize = 1 << 20;

/// `out [rows, O] = x [rows, K] w + terms`.
pub(super) fn linear(
    machine: Machine,
    x: &[f32],
    w: Matrix<'_>,
    terms: Terms<'_>,
    rows_per_image: usize,
    out: Unfilled<'_>,
) -> Result<()> {
    let rows = rows_of(x, w, w.outputs, out)?;
    let cut = Cut::of(machine, w, rows, rows.div_ceil(SQUARE), false);
    let bands = |bands| row_bands(rows, bands);
    run(machine, x, w, terms, rows_per_image, cut, false, out, bands)
}

/// `out [rows, O / 2] = h gelu(g)` where `[h, g] = x [rows, K] w + bias`, without writing h and g down; false where that
/// cannot be done, and nothing was.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused_variables, clippy::unnecessary_wraps)
)]
pub(super) fn gated(
    machine: Machine,
    x: &[f32],
    w: Matrix<'_>,
    bias: Option<&[f32]>,
    out: Unfilled<'_>,
) -> Result<bool> {
    // Both halves must begin at a block of columns.
    if !machine.amx || !w.outputs.is_multiple_of(2 * PANEL) || w.taps != 1 {
        return Ok(false);
    }
    let rows = rows_of(x, w, w.outputs / 2, out)?;
    let cut = Cut::of(machine, w, rows, rows.div_ceil(SQUARE), true);
    let terms = Terms {
        bias,
        ..Terms::default()
    };
    let bands = |bands| row_bands(rows, bands);
    run(machine, x, w, terms, 1, cut, true, out, bands)?;
    Ok(true)
}

/// How many rows x and the result have, which must agree.
fn rows_of(x: &[f32], w: Matrix<'_>, outputs: usize, out: &[MaybeUninit<f32>]) -> Result<usize> {
    let rows = x.len().checked_div(w.inputs).unwrap_or(0);
    if x.len() != rows * w.inputs || out.len() != rows * outputs || rows == 0 {
        bail!("a product's rows do not fit one another");
    }
    Ok(rows)
}

/// The rows of a task, and for a convolution how they are found.
type Band = (std::ops::Range<usize>, Option<Gather>);

/// About so many bands of rows.
fn row_bands(rows: usize, bands: usize) -> Vec<Band> {
    let per_band = rows.div_ceil(bands).next_multiple_of(SQUARE).max(SQUARE);
    (0..rows)
        .step_by(per_band)
        .map(|first| (first..rows.min(first + per_band), None))
        .collect()
}

/// The convolution of images `[images, pixels, C]` to `[images, pixels, O]`.
pub(super) fn convolution(
    machine: Machine,
    x: &[f32],
    images: usize,
    w: Matrix<'_>,
    terms: Terms<'_>,
    g: Geometry,
    out: Unfilled<'_>,
) -> Result<()> {
    if x.len() != images * g.source.0 * g.source.1 * w.inputs
        || out.len() != images * g.out.0 * g.out.1 * w.outputs
        || w.taps != g.kernel.0 * g.kernel.1
        || w.taps == 0
        || w.inputs == 0
    {
        bail!("a convolution's operands do not fit one another");
    }
    check(x, w, terms, g.out.0 * g.out.1, w.outputs, out)?;
    // Not in tiles: there multiplications are not what a convolution waits for, and direct sums are ten times nearer.
    if winograd::pays(w, &g) && !machine.in_tiles(w) {
        return winograd::convolution(machine.isa, x, images, w, terms, g, out);
    }
    let lines = g.lines(images);
    let cut = Cut::of(machine, w, lines * g.pitch(), lines, false);
    let pixels = g.out.0 * g.out.1;
    run(machine, x, w, terms, pixels, cut, false, out, |bands| {
        let per_band = lines.div_ceil(bands);
        let mut bands = Vec::from_iter((0..lines.div_ceil(per_band)).map(|_| (0..0, None)));
        team::for_each_chunk(&mut bands, 1, |band, to| {
            let own = band * per_band..lines.min((band + 1) * per_band);
            to[0].1 = Some(g.gather(images, own));
        });
        bands
    })
}

/// How a product is cut into tasks: bands of rows x groups of columns.
#[derive(Clone, Copy, Debug)]
struct Cut {
    bands: usize,
    groups: usize,
    /// Groups begin at multiples of so many columns.
    width: usize,
}

/// About how many cycles of a core parts of a product take, of 32 rows, 32 inputs and 32 columns: the multiplications as
/// counted, the rest as tried out on the demo's U-Net and Stable Diffusion's.
#[derive(Clone, Copy, Debug)]
struct Costs {
    /// Multiplying such a block.
    block: usize,
    /// Preparing 32 rows x 32 inputs: cutting them into parts, or copying them.
    activations: usize,
    /// Reading the weights, 32 inputs x 32 columns, from memory.
    weights: usize,
}

/// A task, whatever it does.
const TASK: usize = 3000;

impl Cut {
    /// The cut that should end first. Every group of columns prepares its band's activations, every band reads its group's
    /// weights, and many tasks end closer together than few.
    fn of(machine: Machine, w: Matrix<'_>, rows: usize, most_bands: usize, gated: bool) -> Self {
        // Bytes of a prepared row, columns that groups begin at multiples of, costs.
        let (per_row, width, costs) = if machine.in_tiles(w) {
            let plan = Tiled::of(w, gated);
            let costs = Costs {
                block: 64 * plan.products,
                activations: if plan.parts == 3 { 800 } else { 400 },
                weights: match w.data {
                    Packed::Split(_, parts) => 128 * parts,
                    Packed::Bf16(_) => 128,
                    // Cut as well.
                    Packed::F32(_) | Packed::Transposed(_) | Packed::F16(_) => 800,
                },
            };
            (plan.steps * plan.parts * 64, SQUARE, costs)
        } else {
            // 32 multiplications and additions a cycle, at best.
            let costs = Costs {
                block: 1100,
                activations: if w.taps > 1 { 150 } else { 0 },
                weights: match w.data {
                    Packed::Transposed(_) => 1024,
                    _ => 512,
                },
            };
            (w.inputs * 4, PANEL, costs)
        };
        let fits = (SCRATCH / per_row.max(1)).max(4 * SQUARE);
        let written = if gated { w.outputs / 2 } else { w.outputs };
        let threads = rayon::current_num_threads();
        let fewest = rows.div_ceil(fits).clamp(1, most_bands);
        let (columns, inputs) = (w.outputs.div_ceil(SQUARE), w.inputs.div_ceil(SQUARE));
        let most_groups = written.div_ceil(width);
        let cost = |bands: usize, groups: usize| {
            let blocks = bands * rows.div_ceil(bands).div_ceil(SQUARE) * inputs;
            let all = blocks * columns * w.taps * costs.block
                + blocks * groups * costs.activations
                + bands * inputs * columns * w.taps * costs.weights
                + bands * groups * TASK;
            let tasks = bands * groups;
            // Threads without a task in the last round wait for those that have one; and who is late, by a quarter of one.
            let rounds = tasks.div_ceil(threads);
            (all * (4 * rounds + usize::from(threads > 1))).div_ceil(4 * tasks)
        };
        let most = most_bands.min(fewest.max(4 * threads));
        // As many columns in each group as may be, so that none is left with few.
        let even = |groups: &usize| most_groups.div_ceil(most_groups.div_ceil(*groups)) == *groups;
        let groups: Vec<usize> = (1..=most_groups.min(4 * threads)).filter(even).collect();
        (fewest..=most)
            .flat_map(|bands| groups.iter().map(move |&groups| (bands, groups)))
            .min_by_key(|&(bands, groups)| cost(bands, groups))
            .map_or(
                Self {
                    bands: fewest,
                    groups: 1,
                    width,
                },
                |(bands, groups)| Self {
                    bands,
                    groups,
                    width,
                },
            )
    }
}

/// How the matrix unit goes through a weight.
#[derive(Clone, Copy, Debug)]
struct Tiled {
    /// Parts that activations are cut into.
    parts: usize,
    /// Products of parts that a product is the sum of.
    products: usize,
    /// Steps of 32 inputs that are summed, for all taps, before the sum is added to the result.
    steps: usize,
}

impl Tiled {
    /// `whole`: all inputs in one run, for what is not a sum.
    fn of(w: Matrix<'_>, whole: bool) -> Self {
        let (parts, products): (usize, usize) = match w.data {
            Packed::F32(_) | Packed::Transposed(_) => (3, 6),
            Packed::F16(_) | Packed::Split(_, 2) => (3, 5),
            Packed::Split(..) => (3, 3),
            Packed::Bf16(_) => (1, 1),
        };
        // A step is 64 cycles for each product; adding a block to the result costs about 200, so some 4000 are done
        // between.
        let most = (if products == 1 { 128 } else { 64 } / products).div_ceil(w.taps);
        let all = w.inputs.div_ceil(SQUARE);
        let most = if whole { all } else { most };
        // Runs of one length, as far as that goes.
        Self {
            parts,
            products,
            steps: all.div_ceil(all.div_ceil(most)),
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn run(
    machine: Machine,
    x: &[f32],
    w: Matrix<'_>,
    terms: Terms<'_>,
    pixels: usize,
    cut: Cut,
    gated: bool,
    out: Unfilled<'_>,
    bands: impl FnOnce(usize) -> Vec<Band>,
) -> Result<()> {
    // The columns that are written.
    let outputs = if gated { w.outputs / 2 } else { w.outputs };
    check(x, w, terms, pixels, outputs, out)?;
    if machine.in_tiles(w) && matches!(w.data, Packed::Transposed(_)) {
        bail!("weights that are transposed when they are read have no tiles");
    }
    let bands = bands(cut.bands);
    let per_group = outputs.div_ceil(cut.width).div_ceil(cut.groups) * cut.width;
    let shifts = shifts(terms, w.outputs);
    let shared = Shared::of(out);
    let tasks: Vec<_> = bands
        .iter()
        .flat_map(|band| {
            (0..outputs)
                .step_by(per_group)
                .map(move |first| (band, first..outputs.min(first + per_group)))
        })
        .collect();
    // Tasks differ in their rows or their columns, and a band's positions map to rows of its own: no element of `out`
    // is written by two.
    team::for_each(tasks.len(), |task| {
        let ((rows, gather), columns) = &tasks[task];
        let task = Task {
            x,
            w,
            terms,
            gather: gather.as_ref(),
            rows: rows.clone(),
            shifts: shifts.as_deref(),
            pixels: if terms.image.is_some() { pixels } else { 0 },
            columns: columns.clone(),
            gated,
            out: shared,
        };
        #[cfg(target_arch = "x86_64")]
        if machine.in_tiles(w) {
            return task.by_tiles(machine);
        }
        task.by_vectors(machine);
    });
    Ok(())
}

/// Refuses operands that do not fit one another; `outputs` are the columns that are written.
fn check(
    x: &[f32],
    w: Matrix<'_>,
    terms: Terms<'_>,
    pixels: usize,
    outputs: usize,
    out: &[MaybeUninit<f32>],
) -> Result<()> {
    let (len, expected) = {
        let of = |dtype| packed_len(dtype, w.outputs, w.inputs, w.taps);
        match w.data {
            Packed::F32(data) => (data.len(), of(DType::F32)),
            Packed::Transposed(data) => (
                data.len(),
                packed_len(DType::F32, w.inputs, w.outputs, w.taps),
            ),
            Packed::F16(data) => (data.len(), of(DType::F16)),
            Packed::Bf16(data) => (data.len(), of(DType::BF16)),
            Packed::Split(data, parts) => (2 * data.len(), parts * of(DType::BF16)),
        }
    };
    let fits = |term: Option<&[f32]>, len: usize| term.is_none_or(|term| term.len() == len);
    if len != expected
        || pixels == 0
        || !out.len().is_multiple_of((pixels * outputs).max(1))
        || !fits(terms.bias, w.outputs)
        || !fits(terms.image, out.len() / pixels)
        || !fits(terms.residual, out.len())
        || x.len() > NONE as usize
        || out.len() / outputs.max(1) > NONE as usize
    {
        bail!("a product's operands do not fit one another");
    }
    Ok(())
}

thread_local! {
    /// Activations and weights of the task at hand.
    static SCRATCHES: RefCell<(Scratch, Scratch)> = RefCell::default();
}

/// Some rows and columns of a product.
struct Task<'a> {
    x: &'a [f32],
    w: Matrix<'a>,
    terms: Terms<'a>,
    /// For a convolution.
    gather: Option<&'a Gather>,
    /// Else the rows.
    rows: std::ops::Range<usize>,
    /// Bias and term of the images, `[images or 1, O]`.
    shifts: Option<&'a [f32]>,
    /// Rows that an image has in the result, if its shift is its own; else 0.
    pixels: usize,
    columns: std::ops::Range<usize>,
    /// Whether the columns are `h gelu(g)` of those of w and of those half of its columns on.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    gated: bool,
    out: Shared,
}

/// Where a block of sums goes.
#[derive(Clone, Copy)]
struct Block<'a> {
    sums: *const f32,
    stride: usize,
    /// Destination rows; those that are [`NONE`] go nowhere.
    rows: &'a [u32],
    /// First column, and how many.
    column: usize,
    columns: usize,
    outputs: usize,
    out: Shared,
    /// Whether this is the first run of inner indices, which brings the terms along.
    first: bool,
    shifts: Option<&'a [f32]>,
    pixels: usize,
    residual: Option<&'a [f32]>,
}

/// Adds a block of sums of V whole vectors of columns, with one shift for all rows, to the result.
#[inline(always)]
unsafe fn emit_whole<S: Simd, const V: usize>(block: Block<'_>) {
    assert!(block.column + V * S::LANES <= block.outputs);
    assert!(
        block
            .shifts
            .is_none_or(|shifts| shifts.len() >= block.outputs)
    );
    // SAFETY: V vectors at `column` are inside the shift's `outputs` numbers, and at each row inside the result, by the
    // assertions, and so inside the residual, which is as long. V vectors at each row of the sums are the caller's promise.
    unsafe {
        let mut shift = [S::splat(0.0); V];
        if let Some(shifts) = block.shifts {
            for (v, shift) in shift.iter_mut().enumerate() {
                *shift = S::load(shifts.as_ptr().add(block.column + v * S::LANES));
            }
        }
        for (i, &row) in block.rows.iter().enumerate() {
            if row == NONE {
                continue;
            }
            let at = row as usize * block.outputs + block.column;
            assert!(at + V * S::LANES <= block.out.len());
            let sums = block.sums.add(i * block.stride);
            let to = block.out.data().add(at);
            for (v, &shift) in shift.iter().enumerate() {
                let c = v * S::LANES;
                let mut sum = S::load(sums.add(c));
                if block.first {
                    if block.shifts.is_some() {
                        sum = S::add(sum, shift);
                    }
                    if let Some(residual) = block.residual {
                        sum = S::add(sum, S::load(residual.as_ptr().add(at + c)));
                    }
                } else {
                    sum = S::add(S::load(to.add(c)), sum);
                }
                S::store(to.add(c), sum);
            }
        }
    }
}

/// Adds a block of sums to the result.
#[inline(always)]
unsafe fn emit_generic<S: Simd>(block: Block<'_>) {
    let Block {
        sums,
        stride,
        rows,
        column,
        columns,
        outputs,
        out,
        first,
        shifts,
        pixels,
        residual,
    } = block;
    assert!(column + columns <= outputs);
    if pixels == 0 && (columns == 2 * S::LANES || columns == 4 * S::LANES) {
        // SAFETY: the same promises; the one shift is of `outputs` numbers.
        unsafe {
            if columns == 2 * S::LANES {
                emit_whole::<S, 2>(block);
            } else {
                emit_whole::<S, 4>(block);
            }
        }
        return;
    }
    for (i, &row) in rows.iter().enumerate() {
        if row == NONE {
            continue;
        }
        let at = row as usize * outputs + column;
        assert!(at + columns <= out.len());
        let shift = shifts.map(|shifts| {
            let image = (row as usize).checked_div(pixels).unwrap_or(0);
            &shifts[image * outputs..][..outputs]
        });
        // SAFETY: `columns` numbers at `sums` row i are the caller's promise; those of the result at `at` are inside it,
        // by the assertion, and so are the residual's, which is of the same length, and the shift's, of `outputs`.
        unsafe {
            let sums = sums.add(i * stride);
            let to = out.data().add(at);
            let mut c = 0;
            while c + S::LANES <= columns {
                let mut v = S::load(sums.add(c));
                if first {
                    if let Some(shift) = shift {
                        v = S::add(v, S::load(shift.as_ptr().add(column + c)));
                    }
                    if let Some(residual) = residual {
                        v = S::add(v, S::load(residual.as_ptr().add(at + c)));
                    }
                } else {
                    v = S::add(S::load(to.add(c)), v);
                }
                S::store(to.add(c), v);
                c += S::LANES;
            }
            while c < columns {
                let mut v = *sums.add(c);
                // As the vectors do it: where nothing is added, not even a zero, which would turn -0 to 0.
                if first {
                    if let Some(shift) = shift {
                        v += shift[column + c];
                    }
                    if let Some(residual) = residual {
                        v += residual[at + c];
                    }
                } else {
                    v += *to.add(c);
                }
                *to.add(c) = v;
                c += 1;
            }
        }
    }
}

multiversion! {
    /// Adds a block of sums to the result. The sums must be valid for the block's rows and columns; shift and residual
    /// as long as `outputs` and the result.
    unsafe fn emit(block: Block<'_>) = emit_generic
}

/// Writes `h gelu(g)` of two blocks of sums, h and g, with their shifts.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn emit_gated_generic<S: Simd>(block: Block<'_>, gates: *const f32) {
    let half = block.outputs / 2;
    let (column, columns) = (block.column, block.columns);
    assert!(columns.is_multiple_of(S::LANES) && column + columns <= half);
    assert!(block.shifts.is_none_or(|shifts| shifts.len() == 2 * half));
    for (i, &row) in block.rows.iter().enumerate() {
        if row == NONE {
            continue;
        }
        let at = row as usize * half + column;
        assert!(at + columns <= block.out.len());
        for c in (0..columns).step_by(S::LANES) {
            // SAFETY: `columns` numbers, a multiple of a vector, at row i of both sums are the caller's promise; those of
            // the result are inside it and those of the shifts below 2 half, by the assertions.
            unsafe {
                let mut h = S::load(block.sums.add(i * block.stride + c));
                let mut g = S::load(gates.add(i * block.stride + c));
                if let Some(shifts) = block.shifts {
                    h = S::add(h, S::load(shifts.as_ptr().add(column + c)));
                    g = S::add(g, S::load(shifts.as_ptr().add(half + column + c)));
                }
                S::store(block.out.data().add(at + c), geglu_one::<S>(h, g));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
multiversion! {
    /// Writes `h gelu(g)` of two blocks of sums. Both must be valid for the block's rows and columns.
    unsafe fn emit_gated(block: Block<'_>, gates: *const f32) = emit_gated_generic
}

/// Numbers that follow one another in both operands.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    /// Where they begin in a row of activations, in elements.
    a: usize,
    /// Where they begin in the panel, in elements.
    b: usize,
    /// How many.
    len: usize,
}

/// The sums over all segments for M rows and N vectors of columns, written to `out` rows [`PANEL`] apart.
#[inline(always)]
unsafe fn register_block<S: Simd, const M: usize, const N: usize>(
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    segments: &[Segment],
    out: *mut f32,
) {
    // SAFETY: the caller promises M rows of a and N vectors of each row of b at all segments, and M x N vectors of out.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; M];
        for s in segments {
            let a = a.add(s.a);
            let mut b = b.add(s.b);
            for k in 0..s.len {
                let mut columns = [S::splat(0.0); N];
                for (n, column) in columns.iter_mut().enumerate() {
                    *column = S::load(b.add(n * S::LANES));
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let x = S::splat(*a.add(m * a_stride + k));
                    for (sum, &column) in sums.iter_mut().zip(&columns) {
                        *sum = S::fma(x, column, *sum);
                    }
                }
                b = b.add(b_stride);
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, &sum) in sums.iter().enumerate() {
                S::store(out.add(m * PANEL + n * S::LANES), sum);
            }
        }
    }
}

/// The sums of up to [`REGISTER_ROWS`] rows and `width` (a multiple of 16, at most [`PANEL`]) columns.
#[inline(always)]
unsafe fn rows_by_panel_generic<S: Simd>(
    a: *const f32,
    a_stride: usize,
    rows: usize,
    b: *const f32,
    width: usize,
    segments: &[Segment],
    out: *mut f32,
) {
    let step = S::BLOCK * S::LANES;
    let mut c = 0;
    while c < width {
        // SAFETY: columns c .. c + n vectors are below `width`, which is a multiple of 16 and so of every vector; the
        // rest is the caller's promise, passed on.
        unsafe {
            macro_rules! block {
                ($m:literal) => {{
                    let (b, out) = (b.add(c), out.add(c));
                    match (S::BLOCK, (width - c).min(step) / S::LANES) {
                        (4, 4) => register_block::<S, $m, 4>(a, a_stride, b, width, segments, out),
                        (4, 3) => register_block::<S, $m, 3>(a, a_stride, b, width, segments, out),
                        (_, 2) => register_block::<S, $m, 2>(a, a_stride, b, width, segments, out),
                        _ => register_block::<S, $m, 1>(a, a_stride, b, width, segments, out),
                    }
                }};
            }
            match rows {
                1 => block!(1),
                2 => block!(2),
                3 => block!(3),
                4 => block!(4),
                5 => block!(5),
                _ => block!(6),
            }
        }
        c += step.min(width - c);
    }
}

multiversion! {
    /// The sums over all segments of `rows` rows of a (at most [`REGISTER_ROWS`], `a_stride` apart) and a panel of `width`
    /// columns (a multiple of 16, at most [`PANEL`]), to `out` rows [`PANEL`] apart. Pointers must be valid for that.
    pub(super) unsafe fn rows_by_panel(a: *const f32, a_stride: usize, rows: usize, b: *const f32, width: usize,
                            segments: &[Segment], out: *mut f32) = rows_by_panel_generic
}

/// The runs of inner indices that vector units sum in one go: whole taps while they are small, pieces of one when large.
pub(super) fn runs(
    inputs: usize,
    taps: &[usize],
    a_stride: usize,
    width: usize,
) -> Vec<Vec<Segment>> {
    let mut runs: Vec<Vec<Segment>> = Vec::new();
    let mut room = 0;
    for (tap, &row) in taps.iter().enumerate() {
        for first in (0..inputs).step_by(RUN) {
            let len = RUN.min(inputs - first);
            let segment = Segment {
                a: row * a_stride + first,
                b: (tap * inputs + first) * width,
                len,
            };
            match runs.last_mut() {
                Some(run) if len <= room => {
                    run.push(segment);
                    room -= len;
                }
                _ => {
                    runs.push(vec![segment]);
                    room = RUN - len;
                }
            }
        }
    }
    runs
}

impl Task<'_> {
    /// The rows of the result that the positions are.
    fn destinations(&self) -> std::borrow::Cow<'_, [u32]> {
        match &self.gather {
            Some(gather) => gather.out.as_slice().into(),
            None => self.rows.clone().map(|row| row as u32).collect(),
        }
    }

    fn block<'b>(&'b self, sums: *const f32, stride: usize, first: bool) -> Block<'b> {
        Block {
            sums,
            stride,
            rows: &[],
            column: 0,
            columns: 0,
            outputs: self.w.outputs,
            out: self.out,
            first,
            shifts: self.shifts,
            pixels: self.pixels,
            residual: self.terms.residual,
        }
    }

    /// By multiply-and-add of vectors.
    fn by_vectors(&self, machine: Machine) {
        let isa = machine.isa;
        let inputs = self.w.inputs;
        SCRATCHES.with_borrow_mut(|(activations, weights)| {
            let out = self.destinations();
            let a: *const f32 = match &self.gather {
                Some(gather) => {
                    let scratch = activations
                        .bytes(gather.rows.len() * inputs * 4)
                        .cast::<f32>();
                    // SAFETY: the scratch is that long and aligned to 64; any bytes are float32 numbers.
                    let scratch = unsafe {
                        std::slice::from_raw_parts_mut(scratch, gather.rows.len() * inputs)
                    };
                    for (to, &row) in scratch.chunks_exact_mut(inputs).zip(&gather.rows) {
                        if row == NONE {
                            to.fill(0.0);
                        } else {
                            to.copy_from_slice(&self.x[row as usize * inputs..][..inputs]);
                        }
                    }
                    scratch.as_ptr()
                }
                None => self.x[self.rows.start * inputs..self.rows.end * inputs].as_ptr(),
            };
            let taps = self.gather.map_or(&[0][..], |gather| &gather.taps);
            debug_assert_eq!(taps.len(), self.w.taps);
            let mut sums = [0f32; REGISTER_ROWS * PANEL];
            for panel in (self.columns.start..self.columns.end).step_by(PANEL) {
                let (b, width) = self.w.panel(panel, weights);
                let columns = (self.columns.end - panel).min(PANEL);
                for (number, run) in runs(inputs, taps, inputs, width).iter().enumerate() {
                    for (i, rows) in out.chunks(REGISTER_ROWS).enumerate() {
                        let first = i * REGISTER_ROWS;
                        // SAFETY: row `first + r` of a tap is row first + r + tap of the scratch, which has as many
                        // rows as the last tap and the positions reach (`Geometry::gather`), or of x, whose slice was
                        // taken above for as many rows as `out` has; segments end inside a row of `inputs`. The panel
                        // is taps * inputs rows of `width`, to which the segments' `b` point. `sums` has six rows.
                        unsafe {
                            rows_by_panel(
                                isa,
                                a.add(first * inputs),
                                inputs,
                                rows.len(),
                                b,
                                width,
                                run,
                                sums.as_mut_ptr(),
                            );
                            emit(
                                isa,
                                Block {
                                    rows,
                                    column: panel,
                                    columns,
                                    ..self.block(sums.as_ptr(), PANEL, number == 0)
                                },
                            );
                        }
                    }
                }
            }
        });
    }

    /// Asks for a block of the result, which is needed when its sums are done.
    #[cfg(target_arch = "x86_64")]
    fn prefetch(&self, rows: &[u32], column: usize) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let outputs = if self.gated {
            self.w.outputs / 2
        } else {
            self.w.outputs
        };
        for &row in rows {
            let at = (row as usize).wrapping_mul(outputs).wrapping_add(column);
            let to = self.out.data().wrapping_add(at).cast::<i8>();
            // SAFETY: a hint, which may name any address; SSE is part of x86-64.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(to);
                _mm_prefetch::<_MM_HINT_T0>(to.wrapping_add(64));
            }
        }
    }

    /// By the matrix unit, or the vector unit's products of pairs.
    #[cfg(target_arch = "x86_64")]
    fn by_tiles(&self, machine: Machine) {
        match self.w.data {
            // None is transposed on read where there are tiles (`backward::transposed`).
            Packed::F32(_) | Packed::Transposed(_) => self.tiled::<3, 3>(machine),
            Packed::F16(_) => self.tiled::<3, 2>(machine),
            Packed::Split(_, 1) => self.tiled::<3, 1>(machine),
            Packed::Split(..) => self.tiled::<3, 2>(machine),
            Packed::Bf16(_) => self.tiled::<1, 1>(machine),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn tiled<const A: usize, const B: usize>(&self, machine: Machine) {
        let isa = machine.isa;
        use amx::{BLOCK, DEPTH, TILE};
        let inputs = self.w.inputs;
        let plan = Tiled::of(self.w, self.gated);
        debug_assert_eq!(plan.parts, A);
        let all_steps = inputs.div_ceil(DEPTH);
        SCRATCHES.with_borrow_mut(|(activations, weights)| {
            let tiles = machine.amx.then(amx::Tiles::configure);
            let tiles = tiles.as_ref();
            let out = self.destinations();
            let own: Vec<u32>;
            let (rows, taps) = match &self.gather {
                Some(gather) => (gather.rows.as_slice(), gather.taps.as_slice()),
                None => {
                    let mut all: Vec<u32> = out.to_vec();
                    all.resize(out.len().next_multiple_of(BLOCK), NONE);
                    own = all;
                    (own.as_slice(), &[0usize][..])
                }
            };
            // A row of 32 numbers is 64 bytes; rows follow one another, parts of all rows, steps of all parts.
            let part = rows.len() * 64;
            let byte_taps: Vec<usize> = taps.iter().map(|tap| tap * 64).collect();
            let a = activations.bytes(plan.steps * A * part);
            let b_size = taps.len() * plan.steps * B * 2 * TILE;
            let b = weights.bytes(2 * b_size);
            let mut sums = [0f32; 2 * BLOCK * BLOCK];
            let own = sums.as_mut_ptr();
            for first in (0..all_steps).step_by(plan.steps) {
                let steps = plan.steps.min(all_steps - first);
                // SAFETY: the scratch has room for steps * A * part bytes, part = 64 bytes for each row. Tiles are used where
                // AVX-512 F and BW were detected.
                unsafe {
                    amx::split_rows::<A>(self.x, inputs, rows, first * DEPTH, steps, a, part);
                }
                for column in (self.columns.start..self.columns.end).step_by(BLOCK) {
                    let blocks = out.len().div_ceil(BLOCK);
                    let half = self.w.outputs / 2;
                    let taken =
                        |column, to| self.columns_tiles::<B>(column, first, steps, taps.len(), to);
                    let gate = self
                        .gated
                        .then(|| taken(column + half, b.wrapping_add(b_size)));
                    let (tiles_of, b_tap) = taken(column, b);
                    // Weights that are packed as tiles come from memory: those of the next columns are asked for while
                    // these are at work, a share with each block of rows. Those of the first come just before their turn.
                    let packed = matches!(self.w.data, Packed::Bf16(_) | Packed::Split(..));
                    let behind = packed && column + BLOCK < self.columns.end;
                    let next = behind.then(|| taken(column + BLOCK, b));
                    let next_gate = (behind && self.gated).then(|| taken(column + BLOCK + half, b));
                    let of_step = B * 2 * TILE;
                    let lines = of_step / 64;
                    let share = |next: Option<(*const u8, usize)>, i: usize| match next {
                        Some((from, tap)) => amx::Ahead {
                            from: from.wrapping_add(i * lines / blocks * 64),
                            tap,
                            step: of_step,
                            lines: (i + 1) * lines / blocks - i * lines / blocks,
                        },
                        None => amx::Ahead::NONE,
                    };
                    let near = |(from, tap): (*const u8, usize), i: usize| {
                        if packed && column == self.columns.start && i == 0 {
                            amx::Ahead {
                                from: from.wrapping_add(NEAR * of_step),
                                tap,
                                step: of_step,
                                lines,
                            }
                        } else {
                            amx::Ahead::NONE
                        }
                    };
                    let columns = (self.columns.end - column).min(BLOCK);
                    for (i, destinations) in out.chunks(BLOCK).enumerate() {
                        self.prefetch(destinations, column);
                        let rows = amx::Rows {
                            data: a.wrapping_add(i * BLOCK * 64),
                            stride: 64,
                            part,
                            step: A * part,
                        };
                        let ahead = [share(next, i), near((tiles_of, b_tap), i)];
                        // SAFETY: 32 rows from i * 32 of every tap are inside the rows of the scratch: `gather` made as
                        // many as the last tap and the positions, rounded up to 32, reach. b was filled for all taps
                        // and steps; the sums are 32 x 32.
                        unsafe {
                            amx::multiply::<A, B>(
                                tiles, rows, &byte_taps, steps, tiles_of, b_tap, ahead, own,
                            );
                            let block = Block {
                                rows: destinations,
                                column,
                                columns,
                                ..self.block(own, BLOCK, first == 0)
                            };
                            if let Some((b, b_tap)) = gate {
                                let gates = own.add(BLOCK * BLOCK);
                                let ahead = [share(next_gate, i), near((b, b_tap), i)];
                                amx::multiply::<A, B>(
                                    tiles, rows, &byte_taps, steps, b, b_tap, ahead, gates,
                                );
                                emit_gated(isa, block, gates);
                            } else {
                                emit(isa, block);
                            }
                        }
                    }
                }
            }
        });
    }

    /// The tiles `[tap][step][part][2][TILE]` of 32 columns, and the bytes from tap to tap: cut from the panel into the
    /// scratch, or where they are packed.
    #[cfg(target_arch = "x86_64")]
    fn columns_tiles<const B: usize>(
        &self,
        column: usize,
        first: usize,
        steps: usize,
        taps: usize,
        scratch: *mut u8,
    ) -> (*const u8, usize) {
        use amx::{DEPTH, TILE};
        let inputs = self.w.inputs;
        // In elements of 16 bits, of which a word of parts has two.
        let tap = inputs.next_multiple_of(SQUARE) * SQUARE * B;
        let from = column / SQUARE * tap * taps + first * SQUARE * SQUARE * B;
        let reach = (taps - 1) * tap + steps * SQUARE * SQUARE * B;
        match self.w.data {
            Packed::Bf16(data) => return (data[from..][..reach].as_ptr().cast(), 2 * tap),
            Packed::Split(data, _) => {
                return (data[from / 2..][..reach / 2].as_ptr().cast(), 2 * tap);
            }
            Packed::F32(_) | Packed::Transposed(_) | Packed::F16(_) => {}
        }
        let inner = inputs * taps;
        let panel = column / PANEL * PANEL;
        let width = PANEL.min(padded_columns(self.w.outputs) - panel);
        let columns = (width - (column - panel)).min(DEPTH);
        let size = B * 2 * TILE;
        for tap in 0..taps {
            for step in 0..steps {
                let to = scratch.wrapping_add((tap * steps + step) * size);
                let channel = (first + step) * DEPTH;
                let depth = DEPTH.min(inputs - channel);
                let at = panel * inner + (tap * inputs + channel) * width + column - panel;
                let reach = (depth - 1) * width + columns;
                // SAFETY: the block of `depth` rows of `columns` at `at`, `width` apart, is inside the slice; the scratch
                // has taps * steps * size bytes. AVX-512 F and BW were detected.
                unsafe {
                    match self.w.data {
                        Packed::F32(data) => amx::split_columns::<B>(
                            data[at..][..reach].as_ptr(),
                            width,
                            depth,
                            columns,
                            to,
                        ),
                        Packed::F16(data) => {
                            use half::slice::HalfFloatSliceExt;
                            let mut wide = [0f32; DEPTH * DEPTH];
                            for (r, to) in wide.chunks_exact_mut(DEPTH).take(depth).enumerate() {
                                data[at + r * width..][..columns]
                                    .convert_to_f32_slice(&mut to[..columns]);
                            }
                            amx::split_columns::<B>(wide.as_ptr(), DEPTH, depth, columns, to);
                        }
                        // Packed as tiles, see above; or never where there are tiles (`backward::transposed`).
                        Packed::Bf16(_) | Packed::Split(..) | Packed::Transposed(_) => {}
                    }
                }
            }
        }
        (scratch, steps * size)
    }
}
