//! The pictures of a training as latents, with their captions and masks.

use candle_core::Tensor;
use retouch_diffusion::Result as NetworkResult;
use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::training::examples::Example;
use retouch_graph::{Context, NodeError};

use crate::image::frame;
use crate::latent::decode::{by_vae, tell_widened};
use crate::payload::photos::{ImageOrPhotos, MaskOrPhotoMasks, Photo};
use crate::runtime::tensor_error;

/// The pictures as the model's latents. `caption` is that of those without one.
pub(super) fn examples(
    model: &Checkpoint,
    images: &ImageOrPhotos,
    masks: Option<&MaskOrPhotoMasks>,
    caption: &str,
    context: &Context<'_>,
) -> Result<Vec<Example>, NodeError> {
    let photos = images.photos()?;
    if let Some(masks) = masks
        && masks.len() != photos.pictures.len()
    {
        return Err(NodeError::failed(format!(
            "there are {} masks for {} pictures",
            masks.len(),
            photos.pictures.len()
        ))
        .help("link what `segment` or `load_images` makes of the same pictures"));
    }
    let made = photos.pictures.iter().enumerate().map(|(i, photo)| {
        context.check_cancelled()?;
        let latent = latent(model, photo)?;
        let mask = match masks {
            Some(masks) => Some(latent_mask(masks, i, photo, &latent)?),
            None => None,
        };
        Ok(Example {
            latent,
            caption: photo.caption.clone().unwrap_or_else(|| caption.to_owned()),
            mask,
        })
    });
    let made = made.collect::<Result<Vec<_>, NodeError>>()?;
    tell_widened(model, context);
    Ok(made)
}

/// Why a picture's size does not fit a model.
pub(super) fn size_fault((width, height): (usize, usize), multiple: usize) -> Option<String> {
    (width % multiple != 0 || height % multiple != 0).then(|| {
        format!("a picture is {width}x{height} pixels; both sides must be multiples of {multiple}")
    })
}

/// What sides of pictures are multiples of: the VAE's factor, and 2 for each time that the U-Net halves the grid.
pub(super) fn multiple(factor: usize, levels: usize) -> usize {
    factor << levels.saturating_sub(1)
}

fn latent(model: &Checkpoint, photo: &Photo) -> Result<Tensor, NodeError> {
    let description = model.description();
    let factor = description.vae.factor();
    let levels = description.unet.block_out_channels.len();
    if let Some(fault) = size_fault(photo.size(), multiple(factor, levels)) {
        return Err(NodeError::failed(format!("`{}`: {fault}", photo.name))
            .help("`load_images` crops and resizes to a size that fits"));
    }
    let pixels = photo
        .image
        .rgb
        .to_device(model.device())
        .and_then(|x| x.affine(2.0, -1.0))
        .map_err(tensor_error)?;
    let mean: NetworkResult<Tensor> = by_vae(model, |vae| vae.encode_mean(&pixels, model.kernel()));
    (mean? * description.vae.scaling_factor).map_err(tensor_error)
}

/// A mask at the latent's size, `[1, 1, h, w]`.
fn latent_mask(
    masks: &MaskOrPhotoMasks,
    index: usize,
    photo: &Photo,
    latent: &Tensor,
) -> Result<Tensor, NodeError> {
    let (_, _, h, w) = latent.dims4().map_err(tensor_error)?;
    let mask = masks.of(index)?;
    let (width, height) = photo.size();
    let mask = frame::resize_mask(&mask, (width, height))?;
    let values = mask.values()?;
    // Means over the pixels of the picture that are one of the latent.
    let (down, across) = (height / h, width / w);
    let mut places = vec![0f32; h * w];
    for (y, line) in values.chunks_exact(width).enumerate() {
        for (x, value) in line.iter().enumerate() {
            places[(y / down).min(h - 1) * w + (x / across).min(w - 1)] += value;
        }
    }
    let area = (down * across) as f32;
    places.iter_mut().for_each(|sum| *sum /= area);
    Tensor::from_vec(places, (1, 1, h, w), latent.device()).map_err(tensor_error)
}
