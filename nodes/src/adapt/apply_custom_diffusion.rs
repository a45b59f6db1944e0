//! `apply_custom_diffusion`.

use std::sync::Arc;

use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, ReadFile, Types, Upstream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Inputs, Outputs};
use crate::fields::{AssetPath, Sha256Pins};
use retouch_diffusion::checkpoint::adapters::custom_diffusion::CustomDiffusion;
use retouch_diffusion::checkpoint::adapters::{Networks, check_finite, some_of};
use retouch_diffusion::checkpoint::model::ModelFacts;

/// Puts a subject's keys and values of cross-attention (Custom Diffusion) in place of a model's own.
///
/// Self-attention stays the base's, so that one U-Net plays both models of the method. The tokens that were trained with
/// it (`<new1>.bin`) are applied by `apply_textual_inversion`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyCustomDiffusion {
    /// The file `pytorch_custom_diffusion_weights`, or the folder that it is in.
    pub path: AssetPath,
    /// The SHA-256 digest that the file must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Pins>,
}

/// What the file is called in faults.
const KIND: &str = "Custom Diffusion weights";

impl ApplyCustomDiffusion {
    fn file(&self, files: &dyn Files) -> std::path::PathBuf {
        super::sought(self.path.as_path(), CustomDiffusion::find, files)
    }
}

impl Node for ApplyCustomDiffusion {
    const OP: &'static str = "apply_custom_diffusion";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        let read = super::read_file(
            "custom_diffusion",
            self.file(files),
            self.sha256.as_ref(),
            files,
        )?;
        Ok(read.into_iter().collect())
    }

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let facts: Option<ModelFacts> = inputs.facts("model");
        let file = self.file(files);
        let checked = super::against(facts.as_ref(), |networks| {
            CustomDiffusion::read(&file, networks, files)
        });
        match (facts, checked) {
            (_, Some(Err(e))) => Err(vec![super::fault(self.path.as_path(), &e, KIND, files)]),
            (Some(facts), _) => Ok(Types::unknown().with("model", &facts)),
            (None, _) => Ok(Types::unknown()),
        }
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        super::adapted(upstream, Self::OP, &[])
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let files = context.files();
        let file = self.file(files);
        let base = &inputs.model.checkpoint;
        let digests = super::digests(context, &[("custom_diffusion", &file)])?;
        let id = super::adapted_id(base.id(), Self::OP, &digests, &[]);
        let configs = base.description();
        let read = CustomDiffusion::read(&file, &Networks::of(&configs.unet, &[])?, files)?;
        check_finite(read.replaced.values(), files)?;
        let (changed, all) = read.layers;
        let line = format!(
            "Custom Diffusion: {changed} of {all} cross-attention layers, {} tensors unmatched",
            read.unmatched.len()
        );
        context.say(&line);
        if !read.unmatched.is_empty() || changed < all {
            let left = if read.unmatched.is_empty() {
                String::new()
            } else {
                format!(" (left out: {})", some_of(&read.unmatched))
            };
            context.warn(&format!("{}: {line}{left}", file.display()));
        }
        Ok(Outputs {
            model: Arc::new(
                inputs
                    .model
                    .adapted(base.with_replaced(id, read.replaced), line),
            ),
        })
    }
}
