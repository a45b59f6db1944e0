//! Stage 2, the retouch by attention swap: its numbers, what it works on, and its loop.

mod grid;
mod look;
mod masks;
mod sources;

pub use grid::{MaskGrid, auto_sites, mask_level};

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use candle_core::Tensor;
use serde::Serialize;

use crate::networks::unet::grid_at;
use crate::prompt::conditioning::Span;
use crate::sampling::control::{Action, Branch, CapturedParts, Half, MapRecorder, Part, Swap};
use crate::sampling::guidance::{Conditioner, Guided};
use crate::sampling::masks::{Plane, Threshold};
use crate::sampling::memory::{Resume, StepStore, recall};
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
            if !given.fills || context_queries {
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

/// The parts that are needed of a half: maps are the prompt's alone.
#[must_use]
pub fn of_half(parts: &BTreeSet<Part>, half: Half) -> BTreeSet<Part> {
    parts
        .iter()
        .copied()
        .filter(|part| half == Half::Conditional || !matches!(part, Part::Map(_)))
        .collect()
}

/// Of the parts those that masks are made of.
#[must_use]
pub fn maps_alone(parts: &BTreeSet<Part>) -> BTreeSet<Part> {
    parts
        .iter()
        .copied()
        .filter(|part| matches!(part, Part::Map(_)))
        .collect()
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
    /// Stage 2: from the context's latent at `start_step`, with the self-attention of the chosen sites swapped.
    ///
    /// # Errors
    /// When a call fails, a subject is needed and missing, or the run is cancelled.
    pub fn run(
        &self,
        ddim: &Ddim,
        monitor: &dyn Monitor,
        memory: &dyn StepStore,
    ) -> Result<Retouched> {
        let steps = ddim.steps();
        let start = self.settings.start_step.min(steps);
        let with = CallContext {
            ddim,
            monitor,
            memory,
        };
        let mut trajectory: Vec<Tensor> = self.context.trajectory[..=start].to_vec();
        let mut z = self.context.trajectory[start].clone();
        let mut masks = Vec::new();
        // The target's map of the step before, if that step was made in this run.
        let mut before: Option<Tensor> = None;
        let mut warned = false;
        let mut resume = Resume::new(memory, steps);
        let mut ahead: HashMap<(usize, Branch), CapturedParts> = HashMap::new();
        for k in start..steps {
            monitor.step(k, steps)?;
            let needs = self.needs(k)?;
            let kept = || {
                let next = memory.state(k + 1)?;
                let map = needs.target_map.then(|| memory.target_map(k));
                (map.as_ref().is_none_or(Option::is_some)).then(|| (next, map.flatten()))
            };
            let (there, _claim) = recall(memory, k + 1, kept)?;
            let previous = before.take();
            if there.is_none() {
                resume.makes(k, start);
            }
            // What was made for steps that turned out to be there is not needed.
            ahead.retain(|(step, _), _| *step >= k);
            let made = there.is_none();
            let (context, references) = self.branches(k, made, with, &mut ahead)?;
            let mut step_masks = None;
            if needs.swap && (made || memory.wants_masks()) {
                let own = self.masks_at(k, start, &context, &references, previous, memory)?;
                masks.push(own.clone());
                step_masks = Some(own);
            }
            (z, before) = match there {
                Some(there) => there,
                None => {
                    let action = action(needs, &context, &references, step_masks.as_ref());
                    self.step(k, &z, action, with, &mut warned)?
                }
            };
            trajectory.push(z.clone());
        }
        resume.end(start);
        monitor.drawn(steps, steps, &z);
        monitor.step(steps, steps)?;
        Ok(Retouched { trajectory, masks })
    }

    /// What the context and the references give for step k. If the step is not `made`, as it is kept, that is what its masks
    /// are computed from, if those are wanted, and nothing else.
    fn branches(
        &self,
        k: usize,
        made: bool,
        with: CallContext<'_>,
        ahead: &mut HashMap<(usize, Branch), CapturedParts>,
    ) -> Result<(CapturedParts, Vec<CapturedParts>)> {
        let needs = self.needs(k)?;
        let (mut context, mut references) = (CapturedParts::new(), Vec::new());
        let swaps = needs.swap && (made || with.memory.wants_masks());
        if !(swaps || needs.lock && made) {
            return Ok((context, references));
        }
        if made {
            self.call_ahead(k, with, ahead)?;
        }
        let of = |parts: &BTreeSet<Part>| match made {
            true => parts.clone(),
            false => maps_alone(parts),
        };
        let parts = of(&needs.context);
        context.extend(self.source(&self.context, k, &parts, Branch::Context, with, ahead)?);
        if swaps {
            for (index, (source, parts)) in
                self.references.iter().zip(&needs.references).enumerate()
            {
                let store = match self.twin(index, k, with.memory) {
                    Some(twin) => CapturedParts::clone(&references[twin]),
                    None => {
                        let branch = Branch::Reference(index);
                        self.source(source, k, &of(parts), branch, with, ahead)?
                    }
                };
                references.push(store);
            }
        }
        Ok((context, references))
    }

    /// Draws step k from `z`: the state after it, and the target's map if the next step's mask depends on it.
    fn step(
        &self,
        k: usize,
        z: &Tensor,
        action: Action<'_>,
        with: CallContext<'_>,
        warned: &mut bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (s, needs) = (&self.settings, self.needs(k)?);
        let grid = grid_of(z, s.mask_levels.0)?;
        let mut swap = Swap {
            sites: &s.sites,
            action,
            maps: needs.target_map.then(|| MapRecorder::new(grid)),
            fired: 0,
            unmasked: 0,
        };
        let target = self.target.conditioned()?;
        let guided = Guided {
            model: target.model,
            conditions: target.conditions,
            guidance: s.guidance,
            rescale: s.rescale,
            branch: Branch::Target,
            beside: None,
        };
        let since = Instant::now();
        let timestep = with.ddim.timesteps()[k] as f32;
        let out = guided.noise(z, timestep, k, &mut swap, with.monitor)?;
        let seconds = since.elapsed().as_secs_f64();
        if swap.fired == 0 && (needs.swap || needs.lock) {
            return Err(Error::request(
                "the control has sites to act on and acted on none",
            ));
        }
        if swap.unmasked > 0 && !*warned {
            *warned = true;
            with.monitor.warn(&format!(
                "the reference's mask leaves no key at {} of the sites (first at step {k}); all keys are used there",
                swap.unmasked
            ));
        }
        let map = swap.maps.map(MapRecorder::finish).transpose()?;
        if let Some(map) = &map {
            with.memory.keep_target_map(k, map, seconds);
        }
        let next = with.ddim.step(z, &out, k)?;
        with.memory.keep_state(k + 1, &next, seconds);
        if k + 1 < with.ddim.steps() {
            with.monitor.drawn(k + 1, with.ddim.steps(), &next);
        }
        Ok((next, map))
    }

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
