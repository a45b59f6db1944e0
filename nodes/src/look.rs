//! Looking at a sampler's steps after it ran: the latent of each as a picture, the masks of a swap, the subject's
//! cross-attention, and where a query of self-attention looks.
//!
//! What a run kept (see [`retouch_graph::Chain`]) is read and nothing of it is drawn again: a step whose latent is not
//! kept is said to be gone. What no run keeps is found by calling the U-Net once, on a latent that is kept, with a
//! control that looks on; such a call ends at the layer that it is for. Looks keep nothing in the cache but the map from
//! latents to colours of a VAE, and change nothing that a run gives.

mod what;

mod glass;

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;
use retouch_graph::{
    Cancel, Chain, Engine, Files, Host, Key, NodeError, Note, Outputs, Plan, PortValues, Ports,
    Quality, RunError, RunOptions, Silent, Status, Task, interrupt,
};

use crate::attention::SwapAttention;
use crate::chain::{CacheStore, LATENT, SamplerNote, SwapNote};
use crate::latent::Invert;
use crate::latent::invert;
use crate::payload::{Control, Image, Latent, Masks, Model, Trajectory};
use crate::preview::{By, known_map, pictures};
use crate::runtime::{Reports, Runtime, tensor_error};
use crate::sample::{Sample, StepBlendSample, sample, step_blend_sample};
use retouch_diffusion::checkpoint::model::Parts;
use retouch_diffusion::networks::unet::grid_at;
use retouch_diffusion::sampling::Monitor;
use retouch_diffusion::sampling::control::{Branch, Captured, Half, Part as CallPart};
use retouch_diffusion::sampling::masks::subject_maps;
use retouch_diffusion::sampling::scheduler::Ddim;
use retouch_diffusion::sampling::solver::Sampler;
use retouch_diffusion::sampling::swap::CallContext;
use retouch_diffusion::sampling::swap::{MaskGrid, mask_level};
use retouch_diffusion::sampling::{Conditioner, Found, Prompted, Sought, StepStore, look};

use glass::{Glass, with};
pub use retouch_diffusion::networks::unet::Part;
pub use retouch_diffusion::sampling::attention_row::{
    AttentionRow, GazeRow, Heads, QueriesOf, Whose, outlines,
};
pub use retouch_diffusion::sampling::masks::Plane;
pub use retouch_diffusion::sampling::swap::StepMasks;
use what::{BLEND, INVERT, Kind, PlainCall, SAMPLE};
pub use what::{Effort, LookError, Place, Reader, Result, SiteSummary, Summary};

/// The most bytes of queries and keys that are held for whoever moves a pointer over a picture.
const GAZES: usize = 128 << 20;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose branch.
fn branch(whose: Whose) -> Branch {
    match whose {
        Whose::Own => Branch::Target,
        Whose::Context => Branch::Context,
        Whose::Reference(index) => Branch::Reference(index),
    }
}

impl Reader {
    /// Looks at the steps of that task of a plan, by the engine that ran it; `None` when it is no sampler, or its steps were
    /// not known when the plan was made.
    #[must_use]
    pub fn new(engine: Engine, plan: Arc<Plan>, task: usize) -> Option<Self> {
        let of = plan.task(task)?;
        Kind::of(of)?;
        let note = Arc::clone(of.note()?).downcast::<SamplerNote>().ok()?;
        Some(Self {
            engine,
            task,
            note,
            inputs: Mutex::default(),
            gazes: Mutex::default(),
            calls: AtomicU64::new(0),
            plan,
        })
    }

    /// The same by the node's name; the nodes of a plan that are equal are one task.
    #[must_use]
    pub fn of_node(engine: Engine, plan: Arc<Plan>, node: &str) -> Option<Self> {
        let named = |task: &Task| task.names().iter().any(|name| name == node);
        let task = plan.tasks().position(named)?;
        Self::new(engine, plan, task)
    }

    /// How many self-attention sites the models of a plan's samplers have, if all have as many.
    #[must_use]
    pub fn sites(plan: &Plan) -> Option<usize> {
        let notes = plan.tasks().filter_map(Task::note);
        let notes = notes.filter_map(|note| note.downcast_ref::<SamplerNote>());
        let mut counts = notes.map(|note| note.model.sites.len());
        let first = counts.next()?;
        counts.all(|count| count == first).then_some(first)
    }

    /// Whether a task's steps can be looked at.
    #[must_use]
    pub fn can(task: &Task) -> bool {
        let has_note = || Some(task.note()?.is::<SamplerNote>());
        Kind::of(task).is_some() && has_note() == Some(true)
    }

    /// Calls of the U-Net (images, one half each) that looks made so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Lets go of the node's inputs, its models among them, and of what sites gave: before a run, which needs the memory.
    pub fn release(&self) {
        // Dropped after the locks are: a model may be gigabytes.
        let inputs = std::mem::take(&mut *lock(&self.inputs));
        let gazes = std::mem::take(&mut *lock(&self.gazes));
        drop((inputs, gazes));
    }

    fn task(&self) -> Result<&Task> {
        let task = self.plan.task(self.task);
        task.ok_or_else(|| LookError::failed("the plan has no such node"))
    }

    fn kind(&self) -> Result<Kind<'_>> {
        let kind = Kind::of(self.task()?);
        kind.ok_or_else(|| LookError::failed("the node has no steps"))
    }

    fn steps(&self) -> usize {
        self.note.trajectory.facts.steps
    }

    fn swap(&self) -> Option<&SwapNote> {
        self.note.swap.as_ref()
    }

    /// The first step that the node makes itself.
    fn first(&self) -> usize {
        let start = |swap: &SwapNote| swap.settings.start_step.min(self.steps());
        self.swap().map_or(0, start)
    }

    /// Whether a latent comes with the node's inputs.
    fn is_given(&self, k: usize, kind: &Kind<'_>) -> bool {
        match kind {
            Kind::Invert(_) => k == self.steps(),
            Kind::Sample(_) | Kind::Blend(_) => k <= self.first(),
        }
    }

    /// What there is to look at now: which steps are kept, masks, sites.
    ///
    /// # Errors
    /// When the plan has no such node.
    pub fn summary(&self) -> Result<Summary> {
        let (task, kind) = (self.task()?, self.kind()?);
        let (facts, note) = (&self.note.trajectory.facts, &self.note);
        let cache = self.engine.cache();
        let whole = cache.place(&task.port_key("trajectory"));
        let states = note.trajectory.states.iter().enumerate();
        let latents = states
            .map(|(k, key)| match cache.place(key).or(whole) {
                Some(place) => Place::Kept(place),
                None if self.is_given(k, &kind) => Place::Given,
                None => Place::Gone,
            })
            .collect();
        let size = (facts.height, facts.width);
        let sites = note.model.sites.iter().map(|site| SiteSummary {
            index: site.index,
            part: site.part,
            grid: grid_at(size, site.level),
            heads: note.model.unet_config.heads_at(site.level),
            swapped: self
                .swap()
                .is_some_and(|swap| swap.settings.sites.contains(&site.index)),
        });
        Ok(Summary {
            node: task.name().to_owned(),
            op: task.op(),
            steps: facts.steps,
            first: self.first(),
            images: facts.batch,
            latent: size,
            latents,
            masks: self.swap().map_or(0..0, |swap| swap.steps.clone()),
            references: self.swap().map_or(0, |swap| swap.references),
            sites: sites.collect(),
            subject: self.subject(Whose::Own),
        })
    }

    /// The words for the subject in the prompt of a branch of the node's swap, or of a swap that the node is a source of.
    #[must_use]
    pub fn subject(&self, whose: Whose) -> Option<String> {
        let links = |task: usize, port: &str| -> Vec<usize> {
            let inputs = self.plan.inputs(task).into_iter();
            (inputs.filter(|(name, _)| *name == port))
                .flat_map(|(_, links)| links.into_iter().map(|(from, _)| from))
                .collect()
        };
        let text = |swap: &SwapAttention, whose| {
            let own = match whose {
                Whose::Own => swap.subject.as_ref(),
                Whose::Context => swap.context_subject.as_ref().or(swap.subject.as_ref()),
                Whose::Reference(index) => swap.subject_of_reference(index),
            };
            own.map(ToString::to_string)
        };
        if self.swap().is_some() {
            let control = links(self.task, "control");
            return text(self.plan.task(*control.first()?)?.node()?, whose);
        }
        self.plan.tasks().enumerate().find_map(|(index, task)| {
            let swap: &SwapAttention = task.node()?;
            if links(index, "context").contains(&self.task) {
                return text(swap, Whose::Context);
            }
            let index = links(index, "reference")
                .iter()
                .position(|from| *from == self.task)?;
            text(swap, Whose::Reference(index))
        })
    }

    /// The node's inputs at these ports, from the cache or by running their nodes, which never draws a step.
    fn inputs(
        &self,
        ports: &[&'static str],
        effort: Effort,
        cancel: &Cancel,
    ) -> Result<PortValues> {
        let missing: Vec<&'static str> = {
            let held = lock(&self.inputs);
            (ports.iter().copied())
                .filter(|port| !held.contains_key(port))
                .collect()
        };
        if !missing.is_empty() {
            let plan = self.plan.inputs_of(self.task, &missing);
            let mut made: PortValues = missing.iter().map(|port| (*port, Vec::new())).collect();
            if !plan.outputs().is_empty() {
                self.may_run(&plan, effort)?;
                let options = RunOptions {
                    threads: 1,
                    ..RunOptions::default()
                };
                let report = self.engine.run(&plan, &Silent, cancel, &options)?;
                let calls = report.counters.get("unet_calls").copied().unwrap_or(0);
                self.calls.fetch_add(calls, Ordering::Relaxed);
                for output in report.outputs {
                    if let Some(values) = made.get_mut(output.name.as_str()) {
                        values.push(self.engine.on_first_device(&output.value)?);
                    }
                }
            }
            lock(&self.inputs).extend(made);
        }
        let held = lock(&self.inputs);
        let of = |port: &&'static str| Some((*port, held.get(port)?.clone()));
        Ok(ports.iter().filter_map(of).collect())
    }

    /// Whether what the inputs lack may be made.
    fn may_run(&self, plan: &Plan, effort: Effort) -> Result<()> {
        let forecast = self.engine.forecast(plan);
        let names = |which: &dyn Fn(usize, &Task) -> bool| {
            let tasks = plan.tasks().enumerate();
            let names: Vec<String> = tasks
                .filter(|(index, task)| which(*index, task))
                .map(|(_, task)| format!("`{}`", task.name()))
                .collect();
            names.join(", ")
        };
        if forecast.total_calls() > 0 {
            let drawn =
                names(&|index, _| forecast.calls.get(index).is_some_and(|&calls| calls > 0));
            return Err(LookError::NotKept {
                message: format!("the steps of {drawn} are not kept, and this node works on them"),
                help: "run the workflow again, with room for them in the cache".to_owned(),
            });
        }
        let runs = |index: usize| matches!(forecast.statuses.get(index), Some(Status::Run(_)));
        // A sampler whose steps are all there is only put together.
        let works = names(&|index, task| task.device() && task.chain().is_none() && runs(index));
        if effort == Effort::Kept && !works.is_empty() {
            return Err(LookError::Takes(format!("running {works}")));
        }
        Ok(())
    }

    /// Does something with the context of a running node, which this is not: nothing it does is kept for a run. What calls
    /// networks waits for the device.
    fn within<T>(
        &self,
        effort: Effort,
        cancel: &Cancel,
        then: impl FnOnce(&Reports<'_>) -> Result<T>,
    ) -> Result<T> {
        let permit = match effort {
            Effort::Kept => None,
            Effort::Calls => Some(self.engine.device(cancel).ok_or(LookError::Cancelled)?),
        };
        let host = Glass {
            reader: self,
            note: self.note.clone(),
            cancel,
        };
        let done = interrupt::within(cancel, || then(&Reports(&host)));
        drop(permit);
        if effort == Effort::Calls {
            let same = self.engine.unchanged(&self.plan, self.task);
            if !matches!(same, Ok(true)) {
                self.release(); // the models may hold what the file had in between
            }
            same?;
        }
        // A call that ended early says that it was cancelled whoever ended it.
        if cancel.is_cancelled() {
            return Err(LookError::Cancelled);
        }
        done
    }

    /// Latent k of 0..=T, noisiest first: `[B, C, h, w]`, where it is computed with.
    ///
    /// # Errors
    /// When it is not kept.
    pub fn latent(&self, k: usize, effort: Effort, cancel: &Cancel) -> Result<Tensor> {
        let (task, kind) = (self.task()?, self.kind()?);
        let note = &self.note.trajectory;
        let Some(key) = note.states.get(k) else {
            return Err(LookError::failed(format!(
                "latent {k} of a sampler of {} steps",
                self.steps()
            )));
        };
        let kept = |key: &Key| self.engine.cache().get(key);
        let state = kept(key).and_then(|values| values.get(LATENT)?.downcast::<Latent>());
        if let Some(state) = state {
            return Ok(state.tensor.clone());
        }
        let whole = kept(&task.port_key("trajectory"))
            .and_then(|values| values.get("trajectory")?.downcast::<Trajectory>());
        if let Some(z) = whole.and_then(|whole| whole.latents.get(k).cloned()) {
            return Ok(z);
        }
        if self.is_given(k, &kind) {
            return self.given(k, &kind, effort, cancel);
        }
        Err(LookError::NotKept {
            message: format!(
                "latent {k} of `{}` is not in the cache, and the viewer does not recompute it",
                task.name()
            ),
            help: "run the workflow again: what a run draws is kept while the cache has room (`--ram-cache`, `--disk-cache`)".to_owned(),
        })
    }

    /// A latent that comes with the inputs.
    fn given(&self, k: usize, kind: &Kind<'_>, effort: Effort, cancel: &Cancel) -> Result<Tensor> {
        let z = match kind {
            Kind::Invert(_) => {
                let inputs = invert::Inputs::from_values(self.inputs(INVERT, effort, cancel)?)?;
                inputs.latent.tensor.clone()
            }
            Kind::Sample(node) => {
                let inputs = sample::Inputs::from_values(self.inputs(SAMPLE, effort, cancel)?)?;
                match &inputs.control {
                    Some(control) => {
                        let z = control.context.latents.get(k).cloned();
                        z.ok_or_else(|| {
                            LookError::failed(format!("the context has no latent {k}"))
                        })?
                    }
                    None => {
                        let model = &inputs.model.checkpoint;
                        let mask = inputs.mask.0.as_deref();
                        let picture = inputs.picture.0.as_deref();
                        node.start()
                            .begin(model, inputs.latent.as_deref(), mask, picture)?
                            .start
                    }
                }
            }
            Kind::Blend(node) => {
                let values = self.inputs(BLEND, effort, cancel)?;
                let inputs = step_blend_sample::Inputs::from_values(values)?;
                let model = &inputs.personalized.checkpoint;
                node.start()
                    .begin(model, inputs.latent.as_deref(), None, None)?
                    .start
            }
        };
        Ok(z)
    }

    /// Image `image` of latent k as a picture `[1, 3, H, W]`: quickly by the linear map that previews are made by, or
    /// exactly by the VAE.
    ///
    /// # Errors
    /// When the latent is not kept, there is no such image, or the VAE fails.
    pub fn picture(
        &self,
        k: usize,
        image: usize,
        quality: Quality,
        effort: Effort,
        cancel: &Cancel,
    ) -> Result<Image> {
        let z = self.latent(k, effort, cancel)?;
        self.picture_of(&z, image, quality, effort, cancel)
    }

    /// The finished picture of the swap's context or of a reference, by the linear map: what keys of theirs lie on. One
    /// reference serves every image of a batch.
    ///
    /// # Errors
    /// When the node has no such source, or its latents are not kept.
    pub fn source_picture(
        &self,
        whose: Whose,
        image: usize,
        effort: Effort,
        cancel: &Cancel,
    ) -> Result<Image> {
        let inputs = match self.kind()? {
            Kind::Sample(_) => self.inputs(SAMPLE, effort, cancel)?,
            Kind::Blend(_) | Kind::Invert(_) => PortValues::new(),
        };
        let control = inputs.get("control");
        let control = control.and_then(|values| values.first()?.downcast::<Control>());
        let of = control.as_ref().and_then(|control| match whose {
            Whose::Own => None,
            Whose::Context => Some(&control.context),
            Whose::Reference(index) => control.references.get(index),
        });
        let z = of.and_then(|of| of.latents.last());
        let z = z.ok_or_else(|| LookError::failed(format!("the node has no {whose:?}")))?;
        let image = match z.dim(0) {
            Ok(1) => 0,
            _ => image,
        };
        self.picture_of(z, image, Quality::Quick, effort, cancel)
    }

    fn picture_of(
        &self,
        z: &Tensor,
        image: usize,
        quality: Quality,
        effort: Effort,
        cancel: &Cancel,
    ) -> Result<Image> {
        let port = self.kind()?.model_port();
        let model = self.inputs(&[port], effort, cancel)?;
        let model = model
            .get(port)
            .and_then(|values| values.first()?.downcast::<Model>());
        let model = model.ok_or_else(|| LookError::failed("the node has no model"))?;
        let one = z.narrow(0, image, 1).map_err(tensor_error)?;
        let picture = self.within(effort, cancel, |reports| {
            let by = match quality {
                Quality::Exact if effort == Effort::Kept => {
                    return Err(LookError::Takes("decoding by the VAE".to_owned()));
                }
                Quality::Exact => By::Vae,
                Quality::Quick => By::Linear,
            };
            if by == By::Linear
                && effort == Effort::Kept
                && known_map(&model.checkpoint, reports.0)?.is_none()
            {
                return Err(LookError::Takes(
                    "fitting the map from latents to colours to the VAE, once".to_owned(),
                ));
            }
            Ok(pictures(&model.checkpoint, &one, by, reports.0)?)
        });
        self.offload();
        picture
    }

    /// The masks of step k as the swap had them: of the references, the context, and what was blended by.
    ///
    /// # Errors
    /// When the step does not swap, or what they are made of is not kept.
    pub fn masks(&self, k: usize, effort: Effort, cancel: &Cancel) -> Result<StepMasks> {
        let task = self.task()?;
        let steps = self.swap().map_or(0..0, |swap| swap.steps.clone());
        if !steps.contains(&k) {
            return Err(LookError::failed(match steps.is_empty() {
                true => format!("`{}` swaps at no step, so it has no masks", task.name()),
                false => format!(
                    "step {k} does not swap; steps {} to {} of `{}` do",
                    steps.start,
                    steps.end - 1,
                    task.name()
                ),
            }));
        }
        let made = self.engine.cache().get(&task.port_key("masks"));
        let made = made.and_then(|values| values.get("masks")?.downcast::<Masks>());
        if let Some(masks) = made
            && masks.first_step == steps.start
            && masks.tensor.dim(0).is_ok_and(|count| count == steps.len())
        {
            return planes_of(&masks, k - steps.start);
        }
        let kept = self.with_swap(effort, cancel, |swap, model, control, reports| {
            let memory = CacheStore::new(reports.0);
            swap.with_retouch(model, control, reports, |retouch, ddim| {
                Ok(retouch.kept_masks(k, with(ddim, reports, &memory))?)
            })
        })?;
        kept.ok_or_else(|| LookError::NotKept {
            message: format!(
                "what the masks of step {k} of `{}` are made of is not kept",
                task.name()
            ),
            help: format!("run the workflow with its output `{}.masks`", task.name()),
        })
    }

    /// Does something with the node's swap.
    fn with_swap<T>(
        &self,
        effort: Effort,
        cancel: &Cancel,
        then: impl FnOnce(
            &Sample,
            &retouch_diffusion::checkpoint::model::Checkpoint,
            &Control,
            &Reports<'_>,
        ) -> Result<T, NodeError>,
    ) -> Result<T> {
        let Kind::Sample(node) = self.kind()? else {
            return Err(LookError::failed("the node does not swap"));
        };
        let inputs = sample::Inputs::from_values(self.inputs(SAMPLE, effort, cancel)?)?;
        let Some(control) = &inputs.control else {
            return Err(LookError::failed("the node does not swap"));
        };
        let model = &inputs.model.checkpoint;
        let done = self.within(effort, cancel, |reports| {
            Ok(then(node, model, control, reports)?)
        });
        self.offload();
        done
    }

    /// Drops what the models hold where a run would.
    fn offload(&self) {
        let runtime = self
            .engine
            .environment()
            .and_then(|e| e.downcast_ref::<Runtime>());
        if !runtime.is_some_and(|runtime| runtime.offload) {
            return;
        }
        for value in lock(&self.inputs).values().flatten() {
            if let Some(model) = value.downcast::<Model>() {
                model.checkpoint.keep_only(Parts::NONE);
            }
            if let Some(control) = value.downcast::<Control>()
                && let Some(vanilla) = &control.vanilla
            {
                vanilla.checkpoint.keep_only(Parts::NONE);
            }
        }
    }

    /// Steps before the first are another node's.
    fn is_own_step(&self, k: usize) -> Result<()> {
        let (first, steps) = (self.first(), self.steps());
        if k < first {
            return Err(LookError::Failed {
                message: format!(
                    "steps before {first} are taken over from the context as they are"
                ),
                help: Some("look at them at the node that drew the context".to_owned()),
            });
        }
        if k >= steps {
            return Err(LookError::failed(format!(
                "after step {} there is no call to look at",
                steps.saturating_sub(1)
            )));
        }
        Ok(())
    }

    /// The call that a sampler without a swap made at step k; an inversion's between latents k + 1 and k.
    fn plain_call(&self, k: usize, effort: Effort, cancel: &Cancel) -> Result<PlainCall> {
        let scheduler = &self.note.model.scheduler;
        let schedule = self.note.trajectory.facts.schedule;
        let schedule = schedule
            .unwrap_or_else(|| retouch_diffusion::sampling::solver::Schedule::plain(self.steps()));
        let timestep = Sampler::new(scheduler, schedule)?.timestep(k);
        let at = match self.kind()? {
            Kind::Invert(_) => k + 1,
            Kind::Sample(_) | Kind::Blend(_) => k,
        };
        let z = self.latent(at, effort, cancel)?;
        Ok(match self.kind()? {
            Kind::Sample(node) => {
                let inputs = sample::Inputs::from_values(self.inputs(SAMPLE, effort, cancel)?)?;
                PlainCall {
                    model: inputs.model,
                    prompt: node.prompt.to_string(),
                    negative: node.negative.to_string(),
                    guidance: node.guidance,
                    z,
                    timestep,
                }
            }
            Kind::Blend(node) => {
                let values = self.inputs(BLEND, effort, cancel)?;
                let inputs = step_blend_sample::Inputs::from_values(values)?;
                let (model, prompt) = match k < node.blend_steps.resolve(node.steps) {
                    true => (inputs.vanilla, &node.vanilla_prompt),
                    false => (inputs.personalized, &node.personalized_prompt),
                };
                PlainCall {
                    model,
                    prompt: prompt.to_string(),
                    negative: node.negative.to_string(),
                    guidance: node.guidance,
                    z,
                    timestep,
                }
            }
            Kind::Invert(node) => {
                let inputs = invert::Inputs::from_values(self.inputs(INVERT, effort, cancel)?)?;
                PlainCall {
                    model: inputs.model,
                    prompt: node.prompt.to_string(),
                    negative: String::new(),
                    guidance: 1.0,
                    z,
                    timestep,
                }
            }
        })
    }

    /// The cross-attention of a subject's words at step k, as masks are made of it: softmaxed, mean over heads and over the
    /// layers on the mask grid, sum over the words' tokens, smoothed, stretched to [0, 1]; a plane for each image. Of the
    /// branches of a swap those of `whose`; of any other sampler its own.
    ///
    /// # Errors
    /// When the words are not in the branch's prompt, or what it takes is not kept.
    // Long: a swap and a plain sampler, whose maps come from the same three places in turn.
    pub fn cross_attention(
        &self,
        k: usize,
        whose: Whose,
        subject: &str,
        effort: Effort,
        cancel: &Cancel,
    ) -> Result<Vec<Plane>> {
        self.is_own_step(k)?;
        let calls = effort == Effort::Calls;
        let takes = || LookError::Takes("a call of the U-Net".to_owned());
        if let Some(swap) = self.swap() {
            let s = &swap.settings;
            let level = match whose {
                Whose::Reference(index) => s.mask_levels.1.get(index).copied(),
                Whose::Own | Whose::Context => Some(s.mask_levels.0),
            };
            let level = level.ok_or_else(|| LookError::failed("the swap has no such reference"))?;
            let z = match whose {
                Whose::Own => Some(self.latent(k, effort, cancel)?),
                Whose::Context | Whose::Reference(_) => None,
            };
            let maps = self.with_swap(effort, cancel, |node, model, control, reports| {
                let memory = CacheStore::new(reports.0);
                node.with_retouch(model, control, reports, |retouch, ddim| {
                    let (raw, span, grid) = match &z {
                        Some(z) => {
                            let grid = grid_of(z, level)?;
                            let sought = Sought::Map(grid);
                            // First: words that are not in the prompt cost no call.
                            let span = retouch.target.span(subject)?;
                            let found =
                                retouch.look(k, z, sought, with(ddim, reports, &memory), calls)?;
                            let map = match found {
                                Some(Found::Map(map)) => Some(map),
                                _ => None,
                            };
                            (map, span, grid)
                        }
                        None => {
                            let branch = branch(whose);
                            let source = retouch.source_of(branch)?;
                            let grid = match source.trajectory.get(k) {
                                Some(z) => grid_of(z, level)?,
                                None => {
                                    return Err(NodeError::failed("a source without that step"));
                                }
                            };
                            let span = match source.drawers.get(k) {
                                Some(step) => step.draws.span(subject)?,
                                None => {
                                    return Err(NodeError::failed("a source without that step"));
                                }
                            };
                            let map = retouch.source_map(
                                branch,
                                k,
                                level,
                                with(ddim, reports, &memory),
                                calls,
                            )?;
                            (map, span, grid)
                        }
                    };
                    match raw {
                        Some(raw) => Ok(Some(subject_maps(&raw, &span, grid, s.smooth)?)),
                        None => Ok(None),
                    }
                })
            })?;
            return match maps {
                Some(maps) => Ok(maps),
                None if calls => Err(self.map_is_gone(k)),
                None => Err(takes()),
            };
        }
        if whose != Whose::Own {
            return Err(LookError::failed(
                "the node has no context and no reference",
            ));
        }
        let facts = &self.note.trajectory.facts;
        let size = (facts.height, facts.width);
        let level = mask_level(&self.note.model.sites, size, MaskGrid::Auto)?;
        let grid = grid_at(size, level);
        let call = self.plain_call(k, effort, cancel)?;
        let maps = self.within(effort, cancel, |reports| {
            let memory = CacheStore::new(reports.0);
            let draws = Prompted::new(
                &call.model.checkpoint,
                &call.prompt,
                &call.negative,
                reports,
            );
            let span = draws.span(subject)?;
            // A swap that this is a source of may have had it kept.
            let kept = memory.call(Branch::Plain, Half::Conditional, k);
            let kept = kept.and_then(|kept| memory.part(&kept, CallPart::Map(level)));
            let raw = match kept {
                Some(Captured::Map(map)) => map,
                _ if !calls => return Err(takes()),
                _ => match plain_look(&draws, &call, k, Sought::Map(grid), reports)? {
                    Found::Map(map) => map,
                    Found::Site(_) => return Err(LookError::failed("a map was looked for")),
                },
            };
            Ok(subject_maps(&raw, &span, grid, 1)?)
        });
        self.offload();
        maps
    }

    fn map_is_gone(&self, k: usize) -> LookError {
        LookError::NotKept {
            message: format!(
                "the cross-attention of step {}, which the masks of step {k} are made of, is not kept",
                k.saturating_sub(1)
            ),
            help: "run the workflow again, with room for it in the cache".to_owned(),
        }
    }

    /// What the queries of a self-attention site meet at step k: their own keys, or where the swap acts the references'
    /// and the context's, each with its softmax, exactly as the step had it. One call of the U-Net, which ends at the
    /// site, unless all of it is kept; for the next queries of the site there is nothing left to do but
    /// [`AttentionRow::row`].
    ///
    /// # Errors
    /// When there is no such site, or what it takes is not kept.
    pub fn attention(
        &self,
        k: usize,
        site: usize,
        effort: Effort,
        cancel: &Cancel,
    ) -> Result<Arc<AttentionRow>> {
        self.is_own_step(k)?;
        if let Some(gaze) = self.recent(k, site) {
            return Ok(gaze);
        }
        let model = &self.note.model;
        let Some(info) = model.sites.get(site) else {
            return Err(LookError::failed(format!(
                "site {site} of a model of {} sites",
                model.sites.len()
            )));
        };
        let sought = Sought::Site {
            index: site,
            heads: model.unet_config.heads_at(info.level),
        };
        let calls = effort == Effort::Calls;
        let takes = || LookError::Takes(format!("a call of the U-Net up to site {site}"));
        let found = if self.swap().is_some() {
            let z = self.latent(k, effort, cancel)?;
            let found = self.with_swap(effort, cancel, |node, model, control, reports| {
                let memory = CacheStore::new(reports.0);
                node.with_retouch(model, control, reports, |retouch, ddim| {
                    Ok(retouch.look(k, &z, sought, with(ddim, reports, &memory), calls)?)
                })
            })?;
            match found {
                Some(found) => found,
                None if calls => return Err(self.map_is_gone(k)),
                None => return Err(takes()),
            }
        } else {
            if !calls {
                return Err(takes());
            }
            let call = self.plain_call(k, effort, cancel)?;
            let found = self.within(effort, cancel, |reports| {
                let draws = Prompted::new(
                    &call.model.checkpoint,
                    &call.prompt,
                    &call.negative,
                    reports,
                );
                plain_look(&draws, &call, k, sought, reports)
            });
            self.offload();
            found?
        };
        let Found::Site(gaze) = found else {
            return Err(LookError::failed("a site was looked for"));
        };
        let gaze = Arc::new(gaze);
        let mut gazes = lock(&self.gazes);
        gazes.push_back((k, site, gaze.clone()));
        let held = |gazes: &VecDeque<(usize, usize, Arc<AttentionRow>)>| -> usize {
            gazes.iter().map(|(.., gaze)| gaze.bytes()).sum()
        };
        // The one that was just found stays, however large.
        while gazes.len() > 1 && held(&gazes) > GAZES {
            gazes.pop_front();
        }
        Ok(gaze)
    }

    /// What was found at a step and site before, if it is still held.
    #[must_use]
    pub fn recent(&self, k: usize, site: usize) -> Option<Arc<AttentionRow>> {
        let mut gazes = lock(&self.gazes);
        let at = gazes
            .iter()
            .position(|(step, of, _)| (*step, *of) == (k, site))?;
        let found = gazes.remove(at)?;
        let gaze = found.2.clone();
        gazes.push_back(found);
        Some(gaze)
    }
}

fn grid_of(z: &Tensor, level: usize) -> Result<(usize, usize), NodeError> {
    let (_, _, h, w) = z.dims4().map_err(tensor_error)?;
    Ok(grid_at((h, w), level))
}

fn plain_look(
    draws: &Prompted<'_>,
    call: &PlainCall,
    k: usize,
    sought: Sought,
    reports: &Reports<'_>,
) -> Result<Found> {
    let drawer = draws.conditioned()?;
    let found = look(
        drawer,
        call.guidance,
        &call.z,
        call.timestep,
        k,
        sought,
        reports,
    )?;
    Ok(found)
}

/// The planes of one step of a swap's masks.
fn planes_of(masks: &Masks, step: usize) -> Result<StepMasks> {
    let planes = || -> candle_core::Result<Vec<Tensor>> {
        let step = masks.tensor.get(step)?;
        (0..step.dim(0)?).map(|plane| step.get(plane)).collect()
    };
    let planes = planes().map_err(tensor_error)?;
    let mut planes: Vec<Vec<Plane>> = planes
        .iter()
        .map(Plane::from_tensor)
        .collect::<Result<_, _>>()?;
    match (planes.pop(), planes.pop()) {
        (Some(blend), Some(context)) => Ok(StepMasks {
            references: planes,
            context,
            blend,
        }),
        _ => Err(LookError::failed("masks of no plane")),
    }
}
