//! From planes of channels to pixels of channels and back.

use super::buffers::{Shared, Unfilled};
use super::team;

/// The side of the squares that are turned one after another: their lines stay in the cache while they are read and written.
const SIDE: usize = 16;

/// x `[B][rows][columns]`; gives `[B][columns][rows]`. Writes all of `out`.
pub(super) fn transpose(x: &[f32], (rows, columns): (usize, usize), out: Unfilled<'_>) {
    assert_eq!(x.len(), out.len(), "as many numbers as are written");
    if rows == 0 || columns == 0 {
        return;
    }
    let matrices = x.len() / (rows * columns);
    let bands = columns.div_ceil(SIDE);
    let out = Shared::of(out);
    team::for_each(matrices * bands, |task| {
        let (matrix, band) = (task / bands, task % bands);
        let first = band * SIDE;
        let wide = SIDE.min(columns - first);
        let x = &x[matrix * rows * columns..][..rows * columns];
        // SAFETY: the lines of a band are written by its task alone.
        let out = unsafe { out.part((matrix * columns + first) * rows, wide * rows) };
        for top in (0..rows).step_by(SIDE) {
            let high = SIDE.min(rows - top);
            for row in top..top + high {
                let line = &x[row * columns + first..][..wide];
                for (column, value) in line.iter().enumerate() {
                    out[column * rows + row].write(*value);
                }
            }
        }
    });
}
