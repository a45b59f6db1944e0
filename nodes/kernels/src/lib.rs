//! How the networks' arithmetic is done: one seam, a plain version for reading and for GPUs, a faster one for the CPU.
//!
//! Every kernel is *batch-invariant* (law 6 of the method): the order in which an element is summed depends on the
//! shape of one image alone, never on how many images are in the batch or on the number of threads.

mod arena;
mod cpu;
mod device;
mod plain;
#[cfg(target_os = "linux")]
mod refused;

pub use arena::Arena;
pub use cpu::{Cpu, Isa};
pub use device::for_device;
pub use plain::Plain;
#[cfg(target_os = "linux")]
pub use refused::{Running, exit_when_refused};

use candle_core::{DType, Result, Tensor};
use std::fmt::Debug;
use std::sync::Arc;

/// The arithmetic under the networks. Shapes: B images, C channels, N queries, M keys. All but weights is float32;
/// images are laid out as [`Kernel::layout`] says.
pub trait Kernel: Debug + Send + Sync {
    /// The name that enters cache keys: another kernel set may round otherwise.
    fn name(&self) -> &'static str;

    /// The kernels for a network whose weights are held in `dtype`, if they are others: where the weights are rounded to
    /// bfloat16, attention may round too. Packed weights serve both.
    fn for_weights(&self, dtype: DType) -> Option<Arc<dyn Kernel>> {
        let _ = dtype;
        None
    }

    /// How images lie in memory.
    fn layout(&self) -> Layout;

    /// The numbers of a weight `[O, K]` or `[O, C, kh, kw]` of float32, float16 or bfloat16 in the order in which this kernel
    /// set reads them.
    fn pack(&self, w: &Tensor) -> Result<Tensor>;

    /// `x w^T + terms`: x `[B, N, K]`, w `[O, K]`; gives `[B, N, O]`.
    fn linear(&self, x: &Tensor, w: &Weight, terms: Terms<'_>) -> Result<Tensor>;

    /// Cross-correlation with zero padding, `+ terms`: images of C channels, w `[O, C, kh, kw]`; gives images of O.
    fn conv2d(&self, x: &Tensor, w: &Weight, window: Window, terms: Terms<'_>) -> Result<Tensor>;

    /// Group normalisation over images of C channels with weight and bias `[C]`, then SiLU if `silu`.
    fn group_norm(&self, x: &Tensor, norm: &GroupNormSpec<'_>, silu: bool) -> Result<Tensor>;

    /// Layer normalisation over the last dimension.
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor>;

    /// The channels of two images of one size, those of the first before those of the second.
    fn concat(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Tensor::cat(&[a, b], self.layout().channels())
    }

    /// `h * gelu(g)` with x = `[B, N, 2 K]` split into h and g, GELU by erf; gives `[B, N, K]`.
    fn geglu(&self, x: &Tensor) -> Result<Tensor>;

    /// [`Kernel::geglu`] of `x w^T + bias`: x `[B, N, K]`, w `[2 O, K]`; gives `[B, N, O]`.
    fn linear_geglu(&self, x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
        self.geglu(&self.linear(x, w, Terms::bias(bias))?)
    }

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

    /// `mask inside + (1 - mask) outside`, where inside and outside are the [attention](Self::attention) to these keys and
    /// values: q `[B, N, C]`, mask `[B or 1, N]` from 0 to 1, one number for each query.
    fn attention_blend(
        &self,
        q: &Tensor,
        inside: Attended<'_>,
        outside: Attended<'_>,
        mask: &Tensor,
        heads: usize,
        scale: f64,
    ) -> Result<Tensor> {
        let attend = |to: Attended<'_>| self.attention(q, to.k, to.v, heads, scale, to.keys);
        blend(mask, &attend(inside)?, &attend(outside)?)
    }

    /// The mean over heads of `softmax(q k^T scale)`: q `[B, N, C]`, k `[B or 1, M, C]`; gives `[B, N, M]`.
    fn attention_map(&self, q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Result<Tensor>;
}

/// What queries attend to.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// Keys `[B or 1, M, C]`.
    pub k: &'a Tensor,
    /// Values `[B or 1, M, C]`.
    pub v: &'a Tensor,
    /// For each image of k the indices of the keys that take part (ascending, not empty); all when `None`.
    pub keys: Option<&'a [Vec<u32>]>,
}

/// `mask inside + (1 - mask) outside` of rows `[B, N, C]`, mask `[B or 1, N]`.
fn blend(mask: &Tensor, inside: &Tensor, outside: &Tensor) -> Result<Tensor> {
    let mask = mask.unsqueeze(2)?;
    mask.broadcast_mul(inside)? + (1.0 - &mask)?.broadcast_mul(outside)?
}

/// The order of an image's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[B, C, H, W]`, as diffusers, candle and cuDNN have it.
    ChannelsFirst,
    /// `[B, H, W, C]`: an image is its pixels' tokens, and sums over channels read what lies side by side.
    ChannelsLast,
}

impl Layout {
    /// The dimension of channels.
    #[must_use]
    pub fn channels(self) -> usize {
        match self {
            Self::ChannelsFirst => 1,
            Self::ChannelsLast => 3,
        }
    }

    /// Height and width of images.
    ///
    /// # Errors
    /// When x is not of rank 4.
    pub fn grid(self, x: &Tensor) -> Result<(usize, usize)> {
        let (_, a, b, c) = x.dims4()?;
        Ok(match self {
            Self::ChannelsFirst => (b, c),
            Self::ChannelsLast => (a, b),
        })
    }

    /// Images from `[B, C, H, W]`.
    ///
    /// # Errors
    /// When x is not of rank 4.
    pub fn images(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::ChannelsFirst => Ok(x.clone()),
            Self::ChannelsLast => x.permute((0, 2, 3, 1))?.contiguous(),
        }
    }

    /// `[B, C, H, W]` from images.
    ///
    /// # Errors
    /// When x is not of rank 4.
    pub fn planes(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::ChannelsFirst => Ok(x.clone()),
            Self::ChannelsLast => x.permute((0, 3, 1, 2))?.contiguous(),
        }
    }

    /// `[B, H W, C]` from images.
    ///
    /// # Errors
    /// When x is not of rank 4.
    pub fn tokens(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::ChannelsFirst => x.flatten_from(2)?.transpose(1, 2)?.contiguous(),
            Self::ChannelsLast => x.flatten(1, 2),
        }
    }

    /// Images from `[B, H W, C]`.
    ///
    /// # Errors
    /// When the number of tokens is not `h * w`.
    pub fn images_of_tokens(self, x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
        let (b, _, c) = x.dims3()?;
        match self {
            Self::ChannelsFirst => x.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w)),
            Self::ChannelsLast => x.reshape((b, h, w, c)),
        }
    }
}

/// Where the numbers of a weight come from that is held in less memory than they take.
pub trait Source: Debug + Send + Sync {
    /// The weight `[O, K]` or `[O, C, kh, kw]` of float32, float16 or bfloat16 on the CPU, as [`Kernel::pack`] takes it.
    ///
    /// # Errors
    /// When its numbers cannot be had.
    fn tensor(&self) -> Result<Tensor>;
}

/// The numbers of a weight.
#[derive(Clone, Debug)]
enum Numbers {
    /// In the order in which a kernel set reads them.
    Packed(Tensor),
    /// To be packed each time that they are used.
    Late(Arc<dyn Source>),
}

/// A weight, its numbers in the order in which a kernel set reads them, or made so when they are used.
#[derive(Clone, Debug)]
pub struct Weight {
    numbers: Numbers,
    /// O.
    pub(crate) outputs: usize,
    /// K, or C of a convolution.
    pub(crate) inputs: usize,
    /// kh and kw; 1 and 1 of a matrix.
    pub(crate) window: (usize, usize),
}

impl Weight {
    /// A weight `[O, K]` or `[O, C, kh, kw]`, packed for a kernel set.
    ///
    /// # Errors
    /// When it is of another rank.
    pub fn new(w: &Tensor, kernel: &dyn Kernel) -> Result<Self> {
        Self::of_packed(kernel.pack(w)?, w.dims())
    }

    /// A weight of that shape whose numbers are packed already.
    ///
    /// # Errors
    /// When the shape is of another rank than a weight's.
    pub fn of_packed(data: Tensor, shape: &[usize]) -> Result<Self> {
        Self::of(Numbers::Packed(data), shape)
    }

    /// A weight of that shape that is held in another form, and packed each time that it is used.
    ///
    /// # Errors
    /// When the shape is of another rank than a weight's.
    pub fn late(source: Arc<dyn Source>, shape: &[usize]) -> Result<Self> {
        Self::of(Numbers::Late(source), shape)
    }

    /// The numbers as `kernel` reads them.
    pub(crate) fn packed(&self, kernel: &dyn Kernel) -> Result<Tensor> {
        match &self.numbers {
            Numbers::Packed(data) => Ok(data.clone()),
            Numbers::Late(source) => kernel.pack(&source.tensor()?),
        }
    }

    fn of(numbers: Numbers, shape: &[usize]) -> Result<Self> {
        let (outputs, inputs, window) = match *shape {
            [o, k] => (o, k, (1, 1)),
            [o, c, h, w] => (o, c, (h, w)),
            _ => candle_core::bail!("a weight of shape {shape:?}"),
        };
        Ok(Self {
            numbers,
            outputs,
            inputs,
            window,
        })
    }
}

/// What is added to a product on its way out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms<'a> {
    /// `[O]`.
    pub bias: Option<&'a Tensor>,
    /// `[B, O]`, to every pixel of an image; convolutions alone.
    pub image: Option<&'a Tensor>,
    /// Of the result's shape.
    pub residual: Option<&'a Tensor>,
}

impl<'a> Terms<'a> {
    /// A bias or nothing.
    #[must_use]
    pub fn bias(bias: Option<&'a Tensor>) -> Self {
        Self {
            bias,
            ..Self::default()
        }
    }
}

/// Where a convolution looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pixels from one output to the next.
    pub stride: usize,
    /// Zeros around the image.
    pub padding: Padding,
    /// The height and width that the image is enlarged to before, nearest: source index floor(i * in / out).
    pub enlarged: Option<(usize, usize)>,
}

impl Window {
    /// A window of stride 1.
    #[must_use]
    pub fn padded(padding: Padding) -> Self {
        Self {
            stride: 1,
            padding,
            enlarged: None,
        }
    }
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
