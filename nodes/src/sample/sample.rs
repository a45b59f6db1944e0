//! `sample`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_graph::key::KeyHasher;
use retouch_graph::{
    Added, Chain, Chained, Context, Fault, Files, Key, Node, NodeError, Step, Types, Upstream,
    ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::{SchedulerField, Strength, is_zero};
use super::{
    Scheduling, Start, failed, guidance_fault, mask_batch_fault, prompt_faults, prompt_warnings,
    rescale_fault, steps_fault,
};
use crate::attention::{ControlNote, SwapAttention, Texts, schedule_fault};
use crate::chain::{
    self, Draw, Remembers, SamplerNote, SwapNote, TrajectoryNote, empty_prompt_field,
};
use crate::fields::{Seed, Template};
use crate::latent::channel_fault;
use crate::payload::{
    Control, ControlFacts, ImageFacts, Latent, LatentFacts, Mask, MaskOrMasks, Masks, MasksFacts,
    Model, Trajectory, TrajectoryFacts,
};
use crate::preview::Previews;
use crate::runtime::{Reports, check_finite, tensor_error};
use retouch_diffusion::checkpoint::model::{Checkpoint, ModelFacts};
use retouch_diffusion::networks::unet::grid_at;
use retouch_diffusion::prompt::conditioning::{Span, reads_chunks};
use retouch_diffusion::sampling::control::{Branch, Half};
use retouch_diffusion::sampling::masks::Plane;
use retouch_diffusion::sampling::sampler::{
    Blend, Drawn, GivenMasks, Givens, MaskGrid, Prompted, Retouch, RetouchSettings, Retouched,
    Source, SourceStep, maps_alone, mask_level, step_blend_sample,
};
use retouch_diffusion::sampling::scheduler::{Ddim, Spacing};
use retouch_diffusion::sampling::solver::{Schedule, Sigmas};

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
        /// With `strength`: where the picture is drawn anew (1, white); elsewhere it stays.
        pub mask: Added<Arc<Mask>>,
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

/// The steps of a control's swap: first and one past the last.
fn swap_range(facts: &SwapAttention, steps: usize) -> Range<usize> {
    let first = facts
        .start_step
        .resolve(steps)
        .max(facts.from_step.resolve(steps));
    let last = facts.until_step.resolve(steps).min(steps);
    first..last.max(first)
}

/// What is known of a retouch's trajectory: the context's, of which the steps before `start` are a part.
fn taken_over(context: TrajectoryFacts, start: usize) -> TrajectoryFacts {
    TrajectoryFacts {
        schedule: context.schedule.filter(|_| start > 0),
        ..context
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
        }
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
                "the swap works with `ddim` alone: the inverted reference and the context are at the noise levels of its steps",
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
        let begun =
            self.start()
                .begin(model, inputs.latent.as_deref(), inputs.mask.0.as_deref())?;
        begun.warn(&model.description().facts(), reports);
        let prompted = Prompted::new(model, &self.prompt, &self.negative, reports);
        let trajectory = step_blend_sample(
            &prompted,
            &prompted,
            &begun.start,
            0,
            &begun.drawing(),
            &Previews::new(reports, model),
            &Remembers::new(reports.0),
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
        let drawn = Drawn {
            model,
            vanilla: false,
            prompt: self.prompt.to_string(),
            negative: self.negative.to_string(),
        };
        self.start().keys(upstream, &facts, |_| drawn.clone())
    }

    /// The steps and keys of stage 2.
    fn retouch_keys(&self, upstream: &Upstream<'_>) -> Option<Chained> {
        let (id, facts) = chain::model(upstream, "model")?;
        let control = upstream.link("control")?.note::<ControlNote>()?;
        let (context, references) = (&control.context, &control.references);
        let steps = context.facts.steps;
        if references.is_empty() || references.iter().any(|r| r.facts.steps != steps) {
            return None;
        }
        let ddim = Ddim::new(&facts.scheduler, steps).ok()?;
        let sides = |of: &TrajectoryFacts| (of.height, of.width);
        let settings = resolved(
            &control.settings,
            &facts,
            steps,
            sides(&context.facts),
            &references
                .iter()
                .map(|reference| sides(&reference.facts))
                .collect::<Vec<_>>(),
            (self.guidance, self.guidance_rescale),
        )
        .ok()?;
        let target = Draw {
            model: &id,
            prompt: &self.prompt,
            negative: &self.negative,
            guidance: self.guidance,
            rescale: self.guidance_rescale,
            numerics: upstream.numerics,
            blank_is_zero: facts.blank_is_zero,
        };
        let swaps = !settings.sites.is_empty() && !swap_range(&control.settings, steps).is_empty();
        let context_subject = subject_of(&control.settings, &control.settings.context_subject);
        let given = Givens {
            reference: !control.reference_masks.is_empty(),
            context: control.context_mask.is_some(),
            blend: control.blend_mask.is_some(),
            fills: control.fills,
            context_subject: swaps && control.context_mask.is_none() && context_subject.is_some(),
        };
        let start = settings.start_step.min(steps);
        let mut states = context.states.get(..=start)?.to_vec();
        let (mut made, mut kept) = (Vec::new(), Vec::new());
        let (mut maps, mut calls) = (HashMap::new(), HashMap::new());
        for k in start..steps {
            let needs = settings.needs(k, steps, given);
            let timestep = ddim.timesteps()[k] as f32;
            let mut step = Step {
                calls: (target.halves().len() * context.facts.batch) as u64,
                ..Step::default()
            };
            let mut hasher = KeyHasher::new("retouch/control/1");
            if needs.lock || needs.swap {
                for site in &settings.sites {
                    hasher.field("site", &(*site as u64).to_le_bytes());
                }
                // Who draws the context's step; nobody knows before a file is read, but it says so itself.
                let drawer = self.context_drawer(k, &id, &control)?;
                for half in target.halves() {
                    let call = match &drawer {
                        Some((model, prompt, negative)) => Draw {
                            model,
                            prompt,
                            negative,
                            ..target
                        }
                        .call(&context.states[k], timestep, *half),
                        None => opaque_call(
                            &context.states[k],
                            &ddim,
                            k,
                            *half,
                            &id,
                            &control,
                            self.guidance != 1.0,
                            facts.blank_is_zero,
                        ),
                    };
                    hasher.field("context", &call.0);
                    calls.insert((Branch::Context, *half, k), call);
                    let of = &context.facts;
                    step.needs
                        .extend(chain::need(call, *half, &needs.context, &facts, of));
                    let looks = maps_alone(&needs.context);
                    step.looks
                        .extend(chain::need(call, *half, &looks, &facts, of));
                }
            }
            if needs.swap {
                for (index, (reference, parts)) in
                    references.iter().zip(&needs.references).enumerate()
                {
                    let draw = Draw {
                        prompt: control.settings.reference_prompt.at(index),
                        negative: "",
                        ..target
                    };
                    for half in target.halves() {
                        let call = draw.call(&reference.states[k], timestep, *half);
                        hasher.field("reference", &call.0);
                        calls.insert((Branch::Reference(index), *half, k), call);
                        let of = &reference.facts;
                        step.needs
                            .extend(chain::need(call, *half, parts, &facts, of));
                        let looks = maps_alone(parts);
                        step.looks
                            .extend(chain::need(call, *half, &looks, &facts, of));
                    }
                }
                hasher.field("queries", &[u8::from(needs.context_queries)]);
                mask_rules(&mut hasher, &control, &settings, k == start);
            }
            let before = *states.last()?;
            let control = (needs.lock || needs.swap).then(|| hasher.finish());
            let after = target.step(&before, &ddim, k, control.as_ref());
            let mut entries = vec![after];
            if needs.target_map {
                let map = chain::map_key(&after, settings.mask_levels.0);
                maps.insert(k, map);
                entries.push(map);
            }
            states.push(after);
            made.push(step);
            kept.push(entries);
        }
        let own = Drawn {
            model: id.clone(),
            vanilla: false,
            prompt: self.prompt.to_string(),
            negative: self.negative.to_string(),
        };
        // What drew the steps of a file is unknown until it is read, what draws these is not.
        let drawn = context
            .drawn
            .iter()
            .take(start)
            .cloned()
            .chain(std::iter::repeat_n(Some(own), steps - start))
            .collect();
        let trajectory = Arc::new(TrajectoryNote {
            states: states.clone(),
            drawn,
            facts: taken_over(context.facts, start),
        });
        let key = trajectory.key();
        let mut ports = vec![("latent", *states.last()?), ("trajectory", key)];
        let prompts = (0..references.len())
            .map(|index| -> &str { control.settings.reference_prompt.at(index) });
        let drawn = trajectory.drawn.iter().flatten();
        if facts.blank_is_zero
            && prompts
                .chain(drawn.map(|drawn| drawn.prompt.as_str()))
                .any(str::is_empty)
        {
            ports.push(("masks", chain::beside_blank(upstream, &key, "masks")));
        }
        Some(Chained {
            ports,
            chain: Some(Chain {
                first: start,
                steps: made,
                states: kept,
                looks: Some("masks"),
                extra: 0,
                class: chain::class(&id, &context.facts),
            }),
            note: Some(Arc::new(SamplerNote {
                trajectory,
                states,
                pasts: HashMap::new(),
                maps,
                calls,
                fills: control.fills,
                model: Arc::new(facts),
                swap: Some(SwapNote {
                    steps: if swaps {
                        swap_range(&control.settings, steps)
                    } else {
                        0..0
                    },
                    references: references.len(),
                    settings,
                }),
            })),
            calls: 0,
        })
    }

    /// The model and prompts that run the context's step k; `Some(None)` when only the trajectory itself will tell, `None`
    /// when the run will refuse it.
    #[allow(clippy::option_option)]
    fn context_drawer(
        &self,
        k: usize,
        id: &str,
        control: &ControlNote,
    ) -> Option<Option<(String, String, String)>> {
        let Some(drawn) = control.context.drawn.get(k)? else {
            return Some(None);
        };
        let prompt = control.settings.context_prompt.as_deref();
        let vanilla = control.vanilla.as_deref();
        let who = who_draws(k, id, vanilla, prompt, Some(drawn)).ok()?;
        let model = if who.by_vanilla { vanilla? } else { id };
        Some(Some((model.to_owned(), who.prompt, who.negative)))
    }

    fn retouch(
        &self,
        model: &Checkpoint,
        control: &Control,
        reports: &Reports<'_>,
    ) -> Result<Retouched, NodeError> {
        self.with_retouch(model, control, reports, |retouch, ddim| {
            let previews = Previews::new(reports, model);
            Ok(retouch.run(ddim, &previews, &Remembers::new(reports.0))?)
        })
    }

    /// Puts stage 2 together, to be run or to be looked at; nothing is encoded, called or drawn for that.
    pub(crate) fn with_retouch<R>(
        &self,
        model: &Checkpoint,
        control: &Control,
        reports: &Reports<'_>,
        then: impl FnOnce(&Retouch<'_>, &Ddim) -> Result<R, NodeError>,
    ) -> Result<R, NodeError> {
        let settings = &control.settings;
        let facts = model.description().facts();
        let steps = control.context.steps();
        let ddim = Ddim::new(&model.description().scheduler, steps)?;
        let context = ("context", "the context".to_owned(), &control.context);
        let references = control.references.iter().enumerate();
        let references =
            references.map(|(index, of)| ("reference", format!("reference {}", index + 1), of));
        for (port, name, trajectory) in std::iter::once(context).chain(references) {
            if let Some(fault) = schedule_fault(port, &name, trajectory.schedule) {
                return Err(failed(fault));
            }
            if trajectory.steps() != steps {
                return Err(NodeError::failed(format!(
                    "{name} has {} steps, the context {steps}",
                    trajectory.steps()
                ))
                .help("give both the same `steps`"));
            }
        }
        let count = control.references.len();
        if count == 0 {
            return Err(NodeError::failed("the control has no reference"));
        }
        let shape = |trajectory: &Trajectory| -> Result<(usize, usize), NodeError> {
            let z = trajectory
                .latents
                .first()
                .ok_or_else(|| NodeError::failed("an empty trajectory"))?;
            let (_, c, h, w) = z.dims4().map_err(tensor_error)?;
            if c == facts.latent_channels {
                Ok((h, w))
            } else {
                Err(NodeError::failed(format!(
                    "a trajectory of {c} channels for a model that works on {}",
                    facts.latent_channels
                )))
            }
        };
        let target = shape(&control.context)?;
        let reference_sizes = control
            .references
            .iter()
            .map(|reference| shape(reference))
            .collect::<Result<Vec<_>, _>>()?;
        let guidance = (self.guidance, self.guidance_rescale);
        let numbers = resolved(settings, &facts, steps, target, &reference_sizes, guidance)
            .map_err(NodeError::failed)?;
        let sites = &numbers.sites;
        let (level, reference_levels) = &numbers.mask_levels;
        let level = *level;
        let start = settings.start_step.resolve(steps);
        let swap = swap_range(settings, steps);
        let lock_ends = settings
            .from_step
            .resolve(steps)
            .min(settings.until_step.resolve(steps));
        let locks = settings.lock && start < lock_ends;
        let acts = !sites.is_empty() && (locks || !swap.is_empty());
        if !acts {
            reports.0.warn(
                "the control has no site and step to act on: the picture is drawn as without it from `start_step` on",
            );
        }
        let swaps = !sites.is_empty() && !swap.is_empty();
        let images = control.context.latents[0].dim(0).map_err(tensor_error)?;
        let checked = |name: &str, mut mask: Option<GivenMasks>, wanted: usize| {
            // The masks of a batch that was drawn from one reference hold its mask once for each picture.
            if let Some(mask) = mask.as_mut().filter(|_| wanted == 1) {
                mask.merge_equal();
            }
            let count = mask.as_ref().map_or(1, |mask| mask.at(0).len());
            if count != 1 && count != wanted {
                return Err(NodeError::failed(format!(
                    "`{name}` is a batch of {count} masks for {wanted} pictures"
                ))
                .help("give one mask for all, or one for each picture"));
            }
            Ok(mask)
        };
        let mut reference_masks = Vec::new();
        for (index, reference) in control.references.iter().enumerate() {
            let references = reference.latents[0].dim(0).map_err(tensor_error)?;
            let link = match control.reference_masks.as_slice() {
                [one] => Some(one),
                several => several.get(index),
            };
            let plane = MaskPlane::Reference { index, count };
            let (size, level) = (reference_sizes[index], reference_levels[index]);
            let mask = given(link, plane, size, level)?;
            reference_masks.push(checked("reference_mask", mask, references)?);
            if references != 1 && references != images {
                return Err(NodeError::failed(format!(
                    "a batch of {references} references for {images} pictures"
                )));
            }
        }
        let context_mask = given(
            control.context_mask.as_ref(),
            MaskPlane::Context,
            target,
            level,
        )?;
        let context_mask = checked("context_mask", context_mask, images)?;
        let blend_mask = given(control.blend_mask.as_ref(), MaskPlane::Blend, target, level)?;
        let blend_mask = checked("blend_mask", blend_mask, images)?;
        let subject = |own: &Option<Template>| subject_of(settings, own);
        let span = |model: &Checkpoint, prompt: &str, subject: Option<String>| {
            subject
                .map(|subject| model.reader()?.span(prompt, &subject))
                .transpose()
        };
        let blends_by_target = settings.blend != crate::attention::BlendField::Context;
        let target_span = if swaps && blend_mask.is_none() && blends_by_target {
            span(model, &self.prompt, subject(&None))?
        } else {
            None
        };
        // The context: what drew each step draws it again, with `context_prompt` where the vanilla model did not.
        let mut prompts = Prompts::default();
        let mut context_steps = Vec::new();
        for k in 0..steps {
            let idle = k < start || !acts || k >= settings.until_step.resolve(steps);
            context_steps.push(if idle {
                prompts.add(false, &self.prompt, &self.negative)
            } else {
                let drawn = control.context.drawn.get(k).and_then(Option::as_ref);
                self.context_step(k, model, control, drawn, &mut prompts)?
            });
        }
        let reference_steps: Vec<usize> = (0..count)
            .map(|index| prompts.add(false, settings.reference_prompt.at(index), ""))
            .collect();
        let target_step = prompts.add(false, &self.prompt, &self.negative);
        let vanilla = control.vanilla.as_ref().map(|model| &model.checkpoint);
        let prompted = prompts.prompted(model, vanilla, reports)?;
        let wants_context_map = swaps && context_mask.is_none();
        let mut spans: Vec<Option<Option<Span>>> = vec![None; prompted.len()];
        let mut context_drawers = Vec::new();
        for (k, &index) in context_steps.iter().enumerate() {
            let span = if wants_context_map && swap.contains(&k) {
                if spans[index].is_none() {
                    let model = prompted[index].model();
                    let subject = subject(&settings.context_subject);
                    spans[index] = Some(span(model, &prompts.0[index].prompt, subject)?);
                }
                spans[index].clone().flatten()
            } else {
                None
            };
            context_drawers.push(SourceStep {
                draws: &prompted[index],
                span,
            });
        }
        let mut references = Vec::new();
        for (index, mask) in reference_masks.into_iter().enumerate() {
            let span = if swaps && mask.is_none() {
                let subject = settings.subject_of_reference(index);
                let prompt = settings.reference_prompt.at(index);
                span(model, prompt, subject.map(ToString::to_string))?
            } else {
                None
            };
            let drawer = SourceStep {
                draws: &prompted[reference_steps[index]],
                span,
            };
            references.push(Source {
                trajectory: &control.references[index].latents,
                drawers: vec![drawer; steps],
                mask,
            });
        }
        let retouch = Retouch {
            target: &prompted[target_step],
            target_span,
            context: Source {
                trajectory: &control.context.latents,
                drawers: context_drawers,
                mask: context_mask,
            },
            references,
            blend_mask,
            fills: reports.0.note::<SamplerNote>().map(|note| note.fills),
            settings: numbers.clone(),
        };
        then(&retouch, &ddim)
    }

    /// Which prompts run the context's step k.
    fn context_step(
        &self,
        k: usize,
        model: &Checkpoint,
        control: &Control,
        drawn: Option<&Drawn>,
        prompts: &mut Prompts,
    ) -> Result<usize, NodeError> {
        let vanilla = control.vanilla.as_ref().map(|m| m.checkpoint.id());
        let given = control.settings.context_prompt.as_deref();
        let who = who_draws(k, model.id(), vanilla, given, drawn)?;
        Ok(prompts.add(who.by_vanilla, &who.prompt, &who.negative))
    }
}

/// Who runs a step of the context's branch.
struct Who {
    by_vanilla: bool,
    prompt: String,
    negative: String,
}

/// Who runs the context's step k: what drew it, with `context_prompt` (`given`) where the vanilla model did not.
fn who_draws(
    k: usize,
    own: &str,
    vanilla: Option<&str>,
    given: Option<&str>,
    drawn: Option<&Drawn>,
) -> Result<Who, NodeError> {
    let Some(drawn) = drawn else {
        let prompt = given.ok_or_else(|| {
            NodeError::failed("the context does not say what drew it")
                .help("give `context_prompt`: what the context's picture shows")
        })?;
        return Ok(Who {
            by_vanilla: false,
            prompt: prompt.to_owned(),
            negative: String::new(),
        });
    };
    let (is_own, other) = (drawn.model == own, vanilla == Some(&drawn.model));
    let by_vanilla = other && (drawn.vanilla || !is_own);
    if !is_own && !other {
        return Err(NodeError::failed(format!(
            "step {k} of the context was drawn by a model that is neither this sampler's nor the control's `vanilla`"
        ))
        .help("link the model that drew it: `vanilla: $base` in swap_attention"));
    }
    let prompt = if by_vanilla || drawn.vanilla {
        &drawn.prompt
    } else {
        given.unwrap_or(&drawn.prompt)
    };
    Ok(Who {
        by_vanilla,
        prompt: prompt.to_owned(),
        negative: drawn.negative.clone(),
    })
}

/// The subject's words for a branch: its own, or those of the swap.
fn subject_of(settings: &SwapAttention, own: &Option<Template>) -> Option<String> {
    own.as_ref()
        .or(settings.subject.as_ref())
        .map(ToString::to_string)
}

/// The parameters of a swap as numbers, for a model, T steps, the latents' sizes of target and references, and guidance
/// with its rescale.
fn resolved(
    settings: &SwapAttention,
    model: &ModelFacts,
    steps: usize,
    target: (usize, usize),
    references: &[(usize, usize)],
    (guidance, rescale): (f64, f64),
) -> Result<RetouchSettings, String> {
    let level = |latent, grid| mask_level(&model.sites, latent, grid).map_err(|e| e.to_string());
    let own = level(target, settings.mask_grid.0)?;
    let reference_levels = references
        .iter()
        .map(|&reference| match settings.mask_grid.0 {
            MaskGrid::Auto => level(reference, MaskGrid::Auto),
            // A grid that is given is the target's; a reference's is the one of the same layers.
            MaskGrid::Size(..) => Ok(own),
        })
        .collect::<Result<_, _>>()?;
    Ok(RetouchSettings {
        sites: settings.sites.resolve(&model.sites)?,
        start_step: settings.start_step.resolve(steps),
        from_step: settings.from_step.resolve(steps),
        until_step: settings.until_step.resolve(steps),
        structure_until: settings.structure_until.resolve(steps),
        lock: settings.lock,
        blend: settings.blend.into(),
        threshold: settings.threshold.0,
        smooth: settings.smooth,
        mask_levels: (own, reference_levels),
        guidance,
        rescale,
    })
}

/// A call of a context that only says what drew it once its file is read: all that decides it.
#[allow(clippy::too_many_arguments)]
fn opaque_call(
    state: &Key,
    ddim: &Ddim,
    k: usize,
    half: Half,
    id: &str,
    control: &ControlNote,
    guided: bool,
    blank_is_zero: bool,
) -> Key {
    let mut hasher = KeyHasher::new("retouch/call-of-file/1");
    hasher.field("state", &state.0);
    hasher.field("timestep", &(ddim.timesteps()[k] as u64).to_le_bytes());
    hasher.field("half", format!("{half:?}").as_bytes());
    hasher.field("model", id.as_bytes());
    hasher.field("vanilla", format!("{:?}", control.vanilla).as_bytes());
    hasher.field(
        "prompt",
        format!("{:?}", control.settings.context_prompt.as_deref()).as_bytes(),
    );
    // With guidance prompts that are read in chunks are given equally many tokens.
    if guided
        && std::iter::once(id)
            .chain(control.vanilla.as_deref())
            .any(reads_chunks)
    {
        hasher.field("guided", &[1]);
    }
    if let Some(prompt) = control.settings.context_prompt.as_deref()
        && half == Half::Prompt
    {
        empty_prompt_field(&mut hasher, prompt, blank_is_zero);
    }
    hasher.finish()
}

/// Adds to a step's control what its masks are: given ones by their keys, computed ones by their rule.
fn mask_rules(
    hasher: &mut KeyHasher,
    control: &ControlNote,
    settings: &RetouchSettings,
    first: bool,
) {
    let rule = |hasher: &mut KeyHasher,
                name: &str,
                given: Option<Key>,
                subject: Option<String>,
                level: usize| {
        match given {
            Some(key) => {
                hasher.field(name, &key.0);
                // It is averaged to the mask grid before it is turned to a site's.
                hasher.field("level", &(level as u64).to_le_bytes());
            }
            None => hasher.field(
                name,
                format!(
                    "{subject:?} level {level} smooth {} threshold {:?}",
                    settings.smooth, settings.threshold
                )
                .as_bytes(),
            ),
        }
    };
    let of = &control.settings;
    let level = settings.mask_levels.0;
    for (index, reference_level) in settings.mask_levels.1.iter().enumerate() {
        let masks = &control.reference_masks;
        let given = masks.get(if masks.len() == 1 { 0 } else { index });
        let subject = of.subject_of_reference(index).map(ToString::to_string);
        rule(
            hasher,
            "reference_mask",
            given.copied(),
            subject,
            *reference_level,
        );
    }
    if let Some(key) = control.blend_mask {
        rule(hasher, "blend_mask", Some(key), None, level);
        return;
    }
    // At the target's first step there is no map of its own, so each rule is the context's mask.
    let blend = if first {
        Blend::Context
    } else {
        settings.blend
    };
    hasher.field("blend", format!("{blend:?}").as_bytes());
    if blend != Blend::Target {
        let context = subject_of(of, &of.context_subject);
        rule(hasher, "context_mask", control.context_mask, context, level);
    }
    if blend != Blend::Context {
        rule(hasher, "target_mask", None, subject_of(of, &None), level);
    }
}

/// The masks `[S, R + 2, B, h, w]` of the steps of a swap with R references.
fn masks_tensor(retouched: &Retouched, images: usize) -> Result<Tensor, NodeError> {
    let mut data = Vec::new();
    let mut grid = (0, 0);
    let mut count = 3;
    for step in &retouched.masks {
        grid = step.blend.first().map_or(grid, Plane::grid);
        count = step.references.len() + 2;
        for planes in step.references.iter().chain([&step.context, &step.blend]) {
            for image in 0..images {
                let plane = &planes[if planes.len() == 1 { 0 } else { image }];
                data.extend(plane.nearest(grid).data);
            }
        }
    }
    let shape = (retouched.masks.len(), count, images, grid.0, grid.1);
    Tensor::from_vec(data, shape, &Device::Cpu).map_err(tensor_error)
}

/// Which of the planes of another swap's masks a port takes.
#[derive(Clone, Copy)]
enum MaskPlane {
    /// That of a reference of so many.
    Reference {
        index: usize,
        count: usize,
    },
    Context,
    Blend,
}

impl MaskPlane {
    /// The index among so many planes: those of the references, then context and blend.
    fn of(self, planes: usize) -> Result<usize, NodeError> {
        let references = planes.saturating_sub(2);
        match self {
            Self::Reference { index, count } if references == count => Ok(index),
            Self::Reference { .. } if references == 1 => Ok(0),
            Self::Reference { count, .. } => Err(NodeError::failed(format!(
                "the masks that `reference_mask` takes are of a swap with {references} references, and this one has {count}"
            ))
            .help("take one mask out with `mask_image`, or give each reference a mask of its own")),
            Self::Context => Ok(references),
            Self::Blend => Ok(references + 1),
        }
    }
}

/// Given masks on a mask grid: pixel masks cropped as their picture is and averaged by area, or a plane of each step of
/// another swap's masks.
fn given(
    mask: Option<&MaskOrMasks>,
    plane: MaskPlane,
    latent: (usize, usize),
    level: usize,
) -> Result<Option<GivenMasks>, NodeError> {
    let (h, w) = grid_at(latent, level);
    let on_grid = |mask: &Mask| -> Result<Vec<Plane>, NodeError> {
        let mask = mask
            .crop_to_aspect(latent.1, latent.0)?
            .area_average(h, w)?;
        Ok(Plane::from_tensor(&mask.plane)?)
    };
    Ok(match mask {
        None => None,
        Some(MaskOrMasks::Mask(mask)) => Some(GivenMasks {
            first_step: 0,
            steps: vec![on_grid(mask)?],
        }),
        Some(MaskOrMasks::Masks(masks)) => {
            let (steps, planes, ..) = masks.tensor.dims5().map_err(tensor_error)?;
            let plane = plane.of(planes)?;
            let at = |k: usize| masks.tensor.get(k)?.get(plane)?.contiguous();
            let steps = (0..steps)
                .map(|k| on_grid(&Mask::new(at(k).map_err(tensor_error)?)?))
                .collect::<Result<_, _>>()?;
            Some(GivenMasks {
                first_step: masks.first_step,
                steps,
            })
        }
    })
}

/// One pair of prompts of one model, used at several steps.
#[derive(Clone, PartialEq, Eq)]
struct Prompt {
    vanilla: bool,
    prompt: String,
    negative: String,
}

/// The prompts of a run, each once.
#[derive(Default)]
struct Prompts(Vec<Prompt>);

impl Prompts {
    fn add(&mut self, vanilla: bool, prompt: &str, negative: &str) -> usize {
        let prompt = Prompt {
            vanilla,
            prompt: prompt.to_owned(),
            negative: negative.to_owned(),
        };
        self.0.iter().position(|p| *p == prompt).unwrap_or_else(|| {
            self.0.push(prompt);
            self.0.len() - 1
        })
    }

    /// Each with its model, to be encoded when it is first needed.
    fn prompted<'a>(
        &'a self,
        model: &'a Checkpoint,
        vanilla: Option<&'a Checkpoint>,
        reports: &'a Reports<'_>,
    ) -> Result<Vec<Prompted<'a>>, NodeError> {
        self.0
            .iter()
            .map(|p| {
                let owner = if p.vanilla { vanilla } else { Some(model) };
                let owner =
                    owner.ok_or_else(|| NodeError::failed("the control has no vanilla model"))?;
                Ok(Prompted::new(owner, &p.prompt, &p.negative, reports))
            })
            .collect()
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
        faults.extend(self.start().faults(
            model.as_ref(),
            inputs.is_linked("latent"),
            inputs.is_linked("mask"),
            latent.as_ref(),
        ));
        if let (Some(model), Some(latent)) = (&model, &latent) {
            faults.extend(channel_fault(model, latent.channels, "latent"));
        }
        if let (Some(mask), Some(shape)) = (
            inputs.facts::<ImageFacts>("mask"),
            latent.and_then(|latent| self.start().facts(None, Some(latent))),
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
        Ok(match self.start().trajectory(model.as_ref(), latent) {
            Some(facts) => types
                .with("latent", &facts.latent())
                .with("trajectory", &facts),
            None => types,
        })
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        match upstream.link("control") {
            Some(_) => self.retouch_keys(upstream),
            None => self.plain_keys(upstream),
        }
        .unwrap_or_default()
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let reports = Reports(context);
        let model = &inputs.model.checkpoint;
        let own = |_| {
            Some(Drawn {
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
                let retouched = self.retouch(model, control, &reports)?;
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
