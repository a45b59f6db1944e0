//! Attention control as data.

use std::sync::Arc;

use retouch_graph::{Environment, NodeError, Payload};
use serde::{Deserialize, Serialize};

use super::TrajectoryFacts;
use super::{MaskOrMasks, Model, Trajectory};
use crate::attention::SwapAttention;
use retouch_diffusion::checkpoint::model::ModelFacts;

/// What stage 2 attends to: plain data, from which the sampler builds the state of each step.
#[derive(Debug)]
pub struct Control {
    /// The parameters.
    pub settings: SwapAttention,
    /// What drew the context's first steps.
    pub vanilla: Option<Arc<Model>>,
    /// The trajectory of stage 1.
    pub context: Arc<Trajectory>,
    /// The inverted photos of the subject, at least one.
    pub references: Vec<Arc<Trajectory>>,
    /// Given in place of the references' computed masks: none, one for all, or one for each.
    pub reference_masks: Vec<MaskOrMasks>,
    /// Given in place of the context's.
    pub context_mask: Option<MaskOrMasks>,
    /// Given in place of M_k.
    pub blend_mask: Option<MaskOrMasks>,
}

/// What is known of a control before anything runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlFacts {
    /// The context.
    pub context: Option<TrajectoryFacts>,
    /// The vanilla model.
    pub vanilla: Option<ModelFacts>,
    /// The parameters.
    pub settings: SwapAttention,
    /// Whether a blend mask is given, so that the target's own is not computed.
    pub masked: bool,
}

impl Payload for Control {
    const TYPE: &'static str = "control";
    // It holds a model.
    const LAZY: bool = true;

    fn bytes(&self) -> usize {
        // What it holds is shared with the values that it came from, but a cache may drop these and keep the control.
        let masks = self.reference_masks.iter();
        let masks = masks.chain(&self.context_mask).chain(&self.blend_mask);
        let trajectories = self.references.iter().chain([&self.context]);
        size_of::<Self>()
            + self.vanilla.as_ref().map_or(0, |model| model.bytes())
            + masks.map(MaskOrMasks::bytes).sum::<usize>()
            + trajectories.map(|of| of.bytes()).sum::<usize>()
    }

    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError> {
        let moved_model = self.vanilla.as_ref().map(|it| it.to_device(environment));
        let vanilla = moved_model.transpose()?.flatten().map(Arc::new);
        let context = self.context.to_device(environment)?.map(Arc::new);
        let references = self.references.iter().map(|it| it.to_device(environment));
        let references: Vec<Option<Trajectory>> = references.collect::<Result<_, _>>()?;
        if vanilla.is_none() && context.is_none() && references.iter().all(Option::is_none) {
            return Ok(None);
        }
        let references = references.into_iter().zip(&self.references);
        Ok(Some(Self {
            settings: self.settings.clone(),
            vanilla: vanilla.or_else(|| self.vanilla.clone()),
            context: context.unwrap_or_else(|| self.context.clone()),
            references: references
                .map(|(moved, own)| moved.map_or_else(|| own.clone(), Arc::new))
                .collect(),
            // Masks are on the host until they are used.
            reference_masks: self.reference_masks.clone(),
            context_mask: self.context_mask.clone(),
            blend_mask: self.blend_mask.clone(),
        }))
    }

    fn summary(&self) -> String {
        format!("attention control over {} steps", self.context.steps())
    }
}
