//! The layers that every network is made of. They hold weights and hand the arithmetic to a [`Kernel`].

use candle_core::Tensor;

use crate::checkpoint::weights::{LowRank, Scope};
use crate::{Result, goes_on};
use retouch_kernels::{GroupNormSpec, Kernel, Padding, Terms, Weight, Window};

/// `x by`, and x itself by 1.
fn scaled(x: Tensor, by: f64, kernel: &dyn Kernel) -> Result<Tensor> {
    if by == 1.0 {
        return Ok(x);
    }
    Ok(kernel.scale(&x, by)?)
}

/// A fully connected layer over `[B, N, in]`.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    /// What is added to the weight: `[R, in]` and `[out, R]`.
    low_rank: Vec<LowRank>,
}

impl Linear {
    /// Loads `weight` `[output, input]` and `bias` `[output]`. A weight stored as a 1x1 convolution serves too.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn load(scope: &Scope<'_>, input: usize, output: usize, bias: bool) -> Result<Self> {
        Ok(Self {
            weight: scope.weight("weight", (output, input))?,
            bias: bias.then(|| scope.get("bias", output)).transpose()?,
            low_rank: scope.low_rank(&[output, input])?,
        })
    }

    /// Loads a layer that has had several names.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn load_any(
        scope: &Scope<'_>,
        names: &[&str],
        input: usize,
        output: usize,
    ) -> Result<Self> {
        let named = |part: &str| -> Vec<String> {
            names.iter().map(|name| format!("{name}.{part}")).collect()
        };
        Ok(Self {
            weight: scope.weight_any(&named("weight"), (output, input))?,
            bias: Some(scope.get_any(&named("bias"), output)?),
            low_rank: Vec::new(),
        })
    }

    /// x `[B, N, in]` to `[B, N, out]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        self.forward_onto(x, None, kernel)
    }

    /// GEGLU of [`Self::forward`]: `h gelu(g)` of its halves h and g, `[B, N, out / 2]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_geglu(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        goes_on()?;
        if self.low_rank.is_empty() {
            return Ok(kernel.linear_geglu(x, &self.weight, self.bias.as_ref())?);
        }
        Ok(kernel.geglu(&self.forward(x, kernel)?)?)
    }

    /// [`Self::forward`] plus `residual` `[B, N, out]`.
    ///
    /// # Errors
    /// When the shapes do not fit, or the run was cancelled.
    pub fn forward_onto(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        kernel: &dyn Kernel,
    ) -> Result<Tensor> {
        goes_on()?;
        let terms = Terms {
            bias: self.bias.as_ref(),
            residual,
            image: None,
        };
        let mut y = kernel.linear(x, &self.weight, terms)?;
        for low in &self.low_rank {
            let inner = kernel.linear(&low.seen(x, kernel)?, &low.down, Terms::default())?;
            let inner = scaled(inner, low.scale, kernel)?;
            let terms = Terms {
                residual: Some(&y),
                ..Terms::default()
            };
            y = kernel.linear(&inner, &low.up, terms)?;
        }
        Ok(y)
    }
}

/// A convolution with bias over images, laid out as the kernels want them.
#[derive(Debug)]
pub struct Conv2d {
    weight: Weight,
    bias: Tensor,
    stride: usize,
    padding: Padding,
    /// What is added to the weight: `[R, in, k, k]` and `[out, R, 1, 1]`.
    low_rank: Vec<LowRank>,
}

impl Conv2d {
    /// Loads `weight` `[output, input, size, size]` and `bias` `[output]`.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn load(
        scope: &Scope<'_>,
        input: usize,
        output: usize,
        size: usize,
        stride: usize,
        padding: Padding,
    ) -> Result<Self> {
        Ok(Self {
            weight: scope.weight("weight", (output, input, size, size))?,
            bias: scope.get("bias", output)?,
            stride,
            padding,
            low_rank: scope.low_rank(&[output, input, size, size])?,
        })
    }

    /// Loads a convolution that keeps the grid: `size` odd, padded by half of it.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn load_same(scope: &Scope<'_>, input: usize, output: usize, size: usize) -> Result<Self> {
        Self::load(scope, input, output, size, 1, Padding::same(size / 2))
    }

    /// Images of C channels to images of O.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        self.forward_with(x, None, None, None, kernel)
    }

    /// [`Self::forward`] of the image enlarged to h x w, nearest: source index floor(i * in / out).
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_enlarged(
        &self,
        x: &Tensor,
        size: (usize, usize),
        kernel: &dyn Kernel,
    ) -> Result<Tensor> {
        self.forward_with(x, Some(size), None, None, kernel)
    }

    /// [`Self::forward`] plus `image` `[B, O]` at every pixel and `residual` of the result's shape.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_onto(
        &self,
        x: &Tensor,
        image: Option<&Tensor>,
        residual: Option<&Tensor>,
        kernel: &dyn Kernel,
    ) -> Result<Tensor> {
        self.forward_with(x, None, image, residual, kernel)
    }

    fn forward_with(
        &self,
        x: &Tensor,
        enlarged: Option<(usize, usize)>,
        image: Option<&Tensor>,
        residual: Option<&Tensor>,
        kernel: &dyn Kernel,
    ) -> Result<Tensor> {
        goes_on()?;
        let window = Window {
            stride: self.stride,
            padding: self.padding,
            enlarged,
        };
        let terms = Terms {
            bias: Some(&self.bias),
            image,
            residual,
        };
        let mut y = kernel.conv2d(x, &self.weight, window, terms)?;
        for low in &self.low_rank {
            let inner =
                kernel.conv2d(&low.seen(x, kernel)?, &low.down, window, Terms::default())?;
            let inner = scaled(inner, low.scale, kernel)?;
            let terms = Terms {
                residual: Some(&y),
                ..Terms::default()
            };
            let at_pixel = Window::padded(Padding::same(0));
            y = kernel.conv2d(&inner, &low.up, at_pixel, terms)?;
        }
        Ok(y)
    }
}

/// Group normalisation with scale and shift of each channel.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Loads `weight` and `bias` `[channels]`.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn load(scope: &Scope<'_>, channels: usize, groups: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: scope.get("weight", channels)?,
            bias: scope.get("bias", channels)?,
            groups,
            eps,
        })
    }

    fn spec(&self) -> GroupNormSpec<'_> {
        GroupNormSpec {
            groups: self.groups,
            eps: self.eps,
            weight: &self.weight,
            bias: &self.bias,
        }
    }

    /// Normalises images.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        Ok(kernel.group_norm(x, &self.spec(), false)?)
    }

    /// Normalises x and applies SiLU.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_silu(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        Ok(kernel.group_norm(x, &self.spec(), true)?)
    }
}

/// Layer normalisation over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Loads `weight` and `bias` `[width]`.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn load(scope: &Scope<'_>, width: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: scope.get("weight", width)?,
            bias: scope.get("bias", width)?,
            eps,
        })
    }

    /// Normalises x `[..., width]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        Ok(kernel.layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}
