//! Attention's heads, and what each of its queries may see.

use candle_core::{Device, Result, Tensor};

/// `[1, N, C]` to `[heads, N, C / heads]`.
pub(crate) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (_, n, c) = x.dims3()?;
    x.reshape((n, heads, c / heads))?
        .transpose(0, 1)?
        .contiguous()
}

/// `[1, N, N]`: 0 where query i may see key j <= i, else minus infinity.
pub(crate) fn causal_mask(n: usize, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = (0..n * n)
        .map(|i| {
            if i % n > i / n {
                f32::NEG_INFINITY
            } else {
                0.0
            }
        })
        .collect();
    Tensor::from_vec(mask, (1, n, n), device)
}
