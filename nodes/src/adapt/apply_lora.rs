//! `apply_lora`.

use std::sync::Arc;

use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, ReadFile, Types, Upstream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::apply_textual_inversion::in_words;
use super::{Inputs, Outputs};
use crate::fields::{AssetPath, Sha256Pins};
use retouch_diffusion::checkpoint::adapters::lora::{self, CONFIG, Lora, edits};
use retouch_diffusion::checkpoint::adapters::{Networks, check_finite, some_of};
use retouch_diffusion::checkpoint::model::ModelFacts;

/// Adds a LoRA to a model: changes of layers of its U-Net and of its text encoders.
///
/// Files of diffusers, PEFT, kohya's scripts, LyCORIS and ComfyUI are read, with their alpha: LoRA and LoCon, DoRA, LoHa,
/// LoKr, full differences. Of LoRA and LoCon the base's weights are shared, not copied; of the others the changed weights
/// are copies. Several at once are several of these nodes in a row, and each model on the way can be used as well. A file
/// of which no layer is in the model, or that was made for another family, is refused before anything runs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyLora {
    /// The file, or the folder that diffusers or PEFT saved it in.
    pub path: AssetPath,
    /// How much it counts: 1 as it was trained, 0 not at all. May be negative.
    #[serde(default = "one")]
    pub weight: f64,
    /// How much it counts in the text encoders. Default: `weight`.
    #[serde(default)]
    pub text_encoder_weight: Option<f64>,
    /// The SHA-256 digest that the file must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Pins>,
}

fn one() -> f64 {
    1.0
}

/// Weights beyond this make noise of any picture.
const MOST: f64 = 100.0;

impl ApplyLora {
    fn file(&self, files: &dyn Files) -> std::path::PathBuf {
        super::sought(self.path.as_path(), Lora::find, files)
    }

    fn said(&self) -> [(&'static str, String); 2] {
        let text = self.text_encoder_weight.unwrap_or(self.weight);
        [
            ("weight", self.weight.to_string()),
            ("text_encoder_weight", text.to_string()),
        ]
    }
}

impl Node for ApplyLora {
    const OP: &'static str = "apply_lora";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        let file = self.file(files);
        let beside = file.with_file_name(CONFIG);
        let lora = super::read_file("lora", file, self.sha256.as_ref(), files)?;
        let config = super::read_file("config", beside, None, files)?;
        Ok(lora.into_iter().chain(config).collect())
    }

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let mut faults = Vec::new();
        let weights = [
            ("weight", Some(self.weight)),
            ("text_encoder_weight", self.text_encoder_weight),
        ];
        for (name, weight) in weights {
            if let Some(weight) = weight
                && !(weight.is_finite() && weight.abs() <= MOST)
            {
                faults.push(
                    Fault::value(
                        name,
                        format!("{name} is {weight}; expected a number from -{MOST} to {MOST}"),
                    )
                    .help("1 is the LoRA as it was trained; 0.5 to 1 is usual"),
                );
            }
        }
        let facts: Option<ModelFacts> = inputs.facts("model");
        let file = self.file(files);
        let lora = Lora::read(&file, files);
        let checked = lora.and_then(|lora| {
            let fitted = super::against(facts.as_ref(), |networks| lora.fit(networks));
            fitted.transpose()
        });
        match checked {
            Ok(Some(fitted))
                if self.text_encoder_weight.is_some()
                    && fitted
                        .texts
                        .iter()
                        .all(std::collections::BTreeMap::is_empty) =>
            {
                faults.push(
                    Fault::value(
                        "text_encoder_weight",
                        "`text_encoder_weight` has no effect: this LoRA changes no text encoder",
                    )
                    .help("remove it"),
                );
            }
            Ok(_) => {}
            Err(e) => faults.push(super::fault(self.path.as_path(), &e, "a LoRA", files)),
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(match facts {
            Some(facts) => Types::unknown().with("model", &facts),
            None => Types::unknown(),
        })
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        super::adapted(upstream, Self::OP, &self.said())
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let files = context.files();
        let file = self.file(files);
        let beside = file.with_file_name(CONFIG);
        let mut roles = vec![("lora", file.as_path())];
        if files.is_file(&beside) {
            roles.push(("config", beside.as_path()));
        }
        let base = &inputs.model.checkpoint;
        let digests = super::digests(context, &roles)?;
        let id = super::adapted_id(base.id(), Self::OP, &digests, &self.said());
        let configs = base.description();
        let texts: Vec<_> = configs
            .texts
            .iter()
            .map(|text| text.config.clone())
            .collect();
        let read = Lora::read(&file, files)?;
        let fitted = read.fit(&Networks::of(&configs.unet, &texts)?)?;
        check_finite(fitted.changes().flat_map(lora::Change::tensors), files)?;
        if !fitted.unmatched.is_empty() {
            context.warn(&format!(
                "{}: {} (left out: {})",
                file.display(),
                fitted.summary(),
                some_of(&fitted.unmatched)
            ));
        }
        context.say(&fitted.summary());
        if !read.tokens.is_empty() {
            context.say(&format!(
                "it has embeddings inside: {}; `apply_textual_inversion` with the same file adds them",
                in_words(&read.tokens)
            ));
        }
        let text_weight = self.text_encoder_weight.unwrap_or(self.weight);
        let texts = fitted
            .texts
            .iter()
            .map(|changes| edits(changes, text_weight))
            .collect();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let line = format!("LoRA {name}, weight {}: {}", self.weight, fitted.summary());
        Ok(Outputs {
            model: Arc::new(inputs.model.adapted(
                base.with_edits(id, edits(&fitted.unet, self.weight), texts),
                line,
            )),
        })
    }
}
