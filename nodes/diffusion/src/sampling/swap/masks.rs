//! The masks of a swap's steps.

use candle_core::Tensor;

use crate::prompt::conditioning::Span;
use crate::sampling::control::{Captured, CapturedParts, Half, Part, maps_alone};
use crate::sampling::masks::{Plane, subject_maps};
use crate::sampling::memory::StepStore;
use crate::sampling::swap::setup::{
    Blend, CallContext, Retouch, Source, StepMasks, grid_of, missing_span,
};
use crate::{Error, Result};

impl Retouch<'_> {
    /// The masks of step k; `previous` is the target's map of the step before, if this run made it.
    pub(super) fn masks_at(
        &self,
        k: usize,
        start: usize,
        context: &CapturedParts,
        references: &[CapturedParts],
        previous: Option<Tensor>,
        memory: &dyn StepStore,
    ) -> Result<StepMasks> {
        let s = &self.settings;
        let computed = |source: &Source<'_>,
                        store: &CapturedParts,
                        level: usize|
         -> Result<Option<Vec<Plane>>> {
            let Some(Captured::Map(map)) = store.get(&(Half::Conditional, Part::Map(level))) else {
                return Ok(None);
            };
            let Some(span) = source.drawers[k].span.clone() else {
                return Ok(None);
            };
            let grid = grid_of(&source.trajectory[k], level)?;
            Ok(Some(self.binarised(map, span, grid)?))
        };
        let reference_masks = self
            .references
            .iter()
            .zip(references)
            .zip(&s.mask_levels.1)
            .map(|((source, store), level)| match &source.mask {
                Some(given) => Ok(given.at(k).to_vec()),
                None => computed(source, store, *level)?
                    .ok_or_else(|| missing_span("reference", "reference_mask")),
            })
            .collect::<Result<_>>()?;
        let grid = grid_of(&self.context.trajectory[k], s.mask_levels.0)?;
        let context_mask = match &self.context.mask {
            Some(given) => given.at(k).to_vec(),
            None => match computed(&self.context, context, s.mask_levels.0)? {
                Some(mask) => mask,
                // It is not used: the blend mask is given, and no subject.
                None if self.blend_mask.is_some() => vec![Plane::filled(grid, 0.0)],
                None => return Err(missing_span("context", "context_mask")),
            },
        };
        let blend = match &self.blend_mask {
            Some(given) => given.at(k).to_vec(),
            // Before the target's first step it has no map of its own.
            None if k == start || s.blend == Blend::Context => context_mask.clone(),
            None => {
                let map = previous
                    .or_else(|| memory.target_map(k - 1))
                    .ok_or_else(|| Error::request("the target's map of the step before is gone"))?;
                let span = self
                    .target_span
                    .clone()
                    .ok_or_else(|| missing_span("target", "blend_mask"))?;
                let own = self.binarised(&map, span, grid)?;
                if s.blend == Blend::Target {
                    own
                } else {
                    zip_planes(&context_mask, &own, Plane::max)
                }
            }
        };
        Ok(StepMasks {
            references: reference_masks,
            context: context_mask,
            blend,
        })
    }

    /// The masks of step k as the swap had them, from what is kept of its calls: `None` when the step does not swap, or
    /// something that they are made of is not kept. Nothing is called.
    ///
    /// # Errors
    /// When what is kept does not fit.
    pub fn kept_masks(&self, k: usize, with: CallContext<'_>) -> Result<Option<StepMasks>> {
        let needs = self.needs(k)?;
        if !needs.swap {
            return Ok(None);
        }
        let sources = self.sources(k, needs, &maps_alone, with, false)?;
        match sources {
            Some((context, references)) => self.masks_of(k, with, &context, &references),
            None => Ok(None),
        }
    }

    /// The masks of step k; `None` when the target's map of the step before is needed and not kept.
    pub(super) fn masks_of(
        &self,
        k: usize,
        with: CallContext<'_>,
        context: &CapturedParts,
        references: &[CapturedParts],
    ) -> Result<Option<StepMasks>> {
        let start = self.settings.start_step.min(with.ddim.steps());
        let by_target = self.blend_mask.is_none() && self.settings.blend != Blend::Context;
        let previous = match k > start && by_target {
            true => match with.memory.target_map(k - 1) {
                Some(map) => Some(map),
                None => return Ok(None),
            },
            false => None,
        };
        self.masks_at(k, start, context, references, previous, with.memory)
            .map(Some)
    }

    fn binarised(&self, raw: &Tensor, span: Span, grid: (usize, usize)) -> Result<Vec<Plane>> {
        let maps = subject_maps(raw, &span, grid, self.settings.smooth)?;
        Ok(maps
            .iter()
            .map(|map| self.settings.threshold.apply(map))
            .collect())
    }
}

/// Combines planes image by image; one plane serves every image of the other side.
fn zip_planes(a: &[Plane], b: &[Plane], f: impl Fn(&Plane, &Plane) -> Plane) -> Vec<Plane> {
    let pick = |planes: &[Plane], i: usize| planes[if planes.len() == 1 { 0 } else { i }].clone();
    (0..a.len().max(b.len()))
        .map(|i| f(&pick(a, i), &pick(b, i)))
        .collect()
}
