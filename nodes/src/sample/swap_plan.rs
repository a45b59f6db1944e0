//! What a swap does at each of its steps. The plan of a run asks the cache by it ([`keys`](super::swap_keys)) and the run
//! does it ([`Binding`](super::swap::Binding)), so that both agree.

use std::ops::Range;

use retouch_graph::NodeError;

use crate::attention::{BlendField, SwapAttention};
use crate::fields::Template;
use crate::payload::TrajectoryFacts;
use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_diffusion::sampling::StepProvenance;
use retouch_diffusion::sampling::swap::{Givens, MaskGrid, RetouchSettings, StepNeeds, mask_level};

/// What a sampler draws its steps with.
#[derive(Clone, Copy)]
pub(super) struct Sampler<'a> {
    pub(super) prompt: &'a Template,
    pub(super) negative: &'a Template,
    pub(super) guidance: f64,
    pub(super) rescale: f64,
}

/// What drew a step of the context.
pub(super) enum Provenance<'a> {
    /// The trajectory comes from a file that is not read yet.
    Unread,
    /// The file does not say.
    Unsaid,
    /// This did.
    By(&'a StepProvenance),
}

/// All that decides what a swap does; it is known before anything runs, but for what files say of themselves.
pub(super) struct SwapInput<'a> {
    pub(super) control: &'a SwapAttention,
    pub(super) facts: &'a ModelFacts,
    /// The id of the sampler's own model.
    pub(super) model: &'a str,
    /// The id of the control's vanilla model.
    pub(super) vanilla: Option<&'a str>,
    pub(super) guidance: f64,
    pub(super) rescale: f64,
    /// T.
    pub(super) steps: usize,
    /// Height and width of the context's latents.
    pub(super) size: (usize, usize),
    /// Those of each reference's.
    pub(super) references: Vec<(usize, usize)>,
    /// Which masks are given.
    pub(super) reference_masks: bool,
    pub(super) context_mask: bool,
    pub(super) blend_mask: bool,
    /// Whether the blend mask is 1 everywhere at a step.
    pub(super) fills: &'a dyn Fn(usize) -> bool,
    /// What drew each step of the context.
    pub(super) drawn: Vec<Provenance<'a>>,
}

/// What calls the context's branch at a step.
#[derive(Clone)]
pub(super) enum ContextCall {
    /// Nothing does: the swap does not act there.
    Idle,
    /// That is known once the trajectory is read from its file.
    Unread,
    /// These prompts, with one of the two models.
    By(Prompts),
}

/// The prompts of a branch, and the model that reads them.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Prompts {
    /// The control's vanilla model, not the sampler's own.
    pub(super) vanilla: bool,
    pub(super) prompt: String,
    pub(super) negative: String,
}

/// What a swap does.
pub(super) struct SwapPlan {
    /// The control's numbers, resolved against T and the sizes.
    pub(super) settings: RetouchSettings,
    /// The first step that is drawn here; those before are the context's own.
    pub(super) start: usize,
    /// The steps that swap; empty when there are no sites.
    pub(super) swap: Range<usize>,
    /// Whether any step swaps or locks.
    pub(super) acts: bool,
    /// What each step does and needs, from 0 to T.
    pub(super) steps: Vec<StepNeeds>,
    /// What calls the context's branch at each step.
    pub(super) context: Vec<ContextCall>,
    /// The subject's words in the context's prompts.
    pub(super) context_subject: Option<String>,
    /// The subject's words in each reference's prompt.
    pub(super) reference_subjects: Vec<Option<String>>,
    /// The subject's words in the target's prompt.
    pub(super) target_subject: Option<String>,
    /// Whether the target's own maps make masks.
    pub(super) blends_by_target: bool,
}

impl SwapPlan {
    /// # Errors
    /// When the control does not fit model, sizes or context.
    pub(super) fn new(input: &SwapInput<'_>) -> Result<Self, NodeError> {
        let (control, steps) = (input.control, input.steps);
        let settings = resolved(input)?;
        let start = settings.start_step.min(steps);
        let swap = Some(swap_range(control, steps));
        let swap = swap.filter(|swap| !settings.sites.is_empty() && !swap.is_empty());
        let swap = swap.unwrap_or(0..0);
        let locks = settings.lock && start < settings.from_step.min(settings.until_step);
        let acts = !settings.sites.is_empty() && (locks || !swap.is_empty());
        let subject = |own: &Option<Template>| {
            let words = own.as_ref().or(control.subject.as_ref());
            words.map(ToString::to_string)
        };
        let context_subject = subject(&control.context_subject);
        let given = |k| Givens {
            reference: input.reference_masks,
            context: input.context_mask,
            blend: input.blend_mask,
            fills: (input.fills)(k),
            context_subject: swap.contains(&k) && !input.context_mask && context_subject.is_some(),
        };
        let needs = (0..steps).map(|k| settings.needs(k, steps, given(k)));
        let steps_needs = needs.collect();
        let mut context = Vec::with_capacity(steps);
        for (k, drawn) in input.drawn.iter().enumerate().take(steps) {
            let idle = k < start || !acts || k >= settings.until_step;
            context.push(match drawn {
                _ if idle => ContextCall::Idle,
                Provenance::Unread => ContextCall::Unread,
                Provenance::Unsaid => ContextCall::By(context_prompts(k, input, None)?),
                Provenance::By(drawn) => ContextCall::By(context_prompts(k, input, Some(drawn))?),
            });
        }
        let reference_subjects = (0..input.references.len())
            .map(|index| control.subject_of_reference(index).map(ToString::to_string));
        Ok(Self {
            start,
            acts,
            steps: steps_needs,
            context,
            reference_subjects: reference_subjects.collect(),
            target_subject: subject(&None),
            blends_by_target: !swap.is_empty()
                && !input.blend_mask
                && control.blend != BlendField::Context,
            context_subject,
            swap,
            settings,
        })
    }

    /// Whether any step swaps.
    pub(super) fn swaps(&self) -> bool {
        !self.swap.is_empty()
    }
}

/// The steps of a control's swap: first and one past the last.
pub(super) fn swap_range(control: &SwapAttention, steps: usize) -> Range<usize> {
    let first = control
        .start_step
        .resolve(steps)
        .max(control.from_step.resolve(steps));
    let last = control.until_step.resolve(steps).min(steps);
    first..last.max(first)
}

/// What is known of a retouch's trajectory: the context's, of which the steps before `start` are a part.
pub(super) fn taken_over(context: TrajectoryFacts, start: usize) -> TrajectoryFacts {
    TrajectoryFacts {
        schedule: context.schedule.filter(|_| start > 0),
        ..context
    }
}

/// What calls the context's branch at step k: what drew it, with `context_prompt` where the vanilla model did not.
fn context_prompts(
    k: usize,
    input: &SwapInput<'_>,
    drawn: Option<&StepProvenance>,
) -> Result<Prompts, NodeError> {
    let given = input.control.context_prompt.as_deref();
    let Some(drawn) = drawn else {
        let prompt = given.ok_or_else(|| {
            NodeError::failed("the context does not say what drew it")
                .help("give `context_prompt`: what the context's picture shows")
        })?;
        return Ok(Prompts {
            vanilla: false,
            prompt: prompt.to_owned(),
            negative: String::new(),
        });
    };
    let is_own = drawn.model == input.model;
    let is_other = input.vanilla == Some(&drawn.model);
    let vanilla = is_other && (drawn.vanilla || !is_own);
    if !is_own && !is_other {
        return Err(NodeError::failed(format!(
            "step {k} of the context was drawn by a model that is neither this sampler's nor the control's `vanilla`"
        ))
        .help("link the model that drew it: `vanilla: $base` in swap_attention"));
    }
    let prompt = if vanilla || drawn.vanilla {
        &drawn.prompt
    } else {
        given.unwrap_or(&drawn.prompt)
    };
    Ok(Prompts {
        vanilla,
        prompt: prompt.to_owned(),
        negative: drawn.negative.clone(),
    })
}

impl SwapInput<'_> {
    /// The level of the mask grid: the target's and the context's, and each reference's.
    ///
    /// # Errors
    /// When no attention layer is on the grid that is asked for.
    pub(super) fn mask_levels(&self) -> Result<(usize, Vec<usize>), NodeError> {
        let level = |latent, grid| {
            let level = mask_level(&self.facts.sites, latent, grid);
            level.map_err(|error| NodeError::failed(error.to_string()))
        };
        let grid = self.control.mask_grid.0;
        let own = level(self.size, grid)?;
        let references = self.references.iter().map(|&reference| match grid {
            MaskGrid::Auto => level(reference, MaskGrid::Auto),
            // A grid that is given is the target's; a reference's is the one of the same layers.
            MaskGrid::Size(..) => Ok(own),
        });
        Ok((own, references.collect::<Result<_, _>>()?))
    }
}

/// The parameters of a swap as numbers.
fn resolved(input: &SwapInput<'_>) -> Result<RetouchSettings, NodeError> {
    let (control, steps) = (input.control, input.steps);
    let mask_levels = input.mask_levels()?;
    let sites = control.sites.resolve(&input.facts.sites);
    Ok(RetouchSettings {
        sites: sites.map_err(NodeError::failed)?,
        start_step: control.start_step.resolve(steps),
        from_step: control.from_step.resolve(steps),
        until_step: control.until_step.resolve(steps),
        structure_until: control.structure_until.resolve(steps),
        lock: control.lock,
        blend: control.blend.into(),
        values: control.values.into(),
        threshold: control.threshold.0,
        smooth: control.smooth,
        mask_levels,
        guidance: input.guidance,
        rescale: input.rescale,
    })
}
