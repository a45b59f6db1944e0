//! Gradients of what is not a product with weights: the plain versions, of candle's operators, which run on every device and
//! are what the fast ones are held against.

use candle_core::{D, Result, Tensor, TensorId};

use super::Gradients;
use crate::plain::{Plain, split_heads};
use crate::{GroupNormSpec, Layout};

/// The gradients of a norm.
#[derive(Debug)]
pub struct NormGradients {
    /// Of its input.
    pub x: Tensor,
    /// Of scale and shift `[C]`, where they are trained.
    pub affine: Option<(Tensor, Tensor)>,
}

impl NormGradients {
    pub(super) fn give(
        self,
        (x, weight, bias): (TensorId, TensorId, TensorId),
        gradients: &mut Gradients,
    ) -> Result<()> {
        gradients.add(x, self.x)?;
        if let Some((scale, shift)) = self.affine {
            gradients.add(weight, scale)?;
            gradients.add(bias, shift)?;
        }
        Ok(())
    }
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
    /// Of [`crate::Kernel::group_norm`]; of scale and shift too if `trained`.
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

    /// Of [`crate::Kernel::layer_norm`]; of scale and shift too if `trained`.
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

    /// Of [`crate::Kernel::geglu`]: `[B, N, 2 K]` from grad `[B, N, K]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn geglu_backward(&self, grad: &Tensor, x: &Tensor) -> Result<Tensor>;

    /// Of [`crate::Kernel::attention`] to all keys, or, if `causal`, of each query to the keys up to its own.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn attention_backward(
        &self,
        grad: &Tensor,
        qkv: (&Tensor, &Tensor, &Tensor),
        heads: usize,
        scale: f64,
        causal: bool,
    ) -> Result<AttentionGradients>;
}

/// `grad` times the slope of SiLU, `s (1 + x (1 - s))` with s = sigmoid(x).
pub(super) fn silu(grad: &Tensor, x: &Tensor) -> Result<Tensor> {
    let s = candle_nn::ops::sigmoid(x)?;
    grad * (&s * ((x * (1.0 - &s)?)? + 1.0)?)?
}

/// The slope of GELU by erf: Phi(x) + x phi(x).
pub(super) fn gelu_slope(x: &Tensor) -> Result<Tensor> {
    let phi = ((x.sqr()? * -0.5)?.exp()? * (2.0 * std::f64::consts::PI).sqrt().recip())?;
    let cumulative = (((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    cumulative + (x * phi)?
}

/// `grad` times the slope of `x sigmoid(1.702 x)`.
pub(super) fn quick_gelu(grad: &Tensor, x: &Tensor) -> Result<Tensor> {
    let s = candle_nn::ops::sigmoid(&(x * 1.702)?)?;
    grad * (&s * (((x * 1.702)? * (1.0 - &s)?)? + 1.0)?)?
}

/// The gradient of `(x - mean) / sqrt(variance + eps)` over the last dimension, and the normalised x.
fn normalised(grad: &Tensor, x: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let y = centred.broadcast_div(&deviation)?;
    let along = (grad * &y)?.mean_keepdim(D::Minus1)?;
    let of = grad
        .broadcast_sub(&grad.mean_keepdim(D::Minus1)?)?
        .sub(&y.broadcast_mul(&along)?)?
        .broadcast_div(&deviation)?;
    Ok((of, y))
}

impl Backward for Plain {
    fn group_norm_backward(
        &self,
        grad: &Tensor,
        x: &Tensor,
        norm: &GroupNormSpec<'_>,
        silu_follows: bool,
        trained: bool,
    ) -> Result<NormGradients> {
        let (shape, images) = (x.dims().to_vec(), x.dim(0)?);
        let channels = x.dim(Layout::ChannelsFirst.channels())?;
        let planes = |t: &Tensor| t.reshape((images, channels, ()));
        let grouped = |t: &Tensor| t.reshape((images, norm.groups, ()));
        let weight = norm.weight.reshape((1, channels, 1))?;
        let mut grad = planes(grad)?;
        if silu_follows {
            let (_, y) = normalised(&grouped(&grad)?, &grouped(x)?, norm.eps)?;
            let y = planes(&y)?
                .broadcast_mul(&weight)?
                .broadcast_add(&norm.bias.reshape((1, channels, 1))?)?;
            grad = silu(&grad, &y)?;
        }
        let scaled = grad.broadcast_mul(&weight)?;
        let (of, y) = normalised(&grouped(&scaled)?, &grouped(x)?, norm.eps)?;
        let affine = || -> Result<_> {
            let scale = (&grad * planes(&y)?)?.sum((0, 2))?;
            Ok((scale, grad.sum((0, 2))?))
        };
        Ok(NormGradients {
            x: of.reshape(shape)?,
            affine: trained.then(affine).transpose()?,
        })
    }

    fn layer_norm_backward(
        &self,
        grad: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f64,
        trained: bool,
    ) -> Result<NormGradients> {
        let (of, y) = normalised(&grad.broadcast_mul(weight)?, x, eps)?;
        let affine = || -> Result<_> {
            let rows = |t: Tensor| t.flatten_to(t.rank() - 2)?.sum(0);
            Ok((rows((grad * y)?)?, rows(grad.clone())?))
        };
        Ok(NormGradients {
            x: of,
            affine: trained.then(affine).transpose()?,
        })
    }

    fn geglu_backward(&self, grad: &Tensor, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let h = x.narrow(D::Minus1, 0, half)?.contiguous()?;
        let g = x.narrow(D::Minus1, half, half)?.contiguous()?;
        let of_h = (grad * g.gelu_erf()?)?;
        let of_g = ((grad * h)? * gelu_slope(&g)?)?;
        Tensor::cat(&[of_h, of_g], D::Minus1)
    }

    fn attention_backward(
        &self,
        grad: &Tensor,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        heads: usize,
        scale: f64,
        causal: bool,
    ) -> Result<AttentionGradients> {
        let (images, n, c) = q.dims3()?;
        let (sources, m, _) = k.dims3()?;
        let joined = |t: Tensor, rows: usize| t.transpose(0, 1)?.reshape((1, rows, c));
        let mut of = [Vec::new(), Vec::new(), Vec::new()];
        for image in 0..images {
            let source = if sources == 1 { 0 } else { image };
            let own = |t: &Tensor, i| split_heads(&t.narrow(0, i, 1)?, heads);
            let (grad, q) = (own(grad, image)?, own(q, image)?);
            let (k, v) = (own(k, source)?, own(v, source)?);
            let mut scores = (q.matmul(&k.transpose(1, 2)?)? * scale)?;
            if causal {
                scores = scores.broadcast_add(&causal_mask(n, q.device())?)?;
            }
            let p = candle_nn::ops::softmax_last_dim(&scores)?;
            let of_p = grad.matmul(&v.transpose(1, 2)?)?;
            let along = (&p * &of_p)?.sum_keepdim(D::Minus1)?;
            let of_scores = ((&p * of_p.broadcast_sub(&along)?)? * scale)?;
            of[0].push(joined(of_scores.matmul(&k)?, n)?);
            of[1].push(joined(of_scores.transpose(1, 2)?.matmul(&q)?, m)?);
            of[2].push(joined(p.transpose(1, 2)?.matmul(&grad)?, m)?);
        }
        let [q, k, v] = of.map(|parts| Tensor::cat(&parts, 0));
        let shared = |t: Tensor| {
            if sources == 1 && images > 1 {
                t.sum_keepdim(0)
            } else {
                Ok(t)
            }
        };
        Ok(AttentionGradients {
            q: q?,
            k: shared(k?)?,
            v: shared(v?)?,
        })
    }
}

/// `[1, N, N]`: 0 where query i may see key j <= i, else minus infinity.
pub(crate) fn causal_mask(n: usize, device: &candle_core::Device) -> Result<Tensor> {
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
