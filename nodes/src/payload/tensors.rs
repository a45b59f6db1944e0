//! Tensors in safetensors files, with what else a value knows as metadata.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use retouch_graph::NodeError;

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
    // Written here rather than by the safetensors crate, whose metadata is a hash map: its order, and with it the file's
    // bytes, would differ from run to run.
    let metadata: BTreeMap<String, String> = metadata.into_iter().collect();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    header.insert(
        name.to_owned(),
        serde_json::json!({"dtype": "F32", "shape": tensor.dims(), "data_offsets": [0, bytes.len()]}),
    );
    let mut header = serde_json::to_vec(&header).map_err(|e| failed(&e))?;
    // The format asks for data that begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(bytes);
    Ok(file)
}
