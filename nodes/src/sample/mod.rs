//! Nodes that draw.

#[allow(clippy::module_inception)] // one file a node, of the node's name
pub mod sample;
pub mod step_blend_sample;

pub use sample::Sample;
pub use step_blend_sample::StepBlendSample;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use retouch_graph::{Chain, Chained, Fault, NodeError, Upstream};

use crate::chain::{self, Draw, SamplerNote, TrajectoryNote};
use crate::diffusion::Error;
use crate::diffusion::checkpoint::{Checkpoint, ModelFacts};
use crate::diffusion::control::Branch;
use crate::diffusion::noise::starting_noise;
use crate::diffusion::prompt::Syntax;
use crate::diffusion::sampling::Drawn;
use crate::diffusion::scheduler::Ddim;
use crate::fields::Seed;
use crate::payload::{Latent, LatentFacts, TrajectoryFacts};

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
    let error = Ddim::new(&model.scheduler, steps).err()?;
    let most = (1..=model.scheduler.num_train_timesteps)
        .rev()
        .find(|&most| Ddim::new(&model.scheduler, most).is_ok());
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
                let fault = Fault::value(*name, message);
                Some(match help {
                    Some(help) => fault.help(help),
                    None => fault,
                })
            }
            other => Some(Fault::value(*name, other.to_string())),
        })
        .collect()
}

/// Guidance that makes no sense.
pub(crate) fn guidance_fault(guidance: f64) -> Option<Fault> {
    (!(guidance.is_finite() && (0.0..=100.0).contains(&guidance))).then(|| {
        Fault::value(
            "guidance",
            format!("guidance is {guidance}; expected a number from 0 to 100"),
        )
        .help("1 is no guidance; Stable Diffusion likes about 7.5, the demo model 3 to 4")
    })
}

/// What a sampler starts from: parameters of `sample` and `step_blend_sample`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub seed: Option<Seed>,
    pub batch: Option<usize>,
    pub width: Option<usize>,
    pub height: Option<usize>,
}

impl Start {
    /// Faults of the parameters, `latent` being linked or not.
    pub(crate) fn faults(&self, model: Option<&ModelFacts>, latent: bool) -> Vec<Fault> {
        let mut faults = Vec::new();
        if latent {
            let given = [
                ("seed", self.seed.is_some()),
                ("batch", self.batch.is_some()),
                ("width", self.width.is_some()),
                ("height", self.height.is_some()),
            ];
            faults.extend(
                given
                    .into_iter()
                    .filter(|(_, given)| *given)
                    .map(|(name, _)| {
                        Fault::value(
                            name,
                            format!(
                                "`{name}` has no effect: the starting noise is the linked `latent`"
                            ),
                        )
                        .help(format!("remove `{name}` or `latent`"))
                    }),
            );
            return faults;
        }
        if self.seed.is_none() {
            let mut fault = Fault::value(
                "seed",
                "`seed` is missing: the starting noise comes from it",
            )
            .help("give `seed: 42`, or link a `latent` to start from");
            fault.field = None;
            faults.push(fault);
        }
        if let Some(batch) = self.batch
            && !(1..=MAX_BATCH).contains(&batch)
        {
            faults.push(
                Fault::value(
                    "batch",
                    format!("batch is {batch}; expected 1 to {MAX_BATCH}"),
                )
                .help("image i of a batch has the seed `seed + i`"),
            );
        }
        if let Some(model) = model {
            faults.extend(size_faults(model, self.width, self.height));
        }
        faults
    }

    /// The shape of what is drawn.
    pub(crate) fn facts(
        &self,
        model: Option<&ModelFacts>,
        latent: Option<LatentFacts>,
    ) -> Option<LatentFacts> {
        if latent.is_some() {
            return latent;
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

    /// The steps of a plain sampler, each drawn as `drawn` says, and the keys of what it gives.
    pub(crate) fn keys(
        &self,
        upstream: &Upstream<'_>,
        model: &ModelFacts,
        steps: usize,
        guidance: f64,
        drawn: Vec<Drawn>,
    ) -> Option<Chained> {
        let shape = self.facts(Some(model), upstream.facts("latent"))?;
        let of = TrajectoryFacts::of(shape, steps);
        let ddim = Ddim::new(&model.scheduler, steps).ok()?;
        let start = match upstream.link("latent") {
            Some(latent) => chain::state_of(latent, 0),
            None => chain::noise(
                self.seed?.get(),
                [shape.batch, shape.channels, shape.height, shape.width],
            ),
        };
        let (mut states, mut plain, mut calls) = (vec![start], Vec::new(), HashMap::new());
        for (k, drawn) in drawn.iter().enumerate() {
            let draw = Draw {
                model: &drawn.model,
                prompt: &drawn.prompt,
                negative: &drawn.negative,
                guidance,
                numerics: upstream.numerics,
            };
            let before = *states.last()?;
            plain.push(chain::plain_step(draw, &before, &ddim, k, shape.batch));
            for half in draw.halves() {
                let call = draw.call(&before, &ddim, k, *half);
                calls.insert((Branch::Plain, *half, k), call);
            }
            states.push(draw.step(&before, &ddim, k, None));
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
                states: states[1..].iter().map(|state| vec![*state]).collect(),
                looks: None,
                extra: 0,
                class,
            }),
            note: Some(Arc::new(SamplerNote {
                trajectory,
                states,
                maps: HashMap::new(),
                calls,
                fills: false,
            })),
            calls: 0,
        })
    }

    /// The starting noise `[B, C, h, w]`.
    pub(crate) fn noise(
        &self,
        model: &Checkpoint,
        latent: Option<&Latent>,
    ) -> Result<Tensor, NodeError> {
        if let Some(latent) = latent {
            return Ok(latent.tensor.clone());
        }
        let facts = self
            .facts(Some(&model.description().facts()), None)
            .ok_or_else(|| NodeError::failed("the size of the picture is not known"))?;
        let seed = self
            .seed
            .ok_or_else(|| NodeError::failed("a sampler needs a seed or a latent"))?;
        let shape = (facts.batch, facts.channels, facts.height, facts.width);
        Ok(starting_noise(seed.get(), shape, model.device())?)
    }
}
