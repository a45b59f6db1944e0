//! Weights that stay quantised in memory, and are widened each time that a product needs them.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use retouch_kernels::Source;

use super::data::of_bytes;
use super::table::Stored;

/// The blocks of a weight, as the file has them.
pub(super) struct Late {
    bytes: Arc<[u8]>,
    kind: String,
    shape: Vec<usize>,
    dtype: DType,
}

impl Late {
    /// The weight `stored`, whose blocks these are, to be computed with in `dtype`.
    pub(super) fn new(bytes: Arc<[u8]>, stored: &Stored, dtype: DType) -> Self {
        Self {
            bytes,
            kind: stored.dtype.clone(),
            shape: stored.shape.clone(),
            dtype,
        }
    }
}

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.shape)
    }
}

impl Source for Late {
    fn tensor(&self) -> candle_core::Result<Tensor> {
        of_bytes(&self.kind, &self.bytes, &self.shape, self.dtype).map_err(candle_core::Error::wrap)
    }
}
