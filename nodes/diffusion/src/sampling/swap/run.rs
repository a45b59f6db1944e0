//! The loop of a swap.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use candle_core::Tensor;

use crate::sampling::control::{
    Action, Branch, CapturedParts, MapRecorder, Part, Swap, maps_alone,
};
use crate::sampling::guidance::Guided;
use crate::sampling::memory::{Resume, StepStore, recall};
use crate::sampling::monitor::Monitor;
use crate::sampling::scheduler::Ddim;
use crate::sampling::swap::setup::{CallContext, Retouch, Retouched, action, grid_of};
use crate::{Error, Result};

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
                    let action = action(
                        needs,
                        &context,
                        &references,
                        step_masks.as_ref(),
                        self.settings.values,
                    );
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
}
