//! What of a network is trained: variables in place of tensors of its files, and low-rank factors beside its weights.

use std::collections::BTreeMap;

use candle_core::Tensor;

/// Low-rank factors that are trained beside a weight (Hu et al. 2021): `W + scale up down`.
#[derive(Clone, Debug)]
pub struct TrainedFactors {
    /// `[R, in]`, of a convolution `[R, in, k, k]`.
    pub down: Tensor,
    /// `[out, R]`, of a convolution `[out, R, 1, 1]`.
    pub up: Tensor,
    /// alpha / R.
    pub scale: f64,
}

/// The variables of one network by the names of tensors (of text encoders without `text_model.`).
#[derive(Clone, Debug, Default)]
pub struct Variables {
    /// In place of a tensor of that name, of the shape that the network asks for.
    pub tensors: BTreeMap<String, Tensor>,
    /// Beside the weight of that name.
    pub factors: BTreeMap<String, TrainedFactors>,
}

impl Variables {
    /// Whether nothing is trained.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty() && self.factors.is_empty()
    }
}
