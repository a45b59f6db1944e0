//! Sequences of sigmas, and the numbers that solvers take from a sigma.
//!
//! sigma is the noise over the signal; at a level with signal a and noise s, a^2 + s^2 = 1, it is s / a.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which sigmas the steps of a scheduler are at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Sigmas {
    /// Those of the timesteps.
    Training,
    /// Karras et al. 2022, eq. 5, with rho 7.
    Karras,
    /// Evenly spaced logarithms.
    Exponential,
    /// Quantiles of the beta distribution with both parameters 0.6 (Lee et al. 2024).
    Beta,
    /// Evenly spaced half logarithms of the signal-to-noise ratio (Lu et al. 2022).
    Lu,
}

impl Sigmas {
    /// The name in the language.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::Beta => "beta",
            Self::Lu => "lu",
        }
    }

    /// T sigmas from the greatest to the least; none for those of the timesteps, and for Lu's ([`evenly`]).
    pub(super) fn between(self, least: f64, greatest: f64, steps: usize) -> Option<Vec<f64>> {
        let along = |at: &dyn Fn(f64) -> f64| {
            (0..steps)
                .map(|k| at(k as f64 / steps.saturating_sub(1).max(1) as f64))
                .collect()
        };
        Some(match self {
            Self::Training | Self::Lu => return None,
            Self::Karras => {
                const RHO: f64 = 7.0;
                let (low, high) = (libm::pow(least, 1.0 / RHO), libm::pow(greatest, 1.0 / RHO));
                along(&|ramp| libm::pow(high + ramp * (low - high), RHO))
            }
            Self::Exponential => {
                let (low, high) = (libm::log(least), libm::log(greatest));
                along(&|ramp| libm::exp(high + ramp * (low - high)))
            }
            Self::Beta => along(&|ramp| {
                let share = beta_quantile(1.0 - ramp, 0.6, 0.6);
                least + share * (greatest - least)
            }),
        })
    }
}

/// Signal and noise of a sigma: a = 1 / sqrt(sigma^2 + 1), s = sigma a.
pub(super) fn level_of(sigma: f32) -> (f64, f64) {
    let sigma = f64::from(sigma);
    let a = 1.0 / (sigma * sigma + 1.0).sqrt();
    (a, sigma * a)
}

/// Half the logarithm of the signal to noise ratio; infinite at sigma 0.
pub(super) fn lambda(sigma: f32) -> f64 {
    -libm::log(f64::from(sigma))
}

/// numpy's `interp` of a table at its indices.
pub(super) fn interpolate(table: &[f32], t: f64) -> f64 {
    let last = table.len() - 1;
    let low = (t.floor().max(0.0) as usize).min(last);
    let high = (low + 1).min(last);
    let (a, b) = (f64::from(table[low]), f64::from(table[high]));
    (b - a) * (t - low as f64) + a
}

/// T logarithms of sigmas from the table's last to its first.
pub(super) fn evenly(logs: &[f32], steps: usize) -> Vec<f64> {
    let (low, high) = (f64::from(logs[0]), f64::from(logs[logs.len() - 1]));
    let ramp = |k: usize| k as f64 / steps.saturating_sub(1).max(1) as f64;
    (0..steps).map(|k| high + ramp(k) * (low - high)).collect()
}

/// The timestep of a sigma, by its logarithm between those of the table.
pub(super) fn timestep_of(sigma: f64, logs: &[f32]) -> f64 {
    timestep_of_log(libm::log(sigma.max(1e-10)), logs)
}

/// The timestep of a logarithm of a sigma.
pub(super) fn timestep_of_log(log: f64, logs: &[f32]) -> f64 {
    let below = logs.iter().filter(|&&l| log >= f64::from(l)).count();
    let low = below.saturating_sub(1).min(logs.len() - 2);
    let (a, b) = (f64::from(logs[low]), f64::from(logs[low + 1]));
    let w = ((a - log) / (a - b)).clamp(0.0, 1.0);
    (1.0 - w) * low as f64 + w * (low + 1) as f64
}

/// The half way between two sigmas in their logarithms: where DPM++ SDE evaluates a second time.
pub(super) fn middle(from: f32, to: f32) -> f64 {
    let (from, to) = (f64::from(from), f64::from(to));
    (from * to).sqrt()
}

/// Noise that an ancestral step from one sigma to another adds, and the sigma that it goes down to before.
pub(super) fn ancestral(from: f64, to: f64) -> (f64, f64) {
    let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
    (up, (to * to - up * up).max(0.0).sqrt())
}

/// The integral over [from, to] of the polynomial that is 1 at `points[of]` and 0 at the other points, at most four: the
/// weight of a derivative in a linear multistep method.
pub(super) fn lagrange_integral(points: &[f64], of: usize, from: f64, to: f64) -> f64 {
    // Gauss-Legendre with three points is exact up to degree 5.
    let root = 0.6f64.sqrt();
    let (half, centre) = ((to - from) / 2.0, (from + to) / 2.0);
    let value = |x: f64| -> f64 {
        let factors = points
            .iter()
            .enumerate()
            .filter(|&(other, _)| other != of)
            .map(|(_, &point)| (x - point) / (points[of] - point));
        factors.product()
    };
    let nodes = [(-root, 5.0 / 9.0), (0.0, 8.0 / 9.0), (root, 5.0 / 9.0)];
    half * nodes
        .iter()
        .map(|(x, weight)| weight * value(centre + half * x))
        .sum::<f64>()
}

/// The x at which the regularised incomplete beta function of a and b is `share`, by bisection.
fn beta_quantile(share: f64, a: f64, b: f64) -> f64 {
    if share <= 0.0 {
        return 0.0;
    }
    if share >= 1.0 {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        if incomplete_beta(middle, a, b) < share {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}

/// The regularised incomplete beta function I_x(a, b) for 0 < x < 1, by its continued fraction (DLMF 8.17.22, evaluated
/// after Lentz).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let log = libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b)
        + a * libm::log(x)
        + b * libm::log1p(-x);
    let (mut c, mut d) = (1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..200 {
        let m = f64::from(m);
        let terms = [
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        ];
        let before = fraction;
        for term in terms {
            d = 1.0 / (1.0 + term * d);
            c = 1.0 + term / c;
            fraction *= c * d;
        }
        if (fraction - before).abs() < 1e-16 * fraction.abs() {
            break;
        }
    }
    libm::exp(log) * fraction / a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_the_beta_distribution_are_those_of_scipy() {
        // scipy.stats.beta.ppf(share, 0.6, 0.6)
        for (share, due) in [(0.3, 0.234_017), (0.5, 0.5)] {
            assert!((beta_quantile(share, 0.6, 0.6) - due).abs() < 5e-7);
        }
        // I_x(1, 1) = x and I_x(2, 1) = x^2.
        for x in [0.01, 0.3, 0.77] {
            assert!((incomplete_beta(x, 1.0, 1.0) - x).abs() < 1e-14);
            assert!((incomplete_beta(x, 2.0, 1.0) - x * x).abs() < 1e-14);
        }
        assert_eq!(beta_quantile(0.0, 0.6, 0.6), 0.0);
        assert_eq!(beta_quantile(1.0, 0.6, 0.6), 1.0);
    }

    #[test]
    fn the_weights_of_a_multistep_method_add_up_to_its_step() {
        let points = [3.0, 4.5, 7.0, 11.0];
        for order in 1..=4 {
            let weights = (0..order).map(|of| lagrange_integral(&points[..order], of, 3.0, 2.0));
            assert!((weights.sum::<f64>() + 1.0).abs() < 1e-12, "{order}");
        }
        // One step back: the integral of (x - 4.5) / (3 - 4.5) from 3 to 2.
        let weight = lagrange_integral(&points[..2], 0, 3.0, 2.0);
        assert!((weight + 4.0 / 3.0).abs() < 1e-12, "{weight}");
    }
}
