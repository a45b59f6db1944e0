//! What a network is shown beside the latent: the further channels of an inpainting or image-editing model.

use candle_core::Tensor;

use crate::networks::unet::UnetConfig;
use crate::{Error, Result};

/// What a network is shown beside the latent.
#[derive(Clone, Debug)]
pub struct Beside {
    /// The channels `[B, C', h, w]`, or those of one image for all: mask and masked picture, or a picture's latent.
    pub planes: Tensor,
    /// How much the picture counts; 1 is no guidance by it, and costs a call less.
    pub guidance: f64,
}

/// The latents with what is shown beside them, as the network takes them: `[B, C + C', h, w]`.
pub(super) fn with_beside(
    config: &UnetConfig,
    z: &Tensor,
    beside: Option<&Tensor>,
) -> Result<Tensor> {
    let (images, channels, h, w) = z.dims4()?;
    let shown = match beside {
        None => z.clone(),
        Some(planes) => {
            let planes = match planes.dims4()? {
                (1, c, ..) if images > 1 => planes.broadcast_as((images, c, h, w))?,
                _ => planes.clone(),
            };
            Tensor::cat(&[z, &planes], 1)?
        }
    };
    if shown.dim(1)? == config.in_channels {
        return Ok(shown);
    }
    Err(Error::request(format!(
        "the U-Net takes {} channels, but the latent has {channels}: it is an inpainting or image-editing model",
        config.in_channels
    ))
    .help("`sample` draws with such a model, given its `picture`"))
}
