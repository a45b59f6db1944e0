//! `attention_map`.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, Types, Upstream, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::MaskGridField;
use crate::fields::{Steps, Template};
use crate::payload::{Image, Mask, Model, Trajectory, TrajectoryFacts};
use crate::runtime::{Reports, tensor_error};
use crate::sample::{plain_fault, prompt_faults, prompt_warnings};
use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_diffusion::networks::unet::grid_at;
use retouch_diffusion::sampling::masks::{Plane, subject_maps};
use retouch_diffusion::sampling::solver::{Sampler, Schedule};
use retouch_diffusion::sampling::swap::mask_level;
use retouch_diffusion::sampling::{ConditionedModel, Conditions, cross_attention};

/// Shows where the words of a prompt are looked for: the subject's cross-attention at one step of a trajectory.
///
/// The map is the one that masks are made from: softmaxed cross-attention, mean over heads and over the layers on the
/// mask grid, sum over the subject's tokens, smoothed, stretched to [0, 1].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionMap {
    /// The words whose map is drawn.
    pub subject: Template,
    /// The prompt that they are part of. Default: the one that drew the step.
    #[serde(default)]
    pub prompt: Option<Template>,
    /// The step, from 0 (the noisiest), or a share of T.
    #[serde(default = "middle")]
    pub step: Steps,
    /// Passes of a 3x3 filter.
    #[serde(default = "one")]
    #[schemars(range(max = 100))]
    pub smooth: usize,
    /// The attention grid: `auto`, or rows x columns such as `16x24`.
    #[serde(default)]
    pub mask_grid: MaskGridField,
}

fn middle() -> Steps {
    Steps::Percent(50.0)
}
fn one() -> usize {
    1
}

ports! {
    /// What `attention_map` takes.
    pub struct Inputs {
        /// The model whose attention it is.
        pub model: Arc<Model>,
        /// The trajectory that is looked at.
        pub trajectory: Arc<Trajectory>,
    }
}

ports! {
    /// What `attention_map` gives.
    pub struct Outputs {
        /// The map in colours, from black over red to yellow and white, as large as the picture.
        pub image: Arc<Image>,
        /// The map itself, on the mask grid.
        pub map: Arc<Mask>,
    }
}

impl AttentionMap {
    fn index(&self, steps: usize) -> usize {
        match self.step {
            Steps::Count(step) => usize::try_from(step).unwrap_or(usize::MAX),
            share @ Steps::Percent(_) => share.resolve(steps).min(steps.saturating_sub(1)),
        }
    }
}

/// Black, red, yellow, white: three ramps one after another.
fn heat(m: f32) -> [f32; 3] {
    [0.0, 1.0, 2.0].map(|start| (3.0 * m - start).clamp(0.0, 1.0))
}

impl Node for AttentionMap {
    const OP: &'static str = "attention_map";
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
        let trajectory: Option<TrajectoryFacts> = inputs.facts("trajectory");
        if let Some(t) = &trajectory
            && self.index(t.steps) >= t.steps
        {
            faults.push(
                Fault::value(
                    "step",
                    format!("step {} of {}", self.index(t.steps), t.steps),
                )
                .help(format!("give 0 to {}", t.steps.saturating_sub(1))),
            );
        }
        let mut texts = vec![("subject", self.subject.as_str())];
        texts.extend(
            self.prompt
                .as_ref()
                .map(|prompt| ("prompt", prompt.as_str())),
        );
        faults.extend(prompt_faults(model.as_ref(), &texts));
        faults.extend(plain_fault(model.as_ref(), "model", Self::OP));
        if let (Some(model), Some(t)) = (&model, &trajectory) {
            if model.latent_channels != t.channels {
                faults.push(Fault::mismatch(
                    "trajectory",
                    format!(
                        "the trajectory's latents have {} channels, the model's {}",
                        t.channels, model.latent_channels
                    ),
                ));
            }
            if let Err(e) = mask_level(&model.sites, (t.height, t.width), self.mask_grid.0) {
                faults.push(Fault::value("mask_grid", e.to_string()));
            }
        }
        if faults.is_empty() {
            let prompt = self.prompt.iter().map(|prompt| ("prompt", prompt.as_str()));
            let prompt: Vec<_> = prompt.collect();
            Ok(Types::unknown().warn(prompt_warnings(model.as_ref(), &prompt, files)))
        } else {
            Err(faults)
        }
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        let trajectory: Option<TrajectoryFacts> = upstream.facts("trajectory");
        Chained {
            calls: trajectory.map_or(1, |t| t.batch as u64),
            ..Chained::default()
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let reports = Reports(context);
        let model = &inputs.model.checkpoint;
        let trajectory = &inputs.trajectory;
        let steps = trajectory.steps();
        let k = self.index(steps);
        let (Some(z), Some(drawn)) = (trajectory.latents.get(k), trajectory.drawn.get(k)) else {
            return Err(NodeError::failed(format!(
                "step {k} of a trajectory of {steps}"
            )));
        };
        let prompt = match (&self.prompt, drawn) {
            (Some(prompt), _) => prompt.to_string(),
            (None, Some(drawn)) => drawn.prompt.clone(),
            (None, None) => {
                return Err(
                    NodeError::failed("the trajectory does not say what drew it")
                        .help("give `prompt`"),
                );
            }
        };
        let span = model.reader()?.span(&prompt, &self.subject)?;
        let facts = model.description().facts();
        let (_, _, h, w) = z.dims4().map_err(tensor_error)?;
        let level = mask_level(&facts.sites, (h, w), self.mask_grid.0)?;
        let grid = grid_at((h, w), level);
        let conditions = Conditions::encode(model, &prompt, "", &reports)?;
        let schedule = trajectory
            .schedule
            .unwrap_or_else(|| Schedule::plain(steps));
        let sampler = Sampler::new(&model.description().scheduler, schedule)?;
        if sampler.steps() != steps {
            return Err(NodeError::failed(format!(
                "a trajectory of {steps} steps whose schedule has {}",
                sampler.steps()
            )));
        }
        let drawer = ConditionedModel {
            model,
            conditions: &conditions,
        };
        let raw = cross_attention(drawer, z, sampler.timestep(k), k, grid, &reports)?;
        let maps = subject_maps(&raw, &span, grid, self.smooth)?;
        let size = (h * facts.factor, w * facts.factor);
        let picture = |plane: &Plane| -> Vec<f32> {
            let large = plane.nearest(size);
            (0..3)
                .flat_map(|c| {
                    large
                        .data
                        .iter()
                        .map(move |&m| heat(m)[c])
                        .collect::<Vec<_>>()
                })
                .collect()
        };
        let pixels: Vec<f32> = maps.iter().flat_map(picture).collect();
        let cells: Vec<f32> = maps.iter().flat_map(|plane| plane.data.clone()).collect();
        let rgb = Tensor::from_vec(pixels, (maps.len(), 3, size.0, size.1), &Device::Cpu)
            .map_err(tensor_error)?;
        let plane = Tensor::from_vec(cells, (maps.len(), grid.0, grid.1), &Device::Cpu)
            .map_err(tensor_error)?;
        Ok(Outputs {
            image: Arc::new(Image { rgb, alpha: None }),
            map: Arc::new(Mask { plane }),
        })
    }
}
