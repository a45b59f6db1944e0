//! `encode_reference`.

use std::sync::Arc;

use candle_core::Tensor;
use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::resample;
use crate::payload::{Image, ImageFacts, Latent, LatentFacts, Model};
use crate::runtime::{Runtime, tensor_error};
use crate::sample::{Size, size_faults};
use retouch_diffusion::Result as NetworkResult;
use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_diffusion::networks::tiles::Tiled;

/// Turns a photo into a latent: cropped to the wanted aspect around its centre, resized, and encoded to the *mean* of
/// the VAE's distribution.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EncodeReference {
    /// Width in pixels. Default: the model's own size.
    #[serde(default)]
    pub width: Option<usize>,
    /// Height in pixels. Default: the model's own size.
    #[serde(default)]
    pub height: Option<usize>,
    /// Whether large pictures are encoded in overlapping tiles, so that memory does not grow with them: `auto` (default:
    /// where the latent has more than 96x96 pixels), `always` (where it is larger than a tile, 64x64) or `never`.
    #[serde(default, skip_serializing_if = "Tiled::is_auto")]
    pub tiled: Tiled,
}

ports! {
    /// What `encode_reference` takes.
    pub struct Inputs {
        /// The model whose VAE encodes.
        pub model: Arc<Model>,
        /// The photo.
        pub image: Arc<Image>,
    }
}

ports! {
    /// What `encode_reference` gives.
    pub struct Outputs {
        /// The latent, scaled as the U-Net takes it.
        pub latent: Arc<Latent>,
    }
}

impl Node for EncodeReference {
    const OP: &'static str = "encode_reference";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let Some(model) = inputs.facts::<ModelFacts>("model") else {
            return Ok(Types::unknown());
        };
        let faults = size_faults(&model, self.width, self.height);
        if !faults.is_empty() {
            return Err(faults);
        }
        let size = Size::of(&model, self.width, self.height);
        let types = Types::unknown();
        Ok(match inputs.facts::<ImageFacts>("image") {
            Some(image) => types.with(
                "latent",
                &LatentFacts {
                    batch: image.batch,
                    channels: model.latent_channels,
                    height: size.height / model.factor,
                    width: size.width / model.factor,
                },
            ),
            None => types,
        })
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let model = &inputs.model.checkpoint;
        let size = Size::of(&model.description().facts(), self.width, self.height);
        let picture = resample::fit(&inputs.image, size.width, size.height)?;
        let pixels = (picture.rgb.to_device(&Runtime::of(context)?.device))
            .and_then(|x| x * 2.0)
            .and_then(|x| x - 1.0)
            .map_err(tensor_error)?;
        let vae = model.vae()?;
        let factor = vae.config().factor();
        let tiling = (self.tiled).tiling(size.height / factor, size.width / factor);
        let means = (0..pixels.dim(0).map_err(tensor_error)?)
            .map(|b| {
                let picture = pixels.narrow(0, b, 1)?;
                match tiling {
                    Some(tiling) => vae.encode_mean_tiled(&picture, tiling, model.kernel()),
                    None => vae.encode_mean(&picture, model.kernel()),
                }
            })
            .collect::<NetworkResult<Vec<_>>>()?;
        let mean = Tensor::cat(&means, 0).map_err(tensor_error)?;
        let tensor = (mean * vae.config().scaling_factor).map_err(tensor_error)?;
        Ok(Outputs {
            latent: Arc::new(Latent { tensor }),
        })
    }
}
