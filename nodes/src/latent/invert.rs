//! `invert`.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use retouch_graph::{
    Chain, Chained, Context, Fault, Files, Node, NodeError, Step, Types, Upstream, ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::decode::{channel_fault, decode};
use crate::chain::{self, CacheStore, Draw, SamplerNote, TrajectoryNote};
use crate::fields::Template;
use crate::payload::{Latent, LatentFacts, Model, Table, Trajectory, TrajectoryFacts};
use crate::runtime::{Reports, tensor_error};
use crate::sample::{plain_fault, prompt_faults, prompt_warnings, steps_fault};
use retouch_diffusion::checkpoint::model::{Checkpoint, ModelFacts};
use retouch_diffusion::networks::tiles::Tiled;
use retouch_diffusion::sampling::scheduler::Ddim;
use retouch_diffusion::sampling::scheduler::Prediction;
use retouch_diffusion::sampling::solver::{Sampler, Schedule};
use retouch_diffusion::sampling::{
    Drawing, NoStore, Prompted, StepProvenance, invert, step_blend_sample,
};

/// Inverts a latent: finds, by running DDIM (eta 0) backwards, the noise that it could have come from, and every latent between.
///
/// One prompt and guidance 1; the U-Net is asked at the timestep that a step arrives at, as in MasaCtrl, DreamMatcher
/// and diffusers' DDIMInverseScheduler. DDIM is the only scheduler that is inverted, whichever one the checkpoint names.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Invert {
    /// T, the number of steps.
    #[serde(default = "fifty")]
    pub steps: usize,
    /// The prompt.
    #[serde(default)]
    pub prompt: Template,
    /// Whether to sample back from the noise and report how far that is from the latent; costs T more U-Net calls.
    #[serde(default)]
    pub measure: bool,
}

fn fifty() -> usize {
    50
}

ports! {
    /// What `invert` takes.
    pub struct Inputs {
        /// The model.
        pub model: Arc<Model>,
        /// The latent, from `encode_reference` for one.
        pub latent: Arc<Latent>,
    }
}

ports! {
    /// What `invert` gives.
    pub struct Outputs {
        /// The trajectory, noisiest first; its last latent is the one that was given.
        pub trajectory: Arc<Trajectory>,
        /// The noise that was found: the trajectory's first latent.
        pub noise: Arc<Latent>,
        /// With `measure`: the latent that sampling back from the noise gives.
        pub replay: Option<Arc<Latent>>,
        /// With `measure`: relative error in latents, and PSNR in dB of the decoded replay against the VAE's own
        /// reconstruction, one row an image.
        pub report: Option<Arc<Table>>,
    }
}

impl Invert {
    fn keys(&self, upstream: &Upstream<'_>) -> Option<Chained> {
        let (id, facts) = chain::model(upstream, "model")?;
        let latent: LatentFacts = upstream.facts("latent")?;
        let ddim = Ddim::new(&facts.scheduler, self.steps).ok()?;
        let of = TrajectoryFacts::of(latent, self.steps);
        let draw = Draw {
            model: &id,
            prompt: &self.prompt,
            negative: "",
            guidance: 1.0,
            rescale: 0.0,
            numerics: upstream.numerics,
            blank_is_zero: facts.blank_is_zero,
            beside: None,
        };
        let mut states = vec![chain::state_of(upstream.link("latent")?, 0)];
        for k in (0..self.steps).rev() {
            let before = states.last()?;
            let after = draw.inverse(before, &ddim, k);
            states.push(after);
        }
        let images = latent.batch as u64;
        let step = Step {
            calls: images,
            ..Step::default()
        };
        let drawn = StepProvenance {
            model: id.clone(),
            vanilla: false,
            prompt: self.prompt.to_string(),
            negative: String::new(),
        };
        let trajectory = Arc::new(TrajectoryNote {
            states: states.iter().rev().copied().collect(),
            drawn: vec![Some(drawn); self.steps],
            facts: of,
        });
        let key = trajectory.key();
        let mut ports = vec![("trajectory", key)];
        if facts.blank_is_zero && self.prompt.is_empty() {
            let others = ["noise", "replay", "report"];
            ports.extend(others.map(|port| (port, chain::beside_blank(upstream, &key, port))));
        }
        Some(Chained {
            ports,
            chain: Some(Chain {
                first: 0,
                steps: vec![step; self.steps],
                states: states[1..].iter().map(|state| vec![*state]).collect(),
                looks: None,
                extra: if self.measure {
                    self.steps as u64 * images
                } else {
                    0
                },
                class: chain::class(&id, &of),
            }),
            note: Some(Arc::new(SamplerNote {
                trajectory,
                states,
                pasts: HashMap::new(),
                maps: HashMap::new(),
                calls: HashMap::new(),
                fills: false,
                model: Arc::new(facts),
                swap: None,
            })),
            calls: 0,
        })
    }
}

impl Node for Invert {
    const OP: &'static str = "invert";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let mut faults = Vec::new();
        let model: Option<ModelFacts> = inputs.facts("model");
        let latent: Option<LatentFacts> = inputs.facts("latent");
        faults.extend(prompt_faults(model.as_ref(), &[("prompt", &self.prompt)]));
        faults.extend(plain_fault(model.as_ref(), "model", Self::OP));
        if let Some(model) = &model {
            faults.extend(steps_fault(model, self.steps));
            if model.scheduler.prediction_type == Prediction::Sample {
                faults.push(
                    Fault::mismatch(
                        "model",
                        "this model predicts the picture itself (`prediction_type: sample`), and without noise nothing of it can be inverted",
                    )
                    .help("invert with a model of epsilon or v prediction"),
                );
            }
            if let Some(latent) = &latent {
                faults.extend(channel_fault(model, latent.channels, "latent"));
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let prompts = [("prompt", self.prompt.as_str())];
        let mut types = Types::unknown().warn(prompt_warnings(model.as_ref(), &prompts, files));
        if let Some(latent) = latent {
            let facts = TrajectoryFacts::of(latent, self.steps);
            types = types.with("trajectory", &facts).with("noise", &latent);
            if self.measure {
                types = types.with("replay", &latent);
            }
        }
        if !self.measure {
            for port in ["replay", "report"] {
                types = types.without(
                    port,
                    format!("`invert` makes `{port}` only with `measure: true`"),
                );
            }
        }
        Ok(types)
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        self.keys(upstream).unwrap_or_default()
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let reports = Reports(context);
        let model = &inputs.model.checkpoint;
        let latent = &inputs.latent.tensor;
        let ddim = Ddim::new(&model.description().scheduler, self.steps)?;
        let prompted = Prompted::new(model, &self.prompt, "", &reports);
        let latents = invert(
            &prompted,
            latent,
            &ddim,
            &reports,
            &CacheStore::new(context),
        )?;
        let noise = latents.first().unwrap_or(latent).clone();
        let (mut replay, mut report) = (None, None);
        if self.measure {
            let schedule = Schedule::plain(self.steps);
            let sampler = Sampler::new(&model.description().scheduler, schedule)?;
            let drawing = Drawing::plain(&sampler, 1.0);
            let back = step_blend_sample(
                &prompted, &prompted, &noise, 0, &drawing, &reports, &NoStore,
            )?;
            let back = back.last().unwrap_or(&noise).clone();
            report = Some(Arc::new(measure(model, latent, &back, self.steps)?));
            replay = Some(Arc::new(Latent { tensor: back }));
        }
        let drawn = StepProvenance {
            model: model.id().to_owned(),
            vanilla: false,
            prompt: self.prompt.to_string(),
            negative: String::new(),
        };
        Ok(Outputs {
            trajectory: Arc::new(Trajectory {
                latents,
                drawn: vec![Some(drawn); self.steps],
                schedule: None,
            }),
            noise: Arc::new(Latent { tensor: noise }),
            replay,
            report,
        })
    }
}

/// |z - z'| / |z| in latents and PSNR of the decoded pictures in [0, 1], a row an image.
fn measure(
    model: &Checkpoint,
    latent: &Tensor,
    replay: &Tensor,
    steps: usize,
) -> Result<Table, NodeError> {
    let norm = |t: &Tensor| -> candle_core::Result<f64> {
        Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
    };
    let decoded = |z| decode(model, z, Tiled::Auto);
    let (own, back) = (decoded(latent)?, decoded(replay)?);
    let rows = (0..latent.dim(0).map_err(tensor_error)?)
        .map(|b| {
            let row = || -> candle_core::Result<_> {
                let (z, z2) = (latent.get(b)?, replay.get(b)?);
                let error = norm(&(&z - &z2)?)? / norm(&z)?.max(f64::MIN_POSITIVE);
                let difference = (own.get(b)? - back.get(b)?)?;
                let mean = f64::from(difference.sqr()?.mean_all()?.to_scalar::<f32>()?);
                Ok((error, -10.0 * mean.max(1e-10).log10()))
            };
            let (error, psnr) = row().map_err(tensor_error)?;
            Ok(vec![b.into(), steps.into(), error.into(), psnr.into()])
        })
        .collect::<Result<_, NodeError>>()?;
    Ok(Table {
        columns: ["image", "steps", "latent_error", "psnr_db"]
            .map(str::to_owned)
            .to_vec(),
        rows,
        ..Table::default()
    })
}
