//! Tensors in safetensors files, with what else a value knows as metadata.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use retouch_graph::{Environment, NodeError};
use safetensors::{Dtype, SafeTensors};

use crate::runtime::Runtime;

/// The metadata key that says what a file holds: `latent`, `trajectory`, `mask`, `masks`.
pub(crate) const READ_AS: &str = "retouch";

/// Named tensors, float32, in host memory, and what else a value knows: the form that the disk cache keeps.
pub(crate) struct Packed {
    /// The tensors.
    pub tensors: HashMap<String, Tensor>,
    /// What else there is.
    pub metadata: HashMap<String, String>,
}

impl Packed {
    /// Reads what [`pack`] wrote.
    ///
    /// # Errors
    /// When the bytes are not that.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, NodeError> {
        let failed =
            |e: &dyn std::fmt::Display| NodeError::failed(format!("not a packed value: {e}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| failed(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(bytes).map_err(|e| failed(&e))?;
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                if view.dtype() != Dtype::F32 {
                    return Err(failed(&"it is not of float32"));
                }
                let values: Vec<f32> = view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect();
                let tensor =
                    Tensor::from_vec(values, view.shape(), &Device::Cpu).map_err(|e| failed(&e))?;
                Ok((name, tensor))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { tensors, metadata })
    }

    /// Takes a tensor out.
    ///
    /// # Errors
    /// When there is none of that name.
    pub(crate) fn take(&mut self, name: &str) -> Result<Tensor, NodeError> {
        self.tensors
            .remove(name)
            .ok_or_else(|| NodeError::failed(format!("the packed value has no tensor {name:?}")))
    }

    /// What is known under a name, read as JSON.
    ///
    /// # Errors
    /// When there is nothing, or it is something else.
    pub(crate) fn know<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, NodeError> {
        let text = self.metadata.get(name).map_or("null", String::as_str);
        serde_json::from_str(text)
            .map_err(|e| NodeError::failed(format!("the packed value's {name:?}: {e}")))
    }
}

/// Whether a tensor is in the memory of a device other than the host.
pub(crate) fn on_device(tensor: &Tensor) -> bool {
    !tensor.device().is_cpu()
}

/// A tensor in host memory.
pub(crate) fn to_host(tensor: &Tensor) -> Result<Tensor, NodeError> {
    tensor
        .to_device(&Device::Cpu)
        .map_err(crate::runtime::tensor_error)
}

/// A tensor on the run's device; `None` when the environment is no runtime or its device is the host.
pub(crate) fn to_device(
    tensor: &Tensor,
    environment: &Environment,
) -> Result<Option<Tensor>, NodeError> {
    match environment.downcast_ref::<Runtime>() {
        Some(runtime) if !runtime.device.is_cpu() => tensor
            .to_device(&runtime.device)
            .map(Some)
            .map_err(crate::runtime::tensor_error),
        _ => Ok(None),
    }
}

/// One tensor as a safetensors file, float32, with metadata.
pub(crate) fn encode_safetensors(
    name: &str,
    tensor: &Tensor,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, NodeError> {
    pack(&[(name, tensor)], metadata)
        .map_err(|e| NodeError::failed(format!("the {name} cannot be written as safetensors: {e}")))
}

/// Tensors as a safetensors file, float32, with metadata. Equal values give equal bytes.
pub(crate) fn pack(
    tensors: &[(&str, &Tensor)],
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, NodeError> {
    let failed = |e: &dyn std::fmt::Display| NodeError::failed(e.to_string());
    // Written here rather than by the safetensors crate, whose metadata is a hash map: its order, and with it the file's
    // bytes, would differ from run to run.
    let metadata: BTreeMap<String, String> = metadata.into_iter().collect();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    let mut bytes: Vec<u8> = Vec::new();
    for (name, tensor) in tensors {
        let values: Vec<f32> = tensor
            .to_device(&Device::Cpu)
            .and_then(|t| t.flatten_all())
            .and_then(|t| t.to_vec1())
            .map_err(|e| failed(&e))?;
        let start = bytes.len();
        bytes.reserve(values.len() * 4);
        for value in values {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        header.insert(
            (*name).to_owned(),
            serde_json::json!({"dtype": "F32", "shape": tensor.dims(), "data_offsets": [start, bytes.len()]}),
        );
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| failed(&e))?;
    // The format asks for data that begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = Vec::with_capacity(8 + header.len() + bytes.len());
    file.extend_from_slice(&(header.len() as u64).to_le_bytes());
    file.extend(header);
    file.extend(bytes);
    Ok(file)
}

/// How many numbers a tensor keeps in memory: those that it is a part of, too.
#[cfg(test)]
pub(crate) fn numbers_held(t: &Tensor) -> usize {
    use candle_core::{CpuStorage, Storage};
    match &*t.storage_and_layout().0 {
        Storage::Cpu(CpuStorage::F32(numbers)) => numbers.len(),
        other => panic!("{other:?}"),
    }
}
