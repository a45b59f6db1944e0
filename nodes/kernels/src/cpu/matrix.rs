//! Blocks of products of matrices by vectors, and products over rows: each on the thread that asks for it.
//!
//! An element of a result is the sum over runs of [`RUN`] rows, run after run, each summed by itself in the order of its rows:
//! neither what is computed beside it nor the instruction set changes it, as long as that fuses multiply and add.

use std::cell::RefCell;

use super::simd::{Isa, Simd, multiversion};

/// The largest number of rows of a register tile.
pub(super) const TILE: usize = 6;
/// Columns that are packed side by side.
const PANEL: usize = 64;
/// Rows that are summed in one go: a packed panel of them (32 KiB) stays in the first cache.
const RUN: usize = 128;

/// Rows of the next register tile when `left` are left: at most [`TILE`], and no small rest.
#[inline(always)]
pub(super) fn tile_rows(left: usize) -> usize {
    if left > TILE && left < 2 * TILE {
        left.div_ceil(2)
    } else {
        left.min(TILE)
    }
}

/// A matrix that is read number by number: the first, and the steps from row to row and from term to term.
#[derive(Clone, Copy)]
pub(super) struct Strided {
    pub at: *const f32,
    pub row: usize,
    pub term: usize,
}

/// `to[r] (+)= sum_p a[r][p] b[p]` over p in order: R rows of V vectors.
///
/// # Safety
/// The processor has the set of `S`. a is valid for reading R rows of `inner` terms, b for `inner` rows of V vectors, to
/// for writing R rows of V vectors (and reading, if it `adds`).
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize>(
    a: Strided,
    (b, b_row): (*const f32, usize),
    inner: usize,
    adds: bool,
    (to, to_row): (*mut f32, usize),
) {
    // SAFETY: p < inner, r < R, v < V: all is inside what the caller promises.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        for p in 0..inner {
            let mut own = [S::splat(0.0); V];
            for (v, own) in own.iter_mut().enumerate() {
                *own = S::load(b.add(p * b_row + v * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = S::splat(*a.at.add(r * a.row + p * a.term));
                for (sum, own) in sums.iter_mut().zip(own) {
                    *sum = S::fma(a, own, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let to = to.add(r * to_row + v * S::LANES);
                let sum = if adds { S::add(S::load(to), sum) } else { sum };
                S::store(to, sum);
            }
        }
    }
}

/// Calls [`tile`] for `rows`, 1 to [`TILE`], and `vectors`, 1 to 4 and at most the set's block.
///
/// # Safety
/// As for it.
#[inline(always)]
unsafe fn tile_of<S: Simd>(
    (rows, vectors): (usize, usize),
    a: Strided,
    b: (*const f32, usize),
    inner: usize,
    adds: bool,
    to: (*mut f32, usize),
) {
    macro_rules! of {
        ($($rows:literal)*, $vectors:literal) => {
            match rows {
                // SAFETY: the caller's promise, passed on.
                $($rows => unsafe { tile::<S, $rows, $vectors>(a, b, inner, adds, to) },)*
                // SAFETY: as above.
                _ => unsafe { tile::<S, TILE, $vectors>(a, b, inner, adds, to) },
            }
        };
    }
    match vectors {
        1 => of!(1 2 3 4 5, 1),
        2 => of!(1 2 3 4 5, 2),
        // Registers for these only where there are 32.
        3 if S::BLOCK > 2 => of!(1 2 3 4 5, 3),
        _ if S::BLOCK > 2 => of!(1 2 3 4 5, 4),
        _ => {}
    }
}

#[inline(always)]
unsafe fn block_with<S: Simd>(
    (rows, columns, inner): (usize, usize, usize),
    a: Strided,
    (b, b_row): (*const f32, usize),
    adds: bool,
    (to, to_row): (*mut f32, usize),
) {
    debug_assert!(columns.is_multiple_of(S::LANES));
    let mut row = 0;
    while row < rows {
        let height = tile_rows(rows - row);
        let mut column = 0;
        while column < columns {
            let vectors = ((columns - column) / S::LANES).min(S::BLOCK);
            // SAFETY: row + height <= rows, and column + the vectors' lanes <= columns.
            unsafe {
                let a = Strided {
                    at: a.at.add(row * a.row),
                    ..a
                };
                let to = (to.add(row * to_row + column), to_row);
                tile_of::<S>(
                    (height, vectors),
                    a,
                    (b.add(column), b_row),
                    inner,
                    adds,
                    to,
                );
            }
            column += vectors * S::LANES;
        }
        row += height;
    }
}

multiversion! {
    /// `to[r] (+)= sum_p a[r][p] b[p]` over p in order: `size` is rows, columns, which are whole vectors, and terms.
    ///
    /// # Safety
    /// The set is there, and columns are a multiple of its lanes. a is valid for reading so many rows of terms, b for so many rows
    /// of columns, to for writing so many rows and columns (and reading, if it `adds`).
    pub(super) unsafe fn block(size: (usize, usize, usize), a: Strided, b: (*const f32, usize), adds: bool, to: (*mut f32, usize)) = block_with
}

/// Rows of a matrix inside of a slice.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The numbers from the first one on.
    data: &'a [f32],
    /// The step from row to row.
    row: usize,
}

impl<'a> Rows<'a> {
    /// The rows whose first number is at `start`, `row` numbers apart.
    pub(super) fn new(data: &'a [f32], start: usize, row: usize) -> Self {
        Self {
            data: &data[start..],
            row,
        }
    }

    /// So many numbers of a row from a column on.
    #[inline(always)]
    fn part(&self, row: usize, column: usize, count: usize) -> &'a [f32] {
        &self.data[row * self.row + column..][..count]
    }
}

/// What a thread packs.
#[derive(Default)]
struct Packs {
    /// Rows of a and b with columns in tiles and panels: `[tile][term][columns]`.
    a: Vec<f32>,
    b: Vec<f32>,
    /// Sums of a panel that is not whole vectors wide.
    sums: Vec<f32>,
}

thread_local! {
    static PACKS: RefCell<Packs> = RefCell::default();
}

/// `to = a^T b (+ to)` of rows a `[k, m]` and b `[k, n]`, on this thread; rows of `to` are `stride` numbers apart.
///
/// # Safety
/// m such rows of n numbers may be written, and, where it `adds`, read.
pub(super) unsafe fn transposed_product(
    isa: Isa,
    (m, n, k): (usize, usize, usize),
    a: Rows<'_>,
    b: Rows<'_>,
    adds: bool,
    (to, stride): (*mut f32, usize),
) {
    PACKS.with_borrow_mut(|packs| {
        packs.a.resize(m * RUN, 0.0);
        packs.b.resize(PANEL * RUN, 0.0);
        packs.sums.resize(TILE * PANEL, 0.0);
        for first in (0..k).step_by(RUN) {
            let terms = RUN.min(k - first);
            let adds = adds || first > 0;
            pack_tiles(a, first, &mut packs.a, (m, terms));
            for column in (0..n).step_by(PANEL) {
                let width = PANEL.min(n - column);
                let b = (b, first, column);
                // SAFETY: these columns of m rows of `to`, by the caller's promise; `isa` is this processor's.
                unsafe {
                    let to = to.add(column);
                    panel_product(isa, (m, width, terms), b, packs, adds, to, stride);
                }
            }
        }
    });
}

/// The product of a packed run with a panel of b, from a row and column on.
///
/// # Safety
/// The set is there, `packs` has room and the tiles of a, and m rows of `width` numbers of `to` may be written, and, where it
/// `adds`, read.
#[inline(always)]
unsafe fn panel_product_with<S: Simd>(
    (m, width, terms): (usize, usize, usize),
    (b, first, column): (Rows<'_>, usize, usize),
    packs: &mut Packs,
    adds: bool,
    to: *mut f32,
    stride: usize,
) {
    let Packs { a, b: panel, sums } = packs;
    let whole = width.next_multiple_of(S::LANES);
    for (p, to) in panel.chunks_exact_mut(whole).take(terms).enumerate() {
        to[..width].copy_from_slice(b.part(first + p, column, width));
        to[width..].fill(0.0);
    }
    let mut row = 0;
    while row < m {
        let height = tile_rows(m - row);
        let a = Strided {
            at: a[row * terms..][..height * terms].as_ptr(),
            row: 1,
            term: height,
        };
        let size = (height, whole, terms);
        let b = (panel.as_ptr(), whole);
        // SAFETY: a tile of `height` columns of a and `terms` rows of `whole` columns of b are packed; whole vectors inside of
        // `to` go there, others to sums, which has a tile's rows of a panel.
        unsafe {
            let to = to.add(row * stride);
            if whole == width {
                block(S::ISA, size, a, b, adds, (to, stride));
            } else {
                block(S::ISA, size, a, b, false, (sums.as_mut_ptr(), PANEL));
                for (r, sums) in sums.chunks_exact(PANEL).take(height).enumerate() {
                    let to = to.add(r * stride);
                    for (x, sum) in sums[..width].iter().enumerate() {
                        let to = to.add(x);
                        to.write(if adds { *to + sum } else { *sum });
                    }
                }
            }
        }
        row += height;
    }
}

multiversion! {
    /// [`panel_product_with`] the set.
    ///
    /// # Safety
    /// As for it.
    unsafe fn panel_product(size: (usize, usize, usize), b: (Rows<'_>, usize, usize), packs: &mut Packs, adds: bool, to: *mut f32, stride: usize) = panel_product_with
}

/// Packs `terms` rows of m columns in tiles of [`tile_rows`].
#[inline(always)]
fn pack_tiles(from: Rows<'_>, first: usize, to: &mut [f32], (m, terms): (usize, usize)) {
    let mut column = 0;
    while column < m {
        let width = tile_rows(m - column);
        let to = &mut to[column * terms..][..width * terms];
        // Most are full; copies of a fixed length are a few instructions.
        if width == TILE {
            for (p, to) in to.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
                to.copy_from_slice(from.part(first + p, column, TILE));
            }
        } else {
            for (p, to) in to.chunks_exact_mut(width).enumerate() {
                let from = from.part(first + p, column, width);
                to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
        column += width;
    }
}
