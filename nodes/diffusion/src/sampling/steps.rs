//! One step of each solver: its formula in the latent's own space (see [`crate::sampling::solver`]).
//!
//! Coefficients are in f64; each product with a tensor is rounded once.

use candle_core::Tensor;

use crate::sampling::scheduler::{Prediction, clipped};
use crate::sampling::sigmas::{ancestral, lagrange_integral, lambda, level_of, middle};
use crate::sampling::solver::{Sampler, Solver, Variant};
use crate::{Error, Result};

/// Evaluates the network again within a step, at a latent and a timestep.
pub type Second<'a> = &'a mut dyn FnMut(&Tensor, f32) -> Result<Tensor>;

fn missing() -> Error {
    Error::request("the solver state of the steps before is missing")
}

/// A linear combination of tensors, summed in their order; coefficients of 0 are left out, the first is not.
fn combined(terms: &[(&Tensor, f64)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (tensor, factor) in terms {
        if *factor == 0.0 && sum.is_some() {
            continue;
        }
        let term = (*tensor * *factor)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    sum.ok_or_else(|| Error::request("a sum of nothing"))
}

impl Sampler {
    /// The denoised latent and the noise that the network sees in z at a level.
    fn split(&self, z: &Tensor, out: &Tensor, level: (f64, f64)) -> Result<(Tensor, Tensor)> {
        let (x0, eps) = self.prediction.split(z, out, level)?;
        let Some(most) = self.clip else {
            return Ok((x0, eps));
        };
        // The noise is what is left of z beside the clipped latent.
        let x0 = clipped(x0, Some(most))?;
        let eps = ((z - (&x0 * level.0)?)? / level.1)?;
        Ok((x0, eps))
    }

    /// The same before step k of all T.
    fn split_at(&self, z: &Tensor, out: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
        self.split(z, out, level_of(self.sigmas[k]))
    }

    /// The latent after a step from the one before, z, and what the network gave for it, `out`; `past` is the solver
    /// state beside z, `noise` that of the step, as many as [`Sampler::noises`] says, and `second` evaluates the network
    /// again where [`Sampler::evaluations`] says so. Gives the solver state beside the new latent, too.
    ///
    /// # Errors
    /// When the shapes differ, or what the step needs is missing.
    pub fn step(
        &self,
        z: &Tensor,
        out: &Tensor,
        step: usize,
        past: &[Tensor],
        noise: &[Tensor],
        second: Second<'_>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let k = self.number(step);
        let noise = |part: usize| {
            noise
                .get(part)
                .ok_or_else(|| Error::request("a step's noise is missing"))
        };
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
                    let x0 = clipped(x0, ddim.clip())?;
                    let direction = root((1.0 - to - std * std).max(0.0));
                    (((x0 * root(to))? + (eps * direction)?)? + (noise(0)? * f64::from(std))?)?
                }
            }
            Solver::Euler => {
                let (x0, eps) = self.split_at(z, out, k)?;
                let (a, s) = level_of(self.sigmas[k + 1]);
                ((x0 * a)? + (eps * s)?)?
            }
            Solver::EulerAncestral => {
                let (x0, eps) = self.split_at(z, out, k)?;
                let (up, down) = self.ancestral(k);
                let (a, _) = level_of(self.sigmas[k + 1]);
                let next = ((x0 * a)? + (eps * (a * down))?)?;
                if up > 0.0 {
                    (next + (noise(0)? * (a * up))?)?
                } else {
                    next
                }
            }
            Solver::Heun => self.heun(z, out, step, second)?,
            Solver::DpmppSde => {
                let noise = match self.noises(step) {
                    0 => None,
                    _ => Some((noise(0)?, noise(1)?)),
                };
                self.stochastic(z, out, step, noise, second)?
            }
            Solver::Lms => return self.linear_multistep(z, out, step, past),
            Solver::Pndm => return self.pndm(z, out, step, past, second),
            Solver::Dpmpp2m | Solver::Dpmpp3m | Solver::Dpmpp2mSde | Solver::Dpmpp3mSde => {
                let (own, _) = self.split_at(z, out, k)?;
                let added = match self.noises(step) {
                    0 => None,
                    _ => Some(noise(0)?),
                };
                let next = match (self.order(step), self.schedule.solver) {
                    (1, Solver::Dpmpp2m | Solver::Dpmpp3m) => self.predict(z, &own, None, k)?,
                    (2, Solver::Dpmpp2m) if self.schedule.variant.is_none() => {
                        self.predict(z, &own, Some(past.first().ok_or_else(missing)?), k)?
                    }
                    (order, _) => self.dpm_multistep(z, &own, past, order, k, added)?,
                };
                // As many as any order takes: what is kept does not depend on the step that comes.
                let kept = match self.remembers(step + 1) {
                    true => self.schedule.order() - 1,
                    false => 0,
                };
                let past = std::iter::once(&own).chain(past).take(kept).cloned();
                return Ok((next, past.collect()));
            }
            Solver::Dpmpp2s => return self.dpm_singlestep(z, out, step, past),
            Solver::Unipc => return self.unipc(z, out, step, past),
            Solver::Lcm => self.consistency(z, out, step, &noise)?,
        };
        Ok((next, Vec::new()))
    }

    /// Heun's method on sigma (Karras et al. 2022, algorithm 1 without churn): the mean of the slopes at both ends of the
    /// step; Euler's where it ends without noise.
    fn heun(&self, z: &Tensor, out: &Tensor, step: usize, second: Second<'_>) -> Result<Tensor> {
        let k = self.number(step);
        let (x0, eps) = self.split_at(z, out, k)?;
        let (a, s) = level_of(self.sigmas[k + 1]);
        let euler = combined(&[(&x0, a), (&eps, s)])?;
        let Some(timestep) = self.second_timestep(step) else {
            return Ok(euler);
        };
        let out = second(&euler, timestep)?;
        let (_, other) = self.split(&euler, &out, (a, s))?;
        let step = f64::from(self.sigmas[k + 1]) - f64::from(self.sigmas[k]);
        Ok((euler + ((other - eps)? * (a * step / 2.0))?)?)
    }

    /// The stochastic DPM-Solver++ of order 2, singlestep (k-diffusion's `sample_dpmpp_sde`, eta 1 and r 1/2): ancestral
    /// steps to the middle of the step and, from where it began, to its end. `noise` is that of the first and of the
    /// second part of the step; that of the whole step is their sum, as of one Brownian motion over sigma.
    fn stochastic(
        &self,
        z: &Tensor,
        out: &Tensor,
        step: usize,
        noise: Option<(&Tensor, &Tensor)>,
        second: Second<'_>,
    ) -> Result<Tensor> {
        let k = self.number(step);
        let (x0, eps) = self.split_at(z, out, k)?;
        let (a, s) = level_of(self.sigmas[k + 1]);
        let (Some(timestep), Some((first, rest))) = (self.second_timestep(step), noise) else {
            return combined(&[(&x0, a), (&eps, s)]);
        };
        let (from, to) = (f64::from(self.sigmas[k]), f64::from(self.sigmas[k + 1]));
        let half = middle(self.sigmas[k], self.sigmas[k + 1]);
        let at_half = level_of(half as f32);
        let (up, down) = ancestral(from, half);
        let a_half = at_half.0;
        let between = combined(&[(&x0, a_half), (&eps, a_half * down), (first, a_half * up)])?;
        let out = second(&between, timestep)?;
        let (other, _) = self.split(&between, &out, at_half)?;
        let (up, down) = ancestral(from, to);
        let parts = [(from - half) / (from - to), (half - to) / (from - to)].map(f64::sqrt);
        combined(&[
            (&eps, a * down),
            (&x0, a * down / from),
            (&other, a * (1.0 - down / from)),
            (first, a * up * parts[0]),
            (rest, a * up * parts[1]),
        ])
    }

    /// The linear multistep method on sigma: the polynomial through the slopes of the last steps, at most four, is
    /// integrated over the step. State: the slopes of the steps before, the last one first.
    fn linear_multistep(
        &self,
        z: &Tensor,
        out: &Tensor,
        step: usize,
        past: &[Tensor],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let k = self.number(step);
        let (x0, eps) = self.split_at(z, out, k)?;
        let (a, s) = level_of(self.sigmas[k + 1]);
        let order = self.order(step);
        let points: Vec<f64> = (0..order).map(|i| f64::from(self.sigmas[k - i])).collect();
        let (from, to) = (f64::from(self.sigmas[k]), f64::from(self.sigmas[k + 1]));
        // The weights add up to the step, so that Euler's step and the differences of slopes make the same sum.
        let mut own = s;
        let mut terms = vec![(&x0, a)];
        for (i, slope) in (1..order).map(|i| (i, past.get(i - 1))) {
            let weight = a * lagrange_integral(&points, i, from, to);
            own -= weight;
            terms.push((slope.ok_or_else(missing)?, weight));
        }
        terms.insert(1, (&eps, own));
        let next = combined(&terms)?;
        Ok((next, self.looked_back_on(step, &eps, past)))
    }

    /// The solver state after a step of a linear multistep method: what this step has, and that of the two before.
    fn looked_back_on(&self, step: usize, own: &Tensor, past: &[Tensor]) -> Vec<Tensor> {
        if !self.remembers(step + 1) {
            return Vec::new();
        }
        let all = std::iter::once(own).chain(past);
        all.take(3).cloned().collect()
    }

    /// Alpha before and after a step of PNDM. diffusers takes the first of several steps to come from a stride above the
    /// second timestep, which is where it begins unless timesteps are spaced unevenly.
    pub(super) fn pndm_alphas(&self, step: usize) -> (f32, f32) {
        let k = self.number(step);
        let Some(ddim) = &self.ddim else {
            return (1.0, 1.0);
        };
        match ddim.timesteps().get(k + 1).filter(|_| step == 0) {
            Some(&t) => (ddim.alpha_above(t), ddim.alphas(k + 1).0),
            None => ddim.alphas(k),
        }
    }

    /// A step of PNDM (Liu et al. 2022, eq. 9 and 12): DDIM's transfer with outputs of the network extrapolated over the
    /// last four; the first step evaluates twice and takes their mean. State: the outputs of the steps before, the last one first.
    fn pndm(
        &self,
        z: &Tensor,
        out: &Tensor,
        step: usize,
        past: &[Tensor],
        second: Second<'_>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let root = |x: f32| f64::from(x.sqrt());
        // A denoised latent is not extrapolated but the noise beside it; v is, as in diffusers.
        let kind = match self.prediction {
            Prediction::Sample => Prediction::Epsilon,
            other => other,
        };
        let read = |z: &Tensor, out: &Tensor, step: usize| -> Result<Tensor> {
            match self.prediction {
                Prediction::Sample => Ok(self.split(z, out, self.level(step))?.1),
                _ => Ok(out.clone()),
            }
        };
        let out = &read(z, out, step)?;
        let transfer = |out: &Tensor, (from, to): (f32, f32)| -> Result<Tensor> {
            let (x0, eps) = kind.split(z, out, (root(from), root(1.0 - from)))?;
            combined(&[(&x0, root(to)), (&eps, root(1.0 - to))])
        };
        let before = |i: usize| past.get(i).ok_or_else(missing);
        let levels = self.pndm_alphas(step);
        let next = match (self.second_timestep(step), self.order(step)) {
            (Some(timestep), _) => {
                let ddim = self.ddim.as_ref().ok_or_else(missing)?;
                let between = transfer(out, ddim.alphas(self.number(step)))?;
                let other = read(&between, &second(&between, timestep)?, step + 1)?;
                transfer(&combined(&[(out, 0.5), (&other, 0.5)])?, levels)?
            }
            (None, 1) => transfer(out, levels)?,
            (None, 2) => transfer(&combined(&[(out, 1.5), (before(0)?, -0.5)])?, levels)?,
            (None, 3) => {
                let terms = [
                    (out, 23.0 / 12.0),
                    (before(0)?, -16.0 / 12.0),
                    (before(1)?, 5.0 / 12.0),
                ];
                transfer(&combined(&terms)?, levels)?
            }
            _ => {
                let terms = [
                    (out, 55.0 / 24.0),
                    (before(0)?, -59.0 / 24.0),
                    (before(1)?, 37.0 / 24.0),
                    (before(2)?, -9.0 / 24.0),
                ];
                transfer(&combined(&terms)?, levels)?
            }
        };
        Ok((next, self.looked_back_on(step, out, past)))
    }

    /// A step of a latent consistency model (Luo et al. 2023, algorithm 3): the denoised latent under the boundary
    /// condition, with new noise up to the level of the next step.
    fn consistency<'a>(
        &self,
        z: &Tensor,
        out: &Tensor,
        step: usize,
        noise: &dyn Fn(usize) -> Result<&'a Tensor>,
    ) -> Result<Tensor> {
        const DATA: f64 = 0.5;
        let k = self.number(step);
        let (x0, _) = self.prediction.split(z, out, self.level(step))?;
        let x0 = clipped(x0, self.clip)?;
        let t = f64::from(self.timestep(step)) * self.timestep_scaling;
        let kept = DATA * DATA / (t * t + DATA * DATA);
        let taken = t / (t * t + DATA * DATA).sqrt();
        if k + 1 == self.schedule.steps {
            return combined(&[(&x0, taken), (z, kept)]);
        }
        let (a, s) = self.level(step + 1);
        combined(&[(&x0, a * taken), (z, a * kept), (noise(0)?, s)])
    }

    /// DPM-Solver++ of any order from sigma k to k + 1 by denoised latents: `own`, and those of the steps before in
    /// `past`, the last one first (Lu et al. 2022, algorithm 2; for the stochastic equation its appendix). `noise` is
    /// none for the deterministic equation, and where the step ends without noise.
    fn dpm_multistep(
        &self,
        z: &Tensor,
        own: &Tensor,
        past: &[Tensor],
        order: usize,
        k: usize,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (from, to) = (level_of(self.sigmas[k]), level_of(self.sigmas[k + 1]));
        let of = |k: usize| lambda(self.sigmas[k]);
        let h = of(k + 1) - of(k);
        let stochastic = matches!(
            self.schedule.solver,
            Solver::Dpmpp2mSde | Solver::Dpmpp3mSde
        );
        // Both equations have one form: x' = c x - a' (phi D0 + ...), over h or twice that.
        let span = if stochastic { 2.0 * h } else { h };
        let phi = libm::expm1(-span);
        let phi_2 = phi / span + 1.0;
        let decay = to.1 / from.1 * if stochastic { libm::exp(-h) } else { 1.0 };
        let mut weights = vec![-to.0 * phi];
        let mut points = vec![own];
        if order > 1 {
            let m1 = past.first().ok_or_else(missing)?;
            let r0 = (of(k) - of(k - 1)) / h;
            points.push(m1);
            if order == 2 {
                let slope = match self.schedule.variant {
                    Some(Variant::Heun) => to.0 * phi_2,
                    _ => -0.5 * to.0 * phi,
                };
                weights[0] += slope / r0;
                weights.push(-slope / r0);
            } else {
                points.push(past.get(1).ok_or_else(missing)?);
                let r1 = (of(k - 1) - of(k - 2)) / h;
                // The sign of the half in the stochastic equation is diffusers'; k-diffusion has the other one there, too.
                let half = if stochastic { 0.5 } else { -0.5 };
                let (slope, bend) = (to.0 * phi_2, -to.0 * (phi_2 / span + half));
                // D1 and D2 are sums of the differences m0 - m1 and m1 - m2.
                let d1 = [1.0 / r0 * (1.0 + r0 / (r0 + r1)), -r0 / (r0 + r1) / r1];
                let d2 = [1.0 / r0 / (r0 + r1), -1.0 / r1 / (r0 + r1)];
                let w = [0, 1].map(|i| slope * d1[i] + bend * d2[i]);
                weights[0] += w[0];
                weights.extend([w[1] - w[0], -w[1]]);
            }
        }
        let mut terms = vec![(z, decay)];
        terms.extend(points.into_iter().zip(weights));
        if let Some(noise) = noise {
            terms.push((noise, to.1 * (-libm::expm1(-2.0 * h)).sqrt()));
        }
        combined(&terms)
    }

    /// DPM-Solver++, singlestep: a step of order n starts from the latent n - 1 steps ago, with the denoised latents since
    /// (Lu et al. 2022, algorithm 1). State: that latent, and those denoised ones, the last one first.
    fn dpm_singlestep(
        &self,
        z: &Tensor,
        out: &Tensor,
        step: usize,
        past: &[Tensor],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let k = self.number(step);
        let (own, _) = self.split_at(z, out, k)?;
        let order = self.order(step);
        let base = if order == 1 {
            z
        } else {
            past.first().ok_or_else(missing)?
        };
        let begin = k + 1 - order;
        let (from, to) = (level_of(self.sigmas[begin]), level_of(self.sigmas[k + 1]));
        let of = |k: usize| lambda(self.sigmas[k]);
        let h = of(k + 1) - of(begin);
        let phi = libm::expm1(-h);
        let phi_2 = phi / h + 1.0;
        let decay = to.1 / from.1;
        let before = |i: usize| past.get(i).ok_or_else(missing);
        let heun = self.schedule.variant == Some(Variant::Heun);
        let next = match order {
            1 => self.predict(z, &own, None, k)?,
            2 => {
                let m1 = before(1)?;
                let r0 = (of(k) - of(begin)) / h;
                let slope = match heun {
                    true => to.0 * phi_2 / r0,
                    false => -0.5 * to.0 * phi / r0,
                };
                combined(&[(base, decay), (m1, -to.0 * phi - slope), (&own, slope)])?
            }
            _ => {
                let (m1, m2) = (before(1)?, before(2)?);
                let (r0, r1) = ((of(k) - of(begin)) / h, (of(k - 1) - of(begin)) / h);
                // Weights of the differences m0 - m2 and m1 - m2.
                let (w0, w1) = if heun {
                    let (slope, bend) = (to.0 * phi_2, -to.0 * (phi_2 / h - 0.5));
                    let apart = r0 - r1;
                    (
                        (-r1 * slope + 2.0 * bend) / (apart * r0),
                        (r0 * slope - 2.0 * bend) / (apart * r1),
                    )
                } else {
                    (to.0 * phi_2 / r0, 0.0)
                };
                combined(&[
                    (base, decay),
                    (m2, -to.0 * phi - w0 - w1),
                    (m1, w1),
                    (&own, w0),
                ])?
            }
        };
        let past = if self.remembers(step + 1) {
            let mut kept = vec![base.clone(), own];
            kept.extend(past.iter().skip(1).take(order - 1).cloned());
            kept
        } else {
            Vec::new()
        };
        Ok((next, past))
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
    /// State: the corrected latent, the denoised one that the network gave for it, and the denoised ones before that the
    /// next corrector takes, the last one first.
    fn unipc(
        &self,
        z: &Tensor,
        out: &Tensor,
        step: usize,
        past: &[Tensor],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let k = self.number(step);
        let (own, _) = self.split_at(z, out, k)?;
        let corrector = self.corrector(step);
        let simple = self.schedule.variant.is_none();
        let corrected = match (corrector, past) {
            (0, _) => z.clone(),
            (1 | 2, [last, before, ..]) if simple => {
                self.corrected(last, before, past.get(2), &own, corrector, k)?
            }
            (_, [last, denoised @ ..]) => self.uni(last, denoised, Some(&own), corrector, k - 1)?,
            _ => return Err(missing()),
        };
        let order = self.order(step);
        let before = past.get(1..).unwrap_or_default();
        let next = match (order, before) {
            (1, _) => self.predict(&corrected, &own, None, k)?,
            (2, [before, ..]) if simple => self.predict(&corrected, &own, Some(before), k)?,
            _ => {
                let mut denoised = vec![own.clone()];
                denoised.extend(before.iter().cloned());
                self.uni(&corrected, &denoised, None, order, k)?
            }
        };
        let past = if self.remembers(step + 1) {
            let mut kept = vec![corrected, own];
            kept.extend(before.iter().take(order - 1).cloned());
            kept
        } else {
            Vec::new()
        };
        Ok((next, past))
    }

    /// UniC with B2(h) of order 1 or 2: the latent at sigma k from the corrected one before it, `last`.
    fn corrected(
        &self,
        last: &Tensor,
        before: &Tensor,
        earlier: Option<&Tensor>,
        own: &Tensor,
        order: usize,
        k: usize,
    ) -> Result<Tensor> {
        let (from, to) = (level_of(self.sigmas[k - 1]), level_of(self.sigmas[k]));
        let start = lambda(self.sigmas[k - 1]);
        let h = lambda(self.sigmas[k]) - start;
        let phi = libm::expm1(-h);
        let base = ((last * (to.1 / from.1))? - (before * (to.0 * phi))?)?;
        let now = (own - before)?;
        let change = if order == 1 {
            (now * 0.5)?
        } else {
            let earlier = earlier.ok_or_else(missing)?;
            let ratio = (lambda(self.sigmas[k - 2]) - start) / h;
            // The two conditions of order, solved: w0 + w1 = b1, ratio w0 + w1 = b2.
            let phi_2 = phi / -h - 1.0;
            let phi_3 = phi_2 / -h - 0.5;
            let (b1, b2) = (phi_2 / phi, 2.0 * phi_3 / phi);
            let w0 = (b1 - b2) / (1.0 - ratio);
            let slope = ((earlier - before)? / ratio)?;
            ((slope * w0)? + (now * (b1 - w0))?)?
        };
        Ok((base - (change * (to.0 * phi))?)?)
    }

    /// UniP, or UniC with `own`, of any order with B1(h) or B2(h), from sigma k to k + 1: `denoised` are the denoised
    /// latents at sigma k, k - 1, ..., `own` that at k + 1.
    fn uni(
        &self,
        z: &Tensor,
        denoised: &[Tensor],
        own: Option<&Tensor>,
        order: usize,
        k: usize,
    ) -> Result<Tensor> {
        let (from, to) = (level_of(self.sigmas[k]), level_of(self.sigmas[k + 1]));
        let start = lambda(self.sigmas[k]);
        let h = lambda(self.sigmas[k + 1]) - start;
        let phi = libm::expm1(-h);
        let scale = match self.schedule.variant {
            Some(Variant::Bh1) => -h,
            _ => phi,
        };
        let ratios = (1..order).map(|i| (lambda(self.sigmas[k - i]) - start) / h);
        let ratios: Vec<f64> = ratios.chain(std::iter::once(1.0)).collect();
        // b_i = i! phi_(i + 1)(-h) (-h)^i / B(h).
        let (mut conditions, mut phi_i, mut factorial) = (Vec::new(), phi / -h - 1.0, 1.0);
        for i in 1..=order {
            conditions.push(phi_i * factorial / scale);
            factorial *= (i + 1) as f64;
            phi_i = phi_i / -h - 1.0 / factorial;
        }
        let weights = match (own, order) {
            // diffusers has these for what the equations give.
            (None, 2) | (Some(_), 1) => vec![0.5],
            (None, _) => solved(&ratios[..order - 1], &conditions[..order - 1]),
            (Some(_), _) => solved(&ratios, &conditions),
        };
        let m0 = denoised.first().ok_or_else(missing)?;
        let mut own_weight = -to.0 * phi;
        let mut terms = Vec::new();
        for (i, weight) in weights.into_iter().enumerate() {
            let point = match own {
                Some(own) if i + 1 == order => own,
                _ => denoised.get(i + 1).ok_or_else(missing)?,
            };
            let weight = -to.0 * scale * weight / ratios[i];
            own_weight -= weight;
            terms.push((point, weight));
        }
        terms.insert(0, (m0, own_weight));
        terms.insert(0, (z, to.1 / from.1));
        combined(&terms)
    }
}

/// The weights w of the powers of `ratios`: sum over j of ratios[j]^i w[j] = conditions[i], at most 3, by elimination with
/// pivots.
fn solved(ratios: &[f64], conditions: &[f64]) -> Vec<f64> {
    let n = conditions.len();
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let powers = ratios.iter().map(|r| r.powi(i as i32));
            powers.chain(std::iter::once(conditions[i])).collect()
        })
        .collect();
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))
            .unwrap_or(column);
        rows.swap(column, pivot);
        let lead = rows[column].clone();
        for (index, row) in rows.iter_mut().enumerate() {
            if index != column {
                let factor = row[column] / lead[column];
                for (entry, of) in row.iter_mut().zip(&lead) {
                    *entry -= factor * of;
                }
            }
        }
    }
    (0..n).map(|i| rows[i][n] / rows[i][i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conditions_of_order_are_solved() {
        let ratios: [f64; 3] = [-0.7, -1.9, 1.0];
        let weights = [0.3, -1.1, 2.0];
        for n in 1..=3 {
            let condition = |i: usize| {
                let terms = ratios[..n].iter().zip(&weights[..n]);
                terms.map(|(r, w)| r.powi(i as i32) * w).sum::<f64>()
            };
            let conditions: Vec<f64> = (0..n).map(condition).collect();
            for (found, due) in solved(&ratios[..n], &conditions).iter().zip(weights) {
                assert!((found - due).abs() < 1e-12, "{n}: {found} {due}");
            }
        }
    }
}
