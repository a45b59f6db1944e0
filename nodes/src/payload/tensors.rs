//! Tensors in safetensors files, with what else a value knows as metadata.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use retouch_graph::NodeError;
use safetensors::tensor::{Dtype, TensorView};

/// The metadata key that says what a file holds: `latent`, `trajectory`, `mask`, `masks`.
pub(crate) const READ_AS: &str = "retouch";

/// One tensor as a safetensors file, float32, with metadata.
pub(crate) fn encode_safetensors(
    name: &str,
    tensor: &Tensor,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, NodeError> {
    let failed = |e: &dyn std::fmt::Display| {
        NodeError::failed(format!("the {name} cannot be written as safetensors: {e}"))
    };
    let values: Vec<f32> = tensor
        .to_device(&Device::Cpu)
        .and_then(|t| t.flatten_all())
        .and_then(|t| t.to_vec1())
        .map_err(|e| failed(&e))?;
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view =
        TensorView::new(Dtype::F32, tensor.dims().to_vec(), &bytes).map_err(|e| failed(&e))?;
    safetensors::serialize([(name, view)], Some(metadata)).map_err(|e| failed(&e))
}
