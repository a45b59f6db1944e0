//! The masks of every step of a swap.

use std::collections::HashMap;

use candle_core::Tensor;
use retouch_graph::{NodeError, Payload};
use serde::{Deserialize, Serialize};

use super::tensors::{READ_AS, encode_safetensors};

/// Reference, context and blend mask of each step of the swap.
#[derive(Debug)]
pub struct Masks {
    /// `[S, 3, B, h, w]`, float32 on the CPU, planes reference, context, blend, on the target's mask grid.
    pub tensor: Tensor,
    /// The step k of the first of the S.
    pub first_step: usize,
}

/// What is known of masks before anything runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasksFacts {
    /// S, the steps of the swap.
    pub steps: usize,
    /// The step k of the first of them.
    pub first_step: usize,
}

/// The metadata key of [`Masks::first_step`] in a file.
pub(crate) const FIRST_STEP: &str = "retouch_first_step";

impl Payload for Masks {
    const TYPE: &'static str = "masks";
    const FORMATS: &'static [&'static str] = &["safetensors"];

    fn bytes(&self) -> usize {
        self.tensor.elem_count() * 4
    }

    fn summary(&self) -> String {
        let d = self.tensor.dims();
        format!(
            "masks of {} steps from step {}, {}x{}, batch of {}",
            d[0], self.first_step, d[4], d[3], d[2]
        )
    }

    fn encode(&self, _: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        let metadata = HashMap::from([
            (READ_AS.to_owned(), "masks".to_owned()),
            (FIRST_STEP.to_owned(), self.first_step.to_string()),
        ]);
        Ok(vec![encode_safetensors("masks", &self.tensor, metadata)?])
    }
}
