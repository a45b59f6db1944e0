//! Looking at a step of a swap.

use std::collections::BTreeSet;

use candle_core::Tensor;

use crate::Result;
use crate::sampling::control::{Branch, Captured, CapturedParts, Half, Part, Rows, Swap};
use crate::sampling::guidance::Guided;
use crate::sampling::look::{Found, Sought};
use crate::sampling::swap::setup::{CallContext, Retouch, action, grid_of};

impl Retouch<'_> {
    /// Looks at the target at step k, whose latent is `z`: at what is kept, else, if `calls`, by calling the target's prompt
    /// half once as the step did, its attention swapped, and its sources where something of them is not kept. `None`: it
    /// takes a call and `calls` forbids it, or the target's map of the step before is not kept.
    ///
    /// # Errors
    /// When a call fails, or [`Monitor::goes_on`](crate::sampling::Monitor::goes_on) ends it.
    pub fn look(
        &self,
        k: usize,
        z: &Tensor,
        sought: Sought,
        with: CallContext<'_>,
        calls: bool,
    ) -> Result<Option<Found>> {
        let (s, needs) = (&self.settings, self.needs(k)?);
        if let Some(found) = self.look_without_target(k, z, sought, with, calls)? {
            return Ok(Some(found));
        }
        if !calls {
            return Ok(None);
        }
        // What later sites give comes too late to matter for an earlier one.
        let of = |parts: &BTreeSet<Part>| {
            let before = |part: &Part| match (part, sought) {
                (Part::KeysValues(at) | Part::Queries(at), Sought::Site { index, .. }) => {
                    *at <= index
                }
                _ => true,
            };
            parts.iter().copied().filter(before).collect()
        };
        let (mut context, mut references) = (CapturedParts::new(), Vec::new());
        if needs.lock || needs.swap {
            let sources = self.sources(k, needs, &of, with, true)?;
            (context, references) = sources.unwrap_or_default();
        }
        let masks = match needs.swap {
            true => match self.masks_of(k, with, &context, &references)? {
                Some(masks) => Some(masks),
                None => return Ok(None),
            },
            false => None,
        };
        let action = action(needs, &context, &references, masks.as_ref(), s.values);
        let target = self.target.conditioned()?;
        let guided = Guided {
            model: target.model,
            conditions: target.conditions,
            guidance: s.guidance,
            rescale: 0.0,
            branch: Branch::Target,
            beside: None,
        };
        let timestep = with.ddim.timesteps()[k] as f32;
        let swap = Swap::new(&s.sites, action);
        guided
            .look(z, timestep, k, swap, sought, with.monitor)
            .map(Some)
    }

    /// What is looked for, where the target need not be called: a map that is kept, or a site whose queries are the context's.
    fn look_without_target(
        &self,
        k: usize,
        z: &Tensor,
        sought: Sought,
        with: CallContext<'_>,
        calls: bool,
    ) -> Result<Option<Found>> {
        let (s, needs) = (&self.settings, self.needs(k)?);
        let (site, heads) = match sought {
            Sought::Map(grid) => {
                let own = grid_of(z, s.mask_levels.0)? == grid;
                let map = own.then(|| with.memory.target_map(k)).flatten();
                return Ok(map.map(Found::Map));
            }
            Sought::Site { index, heads } => (index, heads),
        };
        if !s.sites.contains(&site) || !(needs.lock || needs.context_queries) {
            return Ok(None);
        }
        let of = |parts: &BTreeSet<Part>| {
            let here = |part: &Part| match part {
                Part::KeysValues(at) | Part::Queries(at) => *at == site,
                Part::Map(_) => true,
            };
            parts.iter().copied().filter(here).collect()
        };
        let sources = self.sources(k, needs, &of, with, calls)?;
        let Some((context, references)) = sources else {
            return Ok(None);
        };
        let masks = match needs.swap {
            true => match self.masks_of(k, with, &context, &references)? {
                Some(masks) => Some(masks),
                None => return Ok(None),
            },
            false => None,
        };
        let action = action(needs, &context, &references, masks.as_ref(), s.values);
        let gaze = Swap::new(&s.sites, action).gaze(site, heads, None)?;
        Ok(gaze.map(Found::Site))
    }

    /// The raw cross-attention maps of a source branch at step k on a grid of its level: kept ones, else, if `calls`, by
    /// calling its prompt half. `None`: it takes a call and `calls` forbids it.
    ///
    /// # Errors
    /// When there is no such branch, or a call fails.
    pub fn source_map(
        &self,
        branch: Branch,
        k: usize,
        level: usize,
        with: CallContext<'_>,
        calls: bool,
    ) -> Result<Option<Tensor>> {
        let source = self.source_of(branch)?;
        let part = Part::Map(level);
        let rows = Rows::new(branch, source.trajectory[k].dim(0)?, false);
        let parts = BTreeSet::from([part]);
        let store = self.halves(source, k, &parts, rows, with, calls)?;
        Ok(
            store.and_then(|mut store| match store.remove(&(Half::Conditional, part)) {
                Some(Captured::Map(map)) => Some(map),
                _ => None,
            }),
        )
    }
}
