//! Products of matrices inside of slices, each on the thread that asks for it.

use gemm::{Parallelism, gemm};

/// A matrix inside of a slice: its first number and the steps from row to row and from column to column.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: &'a [f32],
    start: usize,
    row: usize,
    column: usize,
}

impl<'a> View<'a> {
    /// The matrix whose first number is at `start`, its rows `row` numbers apart.
    pub(super) fn new(data: &'a [f32], start: usize, row: usize) -> Self {
        Self {
            data,
            start,
            row,
            column: 1,
        }
    }

    /// Rows and columns exchanged.
    pub(super) fn turned(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    /// The first number of that many rows and columns, which must be inside.
    fn from(&self, rows: usize, columns: usize) -> *const f32 {
        let last = self.start + (rows - 1) * self.row + (columns - 1) * self.column;
        assert!(last < self.data.len(), "a matrix inside of its numbers");
        self.data[self.start..].as_ptr()
    }
}

/// `to = beta a b (+ to)`, m x n x k, on this thread; rows of `to` are `stride` numbers apart.
///
/// # Safety
/// m such rows of n numbers may be written, and, where it `adds`, read.
pub(super) unsafe fn multiply(
    to: *mut f32,
    stride: usize,
    (m, n, k): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    beta: f32,
    adds: bool,
) {
    let (lhs, rhs) = (a.from(m, k), b.from(k, n));
    // SAFETY: the operands lie inside of their slices by the checks above, the result is the caller's promise.
    unsafe {
        gemm(
            m,
            n,
            k,
            to,
            1,
            stride as isize,
            adds,
            lhs,
            a.column as isize,
            a.row as isize,
            rhs,
            b.column as isize,
            b.row as isize,
            1.0,
            beta,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
