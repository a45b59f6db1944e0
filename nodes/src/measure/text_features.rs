//! `text_features`.

use std::sync::Arc;

use candle_core::Device;
use retouch_graph::{Context, Fault, Files, Node, NodeError, ReadFile, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::{AssetPath, Template};
use crate::measure::backbone::{self, Place, TextNetwork};
use crate::payload::features::{Features, FeaturesFacts};
use crate::runtime::Runtime;

/// Computes what CLIP makes of texts: one row of features each, in the space of its pictures' features.
///
/// `prompt_score` compares them. The texts are tokenized by CLIP's own vocabulary, which is in the program; of more than 77 tokens the
/// rest is left out, with a warning.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextFeatures {
    /// A folder with the whole of CLIP, both halves, as `transformers` writes it.
    pub path: AssetPath,
    /// The texts.
    #[schemars(length(min = 1))]
    pub texts: Vec<Template>,
}

ports! {
    /// `text_features` takes nothing.
    pub struct Inputs {}
}

ports! {
    /// What `text_features` gives.
    pub struct Outputs {
        /// A row for each text.
        pub features: Arc<Features>,
    }
}

impl Node for TextFeatures {
    const OP: &'static str = "text_features";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        Ok(Place::of(self.path.as_path(), files).reads(files))
    }

    fn check(&self, _: &Types<Inputs>, files: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        if self.texts.is_empty() {
            return Err(vec![
                Fault::value("texts", "there are no texts")
                    .help("list them: `texts: [\"a teddy bear {place}\"]`"),
            ]);
        }
        let path = self.path.as_path();
        let network = TextNetwork::read(path, files)
            .map_err(|error| vec![backbone::fault("path", path, &error, files)])?;
        let facts = FeaturesFacts {
            rows: self.texts.len(),
            width: network.width(),
            network: network.name().to_owned(),
        };
        Ok(Types::unknown().with("features", &facts))
    }

    fn run(&self, _: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let network = TextNetwork::read(self.path.as_path(), context.files())?;
        let (kernel, device) = match context.environment::<Runtime>() {
            Some(runtime) => (Arc::clone(&runtime.kernel), runtime.device.clone()),
            None => (retouch_kernels::for_device(&Device::Cpu), Device::Cpu),
        };
        context.check_cancelled()?;
        let texts: Vec<&str> = self.texts.iter().map(Template::as_str).collect();
        let rows = network.features(&texts, kernel, &device, |message| context.warn(message))?;
        Ok(Outputs {
            features: Arc::new(Features::new(rows, network.space(context.files())?)?),
        })
    }
}
