//! `image_features`.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_graph::{Context, Fault, Files, Node, NodeError, ReadFile, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::AssetPath;
use crate::measure::backbone::{self, Described, Place};
use crate::payload::features::{Features, FeaturesFacts};
use crate::payload::image::ImageFacts;
use crate::payload::{ImageOrPhotos, PhotosFacts};
use crate::runtime::{Runtime, tensor_error};

/// Computes what a network sees in pictures: one row of features each, to be compared by `similarity`, `diversity` and
/// `prompt_score`.
///
/// In the box is EfficientNet-Lite0 (`models/lite0.safetensors`, 1280 features, trained on ImageNet). CLIP (projected
/// features), DINO and DINOv2, with or without registers (the class token), are folders as `transformers` writes them: `config.json`
/// and `model.safetensors` or `pytorch_model.bin`. Each picture is cropped, resampled and normalised as that network's
/// authors publish it; docs/measuring.md says how.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFeatures {
    /// The network: the file of EfficientNet-Lite0's weights, or a folder with CLIP, DINO or DINOv2.
    pub path: AssetPath,
}

ports! {
    /// What `image_features` takes.
    pub struct Inputs {
        /// The pictures, or photos, each of its own size.
        pub image: ImageOrPhotos,
    }
}

ports! {
    /// What `image_features` gives.
    pub struct Outputs {
        /// A row for each picture.
        pub features: Arc<Features>,
    }
}

impl Node for ImageFeatures {
    const OP: &'static str = "image_features";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        // A missing file is `check`'s to report.
        Ok(Place::of(self.path.as_path(), files).reads(files))
    }

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let path = self.path.as_path();
        let network = Described::read(path, files)
            .map_err(|error| vec![backbone::fault("path", path, &error, files)])?;
        let types = Types::unknown();
        let photos = inputs.facts::<PhotosFacts>("image");
        let rows = (inputs.facts::<ImageFacts>("image").map(|facts| facts.batch))
            .or_else(|| photos.map(|facts| facts.sizes.len()));
        Ok(match rows {
            None => types,
            Some(rows) => types.with(
                "features",
                &FeaturesFacts {
                    rows,
                    width: network.width(),
                    network: network.name(),
                },
            ),
        })
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let described = Described::read(self.path.as_path(), context.files())?;
        let (kernel, device) = match context.environment::<Runtime>() {
            Some(runtime) => (Arc::clone(&runtime.kernel), runtime.device.clone()),
            None => (retouch_kernels::for_device(&Device::Cpu), Device::Cpu),
        };
        let network = described.load(kernel, &device)?;
        let photos = inputs.image.photos()?;
        let count = photos.pictures.len();
        let mut rows = Vec::with_capacity(count);
        for (index, photo) in photos.pictures.iter().enumerate() {
            context.check_cancelled()?;
            context.progress(index, count);
            // One picture at a time: a row does not depend on what else is in the batch.
            rows.push(network.features(&photo.image)?);
        }
        let rows = Tensor::cat(&rows, 0).map_err(tensor_error)?;
        Ok(Outputs {
            features: Arc::new(Features::new(rows, described.space(context.files())?)?),
        })
    }
}
