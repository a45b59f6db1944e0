//! The layers that every network is made of. They hold weights and hand the arithmetic to a [`Kernel`].

use candle_core::Tensor;

use super::Result;
use super::weights::Scope;
use crate::kernels::{GroupNormSpec, Kernel, Padding};

/// A fully connected layer over `[B, N, in]`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    /// What adapters add to the weight: `[R, in]` and `[out, R]`.
    low_rank: Option<(Tensor, Tensor)>,
}

impl Linear {
    /// Loads `weight` `[output, input]` and `bias` `[output]`. A weight stored as a 1x1 convolution serves too.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn load(scope: &Scope<'_>, input: usize, output: usize, bias: bool) -> Result<Self> {
        Ok(Self {
            weight: scope.get("weight", (output, input))?,
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
            weight: scope.get_any(&named("weight"), (output, input))?,
            bias: Some(scope.get_any(&named("bias"), output)?),
            low_rank: None,
        })
    }

    /// x `[B, N, in]` to `[B, N, out]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        let y = kernel.linear(x, &self.weight, self.bias.as_ref())?;
        match &self.low_rank {
            Some((down, up)) => {
                Ok((y + kernel.linear(&kernel.linear(x, down, None)?, up, None)?)?)
            }
            None => Ok(y),
        }
    }
}

/// A convolution with bias over `[B, C, H, W]`.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: Padding,
    /// What adapters add to the weight: `[R, in, k, k]` and `[out, R, 1, 1]`.
    low_rank: Option<(Tensor, Tensor)>,
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
            weight: scope.get("weight", (output, input, size, size))?,
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

    /// x `[B, C, H, W]` to `[B, O, H', W']`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        let y = kernel.conv2d(x, &self.weight, Some(&self.bias), self.stride, self.padding)?;
        match &self.low_rank {
            Some((down, up)) => {
                let inner = kernel.conv2d(x, down, None, self.stride, self.padding)?;
                Ok((y + kernel.conv2d(&inner, up, None, 1, Padding::same(0))?)?)
            }
            None => Ok(y),
        }
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

    /// Normalises x `[B, C, ...]`.
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

/// `[B, C, H, W]` to `[B, H W, C]`.
///
/// # Errors
/// When x is of another rank.
pub fn image_to_tokens(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
}

/// `[B, H W, C]` to `[B, C, H, W]`.
///
/// # Errors
/// When the number of tokens is not `h * w`.
pub fn tokens_to_image(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (b, _, c) = x.dims3()?;
    Ok(x.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w))?)
}

/// Enlarges x `[B, C, H, W]` to h x w, nearest: source index floor(i * in / out).
///
/// # Errors
/// When x is of another rank.
pub fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let index = |from: usize, to: usize| -> candle_core::Result<Tensor> {
        let index: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
        Tensor::new(index, x.device())
    };
    Ok(x.index_select(&index(height, h)?, 2)?
        .index_select(&index(width, w)?, 3)?)
}
