//! How the networks' arithmetic is done: one seam, a plain version for reading and for GPUs, a faster one for the CPU.
//!
//! Every kernel is *batch-invariant* (law 6 of the method): the order in which an element is summed depends on the
//! shape of one image alone, never on how many images are in the batch or on the number of threads.

mod cpu;
mod plain;

pub use cpu::Cpu;
pub use plain::Plain;

use candle_core::{Device, Result, Tensor};
use std::fmt::Debug;
use std::sync::Arc;

/// The arithmetic under the networks. Shapes: B images, C channels, N queries, M keys.
pub trait Kernel: Debug + Send + Sync {
    /// The name that enters cache keys: another kernel set may round otherwise.
    fn name(&self) -> &'static str;

    /// `x w^T + bias`, w of float32, float16 or bfloat16, all else float32: x `[B, N, K]`, w `[O, K]`, bias `[O]`; gives `[B, N, O]`.
    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor>;

    /// Cross-correlation with zero padding, w of float32, float16 or bfloat16: x `[B, C, H, W]`, w `[O, C, kh, kw]`, bias `[O]`.
    /// `padding` is (top, bottom, left, right).
    fn conv2d(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Result<Tensor>;

    /// Group normalisation over x `[B, C, ...]` with weight and bias `[C]`, then SiLU if `silu`.
    fn group_norm(&self, x: &Tensor, norm: &GroupNormSpec<'_>, silu: bool) -> Result<Tensor>;

    /// Layer normalisation over the last dimension.
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor>;

    /// `h * gelu(g)` with x = `[B, N, 2 K]` split into h and g, GELU by erf; gives `[B, N, K]`.
    fn geglu(&self, x: &Tensor) -> Result<Tensor>;

    /// `softmax(q k^T scale) v` for each head: q `[B, N, C]`, k and v `[B or 1, M, C]`, C = heads x head size;
    /// gives `[B, N, C]`. One image of keys and values serves every image of queries.
    /// `keys`: for each image of k the indices of the keys that take part (ascending, not empty).
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        heads: usize,
        scale: f64,
        keys: Option<&[Vec<u32>]>,
    ) -> Result<Tensor>;

    /// The mean over heads of `softmax(q k^T scale)`: q `[B, N, C]`, k `[B, M, C]`; gives `[B, N, M]`.
    fn attention_map(&self, q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Result<Tensor>;
}

/// Zero padding of a convolution, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same padding on all four sides.
    #[must_use]
    pub fn same(p: usize) -> Self {
        Self {
            top: p,
            bottom: p,
            left: p,
            right: p,
        }
    }
}

/// The parameters of a group normalisation.
#[derive(Clone, Copy, Debug)]
pub struct GroupNormSpec<'a> {
    /// Number of groups; divides the number of channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Scale of each channel.
    pub weight: &'a Tensor,
    /// Shift of each channel.
    pub bias: &'a Tensor,
}

/// The kernels for a device: [`Cpu`] on the CPU, candle's own operators elsewhere.
#[must_use]
pub fn for_device(device: &Device) -> Arc<dyn Kernel> {
    if device.is_cpu() {
        Arc::new(Cpu::default())
    } else {
        Arc::new(Plain)
    }
}
