//! The masks of every step of a swap.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use retouch_graph::{FromValue, NodeError, Payload, Value};
use serde::{Deserialize, Serialize};

use super::Mask;
use super::tensors::{Packed, READ_AS, encode_safetensors};

/// Reference, context and blend mask of each step of the swap.
#[derive(Debug)]
pub struct Masks {
    /// `[S, R + 2, B, h, w]`, float32 on the CPU, planes of the R references (mostly 1), context, blend, on the target's
    /// mask grid.
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

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(self.encode("safetensors").map(|files| files.concat()))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut packed = Packed::read(bytes)?;
        Ok(Self {
            first_step: packed.know(FIRST_STEP)?,
            tensor: packed.take("masks")?,
        })
    }

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

/// Masks that a user gives a swap: one for all steps, or those of another swap, step by step.
#[derive(Clone, Debug)]
pub enum MaskOrMasks {
    /// The same at every step.
    Mask(Arc<Mask>),
    /// Another at each step; outside the steps that they were made at, the nearest of them.
    Masks(Arc<Masks>),
}

impl MaskOrMasks {
    /// Bytes of memory that they hold.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Mask(mask) => mask.bytes(),
            Self::Masks(masks) => masks.bytes(),
        }
    }
}

impl FromValue for MaskOrMasks {
    const TYPES: &'static [&'static str] = &[Mask::TYPE, Masks::TYPE];

    fn from_value(value: &Value) -> Option<Self> {
        value
            .downcast::<Mask>()
            .map(Self::Mask)
            .or_else(|| value.downcast::<Masks>().map(Self::Masks))
    }

    fn into_value(self) -> Value {
        match self {
            Self::Mask(mask) => Value::from_arc(mask),
            Self::Masks(masks) => Value::from_arc(masks),
        }
    }
}
