//! Sampling without attention control: stage 1 (step blending), drawing over a picture, and DDIM inversion.

use std::time::Instant;

use candle_core::Tensor;

use crate::networks::unet::grid_at;
use crate::sampling::beside::Beside;
use crate::sampling::control::{Branch, Capture, Untouched};
use crate::sampling::guidance::{Conditioner, Guided, keep, wanted};
use crate::sampling::memory::{Resume, StepStore, recall};
use crate::sampling::monitor::Monitor;
use crate::sampling::noise::{second_step_noise, step_noise};
use crate::sampling::scheduler::Ddim;
use crate::sampling::solver::Sampler;
use crate::sampling::steps::Second;
use crate::{Error, Result};

/// What stays of a picture where its mask leaves it.
#[derive(Clone, Debug)]
pub struct Inpaint {
    /// The picture's latent, `[B, C, h, w]` or one for all.
    pub picture: Tensor,
    /// The noise that it is seen with, the same at every step: `[B, C, h, w]`.
    pub noise: Tensor,
    /// 1 where it is drawn anew, 0 where it stays: `[B or 1, 1, h, w]`.
    pub mask: Tensor,
}

impl Inpaint {
    /// The latent after a step with the picture, at the level that the next step begins at, in place of it outside the
    /// mask.
    fn apply(&self, z: &Tensor, sampler: &Sampler, next: usize) -> Result<Tensor> {
        let kept = sampler.noised(&self.picture, &self.noise, next)?;
        Ok((z.broadcast_mul(&self.mask)? + kept.broadcast_mul(&(1.0 - &self.mask)?)?)?)
    }
}

/// How plain sampling draws: all that its steps share.
pub struct Drawing<'a> {
    /// The scheduler.
    pub sampler: &'a Sampler,
    /// u + g (c - u).
    pub guidance: f64,
    /// Guidance rescale; 0 is none.
    pub rescale: f64,
    /// The seed of the noise that a stochastic scheduler adds; image i has `seed + i`.
    pub seed: Option<u64>,
    /// What stays of a picture.
    pub inpaint: Option<Inpaint>,
    /// What the network is shown beside the latent.
    pub beside: Option<Beside>,
}

impl<'a> Drawing<'a> {
    /// Draws with a scheduler and a guidance, and nothing else.
    #[must_use]
    pub fn plain(sampler: &'a Sampler, guidance: f64) -> Self {
        Self {
            sampler,
            guidance,
            rescale: 0.0,
            seed: None,
            inpaint: None,
            beside: None,
        }
    }

    /// The latent after step k, and the solver state beside it; `second` evaluates the network again within the step.
    fn step(
        &self,
        z: &Tensor,
        out: &Tensor,
        k: usize,
        past: &[Tensor],
        second: Second<'_>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let mut noise = Vec::new();
        for part in 0..self.sampler.noises(k) {
            let seed = self.seed.ok_or_else(|| {
                Error::request("the scheduler adds noise at each step, and there is no seed for it")
                    .help("give `seed: 42`")
            })?;
            let drawn = match part {
                0 => step_noise,
                _ => second_step_noise,
            };
            noise.push(drawn(seed, self.sampler.number(k), z.dims4()?, z.device())?);
        }
        let (next, past) = self.sampler.step(z, out, k, past, &noise, second)?;
        let next = match &self.inpaint {
            Some(inpaint) => inpaint.apply(&next, self.sampler, k + 1)?,
            None => next,
        };
        Ok((next, past))
    }
}

/// Stage 1: the steps before `blend_steps` by `vanilla`, the others by `personalized` (the paper's equation for
/// step-blended denoising). Returns the latents z_0 .. z_T, noisiest first, `[B, C, h, w]` each, of which the first is
/// `start`. A model is loaded, and its prompts encoded, when a step of it is drawn: what the memory keeps needs neither.
///
/// # Errors
/// When a call fails or the run is cancelled.
pub fn step_blend_sample(
    vanilla: &dyn Conditioner,
    personalized: &dyn Conditioner,
    start: &Tensor,
    blend_steps: usize,
    drawing: &Drawing<'_>,
    monitor: &dyn Monitor,
    memory: &dyn StepStore,
) -> Result<Vec<Tensor>> {
    let sampler = drawing.sampler;
    let steps = sampler.steps();
    let mut trajectory = vec![start.clone()];
    let mut z = start.clone();
    let mut past: Vec<Tensor> = Vec::new();
    let mut resume = Resume::new(memory, steps);
    for k in 0..steps {
        monitor.step(k, steps)?;
        let kept = || {
            let next = memory.state(k + 1)?;
            let past = if sampler.remembers(k + 1) {
                memory.past(k + 1)?
            } else {
                Vec::new()
            };
            Some((next, past))
        };
        let (there, _claim) = recall(memory, k + 1, kept)?;
        (z, past) = match there {
            Some(there) => there,
            None => {
                resume.makes(k, 0);
                let drawer = if k < blend_steps {
                    vanilla.conditioned()?
                } else {
                    personalized.conditioned()?
                };
                let guided = Guided {
                    model: drawer.model,
                    conditions: drawer.conditions,
                    guidance: drawing.guidance,
                    rescale: drawing.rescale,
                    branch: Branch::Plain,
                    beside: drawing.beside.as_ref(),
                };
                let since = Instant::now();
                let rows = guided.all_rows(&z)?;
                let (_, _, h, w) = z.dims4()?;
                let mut capture = Capture::new(wanted(memory, Branch::Plain, k, rows), |level| {
                    grid_at((h, w), level)
                });
                let out = guided.noise(&z, sampler.timestep(k), k, &mut capture, monitor)?;
                let seconds = since.elapsed().as_secs_f64();
                if !capture.is_idle() {
                    let store = capture.finish()?;
                    keep(memory, Branch::Plain, k, rows, &store, seconds);
                }
                // What looks at a step's attention looks at its first evaluation.
                let mut second = |z: &Tensor, timestep: f32| {
                    guided.noise(z, timestep, k, &mut Untouched, monitor)
                };
                let (next, past) = drawing.step(&z, &out, k, &past, &mut second)?;
                let seconds = since.elapsed().as_secs_f64();
                if sampler.remembers(k + 1) {
                    memory.keep_past(k + 1, &past, seconds);
                }
                memory.keep_state(k + 1, &next, seconds);
                if k + 1 < steps {
                    monitor.drawn(k + 1, steps, &next);
                }
                (next, past)
            }
        };
        trajectory.push(z.clone());
    }
    resume.end(0);
    monitor.drawn(steps, steps, &z);
    monitor.step(steps, steps)?;
    Ok(trajectory)
}

/// DDIM inversion with one prompt and guidance 1: the latents z_0 .. z_T, noisiest first, of which the last is
/// `latent` itself. For the memory, state n is the latent after n steps of the inversion.
///
/// # Errors
/// When a call fails or the run is cancelled.
pub fn invert(
    draws: &dyn Conditioner,
    latent: &Tensor,
    ddim: &Ddim,
    monitor: &dyn Monitor,
    memory: &dyn StepStore,
) -> Result<Vec<Tensor>> {
    let mut trajectory = vec![latent.clone()];
    let mut z = latent.clone();
    let mut resume = Resume::new(memory, ddim.steps());
    for (done, (k, &t)) in ddim.timesteps().iter().enumerate().rev().enumerate() {
        monitor.step(done, ddim.steps())?;
        let (there, _claim) = recall(memory, done + 1, || memory.state(done + 1))?;
        z = match there {
            Some(next) => next,
            None => {
                resume.makes(done, 0);
                let drawer = draws.conditioned()?;
                let guided = Guided {
                    model: drawer.model,
                    conditions: drawer.conditions,
                    guidance: 1.0,
                    rescale: 0.0,
                    branch: Branch::Plain,
                    beside: None,
                };
                let start = Instant::now();
                let out = guided.noise(&z, t as f32, k, &mut Untouched, monitor)?;
                let next = ddim.inverse_step(&z, &out, k)?;
                memory.keep_state(done + 1, &next, start.elapsed().as_secs_f64());
                next
            }
        };
        trajectory.push(z.clone());
    }
    resume.end(0);
    monitor.step(ddim.steps(), ddim.steps())?;
    trajectory.reverse();
    Ok(trajectory)
}
