//! `sample`.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Start, guidance_fault, steps_fault};
use crate::diffusion::checkpoint::{Checkpoint, ModelFacts};
use crate::diffusion::masks::Plane;
use crate::diffusion::sampling::{
    Conditions, Drawer, Drawn, GivenMasks, MaskGrid, Retouch, RetouchSettings, Retouched, Source,
    SourceStep, mask_level, step_blend_sample,
};
use crate::diffusion::scheduler::Ddim;
use crate::diffusion::unet::grid_at;
use crate::fields::{Seed, Template};
use crate::latent::channel_fault;
use crate::payload::{
    Control, ControlFacts, Latent, LatentFacts, Mask, MaskOrMasks, Masks, MasksFacts, Model,
    Trajectory, TrajectoryFacts,
};
use crate::runtime::{Reports, check_finite, tensor_error};

/// Draws a picture's latent from noise by DDIM (eta 0); with a `control`, stage 2: the retouch.
///
/// Without a control it is plain sampling from `seed` (or a `latent`) in `steps` steps. With one, the starting noise,
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
    /// T, the number of steps. Default: 50, or the control's.
    #[serde(default)]
    pub steps: Option<usize>,
    /// The seed of the starting noise; image i of a batch has `seed + i`.
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
        /// The starting noise, in place of seed, batch and size.
        pub latent: Option<Arc<Latent>>,
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
fn swap_range(facts: &crate::attention::SwapAttention, steps: usize) -> Range<usize> {
    let first = facts
        .start_step
        .resolve(steps)
        .max(facts.from_step.resolve(steps));
    let last = facts.until_step.resolve(steps).min(steps);
    first..last.max(first)
}

impl Sample {
    fn start(&self) -> Start {
        Start {
            seed: self.seed,
            batch: self.batch,
            width: self.width,
            height: self.height,
        }
    }

    fn steps(&self) -> usize {
        self.steps.unwrap_or(DEFAULT_STEPS)
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
            ("latent", inputs.is_linked("latent")),
        ];
        faults.extend(given.into_iter().filter(|(_, given)| *given).map(|(name, _)| {
            Fault::value(
                name,
                format!("`{name}` has no effect: starting noise, size and steps come with the control's context"),
            )
            .help(format!("remove `{name}`, or give it to the node that draws the context"))
        }));
        let (Some(model), Some(control)) = (
            inputs.facts::<ModelFacts>("model"),
            inputs.facts::<ControlFacts>("control"),
        ) else {
            return faults;
        };
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

    fn plain(&self, inputs: &Inputs, reports: &Reports<'_>) -> Result<Retouched, NodeError> {
        let model = &inputs.model.checkpoint;
        let ddim = Ddim::new(&model.description().scheduler, self.steps())?;
        let noise = self.start().noise(model, inputs.latent.as_deref())?;
        let conditions = Conditions::encode(model, &self.prompt, &self.negative, reports)?;
        let drawer = Drawer {
            model,
            conditions: &conditions,
        };
        Ok(Retouched {
            trajectory: step_blend_sample(
                drawer,
                drawer,
                &noise,
                &ddim,
                0,
                self.guidance,
                reports,
            )?,
            masks: Vec::new(),
        })
    }

    fn retouch(
        &self,
        model: &Checkpoint,
        control: &Control,
        reports: &Reports<'_>,
    ) -> Result<Retouched, NodeError> {
        let settings = &control.settings;
        let facts = model.description().facts();
        let steps = control.context.steps();
        let ddim = Ddim::new(&model.description().scheduler, steps)?;
        if control.reference.steps() != steps {
            return Err(NodeError::failed(format!(
                "the reference has {} steps, the context {steps}",
                control.reference.steps()
            ))
            .help("give both the same `steps`"));
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
        let (target, reference) = (shape(&control.context)?, shape(&control.reference)?);
        let sites = settings
            .sites
            .resolve(&facts.sites)
            .map_err(NodeError::failed)?;
        let level = mask_level(&facts.sites, target, settings.mask_grid.0)?;
        let reference_level = match settings.mask_grid.0 {
            MaskGrid::Auto => mask_level(&facts.sites, reference, MaskGrid::Auto)?,
            // A grid that is given is the target's; the reference's is the one of the same layers.
            MaskGrid::Size(..) => level,
        };
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
        let mut reference_mask = given(&control.reference_mask, 0, reference, reference_level)?;
        let mut context_mask = given(&control.context_mask, 1, target, level)?;
        let mut blend_mask = given(&control.blend_mask, 2, target, level)?;
        let images = control.context.latents[0].dim(0).map_err(tensor_error)?;
        let references = control.reference.latents[0].dim(0).map_err(tensor_error)?;
        for (name, mask, wanted) in [
            ("reference_mask", &mut reference_mask, references),
            ("context_mask", &mut context_mask, images),
            ("blend_mask", &mut blend_mask, images),
        ] {
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
        }
        if references != 1 && references != images {
            return Err(NodeError::failed(format!(
                "a batch of {references} references for {images} pictures"
            )));
        }
        let subject = |own: &Option<Template>| -> Option<String> {
            own.as_ref()
                .or(settings.subject.as_ref())
                .map(ToString::to_string)
        };
        let span = |model: &Checkpoint, prompt: &str, subject: Option<String>| {
            subject
                .map(|subject| model.tokenizer()?.span(prompt, &subject))
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
        let reference_step = prompts.add(false, &settings.reference_prompt, "");
        let target_step = prompts.add(false, &self.prompt, &self.negative);
        let vanilla = control.vanilla.as_ref().map(|model| &model.checkpoint);
        let encoded = prompts.encode(model, vanilla, start, steps, reports)?;
        let drawer = |index: usize| encoded[index].drawer(model, vanilla);
        let wants_context_map = swaps && context_mask.is_none();
        let mut spans: Vec<Option<Option<Range<usize>>>> = vec![None; encoded.len()];
        let mut context_drawers = Vec::new();
        for (k, &index) in context_steps.iter().enumerate() {
            let span = if wants_context_map && swap.contains(&k) {
                if spans[index].is_none() {
                    let drawer = drawer(index)?;
                    let subject = subject(&settings.context_subject);
                    spans[index] = Some(span(drawer.model, &prompts.0[index].prompt, subject)?);
                }
                spans[index].clone().flatten()
            } else {
                None
            };
            context_drawers.push(SourceStep {
                drawer: drawer(index)?,
                span,
            });
        }
        let reference_span = if swaps && reference_mask.is_none() {
            span(
                model,
                &settings.reference_prompt,
                subject(&settings.reference_subject),
            )?
        } else {
            None
        };
        let reference_drawer = SourceStep {
            drawer: drawer(reference_step)?,
            span: reference_span,
        };
        let retouch = Retouch {
            target: drawer(target_step)?,
            target_span,
            context: Source {
                trajectory: &control.context.latents,
                drawers: context_drawers,
                mask: context_mask,
            },
            reference: Source {
                trajectory: &control.reference.latents,
                drawers: vec![reference_drawer; steps],
                mask: reference_mask,
            },
            blend_mask,
            settings: RetouchSettings {
                sites,
                start_step: start,
                from_step: settings.from_step.resolve(steps),
                until_step: settings.until_step.resolve(steps),
                structure_until: settings.structure_until.resolve(steps),
                lock: settings.lock,
                blend: settings.blend.into(),
                threshold: settings.threshold.0,
                smooth: settings.smooth,
                mask_levels: (level, reference_level),
                guidance: self.guidance,
            },
        };
        Ok(retouch.run(&ddim, reports)?)
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
        let given = control.settings.context_prompt.as_deref();
        let Some(drawn) = drawn else {
            let prompt = given.ok_or_else(|| {
                NodeError::failed("the context does not say what drew it")
                    .help("give `context_prompt`: what the context's picture shows")
            })?;
            return Ok(prompts.add(false, prompt, ""));
        };
        let vanilla = control.vanilla.as_ref().map(|m| m.checkpoint.id());
        let (own, other) = (drawn.model == model.id(), vanilla == Some(&drawn.model));
        let by_vanilla = other && (drawn.vanilla || !own);
        if !own && !other {
            return Err(NodeError::failed(format!(
                "step {k} of the context was drawn by a model that is neither this sampler's nor the control's `vanilla`"
            ))
            .help("link the model that drew it: `vanilla: $base` in swap_attention"));
        }
        let vanilla_drew = by_vanilla || drawn.vanilla;
        let prompt = if vanilla_drew {
            &drawn.prompt
        } else {
            given.unwrap_or(&drawn.prompt)
        };
        Ok(prompts.add(by_vanilla, prompt, &drawn.negative))
    }
}

/// The masks `[S, 3, B, h, w]` of the steps of a swap.
fn masks_tensor(retouched: &Retouched, images: usize) -> Result<Tensor, NodeError> {
    let mut data = Vec::new();
    let mut grid = (0, 0);
    for step in &retouched.masks {
        grid = step.blend.first().map_or(grid, Plane::grid);
        for planes in [&step.reference, &step.context, &step.blend] {
            for image in 0..images {
                let plane = &planes[if planes.len() == 1 { 0 } else { image }];
                data.extend(plane.nearest(grid).data);
            }
        }
    }
    let shape = (retouched.masks.len(), 3, images, grid.0, grid.1);
    Tensor::from_vec(data, shape, &Device::Cpu).map_err(tensor_error)
}

/// Given masks on a mask grid: pixel masks cropped as their picture is and averaged by area, or plane `plane` of each
/// step of another swap's masks.
fn given(
    mask: &Option<MaskOrMasks>,
    plane: usize,
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
            let steps = masks.tensor.dim(0).map_err(tensor_error)?;
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

/// Prompts that were encoded.
struct Encoded {
    vanilla: bool,
    conditions: Conditions,
}

impl Encoded {
    fn drawer<'a>(
        &'a self,
        model: &'a Checkpoint,
        vanilla: Option<&'a Checkpoint>,
    ) -> Result<Drawer<'a>, NodeError> {
        let model = if self.vanilla {
            vanilla.ok_or_else(|| NodeError::failed("the control has no vanilla model"))?
        } else {
            model
        };
        Ok(Drawer {
            model,
            conditions: &self.conditions,
        })
    }
}

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

    fn encode(
        &self,
        model: &Checkpoint,
        vanilla: Option<&Checkpoint>,
        start: usize,
        steps: usize,
        reports: &Reports<'_>,
    ) -> Result<Vec<Encoded>, NodeError> {
        if start >= steps {
            // Nothing is drawn: no network is loaded, and nothing will look at these.
            let nothing = Tensor::zeros((1, 1, 1), candle_core::DType::F32, model.device())
                .map_err(tensor_error)?;
            let conditions = Conditions {
                prompt: nothing.clone(),
                negative: nothing,
            };
            return Ok(self
                .0
                .iter()
                .map(|_| Encoded {
                    vanilla: false,
                    conditions: conditions.clone(),
                })
                .collect());
        }
        self.0
            .iter()
            .map(|p| {
                let owner = if p.vanilla { vanilla } else { Some(model) };
                let owner =
                    owner.ok_or_else(|| NodeError::failed("the control has no vanilla model"))?;
                Ok(Encoded {
                    vanilla: p.vanilla,
                    conditions: Conditions::encode(owner, &p.prompt, &p.negative, reports)?,
                })
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

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let model: Option<ModelFacts> = inputs.facts("model");
        let controlled = inputs.is_linked("control");
        let mut faults: Vec<Fault> = guidance_fault(self.guidance).into_iter().collect();
        if controlled {
            faults.extend(self.control_faults(inputs));
            if !faults.is_empty() {
                return Err(faults);
            }
            let mut types = Types::unknown();
            if let Some((facts, context)) = inputs
                .facts::<ControlFacts>("control")
                .and_then(|facts| Some((facts.context?, facts)))
                .map(|(context, facts)| (facts, context))
            {
                let range = swap_range(&facts.settings, context.steps);
                let no_sites = model
                    .and_then(|m| facts.settings.sites.resolve(&m.sites).ok())
                    .is_some_and(|sites| sites.is_empty());
                types = types
                    .with("latent", &context.latent())
                    .with("trajectory", &context);
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
        faults.extend(
            self.start()
                .faults(model.as_ref(), inputs.is_linked("latent")),
        );
        if let Some(model) = &model {
            faults.extend(steps_fault(model, self.steps()));
            if let Some(latent) = &latent {
                faults.extend(channel_fault(model, latent.channels, "latent"));
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let types = Types::unknown().without(
            "masks",
            "`sample` makes `masks` only with a `control` that swaps attention",
        );
        Ok(match self.start().facts(model.as_ref(), latent) {
            Some(shape) => types
                .with("latent", &shape)
                .with("trajectory", &TrajectoryFacts::of(shape, self.steps())),
            None => types,
        })
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
        let (retouched, drawn, first_step) = match &inputs.control {
            Some(control) => {
                let steps = control.context.steps();
                let start = control.settings.start_step.resolve(steps).min(steps);
                let taken_over = control.context.drawn.iter().take(start).cloned();
                let drawn = taken_over.chain((start..steps).map(own)).collect();
                let first = swap_range(&control.settings, steps).start;
                (self.retouch(model, control, &reports)?, drawn, first)
            }
            None => {
                let drawn = (0..self.steps()).map(own).collect();
                (self.plain(&inputs, &reports)?, drawn, 0)
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
            }),
            masks,
        })
    }
}
