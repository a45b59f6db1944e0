//! Slopes of what is done number by number, by candle's operators.

use candle_core::{D, Result, Tensor};

/// `grad` times the slope of SiLU, `s (1 + x (1 - s))` with s = sigmoid(x).
pub(crate) fn silu(grad: &Tensor, x: &Tensor) -> Result<Tensor> {
    let s = candle_nn::ops::sigmoid(x)?;
    grad * (&s * ((x * (1.0 - &s)?)? + 1.0)?)?
}

/// The slope of GELU by erf: Phi(x) + x phi(x).
pub(crate) fn gelu_slope(x: &Tensor) -> Result<Tensor> {
    let phi = ((x.sqr()? * -0.5)?.exp()? * (2.0 * std::f64::consts::PI).sqrt().recip())?;
    let cumulative = (((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    cumulative + (x * phi)?
}

/// `grad` times the slope of `x sigmoid(1.702 x)`.
pub(crate) fn quick_gelu(grad: &Tensor, x: &Tensor) -> Result<Tensor> {
    let s = candle_nn::ops::sigmoid(&(x * 1.702)?)?;
    grad * (&s * (((x * 1.702)? * (1.0 - &s)?)? + 1.0)?)?
}

/// The gradient of `(x - mean) / sqrt(variance + eps)` over the last dimension, and the normalised x.
pub(crate) fn normalised(grad: &Tensor, x: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
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
