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

/// Whether a tensor is in the memory of the environment's device, where that is not the host's.
pub(crate) fn is_on(tensor: &Tensor, environment: &Environment) -> bool {
    let runtime = environment.downcast_ref::<Runtime>();
    runtime.is_some_and(|it| on_device(tensor) && tensor.device().same_device(&it.device))
}

/// A tensor in host memory.
pub(crate) fn to_host(tensor: &Tensor) -> Result<Tensor, NodeError> {
    tensor
        .to_device(&Device::Cpu)
        .map_err(crate::runtime::tensor_error)
}

/// A tensor on the environment's device; `None` when it is there already, or the environment is no runtime.
pub(crate) fn to_device(
    tensor: &Tensor,
    environment: &Environment,
) -> Result<Option<Tensor>, NodeError> {
    match environment.downcast_ref::<Runtime>() {
        Some(runtime) if !tensor.device().same_device(&runtime.device) => tensor
            .to_device(&runtime.device)
            .map(Some)
            .map_err(crate::runtime::tensor_error),
        _ => Ok(None),
    }
}

/// Tensors on the environment's device; `None` when all of them are there already.
pub(crate) fn all_to_device<'a>(
    tensors: impl IntoIterator<Item = &'a Tensor>,
    environment: &Environment,
) -> Result<Option<Vec<Tensor>>, NodeError> {
    let mut any = false;
    let mut move_one = |tensor: &Tensor| {
        let moved = to_device(tensor, environment)?;
        any |= moved.is_some();
        Ok(moved.unwrap_or_else(|| tensor.clone()))
    };
    let all = tensors.into_iter().map(&mut move_one);
    let all: Vec<Tensor> = all.collect::<Result<_, NodeError>>()?;
    Ok(any.then_some(all))
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
    let bytes = tensors
        .iter()
        .map(|(_, tensor)| {
            let values: Vec<f32> = tensor
                .to_device(&Device::Cpu)
                .and_then(|t| t.flatten_all())
                .and_then(|t| t.to_vec1())
                .map_err(|e| NodeError::failed(e.to_string()))?;
            Ok(values.into_iter().flat_map(f32::to_le_bytes).collect())
        })
        .collect::<Result<Vec<Vec<u8>>, NodeError>>()?;
    let entries = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, tensor), bytes)| Entry {
            name,
            dtype: "F32",
            shape: tensor.dims(),
            bytes,
        });
    write(entries, &metadata.into_iter().collect())
}

/// A tensor of a safetensors file.
pub(crate) struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// The type of its elements, as safetensors names it.
    pub dtype: &'a str,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// Its elements, little-endian.
    pub bytes: &'a [u8],
}

/// A safetensors file of tensors in the order in which they are given. Equal ones give equal bytes.
pub(crate) fn write<'a>(
    entries: impl IntoIterator<Item = Entry<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, NodeError> {
    // Written here rather than by the safetensors crate, whose metadata is a hash map: its order, and with it the file's
    // bytes, would differ from run to run.
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    let mut bytes: Vec<u8> = Vec::new();
    for entry in entries {
        let start = bytes.len();
        bytes.extend_from_slice(entry.bytes);
        header.insert(
            entry.name.to_owned(),
            serde_json::json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, bytes.len()]}),
        );
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| NodeError::failed(e.to_string()))?;
    // The format asks for data that begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = Vec::with_capacity(8 + header.len() + bytes.len());
    file.extend_from_slice(&(header.len() as u64).to_le_bytes());
    file.extend(header);
    file.extend(bytes);
    Ok(file)
}

/// The type, the dimensions and the bytes of a tensor.
pub(crate) type Raw = (Dtype, Vec<usize>, Vec<u8>);

/// The tensors of a safetensors file, of any type.
pub(crate) struct Read {
    /// By name.
    pub tensors: BTreeMap<String, Raw>,
    /// What the file says of itself.
    pub metadata: BTreeMap<String, String>,
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// When the bytes are not that.
pub(crate) fn read(bytes: &[u8]) -> Result<Read, NodeError> {
    let failed =
        |e: safetensors::SafeTensorError| NodeError::failed(format!("not a packed value: {e}"));
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(failed)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let file = SafeTensors::deserialize(bytes).map_err(failed)?;
    let tensors = file.tensors().into_iter();
    Ok(Read {
        tensors: tensors
            .map(|(name, view)| {
                let raw = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                (name, raw)
            })
            .collect(),
        metadata: metadata.into_iter().collect(),
    })
}

/// Little-endian float32 numbers.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
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
