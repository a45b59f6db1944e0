//! Binds the plan of a swap to what is linked: tensors, masks on their grids, prompts that are encoded when they are needed.

use candle_core::{Device, Tensor};
use retouch_graph::NodeError;

use super::failed;
use super::swap_plan::{ContextCall, Prompts, Provenance, Sampler, SwapInput, SwapPlan};
use crate::attention::schedule_fault;
use crate::chain::SamplerNote;
use crate::payload::{Control, Mask, MaskOrMasks, Trajectory};
use crate::runtime::{Reports, tensor_error};
use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::networks::unet::grid_at;
use retouch_diffusion::prompt::conditioning::Span;
use retouch_diffusion::sampling::Prompted;
use retouch_diffusion::sampling::masks::Plane;
use retouch_diffusion::sampling::scheduler::Ddim;
use retouch_diffusion::sampling::swap::{GivenMasks, Retouch, Retouched, Source, SourceStep};

/// The masks `[S, R + 2, B, h, w]` of the steps of a swap with R references.
pub(super) fn masks_tensor(retouched: &Retouched, images: usize) -> Result<Tensor, NodeError> {
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

/// The prompts of a run, each once.
#[derive(Default)]
struct PromptList(Vec<Prompts>);

impl PromptList {
    fn add(&mut self, prompts: Prompts) -> usize {
        let known = self.0.iter().position(|known| *known == prompts);
        known.unwrap_or_else(|| {
            self.0.push(prompts);
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
        let prompted = self.0.iter().map(|prompts| {
            let owner = if prompts.vanilla {
                vanilla
            } else {
                Some(model)
            };
            let owner =
                owner.ok_or_else(|| NodeError::failed("the control has no vanilla model"))?;
            Ok(Prompted::new(
                owner,
                &prompts.prompt,
                &prompts.negative,
                reports,
            ))
        });
        prompted.collect()
    }
}

/// The masks that are given, on their mask grids.
struct LinkedMasks {
    references: Vec<Option<GivenMasks>>,
    context: Option<GivenMasks>,
    blend: Option<GivenMasks>,
}

/// The height and width of a trajectory's latents.
fn size_of(trajectory: &Trajectory, channels: usize) -> Result<(usize, usize), NodeError> {
    let z = (trajectory.latents.first()).ok_or_else(|| NodeError::failed("an empty trajectory"))?;
    let (_, c, h, w) = z.dims4().map_err(tensor_error)?;
    match c == channels {
        true => Ok((h, w)),
        false => Err(NodeError::failed(format!(
            "a trajectory of {c} channels for a model that works on {channels}"
        ))),
    }
}

/// The pictures of a trajectory.
fn images_of(trajectory: &Trajectory) -> Result<usize, NodeError> {
    let z = (trajectory.latents.first()).ok_or_else(|| NodeError::failed("an empty trajectory"))?;
    z.dim(0).map_err(tensor_error)
}

/// Refuses a context or a reference whose steps are not those of the swap.
fn check_steps(control: &Control) -> Result<(), NodeError> {
    let steps = control.context.steps();
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
    match control.references.is_empty() {
        true => Err(NodeError::failed("the control has no reference")),
        false => Ok(()),
    }
}

impl LinkedMasks {
    /// Those of a control. `levels`: the target's mask grid and each reference's; `sizes`: their latents.
    fn of(
        control: &Control,
        (target, references): ((usize, usize), &[(usize, usize)]),
        (level, levels): (usize, &[usize]),
    ) -> Result<Self, NodeError> {
        let images = images_of(&control.context)?;
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
        let count = control.references.len();
        let mut of_references = Vec::with_capacity(count);
        for (index, (reference, size)) in control.references.iter().zip(references).enumerate() {
            let link = match control.reference_masks.as_slice() {
                [one] => Some(one),
                several => several.get(index),
            };
            let plane = MaskPlane::Reference { index, count };
            let pictures = images_of(reference)?;
            let own = levels.get(index).copied().unwrap_or(level);
            let mask = given(link, plane, *size, own)?;
            of_references.push(checked("reference_mask", mask, pictures)?);
            if pictures != 1 && pictures != images {
                return Err(NodeError::failed(format!(
                    "a batch of {pictures} references for {images} pictures"
                )));
            }
        }
        let on_target = |link: Option<&MaskOrMasks>, plane| given(link, plane, target, level);
        let context = on_target(control.context_mask.as_ref(), MaskPlane::Context)?;
        let context = checked("context_mask", context, images)?;
        let blend = on_target(control.blend_mask.as_ref(), MaskPlane::Blend)?;
        let blend = checked("blend_mask", blend, images)?;
        Ok(Self {
            references: of_references,
            context,
            blend,
        })
    }
}

/// What a swap works on: models, prompts, tensors.
struct Binding<'a> {
    sampler: Sampler<'a>,
    model: &'a Checkpoint,
    control: &'a Control,
    plan: SwapPlan,
    masks: LinkedMasks,
    prompts: PromptList,
    /// Which prompts call the context's branch at each step.
    context: Vec<usize>,
    /// Which call each reference's.
    references: Vec<usize>,
    target: usize,
}

/// Puts stage 2 together, to be run or to be looked at; nothing is encoded, called or drawn for that.
///
/// # Errors
/// When the control does not fit the model or itself, and what `then` gives.
pub(super) fn with_retouch<R>(
    sampler: Sampler<'_>,
    model: &Checkpoint,
    control: &Control,
    reports: &Reports<'_>,
    then: impl FnOnce(&Retouch<'_>, &Ddim) -> Result<R, NodeError>,
) -> Result<R, NodeError> {
    check_steps(control)?;
    let ddim = Ddim::new(&model.description().scheduler, control.context.steps())?;
    let binding = Binding::new(sampler, model, control, reports)?;
    let vanilla = control.vanilla.as_ref().map(|model| &model.checkpoint);
    let prompted = binding.prompts.prompted(model, vanilla, reports)?;
    let retouch = binding.retouch(&prompted)?;
    then(&retouch, &ddim)
}

impl<'a> Binding<'a> {
    fn new(
        sampler: Sampler<'a>,
        model: &'a Checkpoint,
        control: &'a Control,
        reports: &Reports<'_>,
    ) -> Result<Self, NodeError> {
        let facts = model.description().facts();
        let channels = facts.latent_channels;
        let size = size_of(&control.context, channels)?;
        let references = control.references.iter();
        let references: Vec<(usize, usize)> = references
            .map(|reference| size_of(reference, channels))
            .collect::<Result<_, _>>()?;
        let drawn = |k: usize| match control.context.drawn.get(k).and_then(Option::as_ref) {
            Some(drawn) => Provenance::By(drawn),
            None => Provenance::Unsaid,
        };
        let steps = control.context.steps();
        let mut input = SwapInput {
            control: &control.settings,
            facts: &facts,
            model: model.id(),
            vanilla: control.vanilla.as_ref().map(|model| model.checkpoint.id()),
            guidance: sampler.guidance,
            rescale: sampler.rescale,
            steps,
            size,
            references: references.clone(),
            reference_masks: !control.reference_masks.is_empty(),
            context_mask: control.context_mask.is_some(),
            blend_mask: control.blend_mask.is_some(),
            fills: &|_| false,
            drawn: (0..steps).map(drawn).collect(),
        };
        let levels = input.mask_levels()?;
        let masks = LinkedMasks::of(control, (size, &references), (levels.0, &levels.1))?;
        let note = reports.0.note::<SamplerNote>().map(|note| note.fills);
        // What the cache was asked for counts; without a plan the mask itself tells.
        let fills = |k| note.unwrap_or_else(|| masks.blend.as_ref().is_some_and(|m| m.fills(k)));
        input.fills = &fills;
        let plan = SwapPlan::new(&input)?;
        drop(input);
        if !plan.acts {
            reports.0.warn(
                "the control has no site and step to act on: the picture is drawn as without it from `start_step` on",
            );
        }
        let mut prompts = PromptList::default();
        let own = |prompt: &str, negative: &str| Prompts {
            vanilla: false,
            prompt: prompt.to_owned(),
            negative: negative.to_owned(),
        };
        // The context: what drew each step draws it again, with `context_prompt` where the vanilla model did not.
        let context = plan.context.iter().map(|call| match call {
            ContextCall::By(by) => prompts.add(by.clone()),
            ContextCall::Idle | ContextCall::Unread => {
                prompts.add(own(sampler.prompt, sampler.negative))
            }
        });
        let context = context.collect();
        let of_references = (0..references.len())
            .map(|index| prompts.add(own(control.settings.reference_prompt.at(index), "")));
        let of_references = of_references.collect();
        let target = prompts.add(own(sampler.prompt, sampler.negative));
        Ok(Self {
            sampler,
            model,
            control,
            plan,
            masks,
            prompts,
            context,
            references: of_references,
            target,
        })
    }

    /// The tokens of the subject in a prompt.
    fn span(
        model: &Checkpoint,
        prompt: &str,
        subject: Option<&String>,
    ) -> Result<Option<Span>, NodeError> {
        let span = subject.map(|subject| model.reader()?.span(prompt, subject));
        Ok(span.transpose()?)
    }

    /// What runs each step of the context's branch.
    fn context_steps<'b>(
        &self,
        prompted: &'b [Prompted<'_>],
    ) -> Result<Vec<SourceStep<'b>>, NodeError> {
        let wants_map = self.masks.context.is_none();
        let mut spans: Vec<Option<Option<Span>>> = vec![None; prompted.len()];
        let mut steps = Vec::with_capacity(self.context.len());
        for (k, &index) in self.context.iter().enumerate() {
            let mut span = None;
            if wants_map && self.plan.swap.contains(&k) {
                span = match &spans[index] {
                    Some(known) => known.clone(),
                    None => {
                        let prompt = &self.prompts.0[index].prompt;
                        let subject = self.plan.context_subject.as_ref();
                        let found = Self::span(prompted[index].model(), prompt, subject)?;
                        spans[index] = Some(found.clone());
                        found
                    }
                };
            }
            steps.push(SourceStep {
                draws: &prompted[index],
                span,
            });
        }
        Ok(steps)
    }

    /// Stage 2, with the prompts in the order of the list.
    fn retouch<'b>(&'b self, prompted: &'b [Prompted<'_>]) -> Result<Retouch<'b>, NodeError> {
        let (plan, control) = (&self.plan, self.control);
        let target_span = match plan.blends_by_target {
            true => Self::span(
                self.model,
                self.sampler.prompt,
                plan.target_subject.as_ref(),
            )?,
            false => None,
        };
        let mut references = Vec::with_capacity(self.references.len());
        for (index, mask) in self.masks.references.iter().enumerate() {
            let span = match plan.swaps() && mask.is_none() {
                true => {
                    let prompt = control.settings.reference_prompt.at(index);
                    let subject = plan.reference_subjects.get(index).and_then(Option::as_ref);
                    Self::span(self.model, prompt, subject)?
                }
                false => None,
            };
            let step = SourceStep {
                draws: &prompted[self.references[index]],
                span,
            };
            references.push(Source {
                trajectory: &control.references[index].latents,
                drawers: vec![step; plan.steps.len()],
                mask: mask.clone(),
            });
        }
        Ok(Retouch {
            target: &prompted[self.target],
            target_span,
            context: Source {
                trajectory: &control.context.latents,
                drawers: self.context_steps(prompted)?,
                mask: self.masks.context.clone(),
            },
            references,
            blend_mask: self.masks.blend.clone(),
            needs: plan.steps.clone(),
            settings: plan.settings.clone(),
        })
    }
}
