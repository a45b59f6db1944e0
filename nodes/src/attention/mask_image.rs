//! `mask_image`.

use std::sync::Arc;

use candle_core::Tensor;
use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::Steps;
use crate::payload::{Image, Mask, Masks, MasksFacts};
use crate::runtime::tensor_error;

/// Takes one mask of a swap out to look at or to use again: one plane of one step.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaskImage {
    /// Which mask: the reference's, the context's, or the one that the step blended by.
    #[serde(default)]
    pub plane: Plane,
    /// The step of the swap, counted from its first, or a share of the swap's steps. Default: the middle.
    #[serde(default = "middle")]
    pub step: Steps,
    /// With `plane: reference`, which reference of several, counted from 0.
    #[serde(default, skip_serializing_if = "is_first")]
    pub reference: usize,
}

/// Whether it is the first, which is left out of keys.
fn is_first(index: &usize) -> bool {
    *index == 0
}

/// One of the three masks of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Plane {
    /// The subject in the photo.
    Reference,
    /// The subject in stage 1's picture.
    Context,
    /// Where the reference's looks go.
    #[default]
    Blend,
}

fn middle() -> Steps {
    Steps::Percent(50.0)
}

ports! {
    /// What `mask_image` takes.
    pub struct Inputs {
        /// The masks of a swap: `$retouch.masks`.
        pub masks: Arc<Masks>,
    }
}

ports! {
    /// What `mask_image` gives.
    pub struct Outputs {
        /// The mask as a picture, white where it is 1, one pixel a cell of the mask grid.
        pub image: Arc<Image>,
        /// The mask.
        pub mask: Arc<Mask>,
    }
}

impl MaskImage {
    fn index(&self, steps: usize) -> usize {
        match self.step {
            Steps::Count(step) => usize::try_from(step).unwrap_or(usize::MAX),
            share @ Steps::Percent(_) => share.resolve(steps).min(steps.saturating_sub(1)),
        }
    }
}

impl Node for MaskImage {
    const OP: &'static str = "mask_image";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        if self.reference > 0 && self.plane != Plane::Reference {
            return Err(vec![
                Fault::value(
                    "reference",
                    "`reference` has no effect: it only selects a mask of `plane: reference`",
                )
                .help("remove `reference`, or give `plane: reference`"),
            ]);
        }
        if let Some(facts) = inputs.facts::<MasksFacts>("masks")
            && self.index(facts.steps) >= facts.steps
        {
            return Err(vec![
                Fault::value(
                    "step",
                    format!(
                        "step {} is out of range: the swap has {} steps",
                        self.index(facts.steps),
                        facts.steps
                    ),
                )
                .help(format!(
                    "the swap's steps are counted from its first: 0 to {}",
                    facts.steps.saturating_sub(1)
                )),
            ]);
        }
        Ok(Types::unknown())
    }

    fn run(&self, inputs: Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
        let masks = &inputs.masks.tensor;
        let (steps, planes, _, _, _) = masks.dims5().map_err(tensor_error)?;
        let references = planes.saturating_sub(2);
        let index = self.index(steps);
        if index >= steps {
            return Err(NodeError::failed(format!(
                "step {index} is out of range: the swap has {steps} steps"
            )));
        }
        let plane = match self.plane {
            Plane::Reference if self.reference >= references => {
                return Err(NodeError::failed(format!(
                    "reference {} is out of range: the swap has {references}",
                    self.reference
                ))
                .help("references are counted from 0"));
            }
            Plane::Reference => self.reference,
            Plane::Context => references,
            Plane::Blend => references + 1,
        };
        let plane = masks
            .get(index)
            .and_then(|m| m.get(plane))
            .and_then(|m| m.contiguous())
            .map_err(tensor_error)?;
        let rgb = Tensor::stack(&[&plane, &plane, &plane], 1).map_err(tensor_error)?;
        Ok(Outputs {
            image: Arc::new(Image { rgb, alpha: None }),
            mask: Arc::new(Mask { plane }),
        })
    }
}
