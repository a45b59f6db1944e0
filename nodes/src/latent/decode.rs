//! `decode`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::payload::{Image, ImageFacts, Latent, LatentFacts, Model};
use crate::runtime::{check_finite, tensor_error};
use retouch_diffusion::Result as NetworkResult;
use retouch_diffusion::checkpoint::model::{Checkpoint, ModelFacts};
use retouch_diffusion::networks::preview::decode_scaled;
use retouch_diffusion::networks::tiles::Tiled;
use retouch_diffusion::networks::vae::Vae;

/// Turns latents into pictures with the model's VAE.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    /// Whether large pictures are decoded in overlapping tiles, so that memory does not grow with them: `auto` (default:
    /// where the latent has more than 96x96 pixels), `always` (where it is larger than a tile, 64x64) or `never`.
    #[serde(default, skip_serializing_if = "Tiled::is_auto")]
    pub tiled: Tiled,
}

ports! {
    /// What `decode` takes.
    pub struct Inputs {
        /// The model whose VAE decodes.
        pub model: Arc<Model>,
        /// The latents.
        pub latent: Arc<Latent>,
    }
}

ports! {
    /// What `decode` gives.
    pub struct Outputs {
        /// The pictures, one for each latent of the batch.
        pub image: Arc<Image>,
    }
}

/// Pictures `[B, 3, H, W]` in [0, 1], on the CPU, of scaled latents, one after another so that memory is bounded.
pub(crate) fn decode(
    model: &Checkpoint,
    latents: &candle_core::Tensor,
    tiled: Tiled,
) -> NetworkResult<candle_core::Tensor> {
    let pictures = (0..latents.dim(0)?)
        .map(|b| {
            let latent = latents.narrow(0, b, 1)?;
            by_vae(model, |vae| {
                let picture = decode_scaled(vae, &latent, tiled, model.kernel())?;
                Ok(picture.to_device(&candle_core::Device::Cpu)?)
            })
        })
        .collect::<NetworkResult<Vec<_>>>()?;
    Ok(candle_core::Tensor::cat(&pictures, 0)?)
}

/// What the VAE makes of one image; once more in float32 where it is of half precision and gave numbers that are not finite,
/// as the AUTOMATIC1111 web UI does. The next image is tried in half precision again, so that no picture depends on others.
pub(crate) fn by_vae(
    model: &Checkpoint,
    make: impl Fn(&Vae) -> NetworkResult<candle_core::Tensor>,
) -> NetworkResult<candle_core::Tensor> {
    let made = make(&*model.vae()?)?;
    if check_finite(&made, "it").is_err()
        && let Some(wide) = model.wide_vae()?
    {
        return make(&wide);
    }
    Ok(made)
}

/// Says once that the VAE was taken in float32 after all.
pub(crate) fn tell_widened(model: &Checkpoint, context: &Context<'_>) {
    if model.vae_was_widened() {
        context.count("vae_fallbacks", 1);
        context.warn(
            "the VAE gave numbers that are not finite in half precision: it was computed in float32 instead; leave out `half_vae`, or load a VAE that was made for half precision",
        );
    }
}

/// Why latents of these facts do not fit a model, as a fault of `port`.
pub(crate) fn channel_fault(model: &ModelFacts, channels: usize, port: &str) -> Option<Fault> {
    (model.latent_channels != channels).then(|| {
        Fault::mismatch(
            port,
            format!(
                "latents of {channels} channels for a model that works on {}",
                model.latent_channels
            ),
        )
        .help("latents belong to the model family that made them")
    })
}

impl Node for Decode {
    const OP: &'static str = "decode";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let model: Option<ModelFacts> = inputs.facts("model");
        let latent: Option<LatentFacts> = inputs.facts("latent");
        let (Some(model), Some(latent)) = (model, latent) else {
            return Ok(Types::unknown());
        };
        if let Some(fault) = channel_fault(&model, latent.channels, "latent") {
            return Err(vec![fault]);
        }
        Ok(Types::unknown().with(
            "image",
            &ImageFacts {
                batch: latent.batch,
                width: latent.width * model.factor,
                height: latent.height * model.factor,
            },
        ))
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        context.check_cancelled()?;
        let model = &inputs.model.checkpoint;
        let channels = inputs.latent.tensor.dim(1).map_err(tensor_error)?;
        if let Some(fault) = channel_fault(&model.description().facts(), channels, "latent") {
            return Err(NodeError::failed(fault.message));
        }
        check_finite(&inputs.latent.tensor, "the latent")?;
        let rgb = decode(model, &inputs.latent.tensor, self.tiled)?;
        tell_widened(model, context);
        check_finite(&rgb, "the picture")?;
        Ok(Outputs {
            image: Arc::new(Image { rgb, alpha: None }),
        })
    }
}
