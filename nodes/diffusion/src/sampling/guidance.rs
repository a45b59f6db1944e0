//! Calls of the U-Net with classifier-free guidance: which rows they have, and what is captured of them.

use std::collections::BTreeSet;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::checkpoint::model::Checkpoint;
use crate::networks::unet::{Addition, Call, Text};
use crate::prompt::conditioning::{Encoded, Span};
use crate::sampling::beside::{Beside, with_beside};
use crate::sampling::control::{
    AttentionControl, Branch, CapturedParts, Half, Part, Rows, Untouched, of_half,
};
use crate::sampling::memory::StepStore;
use crate::sampling::monitor::Monitor;
use crate::{Error, Result};

/// What drew a step of a trajectory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepProvenance {
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
            Half::Unconditional => &self.guided[0],
            Half::Conditional if guided => &self.guided[1],
            Half::Conditional => &self.alone,
        }
    }

    fn half(&self, half: Half) -> &Encoded {
        match half {
            Half::Unconditional => &self.negative,
            Half::Conditional => &self.prompt,
        }
    }
}

/// One call for all images of a branch, and for those of its halves that are asked for.
pub(super) struct Guided<'a> {
    pub(super) model: &'a Checkpoint,
    pub(super) conditions: &'a Conditions,
    pub(super) guidance: f64,
    pub(super) rescale: f64,
    pub(super) branch: Branch,
    pub(super) beside: Option<&'a Beside>,
}

/// The rows of a branch at a step, as part of a call.
#[derive(Clone)]
pub(super) struct Member<'a> {
    pub(super) conditions: &'a Conditions,
    /// Whether the prompt has as many tokens as its negative.
    pub(super) guided: bool,
    /// The images' latents `[B, C, h, w]`, which each half has.
    pub(super) z: &'a Tensor,
    pub(super) timestep: f32,
    pub(super) step: usize,
    pub(super) rows: Rows,
    /// What the network is shown beside the images' latents.
    pub(super) beside: Option<&'a Tensor>,
}

impl Member<'_> {
    /// The text of each of its halves.
    fn texts(&self) -> impl Iterator<Item = &Text> {
        let halves = self.rows.halves().into_iter();
        halves.map(|(half, _)| self.conditions.text(half, self.guided))
    }

    /// Whether both can be in one call of one model: latents of one shape, equally many tokens.
    pub(super) fn joins(&self, other: &Self) -> Result<bool> {
        let tokens = |member: &Self| member.texts().map(Text::tokens).collect::<Result<Vec<_>>>();
        let (own, others) = (tokens(self)?, tokens(other)?);
        Ok(self.z.dims() == other.z.dims() && own.iter().chain(&others).all(|n| *n == own[0]))
    }
}

/// The outputs of all members' rows in one call of the network, before guidance. All must join one another.
pub(super) fn together(
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
        let shown = with_beside(&model.description().unet, member.z, member.beside)?;
        for (half, _) in member.rows.halves() {
            latents.push(shown.clone());
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
    pub(super) fn all_rows(&self, z: &Tensor) -> Result<Rows> {
        Ok(Rows::new(self.branch, z.dim(0)?, self.guidance != 1.0))
    }

    /// The rows' outputs, before guidance.
    pub(super) fn rows(
        &self,
        z: &Tensor,
        timestep: f32,
        step: usize,
        rows: Rows,
        control: &mut dyn AttentionControl,
        monitor: &dyn Monitor,
    ) -> Result<Tensor> {
        let beside = self.beside.map(|beside| &beside.planes);
        self.rows_beside(z, timestep, step, rows, beside, control, monitor)
    }

    /// The same with something else beside the latents.
    #[allow(clippy::too_many_arguments)]
    fn rows_beside(
        &self,
        z: &Tensor,
        timestep: f32,
        step: usize,
        rows: Rows,
        beside: Option<&Tensor>,
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
            beside,
        };
        together(self.model, &[member], control, monitor)
    }

    /// u + g (c - u), rescaled; c alone at g = 1. With guidance by a picture g' that is not 1, where n is the output by the
    /// negative prompt and no picture: n + g (c - u) + g' (u - n) (Brooks et al. 2023, eq. 3).
    pub(super) fn noise(
        &self,
        z: &Tensor,
        timestep: f32,
        step: usize,
        control: &mut dyn AttentionControl,
        monitor: &dyn Monitor,
    ) -> Result<Tensor> {
        let rows = self.all_rows(z)?;
        let out = self.rows(z, timestep, step, rows, control, monitor)?;
        if !rows.unconditional {
            return Ok(out);
        }
        let u = out.narrow(0, 0, rows.images)?;
        let c = out.narrow(0, rows.images, rows.images)?;
        let guided = (&u + ((&c - &u)? * self.guidance)?)?;
        let guided = match self.beside {
            Some(beside) if beside.guidance != 1.0 => {
                let rows = Rows {
                    conditional: false,
                    ..rows
                };
                let none = beside.planes.zeros_like()?;
                let none = Some(&none);
                let n = self.rows_beside(z, timestep, step, rows, none, &mut Untouched, monitor)?;
                // Beside u + g (c - u): (1 - g') (n - u).
                (guided + ((n - &u)? * (1.0 - beside.guidance))?)?
            }
            _ => guided,
        };
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

/// What later calls want of the halves of a branch's call at step k.
pub(super) fn wanted(
    memory: &dyn StepStore,
    branch: Branch,
    k: usize,
    rows: Rows,
) -> BTreeSet<(Half, Part)> {
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
pub(super) fn keep(
    memory: &dyn StepStore,
    branch: Branch,
    k: usize,
    rows: Rows,
    store: &CapturedParts,
    seconds: f64,
) {
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
pub trait Conditioner {
    /// The model and the prompts.
    ///
    /// # Errors
    /// When a part of the model cannot be loaded.
    fn conditioned(&self) -> Result<ConditionedModel<'_>>;
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

impl Conditioner for Prompted<'_> {
    fn conditioned(&self) -> Result<ConditionedModel<'_>> {
        if self.conditions.get().is_none() {
            let conditions =
                Conditions::encode(self.model, self.prompt, self.negative, self.monitor)?;
            let _ = self.conditions.set(conditions); // it was empty
        }
        let conditions = self
            .conditions
            .get()
            .ok_or_else(|| Error::request("the prompts were not encoded"))?;
        Ok(ConditionedModel {
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
pub struct ConditionedModel<'a> {
    /// The model.
    pub model: &'a Checkpoint,
    /// Its encoded prompts.
    pub conditions: &'a Conditions,
}
