//! A checkpoint's `scheduler_config.json` with its tables, and DDIM with eta 0 (Song et al. 2021) and its inverse on them.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the network predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    #[default]
    Epsilon,
    /// sqrt(alpha) noise - sqrt(1 - alpha) image (Salimans and Ho 2022).
    VPrediction,
    /// The image without noise.
    Sample,
}

impl Prediction {
    /// The denoised latent and the noise in `z` = a x0 + s noise, of which the network gave `out`.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn split(self, z: &Tensor, out: &Tensor, (a, s): (f64, f64)) -> Result<(Tensor, Tensor)> {
        Ok(match self {
            Self::Epsilon => (((z - (out * s)?)? / a)?, out.clone()),
            Self::VPrediction => (((z * a)? - (out * s)?)?, ((out * a)? + (z * s)?)?),
            Self::Sample => (out.clone(), ((z - (out * a)?)? / s)?),
        })
    }
}

/// How T timesteps are laid over the N of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Spacing {
    /// From 0 in strides of floor(N / T), plus the offset.
    #[default]
    Leading,
    /// From 0 to N - 1, both included.
    Linspace,
    /// From N - 1 downwards in strides of N / T.
    Trailing,
}

impl Spacing {
    /// Its name in the language.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Leading => "leading",
            Self::Linspace => "linspace",
            Self::Trailing => "trailing",
        }
    }
}

/// How the noise grows over the N timesteps of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Betas are evenly spaced.
    #[default]
    Linear,
    /// Their square roots are: Stable Diffusion.
    ScaledLinear,
    /// The cosine schedule (Nichol and Dhariwal 2021), betas at most 0.999.
    SquaredcosCapV2,
}

/// `scheduler_config.json`; absent keys take the defaults of diffusers' `DDIMScheduler`, or of the class that reads them
/// where those differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchedulerConfig {
    /// The class it was written for. A scheduler that is named takes betas, spacing, offset and prediction type from it.
    #[serde(default, rename = "_class_name")]
    pub class_name: String,
    /// N.
    #[serde(default = "train_timesteps")]
    pub num_train_timesteps: usize,
    /// b0.
    #[serde(default = "beta_start")]
    pub beta_start: f64,
    /// b1.
    #[serde(default = "beta_end")]
    pub beta_end: f64,
    /// How betas go from b0 to b1.
    #[serde(default)]
    pub beta_schedule: BetaSchedule,
    /// Betas given one by one.
    #[serde(default)]
    pub trained_betas: Option<Vec<f64>>,
    /// How timesteps are laid out; absent, as the class that reads it has it: leading for DDIM, linspace for the others.
    #[serde(default)]
    pub timestep_spacing: Option<Spacing>,
    /// Added to each timestep of leading spacing.
    #[serde(default)]
    pub steps_offset: usize,
    /// What the network predicts.
    #[serde(default)]
    pub prediction_type: Prediction,
    /// Whether alpha below timestep 0 is 1 rather than that of timestep 0.
    #[serde(default)]
    pub set_alpha_to_one: Option<bool>,
    /// Whether DDIM, Heun and LCM clip the denoised latent of each step; absent, see [`SchedulerConfig::clip`].
    #[serde(default)]
    pub clip_sample: Option<bool>,
    /// The largest magnitude that clipping leaves. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_sample_range: Option<f64>,
    /// Refused when true.
    #[serde(default)]
    pub thresholding: bool,
    /// Whether betas are rescaled so that nothing of the picture is left at the last timestep (Lin et al. 2023, algorithm 1).
    #[serde(default)]
    pub rescale_betas_zero_snr: bool,
    /// PNDM: whether it begins with the linear multistep method. Its class has false, which is not built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_prk_steps: Option<bool>,
    /// LCM: the number of timesteps that the model was distilled at. Default: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_inference_steps: Option<usize>,
    /// LCM: what timesteps are multiplied with in the boundary condition. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestep_scaling: Option<f64>,
    /// Options of the classes that count in sigmas.
    #[serde(flatten)]
    pub sigmas: SigmaOptions,
}

/// What `scheduler_config.json` may say beyond betas and timesteps: options of diffusers' classes that count in sigmas.
/// The ones that ask for what is not built are read in order to be refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SigmaOptions {
    /// Sigmas after Karras et al. 2022, eq. 5, with rho 7.
    pub use_karras_sigmas: Option<bool>,
    /// Sigmas evenly spaced in their logarithm.
    pub use_exponential_sigmas: Option<bool>,
    /// Sigmas at quantiles of the beta distribution with both parameters 0.6.
    pub use_beta_sigmas: Option<bool>,
    /// Refused when true.
    pub use_flow_sigmas: Option<bool>,
    /// Sigmas evenly spaced in half the logarithm of the signal-to-noise ratio (Lu et al. 2022), DPM++ alone.
    pub use_lu_lambdas: Option<bool>,
    /// The least of such sigmas in place of the schedule's own.
    pub sigma_min: Option<f64>,
    /// The greatest.
    pub sigma_max: Option<f64>,
    /// The sigma after the last step.
    pub final_sigmas_type: Option<FinalSigma>,
    /// Refused unless `linear`.
    pub interpolation_type: Option<String>,
    /// Refused when `continuous` and the network predicts v.
    pub timestep_type: Option<String>,
    /// Whether the last steps of a multistep solver are of a lower order. Default: true.
    pub lower_order_final: Option<bool>,
    /// Whether the last step is of order 1 in any case. Default: false.
    pub euler_at_final: Option<bool>,
    /// 1 to 3. Default: 2.
    pub solver_order: Option<usize>,
    /// `dpmsolver++` (default) or, with the multistep class, `sde-dpmsolver++`.
    pub algorithm_type: Option<String>,
    /// `midpoint` or `heun` (DPM++), `bh2` or `bh1` (UniPC), or a name that diffusers takes for the first.
    pub solver_type: Option<String>,
    /// Refused when false.
    pub predict_x0: Option<bool>,
    /// UniPC: the numbers of the steps after which nothing is corrected.
    pub disable_corrector: Option<Vec<i64>>,
    /// Refused unless null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver_p: Option<serde_json::Value>,
    /// Refused unless null: the network would give a variance beside the noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variance_type: Option<String>,
    /// Refused when finite. (-Infinity is not JSON, but is what diffusers writes; it is read as absent.)
    pub lambda_min_clipped: Option<f64>,
}

/// The sigma after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// 0: the last step gives the picture.
    Zero,
    /// That of timestep 0.
    SigmaMin,
}

fn train_timesteps() -> usize {
    1000
}
fn beta_start() -> f64 {
    0.0001
}
fn beta_end() -> f64 {
    0.02
}

/// The text with Python's numbers that JSON does not have (`-Infinity`, `Infinity`, `NaN`) as null, outside of strings.
fn without_infinities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut quoted) = (text, false);
    while let Some(next) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"]
            .into_iter()
            .find(|word| !quoted && rest.starts_with(word));
        if let Some(word) = word {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        let mut length = next.len_utf8();
        match next {
            '"' => quoted = !quoted,
            // Whatever is escaped does not end the string.
            '\\' if quoted => {
                length += rest[length..].chars().next().map_or(0, char::len_utf8);
            }
            _ => {}
        }
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

impl SchedulerConfig {
    /// Reads `scheduler_config.json` as diffusers writes it, which is not always JSON: `"lambda_min_clipped": -Infinity`.
    ///
    /// # Errors
    /// When the text is not such a configuration.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(&without_infinities(text))
    }

    /// The same text as it stands, without what is no JSON in it.
    ///
    /// # Errors
    /// When it is none otherwise.
    pub fn json(text: &str) -> serde_json::Result<serde_json::Value> {
        serde_json::from_str(&without_infinities(text))
    }

    /// Whether the text of a `scheduler_config.json` says what is predicted.
    #[must_use]
    pub fn names_prediction(text: &str) -> bool {
        Self::json(text)
            .is_ok_and(|config| config.get("prediction_type").is_some_and(|p| !p.is_null()))
    }

    /// How DDIM lays out its timesteps.
    #[must_use]
    pub fn spacing(&self) -> Spacing {
        self.timestep_spacing.unwrap_or_default()
    }

    /// What is asked for that is not built, if anything.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if self.thresholding {
            return Some(
                "asks for thresholding, which is meant for pixels and not supported for latents; expected `thresholding: false`"
                    .into(),
            );
        }
        if let Some(range) = self.clip_sample_range
            && !(range.is_finite() && range > 0.0)
        {
            return Some(format!(
                "clip_sample_range is {range}; expected a number above 0"
            ));
        }
        if self.num_train_timesteps == 0 || self.num_train_timesteps > 1_000_000 {
            return Some(format!(
                "num_train_timesteps is {}; expected 1 to 1000000",
                self.num_train_timesteps
            ));
        }
        if let Some(betas) = &self.trained_betas
            && betas.len() != self.num_train_timesteps
        {
            return Some(format!(
                "trained_betas has {} numbers for {} timesteps",
                betas.len(),
                self.num_train_timesteps
            ));
        }
        let in_range = |b: f64| b > 0.0 && b < 1.0;
        if !in_range(self.beta_start) || !in_range(self.beta_end) {
            return Some("beta_start and beta_end must lie between 0 and 1".into());
        }
        None
    }

    /// Whether alpha below timestep 0 is 1. Absent, as the class has it that the configuration was written for, or else
    /// that of the scheduler that reads it: DDIM's default is true.
    #[must_use]
    pub fn alpha_to_one(&self) -> bool {
        self.alpha_to_one_or(true)
    }

    /// The same for a scheduler with a default of its own.
    pub(super) fn alpha_to_one_or(&self, default: bool) -> bool {
        self.set_alpha_to_one
            .unwrap_or(match self.class_name.as_str() {
                "PNDMScheduler" => false,
                "DDIMScheduler" | "DDIMParallelScheduler" | "LCMScheduler" => true,
                _ => default,
            })
    }

    /// The largest magnitude of a denoised latent in DDIM, if it is clipped. Absent, as the class has it that the
    /// configuration was written for: DDIM's and DDPM's clip. diffusers' DDIM would clip by a configuration of any other
    /// class, too, but its pipelines undo that, and what is not asked for would spoil latents.
    #[must_use]
    pub fn clip(&self) -> Option<f64> {
        let clips = self.clip_sample.unwrap_or(matches!(
            self.class_name.as_str(),
            "DDIMScheduler" | "DDIMParallelScheduler" | "DDPMScheduler" | "DDPMParallelScheduler"
        ));
        clips.then(|| self.clip_sample_range.unwrap_or(1.0))
    }

    /// Cumulative products of 1 - beta, one for each timestep of training.
    #[must_use]
    pub fn alphas(&self) -> Vec<f32> {
        let n = self.num_train_timesteps;
        let betas: Vec<f32> = match (&self.trained_betas, self.beta_schedule) {
            (Some(betas), _) => betas.iter().map(|&b| b as f32).collect(),
            (None, BetaSchedule::Linear) => {
                linspace(self.beta_start as f32, self.beta_end as f32, n)
            }
            (None, BetaSchedule::ScaledLinear) => linspace(
                self.beta_start.sqrt() as f32,
                self.beta_end.sqrt() as f32,
                n,
            )
            .into_iter()
            .map(|x| x * x)
            .collect(),
            (None, BetaSchedule::SquaredcosCapV2) => {
                let bar = |t: f64| {
                    let x = libm::cos((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2);
                    x * x
                };
                (0..n)
                    .map(|i| {
                        let (a, b) = (i as f64 / n as f64, (i + 1) as f64 / n as f64);
                        (1.0 - bar(b) / bar(a)).min(0.999) as f32
                    })
                    .collect()
            }
        };
        let factors: Vec<f32> = betas.into_iter().map(|b| 1.0 - b).collect();
        if self.rescale_betas_zero_snr {
            products(zero_snr(&factors))
        } else {
            products(factors)
        }
    }

    /// The same with the timesteps laid out otherwise, where that is asked for.
    #[must_use]
    pub fn spaced(&self, spacing: Option<Spacing>) -> std::borrow::Cow<'_, Self> {
        match spacing {
            None => std::borrow::Cow::Borrowed(self),
            Some(_) => std::borrow::Cow::Owned(Self {
                timestep_spacing: spacing,
                ..self.clone()
            }),
        }
    }

    /// The timesteps of T steps, noisiest first.
    ///
    /// # Errors
    /// When T is 0, above N, or the offset leads past the last timestep.
    pub fn timesteps(&self, steps: usize) -> Result<Vec<usize>> {
        let n = self.num_train_timesteps;
        if steps == 0 || steps > n {
            return Err(Error::request(format!(
                "{steps} steps of a schedule of {n} timesteps; expected 1 to {n}"
            )));
        }
        let timesteps: Vec<usize> = match self.spacing() {
            Spacing::Leading => (0..steps)
                .rev()
                .map(|i| i * (n / steps) + self.steps_offset)
                .collect(),
            Spacing::Linspace => (0..steps)
                .rev()
                .map(|i| {
                    let stride = if steps > 1 {
                        (n - 1) as f64 / (steps - 1) as f64
                    } else {
                        0.0
                    };
                    (i as f64 * stride).round_ties_even() as usize
                })
                .collect(),
            Spacing::Trailing => (0..steps)
                .map(|i| {
                    let t = n as f64 - i as f64 * (n as f64 / steps as f64);
                    (t.round_ties_even() as usize).saturating_sub(1)
                })
                .collect(),
        };
        match timesteps.first() {
            Some(&first) if first >= n => Err(Error::request(format!(
                "{steps} steps with steps_offset {} begin at timestep {first}, beyond the last one, {}",
                self.steps_offset,
                n - 1
            ))
            .help("use fewer steps")),
            _ => Ok(timesteps),
        }
    }
}

/// Running products: torch keeps them in double precision and rounds each entry to f32.
fn products(factors: Vec<f32>) -> Vec<f32> {
    let mut product = 1f64;
    factors
        .into_iter()
        .map(|factor| {
            product *= f64::from(factor);
            product as f32
        })
        .collect()
}

/// 1 - beta of each timestep, changed so that the last product is 0 and the first stays (Lin et al. 2023, algorithm 1), in
/// f32 and in the order of diffusers' `rescale_zero_terminal_snr`.
fn zero_snr(factors: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = products(factors.to_vec())
        .into_iter()
        .map(f32::sqrt)
        .collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return Vec::new();
    };
    let scale = first / (first - last);
    let alphas: Vec<f32> = roots
        .into_iter()
        .map(|root| {
            let root = (root - last) * scale;
            root * root
        })
        .collect();
    // diffusers goes by way of betas: 1 - (1 - factor).
    let beta = |factor: f32| 1.0 - (1.0 - factor);
    let rest = alphas.windows(2).map(|pair| beta(pair[1] / pair[0]));
    std::iter::once(beta(alphas[0])).chain(rest).collect()
}

/// `torch.linspace` in f32: counted from the nearer end, each number rounded once (torch multiplies and adds in one).
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    if n == 1 {
        return vec![start];
    }
    let step = f64::from((end - start) / (n - 1) as f32);
    (0..n)
        .map(|i| {
            if i < n / 2 {
                (f64::from(start) + step * i as f64) as f32
            } else {
                (f64::from(end) - step * (n - 1 - i) as f64) as f32
            }
        })
        .collect()
}

/// `x0` with its numbers at most `clip` in magnitude, if that is given.
pub(super) fn clipped(x0: Tensor, clip: Option<f64>) -> Result<Tensor> {
    match clip {
        Some(most) => Ok(x0.clamp(-most, most)?),
        None => Ok(x0),
    }
}

/// DDIM for T steps.
#[derive(Clone, Debug)]
pub struct Ddim {
    timesteps: Vec<usize>,
    stride: usize,
    alphas: Vec<f32>,
    final_alpha: f32,
    prediction: Prediction,
    clip: Option<f64>,
}

impl Ddim {
    /// Lays T steps over the schedule.
    ///
    /// # Errors
    /// As [`SchedulerConfig::timesteps`].
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        Self::ending(config, steps, config.alpha_to_one())
    }

    /// The same with alpha below timestep 0 given: 1, or that of timestep 0.
    pub(super) fn ending(config: &SchedulerConfig, steps: usize, one: bool) -> Result<Self> {
        let alphas = config.alphas();
        let timesteps = config.timesteps(steps)?;
        if config.prediction_type == Prediction::Epsilon
            && timesteps.iter().any(|&t| alphas[t] == 0.0)
        {
            return Err(Error::request(format!(
                "timestep {} has no signal left (`rescale_betas_zero_snr`), and the picture cannot be computed from the noise that the model predicts there",
                timesteps[0]
            ))
            .help("such a schedule needs a model that predicts v: `prediction: v_prediction` of load_model if it does; or `spacing: leading`, which leaves the last timestep out"));
        }
        Ok(Self {
            timesteps,
            stride: config.num_train_timesteps / steps,
            final_alpha: if one { 1.0 } else { alphas[0] },
            alphas,
            prediction: config.prediction_type,
            clip: config.clip(),
        })
    }

    /// What the network predicts.
    #[must_use]
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The timesteps, noisiest first.
    #[must_use]
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// T.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// The largest magnitude of a denoised latent, if it is clipped.
    #[must_use]
    pub fn clip(&self) -> Option<f64> {
        self.clip
    }

    /// Alpha at the timestep that a step to timestep t comes from, t + stride.
    pub(super) fn alpha_above(&self, t: usize) -> f32 {
        let last = self.alphas.len() - 1;
        self.alphas[(t + self.stride).min(last)]
    }

    /// alpha at step k's timestep and at the one that it goes to, t - stride.
    #[must_use]
    pub fn alphas(&self, k: usize) -> (f32, f32) {
        let t = self.timesteps[k];
        let before = t
            .checked_sub(self.stride)
            .map_or(self.final_alpha, |t| self.alphas[t]);
        (self.alphas[t], before)
    }

    fn transfer(&self, z: &Tensor, out: &Tensor, from: f32, to: f32) -> Result<Tensor> {
        let root = |x: f32| f64::from(x.sqrt());
        let (a, s) = (root(from), root(1.0 - from));
        let (x0, eps) = self.prediction.split(z, out, (a, s))?;
        // The direction is not that of the clipped latent, as in diffusers (`use_clipped_model_output`).
        let x0 = clipped(x0, self.clip)?;
        Ok(((x0 * root(to))? + (eps * root(1.0 - to))?)?)
    }

    /// z at step k + 1 from z at step k and what the network gave for it.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn step(&self, z: &Tensor, out: &Tensor, k: usize) -> Result<Tensor> {
        let (from, to) = self.alphas(k);
        self.transfer(z, out, from, to)
    }

    /// z at step k from z at step k + 1 and what the network gave for it *at step k's timestep*.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn inverse_step(&self, z: &Tensor, out: &Tensor, k: usize) -> Result<Tensor> {
        let (to, from) = self.alphas(k);
        self.transfer(z, out, from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stable_diffusion() -> SchedulerConfig {
        serde_json::from_str(
            r#"{"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                "set_alpha_to_one": false, "steps_offset": 1, "clip_sample": false}"#,
        )
        .unwrap()
    }

    const ALPHAS: [(usize, u32); 8] = [
        (0, 0x3f7fc84b),
        (1, 0x3f7f9054),
        (2, 0x3f7f581a),
        (126, 0x3f5c5a03),
        (401, 0x3ed883e6),
        (500, 0x3e8d7b73),
        (853, 0x3cb97361),
        (999, 0x3b98b3b6),
    ];

    #[test]
    fn alphas_are_those_of_torch_bit_for_bit() {
        // torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000)**2, 0), torch 2.x, as bits.
        let alphas = stable_diffusion().alphas();
        for (i, bits) in ALPHAS {
            assert_eq!(alphas[i].to_bits(), bits, "alpha {i} is {}", alphas[i]);
        }
    }

    #[test]
    fn timesteps_follow_spacing_and_offset_as_in_diffusers() {
        let mut config = stable_diffusion();
        assert_eq!(
            config.timesteps(8).unwrap(),
            [876, 751, 626, 501, 376, 251, 126, 1]
        );
        assert_eq!(config.timesteps(7).unwrap()[..2], [853, 711]);
        config.timestep_spacing = Some(Spacing::Trailing);
        assert_eq!(
            config.timesteps(7).unwrap(),
            [999, 856, 713, 570, 428, 285, 142]
        );
        config.timestep_spacing = Some(Spacing::Linspace);
        assert_eq!(
            config.timesteps(7).unwrap(),
            [999, 832, 666, 500, 333, 166, 0]
        );
        assert!(config.timesteps(0).is_err() && config.timesteps(1001).is_err());
        config.timestep_spacing = Some(Spacing::Leading);
        // The offset leads past the end when every timestep is a step.
        assert!(config.timesteps(1000).is_err());
    }

    #[test]
    fn a_configuration_with_pythons_infinities_is_read() {
        let config = SchedulerConfig::parse(
            r#"{"_class_name": "DPM\"-Infinity", "lambda_min_clipped": -Infinity, "sigma_max": NaN, "use_karras_sigmas": true}"#,
        )
        .unwrap();
        assert_eq!(config.class_name, "DPM\"-Infinity");
        assert_eq!(config.sigmas.lambda_min_clipped, None);
        assert_eq!(config.sigmas.use_karras_sigmas, Some(true));
        assert!(SchedulerConfig::parse("{").is_err());
        let says = SchedulerConfig::names_prediction;
        assert!(says(
            r#"{"sigma_max": -Infinity, "prediction_type": "epsilon"}"#
        ));
        assert!(!says(r#"{"prediction_type": null}"#) && !says("{}"));
    }

    #[test]
    fn alpha_below_zero_is_one_only_where_the_scheduler_says_so() {
        let mut config = stable_diffusion();
        assert_eq!(
            Ddim::new(&config, 50).unwrap().alphas(49),
            (config.alphas()[1], config.alphas()[0])
        );
        config.set_alpha_to_one = None;
        assert_eq!(Ddim::new(&config, 50).unwrap().alphas(49).1, 1.0);
        config.class_name = "PNDMScheduler".into();
        assert_eq!(
            Ddim::new(&config, 50).unwrap().alphas(49).1,
            config.alphas()[0]
        );
    }

    #[test]
    fn a_latent_is_clipped_where_the_class_that_it_was_written_for_does_so() {
        let mut config = stable_diffusion();
        assert_eq!(config.clip(), None);
        config.clip_sample = None;
        assert_eq!(config.clip(), Some(1.0));
        config.class_name = "PNDMScheduler".into();
        assert_eq!(config.clip(), None);
        config.clip_sample = Some(true);
        config.clip_sample_range = Some(2.5);
        assert_eq!(config.clip(), Some(2.5));
        config.clip_sample_range = Some(f64::NAN);
        assert!(config.fault().unwrap().contains("clip_sample_range"));
    }
}
