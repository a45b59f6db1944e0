//! `step_blend_sample`.

use std::sync::Arc;

use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, Types, Upstream, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::{SchedulerField, is_zero};
use super::{Linked, Scheduling, Start, plain_fault, prompt_faults, prompt_warnings};
use crate::chain::{self, CacheStore};
use crate::fields::{Seed, Steps, Template};
use crate::latent::channel_fault;
use crate::payload::{Latent, LatentFacts, Model, Trajectory};
use crate::preview::Previews;
use crate::runtime::Reports;
use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_diffusion::sampling::scheduler::Spacing;
use retouch_diffusion::sampling::solver::Sigmas;
use retouch_diffusion::sampling::{Prompted, StepProvenance, step_blend_sample};

/// Draws the layout, stage 1: the vanilla model the first steps, and with them the layout, the personalised model the rest.
///
/// `blend_steps` (the paper's lambda1) is where the one hands over to the other: 0 is plain personalised sampling, T
/// plain vanilla sampling, bit for bit. Each model encodes its own prompt with its own text encoder.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepBlendSample {
    /// What the vanilla model draws: the prompt without the subject's identifier, "a teddy bear on a beach".
    pub vanilla_prompt: Template,
    /// What the personalised model draws: the prompt with it, "a sks teddy bear on a beach".
    pub personalized_prompt: Template,
    /// What neither should draw.
    #[serde(default)]
    pub negative: Template,
    /// Steps drawn by the vanilla model: a number, or a share of `steps` such as `20%`.
    #[serde(default = "blend_steps")]
    pub blend_steps: Steps,
    /// T, the number of steps.
    #[serde(default = "fifty")]
    pub steps: usize,
    /// How much the prompts count: u + g (c - u). 1 is no guidance and costs half.
    #[serde(default = "guidance")]
    pub guidance: f64,
    /// Guidance rescale (Lin et al. 2023): how much of the guided output gets back the deviation of the prompt's own, 0 to
    /// 1. Default: 0, none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub guidance_rescale: f64,
    /// The scheduler: one of those of `sample`, by default `ddim`, or `checkpoint` for the one of the personalised model's
    /// scheduler_config.json. Stage 2 takes contexts of `ddim` alone.
    #[serde(default, skip_serializing_if = "SchedulerField::is_default")]
    pub scheduler: SchedulerField,
    /// With `ddim`: the noise that each step adds, from 0 (default, none) to 1 (as much as DDPM).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub eta: f64,
    /// Whether the sigmas are Karras', as in `sample`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub karras: Option<bool>,
    /// The sigmas of the steps, as in `sample`. Default: as the checkpoint has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigmas: Option<Sigmas>,
    /// How `steps` are laid over the timesteps of the training: `leading`, `trailing` or `linspace`, as in `sample`. Default:
    /// the personalised model's `timestep_spacing`; stage 2 takes contexts with that alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    /// The seed of the starting noise and of the noise of steps; image i of a batch has `seed + i`.
    #[serde(default)]
    pub seed: Option<Seed>,
    /// Pictures to draw at once. Default: 1.
    #[serde(default)]
    pub batch: Option<usize>,
    /// Width in pixels. Default: the model's own size.
    #[serde(default)]
    pub width: Option<usize>,
    /// Height in pixels. Default: the model's own size.
    #[serde(default)]
    pub height: Option<usize>,
}

fn blend_steps() -> Steps {
    Steps::Percent(20.0)
}
fn fifty() -> usize {
    50
}
fn guidance() -> f64 {
    7.5
}

ports! {
    /// What `step_blend_sample` takes.
    pub struct Inputs {
        /// The base model.
        pub vanilla: Arc<Model>,
        /// The model that knows the subject.
        pub personalized: Arc<Model>,
        /// The starting noise, in place of seed, batch and size.
        pub latent: Option<Arc<Latent>>,
    }
}

ports! {
    /// What `step_blend_sample` gives.
    pub struct Outputs {
        /// The finished latent.
        pub latent: Arc<Latent>,
        /// Every latent on the way, and what drew each step: the context of stage 2.
        pub trajectory: Arc<Trajectory>,
    }
}

impl StepBlendSample {
    fn keys(&self, upstream: &Upstream<'_>) -> Option<Chained> {
        let (vanilla, _) = chain::model(upstream, "vanilla")?;
        let (personalized, facts) = chain::model(upstream, "personalized")?;
        let blend_steps = self.blend_steps.resolve(self.steps);
        self.start().keys(upstream, &facts, |k| {
            self.drawn(k, blend_steps, &vanilla, &personalized)
        })
    }

    fn drawn(
        &self,
        k: usize,
        blend_steps: usize,
        vanilla: &str,
        personalized: &str,
    ) -> StepProvenance {
        let by_vanilla = k < blend_steps;
        let (model, prompt) = if by_vanilla {
            (vanilla, &self.vanilla_prompt)
        } else {
            (personalized, &self.personalized_prompt)
        };
        StepProvenance {
            model: model.to_owned(),
            vanilla: by_vanilla,
            prompt: prompt.to_string(),
            negative: self.negative.to_string(),
        }
    }

    pub(crate) fn start(&self) -> Start {
        Start {
            seed: self.seed,
            batch: self.batch,
            width: self.width,
            height: self.height,
            strength: None,
            scheduling: Scheduling {
                scheduler: self.scheduler,
                eta: self.eta,
                karras: self.karras,
                sigmas: self.sigmas,
                spacing: self.spacing,
                steps: self.steps,
            },
            guidance: self.guidance,
            rescale: self.guidance_rescale,
            image_guidance: None,
        }
    }
}

impl Node for StepBlendSample {
    const OP: &'static str = "step_blend_sample";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let vanilla: Option<ModelFacts> = inputs.facts("vanilla");
        let personalized: Option<ModelFacts> = inputs.facts("personalized");
        let latent: Option<LatentFacts> = inputs.facts("latent");
        // What follows would only say what such a model lacks.
        for (port, model) in [("vanilla", &vanilla), ("personalized", &personalized)] {
            if let Some(fault) = plain_fault(model.as_ref(), port, Self::OP) {
                return Err(vec![fault]);
            }
        }
        let mut faults = self.start().faults(
            personalized.as_ref(),
            inputs.is_linked("latent"),
            false,
            latent.as_ref(),
            Linked::default(),
        );
        if let (Some(vanilla), Some(personalized)) = (&vanilla, &personalized)
            && let Some(misfit) = vanilla.misfit(personalized)
        {
            faults.push(
                Fault::mismatch(
                    "personalized",
                    format!("the two models cannot share a run: {misfit}"),
                )
                .help("a personalised model must come from the vanilla one: same latents, same U-Net shape, same schedule"),
            );
        }
        faults.extend(prompt_faults(
            vanilla.as_ref(),
            &[
                ("vanilla_prompt", &self.vanilla_prompt),
                ("negative", &self.negative),
            ],
        ));
        faults.extend(prompt_faults(
            personalized.as_ref(),
            &[("personalized_prompt", &self.personalized_prompt)],
        ));
        if let (Some(model), Some(latent)) = (&personalized, &latent) {
            faults.extend(channel_fault(model, latent.channels, "latent"));
        }
        if self.blend_steps.resolve(self.steps) > self.steps {
            faults.push(
                Fault::value(
                    "blend_steps",
                    format!("{} blend steps of {} steps", self.blend_steps, self.steps),
                )
                .help(format!(
                    "give 0 to {}, or a share such as `20%`",
                    self.steps
                )),
            );
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        // A model that draws no step encodes nothing.
        let blend_steps = self.blend_steps.resolve(self.steps);
        let vanilla = vanilla.filter(|_| blend_steps > 0);
        let drawing = personalized.as_ref().filter(|_| blend_steps < self.steps);
        let mut warnings = prompt_warnings(
            vanilla.as_ref(),
            &[("vanilla_prompt", &self.vanilla_prompt)],
            files,
        );
        warnings.extend(prompt_warnings(
            drawing,
            &[("personalized_prompt", &self.personalized_prompt)],
            files,
        ));
        // Both read it; what either leaves out is told once.
        let negative = [("negative", self.negative.as_str())];
        let by_vanilla = prompt_warnings(vanilla.as_ref(), &negative, files);
        let by_both = prompt_warnings(drawing, &negative, files)
            .into_iter()
            .filter(|warning| !by_vanilla.contains(warning));
        warnings.extend(by_both.collect::<Vec<_>>());
        warnings.extend(by_vanilla);
        let types = Types::unknown().warn(warnings);
        Ok(
            match self
                .start()
                .trajectory(personalized.as_ref(), latent, Linked::default())
            {
                Some(facts) => types
                    .with("latent", &facts.latent())
                    .with("trajectory", &facts),
                None => types,
            },
        )
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        self.keys(upstream).unwrap_or_default()
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let reports = Reports(context);
        let (vanilla, personalized) = (&inputs.vanilla.checkpoint, &inputs.personalized.checkpoint);
        let begun = self
            .start()
            .begin(personalized, inputs.latent.as_deref(), None, None)?;
        begun.warn(&personalized.description().facts(), &reports);
        let blend_steps = self.blend_steps.resolve(self.steps);
        let prompted = |model, prompt| Prompted::new(model, prompt, &self.negative, &reports);
        let first = prompted(vanilla, &self.vanilla_prompt);
        let second = prompted(personalized, &self.personalized_prompt);
        let latents = step_blend_sample(
            &first,
            &second,
            &begun.start,
            blend_steps,
            &begun.drawing(),
            &Previews::new(&reports, personalized),
            &CacheStore::new(context),
        )?;
        let drawn = (0..self.steps)
            .map(|k| Some(self.drawn(k, blend_steps, vanilla.id(), personalized.id())))
            .collect();
        let tensor = latents.last().unwrap_or(&begun.start).clone();
        let schedule = *begun.sampler.schedule();
        Ok(Outputs {
            latent: Arc::new(Latent { tensor }),
            trajectory: Arc::new(Trajectory {
                latents,
                drawn,
                schedule: (!schedule.is_plain()).then_some(schedule),
            }),
        })
    }
}
