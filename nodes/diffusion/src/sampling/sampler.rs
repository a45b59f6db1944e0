//! The method: step-blended sampling (stage 1), inversion, and the retouch by attention swap (stage 2).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use candle_core::Tensor;
use retouch_graph::Key;
use serde::{Deserialize, Serialize};

use crate::checkpoint::model::Checkpoint;
use crate::networks::unet::{Addition, Call, SiteInfo, Text, grid_at};
use crate::prompt::conditioning::{Encoded, Span};
use crate::sampling::control::{
    Action, AttentionControl, AttentionKind, Branch, Capture, Captures, Given, Half, MapRecorder,
    Part, Rows, Store, Swap, Untouched,
};
use crate::sampling::gaze::{Gaze, Heads};
use crate::sampling::masks::{Plane, Threshold, subject_maps};
use crate::sampling::noise::{second_step_noise, step_noise};
use crate::sampling::scheduler::Ddim;
use crate::sampling::solver::Sampler;
use crate::sampling::steps::Second;
use crate::{Error, Result};

/// Who wants to know how a run is going, and may end it.
pub trait Monitor {
    /// `done` of `total` steps are done.
    ///
    /// # Errors
    /// [`Error::Cancelled`] to end the run.
    fn step(&self, done: usize, total: usize) -> Result<()>;
    /// `images` more images (one half each) went through a U-Net.
    fn unet_calls(&self, images: usize);
    /// Something that the user should know but that does not end the run.
    fn warn(&self, message: &str);
    /// z, `[B, C, h, w]`, is what there is after `done` of `total` steps: a step that was just drawn, or the last.
    fn drawn(&self, done: usize, total: usize, z: &Tensor) {
        let _ = (done, total, z);
    }
    /// Whether whoever looks has moved on: asked at every layer of a call that is made for nothing but to be looked at.
    ///
    /// # Errors
    /// [`Error::Cancelled`] to end the call.
    fn goes_on(&self) -> Result<()> {
        Ok(())
    }
}

/// Something that is held until it is dropped.
pub trait Held {}

/// What is kept between runs: the states between steps, and what calls give besides their result. All of it may be
/// forgotten at any time, and is made again then.
pub trait Memory {
    /// z_k, if it is kept.
    fn state(&self, k: usize) -> Option<Tensor> {
        let _ = k;
        None
    }
    /// Keeps z_k, which took so many seconds from z_{k-1}.
    fn keep_state(&self, k: usize, z: &Tensor, seconds: f64) {
        let _ = (k, z, seconds);
    }
    /// The solver state beside z_k, if it is kept.
    fn past(&self, k: usize) -> Option<Vec<Tensor>> {
        let _ = k;
        None
    }
    /// Keeps the solver state beside z_k.
    fn keep_past(&self, k: usize, past: &[Tensor], seconds: f64) {
        let _ = (k, past, seconds);
    }
    /// The raw maps of the target's step k, if they are kept.
    fn target_map(&self, k: usize) -> Option<Tensor> {
        let _ = k;
        None
    }
    /// Keeps the raw maps of the target's step k.
    fn keep_target_map(&self, k: usize, map: &Tensor, seconds: f64) {
        let _ = (k, map, seconds);
    }
    /// Takes the making of z_k for itself, after whoever is at it, until what is returned is dropped.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    fn claim(&self, k: usize) -> Result<Option<Box<dyn Held + '_>>> {
        let _ = k;
        Ok(None)
    }
    /// What the call of a branch at step k is called.
    fn call(&self, branch: Branch, half: Half, k: usize) -> Option<Key> {
        let _ = (branch, half, k);
        None
    }
    /// What is to be kept of a call.
    fn wanted(&self, call: &Key) -> Vec<Part> {
        let _ = call;
        Vec::new()
    }
    /// A part of a call, if it is kept.
    fn part(&self, call: &Key, part: Part) -> Option<Given> {
        let _ = (call, part);
        None
    }
    /// Keeps a part of a call.
    fn keep_part(&self, call: &Key, part: Part, given: &Given, seconds: f64) {
        let _ = (call, part, given, seconds);
    }
    /// Whether the masks of the swap are wanted.
    fn wants_masks(&self) -> bool {
        true
    }
    /// The first step that is not kept, or T, of T: said once.
    fn resumed(&self, step: usize, of: usize) {
        let _ = (step, of);
    }
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forgets;

impl Memory for Forgets {}

/// What drew a step of a trajectory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    /// The model's id.
    pub model: String,
    /// Whether it was the vanilla model of step-blended sampling.
    pub vanilla: bool,
    /// The prompt.
    pub prompt: String,
    /// The negative prompt.
    pub negative: String,
}

/// A prompt and its negative, encoded.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// What the prompt gave.
    pub prompt: Encoded,
    /// What the negative prompt gave.
    pub negative: Encoded,
    /// The negative prompt and the prompt with guidance: equally many tokens.
    guided: [Text; 2],
    /// The prompt without guidance: the negative prompt is not there.
    alone: Text,
}

impl Conditions {
    /// Encodes both with the model's own text encoders; warns of what did not fit.
    ///
    /// # Errors
    /// When a part of the model cannot be loaded, or a prompt has a weight that is not a number.
    pub fn encode(
        model: &Checkpoint,
        prompt: &str,
        negative: &str,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let syntax = model.reader()?.reading().syntax;
        let checked = |text: &str, encoded: Result<Encoded>| -> Result<Encoded> {
            let encoded = encoded?;
            for told in syntax.read_as_text(text) {
                monitor.warn(&format!("{told}, in the prompt {}", crate::quoted(text)));
            }
            if encoded.cut > 0 {
                monitor.warn(&format!(
                    "the last {} tokens do not fit the text encoder and are left out of the prompt {}",
                    encoded.cut,
                    crate::quoted(text)
                ));
            }
            Ok(encoded)
        };
        let (prompt, negative) = (
            checked(prompt, model.encode_prompt(prompt))?,
            checked(negative, model.encode_negative(negative))?,
        );
        let alone = Text::new(prompt.states.clone());
        let guided = if prompt.chunks == negative.chunks {
            [Text::new(negative.states.clone()), alone.clone()]
        } else {
            let (empty, most) = (model.encode_empty()?, prompt.chunks.max(negative.chunks));
            let padded = |text: &Encoded| Ok::<_, Error>(Text::new(text.padded(&empty, most)?));
            [padded(&negative)?, padded(&prompt)?]
        };
        model.prompts_are_encoded();
        Ok(Self {
            prompt,
            negative,
            guided,
            alone,
        })
    }

    /// The text of a half.
    fn text(&self, half: Half, guided: bool) -> &Text {
        match half {
            Half::Negative => &self.guided[0],
            Half::Prompt if guided => &self.guided[1],
            Half::Prompt => &self.alone,
        }
    }

    fn half(&self, half: Half) -> &Encoded {
        match half {
            Half::Negative => &self.negative,
            Half::Prompt => &self.prompt,
        }
    }
}

/// One call for all images of a branch, and for those of its halves that are asked for.
struct Guided<'a> {
    model: &'a Checkpoint,
    conditions: &'a Conditions,
    guidance: f64,
    rescale: f64,
    branch: Branch,
}

/// The rows of a branch at a step, as part of a call.
#[derive(Clone)]
struct Member<'a> {
    conditions: &'a Conditions,
    /// Whether the prompt has as many tokens as its negative.
    guided: bool,
    /// The images' latents `[B, C, h, w]`, which each half has.
    z: &'a Tensor,
    timestep: f32,
    step: usize,
    rows: Rows,
}

impl Member<'_> {
    /// The text of each of its halves.
    fn texts(&self) -> impl Iterator<Item = &Text> {
        let halves = self.rows.halves().into_iter();
        halves.map(|(half, _)| self.conditions.text(half, self.guided))
    }

    /// Whether both can be in one call of one model: latents of one shape, equally many tokens.
    fn joins(&self, other: &Self) -> Result<bool> {
        let tokens = |member: &Self| member.texts().map(Text::tokens).collect::<Result<Vec<_>>>();
        let (own, others) = (tokens(self)?, tokens(other)?);
        Ok(self.z.dims() == other.z.dims() && own.iter().chain(&others).all(|n| *n == own[0]))
    }
}

/// The outputs of all members' rows in one call of the network, before guidance. All must join one another.
fn together(
    model: &Checkpoint,
    members: &[Member<'_>],
    control: &mut dyn AttentionControl,
    monitor: &dyn Monitor,
) -> Result<Tensor> {
    let Some(first) = members.first() else {
        return Err(Error::request("a call without rows"));
    };
    let (mut latents, mut timesteps) = (Vec::new(), Vec::new());
    let (mut texts, mut pooled) = (Vec::new(), Vec::new());
    for member in members {
        for (half, _) in member.rows.halves() {
            latents.push(member.z);
            if let Some(own) = &member.conditions.half(half).pooled {
                pooled.push(own.repeat((member.rows.images, 1))?);
            }
        }
        texts.extend(member.texts());
        timesteps.extend(vec![member.timestep; member.rows.count()]);
    }
    let latent = Tensor::cat(&latents, 0)?;
    let pooled = match pooled.len() {
        0 => None,
        _ => Some(Tensor::cat(&pooled, 0)?),
    };
    let (_, _, h, w) = latent.dims4()?;
    let factor = model.description().vae.factor();
    let (height, width) = (h * factor, w * factor);
    let call = Call {
        latent: &latent,
        timesteps: &timesteps,
        texts: &texts,
        addition: pooled.as_ref().map(|pooled| Addition {
            pooled,
            // The picture as it is, not cropped.
            sizes: [height, width, 0, 0, height, width],
        }),
        step: first.step,
        rows: first.rows,
    };
    let out = model.unet()?.forward(call, control, model.unet_kernel())?;
    monitor.unet_calls(timesteps.len());
    Ok(out)
}

impl Guided<'_> {
    /// The rows of a whole call.
    fn all_rows(&self, z: &Tensor) -> Result<Rows> {
        Ok(Rows::new(self.branch, z.dim(0)?, self.guidance != 1.0))
    }

    /// The rows' outputs, before guidance.
    fn rows(
        &self,
        z: &Tensor,
        timestep: f32,
        step: usize,
        rows: Rows,
        control: &mut dyn AttentionControl,
        monitor: &dyn Monitor,
    ) -> Result<Tensor> {
        let member = Member {
            conditions: self.conditions,
            guided: self.guidance != 1.0,
            z,
            timestep,
            step,
            rows,
        };
        together(self.model, &[member], control, monitor)
    }

    /// u + g (c - u), rescaled; c alone at g = 1.
    fn noise(
        &self,
        z: &Tensor,
        timestep: f32,
        step: usize,
        control: &mut dyn AttentionControl,
        monitor: &dyn Monitor,
    ) -> Result<Tensor> {
        let rows = self.all_rows(z)?;
        let out = self.rows(z, timestep, step, rows, control, monitor)?;
        if !rows.negative {
            return Ok(out);
        }
        let u = out.narrow(0, 0, rows.images)?;
        let c = out.narrow(0, rows.images, rows.images)?;
        let guided = (&u + ((&c - &u)? * self.guidance)?)?;
        rescaled(guided, &c, self.rescale)
    }
}

/// Guidance rescale (Lin et al. 2023, eq. 15 and 16), image by image: the guided output with the standard deviation of
/// the prompt's own, `share` of it, and the rest as it was. 0 changes nothing.
fn rescaled(guided: Tensor, prompt: &Tensor, share: f64) -> Result<Tensor> {
    if share == 0.0 {
        return Ok(guided);
    }
    let images = guided.dim(0)?;
    let factors: Vec<f32> = (0..images)
        .map(|i| {
            let (own, all) = (deviation(&prompt.get(i)?)?, deviation(&guided.get(i)?)?);
            // What has no deviation is the same everywhere, and stays so.
            let ratio = if all > 0.0 { own / all } else { 1.0 };
            Ok((share * ratio + (1.0 - share)) as f32)
        })
        .collect::<Result<_>>()?;
    let factors = Tensor::from_vec(factors, (images, 1, 1, 1), guided.device())?;
    Ok(guided.broadcast_mul(&factors)?)
}

/// The standard deviation of all numbers, over n - 1, in f64.
fn deviation(t: &Tensor) -> Result<f64> {
    let numbers: Vec<f32> = t.flatten_all()?.to_vec1()?;
    let n = numbers.len() as f64;
    let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares = numbers.iter().map(|&x| (f64::from(x) - mean).powi(2));
    Ok((squares.sum::<f64>() / (n - 1.0).max(1.0)).sqrt())
}

/// What is wanted of the halves of a branch's call at step k by whoever comes later.
fn wanted(memory: &dyn Memory, branch: Branch, k: usize, rows: Rows) -> BTreeSet<(Half, Part)> {
    let mut wanted = BTreeSet::new();
    for (half, _) in rows.halves() {
        if let Some(call) = memory.call(branch, half, k) {
            let parts = memory.wanted(&call).into_iter().collect();
            wanted.extend(of_half(&parts, half).into_iter().map(|part| (half, part)));
        }
    }
    wanted
}

/// Keeps what was wanted of a call that took so many seconds.
fn keep(memory: &dyn Memory, branch: Branch, k: usize, rows: Rows, store: &Store, seconds: f64) {
    let halves = rows.halves();
    for (half, _) in &halves {
        let Some(call) = memory.call(branch, *half, k) else {
            continue;
        };
        let parts = memory.wanted(&call);
        // Only together do they save the call, so they share its cost.
        let share = seconds / (halves.len() * parts.len().max(1)) as f64;
        for part in parts {
            if let Some(given) = store.get(&(*half, part)) {
                memory.keep_part(&call, part, given, share);
            }
        }
    }
}

/// Gives a model with its encoded prompts when a step needs it: what is kept already needs neither.
pub trait Draws {
    /// The model and the prompts.
    ///
    /// # Errors
    /// When a part of the model cannot be loaded.
    fn drawer(&self) -> Result<Drawer<'_>>;
    /// The tokens of a phrase in the prompt.
    ///
    /// # Errors
    /// When the tokenizer cannot be loaded, or the phrase is not in the prompt.
    fn span(&self, phrase: &str) -> Result<Span>;
}

/// A model and the prompts that it encodes when they are first needed.
pub struct Prompted<'a> {
    model: &'a Checkpoint,
    prompt: &'a str,
    negative: &'a str,
    monitor: &'a dyn Monitor,
    conditions: std::cell::OnceCell<Conditions>,
}

impl<'a> Prompted<'a> {
    /// A model with a prompt and a negative prompt.
    #[must_use]
    pub fn new(
        model: &'a Checkpoint,
        prompt: &'a str,
        negative: &'a str,
        monitor: &'a dyn Monitor,
    ) -> Self {
        Self {
            model,
            prompt,
            negative,
            monitor,
            conditions: std::cell::OnceCell::new(),
        }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &'a Checkpoint {
        self.model
    }
}

impl Draws for Prompted<'_> {
    fn drawer(&self) -> Result<Drawer<'_>> {
        if self.conditions.get().is_none() {
            let conditions =
                Conditions::encode(self.model, self.prompt, self.negative, self.monitor)?;
            let _ = self.conditions.set(conditions); // it was empty
        }
        let conditions = self
            .conditions
            .get()
            .ok_or_else(|| Error::request("the prompts were not encoded"))?;
        Ok(Drawer {
            model: self.model,
            conditions,
        })
    }

    fn span(&self, phrase: &str) -> Result<Span> {
        self.model.reader()?.span(self.prompt, phrase)
    }
}

/// A model with the prompts that it draws with.
#[derive(Clone, Copy, Debug)]
pub struct Drawer<'a> {
    /// The model.
    pub model: &'a Checkpoint,
    /// Its encoded prompts.
    pub conditions: &'a Conditions,
}

/// The right to make something, if anybody else could be at it.
type Claimed<'a> = Option<Box<dyn Held + 'a>>;

/// What `kept` finds of state k; if it is nothing, the right to make it, after whoever is at it may have made it.
fn recall<'a, T>(
    memory: &'a dyn Memory,
    k: usize,
    kept: impl Fn() -> Option<T>,
) -> Result<(Option<T>, Claimed<'a>)> {
    if let Some(there) = kept() {
        return Ok((Some(there), None));
    }
    let claim = memory.claim(k)?;
    let there = claim.is_some().then(kept).flatten();
    Ok((there, claim))
}

/// Says once where a run goes on.
struct Resume<'a> {
    memory: &'a dyn Memory,
    said: bool,
    steps: usize,
}

impl<'a> Resume<'a> {
    fn new(memory: &'a dyn Memory, steps: usize) -> Self {
        Self {
            memory,
            said: false,
            steps,
        }
    }

    /// Step k (counted from the first that could be kept, `first`) is made.
    fn makes(&mut self, k: usize, first: usize) {
        if !self.said && k > first {
            self.memory.resumed(k, self.steps);
        }
        self.said = true;
    }

    /// There is no step left.
    fn end(&mut self, first: usize) {
        self.makes(self.steps, first);
    }
}

/// What stays of a picture where its mask leaves it.
#[derive(Clone, Debug)]
pub struct Inpaint {
    /// The picture's latent, `[B, C, h, w]` or one for all.
    pub picture: Tensor,
    /// The noise that it is seen with, the same at every step: `[B, C, h, w]`.
    pub noise: Tensor,
    /// 1 where it is drawn anew, 0 where it stays: `[B or 1, 1, h, w]`.
    pub mask: Tensor,
}

impl Inpaint {
    /// The latent after a step with the picture, at the level that the next step begins at, in place of it outside the
    /// mask.
    fn apply(&self, z: &Tensor, sampler: &Sampler, next: usize) -> Result<Tensor> {
        let kept = sampler.noised(&self.picture, &self.noise, next)?;
        Ok((z.broadcast_mul(&self.mask)? + kept.broadcast_mul(&(1.0 - &self.mask)?)?)?)
    }
}

/// How plain sampling draws: all that its steps share.
pub struct Drawing<'a> {
    /// The scheduler.
    pub sampler: &'a Sampler,
    /// u + g (c - u).
    pub guidance: f64,
    /// Guidance rescale; 0 is none.
    pub rescale: f64,
    /// The seed of the noise that a stochastic scheduler adds; image i has `seed + i`.
    pub seed: Option<u64>,
    /// What stays of a picture.
    pub inpaint: Option<Inpaint>,
}

impl<'a> Drawing<'a> {
    /// Draws with a scheduler and a guidance, and nothing else.
    #[must_use]
    pub fn plain(sampler: &'a Sampler, guidance: f64) -> Self {
        Self {
            sampler,
            guidance,
            rescale: 0.0,
            seed: None,
            inpaint: None,
        }
    }

    /// The latent after step k, and the solver state beside it; `second` evaluates the network again within the step.
    fn step(
        &self,
        z: &Tensor,
        out: &Tensor,
        k: usize,
        past: &[Tensor],
        second: Second<'_>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let mut noise = Vec::new();
        for part in 0..self.sampler.noises(k) {
            let seed = self.seed.ok_or_else(|| {
                Error::request("the scheduler adds noise at each step, and there is no seed for it")
                    .help("give `seed: 42`")
            })?;
            let drawn = match part {
                0 => step_noise,
                _ => second_step_noise,
            };
            noise.push(drawn(seed, self.sampler.number(k), z.dims4()?, z.device())?);
        }
        let (next, past) = self.sampler.step(z, out, k, past, &noise, second)?;
        let next = match &self.inpaint {
            Some(inpaint) => inpaint.apply(&next, self.sampler, k + 1)?,
            None => next,
        };
        Ok((next, past))
    }
}

/// Stage 1: the steps before `blend_steps` by `vanilla`, the others by `personalized` (the paper's equation for
/// step-blended denoising). Returns the latents z_0 .. z_T, noisiest first, `[B, C, h, w]` each, of which the first is
/// `start`. A model is loaded, and its prompts encoded, when a step of it is drawn: what the memory keeps needs neither.
///
/// # Errors
/// When a call fails or the run is cancelled.
pub fn step_blend_sample(
    vanilla: &dyn Draws,
    personalized: &dyn Draws,
    start: &Tensor,
    blend_steps: usize,
    drawing: &Drawing<'_>,
    monitor: &dyn Monitor,
    memory: &dyn Memory,
) -> Result<Vec<Tensor>> {
    let sampler = drawing.sampler;
    let steps = sampler.steps();
    let mut trajectory = vec![start.clone()];
    let mut z = start.clone();
    let mut past: Vec<Tensor> = Vec::new();
    let mut resume = Resume::new(memory, steps);
    for k in 0..steps {
        monitor.step(k, steps)?;
        let kept = || {
            let next = memory.state(k + 1)?;
            let past = if sampler.remembers(k + 1) {
                memory.past(k + 1)?
            } else {
                Vec::new()
            };
            Some((next, past))
        };
        let (there, _claim) = recall(memory, k + 1, kept)?;
        (z, past) = match there {
            Some(there) => there,
            None => {
                resume.makes(k, 0);
                let drawer = if k < blend_steps {
                    vanilla.drawer()?
                } else {
                    personalized.drawer()?
                };
                let guided = Guided {
                    model: drawer.model,
                    conditions: drawer.conditions,
                    guidance: drawing.guidance,
                    rescale: drawing.rescale,
                    branch: Branch::Plain,
                };
                let since = Instant::now();
                let rows = guided.all_rows(&z)?;
                let (_, _, h, w) = z.dims4()?;
                let mut capture = Capture::new(wanted(memory, Branch::Plain, k, rows), |level| {
                    grid_at((h, w), level)
                });
                let out = guided.noise(&z, sampler.timestep(k), k, &mut capture, monitor)?;
                let seconds = since.elapsed().as_secs_f64();
                if !capture.is_idle() {
                    let store = capture.finish()?;
                    keep(memory, Branch::Plain, k, rows, &store, seconds);
                }
                // What looks at a step's attention looks at its first evaluation.
                let mut second = |z: &Tensor, timestep: f32| {
                    guided.noise(z, timestep, k, &mut Untouched, monitor)
                };
                let (next, past) = drawing.step(&z, &out, k, &past, &mut second)?;
                let seconds = since.elapsed().as_secs_f64();
                if sampler.remembers(k + 1) {
                    memory.keep_past(k + 1, &past, seconds);
                }
                memory.keep_state(k + 1, &next, seconds);
                if k + 1 < steps {
                    monitor.drawn(k + 1, steps, &next);
                }
                (next, past)
            }
        };
        trajectory.push(z.clone());
    }
    resume.end(0);
    monitor.drawn(steps, steps, &z);
    monitor.step(steps, steps)?;
    Ok(trajectory)
}

/// DDIM inversion with one prompt and guidance 1: the latents z_0 .. z_T, noisiest first, of which the last is
/// `latent` itself. For the memory, state n is the latent after n steps of the inversion.
///
/// # Errors
/// When a call fails or the run is cancelled.
pub fn invert(
    draws: &dyn Draws,
    latent: &Tensor,
    ddim: &Ddim,
    monitor: &dyn Monitor,
    memory: &dyn Memory,
) -> Result<Vec<Tensor>> {
    let mut trajectory = vec![latent.clone()];
    let mut z = latent.clone();
    let mut resume = Resume::new(memory, ddim.steps());
    for (done, (k, &t)) in ddim.timesteps().iter().enumerate().rev().enumerate() {
        monitor.step(done, ddim.steps())?;
        let (there, _claim) = recall(memory, done + 1, || memory.state(done + 1))?;
        z = match there {
            Some(next) => next,
            None => {
                resume.makes(done, 0);
                let drawer = draws.drawer()?;
                let guided = Guided {
                    model: drawer.model,
                    conditions: drawer.conditions,
                    guidance: 1.0,
                    rescale: 0.0,
                    branch: Branch::Plain,
                };
                let start = Instant::now();
                let out = guided.noise(&z, t as f32, k, &mut Untouched, monitor)?;
                let next = ddim.inverse_step(&z, &out, k)?;
                memory.keep_state(done + 1, &next, start.elapsed().as_secs_f64());
                next
            }
        };
        trajectory.push(z.clone());
    }
    resume.end(0);
    monitor.step(ddim.steps(), ddim.steps())?;
    trajectory.reverse();
    Ok(trajectory)
}

/// What is looked for in a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sought {
    /// The raw cross-attention maps of the layers on this grid.
    Map((usize, usize)),
    /// The queries of a self-attention site, and what they meet there.
    Site {
        /// Its number.
        index: usize,
        /// How it splits its features.
        heads: Heads,
    },
}

/// What was looked for.
#[derive(Clone, Debug)]
pub enum Found {
    /// `[B, h w, tokens]`: mean over heads and layers.
    Map(Tensor),
    /// What every query of the site meets.
    Site(Gaze),
}

/// Looks on while a swap acts, and ends the call at the site that it is for.
struct Looking<'a, 'b> {
    swap: Swap<'a>,
    sought: Sought,
    found: Option<Gaze>,
    monitor: &'b dyn Monitor,
}

impl AttentionControl for Looking<'_, '_> {
    fn attend(
        &mut self,
        site: crate::sampling::control::Site,
        qkv: &crate::sampling::control::Qkv,
        kernel: &dyn retouch_kernels::Kernel,
    ) -> Result<Tensor> {
        self.monitor.goes_on()?;
        if let Sought::Site { index, heads } = self.sought
            && index == site.index
            && site.kind == AttentionKind::SelfAttention
        {
            self.found = self.swap.gaze(index, heads, Some((qkv, site)))?;
            // The rest of the network would be for nothing.
            return Err(Error::Cancelled);
        }
        self.swap.attend(site, qkv, kernel)
    }
}

impl Guided<'_> {
    /// Calls the prompt half once and gives what is looked for in it.
    fn look(
        &self,
        z: &Tensor,
        timestep: f32,
        k: usize,
        mut swap: Swap<'_>,
        sought: Sought,
        monitor: &dyn Monitor,
    ) -> Result<Found> {
        if let Sought::Map(grid) = sought {
            swap.maps = Some(MapRecorder::new(grid));
        }
        let rows = Rows::new(self.branch, z.dim(0)?, false);
        let mut looking = Looking {
            swap,
            sought,
            found: None,
            monitor,
        };
        let called = self.rows(z, timestep, k, rows, &mut looking, monitor);
        if let Some(gaze) = looking.found {
            // A call that was ended is one all the same.
            monitor.unet_calls(rows.count());
            return Ok(Found::Site(gaze));
        }
        called?;
        match looking.swap.maps {
            Some(maps) => Ok(Found::Map(maps.finish()?)),
            None => Err(Error::request(format!(
                "the U-Net has no such self-attention site: {sought:?}"
            ))),
        }
    }
}

/// Looks at a plain sampler's call at step k by calling its prompt half once, with the guidance that it had (which decides
/// how many tokens the prompt is given).
///
/// # Errors
/// When the call fails, or [`Monitor::goes_on`] ends it.
pub fn look(
    drawer: Drawer<'_>,
    guidance: f64,
    z: &Tensor,
    timestep: f32,
    k: usize,
    sought: Sought,
    monitor: &dyn Monitor,
) -> Result<Found> {
    let guided = Guided {
        model: drawer.model,
        conditions: drawer.conditions,
        guidance,
        rescale: 0.0,
        branch: Branch::Plain,
    };
    let sites = BTreeSet::new();
    let swap = Swap::new(&sites, Action::Let);
    guided.look(z, timestep, k, swap, sought, monitor)
}

/// The raw cross-attention maps `[B, h w, tokens]` (mean over heads and layers) of a latent at step k, whose timestep is
/// given.
///
/// # Errors
/// When a call fails or no layer is on the grid.
pub fn cross_attention(
    drawer: Drawer<'_>,
    z: &Tensor,
    timestep: f32,
    k: usize,
    grid: (usize, usize),
    monitor: &dyn Monitor,
) -> Result<Tensor> {
    let mut recorder = Maps(MapRecorder::new(grid));
    let guided = Guided {
        model: drawer.model,
        conditions: drawer.conditions,
        guidance: 1.0,
        rescale: 0.0,
        branch: Branch::Plain,
    };
    guided.noise(z, timestep, k, &mut recorder, monitor)?;
    recorder.0.finish()
}

/// Records maps and leaves attention as it is.
struct Maps(MapRecorder);

impl AttentionControl for Maps {
    fn attend(
        &mut self,
        site: crate::sampling::control::Site,
        qkv: &crate::sampling::control::Qkv,
        kernel: &dyn retouch_kernels::Kernel,
    ) -> Result<Tensor> {
        self.0.record(site, qkv, kernel)?;
        qkv.attend(kernel)
    }
}

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
    pub draws: &'a dyn Draws,
    /// The subject's tokens in its prompt, which may be missing when no map is needed.
    pub span: Option<Span>,
}

/// Everything that stage 2 works on.
pub struct Retouch<'a> {
    /// The target's model and prompts.
    pub target: &'a dyn Draws,
    /// The subject's tokens in the target's prompt.
    pub target_span: Option<Span>,
    /// The trajectory of stage 1 and what drew it.
    pub context: Source<'a>,
    /// The inverted photos, at least one.
    pub references: Vec<Source<'a>>,
    /// Given blend masks, on the mask grid.
    pub blend_mask: Option<GivenMasks>,
    /// Whether the blend mask fills the picture, as the plan has it; `None`: the mask itself tells.
    pub fills: Option<bool>,
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
        .filter(|part| half == Half::Prompt || !matches!(part, Part::Map(_)))
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

/// What stage 2 gives.
#[derive(Clone, Debug)]
pub struct Retouched {
    /// z_0 .. z_T; up to `start_step` the context's own.
    pub trajectory: Vec<Tensor>,
    /// The masks of the steps of the swap.
    pub masks: Vec<StepMasks>,
}

/// What the target's sites do at a step, given what the branches gave and the step's masks.
fn action<'a>(
    needs: &StepNeeds,
    context: &'a Store,
    references: &'a [Store],
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

fn grid_of(z: &Tensor, level: usize) -> Result<(usize, usize)> {
    let (_, _, h, w) = z.dims4()?;
    Ok(grid_at((h, w), level))
}

fn missing_span(branch: &str, parameter: &str) -> Error {
    Error::request(format!(
        "the {branch}'s mask is computed from cross-attention, and no subject is given"
    ))
    .help(format!("give `subject`, or a mask: `{parameter}`"))
}

/// Pixels of latents, over all rows, that calls of sources are made together for. A call of few pixels spends its time
/// on reading the network's weights and on handing out work; of many, on computing, and gains nothing.
const TOGETHER: usize = 4096;

/// A call that a source branch needs.
struct Due<'a> {
    model: &'a Checkpoint,
    member: Member<'a>,
    /// What it is to give.
    asked: BTreeSet<(Half, Part)>,
    /// Whether the negative half is the prompt's.
    same: bool,
}

/// What is kept of what these halves of a branch give at step k, and the rows of the halves that lack something.
fn lacking(k: usize, parts: &BTreeSet<Part>, all: Rows, memory: &dyn Memory) -> (Store, Rows) {
    let mut store = Store::new();
    let mut rows = Rows {
        negative: false,
        prompt: false,
        ..all
    };
    for (half, _) in all.halves() {
        let parts = of_half(parts, half);
        let kept: Option<Vec<Given>> = memory
            .call(all.branch, half, k)
            .and_then(|call| parts.iter().map(|part| memory.part(&call, *part)).collect());
        match kept {
            Some(kept) => {
                store.extend(parts.into_iter().map(|part| (half, part)).zip(kept));
            }
            None if parts.is_empty() => {}
            None if half == Half::Negative => rows.negative = true,
            None => rows.prompt = true,
        }
    }
    (store, rows)
}

/// Makes calls of one model as one, and keeps what is wanted of each.
fn make(dues: &[Due<'_>], monitor: &dyn Monitor, memory: &dyn Memory) -> Result<Vec<Store>> {
    let Some(model) = dues.first().map(|due| due.model) else {
        return Ok(Vec::new());
    };
    let mut captures = Captures::default();
    let mut members = Vec::new();
    for Due { member, asked, .. } in dues {
        let (_, _, h, w) = member.z.dims4()?;
        let capture = Capture::new(asked.clone(), |level| grid_at((h, w), level));
        captures.push(member.step, member.rows, capture);
        members.push(member.clone());
    }
    let start = Instant::now();
    together(model, &members, &mut captures, monitor)?;
    let rows: usize = members.iter().map(|member| member.rows.count()).sum();
    let per_row = start.elapsed().as_secs_f64() / rows.max(1) as f64;
    let mut stores = captures.finish()?;
    for (due, store) in dues.iter().zip(&mut stores) {
        let (rows, step) = (due.member.rows, due.member.step);
        let seconds = per_row * rows.count() as f64;
        keep(memory, rows.branch, step, rows, store, seconds);
        if due.same {
            let negative = store.iter().filter_map(|((_, part), given)| {
                let large = !matches!(part, Part::Map(_));
                large.then(|| ((Half::Negative, *part), given.clone()))
            });
            let negative: Store = negative.collect();
            store.extend(negative);
        }
    }
    Ok(stores)
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
        memory: &dyn Memory,
    ) -> Result<Retouched> {
        let s = &self.settings;
        let steps = ddim.steps();
        let start = s.start_step.min(steps);
        let mut trajectory: Vec<Tensor> = self.context.trajectory[..=start].to_vec();
        let mut z = self.context.trajectory[start].clone();
        let mut masks = Vec::new();
        // The target's map of the step before, if that step was made in this run.
        let mut before: Option<Tensor> = None;
        let mut warned = false;
        let mut resume = Resume::new(memory, steps);
        let mut ahead: HashMap<(usize, Branch), Store> = HashMap::new();
        for k in start..steps {
            monitor.step(k, steps)?;
            let needs = s.needs(k, steps, self.givens(k));
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
            // Sources are called for even if the step is there when their masks are to be looked at.
            let looks = there.is_some();
            let step_masks;
            let (mut context, mut references) = (Store::new(), Vec::new());
            let mut blend_masks = None;
            if !looks && (needs.lock || needs.swap) {
                self.call_ahead(k, ddim, monitor, memory, &mut ahead)?;
            }
            if needs.lock && !looks {
                context = self.source(
                    &self.context,
                    k,
                    &needs.context,
                    Branch::Context,
                    ddim,
                    monitor,
                    memory,
                    &mut ahead,
                )?;
            }
            if needs.swap && (!looks || memory.wants_masks()) {
                let of = |parts: &BTreeSet<Part>| {
                    if looks {
                        maps_alone(parts)
                    } else {
                        parts.clone()
                    }
                };
                context = self.source(
                    &self.context,
                    k,
                    &of(&needs.context),
                    Branch::Context,
                    ddim,
                    monitor,
                    memory,
                    &mut ahead,
                )?;
                for (index, (source, parts)) in
                    self.references.iter().zip(&needs.references).enumerate()
                {
                    let store = match self.twin(index, k, memory) {
                        Some(twin) => Store::clone(&references[twin]),
                        None => self.source(
                            source,
                            k,
                            &of(parts),
                            Branch::Reference(index),
                            ddim,
                            monitor,
                            memory,
                            &mut ahead,
                        )?,
                    };
                    references.push(store);
                }
                step_masks = self.masks_at(k, start, &context, &references, previous, memory)?;
                masks.push(step_masks.clone());
                blend_masks = Some(step_masks);
            }
            if let Some((next, map)) = there {
                before = map;
                z = next;
                trajectory.push(z.clone());
                continue;
            }
            let action = action(&needs, &context, &references, blend_masks.as_ref());
            let grid = grid_of(&z, s.mask_levels.0)?;
            let mut swap = Swap {
                sites: &s.sites,
                action,
                maps: needs.target_map.then(|| MapRecorder::new(grid)),
                fired: 0,
                unmasked: 0,
            };
            let target = self.target.drawer()?;
            let guided = Guided {
                model: target.model,
                conditions: target.conditions,
                guidance: s.guidance,
                rescale: s.rescale,
                branch: Branch::Target,
            };
            let since = Instant::now();
            let out = guided.noise(&z, ddim.timesteps()[k] as f32, k, &mut swap, monitor)?;
            let seconds = since.elapsed().as_secs_f64();
            if swap.fired == 0 && (needs.swap || needs.lock) {
                return Err(Error::request(
                    "the control has sites to act on and acted on none",
                ));
            }
            if swap.unmasked > 0 && !warned {
                warned = true;
                monitor.warn(&format!(
                    "the reference's mask leaves no key at {} of the sites (first at step {k}); all keys are used there",
                    swap.unmasked
                ));
            }
            if let Some(maps) = swap.maps {
                let map = maps.finish()?;
                memory.keep_target_map(k, &map, seconds);
                before = Some(map);
            }
            z = ddim.step(&z, &out, k)?;
            memory.keep_state(k + 1, &z, seconds);
            if k + 1 < steps {
                monitor.drawn(k + 1, steps, &z);
            }
            trajectory.push(z.clone());
        }
        resume.end(start);
        monitor.drawn(steps, steps, &z);
        monitor.step(steps, steps)?;
        Ok(Retouched { trajectory, masks })
    }

    /// An earlier reference whose calls at step k are the same, so that what it gave is not called for again.
    fn twin(&self, index: usize, k: usize, memory: &dyn Memory) -> Option<usize> {
        let calls = |index| {
            let of = |half| memory.call(Branch::Reference(index), half, k);
            Some((of(Half::Negative), of(Half::Prompt)?))
        };
        let own = calls(index)?;
        (0..index).find(|&earlier| calls(earlier) == Some(own))
    }

    /// What is given at step k.
    fn givens(&self, k: usize) -> Givens {
        let full = |given: &GivenMasks| {
            let planes = given.at(k).iter();
            planes.flat_map(|plane| &plane.data).all(|&m| m == 1.0)
        };
        let fills = self
            .fills
            .unwrap_or_else(|| self.blend_mask.as_ref().is_some_and(full));
        Givens {
            reference: self.references.iter().all(|source| source.mask.is_some()),
            context: self.context.mask.is_some(),
            blend: self.blend_mask.is_some(),
            fills,
            context_subject: self.context.drawers[k].span.is_some(),
        }
    }

    /// The masks of step k; `previous` is the target's map of the step before, if this run made it.
    fn masks_at(
        &self,
        k: usize,
        start: usize,
        context: &Store,
        references: &[Store],
        previous: Option<Tensor>,
        memory: &dyn Memory,
    ) -> Result<StepMasks> {
        let s = &self.settings;
        let computed =
            |source: &Source<'_>, store: &Store, level: usize| -> Result<Option<Vec<Plane>>> {
                let Some(Given::Map(map)) = store.get(&(Half::Prompt, Part::Map(level))) else {
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
                // Nobody needs it: the blend mask is given, and no subject.
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

    /// What a source branch gives at step k: what was made ahead, else from the memory, else by calling those of its halves
    /// that lack something.
    #[allow(clippy::too_many_arguments)]
    fn source(
        &self,
        source: &Source<'_>,
        k: usize,
        parts: &BTreeSet<Part>,
        branch: Branch,
        ddim: &Ddim,
        monitor: &dyn Monitor,
        memory: &dyn Memory,
        ahead: &mut HashMap<(usize, Branch), Store>,
    ) -> Result<Store> {
        if let Some(made) = ahead.remove(&(k, branch)) {
            return Ok(made);
        }
        let images = source.trajectory[k].dim(0)?;
        let all = Rows::new(branch, images, self.settings.guidance != 1.0);
        let store = self.halves(source, k, parts, all, ddim, monitor, memory, true)?;
        store.ok_or_else(|| Error::request("a branch was not called"))
    }

    /// What these halves of a source branch give at step k; `None` when that takes a call and `calls` forbids it.
    #[allow(clippy::too_many_arguments)]
    fn halves(
        &self,
        source: &Source<'_>,
        k: usize,
        parts: &BTreeSet<Part>,
        all: Rows,
        ddim: &Ddim,
        monitor: &dyn Monitor,
        memory: &dyn Memory,
        calls: bool,
    ) -> Result<Option<Store>> {
        let (mut store, rows) = lacking(k, parts, all, memory);
        if rows.count() == 0 {
            return Ok(Some(store));
        }
        if !calls {
            return Ok(None);
        }
        let due = self.due(source, k, parts, rows, ddim, memory)?;
        for made in make(&[due], monitor, memory)? {
            store.extend(made);
        }
        Ok(Some(store))
    }

    /// The call for these rows of a source branch at step k.
    fn due<'s>(
        &self,
        source: &'s Source<'_>,
        k: usize,
        parts: &BTreeSet<Part>,
        mut rows: Rows,
        ddim: &Ddim,
        memory: &dyn Memory,
    ) -> Result<Due<'s>> {
        // Both halves with one prompt are one call.
        let name = |half| memory.call(rows.branch, half, k);
        let same = rows.negative
            && rows.prompt
            && name(Half::Negative).is_some_and(|call| name(Half::Prompt) == Some(call));
        if same {
            rows.negative = false;
        }
        let mut asked = wanted(memory, rows.branch, k, rows);
        for (half, _) in rows.halves() {
            asked.extend(of_half(parts, half).into_iter().map(|part| (half, part)));
        }
        let drawer = source.drawers[k].draws.drawer()?;
        Ok(Due {
            model: drawer.model,
            member: Member {
                conditions: drawer.conditions,
                guided: self.settings.guidance != 1.0,
                z: &source.trajectory[k],
                timestep: ddim.timesteps()[k] as f32,
                step: k,
                rows,
            },
            asked,
            same,
        })
    }

    /// Makes in one call what the sources of step k lack, and those of the steps behind it, as far as [`TOGETHER`] goes and
    /// one model draws them. What a branch gives at a step is left in `ahead`; what cannot be part of the call is not.
    fn call_ahead(
        &self,
        k: usize,
        ddim: &Ddim,
        monitor: &dyn Monitor,
        memory: &dyn Memory,
        ahead: &mut HashMap<(usize, Branch), Store>,
    ) -> Result<()> {
        let s = &self.settings;
        let steps = ddim.steps();
        if ahead.keys().any(|(step, _)| *step == k) {
            return Ok(());
        }
        let mut dues: Vec<Due<'_>> = Vec::new();
        let mut kept = Vec::new();
        let mut names = HashSet::new();
        let mut pixels = 0;
        'steps: for j in k..steps {
            let needs = s.needs(j, steps, self.givens(j));
            if !(needs.swap || needs.lock) || j > k && memory.state(j + 1).is_some() {
                break;
            }
            let mut sources = vec![(Branch::Context, &self.context, &needs.context)];
            for (index, (source, parts)) in
                self.references.iter().zip(&needs.references).enumerate()
            {
                if self.twin(index, j, memory).is_none() {
                    sources.push((Branch::Reference(index), source, parts));
                }
            }
            let before = dues.len();
            for (branch, source, parts) in sources {
                let (images, _, h, w) = source.trajectory[j].dims4()?;
                // Nothing joins what is too large alone: it is looked for when it is needed.
                if 2 * images * h * w > TOGETHER {
                    continue;
                }
                let all = Rows::new(branch, images, s.guidance != 1.0);
                let (store, rows) = lacking(j, parts, all, memory);
                if rows.count() == 0 {
                    if j == k {
                        ahead.insert((k, branch), store);
                    }
                    continue;
                }
                // Another model, or other prompts to encode, can wait until they are needed.
                let (own, first) = (source.drawers[j].draws, source.drawers[k].draws);
                if !std::ptr::addr_eq(own, first) {
                    break 'steps;
                }
                let due = self.due(source, j, parts, rows, ddim, memory)?;
                let joins = match dues.first() {
                    Some(first) => {
                        std::ptr::eq(first.model, due.model) && first.member.joins(&due.member)?
                    }
                    None => due.member.joins(&due.member)?,
                };
                let own = due.member.rows.halves().into_iter();
                let own: Vec<_> = own
                    .filter_map(|(half, _)| memory.call(branch, half, j))
                    .collect();
                // What another branch is about to give is found when that is done.
                if !joins || own.iter().any(|name| names.contains(name)) {
                    continue;
                }
                let more = due.member.rows.count() * h * w;
                if pixels + more > TOGETHER {
                    // Of this step what fits, of a later one all or nothing.
                    if j == k {
                        continue;
                    }
                    dues.truncate(before);
                    kept.truncate(before);
                    break 'steps;
                }
                pixels += more;
                names.extend(own);
                kept.push(store);
                dues.push(due);
            }
            if dues.len() == before {
                break; // what lacks nothing is not looked through for what comes behind it
            }
        }
        // One by one they are called for where they are needed.
        if dues.len() > 1 {
            let made = make(&dues, monitor, memory)?;
            for ((due, mut store), made) in dues.iter().zip(kept).zip(made) {
                store.extend(made);
                ahead.insert((due.member.step, due.member.rows.branch), store);
            }
        }
        Ok(())
    }

    /// The masks of step k as the swap had them, from what is kept of its calls: `None` when the step does not swap, or
    /// something that they are made of is not kept. Nothing is called.
    ///
    /// # Errors
    /// When what is kept does not fit.
    pub fn kept_masks(
        &self,
        k: usize,
        ddim: &Ddim,
        monitor: &dyn Monitor,
        memory: &dyn Memory,
    ) -> Result<Option<StepMasks>> {
        let needs = self.settings.needs(k, ddim.steps(), self.givens(k));
        if !needs.swap {
            return Ok(None);
        }
        let sources = self.sources(k, &needs, &maps_alone, ddim, monitor, memory, false)?;
        match sources {
            Some((context, references)) => self.masks_of(k, ddim, &context, &references, memory),
            None => Ok(None),
        }
    }

    /// What the prompt half of all branches gives at step k, of what is needed the parts that `of` leaves.
    #[allow(clippy::too_many_arguments)]
    fn sources(
        &self,
        k: usize,
        needs: &StepNeeds,
        of: &dyn Fn(&BTreeSet<Part>) -> BTreeSet<Part>,
        ddim: &Ddim,
        monitor: &dyn Monitor,
        memory: &dyn Memory,
        calls: bool,
    ) -> Result<Option<(Store, Vec<Store>)>> {
        let half = |source: &Source<'_>, parts: &BTreeSet<Part>, branch| {
            monitor.goes_on()?;
            // With guidance or without, the prompt's half alone.
            let rows = Rows::new(branch, source.trajectory[k].dim(0)?, false);
            self.halves(source, k, &of(parts), rows, ddim, monitor, memory, calls)
        };
        let Some(context) = half(&self.context, &needs.context, Branch::Context)? else {
            return Ok(None);
        };
        let mut references = Vec::new();
        for (index, (source, parts)) in self.references.iter().zip(&needs.references).enumerate() {
            let store = match self.twin(index, k, memory) {
                Some(twin) => Some(Store::clone(&references[twin])),
                None => half(source, parts, Branch::Reference(index))?,
            };
            match store {
                Some(store) => references.push(store),
                None => return Ok(None),
            }
        }
        Ok(Some((context, references)))
    }

    /// The masks of step k; `None` when the target's map of the step before is needed and not kept.
    fn masks_of(
        &self,
        k: usize,
        ddim: &Ddim,
        context: &Store,
        references: &[Store],
        memory: &dyn Memory,
    ) -> Result<Option<StepMasks>> {
        let start = self.settings.start_step.min(ddim.steps());
        let by_target = self.blend_mask.is_none() && self.settings.blend != Blend::Context;
        let previous = match k > start && by_target {
            true => match memory.target_map(k - 1) {
                Some(map) => Some(map),
                None => return Ok(None),
            },
            false => None,
        };
        self.masks_at(k, start, context, references, previous, memory)
            .map(Some)
    }

    /// Looks at the target at step k, whose latent is `z`: at what is kept, else, if `calls`, by calling the target's prompt
    /// half once as the step did, its attention swapped, and its sources where something of them is not kept. `None`: it
    /// takes a call and `calls` forbids it, or the target's map of the step before is not kept.
    ///
    /// # Errors
    /// When a call fails, or [`Monitor::goes_on`] ends it.
    #[allow(clippy::too_many_arguments)]
    pub fn look(
        &self,
        k: usize,
        z: &Tensor,
        sought: Sought,
        ddim: &Ddim,
        monitor: &dyn Monitor,
        memory: &dyn Memory,
        calls: bool,
    ) -> Result<Option<Found>> {
        let s = &self.settings;
        let needs = s.needs(k, ddim.steps(), self.givens(k));
        let met = |site: usize| match sought {
            Sought::Map(grid) => {
                let own = grid_of(z, s.mask_levels.0)? == grid;
                Ok::<_, Error>(own.then(|| memory.target_map(k)).flatten().map(Found::Map))
            }
            Sought::Site { index, heads } if index == site && s.sites.contains(&site) => {
                // Where the queries are the context's, the target need not be called.
                if !(needs.lock || needs.context_queries) {
                    return Ok(None);
                }
                let of = |parts: &BTreeSet<Part>| {
                    let here = |part: &Part| match part {
                        Part::KeysValues(at) | Part::Queries(at) => *at == site,
                        Part::Map(_) => true,
                    };
                    parts.iter().copied().filter(here).collect()
                };
                let sources = self.sources(k, &needs, &of, ddim, monitor, memory, calls)?;
                let Some((context, references)) = sources else {
                    return Ok(None);
                };
                let masks = match needs.swap {
                    true => match self.masks_of(k, ddim, &context, &references, memory)? {
                        Some(masks) => Some(masks),
                        None => return Ok(None),
                    },
                    false => None,
                };
                let action = action(&needs, &context, &references, masks.as_ref());
                let gaze = Swap::new(&s.sites, action).gaze(site, heads, None)?;
                Ok(gaze.map(Found::Site))
            }
            Sought::Site { .. } => Ok(None),
        };
        let site = match sought {
            Sought::Site { index, .. } => index,
            Sought::Map(_) => 0,
        };
        if let Some(found) = met(site)? {
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
        let (mut context, mut references) = (Store::new(), Vec::new());
        if needs.lock || needs.swap {
            let sources = self.sources(k, &needs, &of, ddim, monitor, memory, true)?;
            (context, references) = sources.unwrap_or_default();
        }
        let masks = match needs.swap {
            true => match self.masks_of(k, ddim, &context, &references, memory)? {
                Some(masks) => Some(masks),
                None => return Ok(None),
            },
            false => None,
        };
        let action = action(&needs, &context, &references, masks.as_ref());
        let target = self.target.drawer()?;
        let guided = Guided {
            model: target.model,
            conditions: target.conditions,
            guidance: s.guidance,
            rescale: 0.0,
            branch: Branch::Target,
        };
        let timestep = ddim.timesteps()[k] as f32;
        let swap = Swap::new(&s.sites, action);
        guided.look(z, timestep, k, swap, sought, monitor).map(Some)
    }

    /// The raw cross-attention maps of a source branch at step k on a grid of its level: kept ones, else, if `calls`, by
    /// calling its prompt half. `None`: it takes a call and `calls` forbids it.
    ///
    /// # Errors
    /// When there is no such branch, or a call fails.
    #[allow(clippy::too_many_arguments)]
    pub fn source_map(
        &self,
        branch: Branch,
        k: usize,
        level: usize,
        ddim: &Ddim,
        monitor: &dyn Monitor,
        memory: &dyn Memory,
        calls: bool,
    ) -> Result<Option<Tensor>> {
        let source = self.source_of(branch)?;
        let part = Part::Map(level);
        let rows = Rows::new(branch, source.trajectory[k].dim(0)?, false);
        let parts = BTreeSet::from([part]);
        let store = self.halves(source, k, &parts, rows, ddim, monitor, memory, calls)?;
        Ok(
            store.and_then(|mut store| match store.remove(&(Half::Prompt, part)) {
                Some(Given::Map(map)) => Some(map),
                _ => None,
            }),
        )
    }

    /// The context's or a reference's branch.
    ///
    /// # Errors
    /// When there is no such branch.
    pub fn source_of(&self, branch: Branch) -> Result<&Source<'_>> {
        match branch {
            Branch::Context => Some(&self.context),
            Branch::Reference(index) => self.references.get(index),
            Branch::Plain | Branch::Target => None,
        }
        .ok_or_else(|| Error::request(format!("{branch:?} is no source of the swap")))
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

/// A mask grid in the language: `auto` or (rows, columns).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskGrid {
    /// The coarsest attention grid whose shorter side is at least 16, else the finest.
    #[default]
    Auto,
    /// An attention grid by its size.
    Size(usize, usize),
}

/// The level whose grid is the mask grid for latents of this size.
///
/// # Errors
/// When no attention layer is on the grid that is asked for.
pub fn mask_level(sites: &[SiteInfo], latent: (usize, usize), grid: MaskGrid) -> Result<usize> {
    let levels: BTreeSet<usize> = sites.iter().map(|site| site.level).collect();
    let finest = levels.first().copied().unwrap_or(0);
    match grid {
        MaskGrid::Auto => Ok(levels
            .iter()
            .rev()
            .copied()
            .find(|&level| {
                let (h, w) = grid_at(latent, level);
                h.min(w) >= 16
            })
            .unwrap_or(finest)),
        MaskGrid::Size(h, w) => levels
            .iter()
            .copied()
            .find(|&level| grid_at(latent, level) == (h, w))
            .ok_or_else(|| {
                let grids: Vec<String> = levels
                    .iter()
                    .map(|&level| {
                        let (h, w) = grid_at(latent, level);
                        format!("{h}x{w}")
                    })
                    .collect();
                Error::request(format!(
                    "no attention layer is on a grid of {h}x{w}; for this size there are {}",
                    grids.join(", ")
                ))
            }),
    }
}

/// The up-block sites on the two finest grids that have attention (SD 1.x and 2.x: 10..16).
#[must_use]
pub fn auto_sites(sites: &[SiteInfo]) -> BTreeSet<usize> {
    let levels: BTreeSet<usize> = sites.iter().map(|site| site.level).collect();
    let finest: BTreeSet<usize> = levels.into_iter().take(2).collect();
    sites
        .iter()
        .filter(|site| site.part == crate::networks::unet::Part::Up && finest.contains(&site.level))
        .map(|site| site.index)
        .collect()
}
