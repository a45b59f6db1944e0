//! The keys of samplers' steps and calls, and the memory that they are kept in between runs.
//!
//! # Format
//! Every key is built by [`KeyHasher`], so it begins with a field `format`. What they are made of:
//!
//! | format | fields |
//! | --- | --- |
//! | `retouch/noise/1` | seed, shape |
//! | `retouch/state-of/1` | the key of a value, the port that it comes from, the number of the state in it |
//! | `retouch/step/1` | the state before; timestep, both alphas, prediction, and the range of clipping if there is one; model, prompt, negative prompt, guidance; numerics; control |
//! | | and, only where they are: guidance rescale; what the network is shown, and the guidance by it; eta, seed and number of the step's noise; `inpaint` |
//! | `retouch/solver-step/1` | the same for the other schedulers: in place of the alphas the solver, its sigmas (PNDM, LCM: alphas) and orders at the step; where they are: the timestep of its second evaluation, the range of clipping, the variant of the solver, LCM's scaling |
//! | `retouch/past/1` | the state that the solver state of a multistep scheduler is beside |
//! | `retouch/scaled/1` | a state, what it is multiplied with |
//! | `retouch/noised/1` | a picture's latent, its noise, the level of both |
//! | `retouch/inpaint/1` | a picture's latent, its noise, its mask |
//! | `retouch/shown/1` | what a network is shown beside the latent: a picture's latent, and the mask of an inpainting model; a field `shown` of steps and calls |
//! | `retouch/inverse/1` | the state before; timestep, both alphas, prediction; model, prompt; numerics |
//! | `retouch/call/1` | state, timestep, model, prompt, numerics: one half of a call of the U-Net; with guidance, of a model that reads long prompts in chunks, the other half's prompt too: both are given equally many tokens |
//! | `retouch/part/1` | a call, the part of it |
//! | `retouch/map/1` | the state after the target's step, the level |
//! | `retouch/trajectory/1` | all states, what drew each step, and the schedule if it isn't that of DDIM with eta 0 |
//! | `retouch/control/1` | sites; the calls of context and reference; for a swap whose queries, and each mask: a given one by its key and level, a computed one by its rule |
//! | `retouch/linear-map/1` | VAE, numerics: the map from latents to colours of previews |
//! | `retouch/blank/1` | in place of a node's key for outputs beside a trajectory, where an empty prompt was zeros before: trajectory, model, port |
//! | `retouch/training/1` | the state of a training after so many steps: see `train/mod.rs` |
//! | `retouch/call-of-file/1` | in place of a call, where only a file says what drew its step: state, timestep, half, both models, context_prompt |
//!
//! Steps, inverse steps and calls with an empty prompt have a field `empty prompt` if the model's empty *negative* prompt is
//! zeros: the prompt is encoded there, and was zeros before.
//!
//! The version of an op is not in these keys, as equal steps of different ops share them: a change of what a step computes
//! changes the format's number.
//!
//! A model is the content of its U-Net, text encoder and tokenizer. A call is the same whichever half of guidance it is
//! and whichever node makes it. A VAE is the content of its files.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use retouch_graph::key::KeyHasher;
use retouch_graph::{Context, Digest, Item, Key, Need, Step, UpLink, Upstream};

use crate::payload::{Attention, Latent, SolverState, TrajectoryFacts};
use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_diffusion::networks::unet::grid_at;
use retouch_diffusion::prompt::conditioning::reads_chunks;
use retouch_diffusion::sampling::control::{Branch, Captured, Half, Part, of_half};
use retouch_diffusion::sampling::scheduler::Ddim;
use retouch_diffusion::sampling::solver::{Sampler, Solver};
use retouch_diffusion::sampling::swap::RetouchSettings;
use retouch_diffusion::sampling::{Held, StepProvenance, StepStore};
use retouch_diffusion::{Error, Result};

/// The name of the one value under a state's key; the port of a sampler's last state has it too.
pub(crate) const LATENT: &str = "latent";
/// The name of the one value under a part's key.
const PART: &str = "part";
/// The name of the one value under the key of solver state.
const PAST: &str = "past";

/// What stands for the content of a model: its files but for the VAE's, which neither draws nor encodes prompts.
pub(crate) fn model_id<'a>(files: impl IntoIterator<Item = (&'a str, Digest)>) -> String {
    id_of(files, |role| !role.starts_with("vae/"))
}

/// What stands for the content of a model's VAE; a single file holds it among others.
pub(crate) fn vae_id<'a>(files: impl IntoIterator<Item = (&'a str, Digest)>) -> String {
    id_of(files, |role| role.starts_with("vae/") || role == "model")
}

fn id_of<'a>(
    files: impl IntoIterator<Item = (&'a str, Digest)>,
    counts: impl Fn(&str) -> bool,
) -> String {
    let mut hasher = blake3::Hasher::new();
    for (role, digest) in files {
        if counts(role) {
            hasher.update(&(role.len() as u64).to_le_bytes());
            hasher.update(role.as_bytes());
            hasher.update(&digest);
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// What `load_model` says of itself while the plan is made.
#[derive(Debug)]
pub(crate) struct ModelNote {
    /// Stands for its content.
    pub id: String,
    /// Of one that is trained: the steps whose states are kept, and the states' keys.
    pub training: Vec<(u64, Key)>,
}

/// What `mask` says of itself: whether its masks are 1 everywhere.
#[derive(Debug)]
pub(crate) struct MaskNote {
    pub ones: bool,
}

/// A trajectory, while the plan is made.
#[derive(Clone, Debug)]
pub(crate) struct TrajectoryNote {
    /// The keys of z_0 .. z_T.
    pub states: Vec<Key>,
    /// What drew each step; `None` where that is known only once it is there (a file).
    pub drawn: Vec<Option<StepProvenance>>,
    pub facts: TrajectoryFacts,
}

impl TrajectoryNote {
    /// The trajectories behind a port, in order.
    pub(crate) fn all(upstream: &Upstream<'_>, port: &str) -> Option<Vec<Arc<Self>>> {
        (0..upstream.links(port).len())
            .map(|index| Self::at(upstream, port, index))
            .collect()
    }

    /// The trajectory behind a port: a sampler's own, or one that only its key and its facts are known of.
    pub(crate) fn of(upstream: &Upstream<'_>, port: &str) -> Option<Arc<Self>> {
        Self::at(upstream, port, 0)
    }

    fn at(upstream: &Upstream<'_>, port: &str, index: usize) -> Option<Arc<Self>> {
        let link = upstream.links(port).get(index)?;
        if let Some(note) = link.note::<SamplerNote>() {
            return Some(note.trajectory.clone());
        }
        let facts: TrajectoryFacts = upstream.facts_at(port, index)?;
        Some(Arc::new(Self {
            states: (0..=facts.steps).map(|k| state_of(link, k)).collect(),
            drawn: vec![None; facts.steps],
            facts,
        }))
    }

    /// The key of the trajectory as a value.
    pub(crate) fn key(&self) -> Key {
        let mut hasher = KeyHasher::new("retouch/trajectory/1");
        for state in &self.states {
            hasher.field("state", &state.0);
        }
        let drawn = serde_json::to_vec(&self.drawn).unwrap_or_default();
        hasher.field("drawn", &drawn);
        if let Some(schedule) = &self.facts.schedule {
            let schedule = serde_json::to_vec(schedule).unwrap_or_default();
            hasher.field("schedule", &schedule);
        }
        hasher.finish()
    }
}

/// What a sampler says of itself: its trajectory for those downstream, the keys of its calls for itself.
#[derive(Debug)]
pub(crate) struct SamplerNote {
    pub trajectory: Arc<TrajectoryNote>,
    /// The keys of the states that the node's own loop counts by.
    pub states: Vec<Key>,
    /// The keys of the solver state beside a state, by the state's number.
    pub pasts: HashMap<usize, Key>,
    /// The keys of the target's maps, by step.
    pub maps: HashMap<usize, Key>,
    /// The calls of its branches.
    pub calls: HashMap<(Branch, Half, usize), Key>,
    /// The blend mask is known to be 1 everywhere.
    pub fills: bool,
    /// What its model is like.
    pub model: Arc<ModelFacts>,
    /// What a swap does at its steps, if it is one.
    pub swap: Option<SwapNote>,
}

/// What the swap of a sampler does, its numbers resolved.
#[derive(Debug)]
pub(crate) struct SwapNote {
    pub settings: RetouchSettings,
    /// The steps that it swaps at.
    pub steps: Range<usize>,
    /// How many references it has.
    pub references: usize,
}

/// State `index` of the value of a link that is not a chain.
pub(crate) fn state_of(link: &UpLink, index: usize) -> Key {
    let mut hasher = KeyHasher::new("retouch/state-of/1");
    hasher.field("key", &link.key.0);
    // One node may give several values under its key.
    hasher.field("port", link.port.as_bytes());
    hasher.field("index", &(index as u64).to_le_bytes());
    hasher.finish()
}

/// Starting noise.
pub(crate) fn noise(seed: u64, shape: [usize; 4]) -> Key {
    let mut hasher = KeyHasher::new("retouch/noise/1");
    hasher.field("seed", &seed.to_le_bytes());
    for side in shape {
        hasher.field("shape", &(side as u64).to_le_bytes());
    }
    hasher.finish()
}

/// Starting noise, multiplied with what the scheduler has it multiplied with.
pub(crate) fn scaled(state: Key, by: f64) -> Key {
    if by == 1.0 {
        return state;
    }
    let mut hasher = KeyHasher::new("retouch/scaled/1");
    hasher.field("state", &state.0);
    hasher.field("by", &by.to_le_bytes());
    hasher.finish()
}

/// A picture's latent with noise at a level.
pub(crate) fn noised(picture: &Key, noise: &Key, level: (f64, f64)) -> Key {
    let mut hasher = KeyHasher::new("retouch/noised/1");
    hasher.field("picture", &picture.0);
    hasher.field("noise", &noise.0);
    hasher.field("signal", &level.0.to_le_bytes());
    hasher.field("level", &level.1.to_le_bytes());
    hasher.finish()
}

/// What stays of a picture.
pub(crate) fn inpaint(picture: &Key, noise: &Key, mask: &Key) -> Key {
    let mut hasher = KeyHasher::new("retouch/inpaint/1");
    hasher.field("picture", &picture.0);
    hasher.field("noise", &noise.0);
    hasher.field("mask", &mask.0);
    hasher.finish()
}

/// What a network is shown beside the latent: a picture's latent, and the mask of an inpainting model.
pub(crate) fn shown(picture: &Key, mask: Option<&Key>) -> Key {
    let mut hasher = KeyHasher::new("retouch/shown/1");
    hasher.field("picture", &picture.0);
    if let Some(mask) = mask {
        hasher.field("mask", &mask.0);
    }
    hasher.finish()
}

/// The solver state beside a state.
pub(crate) fn past(state: &Key) -> Key {
    let mut hasher = KeyHasher::new("retouch/past/1");
    hasher.field("state", &state.0);
    hasher.finish()
}

/// What a plain sampler does at all of its steps beside calling the network.
#[derive(Clone, Copy)]
pub(crate) struct Moves<'a> {
    pub sampler: &'a Sampler,
    /// The seed of the noise that steps add.
    pub seed: Option<u64>,
    /// Stands for what stays of a picture.
    pub inpaint: Option<&'a Key>,
}

fn schedule(hasher: &mut KeyHasher, ddim: &Ddim, k: usize) {
    let (from, to) = ddim.alphas(k);
    hasher.field("timestep", &(ddim.timesteps()[k] as u64).to_le_bytes());
    hasher.field("alpha", &from.to_le_bytes());
    hasher.field("alpha", &to.to_le_bytes());
    hasher.field("prediction", format!("{:?}", ddim.prediction()).as_bytes());
    if let Some(clip) = ddim.clip() {
        hasher.field("clip", &clip.to_le_bytes());
    }
}

/// Who draws a step, and with what.
#[derive(Clone, Copy)]
pub(crate) struct Draw<'a> {
    pub model: &'a str,
    pub prompt: &'a str,
    pub negative: &'a str,
    pub guidance: f64,
    pub rescale: f64,
    pub numerics: &'a str,
    /// Whether the model's empty negative prompt is zeros ([`ModelFacts::blank_is_zero`]).
    pub blank_is_zero: bool,
    /// Stands for what the network is shown beside the latent, and the guidance by it.
    pub beside: Option<(&'a Key, f64)>,
}

/// Says that the empty prompt of a model whose empty negative prompt is zeros was encoded. Both were zeros once, under keys
/// without this field.
pub(crate) fn empty_prompt_field(hasher: &mut KeyHasher, prompt: &str, blank_is_zero: bool) {
    if blank_is_zero && prompt.is_empty() {
        hasher.field("empty prompt", b"encoded");
    }
}

/// The key of a node's output beside its trajectory, in place of the node's own key, for models and prompts that
/// [`empty_prompt_field`] is for.
pub(crate) fn beside_blank(upstream: &Upstream<'_>, trajectory: &Key, port: &str) -> Key {
    let mut hasher = KeyHasher::new("retouch/blank/1");
    hasher.field("trajectory", &trajectory.0);
    if let Some(model) = upstream.link("model") {
        hasher.field("model", &model.key.0);
    }
    hasher.field("port", port.as_bytes());
    hasher.finish()
}

/// A timestep that is whole as it always was, any other by its bits.
fn timestep_field(hasher: &mut KeyHasher, timestep: f32) {
    if timestep.fract() == 0.0 {
        hasher.field("timestep", &(timestep as u64).to_le_bytes());
    } else {
        hasher.field("fractional timestep", &timestep.to_le_bytes());
    }
}

impl Draw<'_> {
    /// Whether both halves are called.
    pub(crate) fn halves(&self) -> &'static [Half] {
        if self.guidance == 1.0 {
            &[Half::Conditional]
        } else {
            &[Half::Unconditional, Half::Conditional]
        }
    }

    /// Who draws, with which prompts.
    fn fields(&self, hasher: &mut KeyHasher) {
        hasher.field("model", self.model.as_bytes());
        hasher.field("prompt", self.prompt.as_bytes());
        if self.guidance != 1.0 {
            hasher.field("negative", self.negative.as_bytes());
        }
        hasher.field("guidance", &self.guidance.to_le_bytes());
        hasher.field("numerics", self.numerics.as_bytes());
        empty_prompt_field(hasher, self.prompt, self.blank_is_zero);
        if self.guidance != 1.0 && self.rescale != 0.0 {
            hasher.field("rescale", &self.rescale.to_le_bytes());
        }
        if let Some((shown, guidance)) = self.beside {
            hasher.field("shown", &shown.0);
            if self.guidance != 1.0 {
                hasher.field("image guidance", &guidance.to_le_bytes());
            }
        }
    }

    /// Calls of the network for each image of a step.
    pub(crate) fn calls(&self) -> usize {
        let guided_by_picture =
            self.guidance != 1.0 && self.beside.is_some_and(|(_, guidance)| guidance != 1.0);
        self.halves().len() + usize::from(guided_by_picture)
    }

    /// The key of the state after step k by DDIM; `control` stands for what is done to its attention.
    pub(crate) fn step(&self, before: &Key, ddim: &Ddim, k: usize, control: Option<&Key>) -> Key {
        let mut hasher = KeyHasher::new("retouch/step/1");
        hasher.field("before", &before.0);
        schedule(&mut hasher, ddim, k);
        self.fields(&mut hasher);
        if let Some(control) = control {
            hasher.field("control", &control.0);
        }
        hasher.finish()
    }

    /// The key of the state after a plain sampler's step k.
    pub(crate) fn plain(&self, before: &Key, moves: &Moves<'_>, k: usize) -> Key {
        let sampler = moves.sampler;
        let number = sampler.number(k);
        let solver = sampler.schedule().solver;
        let mut hasher;
        match sampler.ddim() {
            Some(ddim) => {
                hasher = KeyHasher::new("retouch/step/1");
                hasher.field("before", &before.0);
                schedule(&mut hasher, ddim, number);
            }
            None => {
                hasher = KeyHasher::new("retouch/solver-step/1");
                hasher.field("before", &before.0);
                hasher.field("solver", solver.name().as_bytes());
                timestep_field(&mut hasher, sampler.timestep(k));
                let numbers = sampler.numbers(k);
                for sigma in numbers.sigmas {
                    hasher.field("sigma", &sigma.to_le_bytes());
                }
                for order in numbers.orders {
                    hasher.field("order", &(order as u64).to_le_bytes());
                }
                hasher.field(
                    "prediction",
                    format!("{:?}", sampler.prediction()).as_bytes(),
                );
                for (name, value) in numbers.others {
                    hasher.field(name, &value);
                }
            }
        }
        self.fields(&mut hasher);
        if sampler.adds_noise(k) {
            if solver == Solver::Ddim {
                hasher.field("eta", &sampler.schedule().eta.to_le_bytes());
            }
            hasher.field("noise seed", &moves.seed.unwrap_or_default().to_le_bytes());
            hasher.field("noise step", &(number as u64).to_le_bytes());
        }
        if let Some(inpaint) = moves.inpaint {
            let (signal, level) = sampler.level(k + 1);
            hasher.field("inpaint", &inpaint.0);
            hasher.field("signal", &signal.to_le_bytes());
            hasher.field("level", &level.to_le_bytes());
        }
        hasher.finish()
    }

    /// The key of the state after an inverse step to timestep k.
    pub(crate) fn inverse(&self, before: &Key, ddim: &Ddim, k: usize) -> Key {
        let mut hasher = KeyHasher::new("retouch/inverse/1");
        hasher.field("before", &before.0);
        schedule(&mut hasher, ddim, k);
        hasher.field("model", self.model.as_bytes());
        hasher.field("prompt", self.prompt.as_bytes());
        hasher.field("numerics", self.numerics.as_bytes());
        empty_prompt_field(&mut hasher, self.prompt, self.blank_is_zero);
        hasher.finish()
    }

    /// The call of a half at a state.
    pub(crate) fn call(&self, state: &Key, timestep: f32, half: Half) -> Key {
        let (text, other) = match half {
            Half::Unconditional => (self.negative, self.prompt),
            Half::Conditional => (self.prompt, self.negative),
        };
        let mut hasher = KeyHasher::new("retouch/call/1");
        hasher.field("state", &state.0);
        timestep_field(&mut hasher, timestep);
        hasher.field("model", self.model.as_bytes());
        hasher.field("prompt", text.as_bytes());
        if self.guidance != 1.0 && reads_chunks(self.model) {
            hasher.field("beside", other.as_bytes());
        }
        hasher.field("numerics", self.numerics.as_bytes());
        if half == Half::Conditional {
            empty_prompt_field(&mut hasher, self.prompt, self.blank_is_zero);
        }
        if let Some((shown, _)) = self.beside {
            hasher.field("shown", &shown.0);
        }
        hasher.finish()
    }
}

/// The key of a part of a call.
fn part_key(call: &Key, part: Part) -> Key {
    let mut hasher = KeyHasher::new("retouch/part/1");
    hasher.field("call", &call.0);
    hasher.field("part", &part.tag().to_le_bytes());
    hasher.finish()
}

/// The key of the target's maps of the step that ends in a state.
pub(crate) fn map_key(after: &Key, level: usize) -> Key {
    let mut hasher = KeyHasher::new("retouch/map/1");
    hasher.field("after", &after.0);
    hasher.field("level", &(level as u64).to_le_bytes());
    hasher.finish()
}

/// The key of the map from latents to colours of a VAE.
pub(crate) fn linear_map_key(vae: &str, numerics: &str) -> Key {
    let mut hasher = KeyHasher::new("retouch/linear-map/1");
    hasher.field("vae", vae.as_bytes());
    hasher.field("numerics", numerics.as_bytes());
    hasher.finish()
}

/// What a step needs of a half of a source's call; `None` when it needs nothing.
pub(crate) fn need(
    call: Key,
    half: Half,
    parts: &BTreeSet<Part>,
    model: &ModelFacts,
    of: &TrajectoryFacts,
) -> Option<Need> {
    let parts = of_half(parts, half);
    let pixels = |level| {
        let (h, w) = grid_at((of.height, of.width), level);
        h * w * of.batch
    };
    let items: Vec<Item> = parts
        .into_iter()
        .map(|part| {
            let site = |index: usize| model.sites.get(index);
            let numbers = match part {
                Part::KeysValues(index) => {
                    site(index).map_or(0, |site| 2 * pixels(site.level) * site.width)
                }
                Part::Queries(index) => {
                    site(index).map_or(0, |site| pixels(site.level) * site.width)
                }
                // Of one chunk: how many a prompt has is known when it is tokenized.
                Part::Map(level) => pixels(level) * model.tokens,
            };
            Item {
                key: part_key(&call, part),
                tag: part.tag(),
                bytes: numbers as u64 * 4,
                large: !matches!(part, Part::Map(_)),
            }
        })
        .collect();
    (!items.is_empty()).then_some(Need {
        call,
        items,
        calls: of.batch as u64,
    })
}

/// What a call's seconds depend on.
pub(crate) fn class(model: &str, of: &TrajectoryFacts) -> String {
    let id: String = model.chars().take(16).collect();
    format!("unet/{id}/{}x{}x{}", of.channels, of.height, of.width)
}

/// The step of a plain sampler, which evaluates the network so often.
pub(crate) fn plain_step(
    draw: Draw<'_>,
    before: &Key,
    timestep: f32,
    evaluations: usize,
    batch: usize,
) -> Step {
    Step {
        calls: (evaluations * draw.calls() * batch) as u64,
        offers: draw
            .halves()
            .iter()
            .map(|half| {
                (
                    draw.call(before, timestep, *half),
                    *half == Half::Conditional,
                )
            })
            .collect(),
        ..Step::default()
    }
}

/// The model behind a port: who it is and what is known of it.
pub(crate) fn model(upstream: &Upstream<'_>, port: &str) -> Option<(String, ModelFacts)> {
    let note = upstream.link(port)?.note::<ModelNote>()?;
    Some((note.id.clone(), upstream.facts(port)?))
}

/// Whether what is linked is known to be 1 everywhere.
pub(crate) fn is_ones(link: Option<&UpLink>) -> bool {
    link.and_then(UpLink::note::<MaskNote>)
        .is_some_and(|note| note.ones)
}

/// Whether all is made of numbers: only successes are kept, and a device may err once.
fn is_finite(t: &Tensor) -> bool {
    t.abs()
        .and_then(|t| t.sum_all())
        .and_then(|t| t.to_scalar::<f32>())
        .is_ok_and(f32::is_finite)
}

/// The engine's lock on a step that is being made, released when it is dropped.
struct StepLock<'a>(
    #[expect(dead_code, reason = "held, never read")] retouch_graph::InFlightLock<'a>,
);

impl Held for StepLock<'_> {}

/// The engine's cache as the memory of a sampler.
pub(crate) struct CacheStore<'a> {
    context: &'a Context<'a>,
    note: Option<Arc<SamplerNote>>,
}

impl<'a> CacheStore<'a> {
    /// The memory of the node that runs.
    pub(crate) fn new(context: &'a Context<'a>) -> Self {
        Self {
            context,
            note: context.note(),
        }
    }

    fn lock(&self, key: Key) -> Result<Option<Box<dyn Held + '_>>> {
        let held = self.context.in_flight_lock(key);
        let held = held.map_err(|_| Error::Cancelled)?;
        Ok(held.map(|held| Box::new(StepLock(held)) as Box<dyn Held + '_>))
    }

    fn state_key(&self, k: usize) -> Option<Key> {
        self.note.as_ref()?.states.get(k).copied()
    }

    fn past_key(&self, k: usize) -> Option<Key> {
        self.note.as_ref()?.pasts.get(&k).copied()
    }

    fn map_key(&self, k: usize) -> Option<Key> {
        self.note.as_ref()?.maps.get(&k).copied()
    }

    fn keep_attention(&self, key: Key, given: &Captured, seconds: f64) {
        // It may be there already, and sound.
        if self.context.kept::<Attention>(&key, PART).is_some() {
            return;
        }
        let finite = match given {
            Captured::KeysValues { k, v, .. } => is_finite(k) && is_finite(v),
            Captured::Queries(t) | Captured::Map(t) => is_finite(t),
        };
        // What cannot be copied cannot be kept; the run goes on without.
        if finite && let Ok(attention) = Attention::of(given) {
            self.context.keep(key, PART, Arc::new(attention), seconds);
        }
    }
}

impl StepStore for CacheStore<'_> {
    fn state(&self, k: usize) -> Option<Tensor> {
        let latent = self.context.kept::<Latent>(&self.state_key(k)?, LATENT)?;
        Some(latent.tensor.clone())
    }

    fn keep_state(&self, k: usize, z: &Tensor, seconds: f64) {
        if let Some(key) = self.state_key(k)
            && is_finite(z)
        {
            let latent = Latent { tensor: z.clone() };
            self.context.keep(key, LATENT, Arc::new(latent), seconds);
        }
    }

    fn past(&self, k: usize) -> Option<Vec<Tensor>> {
        let past = self.context.kept::<SolverState>(&self.past_key(k)?, PAST)?;
        Some(past.0.clone())
    }

    fn keep_past(&self, k: usize, past: &[Tensor], seconds: f64) {
        if let Some(key) = self.past_key(k)
            && past.iter().all(is_finite)
        {
            self.context
                .keep(key, PAST, Arc::new(SolverState(past.to_vec())), seconds);
        }
    }

    fn target_map(&self, k: usize) -> Option<Tensor> {
        let kept = self.context.kept::<Attention>(&self.map_key(k)?, PART)?;
        match &kept.0 {
            Captured::Map(map) => Some(map.clone()),
            _ => None,
        }
    }

    fn keep_target_map(&self, k: usize, map: &Tensor, seconds: f64) {
        if let Some(key) = self.map_key(k) {
            self.keep_attention(key, &Captured::Map(map.clone()), seconds);
        }
    }

    fn claim(&self, k: usize) -> Result<Option<Box<dyn Held + '_>>> {
        let Some(key) = self.state_key(k) else {
            return Ok(None);
        };
        self.lock(key)
    }

    fn claim_calls(&self, calls: &BTreeSet<Key>) -> Result<Vec<Box<dyn Held + '_>>> {
        // All take them in one order, and take nothing else while they have them: nobody waits in a circle.
        let held = calls.iter().map(|call| self.lock(*call));
        Ok(held
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    fn call(&self, branch: Branch, half: Half, k: usize) -> Option<Key> {
        self.note.as_ref()?.calls.get(&(branch, half, k)).copied()
    }

    fn wanted(&self, call: &Key) -> Vec<Part> {
        let items = self.context.wanted(call);
        items
            .iter()
            .filter_map(|item| Part::of_tag(item.tag))
            .collect()
    }

    fn part(&self, call: &Key, part: Part) -> Option<Captured> {
        let kept = self
            .context
            .kept::<Attention>(&part_key(call, part), PART)?;
        Some(kept.0.clone())
    }

    fn keep_part(&self, call: &Key, part: Part, given: &Captured, seconds: f64) {
        self.keep_attention(part_key(call, part), given, seconds);
    }

    fn wants_masks(&self) -> bool {
        self.context.wants("masks")
    }

    fn resumed(&self, step: usize, of: usize) {
        self.context.resumed(step, of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retouch_diffusion::prompt::conditioning::{LongPrompts, Reading, Syntax};

    #[test]
    fn the_prompt_beside_a_call_counts_only_where_both_are_given_equally_many_tokens() {
        let chunks = Reading {
            syntax: Syntax::A1111,
            long_prompts: LongPrompts::Chunks,
            clip_skip: Some(2),
        };
        let id = |reading: Reading| "ab12".to_owned() + &reading.suffix();
        let (plain, chunks) = (id(Reading::default()), id(chunks));
        assert_eq!(
            (plain.as_str(), chunks.as_str()),
            ("ab12", "ab12+a1111+chunks+clip_skip=2")
        );
        let key = |model: &str, negative: &str, guidance: f64| {
            let draw = Draw {
                model,
                prompt: "a",
                negative,
                guidance,
                rescale: 0.0,
                numerics: "",
                blank_is_zero: false,
                beside: None,
            };
            draw.call(&Key([0; 32]), 501.0, Half::Conditional)
        };
        assert_eq!(key(&plain, "b", 5.0), key(&plain, "c", 5.0));
        assert_eq!(key(&plain, "b", 5.0), key(&plain, "b", 1.0));
        assert_ne!(key(&chunks, "b", 5.0), key(&chunks, "c", 5.0));
        assert_ne!(key(&chunks, "b", 5.0), key(&chunks, "b", 1.0));
        assert_eq!(key(&chunks, "b", 1.0), key(&chunks, "c", 1.0));
        assert_eq!(key(&chunks, "b", 5.0), key(&chunks, "b", 7.0));
    }

    #[test]
    fn an_empty_prompt_has_another_key_only_where_it_was_zeros_and_is_encoded_now() {
        let call = |prompt: &str, half, blank_is_zero| {
            let draw = Draw {
                model: "m",
                prompt,
                negative: "",
                guidance: 5.0,
                rescale: 0.0,
                numerics: "",
                blank_is_zero,
                beside: None,
            };
            draw.call(&Key([0; 32]), 501.0, half)
        };
        let (prompt, negative) = (Half::Conditional, Half::Unconditional);
        assert_ne!(call("", prompt, true), call("", prompt, false));
        assert_ne!(call("", prompt, true), call("", negative, true));
        assert_eq!(call("", prompt, false), call("", negative, false));
        assert_eq!(call("", negative, true), call("", negative, false));
        assert_eq!(call("a", prompt, true), call("a", prompt, false));
    }
}
