//! The method: step-blended sampling (stage 1), inversion, and the retouch by attention swap (stage 2).

use std::collections::BTreeSet;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::control::{
    Action, AttentionControl, Branch, Capture, MapRecorder, Rows, Store, Swap, Untouched,
};
use super::masks::{Plane, Threshold, subject_maps};
use super::scheduler::Ddim;
use super::unet::{Call, SiteInfo, grid_at};
use super::{Error, Result};

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
}

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

/// A prompt and its negative, encoded: `[1, N, C]` each.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The prompt's states.
    pub prompt: Tensor,
    /// The negative prompt's.
    pub negative: Tensor,
}

impl Conditions {
    /// Encodes both with the model's own text encoder; warns of what did not fit.
    ///
    /// # Errors
    /// When a part of the model cannot be loaded.
    pub fn encode(
        model: &Checkpoint,
        prompt: &str,
        negative: &str,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let encode = |text: &str| -> Result<Tensor> {
            let (states, cut) = model.encode_prompt(text)?;
            if cut > 0 {
                monitor.warn(&format!(
                    "the last {cut} tokens do not fit the text encoder and are left out of the prompt {}",
                    super::quoted(text)
                ));
            }
            Ok(states)
        };
        Ok(Self {
            prompt: encode(prompt)?,
            negative: encode(negative)?,
        })
    }
}

/// One call for all images and halves of a branch.
struct Guided<'a> {
    model: &'a Checkpoint,
    conditions: &'a Conditions,
    guidance: f64,
    branch: Branch,
}

impl Guided<'_> {
    /// The rows' outputs, before guidance.
    fn rows(
        &self,
        z: &Tensor,
        timestep: usize,
        step: usize,
        control: &mut dyn AttentionControl,
        monitor: &dyn Monitor,
    ) -> Result<(Tensor, Rows)> {
        let images = z.dim(0)?;
        let rows = Rows {
            branch: self.branch,
            images,
            guided: self.guidance != 1.0,
        };
        let repeat = |states: &Tensor| states.repeat((images, 1, 1));
        let (latent, context) = if rows.guided {
            let context = Tensor::cat(
                &[
                    repeat(&self.conditions.negative)?,
                    repeat(&self.conditions.prompt)?,
                ],
                0,
            )?;
            (Tensor::cat(&[z, z], 0)?, context)
        } else {
            (z.clone(), repeat(&self.conditions.prompt)?)
        };
        let timesteps = vec![timestep; rows.count()];
        let call = Call {
            latent: &latent,
            timesteps: &timesteps,
            context: &context,
            step,
            rows,
        };
        let out = self
            .model
            .unet()?
            .forward(call, control, self.model.kernel())?;
        monitor.unet_calls(rows.count());
        Ok((out, rows))
    }

    /// u + g (c - u); c alone at g = 1.
    fn noise(
        &self,
        z: &Tensor,
        timestep: usize,
        step: usize,
        control: &mut dyn AttentionControl,
        monitor: &dyn Monitor,
    ) -> Result<Tensor> {
        let (out, rows) = self.rows(z, timestep, step, control, monitor)?;
        if !rows.guided {
            return Ok(out);
        }
        let u = out.narrow(0, 0, rows.images)?;
        let c = out.narrow(0, rows.images, rows.images)?;
        Ok((&u + ((c - &u)? * self.guidance)?)?)
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

/// Stage 1: the steps before `blend_steps` by `vanilla`, the others by `personalized` (the paper's equation for
/// step-blended denoising). Returns the latents z_0 .. z_T, noisiest first, `[B, C, h, w]` each.
///
/// # Errors
/// When a call fails or the run is cancelled.
pub fn step_blend_sample(
    vanilla: Drawer<'_>,
    personalized: Drawer<'_>,
    noise: &Tensor,
    ddim: &Ddim,
    blend_steps: usize,
    guidance: f64,
    monitor: &dyn Monitor,
) -> Result<Vec<Tensor>> {
    let mut trajectory = vec![noise.clone()];
    let mut z = noise.clone();
    for (k, &t) in ddim.timesteps().iter().enumerate() {
        monitor.step(k, ddim.steps())?;
        let drawer = if k < blend_steps {
            vanilla
        } else {
            personalized
        };
        let guided = Guided {
            model: drawer.model,
            conditions: drawer.conditions,
            guidance,
            branch: Branch::Plain,
        };
        let out = guided.noise(&z, t, k, &mut Untouched, monitor)?;
        z = ddim.step(&z, &out, k)?;
        trajectory.push(z.clone());
    }
    monitor.step(ddim.steps(), ddim.steps())?;
    Ok(trajectory)
}

/// DDIM inversion with one prompt and guidance 1: the latents z_0 .. z_T, noisiest first, of which the last is
/// `latent` itself.
///
/// # Errors
/// When a call fails or the run is cancelled.
pub fn invert(
    drawer: Drawer<'_>,
    latent: &Tensor,
    ddim: &Ddim,
    monitor: &dyn Monitor,
) -> Result<Vec<Tensor>> {
    let guided = Guided {
        model: drawer.model,
        conditions: drawer.conditions,
        guidance: 1.0,
        branch: Branch::Plain,
    };
    let mut trajectory = vec![latent.clone()];
    let mut z = latent.clone();
    for (done, (k, &t)) in ddim.timesteps().iter().enumerate().rev().enumerate() {
        monitor.step(done, ddim.steps())?;
        let out = guided.noise(&z, t, k, &mut Untouched, monitor)?;
        z = ddim.inverse_step(&z, &out, k)?;
        trajectory.push(z.clone());
    }
    monitor.step(ddim.steps(), ddim.steps())?;
    trajectory.reverse();
    Ok(trajectory)
}

/// The raw cross-attention maps `[B, h w, tokens]` (mean over heads and layers) of a latent at step k.
///
/// # Errors
/// When a call fails or no layer is on the grid.
pub fn cross_attention(
    drawer: Drawer<'_>,
    z: &Tensor,
    ddim: &Ddim,
    k: usize,
    grid: (usize, usize),
    monitor: &dyn Monitor,
) -> Result<Tensor> {
    let sites = BTreeSet::new();
    let mut capture = Capture::new(&sites, Some(grid));
    let guided = Guided {
        model: drawer.model,
        conditions: drawer.conditions,
        guidance: 1.0,
        branch: Branch::Plain,
    };
    guided.noise(z, ddim.timesteps()[k], k, &mut capture, monitor)?;
    capture.maps.map_or_else(
        || Err(Error::request("no maps were recorded")),
        MapRecorder::finish,
    )
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
    /// The level (halvings of the latent's grid) of the mask grid: the target's and the context's, and the reference's.
    pub mask_levels: (usize, usize),
    /// Guidance of the target.
    pub guidance: f64,
}

/// One step's source: the context's or the reference's branch.
pub struct Source<'a> {
    /// The latents z_0 .. z_T.
    pub trajectory: &'a [Tensor],
    /// What runs step k: the model, its prompts and the subject's tokens, which may be missing when no map is needed.
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
    pub drawer: Drawer<'a>,
    /// The subject's tokens in its prompt.
    pub span: Option<std::ops::Range<usize>>,
}

/// Everything that stage 2 works on.
pub struct Retouch<'a> {
    /// The target's model and prompts.
    pub target: Drawer<'a>,
    /// The subject's tokens in the target's prompt.
    pub target_span: Option<std::ops::Range<usize>>,
    /// The trajectory of stage 1 and what drew it.
    pub context: Source<'a>,
    /// The inverted photo.
    pub reference: Source<'a>,
    /// Given blend masks, on the mask grid.
    pub blend_mask: Option<GivenMasks>,
    /// The numbers.
    pub settings: RetouchSettings,
}

/// The masks of one swapped step: of each image, or one for all.
#[derive(Clone, Debug)]
pub struct StepMasks {
    /// M_ref, on the reference's mask grid.
    pub reference: Vec<Plane>,
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

impl Retouch<'_> {
    /// Stage 2: from the context's latent at `start_step`, with the self-attention of the chosen sites swapped.
    ///
    /// # Errors
    /// When a call fails, a subject is needed and missing, or the run is cancelled.
    pub fn run(&self, ddim: &Ddim, monitor: &dyn Monitor) -> Result<Retouched> {
        let s = &self.settings;
        let steps = ddim.steps();
        let start = s.start_step.min(steps);
        let mut trajectory: Vec<Tensor> = self.context.trajectory[..=start].to_vec();
        let mut z = self.context.trajectory[start].clone();
        let mut masks = Vec::new();
        let mut previous: Option<Vec<Plane>> = None;
        let (mut fired, mut due, mut warned) = (0, false, false);
        for k in start..steps {
            monitor.step(k, steps)?;
            let t = ddim.timesteps()[k];
            let acts = k < s.until_step && !s.sites.is_empty();
            let swapping = acts && k >= s.from_step;
            let locking = acts && k < s.from_step && s.lock;
            due |= swapping || locking;
            let step_masks;
            let context_store;
            let reference_store;
            let action = if locking {
                context_store = self
                    .source(&self.context, k, t, false, Branch::Context, monitor)?
                    .0;
                Action::Lock {
                    context: &context_store,
                }
            } else if swapping {
                let context_queries = k < s.structure_until;
                let fills = self.blend_mask.as_ref().is_some_and(|given| {
                    given
                        .at(k)
                        .iter()
                        .all(|plane| plane.data.iter().all(|&m| m == 1.0))
                });
                let (context_mask, store) =
                    self.context_at(k, t, fills && !context_queries, monitor)?;
                context_store = store;
                let (store, map) = self.source(
                    &self.reference,
                    k,
                    t,
                    self.reference.mask.is_none(),
                    Branch::Reference,
                    monitor,
                )?;
                reference_store = store;
                let reference_mask = match (&self.reference.mask, map) {
                    (Some(given), _) => given.at(k).to_vec(),
                    (None, Some(map)) => map,
                    (None, None) => return Err(missing_span("reference", "reference_mask")),
                };
                let blend = match (&self.blend_mask, &previous) {
                    (Some(given), _) => given.at(k).to_vec(),
                    (None, None) => context_mask.clone(),
                    (None, Some(previous)) => match s.blend {
                        Blend::Context => context_mask.clone(),
                        Blend::Target => previous.clone(),
                        Blend::Union => zip_planes(&context_mask, previous, Plane::max),
                    },
                };
                step_masks = StepMasks {
                    reference: reference_mask,
                    context: context_mask,
                    blend,
                };
                masks.push(step_masks.clone());
                Action::Swap {
                    context: (!context_store.is_empty()).then_some(&context_store),
                    reference: &reference_store,
                    context_queries,
                    reference_mask: &step_masks.reference,
                    blend: &step_masks.blend,
                }
            } else {
                Action::Let
            };
            let next = k + 1;
            let map_wanted = self.blend_mask.is_none()
                && s.blend != Blend::Context
                && !s.sites.is_empty()
                && next >= s.from_step
                && next < s.until_step.min(steps);
            let grid = grid_of(&z, s.mask_levels.0)?;
            let mut swap = Swap {
                sites: &s.sites,
                action,
                maps: map_wanted.then(|| MapRecorder::new(grid)),
                fired: 0,
                unmasked: 0,
            };
            let guided = Guided {
                model: self.target.model,
                conditions: self.target.conditions,
                guidance: s.guidance,
                branch: Branch::Target,
            };
            let out = guided.noise(&z, t, k, &mut swap, monitor)?;
            fired += swap.fired;
            if swap.unmasked > 0 && !warned {
                warned = true;
                monitor.warn(&format!(
                    "the reference's mask leaves no key at {} of the sites (first at step {k}); all keys are used there",
                    swap.unmasked
                ));
            }
            if let Some(maps) = swap.maps {
                let span = self
                    .target_span
                    .clone()
                    .ok_or_else(|| missing_span("target", "blend_mask"))?;
                previous = Some(self.binarised(&maps.finish()?, span, grid)?);
            }
            z = ddim.step(&z, &out, k)?;
            trajectory.push(z.clone());
        }
        if due && fired == 0 {
            return Err(Error::request(
                "the control has sites and steps to act on and acted on none",
            ));
        }
        monitor.step(steps, steps)?;
        Ok(Retouched { trajectory, masks })
    }

    /// The context's mask and what its branch gave at step k; nothing of it is run when `idle` (neither its queries
    /// nor its keys and values are looked at) and its mask is not to be computed.
    fn context_at(
        &self,
        k: usize,
        t: usize,
        idle: bool,
        monitor: &dyn Monitor,
    ) -> Result<(Vec<Plane>, Store)> {
        let grid = grid_of(&self.context.trajectory[k], self.settings.mask_levels.0)?;
        let span = self.context.drawers[k].span.is_some();
        let map_wanted = self.context.mask.is_none() && (self.blend_mask.is_none() || span);
        if map_wanted && !span {
            return Err(missing_span("context", "context_mask"));
        }
        if idle && !map_wanted {
            let mask = self.context.mask.as_ref().map_or_else(
                || vec![Plane::filled(grid, 0.0)],
                |given| given.at(k).to_vec(),
            );
            return Ok((mask, Store::new()));
        }
        let (store, map) =
            self.source(&self.context, k, t, map_wanted, Branch::Context, monitor)?;
        let mask = match (&self.context.mask, map) {
            (Some(given), _) => given.at(k).to_vec(),
            (None, Some(map)) => map,
            (None, None) => vec![Plane::filled(grid, 0.0)],
        };
        Ok((mask, store))
    }

    /// Runs a source branch at step k: what it gave at the chosen sites, and its subject mask if `map`.
    fn source(
        &self,
        source: &Source<'_>,
        k: usize,
        t: usize,
        map: bool,
        branch: Branch,
        monitor: &dyn Monitor,
    ) -> Result<(Store, Option<Vec<Plane>>)> {
        let s = &self.settings;
        let z = &source.trajectory[k];
        let level = if branch == Branch::Reference {
            s.mask_levels.1
        } else {
            s.mask_levels.0
        };
        let grid = grid_of(z, level)?;
        let step = &source.drawers[k];
        let mut capture = Capture::new(&s.sites, map.then_some(grid));
        let guided = Guided {
            model: step.drawer.model,
            conditions: step.drawer.conditions,
            guidance: s.guidance,
            branch,
        };
        guided.rows(z, t, k, &mut capture, monitor)?;
        let mask = match (capture.maps, &step.span) {
            (Some(maps), Some(span)) => {
                Some(self.binarised(&maps.finish()?, span.clone(), grid)?)
            }
            _ => None,
        };
        Ok((capture.captured, mask))
    }

    fn binarised(
        &self,
        raw: &Tensor,
        span: std::ops::Range<usize>,
        grid: (usize, usize),
    ) -> Result<Vec<Plane>> {
        let maps = subject_maps(raw, span, grid, self.settings.smooth)?;
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
        .filter(|site| site.part == super::unet::Part::Up && finest.contains(&site.level))
        .map(|site| site.index)
        .collect()
}
