//! What there is of a processor.

use super::packing::{Matrix, Packed};
use super::simd::Isa;

/// What the kernels use of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    pub isa: Isa,
    /// The matrix unit.
    pub amx: bool,
    /// Products of pairs of bfloat16.
    pub pairs: bool,
    /// Whether the matrix unit may take the operands of attention rounded to bfloat16.
    pub rounds: bool,
}

impl Machine {
    /// Whether products with this weight are made tile by tile, by the matrix unit or products of pairs.
    pub fn in_tiles(self, w: Matrix<'_>) -> bool {
        self.amx || self.pairs && matches!(w.data, Packed::Bf16(_))
    }
}
