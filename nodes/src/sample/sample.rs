//! `sample`.

use std::sync::Arc;

use retouch_graph::{
    Added, Chained, Context, Fault, Files, Node, NodeError, Types, Upstream, ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::{SchedulerField, Strength, is_zero};
use super::swap::{self, masks_tensor};
use super::swap_keys;
use super::swap_plan::{Sampler, swap_range, taken_over};
use super::{
    Linked, Scheduling, Start, guidance_fault, mask_batch_fault, plain_fault, prompt_faults,
    prompt_warnings, rescale_fault, steps_fault,
};
use crate::attention::Texts;
use crate::chain::{self, CacheStore};
use crate::fields::{Seed, Template};
use crate::latent::channel_fault;
use crate::payload::{
    Control, ControlFacts, ImageFacts, Latent, LatentFacts, Mask, Masks, MasksFacts, Model,
    Trajectory,
};
use crate::preview::Previews;
use crate::runtime::{Reports, check_finite, tensor_error};
use retouch_diffusion::checkpoint::model::{Checkpoint, ModelFacts};
use retouch_diffusion::sampling::scheduler::{Ddim, Spacing};
use retouch_diffusion::sampling::solver::{Schedule, Sigmas};
use retouch_diffusion::sampling::swap::{Retouch, Retouched, mask_level};
use retouch_diffusion::sampling::{Prompted, StepProvenance, step_blend_sample};

/// Draws a picture's latent from noise by a scheduler; with a `control`, stage 2: the retouch.
///
/// Without a control it is plain sampling from `seed` (or a `latent`) in `steps` steps; with a picture's `latent` and a
/// `strength` that picture is drawn over, with a `mask` only where the mask is white. With a control, the starting noise,
/// the size and the number of steps come with the control's context; the steps before its `start_step` are taken over
/// from there and the others drawn with the self-attention of the chosen sites swapped.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// What to draw.
    pub prompt: Template,
    /// What not to draw.
    #[serde(default)]
    pub negative: Template,
    /// How much the prompt counts: u + g (c - u). 1 is no guidance and costs half.
    #[serde(default = "guidance")]
    pub guidance: f64,
    /// Guidance rescale (Lin et al. 2023): how much of the guided output gets back the deviation of the prompt's own, 0 to
    /// 1. Default: 0, none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub guidance_rescale: f64,
    /// The scheduler: `ddim` (default, and the only one with a control), `euler`, `euler_ancestral`, `heun`, `lms`, `pndm`,
    /// `dpmpp_2m`, `dpmpp_3m`, `dpmpp_2m_sde`, `dpmpp_3m_sde`, `dpmpp_2s`, `dpmpp_sde`, `unipc`, `lcm`, or `checkpoint`
    /// for the one of the model's scheduler_config.json. `heun` and `dpmpp_sde` call the U-Net twice a step.
    #[serde(default, skip_serializing_if = "SchedulerField::is_default")]
    pub scheduler: SchedulerField,
    /// With `ddim`: the noise that each step adds, from 0 (default, none) to 1 (as much as DDPM).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub eta: f64,
    /// Whether the sigmas are Karras': `true` is `sigmas: karras`, `false` is `sigmas: training`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub karras: Option<bool>,
    /// The sigmas of the steps, with all schedulers but `ddim`, `euler_ancestral`, `pndm` and `lcm`: `training` (those of
    /// the timesteps), `karras`, `exponential`, `beta`, or, with the multistep DPM++, `lu`. Default: as the checkpoint
    /// has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigmas: Option<Sigmas>,
    /// How `steps` are laid over the timesteps of the training: `leading` (0, N/T, 2N/T, ... plus the offset), `trailing` (N -
    /// 1 downwards: for models made for few steps, such as Turbo, Lightning and LCM) or `linspace` (from N - 1 to 0).
    /// Default: the checkpoint's `timestep_spacing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    /// With `latent`, which is then a picture: how much of it is drawn anew, `60%` or 0.6. So many of the steps are made,
    /// the last ones, and the trajectory has those alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<Strength>,
    /// T, the number of steps. Default: 50, or the control's.
    #[serde(default)]
    pub steps: Option<usize>,
    /// The seed of the starting noise and of the noise of steps; image i of a batch has `seed + i`.
    #[serde(default)]
    pub seed: Option<Seed>,
    /// Pictures to draw at once. Default: 1, or the control's.
    #[serde(default)]
    pub batch: Option<usize>,
    /// Of an image-editing model (InstructPix2Pix): how much its `picture` counts, beside the prompt. 1 is no guidance by the
    /// picture and saves a call in three. Default: 1.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_guidance: Option<f64>,
    /// Width in pixels. Default: the model's own size, or the control's.
    #[serde(default)]
    pub width: Option<usize>,
    /// Height in pixels. Default: the model's own size, or the control's.
    #[serde(default)]
    pub height: Option<usize>,
}

/// T when nothing else is said.
const DEFAULT_STEPS: usize = 50;

fn guidance() -> f64 {
    7.5
}

ports! {
    /// What `sample` takes.
    pub struct Inputs {
        /// The model that draws.
        pub model: Arc<Model>,
        /// What stage 2 attends to, from `swap_attention`.
        pub control: Option<Arc<Control>>,
        /// The starting noise, in place of seed, batch and size; with `strength` the picture that is drawn over.
        pub latent: Option<Arc<Latent>>,
        /// With `strength`: where the picture is drawn anew (1, white); elsewhere it stays. Of an inpainting model: where it
        /// draws, shown to it at every step.
        pub mask: Added<Arc<Mask>>,
        /// What an inpainting model (nine channels) or an image-editing model (InstructPix2Pix, eight) is shown beside the
        /// latent: for the first what `encode_reference` with the same `mask` gives, for the other the picture's latent. The
        /// size is its size. With an inpainting model `latent` and `strength` say what it begins with; by default noise.
        pub picture: Added<Arc<Latent>>,
    }
}

ports! {
    /// What `sample` gives.
    pub struct Outputs {
        /// The finished latent.
        pub latent: Arc<Latent>,
        /// Every latent on the way.
        pub trajectory: Arc<Trajectory>,
        /// With a control that swaps: reference, context and blend mask of each step of the swap.
        pub masks: Option<Arc<Masks>>,
    }
}

impl Sample {
    pub(crate) fn start(&self) -> Start {
        Start {
            seed: self.seed,
            batch: self.batch,
            width: self.width,
            height: self.height,
            strength: self.strength,
            scheduling: self.scheduling(self.steps()),
            guidance: self.guidance,
            rescale: self.guidance_rescale,
            image_guidance: self.image_guidance,
        }
    }

    fn sampler(&self) -> Sampler<'_> {
        Sampler {
            prompt: &self.prompt,
            negative: &self.negative,
            guidance: self.guidance,
            rescale: self.guidance_rescale,
        }
    }

    /// Puts stage 2 together, to be run or to be looked at; nothing is encoded, called or drawn for that.
    ///
    /// # Errors
    /// When the control does not fit the model or itself, and what `then` gives.
    pub(crate) fn with_retouch<R>(
        &self,
        model: &Checkpoint,
        control: &Control,
        reports: &Reports<'_>,
        then: impl FnOnce(&Retouch<'_>, &Ddim) -> Result<R, NodeError>,
    ) -> Result<R, NodeError> {
        swap::with_retouch(self.sampler(), model, control, reports, then)
    }

    fn scheduling(&self, steps: usize) -> Scheduling {
        Scheduling {
            scheduler: self.scheduler,
            eta: self.eta,
            karras: self.karras,
            sigmas: self.sigmas,
            spacing: self.spacing,
            steps,
        }
    }

    fn steps(&self) -> usize {
        self.steps.unwrap_or(DEFAULT_STEPS)
    }

    /// Warnings of the prompts of a control, which are read by the model of this node and not known to be where they are
    /// written.
    fn control_warnings(&self, inputs: &Types<Inputs>, files: &dyn Files) -> Vec<Fault> {
        let (Some(model), Some(control)) = (
            inputs.facts::<ModelFacts>("model"),
            inputs.facts::<ControlFacts>("control"),
        ) else {
            return Vec::new();
        };
        let settings = &control.settings;
        let references = settings.reference_prompt.iter();
        let prompts = references.map(|prompt| ("reference_prompt", prompt)).chain(
            settings
                .context_prompt
                .iter()
                .map(|prompt| ("context_prompt", prompt)),
        );
        let warnings = prompts.flat_map(|(name, prompt)| {
            let own = prompt_warnings(Some(&model), &[("control", prompt)], files);
            own.into_iter().map(move |mut warning| {
                warning.message = format!("`{name}` of the control: {}", warning.message);
                warning
            })
        });
        warnings.collect()
    }

    /// Faults of a sampler with a control.
    // Long: one list of checks, a few lines each.
    fn control_faults(&self, inputs: &Types<Inputs>) -> Vec<Fault> {
        let mut faults = Vec::new();
        let given = [
            ("steps", self.steps.is_some()),
            ("seed", self.seed.is_some()),
            ("batch", self.batch.is_some()),
            ("width", self.width.is_some()),
            ("height", self.height.is_some()),
            ("strength", self.strength.is_some()),
            ("spacing", self.spacing.is_some()),
            ("image_guidance", self.image_guidance.is_some()),
            ("picture", inputs.is_linked("picture")),
            ("latent", inputs.is_linked("latent")),
            ("mask", inputs.is_linked("mask")),
        ];
        faults.extend(given.into_iter().filter(|(_, given)| *given).map(|(name, _)| {
            Fault::value(
                name,
                format!("`{name}` has no effect: starting noise, size and steps come with the control's context"),
            )
            .help(format!("remove `{name}`, or give it to the node that draws the context"))
        }));
        if self.eta > 0.0 {
            faults.push(
                Fault::value(
                    "eta",
                    "the swap is drawn with eta 0: the target follows its context from noise to picture",
                )
                .help("remove `eta`; the context may be drawn with one"),
            );
        } else {
            let steps = inputs
                .facts::<ControlFacts>("control")
                .and_then(|facts| Some(facts.context?.steps))
                .unwrap_or(1);
            let own = inputs.facts::<ModelFacts>("model");
            faults.extend(self.swap_scheduler_fault(own.as_ref(), steps));
        }
        let (Some(model), Some(control)) = (
            inputs.facts::<ModelFacts>("model"),
            inputs.facts::<ControlFacts>("control"),
        ) else {
            return faults;
        };
        faults.extend(plain_fault(Some(&model), "model", "swap_attention"));
        let settings = &control.settings;
        let texts = [
            settings.context_prompt.as_ref(),
            settings.subject.as_ref(),
            settings.context_subject.as_ref(),
        ];
        let own = settings.reference_subject.iter().flat_map(Texts::iter);
        let own = settings.reference_prompt.iter().chain(own);
        for text in own.chain(texts.into_iter().flatten()) {
            faults.extend(prompt_faults(Some(&model), &[("control", text)]));
        }
        if let Some(vanilla) = &control.vanilla
            && let Some(misfit) = vanilla.misfit(&model)
        {
            faults.push(
                Fault::mismatch(
                    "model",
                    format!("this model and the control's `vanilla` cannot share a run: {misfit}"),
                )
                .help("a personalised model must come from the vanilla one: same latents, same U-Net shape, same schedule"),
            );
        }
        let subject = control.settings.subject.as_deref();
        let needs_target =
            !control.masked && control.settings.blend != crate::attention::BlendField::Context;
        if let Some(subject) = subject.filter(|_| needs_target)
            && !crate::attention::mentions(&self.prompt, subject)
        {
            faults.push(
                Fault::value(
                    "prompt",
                    format!("the control's subject {subject:?} is not in this prompt"),
                )
                .help("the prompt must have the words of `subject` of the swap_attention node"),
            );
        }
        if let Err(e) = control.settings.sites.resolve(&model.sites) {
            faults.push(
                Fault::mismatch("control", e)
                    .help("see `sites` of the swap_attention node that the control comes from"),
            );
        }
        if let Some(context) = control.context {
            faults.extend(channel_fault(&model, context.channels, "control"));
            if let Some(mut fault) = steps_fault(&model, context.steps) {
                fault.field = Some("control".into());
                faults.push(fault);
            }
            let grid = control.settings.mask_grid.0;
            let size = (context.height, context.width);
            if let Err(e) = mask_level(&model.sites, size, grid) {
                faults.push(Fault::mismatch("control", e.to_string()).help(
                    "see `mask_grid` of the swap_attention node that the control comes from",
                ));
            }
        }
        faults
    }

    /// A scheduler that the swap cannot use.
    fn swap_scheduler_fault(&self, model: Option<&ModelFacts>, steps: usize) -> Option<Fault> {
        let scheduling = self.scheduling(steps);
        if scheduling.is_ddim(model) {
            return scheduling.faults(None).into_iter().next();
        }
        Some(
            Fault::value(
                "scheduler",
                "the swap works only with `ddim`: the inverted reference and the context are at the noise levels of its steps",
            )
            .help("remove `scheduler`, or give `scheduler: ddim`"),
        )
    }

    fn plain(
        &self,
        inputs: &Inputs,
        reports: &Reports<'_>,
    ) -> Result<(Retouched, Schedule), NodeError> {
        let model = &inputs.model.checkpoint;
        let begun = self.start().begin(
            model,
            inputs.latent.as_deref(),
            inputs.mask.0.as_deref(),
            inputs.picture.0.as_deref(),
        )?;
        begun.warn(&model.description().facts(), reports);
        let prompted = Prompted::new(model, &self.prompt, &self.negative, reports);
        let trajectory = step_blend_sample(
            &prompted,
            &prompted,
            &begun.start,
            0,
            &begun.drawing(),
            &Previews::new(reports, model),
            &CacheStore::new(reports.0),
        )?;
        let retouched = Retouched {
            trajectory,
            masks: Vec::new(),
        };
        Ok((retouched, *begun.sampler.schedule()))
    }

    /// The steps and keys of a plain sampler.
    fn plain_keys(&self, upstream: &Upstream<'_>) -> Option<Chained> {
        let (model, facts) = chain::model(upstream, "model")?;
        let drawn = StepProvenance {
            model,
            vanilla: false,
            prompt: self.prompt.to_string(),
            negative: self.negative.to_string(),
        };
        self.start().keys(upstream, &facts, |_| drawn.clone())
    }
}

impl Node for Sample {
    const OP: &'static str = "sample";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let model: Option<ModelFacts> = inputs.facts("model");
        let controlled = inputs.is_linked("control");
        let prompts = [
            ("prompt", self.prompt.as_str()),
            ("negative", self.negative.as_str()),
        ];
        let mut faults = prompt_faults(model.as_ref(), &prompts);
        let warnings = prompt_warnings(model.as_ref(), &prompts, files);
        if controlled {
            faults.extend(guidance_fault(self.guidance));
            faults.extend(rescale_fault(self.guidance_rescale, self.guidance));
            faults.extend(self.control_faults(inputs));
            if !faults.is_empty() {
                return Err(faults);
            }
            let mut types = Types::unknown()
                .warn(warnings)
                .warn(self.control_warnings(inputs, files));
            if let Some((facts, context)) = inputs
                .facts::<ControlFacts>("control")
                .and_then(|facts| Some((facts.context?, facts)))
                .map(|(context, facts)| (facts, context))
            {
                let range = swap_range(&facts.settings, context.steps);
                let no_sites = model
                    .and_then(|m| facts.settings.sites.resolve(&m.sites).ok())
                    .is_some_and(|sites| sites.is_empty());
                let start = facts.settings.start_step.resolve(context.steps);
                types = types
                    .with("latent", &context.latent())
                    .with("trajectory", &taken_over(context, start));
                types = if range.is_empty() || no_sites {
                    types.without(
                        "masks",
                        "the control swaps at no site and step (its `start_step` or `from_step` is not before `until_step`, or it has no sites), so there are no masks",
                    )
                } else {
                    types.with(
                        "masks",
                        &MasksFacts {
                            steps: range.len(),
                            first_step: range.start,
                        },
                    )
                };
            }
            return Ok(types);
        }
        let latent: Option<LatentFacts> = inputs.facts("latent");
        let picture = Linked {
            is: inputs.is_linked("picture"),
            facts: inputs.facts("picture"),
        };
        faults.extend(self.start().faults(
            model.as_ref(),
            inputs.is_linked("latent"),
            inputs.is_linked("mask"),
            latent.as_ref(),
            picture,
        ));
        if let (Some(model), Some(latent)) = (&model, &latent) {
            faults.extend(channel_fault(model, latent.channels, "latent"));
        }
        if let (Some(mask), Some(shape)) = (
            inputs.facts::<ImageFacts>("mask"),
            self.start().facts(None, latent, picture),
        ) {
            faults.extend(mask_batch_fault(mask.batch, shape.batch));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let types = Types::unknown().warn(warnings).without(
            "masks",
            "`sample` makes `masks` only with a `control` that swaps attention",
        );
        Ok(
            match self.start().trajectory(model.as_ref(), latent, picture) {
                Some(facts) => types
                    .with("latent", &facts.latent())
                    .with("trajectory", &facts),
                None => types,
            },
        )
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        match upstream.link("control") {
            Some(_) => swap_keys::keys(self.sampler(), upstream),
            None => self.plain_keys(upstream),
        }
        .unwrap_or_default()
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let reports = Reports(context);
        let model = &inputs.model.checkpoint;
        let own = |_| {
            Some(StepProvenance {
                model: model.id().to_owned(),
                vanilla: false,
                prompt: self.prompt.to_string(),
                negative: self.negative.to_string(),
            })
        };
        let (retouched, drawn, first_step, schedule) = match &inputs.control {
            Some(control) => {
                let steps = control.context.steps();
                let start = control.settings.start_step.resolve(steps).min(steps);
                let taken_over = control.context.drawn.iter().take(start).cloned();
                let drawn = taken_over.chain((start..steps).map(own)).collect();
                let first = swap_range(&control.settings, steps).start;
                let schedule = control.context.schedule.filter(|_| start > 0);
                let retouched = self.with_retouch(model, control, &reports, |retouch, ddim| {
                    let previews = Previews::new(&reports, model);
                    Ok(retouch.run(ddim, &previews, &CacheStore::new(context))?)
                })?;
                (retouched, drawn, first, schedule)
            }
            None => {
                let (retouched, schedule) = self.plain(&inputs, &reports)?;
                let made = schedule.steps - schedule.first;
                let drawn = (0..made).map(own).collect();
                let schedule = (!schedule.is_plain()).then_some(schedule);
                (retouched, drawn, 0, schedule)
            }
        };
        let Some(tensor) = retouched.trajectory.last().cloned() else {
            return Err(NodeError::failed("a run of no steps"));
        };
        check_finite(&tensor, "what was drawn")?;
        let masks = if retouched.masks.is_empty() {
            None
        } else {
            let images = tensor.dim(0).map_err(tensor_error)?;
            Some(Arc::new(Masks {
                tensor: masks_tensor(&retouched, images)?,
                first_step,
            }))
        };
        Ok(Outputs {
            latent: Arc::new(Latent { tensor }),
            trajectory: Arc::new(Trajectory {
                latents: retouched.trajectory,
                drawn,
                schedule,
            }),
            masks,
        })
    }
}
