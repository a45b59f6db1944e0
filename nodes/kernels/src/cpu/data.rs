//! The numbers of tensors.

use candle_core::{DType, Result, Storage, Tensor, bail};

/// Gives `f` the elements of `t` in row-major order.
pub(super) fn with_data<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    // Of activations, norms and biases all is float32; what a caller gives in half precision is widened.
    let t = match t.dtype() {
        DType::F32 => t.contiguous()?,
        DType::F16 | DType::BF16 => t.to_dtype(DType::F32)?.contiguous()?,
        other => bail!("the CPU kernels compute in float32, not {other:?}"),
    };
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("the CPU kernels were given a tensor of another device");
    };
    let start = layout.start_offset();
    f(&storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()])
}

/// The same for an optional tensor.
pub(super) fn with_optional<R>(
    t: Option<&Tensor>,
    f: impl FnOnce(Option<&[f32]>) -> Result<R>,
) -> Result<R> {
    match t {
        Some(t) => with_data(t, |data| f(Some(data))),
        None => f(None),
    }
}
