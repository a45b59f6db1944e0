//! What of a network is trained: variables in place of tensors of its files, and low-rank factors beside its weights.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{Shape, Tensor};

use crate::Result;

/// Which of a layer's inputs low-rank factors see while they are trained.
pub trait InputMask: Debug + Send + Sync {
    /// What inputs of this shape are multiplied with.
    ///
    /// # Errors
    /// When memory is short.
    fn mask(&self, shape: &Shape) -> Result<Tensor>;
}

/// Low-rank factors that are trained beside a weight (Hu et al. 2021): `W + scale up down`.
#[derive(Clone, Debug)]
pub struct TrainedFactors {
    /// `[R, in]`, of a convolution `[R, in, k, k]`.
    pub down: Tensor,
    /// `[out, R]`, of a convolution `[out, R, 1, 1]`.
    pub up: Tensor,
    /// alpha / R.
    pub scale: f64,
    /// What of their inputs they see; all when `None`.
    pub dropout: Option<Arc<dyn InputMask>>,
}

/// The variables of one network by the names of tensors (of text encoders without `text_model.`).
#[derive(Clone, Debug, Default)]
pub struct Variables {
    /// In place of a tensor of that name, of the shape that the network asks for.
    pub tensors: BTreeMap<String, Tensor>,
    /// Beside the weight of that name.
    pub factors: BTreeMap<String, TrainedFactors>,
    /// Whether no gradient goes through the keys and values that cross-attention makes of a text's first token, as in Custom
    /// Diffusion.
    pub holds_first_token: bool,
}

impl Variables {
    /// Whether nothing is trained.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty() && self.factors.is_empty()
    }
}
