//! The schedulers by their names, with the timesteps, sigmas and formulas of diffusers' classes made from the same
//! `scheduler_config.json`.
//!
//! # Space
//! A latent is kept as the U-Net takes it, whichever scheduler draws: at a level with the signal a and the noise s,
//! a^2 + s^2 = 1, it is z = a x0 + s noise. diffusers' Euler, Heun, LMS and DPM++ SDE classes keep x = z / a instead and
//! scale it before each call (sigma = s / a); here a trajectory, a preview or a map is the same thing for all schedulers,
//! and the last latent is the picture's either way, as a is 1 where sigma is 0.
//!
//! # Steps
//! A step goes from one noise level to the next. Most take one evaluation of the network, Heun and DPM++ SDE two, and so
//! does the first step of PNDM: [`Sampler::evaluations`].

mod class;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sampling::scheduler::{
    BetaSchedule, Ddim, FinalSigma, Prediction, SchedulerConfig, Spacing,
};
pub use crate::sampling::sigmas::Sigmas;
use crate::sampling::sigmas::{
    ancestral, evenly, interpolate, level_of, middle, timestep_of, timestep_of_log,
};
use crate::{Error, Result};
pub use class::Solver;

/// A variant of a solver that only a configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// `solver_type: heun` of DPM-Solver++.
    Heun,
    /// `solver_type: bh1` of UniPC.
    Bh1,
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
    /// Sigmas that are neither those of the timesteps nor Karras'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigmas: Option<Sigmas>,
    /// The order, where it is not the one that the solver's name says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<usize>,
    /// The variant of the solver, if it is not the one that the name stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<Variant>,
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
            sigmas: None,
            order: None,
            variant: None,
        }
    }

    /// The schedule that a name or, without one, the configuration's class asks for; `sigmas` in place of what the
    /// configuration says.
    ///
    /// # Errors
    /// When that is not built.
    pub fn choose(
        config: &SchedulerConfig,
        name: Option<Solver>,
        sigmas: Option<Sigmas>,
        eta: f64,
        steps: usize,
    ) -> Result<Self> {
        let class = &config.class_name;
        let solver = match name {
            Some(solver) => solver,
            None => Solver::of_config(config).ok_or_else(|| {
                let class = if class.is_empty() {
                    "of no class"
                } else {
                    class
                };
                let names: Vec<String> = Solver::ALL
                    .iter()
                    .map(|solver| format!("`{}`", solver.name()))
                    .collect();
                Error::request(format!(
                    "the checkpoint's scheduler is {class}, which is not supported"
                ))
                .help(format!(
                    "write one by its name, {}; it takes betas and timesteps from the checkpoint",
                    names.join(", ")
                ))
            })?,
        };
        if let Some(fault) = solver.fault(config, name.is_none()) {
            return Err(Error::request(format!(
                "the checkpoint's scheduler_config.json {fault} for {}",
                solver.name()
            ))
            .help("choose another `scheduler`, or give the model another configuration: `scheduler: FOLDER` of load_model"));
        }
        let sigmas = match sigmas {
            Some(sigmas) if solver.takes(sigmas) => sigmas,
            Some(_) => Sigmas::Training,
            None => solver.sigmas_of(config)?,
        };
        let of = &config.sigmas;
        let by_class = name.is_none() && solver.preserves_variance();
        let variant = match of.solver_type.as_deref() {
            Some("heun") if solver != Solver::Unipc => Some(Variant::Heun),
            Some("bh1") if solver == Solver::Unipc => Some(Variant::Bh1),
            _ => None,
        };
        Ok(Self {
            solver,
            karras: sigmas == Sigmas::Karras,
            eta,
            steps,
            first: 0,
            spacing: None,
            sigmas: Some(sigmas).filter(|s| !matches!(s, Sigmas::Training | Sigmas::Karras)),
            order: of
                .solver_order
                .filter(|&order| by_class && order != solver.order()),
            variant: variant.filter(|_| by_class),
        })
    }

    /// The same with its timesteps laid out in this way, if one is given. The configuration's own changes nothing.
    #[must_use]
    pub fn spaced(mut self, config: &SchedulerConfig, spacing: Option<Spacing>) -> Self {
        self.spacing = spacing.filter(|&spacing| spacing != self.solver.spacing(config));
        self
    }

    /// Which sigmas its steps are at.
    #[must_use]
    pub fn sigmas(&self) -> Sigmas {
        match self.sigmas {
            Some(sigmas) => sigmas,
            None if self.karras => Sigmas::Karras,
            None => Sigmas::Training,
        }
    }

    /// Why its timesteps are the same however others would be laid out, if they are.
    #[must_use]
    pub fn ignores_spacing(&self) -> Option<&'static str> {
        match self.solver {
            Solver::Lcm => Some("they are among those that the model was distilled at"),
            Solver::Dpmpp2s => Some("they are always spaced evenly over those of the training"),
            solver if self.sigmas() != Sigmas::Training && solver.preserves_variance() => {
                Some("they lie between the first and the last sigma of the training")
            }
            _ => None,
        }
    }

    /// Whether it is DDIM with eta 0, all of its steps and the configuration's timesteps.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.eta == 0.0 && self.is_at_ddims_levels()
    }

    /// Whether steps add noise.
    #[must_use]
    pub fn is_stochastic(&self) -> bool {
        self.eta > 0.0 || self.solver.is_stochastic()
    }

    /// Whether the latents are at the timesteps of DDIM with as many steps: what stage 2 can take for a context.
    #[must_use]
    pub fn is_at_ddims_levels(&self) -> bool {
        self.solver == Solver::Ddim && self.first == 0 && self.spacing.is_none()
    }

    /// The greatest order of its steps.
    pub(super) fn order(&self) -> usize {
        self.order.unwrap_or(self.solver.order())
    }

    /// The scheduler in words.
    #[must_use]
    pub fn words(&self) -> String {
        let mut words = self.solver.name().to_owned();
        if let Some(order) = self.order {
            words.push_str(&format!(" of order {order}"));
        }
        match self.variant {
            Some(Variant::Heun) => words.push_str(" (heun)"),
            Some(Variant::Bh1) => words.push_str(" (bh1)"),
            None => {}
        }
        match self.sigmas() {
            Sigmas::Training => {}
            Sigmas::Karras => words.push_str(" with Karras' sigmas"),
            other => words.push_str(&format!(" with {} sigmas", other.name())),
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
    pub(super) schedule: Schedule,
    /// Of all T steps, noisiest first.
    timesteps: Vec<f32>,
    /// T + 1 of them; none for DDIM, PNDM and LCM.
    pub(super) sigmas: Vec<f32>,
    /// DPM++ SDE: the timestep of a step's second evaluation.
    middles: Vec<f32>,
    /// DDIM's and PNDM's.
    pub(super) ddim: Option<Ddim>,
    /// LCM's alphas, of the T timesteps.
    pub(super) alphas: Vec<f32>,
    pub(super) prediction: Prediction,
    /// The largest magnitude of a denoised latent, if the solver clips it.
    pub(super) clip: Option<f64>,
    /// LCM: what timesteps are multiplied with in the boundary condition.
    pub(super) timestep_scaling: f64,
    /// The orders of the singlestep solver.
    orders: Vec<usize>,
    /// UniPC: steps after which nothing is corrected.
    uncorrected: Vec<usize>,
    lower_order_final: bool,
    euler_at_final: bool,
    final_zero: bool,
    start_scale: f64,
}

/// What decides a step besides the latent, the network and the noise: parts of its key.
#[derive(Clone, Debug, PartialEq)]
pub struct StepNumbers {
    /// The sigmas that its formula takes; PNDM's and LCM's alphas.
    pub sigmas: Vec<f32>,
    /// The order of the corrector, of the step.
    pub orders: [usize; 2],
    /// What else decides it, by name, where it does.
    pub others: Vec<(&'static str, Vec<u8>)>,
}

impl Sampler {
    /// Lays the steps over a checkpoint's schedule.
    ///
    /// # Errors
    /// When T is 0, more than the schedule has, or leads beyond it; or when two steps of a multistep solver are at one
    /// level.
    pub fn new(config: &SchedulerConfig, schedule: Schedule) -> Result<Self> {
        let config = &*config.spaced(schedule.spacing);
        let solver = schedule.solver;
        let disabled = config.sigmas.disable_corrector.iter().flatten();
        let mut sampler = Self {
            schedule,
            timesteps: Vec::new(),
            sigmas: Vec::new(),
            middles: Vec::new(),
            ddim: None,
            alphas: Vec::new(),
            prediction: config.prediction_type,
            clip: None,
            timestep_scaling: config.timestep_scaling.unwrap_or(10.0),
            orders: Vec::new(),
            uncorrected: disabled.filter_map(|&k| usize::try_from(k).ok()).collect(),
            lower_order_final: config.sigmas.lower_order_final.unwrap_or(true),
            euler_at_final: config.sigmas.euler_at_final.unwrap_or(false),
            final_zero: true,
            start_scale: 1.0,
        };
        match solver {
            Solver::Ddim | Solver::Pndm => {
                let one = config.alpha_to_one_or(solver == Solver::Ddim);
                let ddim = Ddim::ending(config, schedule.steps, one)?;
                sampler.timesteps = ddim.timesteps().iter().map(|&t| t as f32).collect();
                sampler.ddim = Some(ddim);
            }
            Solver::Lcm => sampler.lay_out_distilled(config)?,
            _ => sampler.lay_out_sigmas(config)?,
        }
        if matches!(solver, Solver::Lcm | Solver::Heun) {
            // Their classes do not clip unless configured to, whatever the default of another class.
            sampler.clip = config.clip().filter(|_| config.clip_sample.is_some());
        }
        if solver == Solver::Dpmpp2s {
            sampler.orders = sampler.singlestep_orders(config.sigmas.lower_order_final);
        }
        if schedule.first >= schedule.steps {
            return Err(Error::request(format!(
                "no step of {} is left to make",
                schedule.steps
            )));
        }
        Ok(sampler)
    }

    /// LCM's timesteps: T of those that the model was distilled at, from the last on.
    fn lay_out_distilled(&mut self, config: &SchedulerConfig) -> Result<()> {
        let (n, steps) = (config.num_train_timesteps, self.schedule.steps);
        let distilled = config.original_inference_steps.unwrap_or(50);
        if distilled == 0 || distilled > n {
            return Err(Error::request(format!(
                "original_inference_steps is {distilled}; expected 1 to {n}, the timesteps of the training"
            ))
            .help("look at the checkpoint's scheduler_config.json"));
        }
        if steps == 0 || steps > distilled {
            return Err(Error::request(format!(
                "{steps} steps of lcm; the model was distilled at {distilled} timesteps (`original_inference_steps`)"
            ))
            .help(format!("give 1 to {distilled} steps; 4 to 8 are usual")));
        }
        let stride = n / distilled;
        let table = config.alphas();
        for k in 0..steps {
            let index = (k as f64 * (distilled as f64 / steps as f64)).floor() as usize;
            let t = (distilled - index.min(distilled - 1)) * stride - 1;
            self.timesteps.push(t as f32);
            self.alphas.push(table[t]);
        }
        if self.prediction == Prediction::Epsilon && self.alphas.contains(&0.0) {
            return Err(Error::request(format!(
                "timestep {} has no signal left (`rescale_betas_zero_snr`), and the picture cannot be computed from the noise that the model predicts there",
                self.timesteps[0]
            ))
            .help("such a schedule needs a model that predicts v: `prediction: v_prediction` of load_model if it does"));
        }
        Ok(())
    }

    /// The orders of the singlestep solver: 1, 2, 3, 1, 2, 3, ... up to its own, the last one 1 (as in
    /// `DPMSolverSinglestepScheduler.get_order_list`).
    fn singlestep_orders(&self, lower_order_final: Option<bool>) -> Vec<usize> {
        let (steps, most) = (self.schedule.steps, self.schedule.order());
        let mut orders: Vec<usize> = (0..steps).map(|k| k % most + 1).collect();
        // A whole group at the end stays one only where it does not end without noise.
        let lower = self.final_zero || (steps % most == 0 && lower_order_final == Some(true));
        if let Some(last) = orders.last_mut().filter(|_| lower) {
            *last = 1;
        }
        orders
    }

    /// That the sigmas can be stepped along.
    fn check_sigmas(&self) -> Result<()> {
        let Schedule { solver, steps, .. } = self.schedule;
        let whole = solver.preserves_variance();
        // A step from a sigma to the same divides by zero; DPM++'s last does nothing then, and so do Euler's.
        let last = self.sigmas.len() - 2;
        let falls = |(k, pair): (usize, &[f32])| match solver {
            // What these divide by the step's length does not vanish with it.
            Solver::Unipc | Solver::Lms | Solver::Dpmpp3m | Solver::Dpmpp3mSde => pair[0] > pair[1],
            _ if self.schedule.variant.is_some() => pair[0] > pair[1],
            _ if whole && k < last => pair[0] > pair[1],
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
        Ok(())
    }

    fn lay_out_sigmas(&mut self, config: &SchedulerConfig) -> Result<()> {
        let Schedule { solver, steps, .. } = self.schedule;
        let n = config.num_train_timesteps;
        let spacing = solver.spacing(config);
        // A multistep solver's timesteps but for trailing ones are the first T of T + 1.
        let points =
            steps + usize::from(solver.preserves_variance() && spacing != Spacing::Trailing);
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
        let mut timesteps = spaced(solver, config, steps);
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
        let logs: Vec<f32> = table
            .iter()
            .map(|&sigma| libm::log(f64::from(sigma)) as f32)
            .collect();
        let kind = self.schedule.sigmas();
        let whole = solver.preserves_variance();
        // diffusers' LMS and DPM++ SDE have Karras' sigmas without these options; other classes leave them out where the
        // configuration was written for a class that has them and they have not.
        let without = match solver {
            Solver::Euler | Solver::Unipc => false,
            Solver::Lms | Solver::DpmppSde if kind == Sigmas::Karras => true,
            _ => matches!(
                config.class_name.as_str(),
                "EulerDiscreteScheduler" | "UniPCMultistepScheduler"
            ),
        };
        let given = |sigma: Option<f64>| sigma.filter(|_| !without);
        // Those of the solvers that count in whole timesteps lie over the whole schedule, others between the first and
        // the last sigma of the timesteps.
        let (own_least, own_greatest) = if whole {
            (f64::from(table[0]), f64::from(table[n - 1]))
        } else {
            (sigmas[steps - 1], sigmas[0])
        };
        let between = kind.between(
            given(config.sigmas.sigma_min).unwrap_or(own_least),
            given(config.sigmas.sigma_max).unwrap_or(own_greatest),
            steps,
        );
        let cosine = config.beta_schedule == BetaSchedule::SquaredcosCapV2;
        let whole_timestep = |t: f64| match kind {
            _ if !whole => t,
            Sigmas::Karras | Sigmas::Lu if !(cosine && solver.is_dpm_multistep()) => {
                t.round_ties_even()
            }
            _ => t.trunc(),
        };
        if kind == Sigmas::Lu {
            let evenly = evenly(&logs, steps);
            sigmas = evenly.iter().map(|&log| libm::exp(log)).collect();
            let timestep = |&log: &f64| whole_timestep(timestep_of_log(log, &logs));
            timesteps = evenly.iter().map(timestep).collect();
        } else if let Some(between) = between {
            sigmas = between;
            let timestep = |&sigma: &f64| whole_timestep(timestep_of(sigma, &logs));
            timesteps = sigmas.iter().map(timestep).collect();
            if solver == Solver::Unipc {
                least = sigmas[steps - 1];
            }
        }
        let keeps_noise = config.sigmas.final_sigmas_type == Some(FinalSigma::SigmaMin)
            && (whole || solver == Solver::Euler);
        self.final_zero = !keeps_noise;
        sigmas.push(if keeps_noise { least } else { 0.0 });
        self.sigmas = sigmas.iter().map(|&sigma| sigma as f32).collect();
        self.timesteps = timesteps.iter().map(|&t| t as f32).collect();
        self.check_sigmas()?;
        if solver == Solver::DpmppSde {
            let pairs = self.sigmas.windows(2).filter(|pair| pair[1] > 0.0);
            let middles = pairs.map(|pair| timestep_of(middle(pair[0], pair[1]), &logs) as f32);
            self.middles = middles.collect();
        }
        let (_, s) = level_of(self.sigmas[0]);
        // diffusers' init_noise_sigma, in this space.
        self.start_scale = match (whole, spacing) {
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
        self.ddim
            .as_ref()
            .filter(|_| self.schedule.solver == Solver::Ddim)
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

    /// All T + 1 sigmas; none for DDIM, PNDM and LCM.
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
        let of = |alpha: f32| (f64::from(alpha.sqrt()), f64::from((1.0 - alpha).sqrt()));
        match (&self.ddim, self.alphas.get(k)) {
            (Some(ddim), _) => of(ddim.alphas(k).0),
            (None, Some(&alpha)) => of(alpha),
            (None, None) => level_of(self.sigmas[k]),
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

    /// The timestep of a step's second evaluation of the network, if it has one.
    #[must_use]
    pub fn second_timestep(&self, step: usize) -> Option<f32> {
        let k = self.number(step);
        match self.schedule.solver {
            solver if solver.evaluates_twice() && self.sigmas[k + 1] == 0.0 => None,
            Solver::Heun => self.timesteps.get(k + 1).copied(),
            Solver::DpmppSde => self.middles.get(k).copied(),
            Solver::Pndm if step == 0 => self.timesteps.get(k + 1).copied(),
            _ => None,
        }
    }

    /// How often a step evaluates the network: once or twice.
    #[must_use]
    pub fn evaluations(&self, step: usize) -> usize {
        1 + usize::from(self.second_timestep(step).is_some())
    }

    /// The order of a step of a multistep or a singlestep solver.
    pub(super) fn order(&self, step: usize) -> usize {
        let Schedule { solver, steps, .. } = self.schedule;
        let most = self.schedule.order();
        let k = self.number(step);
        let warm = step + 1;
        match solver {
            solver if solver.is_dpm_multistep() => {
                let few = self.lower_order_final && steps < 15;
                if k + 1 == steps && (self.final_zero || self.euler_at_final || few) {
                    1
                } else if k + 2 == steps && few {
                    warm.min(most).min(2)
                } else {
                    warm.min(most)
                }
            }
            Solver::Dpmpp2s => self.orders.get(k).map_or(1, |&order| warm.min(order)),
            Solver::Unipc if self.lower_order_final => warm.min(most).min(steps - k),
            Solver::Unipc | Solver::Lms | Solver::Pndm => warm.min(most),
            _ => 1,
        }
    }

    /// The order of UniPC's corrector at the beginning of a step; 0 where it does not correct.
    pub(super) fn corrector(&self, step: usize) -> usize {
        match self.schedule.solver {
            Solver::Unipc if step > 0 => {
                if self.uncorrected.contains(&(self.number(step) - 1)) {
                    0
                } else {
                    self.order(step - 1)
                }
            }
            _ => 0,
        }
    }

    /// What decides a step, for its key.
    #[must_use]
    pub fn numbers(&self, step: usize) -> StepNumbers {
        let k = self.number(step);
        let order = self.order(step);
        let corrector = self.corrector(step);
        let sigmas = match self.schedule.solver {
            Solver::Pndm => {
                let (from, to) = self.pndm_alphas(step);
                let mut alphas = vec![from, to];
                if let (Some(ddim), Some(_)) = (&self.ddim, self.second_timestep(step)) {
                    let (from, to) = ddim.alphas(k);
                    alphas.extend([from, to]);
                }
                alphas
            }
            Solver::Lcm => self.alphas[k..self.alphas.len().min(k + 2)].to_vec(),
            _ if self.sigmas.is_empty() => Vec::new(),
            _ => {
                let back = (order - 1).max(corrector);
                self.sigmas[k - back..=k + 1].to_vec()
            }
        };
        let mut others = Vec::new();
        if let Some(t) = self.second_timestep(step) {
            others.push(("second timestep", t.to_le_bytes().to_vec()));
        }
        if let Some(clip) = self.clip {
            others.push(("clip", clip.to_le_bytes().to_vec()));
        }
        if let Some(variant) = self.schedule.variant {
            others.push(("variant", format!("{variant:?}").into_bytes()));
        }
        if self.schedule.solver == Solver::Lcm {
            others.push(("scaling", self.timestep_scaling.to_le_bytes().to_vec()));
        }
        StepNumbers {
            sigmas,
            orders: [corrector, order],
            others,
        }
    }

    /// Whether solver state beside the latent before a step is needed to make it.
    #[must_use]
    pub fn remembers(&self, step: usize) -> bool {
        if step == 0 || step >= self.steps() {
            return false;
        }
        match self.schedule.solver {
            solver if solver.is_dpm_multistep() => self.order(step) > 1,
            Solver::Dpmpp2s => self.order(step) > 1,
            Solver::Unipc | Solver::Lms | Solver::Pndm => true,
            _ => false,
        }
    }

    /// The standard deviation of the noise that DDIM adds at a step: eta times DDPM's (Song et al. 2021, eq. 16).
    pub(super) fn ddim_noise(&self, k: usize) -> f32 {
        let Some(ddim) = &self.ddim else {
            return 0.0;
        };
        let (from, to) = ddim.alphas(k);
        let variance = (1.0 - to) / (1.0 - from) * (1.0 - from / to);
        self.schedule.eta as f32 * variance.max(0.0).sqrt()
    }

    /// sigma_up and sigma_down of an ancestral step.
    pub(super) fn ancestral(&self, k: usize) -> (f64, f64) {
        ancestral(f64::from(self.sigmas[k]), f64::from(self.sigmas[k + 1]))
    }

    /// How many tensors of independent noise a step takes: none, one, or two ([`step_noise`] and [`second_step_noise`]).
    ///
    /// [`step_noise`]: crate::sampling::noise::step_noise
    /// [`second_step_noise`]: crate::sampling::noise::second_step_noise
    #[must_use]
    pub fn noises(&self, step: usize) -> usize {
        let k = self.number(step);
        let ends = || self.sigmas[k + 1] == 0.0;
        match self.schedule.solver {
            Solver::Ddim => usize::from(self.ddim_noise(k) > 0.0),
            Solver::EulerAncestral => usize::from(self.ancestral(k).0 > 0.0),
            Solver::Dpmpp2mSde | Solver::Dpmpp3mSde => usize::from(!ends()),
            Solver::DpmppSde if ends() => 0,
            Solver::DpmppSde => 2,
            Solver::Lcm => usize::from(k + 1 < self.schedule.steps),
            _ => 0,
        }
    }

    /// Whether a step adds noise.
    #[must_use]
    pub fn adds_noise(&self, step: usize) -> bool {
        self.noises(step) > 0
    }
}

/// T timesteps, laid over those of the training as the solver's or the configuration's spacing says.
fn spaced(solver: Solver, config: &SchedulerConfig, steps: usize) -> Vec<f64> {
    let n = config.num_train_timesteps;
    let spacing = solver.spacing(config);
    // A multistep solver's timesteps but for trailing ones are the first T of T + 1.
    let points = steps + usize::from(solver.preserves_variance() && spacing != Spacing::Trailing);
    match spacing {
        Spacing::Linspace => (points - steps..points)
            .rev()
            .map(|i| {
                let stride = (n - 1) as f64 / (points - 1).max(1) as f64;
                let t = if i > 0 && i + 1 == points {
                    (n - 1) as f64
                } else {
                    i as f64 * stride
                };
                if solver.preserves_variance() {
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
    }
}
