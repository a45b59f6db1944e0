//! What the cache is asked for by a swap: the keys of its states, and of the calls of its branches.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use retouch_graph::key::KeyHasher;
use retouch_graph::{Chain, Chained, Key, Step, Upstream};

use super::swap_plan::{ContextCall, Provenance, Sampler, SwapInput, SwapPlan, taken_over};
use crate::attention::ControlNote;
use crate::chain::{self, Draw, SamplerNote, SwapNote, TrajectoryNote, empty_prompt_field};
use crate::payload::TrajectoryFacts;
use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_diffusion::prompt::conditioning::reads_chunks;
use retouch_diffusion::sampling::StepProvenance;
use retouch_diffusion::sampling::control::{Branch, Half, Part, maps_alone};
use retouch_diffusion::sampling::scheduler::Ddim;
use retouch_diffusion::sampling::swap::{Blend, Values};

/// A swap while the plan of a run is made.
struct SwapKeys<'a> {
    plan: SwapPlan,
    control: &'a ControlNote,
    target: Draw<'a>,
    facts: &'a ModelFacts,
    ddim: Ddim,
    calls: HashMap<(Branch, Half, usize), Key>,
}

/// The steps and keys of a sampler with a control; `None` when they are not known, or the run will refuse the control.
// Long: one list of keys, in the order of the run.
pub(super) fn keys(sampler: Sampler<'_>, upstream: &Upstream<'_>) -> Option<Chained> {
    let (id, facts) = chain::model(upstream, "model")?;
    let control = upstream.link("control")?.note::<ControlNote>()?;
    let (context, references) = (&control.context, &control.references);
    let steps = context.facts.steps;
    if references.is_empty() || references.iter().any(|r| r.facts.steps != steps) {
        return None;
    }
    let sides = |of: &TrajectoryFacts| (of.height, of.width);
    let drawn = context.drawn.iter().map(|drawn| match drawn {
        Some(drawn) => Provenance::By(drawn),
        None => Provenance::Unread,
    });
    let plan = SwapPlan::new(&SwapInput {
        control: &control.settings,
        facts: &facts,
        model: &id,
        vanilla: control.vanilla.as_deref(),
        guidance: sampler.guidance,
        rescale: sampler.rescale,
        steps,
        size: sides(&context.facts),
        references: references.iter().map(|of| sides(&of.facts)).collect(),
        reference_masks: !control.reference_masks.is_empty(),
        context_mask: control.context_mask.is_some(),
        blend_mask: control.blend_mask.is_some(),
        fills: &|_| control.fills,
        drawn: drawn.collect(),
    })
    .ok()?;
    let target = Draw {
        model: &id,
        prompt: sampler.prompt,
        negative: sampler.negative,
        guidance: sampler.guidance,
        rescale: sampler.rescale,
        numerics: upstream.numerics,
        blank_is_zero: facts.blank_is_zero,
        beside: None,
    };
    let mut keys = SwapKeys {
        plan,
        control: &control,
        target,
        facts: &facts,
        ddim: Ddim::new(&facts.scheduler, steps).ok()?,
        calls: HashMap::new(),
    };
    let start = keys.plan.start;
    let mut states = context.states.get(..=start)?.to_vec();
    let (mut made, mut kept, mut maps) = (Vec::new(), Vec::new(), HashMap::new());
    for k in start..steps {
        let (step, control) = keys.step(k)?;
        let before = *states.last()?;
        let after = target.step(&before, &keys.ddim, k, control.as_ref());
        let mut entries = vec![after];
        if keys.plan.steps.get(k)?.target_map {
            let map = chain::map_key(&after, keys.plan.settings.mask_levels.0);
            maps.insert(k, map);
            entries.push(map);
        }
        states.push(after);
        made.push(step);
        kept.push(entries);
    }
    let SwapKeys { plan, calls, .. } = keys;
    let own = StepProvenance {
        model: id.clone(),
        vanilla: false,
        prompt: sampler.prompt.to_string(),
        negative: sampler.negative.to_string(),
    };
    // What drew the steps of a file is unknown until it is read, what draws these is not.
    let before = context.drawn.iter().take(start).cloned();
    let trajectory = Arc::new(TrajectoryNote {
        states: states.clone(),
        drawn: before
            .chain(std::iter::repeat_n(Some(own), steps - start))
            .collect(),
        facts: taken_over(context.facts, start),
    });
    let key = trajectory.key();
    let mut ports = vec![("latent", *states.last()?), ("trajectory", key)];
    let of_references =
        (0..references.len()).map(|index| -> &str { control.settings.reference_prompt.at(index) });
    let of_steps = trajectory.drawn.iter().flatten();
    let mut prompts = of_references.chain(of_steps.map(|drawn| drawn.prompt.as_str()));
    if facts.blank_is_zero && prompts.any(str::is_empty) {
        ports.push(("masks", chain::beside_blank(upstream, &key, "masks")));
    }
    drop(prompts);
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
                steps: plan.swap,
                references: references.len(),
                settings: plan.settings,
            }),
        })),
        calls: 0,
    })
}

impl SwapKeys<'_> {
    /// Step k: its calls and needs, and what stands for the control in the key of its state.
    fn step(&mut self, k: usize) -> Option<(Step, Option<Key>)> {
        let target = self.target;
        let needs = self.plan.steps.get(k)?.clone();
        let mut step = Step {
            calls: (target.halves().len() * self.control.context.facts.batch) as u64,
            ..Step::default()
        };
        if !(needs.lock || needs.swap) {
            return Some((step, None));
        }
        let mut hasher = KeyHasher::new("retouch/control/1");
        for site in &self.plan.settings.sites {
            hasher.field("site", &(*site as u64).to_le_bytes());
        }
        for half in target.halves() {
            let call = self.context_call(k, *half)?;
            hasher.field("context", &call.0);
            let of = self.control.context.facts;
            self.need(
                &mut step,
                (Branch::Context, *half, k),
                call,
                &needs.context,
                &of,
            );
        }
        if needs.swap {
            let references = self.control.references.iter();
            for (index, (reference, parts)) in references.zip(&needs.references).enumerate() {
                let draw = Draw {
                    prompt: self.control.settings.reference_prompt.at(index),
                    negative: "",
                    ..target
                };
                for half in target.halves() {
                    let timestep = self.ddim.timesteps()[k] as f32;
                    let call = draw.call(reference.states.get(k)?, timestep, *half);
                    hasher.field("reference", &call.0);
                    let at = (Branch::Reference(index), *half, k);
                    self.need(&mut step, at, call, parts, &reference.facts);
                }
            }
            hasher.field("queries", &[u8::from(needs.context_queries)]);
            // A field of a later time than the format: what has it at its default keeps its key.
            if self.plan.settings.values == Values::Matched {
                hasher.field("values", b"matched");
            }
            self.mask_rules(&mut hasher, k == self.plan.start);
        }
        Some((step, Some(hasher.finish())))
    }

    /// Adds what a step needs of a call.
    fn need(
        &mut self,
        step: &mut Step,
        (branch, half, k): (Branch, Half, usize),
        call: Key,
        parts: &BTreeSet<Part>,
        of: &TrajectoryFacts,
    ) {
        self.calls.insert((branch, half, k), call);
        let need = |parts: &BTreeSet<Part>| chain::need(call, half, parts, self.facts, of);
        step.needs.extend(need(parts));
        step.looks.extend(need(&maps_alone(parts)));
    }

    /// The call of a half of the context at step k.
    fn context_call(&self, k: usize, half: Half) -> Option<Key> {
        let state = self.control.context.states.get(k)?;
        let timestep = self.ddim.timesteps()[k];
        match self.plan.context.get(k)? {
            ContextCall::Idle => None,
            ContextCall::Unread => Some(self.unread_call(state, timestep, half)),
            ContextCall::By(prompts) => {
                let model = match prompts.vanilla {
                    true => self.control.vanilla.as_deref()?,
                    false => self.target.model,
                };
                let draw = Draw {
                    model,
                    prompt: &prompts.prompt,
                    negative: &prompts.negative,
                    ..self.target
                };
                Some(draw.call(state, timestep as f32, half))
            }
        }
    }

    /// A call of a context that only says what drew it once its file is read: all that decides it.
    fn unread_call(&self, state: &Key, timestep: usize, half: Half) -> Key {
        let (id, control) = (self.target.model, self.control);
        let prompt = control.settings.context_prompt.as_deref();
        let mut hasher = KeyHasher::new("retouch/call-of-file/1");
        hasher.field("state", &state.0);
        hasher.field("timestep", &(timestep as u64).to_le_bytes());
        // The names that the halves had when the format was set.
        let name: &[u8] = match half {
            Half::Unconditional => b"Negative",
            Half::Conditional => b"Prompt",
        };
        hasher.field("half", name);
        hasher.field("model", id.as_bytes());
        hasher.field("vanilla", format!("{:?}", control.vanilla).as_bytes());
        hasher.field("prompt", format!("{prompt:?}").as_bytes());
        // With guidance prompts that are read in chunks are given equally many tokens.
        let mut models = std::iter::once(id).chain(control.vanilla.as_deref());
        if self.target.guidance != 1.0 && models.any(reads_chunks) {
            hasher.field("guided", &[1]);
        }
        if let Some(prompt) = prompt
            && half == Half::Conditional
        {
            empty_prompt_field(&mut hasher, prompt, self.facts.blank_is_zero);
        }
        hasher.finish()
    }

    /// Adds to a step's control what its masks are: given ones by their keys, computed ones by their rule. `first`: the
    /// target's first step.
    fn mask_rules(&self, hasher: &mut KeyHasher, first: bool) {
        let (control, settings) = (self.control, &self.plan.settings);
        let given = |hasher: &mut KeyHasher, name: &str, key: &Key, level: usize| {
            hasher.field(name, &key.0);
            // It is averaged to the mask grid before it is turned to a site's.
            hasher.field("level", &(level as u64).to_le_bytes());
        };
        let computed = |hasher: &mut KeyHasher, name: &str, subject: &Option<String>, level| {
            let rule = format!(
                "{subject:?} level {level} smooth {} threshold {:?}",
                settings.smooth, settings.threshold
            );
            hasher.field(name, rule.as_bytes());
        };
        let level = settings.mask_levels.0;
        let subjects = &self.plan.reference_subjects;
        for (index, (own, subject)) in settings.mask_levels.1.iter().zip(subjects).enumerate() {
            let masks = &control.reference_masks;
            match masks.get(if masks.len() == 1 { 0 } else { index }) {
                Some(key) => given(hasher, "reference_mask", key, *own),
                None => computed(hasher, "reference_mask", subject, *own),
            }
        }
        if let Some(key) = &control.blend_mask {
            given(hasher, "blend_mask", key, level);
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
            match &control.context_mask {
                Some(key) => given(hasher, "context_mask", key, level),
                None => computed(hasher, "context_mask", &self.plan.context_subject, level),
            }
        }
        if blend != Blend::Context {
            computed(hasher, "target_mask", &self.plan.target_subject, level);
        }
    }
}
