//! The schedulers by their names: DDIM with eta, Euler, Euler ancestral, DPM++ 2M and UniPC, with the timesteps, sigmas and
//! formulas of diffusers' classes made from the same `scheduler_config.json`.
//!
//! # Space
//! A latent is kept as the U-Net takes it, whichever scheduler draws: at a level with the signal a and the noise s,
//! a^2 + s^2 = 1, it is z = a x0 + s noise. diffusers' Euler classes keep x = z / a instead and scale it before each call
//! (sigma = s / a); here a trajectory, a preview or a map is the same thing for all schedulers, and the last latent is
//! the picture's either way, as a is 1 where sigma is 0.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sampling::scheduler::{
    BetaSchedule, Ddim, FinalSigma, Prediction, SchedulerConfig, Spacing,
};
use crate::{Error, Result};

/// The schedulers that are built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// DDIM (Song et al. 2021), with eta.
    #[default]
    Ddim,
    /// Euler's method on sigma (Karras et al. 2022, algorithm 2 without churn).
    Euler,
    /// The same with ancestral noise: each step goes further down and adds noise again.
    EulerAncestral,
    /// DPM-Solver++ (Lu et al. 2022), second order, multistep, midpoint.
    #[serde(rename = "dpmpp_2m")]
    Dpmpp2m,
    /// UniPC (Zhao et al. 2023) of order 2 with B2(h) and the corrector.
    Unipc,
}

impl Solver {
    /// The name in the language.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_ancestral",
            Self::Dpmpp2m => "dpmpp_2m",
            Self::Unipc => "unipc",
        }
    }

    /// The solver of a class of diffusers, if it is built.
    #[must_use]
    pub fn of_class(name: &str) -> Option<Self> {
        Some(match name {
            "DDIMScheduler" => Self::Ddim,
            "EulerDiscreteScheduler" => Self::Euler,
            "EulerAncestralDiscreteScheduler" => Self::EulerAncestral,
            "DPMSolverMultistepScheduler" => Self::Dpmpp2m,
            "UniPCMultistepScheduler" => Self::Unipc,
            _ => return None,
        })
    }

    /// Whether Karras' sigmas can be had with it.
    #[must_use]
    pub fn takes_karras(self) -> bool {
        matches!(self, Self::Euler | Self::Dpmpp2m | Self::Unipc)
    }

    /// How it lays out timesteps by a configuration; one that does not say counts as diffusers' class of this solver has it.
    #[must_use]
    pub fn spacing(self, config: &SchedulerConfig) -> Spacing {
        config.timestep_spacing.unwrap_or(match self {
            Self::Ddim => Spacing::Leading,
            _ => Spacing::Linspace,
        })
    }

    fn multistep(self) -> bool {
        matches!(self, Self::Dpmpp2m | Self::Unipc)
    }

    /// What a configuration asks of this solver that is not built. What the solver's name says itself (order, kind of
    /// solver) counts only if it was chosen by the configuration's class.
    fn fault(self, config: &SchedulerConfig, by_class: bool) -> Option<String> {
        if self == Self::Ddim {
            return None;
        }
        let of = &config.sigmas;
        let on = |flag: Option<bool>| flag == Some(true);
        let names = |text: &Option<String>, known: &[&str]| {
            text.as_deref().is_none_or(|text| known.contains(&text))
        };
        let multistep = self.multistep();
        let dpm = self == Self::Dpmpp2m;
        let karras = self.takes_karras();
        let continuous = of.timestep_type.as_deref() == Some("continuous")
            && config.prediction_type == Prediction::VPrediction;
        let solver_types: &[&str] = if dpm {
            &["midpoint", "logrho", "bh1", "bh2"]
        } else {
            &["bh2", "midpoint", "heun", "logrho"]
        };
        let class = by_class && multistep;
        let refused = [
            (
                "use_exponential_sigmas",
                karras && on(of.use_exponential_sigmas),
            ),
            ("use_beta_sigmas", karras && on(of.use_beta_sigmas)),
            ("use_flow_sigmas", multistep && on(of.use_flow_sigmas)),
            ("use_lu_lambdas", dpm && on(of.use_lu_lambdas)),
            (
                "an interpolation_type other than linear",
                self == Self::Euler && !names(&of.interpolation_type, &["linear"]),
            ),
            (
                "timestep_type: continuous",
                self == Self::Euler && continuous,
            ),
            (
                "a solver_order other than 2",
                class && of.solver_order.is_some_and(|order| order != 2),
            ),
            (
                "an algorithm_type other than dpmsolver++",
                class && dpm && !names(&of.algorithm_type, &["dpmsolver++", "deis"]),
            ),
            (
                if dpm {
                    "a solver_type other than midpoint"
                } else {
                    "a solver_type other than bh2"
                },
                class && !names(&of.solver_type, solver_types),
            ),
            (
                "predict_x0: false",
                class && !dpm && of.predict_x0 == Some(false),
            ),
            (
                "disable_corrector",
                !dpm && multistep
                    && of
                        .disable_corrector
                        .as_ref()
                        .is_some_and(|steps| !steps.is_empty()),
            ),
            (
                "lambda_min_clipped",
                dpm && of.lambda_min_clipped.is_some_and(f64::is_finite),
            ),
        ];
        refused
            .into_iter()
            .find_map(|(name, on)| on.then(|| format!("asks for {name}, which is not built")))
    }
}

/// Which scheduler draws a trajectory, and which of its steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The scheduler.
    pub solver: Solver,
    /// Whether the sigmas are Karras'.
    pub karras: bool,
    /// DDIM's share of the noise that DDPM would add at each step.
    pub eta: f64,
    /// T.
    pub steps: usize,
    /// The first step that is made: earlier ones are skipped (`strength`).
    pub first: usize,
    /// How timesteps are laid out, where that is not as the configuration has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
}

impl Schedule {
    /// DDIM with eta 0, all T steps: the method's.
    #[must_use]
    pub fn plain(steps: usize) -> Self {
        Self {
            solver: Solver::Ddim,
            karras: false,
            eta: 0.0,
            steps,
            first: 0,
            spacing: None,
        }
    }

    /// The schedule that a name or, without one, the configuration's class asks for; `karras` in place of what the
    /// configuration says.
    ///
    /// # Errors
    /// When that is not built.
    pub fn choose(
        config: &SchedulerConfig,
        name: Option<Solver>,
        karras: Option<bool>,
        eta: f64,
        steps: usize,
    ) -> Result<Self> {
        let class = &config.class_name;
        let solver = match name {
            Some(solver) => solver,
            None => Solver::of_class(class).ok_or_else(|| {
                let class = if class.is_empty() { "of no class" } else { class };
                Error::request(format!(
                    "the checkpoint's scheduler is {class}, which is not built"
                ))
                .help("write one by its name: `ddim` (the default), `euler`, `euler_ancestral`, `dpmpp_2m` or `unipc`; it takes betas and timesteps from the checkpoint")
            })?,
        };
        if let Some(fault) = solver.fault(config, name.is_none()) {
            return Err(Error::request(format!(
                "the checkpoint's scheduler_config.json {fault} for {}",
                solver.name()
            ))
            .help("choose another `scheduler`, or give the model another configuration: `scheduler: FOLDER` of load_model"));
        }
        let own = config.sigmas.use_karras_sigmas == Some(true);
        Ok(Self {
            solver,
            karras: solver.takes_karras() && karras.unwrap_or(own),
            eta,
            steps,
            first: 0,
            spacing: None,
        })
    }

    /// The same with its timesteps laid out in this way, if one is given. The configuration's own changes nothing.
    #[must_use]
    pub fn spaced(mut self, config: &SchedulerConfig, spacing: Option<Spacing>) -> Self {
        self.spacing = spacing.filter(|&spacing| spacing != self.solver.spacing(config));
        self
    }

    /// Whether the timesteps come from Karras' sigmas over the whole schedule, however others would be laid out.
    #[must_use]
    pub fn ignores_spacing(&self) -> bool {
        self.karras && self.solver.multistep()
    }

    /// Whether it is DDIM with eta 0, all of its steps and the configuration's timesteps.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.eta == 0.0 && self.is_at_ddims_levels()
    }

    /// Whether steps add noise.
    #[must_use]
    pub fn is_stochastic(&self) -> bool {
        self.eta > 0.0 || self.solver == Solver::EulerAncestral
    }

    /// Whether the latents are at the timesteps of DDIM with as many steps: what stage 2 can take for a context.
    #[must_use]
    pub fn is_at_ddims_levels(&self) -> bool {
        self.solver == Solver::Ddim && self.first == 0 && self.spacing.is_none()
    }

    /// The scheduler in words.
    #[must_use]
    pub fn words(&self) -> String {
        let mut words = self.solver.name().to_owned();
        if self.karras {
            words.push_str(" with Karras' sigmas");
        }
        if self.eta > 0.0 {
            words.push_str(&format!(" with eta {}", self.eta));
        }
        if let Some(spacing) = self.spacing {
            words.push_str(&format!(" with {} spacing", spacing.name()));
        }
        if self.first > 0 {
            words.push_str(&format!(
                " from step {} of {} (`strength`)",
                self.first, self.steps
            ));
        }
        words
    }
}

/// A scheduler for T steps, of which those from [`Schedule::first`] on are made; they are numbered from 0 here.
#[derive(Clone, Debug)]
pub struct Sampler {
    schedule: Schedule,
    /// Of all T steps, noisiest first.
    timesteps: Vec<f32>,
    /// T + 1 of them; none for DDIM.
    sigmas: Vec<f32>,
    ddim: Option<Ddim>,
    prediction: Prediction,
    lower_order_final: bool,
    euler_at_final: bool,
    final_zero: bool,
    start_scale: f64,
}

/// What decides a step besides the latent, the network and the noise: parts of its key.
#[derive(Clone, Debug, PartialEq)]
pub struct StepNumbers {
    /// The sigmas that its formula takes.
    pub sigmas: Vec<f32>,
    /// The order of the corrector, of the step.
    pub orders: [usize; 2],
}

/// Signal and noise of a sigma: a = 1 / sqrt(sigma^2 + 1), s = sigma a.
fn level_of(sigma: f32) -> (f64, f64) {
    let sigma = f64::from(sigma);
    let a = 1.0 / (sigma * sigma + 1.0).sqrt();
    (a, sigma * a)
}

/// Half the logarithm of the signal to noise ratio; infinite at sigma 0.
fn lambda(sigma: f32) -> f64 {
    -libm::log(f64::from(sigma))
}

/// numpy's `interp` of a table at its indices.
fn interpolate(table: &[f32], t: f64) -> f64 {
    let last = table.len() - 1;
    let low = (t.floor().max(0.0) as usize).min(last);
    let high = (low + 1).min(last);
    let (a, b) = (f64::from(table[low]), f64::from(table[high]));
    (b - a) * (t - low as f64) + a
}

/// The timestep of a sigma, by its logarithm between those of the table.
fn timestep_of(sigma: f64, logs: &[f32]) -> f64 {
    let log = libm::log(sigma.max(1e-10));
    let below = logs.iter().filter(|&&l| log >= f64::from(l)).count();
    let low = below.saturating_sub(1).min(logs.len() - 2);
    let (a, b) = (f64::from(logs[low]), f64::from(logs[low + 1]));
    let w = ((a - log) / (a - b)).clamp(0.0, 1.0);
    (1.0 - w) * low as f64 + w * (low + 1) as f64
}

/// Karras et al. 2022, eq. 5, with rho 7.
fn karras(least: f64, greatest: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (libm::pow(least, 1.0 / RHO), libm::pow(greatest, 1.0 / RHO));
    (0..steps)
        .map(|k| {
            let ramp = if steps > 1 {
                k as f64 / (steps - 1) as f64
            } else {
                0.0
            };
            libm::pow(high + ramp * (low - high), RHO)
        })
        .collect()
}

impl Sampler {
    /// Lays the steps over a checkpoint's schedule.
    ///
    /// # Errors
    /// When T is 0, more than the schedule has, or leads beyond it; or when two steps of a multistep solver are at one
    /// level.
    pub fn new(config: &SchedulerConfig, schedule: Schedule) -> Result<Self> {
        let config = &*config.spaced(schedule.spacing);
        let mut sampler = Self {
            schedule,
            timesteps: Vec::new(),
            sigmas: Vec::new(),
            ddim: None,
            prediction: config.prediction_type,
            lower_order_final: config.sigmas.lower_order_final.unwrap_or(true),
            euler_at_final: config.sigmas.euler_at_final.unwrap_or(false),
            final_zero: true,
            start_scale: 1.0,
        };
        if schedule.solver == Solver::Ddim {
            let ddim = Ddim::new(config, schedule.steps)?;
            sampler.timesteps = ddim.timesteps().iter().map(|&t| t as f32).collect();
            sampler.ddim = Some(ddim);
        } else {
            sampler.lay_out_sigmas(config)?;
        }
        if schedule.first >= schedule.steps {
            return Err(Error::request(format!(
                "no step of {} is left to make",
                schedule.steps
            )));
        }
        Ok(sampler)
    }

    fn lay_out_sigmas(&mut self, config: &SchedulerConfig) -> Result<()> {
        let Schedule { solver, steps, .. } = self.schedule;
        let n = config.num_train_timesteps;
        let spacing = solver.spacing(config);
        // A multistep solver's timesteps but for trailing ones are the first T of T + 1.
        let points = steps + usize::from(solver.multistep() && spacing != Spacing::Trailing);
        if steps == 0 || points > n || n < 2 {
            return Err(Error::request(format!(
                "{steps} steps of {} on a schedule of {n} timesteps",
                solver.name()
            ))
            .help(format!(
                "20 to 30 is a good number of steps for it; this schedule has at most {}",
                n.saturating_sub(points.saturating_sub(steps))
            )));
        }
        let mut timesteps: Vec<f64> = match spacing {
            Spacing::Linspace => (points - steps..points)
                .rev()
                .map(|i| {
                    let stride = (n - 1) as f64 / (points - 1).max(1) as f64;
                    let t = if i > 0 && i + 1 == points {
                        (n - 1) as f64
                    } else {
                        i as f64 * stride
                    };
                    if solver.multistep() {
                        t.round_ties_even()
                    } else {
                        f64::from(t as f32)
                    }
                })
                .collect(),
            Spacing::Leading => (points - steps..points)
                .rev()
                .map(|i| (i * (n / points) + config.steps_offset) as f64)
                .collect(),
            Spacing::Trailing => (0..steps)
                .map(|i| {
                    let t = n as f64 - i as f64 * (n as f64 / steps as f64);
                    t.round_ties_even() - 1.0
                })
                .collect(),
        };
        if timesteps[0] > (n - 1) as f64 || timesteps.iter().any(|&t| t < 0.0) {
            return Err(Error::request(format!(
                "{steps} steps with steps_offset {} begin at timestep {}, beyond the last one, {}",
                config.steps_offset,
                timesteps[0],
                n - 1
            ))
            .help("use fewer steps"));
        }
        let mut alphas = config.alphas();
        if config.rescale_betas_zero_snr
            && let Some(last) = alphas.last_mut()
        {
            // Close to 0, as in diffusers' classes that count in sigmas: the last sigma is 4096 and not infinite.
            *last = f32::powi(2.0, -24);
        }
        let table: Vec<f32> = alphas.into_iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| interpolate(&table, t)).collect();
        let mut least = f64::from(table[0]);
        if self.schedule.karras {
            let logs: Vec<f32> = table
                .iter()
                .map(|&sigma| libm::log(f64::from(sigma)) as f32)
                .collect();
            // Euler's lie between its own first and last sigma, the others' over the whole schedule.
            let (own_least, own_greatest) = if solver == Solver::Euler {
                (sigmas[steps - 1], sigmas[0])
            } else {
                (f64::from(table[0]), f64::from(table[n - 1]))
            };
            // DPM++'s class has no such options.
            let given = |sigma: Option<f64>| sigma.filter(|_| solver != Solver::Dpmpp2m);
            sigmas = karras(
                given(config.sigmas.sigma_min).unwrap_or(own_least),
                given(config.sigmas.sigma_max).unwrap_or(own_greatest),
                steps,
            );
            let rounds = solver == Solver::Unipc
                || (solver == Solver::Dpmpp2m
                    && config.beta_schedule != BetaSchedule::SquaredcosCapV2);
            timesteps = sigmas
                .iter()
                .map(|&sigma| {
                    let t = timestep_of(sigma, &logs);
                    match (rounds, solver) {
                        (true, _) => t.round_ties_even(),
                        (false, Solver::Dpmpp2m) => t.trunc(),
                        (false, _) => t,
                    }
                })
                .collect();
            if solver == Solver::Unipc {
                least = sigmas[steps - 1];
            }
        }
        let keeps_noise = config.sigmas.final_sigmas_type == Some(FinalSigma::SigmaMin)
            && solver != Solver::EulerAncestral;
        self.final_zero = !keeps_noise;
        sigmas.push(if keeps_noise { least } else { 0.0 });
        self.sigmas = sigmas.iter().map(|&sigma| sigma as f32).collect();
        self.timesteps = timesteps.iter().map(|&t| t as f32).collect();
        // A step from a sigma to the same divides by zero; DPM++'s last does nothing then, and so do Euler's.
        let last = self.sigmas.len() - 2;
        let falls = |(k, pair): (usize, &[f32])| match solver {
            Solver::Unipc => pair[0] > pair[1],
            Solver::Dpmpp2m if k < last => pair[0] > pair[1],
            _ => pair[0] >= pair[1],
        };
        if !self.sigmas.iter().all(|s| s.is_finite())
            || !self.sigmas.windows(2).enumerate().all(falls)
        {
            return Err(Error::request(format!(
                "the sigmas of {steps} steps of {} do not fall from step to step",
                solver.name()
            ))
            .help("use fewer steps, or look at the sigmas and spacing of the checkpoint's scheduler_config.json"));
        }
        if solver == Solver::Unipc && !self.lower_order_final && self.final_zero && steps > 1 {
            return Err(Error::request(
                "the checkpoint's scheduler_config.json has `lower_order_final: false`, with which unipc's last step divides by zero",
            )
            .help("choose another `scheduler`, or have `final_sigmas_type: sigma_min` there"));
        }
        let (_, s) = level_of(self.sigmas[0]);
        // diffusers' init_noise_sigma, in this space.
        self.start_scale = match (solver.multistep(), spacing) {
            (true, _) | (false, Spacing::Leading) => 1.0,
            (false, _) => s,
        };
        Ok(())
    }

    /// Which scheduler it is.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The steps that are made.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.schedule.steps - self.schedule.first
    }

    /// DDIM's tables, if it is DDIM; its steps are all T.
    #[must_use]
    pub fn ddim(&self) -> Option<&Ddim> {
        self.ddim.as_ref()
    }

    /// What the network predicts.
    #[must_use]
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The timestep of a step.
    #[must_use]
    pub fn timestep(&self, step: usize) -> f32 {
        self.timesteps[step + self.schedule.first]
    }

    /// All T timesteps.
    #[must_use]
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// All T + 1 sigmas; none for DDIM.
    #[must_use]
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// What starting noise is multiplied with.
    #[must_use]
    pub fn start_scale(&self) -> f64 {
        self.start_scale
    }

    /// The number of a step among all T: what its noise is drawn by.
    #[must_use]
    pub fn number(&self, step: usize) -> usize {
        step + self.schedule.first
    }

    /// Signal and noise of the latent before a step; (1, 0) after the last.
    #[must_use]
    pub fn level(&self, step: usize) -> (f64, f64) {
        let k = self.number(step);
        if k >= self.schedule.steps {
            return (1.0, 0.0);
        }
        match &self.ddim {
            Some(ddim) => {
                let (alpha, _) = ddim.alphas(k);
                (f64::from(alpha.sqrt()), f64::from((1.0 - alpha).sqrt()))
            }
            None => level_of(self.sigmas[k]),
        }
    }

    /// A picture's latent with noise, as it is before a step: a x0 + s noise.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn noised(&self, picture: &Tensor, noise: &Tensor, step: usize) -> Result<Tensor> {
        let (a, s) = self.level(step);
        if s == 0.0 {
            return Ok(picture.clone());
        }
        Ok(((picture * a)? + (noise * s)?)?)
    }

    /// The order of a step of a multistep solver.
    fn order(&self, step: usize) -> usize {
        let Schedule { solver, steps, .. } = self.schedule;
        let k = self.number(step);
        let warm = step + 1;
        match solver {
            Solver::Dpmpp2m => {
                let low = self.final_zero
                    || self.euler_at_final
                    || (self.lower_order_final && steps < 15);
                if k + 1 == steps && low {
                    1
                } else {
                    warm.min(2)
                }
            }
            Solver::Unipc if self.lower_order_final => warm.min(2).min(steps - k),
            Solver::Unipc => warm.min(2),
            _ => 1,
        }
    }

    /// What decides a step, for its key.
    #[must_use]
    pub fn numbers(&self, step: usize) -> StepNumbers {
        let k = self.number(step);
        let order = self.order(step);
        let corrector = match self.schedule.solver {
            Solver::Unipc if step > 0 => self.order(step - 1),
            _ => 0,
        };
        let back = (order - 1).max(corrector);
        StepNumbers {
            sigmas: self.sigmas[k - back..=k + 1].to_vec(),
            orders: [corrector, order],
        }
    }

    /// Whether what is remembered beside the latent before a step is needed to make it.
    #[must_use]
    pub fn remembers(&self, step: usize) -> bool {
        if step == 0 || step >= self.steps() {
            return false;
        }
        match self.schedule.solver {
            Solver::Dpmpp2m => self.order(step) > 1,
            Solver::Unipc => true,
            _ => false,
        }
    }

    /// The standard deviation of the noise that DDIM adds at a step: eta times DDPM's (Song et al. 2021, eq. 16).
    fn ddim_noise(&self, k: usize) -> f32 {
        let Some(ddim) = &self.ddim else {
            return 0.0;
        };
        let (from, to) = ddim.alphas(k);
        let variance = (1.0 - to) / (1.0 - from) * (1.0 - from / to);
        self.schedule.eta as f32 * variance.max(0.0).sqrt()
    }

    /// sigma_up and sigma_down of an ancestral step.
    fn ancestral(&self, k: usize) -> (f64, f64) {
        let (from, to) = (f64::from(self.sigmas[k]), f64::from(self.sigmas[k + 1]));
        let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
        (up, (to * to - up * up).max(0.0).sqrt())
    }

    /// Whether a step adds noise.
    #[must_use]
    pub fn adds_noise(&self, step: usize) -> bool {
        let k = self.number(step);
        match self.schedule.solver {
            Solver::Ddim => self.ddim_noise(k) > 0.0,
            Solver::EulerAncestral => self.ancestral(k).0 > 0.0,
            _ => false,
        }
    }

    /// The picture and the noise that the network sees in z at a level.
    fn split(&self, z: &Tensor, out: &Tensor, (a, s): (f64, f64)) -> Result<(Tensor, Tensor)> {
        Ok(match self.prediction {
            Prediction::Epsilon => (((z - (out * s)?)? / a)?, out.clone()),
            Prediction::VPrediction => (((z * a)? - (out * s)?)?, ((out * a)? + (z * s)?)?),
        })
    }

    /// The latent after a step from the one before, z, and what the network gave for it, `out`; `past` is what was
    /// remembered beside z, `noise` that of the step. Gives what is to be remembered beside the new latent, too.
    ///
    /// # Errors
    /// When the shapes differ, or what the step needs is missing.
    pub fn step(
        &self,
        z: &Tensor,
        out: &Tensor,
        step: usize,
        past: &[Tensor],
        noise: Option<&Tensor>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let k = self.number(step);
        let noise = || noise.ok_or_else(|| Error::request("a step's noise is missing"));
        let next = match self.schedule.solver {
            Solver::Ddim => {
                let ddim = self
                    .ddim
                    .as_ref()
                    .ok_or_else(|| Error::request("DDIM without its tables"))?;
                let std = self.ddim_noise(k);
                if std == 0.0 {
                    ddim.step(z, out, k)?
                } else {
                    let (from, to) = ddim.alphas(k);
                    let root = |x: f32| f64::from(x.sqrt());
                    let (x0, eps) = self.split(z, out, (root(from), root(1.0 - from)))?;
                    let direction = root((1.0 - to - std * std).max(0.0));
                    (((x0 * root(to))? + (eps * direction)?)? + (noise()? * f64::from(std))?)?
                }
            }
            Solver::Euler => {
                let (x0, eps) = self.split(z, out, level_of(self.sigmas[k]))?;
                let (a, s) = level_of(self.sigmas[k + 1]);
                ((x0 * a)? + (eps * s)?)?
            }
            Solver::EulerAncestral => {
                let (x0, eps) = self.split(z, out, level_of(self.sigmas[k]))?;
                let (up, down) = self.ancestral(k);
                let (a, _) = level_of(self.sigmas[k + 1]);
                let next = ((x0 * a)? + (eps * (a * down))?)?;
                if up > 0.0 {
                    (next + (noise()? * (a * up))?)?
                } else {
                    next
                }
            }
            Solver::Dpmpp2m => {
                let (own, _) = self.split(z, out, level_of(self.sigmas[k]))?;
                let next = match (self.order(step), past) {
                    (1, _) => self.predict(z, &own, None, k)?,
                    (_, [before]) => self.predict(z, &own, Some(before), k)?,
                    _ => return Err(Error::request("what the step before gave is missing")),
                };
                let past = if self.remembers(step + 1) {
                    vec![own]
                } else {
                    Vec::new()
                };
                return Ok((next, past));
            }
            Solver::Unipc => return self.unipc(z, out, step, past),
        };
        Ok((next, Vec::new()))
    }

    /// The data prediction step from sigma k to k + 1 of order 1, or 2 with what the step before gave: DPM-Solver++ 2M
    /// (Lu et al. 2022, algorithm 2) and the predictor of UniPC with B2(h) are both of this form.
    fn predict(
        &self,
        z: &Tensor,
        own: &Tensor,
        before: Option<&Tensor>,
        k: usize,
    ) -> Result<Tensor> {
        let (from, to) = (level_of(self.sigmas[k]), level_of(self.sigmas[k + 1]));
        let h = lambda(self.sigmas[k + 1]) - lambda(self.sigmas[k]);
        let phi = libm::expm1(-h);
        let next = ((z * (to.1 / from.1))? - (own * (to.0 * phi))?)?;
        let Some(before) = before else {
            return Ok(next);
        };
        let ratio = (lambda(self.sigmas[k]) - lambda(self.sigmas[k - 1])) / h;
        let slope = ((own - before)? / ratio)?;
        Ok((next - (slope * (0.5 * to.0 * phi))?)?)
    }

    /// A step of UniPC (Zhao et al. 2023, algorithms 5 and 8): corrects z by what the network now gives, then predicts.
    /// Remembered are the corrected latent, what the network gave for it as a picture, and, where the next corrector is
    /// of order 2, the picture before that.
    fn unipc(
        &self,
        z: &Tensor,
        out: &Tensor,
        step: usize,
        past: &[Tensor],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let k = self.number(step);
        let (own, _) = self.split(z, out, level_of(self.sigmas[k]))?;
        let missing = || Error::request("what the steps before gave is missing");
        let corrected = if step == 0 {
            z.clone()
        } else {
            let (last, before) = match past {
                [last, before, ..] => (last, before),
                _ => return Err(missing()),
            };
            let (from, to) = (level_of(self.sigmas[k - 1]), level_of(self.sigmas[k]));
            let start = lambda(self.sigmas[k - 1]);
            let h = lambda(self.sigmas[k]) - start;
            let phi = libm::expm1(-h);
            let base = ((last * (to.1 / from.1))? - (before * (to.0 * phi))?)?;
            let now = (&own - before)?;
            let change = if self.order(step - 1) == 1 {
                (now * 0.5)?
            } else {
                let earlier = past.get(2).ok_or_else(missing)?;
                let ratio = (lambda(self.sigmas[k - 2]) - start) / h;
                // The two conditions of order, solved: w0 + w1 = b1, ratio w0 + w1 = b2.
                let phi_2 = phi / -h - 1.0;
                let phi_3 = phi_2 / -h - 0.5;
                let (b1, b2) = (phi_2 / phi, 2.0 * phi_3 / phi);
                let w0 = (b1 - b2) / (1.0 - ratio);
                let slope = ((earlier - before)? / ratio)?;
                ((slope * w0)? + (now * (b1 - w0))?)?
            };
            (base - (change * (to.0 * phi))?)?
        };
        let order = self.order(step);
        let before = if order == 1 {
            None
        } else {
            Some(past.get(1).ok_or_else(missing)?)
        };
        let next = self.predict(&corrected, &own, before, k)?;
        let past = if self.remembers(step + 1) {
            let mut past = vec![corrected, own];
            past.extend(before.cloned());
            past
        } else {
            Vec::new()
        };
        Ok((next, past))
    }
}
