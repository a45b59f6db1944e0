//! What a swap is given: its numbers, what it works on, and what each of its steps needs.

use std::collections::BTreeSet;

use candle_core::Tensor;
use serde::Serialize;

use crate::networks::unet::grid_at;
use crate::prompt::conditioning::Span;
use crate::sampling::control::{Action, Branch, CapturedParts, Half, Part};
use crate::sampling::guidance::Conditioner;
use crate::sampling::masks::{Plane, Threshold};
use crate::sampling::matching::Values;
use crate::sampling::memory::StepStore;
use crate::sampling::monitor::Monitor;
use crate::sampling::scheduler::Ddim;
use crate::{Error, Result};

/// How the context's mask and the target's make M_k.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Blend {
    /// The larger of the two.
    #[default]
    Union,
    /// The context's.
    Context,
    /// The target's, of the step before.
    Target,
}

/// The numbers of stage 2, all resolved against T.
#[derive(Clone, Debug)]
pub struct RetouchSettings {
    /// The sites that are acted on.
    pub sites: BTreeSet<usize>,
    /// Steps before it are the context's own.
    pub start_step: usize,
    /// The swap begins here.
    pub from_step: usize,
    /// The swap (and the lock) ends before this step.
    pub until_step: usize,
    /// Queries are the context's before this step.
    pub structure_until: usize,
    /// Whether the context's attention replaces the target's before `from_step`.
    pub lock: bool,
    /// How M_k is made.
    pub blend: Blend,
    /// Which values are read inside the mask.
    pub values: Values,
    /// How maps become masks.
    pub threshold: Threshold,
    /// Passes of the 3x3 filter over a map.
    pub smooth: usize,
    /// The level (halvings of the latent's grid) of the mask grid: the target's and the context's, and each reference's.
    pub mask_levels: (usize, Vec<usize>),
    /// Guidance of the target.
    pub guidance: f64,
    /// Its rescale; 0 is none.
    pub rescale: f64,
}

/// A source of stage 2: the context's or the reference's branch.
pub struct Source<'a> {
    /// The latents z_0 .. z_T.
    pub trajectory: &'a [Tensor],
    /// What runs step k.
    pub drawers: Vec<SourceStep<'a>>,
    /// Given masks in place of computed ones, on the mask grid.
    pub mask: Option<GivenMasks>,
}

/// Masks that were given, on a mask grid.
#[derive(Clone, Debug)]
pub struct GivenMasks {
    /// The step of the first of them.
    pub first_step: usize,
    /// At least one step's masks, each of every image or one for all. Outside these steps the nearest is taken.
    pub steps: Vec<Vec<Plane>>,
}

impl GivenMasks {
    /// The masks of step k.
    #[must_use]
    pub fn at(&self, k: usize) -> &[Plane] {
        let index = k.saturating_sub(self.first_step);
        self.steps
            .get(index.min(self.steps.len().saturating_sub(1)))
            .map_or(&[], Vec::as_slice)
    }

    /// Whether the masks of step k are 1 everywhere.
    #[must_use]
    pub fn fills(&self, k: usize) -> bool {
        let mut numbers = self.at(k).iter().flat_map(|plane| &plane.data);
        numbers.all(|&m| m == 1.0)
    }

    /// Keeps one mask for all images at each step where they are equal.
    pub fn merge_equal(&mut self) {
        for planes in &mut self.steps {
            if planes.windows(2).all(|pair| pair[0] == pair[1]) {
                planes.truncate(1);
            }
        }
    }
}

/// What runs one step of a source branch.
#[derive(Clone)]
pub struct SourceStep<'a> {
    /// The model and its prompts.
    pub draws: &'a dyn Conditioner,
    /// The subject's tokens in its prompt, which may be missing when no map is needed.
    pub span: Option<Span>,
}

/// Everything that stage 2 works on.
pub struct Retouch<'a> {
    /// The target's model and prompts.
    pub target: &'a dyn Conditioner,
    /// The subject's tokens in the target's prompt.
    pub target_span: Option<Span>,
    /// The trajectory of stage 1 and what drew it.
    pub context: Source<'a>,
    /// The inverted photos, at least one.
    pub references: Vec<Source<'a>>,
    /// Given blend masks, on the mask grid.
    pub blend_mask: Option<GivenMasks>,
    /// What each step does and needs, from 0 to T ([`RetouchSettings::needs`]).
    pub needs: Vec<StepNeeds>,
    /// The numbers.
    pub settings: RetouchSettings,
}

/// What is given to a swap in place of what it would compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Givens {
    /// The references' masks, of all of them.
    pub reference: bool,
    /// The context's.
    pub context: bool,
    /// The blend mask.
    pub blend: bool,
    /// The blend mask is known to be 1 everywhere at the step.
    pub fills: bool,
    /// A subject to look up in the context's prompt.
    pub context_subject: bool,
}

/// What the target does at a step, and what it needs for that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepNeeds {
    /// The context's attention takes the place of the target's.
    pub lock: bool,
    /// The swap is on.
    pub swap: bool,
    /// Queries are the context's.
    pub context_queries: bool,
    /// What is needed of each half of the context's branch (the map of the prompt half alone).
    pub context: BTreeSet<Part>,
    /// What is needed of each reference's; of none before the swap.
    pub references: Vec<BTreeSet<Part>>,
    /// The next step's mask depends on the target's map of this one.
    pub target_map: bool,
}

impl RetouchSettings {
    /// What step k of T needs.
    #[must_use]
    pub fn needs(&self, k: usize, steps: usize, given: Givens) -> StepNeeds {
        let until = self.until_step.min(steps);
        let acts = k < self.until_step && !self.sites.is_empty();
        let swap = acts && k >= self.from_step;
        let lock = acts && k < self.from_step && self.lock;
        let context_queries = swap && k < self.structure_until;
        let mut context = BTreeSet::new();
        let mut references = Vec::new();
        let keys_values = || self.sites.iter().map(|&site| Part::KeysValues(site));
        let queries = || self.sites.iter().map(|&site| Part::Queries(site));
        if lock {
            context.extend(keys_values().chain(queries()));
        }
        if swap {
            references.extend(self.mask_levels.1.iter().map(|level| {
                let map = (!given.reference).then_some(Part::Map(*level));
                keys_values().chain(map).collect::<BTreeSet<Part>>()
            }));
            // Matched values are read through the context's attention.
            if !given.fills || context_queries || self.values == Values::Matched {
                context.extend(keys_values());
            }
            if context_queries {
                context.extend(queries());
            }
            if !given.context && (!given.blend || given.context_subject) {
                context.insert(Part::Map(self.mask_levels.0));
            }
        }
        let next = k + 1;
        StepNeeds {
            lock,
            swap,
            context_queries,
            context,
            references,
            target_map: !given.blend
                && self.blend != Blend::Context
                && !self.sites.is_empty()
                && next >= self.from_step
                && next < until,
        }
    }
}

/// The masks of one swapped step: of each image, or one for all.
#[derive(Clone, Debug)]
pub struct StepMasks {
    /// M_ref of each reference, on its own mask grid.
    pub references: Vec<Vec<Plane>>,
    /// M_ctx.
    pub context: Vec<Plane>,
    /// M_k.
    pub blend: Vec<Plane>,
}

/// What the calls of a swap are made with.
#[derive(Clone, Copy)]
pub struct CallContext<'a> {
    /// The timesteps.
    pub ddim: &'a Ddim,
    /// Who watches.
    pub monitor: &'a dyn Monitor,
    /// What is kept of earlier calls.
    pub memory: &'a dyn StepStore,
}

/// What stage 2 gives.
#[derive(Clone, Debug)]
pub struct Retouched {
    /// z_0 .. z_T; up to `start_step` the context's own.
    pub trajectory: Vec<Tensor>,
    /// The masks of the steps of the swap.
    pub masks: Vec<StepMasks>,
}

/// What the target's sites do at a step, given what the branches gave and the step's masks.
pub(super) fn action<'a>(
    needs: &StepNeeds,
    context: &'a CapturedParts,
    references: &'a [CapturedParts],
    masks: Option<&'a StepMasks>,
    values: Values,
) -> Action<'a> {
    match masks {
        None if needs.lock => Action::Lock { context },
        None => Action::Let,
        Some(masks) => Action::Swap {
            context: needs
                .context
                .iter()
                .any(|part| matches!(part, Part::KeysValues(_)))
                .then_some(context),
            references,
            context_queries: needs.context_queries,
            reference_masks: &masks.references,
            blend: &masks.blend,
            values,
        },
    }
}

pub(super) fn grid_of(z: &Tensor, level: usize) -> Result<(usize, usize)> {
    let (_, _, h, w) = z.dims4()?;
    Ok(grid_at((h, w), level))
}

pub(super) fn missing_span(branch: &str, parameter: &str) -> Error {
    Error::request(format!(
        "the {branch}'s mask is computed from cross-attention, and no subject is given"
    ))
    .help(format!("give `subject`, or a mask: `{parameter}`"))
}

impl Retouch<'_> {
    /// An earlier reference whose calls at step k are the same, so that what it gave is not called for again.
    pub(super) fn twin(&self, index: usize, k: usize, memory: &dyn StepStore) -> Option<usize> {
        let calls = |index| {
            let of = |half| memory.call(Branch::Reference(index), half, k);
            Some((of(Half::Unconditional), of(Half::Conditional)?))
        };
        let own = calls(index)?;
        (0..index).find(|&earlier| calls(earlier) == Some(own))
    }

    /// What step k does and needs.
    pub(super) fn needs(&self, k: usize) -> Result<&StepNeeds> {
        (self.needs.get(k)).ok_or_else(|| Error::request(format!("the swap has no step {k}")))
    }
}
