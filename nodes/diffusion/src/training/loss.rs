//! What a prediction is compared with, and how much each difference counts.

use candle_core::{DType, Tensor};

use crate::Result;
use crate::sampling::scheduler::Prediction;

/// What the network should predict of `z = a z0 + s noise`, a^2 + s^2 = 1: all `[R, C, h, w]`, a and s a number a row.
///
/// # Errors
/// When the shapes differ.
pub fn target(
    prediction: Prediction,
    z0: &Tensor,
    noise: &Tensor,
    signal: &[(f32, f32)],
) -> Result<Tensor> {
    Ok(match prediction {
        Prediction::Epsilon => noise.clone(),
        Prediction::Sample => z0.clone(),
        Prediction::VPrediction => {
            let (a, s) = by_row(signal, z0)?;
            (noise.broadcast_mul(&a)? - z0.broadcast_mul(&s)?)?
        }
    })
}

/// `a z0 + s noise` with a and s of each row.
///
/// # Errors
/// When the shapes differ.
pub fn noised(z0: &Tensor, noise: &Tensor, signal: &[(f32, f32)]) -> Result<Tensor> {
    let (a, s) = by_row(signal, z0)?;
    Ok((z0.broadcast_mul(&a)? + noise.broadcast_mul(&s)?)?)
}

fn by_row(signal: &[(f32, f32)], z: &Tensor) -> Result<(Tensor, Tensor)> {
    let column = |numbers: Vec<f32>| Tensor::from_vec(numbers, (signal.len(), 1, 1, 1), z.device());
    Ok((
        column(signal.iter().map(|(a, _)| *a).collect())?,
        column(signal.iter().map(|(_, s)| *s).collect())?,
    ))
}

/// The weight of a timestep whose signal-to-noise ratio is a^2 / s^2: min(SNR, gamma) over SNR for noise, over SNR + 1 for v, by
/// itself for the picture (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy").
#[must_use]
pub fn min_snr((a, s): (f32, f32), gamma: f64, prediction: Prediction) -> f64 {
    let (a2, s2) = (f64::from(a) * f64::from(a), f64::from(s) * f64::from(s));
    let snr = a2 / s2.max(f64::MIN_POSITIVE);
    let least = snr.min(gamma);
    match prediction {
        // Without signal the noise is known exactly, and counts fully.
        Prediction::Epsilon if snr > 0.0 => least / snr,
        Prediction::Epsilon => 1.0,
        Prediction::VPrediction => least / (snr + 1.0),
        Prediction::Sample => least,
    }
}

/// The mean squared error of each row, and the gradient of their weighted sum.
///
/// `weights`: a number a row. `places` `[R, 1, h, w]`: how much each pixel of the latent counts, 1 everywhere when `None`.
///
/// # Errors
/// When the shapes differ.
pub fn squared_error(
    predicted: &Tensor,
    target: &Tensor,
    weights: &[f64],
    places: Option<&Tensor>,
) -> Result<(Vec<f64>, Tensor)> {
    let predicted = predicted.detach();
    let count = predicted.elem_count() / weights.len().max(1);
    let difference = (predicted - target)?;
    let counted = match places {
        Some(places) => difference.broadcast_mul(places)?,
        None => difference.clone(),
    };
    let rows = (&counted * &difference)?
        .flatten_from(1)?
        .to_vec2::<f32>()?;
    let errors = rows
        .iter()
        .map(|row| row.iter().map(|&x| f64::from(x)).sum::<f64>() / count as f64)
        .collect();
    let scales: Vec<f32> = weights
        .iter()
        .map(|weight| (2.0 * weight / count as f64) as f32)
        .collect();
    let scales = Tensor::from_vec(scales, (weights.len(), 1, 1, 1), difference.device())?;
    let gradient = counted.broadcast_mul(&scales)?.to_dtype(DType::F32)?;
    Ok((errors, gradient))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_snr_weights_are_those_of_the_paper() {
        // SNR 4: a^2 = 0.8, s^2 = 0.2.
        let at = |prediction| min_snr((0.8f32.sqrt(), 0.2f32.sqrt()), 2.0, prediction);
        assert!((at(Prediction::Epsilon) - 0.5).abs() < 1e-6);
        assert!((at(Prediction::VPrediction) - 0.4).abs() < 1e-6);
        assert!((at(Prediction::Sample) - 2.0).abs() < 1e-6);
        assert_eq!(min_snr((0.0, 1.0), 5.0, Prediction::Epsilon), 1.0);
    }
}
