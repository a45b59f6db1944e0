//! How the networks' arithmetic is done: one seam, a plain version for reading and for GPUs, a faster one for the CPU.
//!
//! Every kernel is *batch-invariant* (law 6 of the method): the order in which an element is summed depends on the
//! shape of one image alone, never on how many images are in the batch or on the number of threads.

mod arena;
mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod device;
mod heads;
mod plain;
#[cfg(target_os = "linux")]
mod refused;
pub mod train;

pub use arena::{Arena, KeepMore};
pub use cpu::{Cpu, Isa};
pub use device::{cpu_sets, for_device};
pub use plain::Plain;
#[cfg(target_os = "linux")]
pub use refused::{Running, exit_when_refused};

use candle_core::{D, DType, Result, Tensor};
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

    /// The weight of the product that takes gradients back, in float32: `[K, O]`, or `[C, O, kh, kw]` with the window turned
    /// round.
    fn transposed(&self, w: &Weight) -> Result<Weight>;

    /// The way back through what is not a product with weights.
    fn backward(&self) -> &dyn Backward;

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

    /// `max(x, 0)`.
    fn relu(&self, x: &Tensor) -> Result<Tensor> {
        x.relu()
    }

    /// Images of half the height and width, rounded down: the largest of each two by two pixels.
    fn max_pool2(&self, x: &Tensor) -> Result<Tensor> {
        self.images(&self.planes(x)?.max_pool2d(2)?)
    }

    /// Images in another size (height, width): bilinear, corners not aligned, as torch has it.
    fn bilinear(&self, x: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
        self.images(&self.planes(x)?.upsample_bilinear2d(height, width, false)?)
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

    /// `softmax(q k^T scale) v` for each head, each query seeing the keys up to its own: q, k and v `[1, N, C]`.
    fn causal_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        heads: usize,
        scale: f64,
    ) -> Result<Tensor> {
        let (_, n, c) = q.dims3()?;
        let split = |t: &Tensor| heads::split_heads(t, heads);
        let scores = (split(q)?.matmul(&split(k)?.transpose(1, 2)?)? * scale)?;
        let scores = scores.broadcast_add(&heads::causal_mask(n, q.device())?)?;
        candle_nn::ops::softmax_last_dim(&scores)?
            .matmul(&split(v)?)?
            .transpose(0, 1)?
            .reshape((1, n, c))
    }

    // What follows moves numbers or changes each by itself. It is asked of the kernels, and not of candle, so that a
    // [`train::Recorder`] knows of it.

    /// [`Layout::tokens`].
    fn tokens(&self, x: &Tensor) -> Result<Tensor> {
        self.layout().tokens(x)
    }

    /// [`Layout::images_of_tokens`].
    fn images_of_tokens(&self, x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
        self.layout().images_of_tokens(x, h, w)
    }

    /// [`Layout::images`].
    fn images(&self, x: &Tensor) -> Result<Tensor> {
        self.layout().images(x)
    }

    /// [`Layout::planes`].
    fn planes(&self, x: &Tensor) -> Result<Tensor> {
        self.layout().planes(x)
    }

    /// The same numbers in another shape.
    fn reshape(&self, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
        x.reshape(shape)
    }

    /// `len` places along a dimension, from `start` on.
    fn slice(&self, x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        x.narrow(dim, start, len)
    }

    /// Tensors one after another along the first dimension.
    fn stack(&self, parts: &[Tensor]) -> Result<Tensor> {
        match parts {
            [one] => Ok(one.clone()),
            _ => Tensor::cat(parts, 0),
        }
    }

    /// The features of two tensors side by side, those of the first before those of the second.
    fn join(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Tensor::cat(&[a, b], D::Minus1)
    }

    /// `a + b` of one shape.
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        a + b
    }

    /// `x by`.
    fn scale(&self, x: &Tensor, by: f64) -> Result<Tensor> {
        x * by
    }

    /// `x mask` of one shape; the mask is a constant.
    fn masked(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        x * mask
    }

    /// x `[B, N, C]`, through whose first token no gradient goes.
    fn hold_first(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }

    /// The rows of those numbers of a table `[R, C]`, in float32.
    fn rows(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(ids, table.device())?;
        table.index_select(&ids, 0)?.to_dtype(DType::F32)
    }

    /// `x / (1 + exp(-x))`.
    fn silu(&self, x: &Tensor) -> Result<Tensor> {
        x.silu()
    }

    /// GELU by erf.
    fn gelu(&self, x: &Tensor) -> Result<Tensor> {
        x.gelu_erf()
    }

    /// `x sigmoid(1.702 x)`.
    fn quick_gelu(&self, x: &Tensor) -> Result<Tensor> {
        x * candle_nn::ops::sigmoid(&(x * 1.702)?)?
    }

    /// Whether [`Kernel::part`] saves memory.
    fn recomputes(&self) -> bool {
        false
    }

    /// A part of a network whose inner results need not be kept for its gradient: [`train::Recorder`] may compute them again.
    fn part(&self, inputs: &[&Tensor], part: Part) -> Result<Tensor>;
}

/// A part of a network that may be computed again when its gradient is taken, in place of keeping what is inside: gets kernels
/// and its inputs.
pub type Part = Arc<dyn Fn(&dyn Kernel, &[Tensor]) -> Result<Tensor> + Send + Sync>;

/// The gradients of a norm.
#[derive(Debug)]
pub struct NormGradients {
    /// Of its input.
    pub x: Tensor,
    /// Of scale and shift `[C]`, where they are trained.
    pub affine: Option<(Tensor, Tensor)>,
}

/// The gradients of an attention's queries, keys and values, each of its tensor's shape.
#[derive(Debug)]
pub struct AttentionGradients {
    /// `[B, N, C]`.
    pub q: Tensor,
    /// `[B or 1, M, C]`.
    pub k: Tensor,
    /// `[B or 1, M, C]`.
    pub v: Tensor,
}

/// The way back through what is not a product with weights. `grad` is the gradient of the result, of its shape.
pub trait Backward: Sync {
    /// Of [`Kernel::group_norm`]; of scale and shift too if `trained`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn group_norm_backward(
        &self,
        grad: &Tensor,
        x: &Tensor,
        norm: &GroupNormSpec<'_>,
        silu: bool,
        trained: bool,
    ) -> Result<NormGradients>;

    /// Of [`Kernel::layer_norm`]; of scale and shift too if `trained`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn layer_norm_backward(
        &self,
        grad: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f64,
        trained: bool,
    ) -> Result<NormGradients>;

    /// `a^T b` of rows a `[R, M]` and b `[R, N]`: `[M, N]`, the gradient of a linear layer's weight (`TN` as in BLAS: the first transposed, the second not).
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn matmul_tn(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        a.t()?.matmul(b)
    }

    /// The sums over rows of x `[B, R, C]`: `[B, C]`, the gradient of what was added to each.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn row_sums(&self, x: &Tensor) -> Result<Tensor> {
        let (images, rows, _) = x.dims3()?;
        // A product with ones: candle's sums over outer dimensions step through memory.
        let ones = Tensor::ones((images, 1, rows), DType::F32, x.device())?;
        ones.matmul(&x.contiguous()?)?.squeeze(1)
    }

    /// The gradient `[O, C, kh, kw]` of the weight of a convolution of images x, from that of its result; `None` where this set
    /// of kernels has nothing better than a product for each tap.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn conv2d_weight(
        &self,
        _grad: &Tensor,
        _x: &Tensor,
        _window: (usize, usize),
        _of: Window,
    ) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Of [`Kernel::geglu`]: `[B, N, 2 K]` from grad `[B, N, K]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn geglu_backward(&self, grad: &Tensor, x: &Tensor) -> Result<Tensor>;

    /// Of [`Kernel::attention`] to all keys, or, if `causal`, of each query to the keys up to its own. `given`: the gradient of the
    /// result, and the result.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn attention_backward(
        &self,
        given: (&Tensor, &Tensor),
        qkv: (&Tensor, &Tensor, &Tensor),
        heads: usize,
        scale: f64,
        causal: bool,
    ) -> Result<AttentionGradients>;
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
    /// Those of the weight that it is the transpose of, in that order; the kernel set transposes them when it reads them.
    Transposed(Tensor),
    /// To be packed each time that they are used.
    Late(Arc<dyn Source>),
    /// A variable that is trained, `[O, K]` or `[O, C, kh, kw]` of float32: packed each time, as it changes.
    Trained(Tensor),
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

    /// A weight that is trained: a candle variable of float32.
    ///
    /// # Errors
    /// When it is of another rank than a weight's.
    pub fn of_variable(w: &Tensor) -> Result<Self> {
        Self::of(Numbers::Trained(w.clone()), w.dims())
    }

    /// The variable, if it is trained.
    #[must_use]
    pub fn trained(&self) -> Option<&Tensor> {
        match &self.numbers {
            Numbers::Trained(w) => Some(w),
            _ => None,
        }
    }

    /// The same weight with its present numbers, packed.
    pub(crate) fn packed_for(&self, kernel: &dyn Kernel) -> Result<Self> {
        Ok(Self {
            numbers: match &self.numbers {
                Numbers::Trained(w) => Numbers::Packed(kernel.pack(&w.detach())?),
                other => other.clone(),
            },
            ..*self
        })
    }

    /// The weight `[K, O]` or `[C, O, kh, kw]` with the window turned round of packed numbers `[O, K]` or `[O, C, kh, kw]`, which are transposed
    /// when they are read.
    pub(crate) fn transposed_on_read(data: Tensor, of: &Self) -> Self {
        Self {
            numbers: Numbers::Transposed(data),
            outputs: of.inputs,
            inputs: of.outputs,
            window: of.window,
        }
    }

    /// Whether its packed numbers are those of the weight that it is the transpose of.
    pub(crate) fn is_transposed_on_read(&self) -> bool {
        matches!(self.numbers, Numbers::Transposed(_))
    }

    /// The numbers as `kernel` reads them.
    pub(crate) fn packed(&self, kernel: &dyn Kernel) -> Result<Tensor> {
        match &self.numbers {
            Numbers::Packed(data) | Numbers::Transposed(data) => Ok(data.clone()),
            Numbers::Late(source) => kernel.pack(&source.tensor()?),
            Numbers::Trained(w) => kernel.pack(&w.detach()),
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
