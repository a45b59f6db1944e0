//! `encode_reference`.

use std::sync::Arc;

use candle_core::Tensor;
use retouch_graph::{Added, Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::resample;
use crate::latent::{by_vae, tell_widened};
use crate::payload::{Image, ImageFacts, Latent, LatentFacts, Mask, Model};
use crate::runtime::{Runtime, tensor_error};
use crate::sample::{Size, failed, mask_batch_fault, size_faults};
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
        /// For an inpainting model: what is hidden from it (1, white) is encoded as grey. The latent is then what `sample` takes
        /// as `picture`.
        pub mask: Added<Arc<Mask>>,
    }
}

ports! {
    /// What `encode_reference` gives.
    pub struct Outputs {
        /// The latent, scaled as the U-Net takes it.
        pub latent: Arc<Latent>,
    }
}

/// Pixels `[B, 3, H, W]` in -1..=1 with what the mask covers at 0, as diffusers' StableDiffusionInpaintPipeline has them.
fn hidden(pixels: &Tensor, mask: &Mask) -> Result<Tensor, NodeError> {
    let (images, _, h, w) = pixels.dims4().map_err(tensor_error)?;
    if let Some(fault) = mask_batch_fault(mask.batch(), images) {
        return Err(failed(fault));
    }
    let covered = mask.covered(w, h)?;
    let kept = (covered.plane.unsqueeze(1))
        .and_then(|covered| covered.affine(-1.0, 1.0))
        .and_then(|kept| kept.to_device(pixels.device()));
    kept.and_then(|kept| pixels.broadcast_mul(&kept))
        .map_err(tensor_error)
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
        let mut faults = size_faults(&model, self.width, self.height);
        if let (Some(mask), Some(image)) = (
            inputs.facts::<ImageFacts>("mask"),
            inputs.facts::<ImageFacts>("image"),
        ) {
            faults.extend(mask_batch_fault(mask.batch, image.batch));
        }
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
        let pixels = match &inputs.mask.0 {
            Some(mask) => hidden(&pixels, mask)?,
            None => pixels,
        };
        let vae = &model.description().vae;
        let factor = vae.factor();
        let tiling = (self.tiled).tiling(size.height / factor, size.width / factor);
        let means = (0..pixels.dim(0).map_err(tensor_error)?)
            .map(|b| {
                let picture = pixels.narrow(0, b, 1)?;
                by_vae(model, |vae| match tiling {
                    Some(tiling) => vae.encode_mean_tiled(&picture, tiling, model.kernel()),
                    None => vae.encode_mean(&picture, model.kernel()),
                })
            })
            .collect::<NetworkResult<Vec<_>>>()?;
        let mean = Tensor::cat(&means, 0).map_err(tensor_error)?;
        tell_widened(model, context);
        let tensor = (mean * vae.scaling_factor).map_err(tensor_error)?;
        Ok(Outputs {
            latent: Arc::new(Latent { tensor }),
        })
    }
}
