//! Nodes that draw.

pub mod fields;
#[allow(clippy::module_inception)] // one file a node, of the node's name
pub mod sample;
pub(crate) mod shown;
pub mod step_blend_sample;
mod swap;
mod swap_keys;
mod swap_plan;

pub use fields::{SchedulerField, Strength};
pub use sample::Sample;
pub use step_blend_sample::StepBlendSample;

pub(crate) use shown::{Linked, plain_fault};

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use retouch_graph::{Chain, Chained, Fault, Files, NodeError, Upstream};

use crate::chain::{self, Draw, Moves, SamplerNote, TrajectoryNote};
use crate::fields::Seed;
use crate::payload::{Latent, LatentFacts, Mask, TrajectoryFacts};
use crate::runtime::{Reports, tensor_error};
use retouch_diffusion::Error;
use retouch_diffusion::checkpoint::model::{Checkpoint, ModelFacts};
use retouch_diffusion::networks::unet::Shown;
use retouch_diffusion::prompt::conditioning::Syntax;
use retouch_diffusion::sampling::control::Branch;
use retouch_diffusion::sampling::noise::starting_noise;
use retouch_diffusion::sampling::scheduler::{Ddim, Spacing};
use retouch_diffusion::sampling::solver::{Sampler, Schedule, Sigmas, Solver};
use retouch_diffusion::sampling::{Beside, Drawing, Inpaint, StepProvenance};

/// A fault that only the run can see.
pub(crate) fn failed(fault: Fault) -> NodeError {
    let failed = NodeError::failed(fault.message);
    match fault.help {
        Some(help) => failed.help(help),
        None => failed,
    }
}

/// The largest side of a picture, in pixels.
const MAX_SIDE: usize = 8192;
/// The largest batch.
const MAX_BATCH: usize = 256;

/// The size of a picture in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub width: usize,
    pub height: usize,
}

impl Size {
    /// What is given, else the size that the model was trained on.
    pub(crate) fn of(model: &ModelFacts, width: Option<usize>, height: Option<usize>) -> Self {
        let own = model.sample_size * model.factor;
        Self {
            width: width.unwrap_or(own),
            height: height.unwrap_or(own),
        }
    }
}

/// Sides that the model's VAE cannot make.
pub(crate) fn size_faults(
    model: &ModelFacts,
    width: Option<usize>,
    height: Option<usize>,
) -> Vec<Fault> {
    [("width", width), ("height", height)]
        .into_iter()
        .filter_map(|(name, side)| {
            let side = side?;
            let bad = side == 0 || side > MAX_SIDE || side % model.factor != 0;
            bad.then(|| {
                let near = (side / model.factor * model.factor).clamp(model.factor, MAX_SIDE);
                Fault::value(
                    name,
                    format!(
                        "{name} is {side}; this model draws multiples of {} up to {MAX_SIDE}",
                        model.factor
                    ),
                )
                .help(format!("the nearest is {near}"))
            })
        })
        .collect()
}

/// A number of steps that the model's schedule does not have.
pub(crate) fn steps_fault(model: &ModelFacts, steps: usize) -> Option<Fault> {
    spaced_steps_fault(model, steps, None)
}

/// The same with the timesteps laid out in another way than the model's.
fn spaced_steps_fault(model: &ModelFacts, steps: usize, spacing: Option<Spacing>) -> Option<Fault> {
    let config = &*model.scheduler.spaced(spacing);
    let error = Ddim::new(config, steps).err()?;
    if let Some(help) = error.help_text().filter(|_| config.rescale_betas_zero_snr) {
        return Some(Fault::value("steps", error.to_string()).help(help));
    }
    let most = (1..=config.num_train_timesteps)
        .rev()
        .find(|&most| Ddim::new(config, most).is_ok());
    let most = most.map_or_else(String::new, |most| {
        format!("; this schedule has at most {most}")
    });
    Some(
        Fault::value("steps", error.to_string())
            .help(format!("50 is a good number of steps for DDIM{most}")),
    )
}

/// Prompts, by their parameters, that cannot be read as the model reads them.
pub(crate) fn prompt_faults(
    model: Option<&ModelFacts>,
    prompts: &[(&'static str, &str)],
) -> Vec<Fault> {
    let syntax = model.map_or(Syntax::Plain, |model| model.reading.syntax);
    prompts
        .iter()
        .filter_map(|(name, prompt)| match syntax.check(prompt).err()? {
            Error::Request { message, help } => {
                let fault = Fault::value(name, message);
                Some(match help {
                    Some(help) => fault.help(help),
                    None => fault,
                })
            }
            other => Some(Fault::value(name, other.to_string())),
        })
        .collect()
}

/// Prompts, by their parameters, that the model is known not to read as they seem to be read.
pub(crate) fn prompt_warnings(
    model: Option<&ModelFacts>,
    prompts: &[(&'static str, &str)],
    files: &dyn Files,
) -> Vec<Fault> {
    let Some(model) = model else {
        return Vec::new();
    };
    let warnings = prompts.iter().flat_map(|(name, prompt)| {
        let own = model.prompt_warnings(prompt, files).into_iter();
        own.map(|warning| {
            let fault = Fault::value(name, warning.message);
            match warning.help {
                Some(help) => fault.help(help),
                None => fault,
            }
        })
    });
    warnings.collect()
}

/// Guidance that makes no sense.
pub(crate) fn guidance_fault(guidance: f64) -> Option<Fault> {
    (!(guidance.is_finite() && (0.0..=100.0).contains(&guidance))).then(|| {
        Fault::value(
            "guidance",
            format!("guidance is {guidance}; expected a number from 0 to 100"),
        )
        .help(
            "1 is no guidance; about 7.5 is usual for Stable Diffusion, 3 to 4 for the demo model",
        )
    })
}

/// A share of rescaling that makes no sense.
pub(crate) fn rescale_fault(rescale: f64, guidance: f64) -> Option<Fault> {
    if !(0.0..=1.0).contains(&rescale) {
        return Some(
            Fault::value(
                "guidance_rescale",
                format!("guidance_rescale is {rescale}; expected a number from 0 to 1"),
            )
            .help("0 changes nothing; 0.7 is the paper's value for models that predict v"),
        );
    }
    (rescale > 0.0 && guidance == 1.0).then(|| {
        Fault::value(
            "guidance_rescale",
            "`guidance_rescale` has no effect at guidance 1: there is nothing to rescale",
        )
        .help("remove it, or give a `guidance` above 1")
    })
}

/// Which scheduler draws: parameters of `sample` and `step_blend_sample`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scheduling {
    pub scheduler: SchedulerField,
    pub eta: f64,
    pub karras: Option<bool>,
    pub sigmas: Option<Sigmas>,
    pub spacing: Option<Spacing>,
    pub steps: usize,
}

impl Scheduling {
    /// The schedule for a model, all of its steps.
    fn of(&self, model: &ModelFacts) -> retouch_diffusion::Result<Schedule> {
        let schedule = Schedule::choose(
            &model.scheduler,
            self.scheduler.solver(),
            fields::sigmas_of(self.sigmas, self.karras),
            self.eta,
            self.steps,
        )?;
        Ok(schedule.spaced(&model.scheduler, self.spacing))
    }

    /// The solver, as far as it is known.
    fn solver(&self, model: Option<&ModelFacts>) -> Option<Solver> {
        self.scheduler
            .solver()
            .or_else(|| Solver::of_config(&model?.scheduler))
    }

    /// Whether it is DDIM, as far as that is known.
    pub(crate) fn is_ddim(&self, model: Option<&ModelFacts>) -> bool {
        match self.scheduler {
            SchedulerField::Checkpoint if model.is_none() => true,
            _ => self.solver(model) == Some(Solver::Ddim),
        }
    }

    /// Sigmas that the solver does not have, or that are given twice.
    fn sigmas_fault(&self, solver: Solver) -> Option<Fault> {
        let name = match (self.karras, self.sigmas) {
            (None, None) => return None,
            (Some(_), Some(_)) => {
                let fault =
                    Fault::value("karras", "`karras` and `sigmas` say the same thing twice");
                return Some(fault.help("remove `karras`; `sigmas: karras` is `karras: true`"));
            }
            (Some(_), None) => "karras",
            (None, Some(_)) => "sigmas",
        };
        if !solver.takes(Sigmas::Karras) {
            let fault = Fault::value(
                name,
                format!("`{name}` has no effect with `{}`", solver.name()),
            );
            return Some(fault.help(format!(
                "remove `{name}`, or give `scheduler: dpmpp_2m`, `euler` or `unipc`"
            )));
        }
        let sigmas = self.sigmas.filter(|sigmas| !solver.takes(*sigmas))?;
        let fault = Fault::value(
            name,
            format!("`{}` has no {} sigmas", solver.name(), sigmas.name()),
        );
        Some(fault.help("give `sigmas: karras`, `exponential` or `beta`, or `scheduler: dpmpp_2m`"))
    }

    /// What is wrong with it.
    pub(crate) fn faults(&self, model: Option<&ModelFacts>) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !(0.0..=1.0).contains(&self.eta) {
            faults.push(
                Fault::value(
                    "eta",
                    format!("eta is {}; expected a number from 0 to 1", self.eta),
                )
                .help("0 adds no noise, 1 as much as DDPM does"),
            );
        }
        let solver = self.solver(model);
        if let Some(solver) = solver.filter(|solver| self.eta > 0.0 && *solver != Solver::Ddim) {
            faults.push(
                Fault::value(
                    "eta",
                    format!("`eta` has no effect with `{}`: it is ddim's", solver.name()),
                )
                .help("remove `eta`, or give `scheduler: ddim`"),
            );
        }
        faults.extend(solver.and_then(|solver| self.sigmas_fault(solver)));
        let Some(model) = model.filter(|_| faults.is_empty()) else {
            return faults;
        };
        let value = |name: &str, error: &Error| {
            let fault = Fault::value(name, error.to_string());
            match error.help_text() {
                Some(help) => fault.help(help),
                None => fault,
            }
        };
        match self.of(model) {
            Err(error) => faults.push(value("scheduler", &error)),
            Ok(schedule)
                if let Some(why) = schedule
                    .ignores_spacing()
                    .filter(|_| self.spacing.is_some()) =>
            {
                let help = match schedule.sigmas() {
                    Sigmas::Training => "remove `spacing`",
                    Sigmas::Karras => "remove `spacing`, or give `karras: false`",
                    _ => "remove `spacing`, or give `sigmas: training`",
                };
                faults.push(
                    Fault::value(
                        "spacing",
                        format!("`spacing` has no effect with {}: {why}", schedule.words()),
                    )
                    .help(help),
                );
            }
            Ok(schedule) if schedule.solver == Solver::Ddim => {
                faults.extend(spaced_steps_fault(model, self.steps, schedule.spacing));
            }
            Ok(schedule) => {
                if let Err(error) = Sampler::new(&model.scheduler, schedule) {
                    faults.push(value("steps", &error));
                }
            }
        }
        faults
    }
}

/// What a sampler starts from and how it goes on: parameters of `sample` and `step_blend_sample`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub seed: Option<Seed>,
    pub batch: Option<usize>,
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub strength: Option<Strength>,
    pub scheduling: Scheduling,
    pub guidance: f64,
    pub rescale: f64,
    /// Guidance by the picture that an image-editing model is shown.
    pub image_guidance: Option<f64>,
}

/// The share of the picture in the latent before the first step from which on starting noise is no such latent. Diffusion
/// models are used with less: 0.24 at 4 steps of Stable Diffusion with leading timesteps, 0.32 at 3, 0.999 at 1.
const MOST_SIGNAL: f64 = 0.3;

/// What a sampler runs with.
pub(crate) struct Begun {
    pub sampler: Sampler,
    /// z_0 `[B, C, h, w]`.
    pub start: Tensor,
    /// Whether z_0 is noise from the seed.
    is_noise: bool,
    seed: Option<u64>,
    inpaint: Option<Inpaint>,
    beside: Option<Beside>,
    guidance: f64,
    rescale: f64,
}

impl Begun {
    /// Warns of steps that begin at so low a noise level that the starting noise is taken for a nearly finished picture,
    /// and of a model that is made for few steps and gets timesteps that it was not made for.
    pub(crate) fn warn(&self, model: &ModelFacts, reports: &Reports<'_>) {
        let schedule = self.sampler.schedule();
        let spacing = schedule
            .spacing
            .unwrap_or_else(|| schedule.solver.spacing(&model.scheduler));
        // LCM has timesteps of its own, made for few steps.
        let trailing = spacing == Spacing::Trailing || schedule.solver == Solver::Lcm;
        let (signal, _) = self.sampler.level(0);
        if self.is_noise && signal > MOST_SIGNAL {
            let help = if trailing {
                "give more `steps`"
            } else {
                "give `spacing: trailing`, or more `steps`"
            };
            reports.0.warn(&format!(
                "the first of {} steps is at timestep {} of {} ({} spacing), where a latent is {:.0}% picture: the starting noise is hardly changed; {help}",
                schedule.steps,
                self.sampler.timestep(0),
                model.scheduler.num_train_timesteps,
                spacing.name(),
                signal * 100.0
            ));
        } else if let Some(kind) = model.distilled.as_deref().filter(|_| !trailing) {
            reports.0.warn(&format!(
                "the model seems to be a {kind} model, which is made for few steps with trailing timesteps; these are {}: give `spacing: trailing` (and `guidance: 1`)",
                spacing.name()
            ));
        }
    }

    /// How its steps draw.
    pub(crate) fn drawing(&self) -> Drawing<'_> {
        Drawing {
            sampler: &self.sampler,
            guidance: self.guidance,
            rescale: self.rescale,
            seed: self.seed,
            inpaint: self.inpaint.clone(),
            beside: self.beside.clone(),
        }
    }
}

impl Start {
    /// The schedule for a model: the steps that are made.
    pub(crate) fn schedule(&self, model: &ModelFacts) -> retouch_diffusion::Result<Schedule> {
        let mut schedule = self.scheduling.of(model)?;
        if let Some(strength) = self.strength {
            schedule.first = strength.first(schedule.steps);
        }
        Ok(schedule)
    }

    /// Whether steps add noise, as far as that is known.
    fn is_stochastic(&self, model: Option<&ModelFacts>) -> bool {
        let solver = self.scheduling.solver(model);
        self.scheduling.eta > 0.0 || solver.is_some_and(Solver::is_stochastic)
    }

    /// Faults of the parameters; `latent` and `mask` say whether they are linked, `facts` what the latent is.
    // Long: one list of checks, a few lines each.
    pub(crate) fn faults(
        &self,
        model: Option<&ModelFacts>,
        latent: bool,
        mask: bool,
        facts: Option<&LatentFacts>,
        picture: Linked,
    ) -> Vec<Fault> {
        let mut faults = self.scheduling.faults(model);
        faults.extend(guidance_fault(self.guidance));
        faults.extend(rescale_fault(self.rescale, self.guidance));
        if let Some(strength) = self.strength {
            faults.extend(self.strength_fault(strength, latent));
        }
        faults.extend(shown::faults(
            model,
            picture,
            mask,
            self.guidance,
            self.image_guidance,
        ));
        // A model that is not known yet may be an inpainting one if it is shown a picture.
        let shown_mask = model.map_or(picture.is, |model| model.shown() == Shown::Masked);
        if mask && !shown_mask && !(latent && self.strength.is_some()) {
            let needed = if latent { "`strength`" } else { "a `latent`" };
            faults.push(
                Fault::mismatch(
                    "mask",
                    format!("a `mask` says where a picture is drawn anew, and {needed} is missing"),
                )
                .help("link the picture's latent, from `encode_reference`, as `latent` and give `strength: 100%` and a `seed`"),
            );
        }
        let stochastic = self.is_stochastic(model);
        let seeded = !latent || self.strength.is_some() || stochastic;
        if picture.is && !latent {
            let given = [("width", self.width), ("height", self.height)];
            faults.extend(given.into_iter().filter_map(|(name, side)| {
                side?;
                let fault = Fault::value(
                    name,
                    format!("`{name}` has no effect: the size is that of the linked `picture`"),
                );
                Some(fault.help(format!("remove `{name}`")))
            }));
        }
        if let (Some(shown), Some(drawn)) =
            (picture.facts, self.facts(model, facts.copied(), picture))
        {
            faults.extend(shown::misfit(shown, drawn));
        }
        if latent {
            let given = [
                ("seed", self.seed.is_some() && !seeded),
                ("batch", self.batch.is_some() && self.strength.is_none()),
                ("width", self.width.is_some()),
                ("height", self.height.is_some()),
            ];
            let what = if self.strength.is_some() {
                "the picture is the linked `latent`"
            } else {
                "the starting noise is the linked `latent`"
            };
            faults.extend(
                given
                    .into_iter()
                    .filter(|(_, given)| *given)
                    .map(|(name, _)| {
                        Fault::value(name, format!("`{name}` has no effect: {what}"))
                            .help(format!("remove `{name}` or `latent`"))
                    }),
            );
        }
        if seeded && self.seed.is_none() {
            let (message, help) = if !latent {
                (
                    "`seed` is missing: the starting noise comes from it",
                    "give `seed: 42`, or link a `latent` to start from",
                )
            } else if self.strength.is_some() {
                (
                    "`seed` is missing: the noise that the picture begins with comes from it",
                    "give `seed: 42`",
                )
            } else {
                (
                    "`seed` is missing: the noise that the scheduler adds at each step comes from it",
                    "give `seed: 42`",
                )
            };
            let mut fault = Fault::value("seed", message).help(help);
            fault.field = None;
            faults.push(fault);
        }
        if let Some(batch) = self.batch.filter(|_| !latent || self.strength.is_some()) {
            if !(1..=MAX_BATCH).contains(&batch) {
                faults.push(
                    Fault::value(
                        "batch",
                        format!("batch is {batch}; expected 1 to {MAX_BATCH}"),
                    )
                    .help("image i of a batch has the seed `seed + i`"),
                );
            } else if let Some(facts) = facts.filter(|facts| latent && facts.batch != 1)
                && facts.batch != batch
            {
                faults.push(
                    Fault::mismatch(
                        "latent",
                        format!("{} pictures for a batch of {batch}", facts.batch),
                    )
                    .help("link one picture for all, or one for each"),
                );
            }
        }
        if let Some(model) = model.filter(|_| !latent && !picture.is) {
            faults.extend(size_faults(model, self.width, self.height));
        }
        faults
    }

    fn strength_fault(&self, strength: Strength, latent: bool) -> Option<Fault> {
        if !latent {
            return Some(
                Fault::value(
                    "strength",
                    "`strength` has no effect without a `latent`: the picture that is drawn over",
                )
                .help("link the picture's latent, from `encode_reference`, or remove `strength`"),
            );
        }
        let steps = self.scheduling.steps;
        (steps > 0 && strength.first(steps) >= steps).then(|| {
            Fault::value(
                "strength",
                format!("a strength of {strength} leaves none of {steps} steps to draw"),
            )
            .help(format!(
                "give at least {:.3}, or more `steps`",
                // Rounded up, as so much must make a whole step.
                (1000.0 / steps as f64).ceil() / 1000.0
            ))
        })
    }

    /// The shape of what is drawn.
    pub(crate) fn facts(
        &self,
        model: Option<&ModelFacts>,
        latent: Option<LatentFacts>,
        picture: Linked,
    ) -> Option<LatentFacts> {
        if let Some(latent) = latent {
            let batch = match self.strength {
                Some(_) => self.batch.unwrap_or(latent.batch),
                None => latent.batch,
            };
            return Some(LatentFacts { batch, ..latent });
        }
        if picture.is {
            let facts = picture.facts?;
            let batch = self.batch.unwrap_or(facts.batch);
            return Some(LatentFacts { batch, ..facts });
        }
        let model = model?;
        let size = Size::of(model, self.width, self.height);
        Some(LatentFacts {
            batch: self.batch.unwrap_or(1),
            channels: model.latent_channels,
            height: size.height / model.factor,
            width: size.width / model.factor,
        })
    }

    /// What is known of the trajectory.
    pub(crate) fn trajectory(
        &self,
        model: Option<&ModelFacts>,
        latent: Option<LatentFacts>,
        picture: Linked,
    ) -> Option<TrajectoryFacts> {
        let shape = self.facts(model, latent, picture)?;
        let schedule = self.schedule(model?).ok()?;
        Some(TrajectoryFacts::by(shape, schedule))
    }

    /// A picture is drawn over that is all noise at first: an inpainting of strength 1, as in diffusers.
    fn begins_with_noise(&self, mask: bool) -> bool {
        mask && self.strength.is_some_and(|s| s.share() >= 1.0)
    }

    /// The steps of a plain sampler, each drawn as `drawn` says, and the keys of what it gives.
    // Long: one list of keys, in the order of the run.
    pub(crate) fn keys(
        &self,
        upstream: &Upstream<'_>,
        model: &ModelFacts,
        drawn: impl Fn(usize) -> StepProvenance,
    ) -> Option<Chained> {
        let beside = upstream.link("picture");
        let linked = Linked {
            is: beside.is_some(),
            facts: upstream.facts("picture"),
        };
        let of = self.trajectory(Some(model), upstream.facts("latent"), linked)?;
        let sampler = Sampler::new(&model.scheduler, self.schedule(model).ok()?).ok()?;
        let seed = self.seed.map(Seed::get);
        let shape = [of.batch, of.channels, of.height, of.width];
        let noise = seed.map(|seed| chain::noise(seed, shape));
        let picture = upstream
            .link("latent")
            .map(|latent| chain::state_of(latent, 0));
        let mask = upstream.link("mask").map(|mask| chain::state_of(mask, 0));
        let scaled = |state| chain::scaled(state, sampler.start_scale());
        let start = match (picture, self.strength) {
            (Some(picture), Some(_)) if !self.begins_with_noise(mask.is_some()) => {
                chain::noised(&picture, &noise?, sampler.level(0))
            }
            (Some(latent), None) => scaled(latent),
            _ => scaled(noise?),
        };
        let shown = match (model.shown(), beside) {
            (Shown::Nothing, _) | (_, None) => None,
            (Shown::Masked, Some(link)) => {
                Some(chain::shown(&chain::state_of(link, 0), mask.as_ref()))
            }
            (Shown::Picture, Some(link)) => Some(chain::shown(&chain::state_of(link, 0), None)),
        };
        let inpaint = match mask {
            Some(mask) if model.shown() != Shown::Masked => {
                Some(chain::inpaint(&picture?, &noise?, &mask))
            }
            _ => None,
        };
        let moves = Moves {
            sampler: &sampler,
            seed,
            inpaint: inpaint.as_ref(),
        };
        let drawn: Vec<StepProvenance> = (0..sampler.steps()).map(drawn).collect();
        let (mut states, mut plain, mut calls) = (vec![start], Vec::new(), HashMap::new());
        let (mut kept, mut pasts) = (Vec::new(), HashMap::new());
        for (k, drawn) in drawn.iter().enumerate() {
            let draw = Draw {
                model: &drawn.model,
                prompt: &drawn.prompt,
                negative: &drawn.negative,
                guidance: self.guidance,
                rescale: self.rescale,
                numerics: upstream.numerics,
                blank_is_zero: model.blank_is_zero,
                beside: shown
                    .as_ref()
                    .map(|shown| (shown, shown::guidance(model, self.image_guidance))),
            };
            let before = *states.last()?;
            let timestep = sampler.timestep(k);
            let evaluations = sampler.evaluations(k);
            plain.push(chain::plain_step(
                draw,
                &before,
                timestep,
                evaluations,
                of.batch,
            ));
            for half in draw.halves() {
                let call = draw.call(&before, timestep, *half);
                calls.insert((Branch::Plain, *half, k), call);
            }
            let after = draw.plain(&before, &moves, k);
            let mut entries = vec![after];
            if sampler.remembers(k + 1) {
                let past = chain::past(&after);
                pasts.insert(k + 1, past);
                entries.push(past);
            }
            states.push(after);
            kept.push(entries);
        }
        let class = chain::class(&drawn.last()?.model, &of);
        let trajectory = Arc::new(TrajectoryNote {
            states: states.clone(),
            drawn: drawn.into_iter().map(Some).collect(),
            facts: of,
        });
        Some(Chained {
            ports: vec![
                ("latent", *states.last()?),
                ("trajectory", trajectory.key()),
            ],
            chain: Some(Chain {
                first: 0,
                steps: plain,
                states: kept,
                looks: None,
                extra: 0,
                class,
            }),
            note: Some(Arc::new(SamplerNote {
                trajectory,
                states,
                pasts,
                maps: HashMap::new(),
                calls,
                fills: false,
                model: Arc::new(model.clone()),
                swap: None,
            })),
            calls: 0,
        })
    }

    /// The starting latent, the scheduler, and what stays of a picture.
    pub(crate) fn begin(
        &self,
        model: &Checkpoint,
        latent: Option<&Latent>,
        mask: Option<&Mask>,
        picture: Option<&Latent>,
    ) -> Result<Begun, NodeError> {
        let linked = Linked {
            is: picture.is_some(),
            facts: picture.map(Latent::facts),
        };
        let facts = model.description().facts();
        let sampler = Sampler::new(&facts.scheduler, self.schedule(&facts)?)?;
        let seed = self.seed.map(Seed::get);
        let noise = |shape| -> Result<Tensor, NodeError> {
            let seed =
                seed.ok_or_else(|| NodeError::failed("a sampler needs a seed or a latent"))?;
            Ok(starting_noise(seed, shape, model.device())?)
        };
        let scaled = |z: Tensor| match sampler.start_scale() {
            1.0 => Ok(z),
            scale => (z * scale).map_err(tensor_error),
        };
        let (start, inpaint) = match (latent, self.strength) {
            (None, _) => {
                let shape = self
                    .facts(Some(&facts), None, linked)
                    .ok_or_else(|| NodeError::failed("the size of the picture is not known"))?;
                let shape = (shape.batch, shape.channels, shape.height, shape.width);
                (scaled(noise(shape)?)?, None)
            }
            (Some(latent), None) => (scaled(latent.tensor.clone())?, None),
            (Some(latent), Some(_)) => {
                let (pictures, c, h, w) = latent.tensor.dims4().map_err(tensor_error)?;
                let batch = self.batch.unwrap_or(pictures);
                let picture = match pictures {
                    1 => latent
                        .tensor
                        .repeat((batch, 1, 1, 1))
                        .map_err(tensor_error)?,
                    _ if pictures == batch => latent.tensor.clone(),
                    _ => {
                        return Err(NodeError::failed(format!(
                            "{pictures} pictures for a batch of {batch}"
                        ))
                        .help("link one picture for all, or one for each"));
                    }
                };
                let noise = noise((batch, c, h, w))?;
                let start = if self.begins_with_noise(mask.is_some()) {
                    scaled(noise.clone())?
                } else {
                    sampler.noised(&picture, &noise, 0)?
                };
                let inpaint = match mask.filter(|_| facts.shown() != Shown::Masked) {
                    Some(mask) => Some(Inpaint {
                        mask: on_latent(mask, (h, w), batch)?
                            .to_device(model.device())
                            .map_err(tensor_error)?,
                        picture,
                        noise,
                    }),
                    None => None,
                };
                (start, inpaint)
            }
        };
        let drawn = Latent {
            tensor: start.clone(),
        };
        let beside = shown::beside(model, picture, mask, drawn.facts(), self.image_guidance)?;
        Ok(Begun {
            is_noise: latent.is_none() || self.begins_with_noise(mask.is_some()),
            beside,
            sampler,
            start,
            seed,
            inpaint,
            guidance: self.guidance,
            rescale: self.rescale,
        })
    }
}

/// A batch of masks that is neither one for all pictures nor one for each.
pub(crate) fn mask_batch_fault(masks: usize, batch: usize) -> Option<Fault> {
    (masks != 1 && masks != batch).then(|| {
        Fault::mismatch(
            "mask",
            format!("`mask` is a batch of {masks} masks for {batch} pictures"),
        )
        .help("give one mask for all, or one for each picture")
    })
}

/// A pixel mask, cropped as its picture is and averaged by area, on a latent's grid: `[B or 1, 1, h, w]`.
fn on_latent(mask: &Mask, (h, w): (usize, usize), batch: usize) -> Result<Tensor, NodeError> {
    if let Some(fault) = mask_batch_fault(mask.batch(), batch) {
        return Err(failed(fault));
    }
    let mask = mask.crop_to_aspect(w, h)?.area_average(h, w)?;
    mask.plane.unsqueeze(1).map_err(tensor_error)
}
